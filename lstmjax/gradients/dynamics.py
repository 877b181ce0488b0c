"""What a network does left to itself: fixed and slow points under a constant input, and what exponents say of chaos."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from numpy.typing import NDArray

from lstmjax.cells.base import Cell
from lstmjax.checks import whole_number
from lstmjax.gradients import scaled
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.typing import Params, State


class FixedPoints(NamedTuple):
    """Points at which a network stands still, or nearly so, the slowest first.

    Attributes:
        states: leaves ``[N, ...]``, in the form of the state.
        speed: ``[N]`` `q = ½ ‖F(s) − s‖²`.
        fixed: ``[N]`` whether it is a fixed point; else a slow one.
        stable: ``[N]`` whether every eigenvalue of `∂F/∂s` there is below 1 in size.
        eigenvalues: ``[N, n]`` of `∂F/∂s`, complex, the largest first.
        timescales: ``[N, n]`` `−1/ln |λ|`, the steps in which a difference along that direction falls to `1/e`;
            negative where it grows to e times itself, ∞ where it stays, 0 where it is gone after one step.
        periods: ``[N, n]`` `2π/|arg λ|`, the steps in which it turns once; ∞ where it does not turn, 2 where
            `λ < 0`.
        starts: ``[N]`` from how many starts it was reached: how wide its basin is, as the search goes.
    """

    states: State
    speed: NDArray
    fixed: NDArray
    stable: NDArray
    eigenvalues: NDArray
    timescales: NDArray
    periods: NDArray
    starts: NDArray


@at_highest_precision
def fixed_points(
    cell: Cell | Callable,
    params: Params,
    x: Any,
    starts: State,
    *,
    fixed_below: float = 1e-12,
    slow_below: float = 1e-6,
    apart: float = 1e-2,
    max_steps: int = 256,
) -> FixedPoints:
    """Fixed and slow points of a cell under a constant input.

    ::

        F(s) = step(params, s, x),     q(s) = ½ ‖F(s) − s‖²  →  min

    from every start, by Levenberg and Marquardt's method. A minimum with `q ≈ 0` is a fixed point, stable or not; one
    with a small q is a slow point, past which the state creeps. Around each, `ds_t = ∂F/∂s ds_{t−1}`. Near a continuum
    of fixed points, such as a line on which a network holds a number, every start finds another; and a cell that can
    shut its gates is slow wherever they are shut, in states that it may never be in.

    The whole Jacobian is taken, `n × n` for a state of n numbers, at every start: up to a thousand numbers or so.

    Args:
        cell: any cell, or a bare ``step(params, state, x) -> (state, y)``.
        params: its parameters.
        x: one step's input without batch axes, ``[I]``.
        starts: states with one leading axis, leaves ``[S, ...]``: some that the network passes through, such as
            ``state_history(...)`` with time and rows made one axis, and these with a little noise.
        fixed_below: the q below which a point is fixed. The default is for float32 and states near 1; less in float64.
        slow_below: the q below which a point is told at all.
        apart: the distance below which two points are one.
        max_steps: of the search from each start. A start that has not arrived by then is told if it is slow.

    Returns:
        :class:`FixedPoints`, sorted by q; perhaps none.

    Raises:
        ImportError: ``optimistix`` is not installed.
        ValueError: there is no start, starts do not fit the cell, or max_steps is no whole number of at least 1.
        TypeError: the state holds something that is no float.
        FloatingPointError: parameters, x or starts are not finite.

    Source: Sussillo & Barak (2013); the search is ``optimistix.LevenbergMarquardt``.

    >>> import lstmjax
    >>> cell = lstmjax.rnn(1)
    >>> params = lstmjax.RNNParams(jnp.zeros((1, 1)), jnp.array([[2.0]]), jnp.zeros(1))
    >>> points = fixed_points(cell, params, jnp.zeros(1), lstmjax.RNNState(jnp.linspace(-1, 1, 21)[:, None]))
    >>> for n in points.states.h[:, 0].argsort():  # h = tanh(2 h)
    ...     print(f"h = {points.states.h[n, 0]:+.4f}, {'stable' if points.stable[n] else 'unstable'}")
    h = -0.9575, stable
    h = +0.0000, unstable
    h = +0.9575, stable
    """
    max_steps = whole_number("max_steps", max_steps)
    params, x, starts = scaled.wide(jax.tree.map(jnp.asarray, (params, x, starts)))
    _check_starts(params, x, starts)
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    step = cell.step if isinstance(cell, Cell) else cell
    new = jax.eval_shape(lambda s: step(params, s, x)[0], first)
    shapes = [jax.tree.map(lambda a: (a.shape, str(a.dtype)), s) for s in (first, new)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"starts hold states {shapes[0]}, of which the cell's step makes {shapes[1]}; wanted the same")
    _, unflat = ravel_pytree(first)

    def moved(flat):
        return ravel_pytree(step(params, unflat(flat), x)[0])[0]

    flat, speeds = _search(moved, jax.vmap(lambda s: ravel_pytree(s)[0])(starts), max_steps)
    chosen, counts = _unique(flat, speeds, slow_below, apart)
    points = flat[chosen]
    eigenvalues = np.linalg.eigvals(np.asarray(jax.jit(jax.vmap(jax.jacobian(moved)))(points)))
    order = np.argsort(-np.abs(eigenvalues), axis=1, kind="stable")
    eigenvalues = np.take_along_axis(eigenvalues, order, axis=1).astype(np.complex128)
    sizes, turns = np.abs(eigenvalues), np.abs(np.angle(eigenvalues))
    with np.errstate(divide="ignore"):
        return FixedPoints(
            states=jax.tree.map(np.asarray, jax.vmap(unflat)(points)),
            speed=speeds[chosen],
            fixed=speeds[chosen] <= fixed_below,
            stable=sizes.max(axis=1, initial=0.0) < 1,
            eigenvalues=eigenvalues,
            timescales=np.where(sizes == 1, np.inf, -1 / np.log(sizes)),
            periods=2 * np.pi / turns,
            starts=counts,
        )


def _search(moved: Callable[[Array], Array], starts: Array, max_steps: int) -> tuple[Array, NDArray]:
    """Where the search from each start ends, and q there."""
    try:
        import optimistix  # slow to import, and wanted here alone
    except ImportError as error:
        raise ImportError(f"fixed_points wants optimistix: pip install 'lstmjax[dynamics]' ({error})") from error
    tolerance = float(np.finfo(starts.dtype).eps) ** 0.8
    solver = optimistix.LevenbergMarquardt(rtol=tolerance, atol=tolerance)

    def residual(flat, _):
        return moved(flat) - flat

    def search(start):
        # Without an error for those that do not arrive: what counts is how slow it is where they stand.
        return optimistix.least_squares(residual, solver, start, max_steps=max_steps, throw=False).value

    ends = jax.jit(lambda starts: jax.lax.map(search, starts, batch_size=64))(starts)
    speeds = 0.5 * (np.asarray(jax.jit(jax.vmap(lambda end: residual(end, None)))(ends), np.float64) ** 2).sum(-1)
    return ends, speeds


def _unique(ends: Array, speeds: NDArray, slow_below: float, apart: float) -> tuple[NDArray, NDArray]:
    """The slowest of each group of ends near one another, and how many are in it."""
    places = np.asarray(ends, np.float64)
    left = [n for n in np.argsort(speeds, kind="stable") if speeds[n] <= slow_below]
    chosen, counts = [], []
    while left:
        near = np.linalg.norm(places[left] - places[left[0]], axis=-1) < apart
        near[0] = True
        chosen.append(left[0])
        counts.append(int(near.sum()))
        left = [n for n, merged in zip(left, near, strict=True) if not merged]
    return np.array(chosen, int), np.array(counts, int)


def _check_starts(params: Params, x: Any, starts: State) -> None:
    leaves = jax.tree.leaves_with_path(starts)
    sizes = {leaf.shape[:1] for _, leaf in leaves}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        raise ValueError(f"starts hold arrays {[leaf.shape for _, leaf in leaves]}; wanted one leading axis, [S, ...]")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"starts{jax.tree_util.keystr(path)} has dtype {leaf.dtype}; wanted a floating dtype")
    for name, tree in (("params", params), ("x", x), ("starts", starts)):
        for path, leaf in jax.tree.leaves_with_path(tree):
            if not np.isfinite(np.asarray(leaf, np.float64)).all():
                raise FloatingPointError(f"{name}{jax.tree_util.keystr(path)} holds a NaN or an infinity")


def kaplan_yorke_dimension(exponents: Any) -> Array:
    """The dimension of the attractor that a spectrum of Lyapunov exponents belongs to, as Kaplan and Yorke guess it.

    ::

        D = k + (λ_1 + … + λ_k) / |λ_{k+1}|,     k the most for which the sum is not negative

    Args:
        exponents: ``[n, *B]`` the whole spectrum, the largest first, as from :func:`lyapunov_spectrum`.

    Returns:
        ``[*B]``: 0 where every exponent is negative, n where all of them together are not. Of leading exponents alone,
        n means at least n.

    Raises:
        ValueError: exponents have no axis, or an empty one.

    Source: Kaplan & Yorke (1979).

    >>> print(f"{kaplan_yorke_dimension(jnp.array([0.9056, 0.0, -14.5723])):.3f}")  # of Lorenz's system
    2.062
    """
    exponents = _spectrum_of(exponents)
    sums = jnp.cumsum(exponents, axis=0)
    k = (sums >= 0).sum(0)
    size = exponents.shape[0]
    inner = jnp.minimum(k, size - 1)[None]
    next_one = jnp.take_along_axis(exponents, inner, axis=0)[0]
    last_sum = jnp.where(k > 0, jnp.take_along_axis(sums, jnp.maximum(inner - 1, 0), axis=0)[0], 0.0)
    whole = k == size
    fraction = jnp.where(whole, 0.0, last_sum / jnp.where(whole, -1.0, jnp.abs(next_one)))
    return k.astype(exponents.dtype) + fraction


def entropy_rate(exponents: Any) -> Array:
    """The sum of the positive exponents, in nats a step: how fast the network forgets where it began.

    By Pesin's identity it is the Kolmogorov–Sinai entropy of a chaotic attractor, and by Ruelle's inequality no less
    than that in general. Divided by ln 2 it is in bits.

    Args:
        exponents: ``[n, *B]`` all positive ones at least, as from :func:`lyapunov_spectrum`.

    Returns:
        ``[*B]``.

    Raises:
        ValueError: exponents have no axis, or an empty one.

    Source: Pesin (1977); for recurrent networks Engelken, Wolf & Abbott (2023).

    >>> print(f"{entropy_rate(jnp.array([0.3, 0.1, 0.0, -2.0])):.1f}")
    0.4
    """
    return jnp.maximum(_spectrum_of(exponents), 0.0).sum(0)


def _spectrum_of(exponents: Any) -> Array:
    exponents = scaled.wide(jnp.asarray(exponents))
    if exponents.ndim == 0 or exponents.shape[0] == 0:
        raise ValueError(f"exponents have shape {exponents.shape}; wanted [n, *B], n at least 1")
    return exponents
