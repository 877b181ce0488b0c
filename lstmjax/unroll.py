"""Any cell over time: one ``lax.scan`` over one pure step.

``unroll`` runs a cell over a sequence; ``state_history`` runs the same scan and hands back every state on the way.
What of the arguments is a matter of values is checked before anything is compiled, the rest while it is traced. The
program is compiled for the cell, and equal cells share it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax

from lstmjax.cells.base import Cell
from lstmjax.checks import whole_number
from lstmjax.recurrence import cpu, cudnn, pallas
from lstmjax.recurrence.inputs import Sequence, as_sequence, prepare, time_and_batch
from lstmjax.recurrence.linear import linear_scan
from lstmjax.recurrence.parts import Parts, Plan, take_apart
from lstmjax.recurrence.scan import (
    Timeline,
    first_step,
    in_blocks,
    over_time,
    plain_scan,
    record_output,
    record_state,
    record_states,
    whole_blocks,
)
from lstmjax.recurrence.split import run_split
from lstmjax.typing import Key, Params, State

Implementation = Literal["fused", "native", "pallas", "scan", "cudnn"] | None


def unroll(
    cell: Cell,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
    reverse: bool = False,
    remat_block: int | None = None,
    scan_unroll: int | None = None,
    implementation: Implementation = None,
) -> tuple[State, Any]:
    """Runs a cell over a sequence: `(s_t, y_t) = step(params, s_{t−1}, x_t)` for `t = 0 … T−1`.

    Products are taken at JAX's matmul precision, whose default for float32 is bfloat16 on a TPU and TF32 on NVIDIA GPUs
    since the A100; inside ``with jax.default_matmul_precision("highest")`` they are float32.

    Args:
        cell: any :class:`~lstmjax.Cell`.
        params: the cell's parameters, as its ``init`` makes them.
        xs: ``[T, *B, I]`` inputs, time-major, any number of batch axes; or any pytree of such arrays that the cell's
            step takes. T may be 0, and so may any of B.
        state: the state before the first step, each leaf ``[*B, ...]``, whose dtypes the carry keeps throughout;
            default the cell's ``initial_state``, in float32 (float64 where a parameter is), whatever the parameters
            come in: a memory of a thousand steps needs more digits than bfloat16 has.
        lengths: ``[*B]`` whole numbers from 0 to T. Row b takes its first ``lengths[b]`` steps; with 0 it returns
            its initial state.
        mask: ``[T, *B]`` booleans. Where False the step is skipped, and the state stays as it was.
        resets: ``[T, *B]`` booleans. ``resets[t]`` says that `x_t` begins a new sequence: the state is the cell's
            ``initial_state`` again *before* `x_t` is consumed, whether or not ``mask`` then skips the step.
        reverse: from each row's last step to its first; outputs keep their places in time. A reset still parts the
            same two sequences: going backwards, it falls after `x_t` and before `x_{t−1}`.
        remat_block: keep the state only at the borders of blocks of this many steps, and recompute inside a block
            in the backward pass: less memory, about one more forward pass.
        scan_unroll: how many steps the compiled loop holds in its body, as in ``lax.scan``; chosen unless given.
        implementation: ``"fused"``, the recurrence and its transpose of :mod:`lstmjax.recurrence.linear`, for a step
            in two parts (:class:`~lstmjax.cells.base.Recurrence`); ``"native"``, the same in C++ on a CPU, for the
            requests :mod:`lstmjax.recurrence.cpu` can serve; ``"pallas"``, the same as one kernel for the whole
            sequence on an NVIDIA GPU, for the steps in two parts :mod:`lstmjax.recurrence.pallas` can serve, which was
            compiled for sm_90 and measured on no device, and on a CPU is interpreted, slowly; ``"scan"``, the step
            under ``lax.scan``, for any cell, and bit for bit the same however a sequence is cut; ``"cudnn"``,
            NVIDIA's, for the requests :mod:`lstmjax.recurrence.cudnn` can serve; None: ``"native"`` where the program
            is compiled for one CPU and the kernels are there, else ``"fused"`` where the step allows it, else
            ``"scan"``.
            Values and derivatives agree to rounding.

    Returns:
        The final state, each row's after its own last step, and the outputs, ``[T, *B, H]`` for the cells here,
        zero where a step was skipped.

    Raises:
        ValueError: an argument has the wrong shape, structure or value; lengths are checked against T where they are
            known, and under ``jit`` count as T where they exceed it. Or the implementation that is asked for cannot
            run this, or not on the platform the program is lowered for.
        TypeError: an argument has the wrong dtype, or params are not those of one cell.

    >>> import jax.numpy as jnp, lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> final, ys = unroll(cell, params, jnp.ones((20, 5, 3)), lengths=jnp.array([20, 7, 1, 0, 20]))
    >>> final.c.shape, ys.shape, bool((final.h[1] == ys[6, 1]).all()), float(jnp.abs(ys[7:, 1]).max())
    ((5, 8), (20, 5, 8), True, 0.0)
    """
    sequence = as_sequence(cell, xs, state, lengths, mask, resets)
    if implementation == "cudnn":
        unserved = {"mask": mask, "resets": resets, "remat_block": remat_block, "scan_unroll": scan_unroll}
        cudnn.check_request(cell, params, sequence.xs, state, **unserved)
        return _run_cudnn(cell, params, sequence, reverse=reverse)
    options = _options(implementation, remat_block, scan_unroll)
    return run(_drawn(cell), record_output, params, sequence, reverse=reverse, **options)


def state_history(
    cell: Cell,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    include_initial: bool = False,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
    reverse: bool = False,
    remat_block: int | None = None,
    scan_unroll: int | None = None,
    implementation: Implementation = None,
) -> State:
    """Every state of an unroll: the state after each step, and on request the one before the first.

    Args:
        cell, params, xs, state: as for :func:`unroll`.
        include_initial: put the state before the first step at its place in time: in front, or after the rest where
            ``reverse`` is set. The time axis is then `T + 1` long.
        lengths, mask, resets, reverse, remat_block, scan_unroll: as for :func:`unroll`.
        implementation: likewise, but for ``"cudnn"``.

    Returns:
        A state whose every leaf has a leading time axis. A skipped step repeats the state it left as it was.

    Raises:
        ValueError: as :func:`unroll`.
        TypeError: as :func:`unroll`.

    >>> import jax.numpy as jnp, lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> state_history(cell, params, jnp.ones((20, 3)), include_initial=True).c.shape
    (21, 8)
    """
    sequence = as_sequence(cell, xs, state, lengths, mask, resets)
    options = _options(implementation, remat_block, scan_unroll)
    record = record_states if include_initial else record_state
    return run(_drawn(cell), record, params, sequence, reverse=reverse, **options)[1]


def _drawn(cell: Cell) -> Cell:
    """The cell once its parameters are drawn: cells that differ in that alone share a program."""
    return cell.replace(init=_no_init)


def _no_init(key: Key, input_size: int, dtype: Any = None) -> Params:
    raise TypeError("this cell draws no parameters")


@partial(jax.jit, static_argnames=("cell", "record", "reverse", "implementation", "remat_block", "scan_unroll"))
def run(
    cell: Cell,
    record: Callable[[State, Any], Any],
    params: Params,
    sequence: Sequence,
    *,
    reverse: bool = False,
    implementation: Implementation = None,
    remat_block: int | None = None,
    scan_unroll: int | None = None,
) -> tuple[State, Any]:
    """The unroll itself, compiled: by the parts of the cell's step where it has them, else by the step.

    ``record`` says what is kept of every step.
    """
    start, fresh, timeline = prepare(cell, params, sequence, reverse=reverse)
    prepared = partial(_run_prepared, record, reverse, implementation, remat_block, scan_unroll)
    prepared = prepared if cell.over is None else partial(run_split, prepared)
    final, kept = prepared(cell, params, start, fresh, timeline)
    return final, over_time(start, kept, reverse=reverse) if record is record_states else kept


def _run_prepared(
    record: Callable[[State, Any], Any],
    reverse: bool,
    implementation: Implementation,
    remat_block: int | None,
    scan_unroll: int | None,
    cell: Cell,
    params: Params,
    start: State,
    fresh: State | None,
    timeline: Timeline,
) -> tuple[State, Any]:
    """The final state, and what was kept of every step."""
    parts = choose(cell, implementation, params, start, timeline.x)
    if parts is None:
        scan = partial(plain_scan, cell.step, record, reverse, scan_unroll, params)
    else:
        plan = Plan(parts, record, reverse, scan_unroll, implementation)
        kernels = {"native": cpu, "pallas": pallas}.get(implementation or "")
        if kernels is not None and (why := kernels.why_not(plan, (params, start, fresh, timeline))):
            raise ValueError(
                f"implementation is {implementation!r}, which cannot run this: {why}; wanted None, 'fused' or 'scan'"
            )
        scan = partial(linear_scan, plan, params)

    def block(state, part):
        return scan(state, fresh, part)

    if remat_block is None:
        return block(start, timeline)
    steps, batch = time_and_batch(cell, timeline.x)
    if not isinstance(steps, int):
        timeline = whole_blocks(timeline, batch, remat_block)
    # Inside a scan nothing can be merged across iterations, so the barriers against CSE would only cost.
    final, kept = in_blocks(jax.checkpoint(block, prevent_cse=False), start, timeline, remat_block, reverse)
    return final, jax.tree.map(lambda a: a[:steps], kept)


def choose(cell: Cell, implementation: Implementation, params: Params, state: State, xs: Any) -> Parts | None:
    """The parts an unroll runs on, or None where it runs on the step.

    Raises:
        ValueError: ``"fused"``, ``"native"`` or ``"pallas"`` is asked for, and the step cannot be taken apart.
    """
    if implementation == "scan":
        return None
    parts = take_apart(cell.step, params, state, first_step(xs))
    if isinstance(parts, Parts):
        return parts
    if implementation is not None:
        raise ValueError(
            f"implementation is {implementation!r}, which cannot run this cell: {parts}; wanted None or 'scan'"
        )
    return None


@partial(jax.jit, static_argnames=("cell", "reverse"))
def _run_cudnn(cell: Cell, params: Params, sequence: Sequence, *, reverse: bool) -> tuple[State, Any]:
    start, _, _ = prepare(cell, params, sequence._replace(lengths=None))
    return cudnn.cudnn_scan(params, start, sequence.xs, sequence.lengths, reverse)


def _options(implementation: Implementation, remat_block: Any, scan_unroll: Any) -> dict[str, Any]:
    if implementation not in (None, "fused", "native", "pallas", "scan"):
        raise ValueError(
            f"implementation is {implementation!r}; wanted None, 'fused', 'native', 'pallas', 'scan' or, to unroll, "
            "'cudnn'"
        )
    sizes = {"remat_block": remat_block, "scan_unroll": scan_unroll}
    whole = {name: None if value is None else whole_number(name, value) for name, value in sizes.items()}
    return {"implementation": implementation, **whole}
