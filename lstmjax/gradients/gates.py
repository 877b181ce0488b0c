"""What the gates do over a sequence: their values, how often they saturate, how far back a unit remembers."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lstmjax.cells.base import Cell, Recurrence
from lstmjax.gradients import scaled
from lstmjax.gradients.linear import as_cell, blanked
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.recurrence.inputs import as_sequence, prepare, time_and_batch
from lstmjax.recurrence.scan import Timeline, over_time, plain_scan, restored, select
from lstmjax.typing import Params, State
from lstmjax.unroll import record_state

ReadGates = Callable[[Params, State, Any], dict[str, Array]]
"""``(params, state, x) -> {name: value}``: the gates of a step, from what the step is given."""


class GateStatistics(NamedTuple):
    """One gate over all the steps that were taken, unit by unit.

    Attributes:
        mean: ``[H]`` mean value.
        left_saturated: ``[H]`` share of steps at which it is below 0.1: shut.
        right_saturated: ``[H]`` share of steps at which it is above 0.9: wide open.
        timescale: ``[H]`` `1/(1 − mean)`, the steps over which a unit remembers; of the gate that keeps the state
            alone.
    """

    mean: Array
    left_saturated: Array
    right_saturated: Array
    timescale: Array | None


@at_highest_precision
def gate_values(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
    gates: ReadGates | None = None,
) -> dict[str, Array]:
    """Every gate at every step of an unroll.

    Args:
        cell: one whose step names its gates, as those of the LSTM and the GRU do; or, with ``gates``, any cell, or a
            bare ``step(params, state, x) -> (state, y)`` together with a ``state``.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        state: the state before the first step; the cell's initial state unless given.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`.
        gates: ``(params, state, x) -> {name: value}``, the gates of a step from what the step is given, each
            ``[*B, ...]``; default those that the cell's step names.

    Returns:
        ``[T, *B, H]`` for each of ``input``, ``forget``, ``candidate`` and ``output``, or ``reset``, ``update`` and
        ``candidate``, or what ``gates`` names; NaN where a step was skipped.

    Raises:
        TypeError: the cell names no gates, and none are given; or as :func:`~lstmjax.unroll`.
        ValueError: as :func:`~lstmjax.unroll`; or a bare step comes without a state.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=4, forget_bias=2.0, w_h_init=jax.nn.initializers.zeros)
    >>> gates = gate_values(cell, cell.init(jax.random.key(0), 3), jnp.zeros((5, 3)))
    >>> sorted(gates), gates["forget"].shape, round(float(gates["forget"].mean()), 3)  # σ(2)
    (['candidate', 'forget', 'input', 'output'], (5, 4), 0.881)
    """
    cell = _checked(cell, state, gates)
    values, valid = _gate_values(cell, gates, params, as_sequence(cell, xs, state, lengths, mask, resets))
    return values if valid is None else blanked(valid, values)


@at_highest_precision
def gate_statistics(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
    gates: ReadGates | None = None,
    keeps: str | None = None,
) -> dict[str, GateStatistics]:
    """How open each gate is, how often it saturates, and how far back each unit remembers.

    A unit whose forget gate is f loses a share `1 − f` of its memory a step, and so remembers over `1/(1 − f)` steps. A
    GRU keeps its state by its update gate. A saturated gate passes no gradient to its own weights.

    Args:
        cell: as for :func:`gate_values`, and so are the other arguments.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        state: the state before the first step.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`.
        gates: as for :func:`gate_values`.
        keeps: the name of the gate that says how much of the state is kept; default the one that the cell names.

    Returns:
        A :class:`GateStatistics` for each gate, in float32 at least, NaN where no step was taken; the candidate, which
        is no percentage, has none.

    Raises:
        TypeError: as :func:`gate_values`.
        ValueError: as :func:`gate_values`.

    Source: Karpathy, Johnson & Fei-Fei (2015) for left and right saturation, at 0.1 and 0.9; Tallec & Ollivier (2018)
    for the time scale `1/(1 − f)`.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=4, forget_bias=5.0, w_h_init=jax.nn.initializers.zeros)
    >>> forget = gate_statistics(cell, cell.init(jax.random.key(0), 3), jnp.zeros((50, 3)))["forget"]
    >>> round(float(forget.timescale[0])), float(forget.right_saturated[0])
    (149, 1.0)
    """
    params, xs, state = scaled.wide((params, xs, state))
    cell = _checked(cell, state, gates)
    sequence = as_sequence(cell, xs, state, lengths, mask, resets)
    values, taken = _gate_values(cell, gates, params, sequence)
    if taken is None:
        steps, batch = time_and_batch(cell, sequence.xs)
        taken = jnp.ones((steps, *batch), bool)
    keeps = keeps or getattr(cell.step, "keeps", None)
    with jax.debug_nans(False):  # NaN where no step was taken is what was promised
        return {name: _statistics(g, taken, name == keeps) for name, g in values.items() if name != "candidate"}


@partial(jax.jit, static_argnums=2)
def _statistics(gate: Array, taken: Array, keeps: bool) -> GateStatistics:
    over, count = tuple(range(taken.ndim)), taken.sum().astype(gate.dtype)

    def mean(values):
        return select(taken, values.astype(gate.dtype), jnp.zeros_like(gate)).sum(over) / count

    # 1 − mean as the mean of 1 − f, which keeps its digits where f is close to 1.
    timescale = 1 / mean(1 - gate) if keeps else None
    return GateStatistics(mean(gate), mean(gate < 0.1), mean(gate > 0.9), timescale)


def _checked(cell: Cell | Callable, state: State | None, gates: ReadGates | None) -> Cell:
    cell = as_cell(cell, state)
    if gates is None and (not isinstance(cell.step, Recurrence) or cell.step.gates is None):
        raise TypeError(
            "the cell's step names no gates; wanted a Recurrence with gates, as an LSTM or a GRU has, or gates="
        )
    return cell


def _gate_values(
    cell: Cell, gates: ReadGates | None, params: Params, sequence: Any
) -> tuple[dict[str, Array], Array | None]:
    """Every gate at every step, and which steps were taken."""
    before, timeline = _given_to_steps(cell, params, sequence)
    if gates is None:
        return _named_gates(cell, params, before, timeline.x), timeline.valid
    # Step by step, of which alone it is known what they do; and not compiled, since they may close over anything.
    return jax.vmap(partial(gates, params))(before, timeline.x), timeline.valid


@partial(jax.jit, static_argnums=0)
def _given_to_steps(cell: Cell, params: Params, sequence: Any) -> tuple[State, Timeline]:
    """The state that each step starts from, and what else it is given."""
    start, fresh, timeline = prepare(cell, params, sequence)
    _, after = plain_scan(cell.step, record_state, False, None, params, start, fresh, timeline)
    before = jax.tree.map(lambda leaf: leaf[:-1], over_time(start, after))
    if fresh is not None:
        fresh = jax.tree.map(lambda f, b: jnp.broadcast_to(f[None], b.shape), fresh, before)
    return restored(fresh, before, timeline), timeline


@partial(jax.jit, static_argnums=0)
def _named_gates(cell: Cell, params: Params, before: State, xs: Any) -> dict[str, Array]:
    step: Any = cell.step
    z = step.split(step.z(step.pack(params), xs, before.h), before)
    return step.gates(z, step.working(before))
