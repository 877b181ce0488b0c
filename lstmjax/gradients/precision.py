"""Where plain backpropagation through time leaves the range of a floating format."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell
from lstmjax.gradients import scaled
from lstmjax.gradients.linear import Linearised, as_cell, linearised
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.recurrence.inputs import time_and_batch
from lstmjax.typing import Params, State


class PrecisionAudit(NamedTuple):
    """One dtype's plain backward pass beside its rescaled one; lags in steps, None where it does not happen.

    Attributes:
        plain: ``[T + 1]`` ln of the norm of the whole adjoint by lag, by plain backpropagation; a median over rows.
        rescaled: ``[T + 1]`` the same with exponents of its own, in the same dtype.
        wrong_from: the first lag from which on the plain norm is off by more than a tenth. It need not then read 0:
            where subnormal numbers are kept, rounding to nearest can hold a gradient at the least of them for good.
        zero_from: the first lag from which on it is exactly 0.
        infinite_from: the first lag from which on it is infinite or NaN.
    """

    plain: Array
    rescaled: Array
    wrong_from: int | None
    zero_from: int | None
    infinite_from: int | None


@at_highest_precision
def precision_audit(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    loss_fn: Callable[[State], Array],
    state: State | None = None,
    *,
    dtypes: Sequence[Any] = ("float32", "bfloat16", "float16"),
) -> dict[str, PrecisionAudit]:
    """The lags at which plain backpropagation underflows or overflows, dtype by dtype.

    Parameters, inputs and state are cast to each dtype. The forward pass, its coefficients and the loss's own gradient
    are then the same for both backward passes; all that differs is that one carries an exponent beside each adjoint.

    Args:
        cell: any cell, or a bare ``step(params, state, x) -> (state, y)`` together with a ``state``.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        loss_fn: ``states -> scalar``, as for :func:`~lstmjax.gradients.adjoint_norms`.
        state: the state before the first step; the cell's initial state unless given.
        dtypes: floating dtypes; ``"float64"`` wants JAX's x64 mode.

    Returns:
        A :class:`PrecisionAudit` for each dtype, by name.

    Raises:
        ValueError: a dtype is float64 and x64 is off, or there is no row; or as :func:`~lstmjax.unroll`.
        TypeError: a dtype is not floating; or as :func:`~lstmjax.unroll`.
        FloatingPointError: parameters, inputs or states are not finite in a dtype.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> xs = jax.random.normal(jax.random.key(1), (400, 3))
    >>> audit = precision_audit(cell, params, xs, lambda states: states.h[-1].sum(), dtypes=["float32", "float16"])
    >>> audit["float16"].wrong_from < audit["float32"].wrong_from
    True
    """
    cell = as_cell(cell, state)
    _, batch = time_and_batch(cell, xs)
    if 0 in batch:
        raise ValueError(f"xs has batch axes {batch}; wanted at least one row: the norms are medians over rows")
    if state is None:  # a state that is given is carried in its own dtype, and so in the one under audit
        state = cell.begin(params, batch)
    audits = {}
    for dtype in map(jnp.dtype, dtypes):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"dtypes holds {dtype}; wanted floating dtypes")
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError("dtypes holds float64, which JAX has only with jax_enable_x64 on")
        linear = linearised(cell, *_cast((params, xs, state), dtype))
        direct = jax.grad(loss_fn)(linear.states)
        plain, rescaled = (_by_lag(norms) for norms in _both_ways(linear, direct))
        audits[dtype.name] = PrecisionAudit(
            jnp.asarray(plain),
            jnp.asarray(rescaled),
            _from(~(np.abs(plain - rescaled) < np.log(1.1))),
            _from(np.isneginf(plain) & ~np.isneginf(rescaled)),
            _from(np.isposinf(plain) | np.isnan(plain)),
        )
    return audits


def _cast(tree: Any, dtype: Any) -> Any:
    """Every float in the dtype; symbols, counters and keys as they are."""

    def cast(leaf):
        leaf = jnp.asarray(leaf)
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


@jax.jit
def _both_ways(linear: Linearised, direct: State) -> tuple[Array, Array]:
    plain = jnp.zeros(linear.batch, jnp.int32)

    def backward(carry, at):
        step, direct = at
        adjoint, (vector, exponent) = carry
        adjoint = jax.tree.map(jnp.add, linear.pull(step, adjoint), direct)
        pair = scaled.add((linear.pull(step, vector), exponent), (direct, plain))
        return (adjoint, pair), (scaled.log_norm(adjoint, plain), scaled.log_norm(*pair))

    last = jax.tree.map(lambda d: d[-1], direct)
    start = last, scaled.normalised(last, plain)
    before = jax.tree.map(lambda d: d[:-1], direct)
    _, sizes = lax.scan(backward, start, (linear.steps, before), reverse=True)
    at_end = scaled.log_norm(last, plain), scaled.log_norm(*start[1])
    return jax.tree.map(lambda s, end: jnp.concatenate([s, end[None]]), sizes, at_end)


def _by_lag(norms: Array) -> np.ndarray:
    rows = np.asarray(norms)[::-1].reshape(len(norms), -1)
    return np.median(rows, axis=1)


def _from(flags: np.ndarray) -> int | None:
    """The first lag from which on every flag is up."""
    if not flags[-1]:
        return None
    down = np.flatnonzero(~flags)
    return int(down[-1]) + 1 if down.size else 0
