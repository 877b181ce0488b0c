"""What to watch while a network trains: one row of numbers, at about the cost of a gradient or two."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell
from lstmjax.gradients import scaled
from lstmjax.gradients.adjoint import adjoint_norms
from lstmjax.gradients.decay import decay_fit
from lstmjax.gradients.gates import gate_statistics
from lstmjax.gradients.linear import Linearised, as_cell, linearised
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.recurrence.inputs import time_and_batch
from lstmjax.typing import Params, State
from lstmjax.unroll import state_history

LAGS = (1, 10, 100, 1000)
# Of so many rows the shares of gates are taken: they are averages over steps and units already.
FEW = 8


@at_highest_precision
def gradient_row(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    loss_fn: Callable[[State], Array],
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> dict[str, Array]:
    """How the gradient stands right now, as one row of named numbers: for a log, every so many steps of training.

    It costs about two gradients of the same rows, and a few rows are enough. Jit it, in a loop of your own or as
    ``training.probe(jax.jit(row), every=100)`` for :func:`~lstmjax.training.fit`, which writes it to JSON lines and
    TensorBoard.

    Args:
        cell: any cell, or a bare ``step(params, state, x) -> (state, y)`` together with a ``state``.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs, T at least 2: always the same ones, or the numbers move with them.
        loss_fn: ``states -> scalar`` over the history with the initial state in front, as for
            :func:`~lstmjax.gradients.adjoint_norms`. Sum over rows. Of the last states alone, or what is fitted against
            the lag is no decay.
        state: the state before the first step; the cell's initial state unless given.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`. S lag counts from each row's own end.

    Returns:
        Scalars but for ``by_lag``, float32 at least. ``P`` is each part of the state, ``c`` and ``h`` of an LSTM:

        * ``loss``
        * ``half_life_P``, ``half_life_P_least``, ``half_life_P_greatest``: in steps, of `‖∂L/∂P_t‖` fitted from lag 1
          on, row by row; the median row, and the error bar over rows. ∞ where it does not shrink, NaN where it is 0.
        * ``by_lag_P`` ``[T + 1]``: `log₁₀ ‖∂L/∂P‖` by lag, the median of the rows that are that long; ``lag_10_P`` the
          same at lags 1, 10, 100 and 1000, for TensorBoard, which takes scalars.
        * ``norm_W``: `‖∂L/∂W‖` of each parameter ``W``.
        * ``G_shut``, ``G_open``: the share of steps and units at which gate ``G`` is below 0.1, above 0.9, in the first
          eight rows; of cells whose step names its gates.
        * ``lyapunov``: the leading exponent over the last nine tenths of the steps of the first row.

    Raises:
        ValueError: T is below 2; or as :func:`~lstmjax.unroll`.
        TypeError: as :func:`~lstmjax.unroll`; or the loss is no scalar.
        FloatingPointError: outside ``jit``: parameters, inputs or states are not finite.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8, w_h_init=jax.nn.initializers.zeros)
    >>> xs = jnp.zeros((200, 4, 3))
    >>> row = jax.jit(lambda params: gradient_row(cell, params, xs, lambda states: states.h[-1].sum()))
    >>> numbers = row(cell.init(jax.random.key(0), 3))
    >>> round(float(numbers["half_life_c"]), 2), round(float(numbers["lyapunov"]), 3), numbers["by_lag_c"].shape
    (2.21, -0.313, (201,))
    """
    params, xs, state = scaled.wide((params, jax.tree.map(jnp.asarray, xs), state))
    lengths, mask, resets = (None if given is None else jnp.asarray(given) for given in (lengths, mask, resets))
    whole = as_cell(cell, state)  # of all rows: a bare step begins at the state, and fewer rows at a part of it
    steps, batch = time_and_batch(whole, xs)
    if steps < 2:
        raise ValueError(f"xs holds {steps} steps; wanted at least two: a half-life is fitted over lags")
    options = {"lengths": lengths, "mask": mask, "resets": resets}

    def loss(params):
        return loss_fn(state_history(whole, params, xs, state, include_initial=True, **options))

    def first(rows):
        """The data of the first rows alone."""
        if not batch:
            return xs, state, options
        xs_few, of_time = jax.tree.map(lambda leaf: leaf[:, :rows], (xs, {"mask": mask, "resets": resets}))
        state_few, of_row = jax.tree.map(lambda leaf: leaf[:rows], (state, {"lengths": lengths}))
        return xs_few, state_few, of_time | of_row

    norms = adjoint_norms(cell, params, xs, loss_fn, state, **options)
    value, grads = jax.value_and_grad(loss)(params)
    row = {"loss": value}
    for name, part in _named(norms, "state").items():
        row |= _decay(name, part.reshape(steps + 1, -1), lengths)
    for name, leaf in _named(grads, "params").items():
        row[f"norm_{name}"] = jnp.exp(scaled.log_norm(leaf, jnp.zeros((), jnp.int32)))
    if getattr(whole.step, "gates", None) is not None:
        few, state_few, of_few = first(FEW)
        for name, gate in gate_statistics(cell, params, few, state_few, **of_few).items():
            row |= {f"{name}_shut": gate.left_saturated.mean(), f"{name}_open": gate.right_saturated.mean()}
    one, state_one, of_one = first(1)
    return row | {"lyapunov": _leading_exponent(linearised(cell, params, one, state_one, **of_one), steps // 10)}


def _named(tree: Any, alone: str) -> dict[str, Array]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=".") or alone: leaf for path, leaf in leaves}


def _decay(part: str, norms: Array, lengths: Any) -> dict[str, Array]:
    """Half-life and curve of ``[T + 1, B]`` logarithms by time, NaN after a row's end."""
    times = np.arange(len(norms), dtype=np.int32)
    ends = times[-1:] if lengths is None else jnp.ravel(jnp.asarray(lengths)).astype(jnp.int32)
    at = jnp.broadcast_to(ends[None] - times[:, None], norms.shape)
    with jax.debug_nans(False):  # there is nothing beyond a row's own length
        by_lag = jnp.where(at >= 0, jnp.take_along_axis(norms, jnp.maximum(at, 0), axis=0), jnp.nan)
        spread = decay_fit(times[1:], by_lag[1:].T).spread()
        curve = jnp.nanmedian(by_lag, axis=1) / math.log(10)
    lives = {"": spread.half_life, "_least": spread.half_life_least, "_greatest": spread.half_life_greatest}
    row = {f"half_life_{part}{which}": life for which, life in lives.items()}
    lags = {f"lag_{lag}_{part}": curve[lag] for lag in LAGS if lag < len(curve)}
    return row | lags | {f"by_lag_{part}": curve}


