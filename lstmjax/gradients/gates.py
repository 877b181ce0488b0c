"""What the gates do over a sequence: their values, how often they saturate, how far back a unit remembers."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lstmjax.cells.base import Cell, Recurrence
from lstmjax.gradients import scaled
from lstmjax.gradients.linear import blanked
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.recurrence.inputs import as_sequence, prepare
from lstmjax.recurrence.scan import over_time, plain_scan, restored, select
from lstmjax.typing import Params, State
from lstmjax.unroll import record_state


class GateStatistics(NamedTuple):
    """One gate over all the steps that were taken, unit by unit.

    Attributes:
        mean: ``[H]`` mean value.
        left_saturated: ``[H]`` share of steps at which it is below 0.1: shut.
        right_saturated: ``[H]`` share of steps at which it is above 0.9: wide open.
        timescale: ``[H]`` 1/(1 − mean), the steps over which a unit remembers; of the gate that keeps the state alone.
    """

    mean: Array
    left_saturated: Array
    right_saturated: Array
    timescale: Array | None


@at_highest_precision
def gate_values(
    cell: Cell,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> dict[str, Array]:
    """Every gate at every step of an unroll.

    Args:
        cell: one whose step names its gates, as those of the LSTM and the GRU do.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        state: the state before the first step; the cell's initial state unless given.
        lengths: as for :func:`~lstmjax.unroll`.
        mask: as for :func:`~lstmjax.unroll`.
        resets: as for :func:`~lstmjax.unroll`.

    Returns:
        ``[T, *B, H]`` for each of ``input``, ``forget``, ``candidate`` and ``output``, or ``reset``, ``update`` and
        ``candidate``; NaN where a step was skipped.

    Raises:
        TypeError: the cell names no gates; or as :func:`~lstmjax.unroll`.
        ValueError: as :func:`~lstmjax.unroll`.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=4, forget_bias=2.0, w_h_init=jax.nn.initializers.zeros)
    >>> gates = gate_values(cell, cell.init(jax.random.key(0), 3), jnp.zeros((5, 3)))
    >>> sorted(gates), gates["forget"].shape, round(float(gates["forget"].mean()), 3)  # σ(2)
    (['candidate', 'forget', 'input', 'output'], (5, 4), 0.881)
    """
    gates, valid = _gate_values(cell, params, _checked(cell, xs, state, lengths, mask, resets))
    return gates if valid is None else blanked(valid, gates)


@at_highest_precision
def gate_statistics(
    cell: Cell,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> dict[str, GateStatistics]:
    """How open each gate is, how often it saturates, and how far back each unit remembers.

    A unit whose forget gate is f loses a share 1 − f of its memory a step, and so remembers over 1/(1 − f) steps. A GRU
    keeps its state by its update gate. A saturated gate passes no gradient to its own weights.

    Args:
        cell: as for :func:`gate_values`, and so are the other arguments.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        state: the state before the first step.
        lengths: as for :func:`~lstmjax.unroll`.
        mask: as for :func:`~lstmjax.unroll`.
        resets: as for :func:`~lstmjax.unroll`.

    Returns:
        A :class:`GateStatistics` for each gate, in float32 at least, NaN where no step was taken; the candidate, which
        is no percentage, has none.

    Raises:
        TypeError: as :func:`gate_values`.
        ValueError: as :func:`gate_values`.

    Source: Karpathy, Johnson & Fei-Fei (2015) for left and right saturation, at 0.1 and 0.9; Tallec & Ollivier (2018)
    for the time scale 1/(1 − f).

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=4, forget_bias=5.0, w_h_init=jax.nn.initializers.zeros)
    >>> forget = gate_statistics(cell, cell.init(jax.random.key(0), 3), jnp.zeros((50, 3)))["forget"]
    >>> round(float(forget.timescale[0])), float(forget.right_saturated[0])
    (149, 1.0)
    """
    params, xs, state = scaled.wide((params, xs, state))
    gates, taken = _gate_values(cell, params, _checked(cell, xs, state, lengths, mask, resets))
    keeps = getattr(cell.step, "keeps", None)
    with jax.debug_nans(False):  # NaN where no step was taken is what was promised
        return {name: _statistics(g, taken, name == keeps) for name, g in gates.items() if name != "candidate"}


@partial(jax.jit, static_argnums=2)
def _statistics(gate: Array, taken: Array | None, keeps: bool) -> GateStatistics:
    taken = jnp.ones(gate.shape[:-1], bool) if taken is None else taken
    over, count = tuple(range(taken.ndim)), taken.sum().astype(gate.dtype)

    def mean(values):
        return select(taken, values.astype(gate.dtype), jnp.zeros_like(gate)).sum(over) / count

    # 1 − mean as the mean of 1 − f, which keeps its digits where f is close to 1.
    timescale = 1 / mean(1 - gate) if keeps else None
    return GateStatistics(mean(gate), mean(gate < 0.1), mean(gate > 0.9), timescale)


def _checked(cell: Cell, *given: Any) -> Any:
    step = cell.step
    if not isinstance(step, Recurrence) or step.gates is None:
        raise TypeError("the cell's step names no gates; wanted a Recurrence with gates, as an LSTM or a GRU has")
    return as_sequence(cell, *given)


@partial(jax.jit, static_argnums=0)
def _gate_values(cell: Cell, params: Params, sequence: Any) -> tuple[dict[str, Array], Array | None]:
    """Every gate at every step, and which steps were taken."""
    step: Any = cell.step
    start, fresh, timeline = prepare(cell, params, sequence)
    _, after = plain_scan(step, record_state, False, None, params, start, fresh, timeline)
    before = jax.tree.map(lambda leaf: leaf[:-1], over_time(start, after))
    if fresh is not None:
        fresh = jax.tree.map(lambda f, b: jnp.broadcast_to(f[None], b.shape), fresh, before)
    before = restored(fresh, before, timeline)
    gates = step.split(step.z(step.pack(params), timeline.x, before.h), before)
    return step.gates(gates, step.working(before)), timeline.valid
