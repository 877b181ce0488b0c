"""The gradient of the weights, taken apart: by the step it comes from, and by what truncation leaves out."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell
from lstmjax.checks import whole_number
from lstmjax.gradients import scaled
from lstmjax.gradients.linear import as_cell, blanked
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.recurrence.inputs import as_sequence, prepare, time_and_batch
from lstmjax.recurrence.scan import advance, over_time
from lstmjax.typing import Params, State


@at_highest_precision
def per_step_param_grads(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    loss_fn: Callable[[State], Array],
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> Params:
    """What every step contributes to the gradient of the weights.

    With a copy `θ_t` of the parameters for every step, `s_t = step(θ_t, s_{t−1}, x_t)`::

        ∂L/∂θ  =  Σ_t ∂L/∂θ_t,     ∂L/∂θ_t = (∂s_t/∂θ_t)ᵀ λ_t,

    with `λ_t` the adjoint of :func:`~lstmjax.gradients.adjoint_norms`. Fused kernels sum over t before anyone can look.

    Args:
        cell: any cell, or a bare ``step(params, state, x) -> (state, y)`` together with a ``state``.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        loss_fn: ``states -> scalar`` over the history with the initial state in front, as for
            :func:`~lstmjax.gradients.adjoint_norms`.
        state: the state before the first step; the cell's initial state unless given.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`.

    Returns:
        The parameters' own structure, each leaf with a leading time axis ``[T, ...]`` and float32 at least: T times the
        memory of the parameters. Sums over time to the BPTT gradient.

    Raises:
        ValueError: as :func:`~lstmjax.unroll`; or a bare step comes without a state.
        TypeError: as :func:`~lstmjax.unroll`; or the loss is no scalar.

    Source: asked for, and impossible with fused kernels, in pytorch#1407.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> grads = per_step_param_grads(cell, params, jnp.ones((20, 3)), lambda states: states.h[-1].sum())
    >>> grads.w_h.shape, bool(jnp.abs(grads.w_h[19]).sum() > jnp.abs(grads.w_h[1]).sum())
    ((20, 4, 16), True)
    """
    params, xs, state = scaled.wide((params, xs, state))
    cell = as_cell(cell, state)
    sequence = jax.tree.map(jnp.asarray, as_sequence(cell, xs, state, lengths, mask, resets))
    start, fresh, timeline = prepare(cell, params, sequence)
    steps, _ = time_and_batch(cell, timeline.x)
    copies = jax.tree.map(lambda p: jnp.broadcast_to(p, (steps, *jnp.shape(p))), params)

    def loss(copies):
        def body(state, at):
            params, now = at
            state, _ = advance(cell.step, params, fresh, state, now)
            return state, state

        _, after = lax.scan(body, start, (copies, timeline))
        return loss_fn(over_time(start, after))

    return jax.grad(loss)(copies)


class TruncationBias(NamedTuple):
    """How far the gradient of truncated BPTT is from the full one, by window length.

    Attributes:
        windows: ``[W]`` the window lengths.
        relative_error: ``[W]`` `‖g_k − g‖ / ‖g‖` over all parameters; 0 where both are exactly zero.
        cosine: ``[W]`` of the angle between `g_k` and g; NaN where either is exactly zero and there is no angle.
        by_leaf: `‖g_k − g‖ / ‖g‖` leaf by leaf: the parameters' structure, each leaf ``[W]``.
    """

    windows: Array
    relative_error: Array
    cosine: Array
    by_leaf: Params


@at_highest_precision
def truncation_bias(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    loss_fn: Callable[[State], Array],
    windows: Sequence[int],
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> TruncationBias:
    """The bias of truncated BPTT: its gradient beside the full one, for several window lengths.

    Truncation cuts the sequence into windows of k steps, carries the state from one to the next, and stops the gradient
    there. Values are unchanged; of the gradient, all that would cross a border is lost. With `k ≥ T` nothing is.

    Args:
        cell: any cell, or a bare ``step(params, state, x) -> (state, y)`` together with a ``state``.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        loss_fn: ``states -> scalar`` over the history with the initial state in front, as for
            :func:`~lstmjax.gradients.adjoint_norms`.
        windows: the k to compare.
        state: the state before the first step; the cell's initial state unless given.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`.

    Returns:
        A :class:`TruncationBias`, float32 at least; right wherever the gradients themselves are finite.

    Raises:
        ValueError: there is no window, or one is no whole number of at least 1; a bare step comes without a
            state; or as :func:`~lstmjax.unroll`.
        TypeError: as :func:`~lstmjax.unroll`; or the loss is no scalar.

    Source: Williams & Peng (1990); Tallec & Ollivier (2017) on the bias.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=4)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> xs = jax.random.normal(jax.random.key(1), (40, 3))
    >>> bias = truncation_bias(cell, params, xs, lambda states: (states.h[1:] ** 2).sum(), windows=[1, 10, 40])
    >>> bool(bias.relative_error[0] > bias.relative_error[1] > 0), float(bias.relative_error[2])
    (True, 0.0)
    """
    if not len(windows):
        raise ValueError(f"windows is {windows!r}; wanted at least one whole number of steps")
    windows = [whole_number(f"windows[{n}]", k) for n, k in enumerate(windows)]
    params, xs, state = scaled.wide((params, xs, state))
    cell = as_cell(cell, state)
    sequence = jax.tree.map(jnp.asarray, as_sequence(cell, xs, state, lengths, mask, resets))
    start, fresh, timeline = prepare(cell, params, sequence)
    times = jnp.arange(time_and_batch(cell, timeline.x)[0])

    # One program for every window length: where a border falls is data.
    @jax.jit
    def gradient(border):
        def body(params, state, at):
            now, border = at
            state = jax.tree.map(lambda s: jnp.where(border, lax.stop_gradient(s), s), state)
            state, _ = advance(cell.step, params, fresh, state, now)
            return state, state

        def loss(params):
            _, after = lax.scan(partial(body, params), start, (timeline, border))
            return loss_fn(over_time(start, after))

        return jax.grad(loss)(params)

    full = gradient(jnp.zeros_like(times, bool))
    truncated = [gradient((times > 0) & (times % k == 0)) for k in windows]
    return TruncationBias(
        jnp.array(windows),
        jnp.stack([_relative_error(g, full) for g in truncated]),
        jnp.stack([_cosine(g, full) for g in truncated]),
        jax.tree.map(lambda want, *got: jnp.stack([_relative_error(g, want) for g in got]), full, *truncated),
    )


def truncation_window(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    loss_fn: Callable[[State], Array],
    state: State | None = None,
    *,
    keep: float = 0.99,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> int:
    """The window of truncated BPTT that keeps so much of the gradient, as measured by :func:`truncation_bias`.

    Give it a loss at every step, as truncated BPTT has: of one at the end alone, what is kept depends on where the last
    border falls. What a window keeps changes with training; measure again.

    Args:
        cell: as for :func:`truncation_bias`, and so are the arguments that are not named here.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs, T at least 1, and several times as long as the window you expect.
        loss_fn: ``states -> scalar``.
        state: the state before the first step.
        keep: the share: 0.99 allows `‖g_k − g‖ ≤ 0.01 ‖g‖`.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`.

    Returns:
        The least k of 1, 2, 4, … and T for which it and all longer ones keep the share. T: no shorter one does.

    Raises:
        ValueError: keep is not from 0 to 1, or T is 0; or as :func:`truncation_bias`.
        TypeError: as :func:`truncation_bias`.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8, forget_bias=0.0)  # f = ½: a step back halves the gradient
    >>> params = cell.init(jax.random.key(0), 3)
    >>> xs = jax.random.normal(jax.random.key(1), (200, 3))
    >>> truncation_window(cell, params, xs, lambda states: (states.h[1:] ** 2).sum())
    128
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep!r}; wanted a share from 0 to 1")
    steps, _ = time_and_batch(as_cell(cell, state), xs)
    if steps == 0:
        raise ValueError("xs holds no step; wanted at least one")
    windows = [2**n for n in range((steps - 1).bit_length())] + [steps]
    options = {"lengths": lengths, "mask": mask, "resets": resets}
    bias = truncation_bias(cell, params, xs, loss_fn, windows, state, **options)
    short = np.flatnonzero(~(np.asarray(bias.relative_error) <= 1 - keep))
    return windows[short[-1] + 1] if short.size else windows[0]


def _with_exponent(vector: Any) -> tuple[Any, Array]:
    """As a pair (v, e), so that neither a square nor a difference leaves the range of the format."""
    return scaled.normalised(vector, jnp.zeros((), jnp.int32))


def _relative_error(got: Any, want: Any) -> Array:
    """‖got − want‖ / ‖want‖; 0 where there is no difference, be there nothing to compare it with."""
    got, want = _with_exponent(got), _with_exponent(want)
    error = scaled.log_norm(*scaled.add(got, (jax.tree.map(jnp.negative, want[0]), want[1])))
    same = jnp.isneginf(error)
    return jnp.where(same, 0.0, jnp.exp(jnp.where(same, 0.0, error) - scaled.log_norm(*want)))


def _cosine(a: Any, b: Any) -> Array:
    """a · b / (‖a‖ ‖b‖); NaN where either is zero."""
    a, b = (scaled.flat(_with_exponent(v)[0], 0) for v in (a, b))
    norms = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    return blanked(norms > 0, a @ b / jnp.where(norms > 0, norms, 1.0))