def _leading_exponent(linear: Linearised, burn_in: int) -> Array:
    """The growth of a tangent that begins in no direction of note, a step that is taken."""

    def body(carry, at):
        carry = scaled.normalised(linear.push(at, carry[0]), carry[1])
        return carry, scaled.log_norm(*carry)

    rng = np.random.default_rng(0)
    tangent = jax.tree.map(
        lambda leaf: jnp.broadcast_to(
            jnp.asarray(rng.normal(size=leaf.shape[1 + linear.batch_axes :]), leaf.dtype), leaf.shape[1:]
        ),
        linear.states,
    )
    start = tangent, jnp.zeros(linear.batch, jnp.int32)
    _, logs = lax.scan(body, start, linear.steps)
    first, last = (logs[burn_in - 1] if burn_in else scaled.log_norm(*start)), logs[-1]
    valid = linear.steps[0].valid
    taken = jnp.ones_like(logs, bool) if valid is None else valid
    ended = jnp.isneginf(last)
    growth = jnp.where(ended, 0.0, last) - jnp.where(ended, 0.0, first)
    with jax.debug_nans(False):  # a row that takes no step has no exponent
        exponents = growth / taken[burn_in:].sum(0).astype(growth.dtype)
        return jnp.where(ended, -jnp.inf, exponents).mean()
