"""Any cell over time: one ``lax.scan`` over one pure step.

``unroll`` runs a cell over a sequence; ``state_history`` runs the same scan and hands back every state on the way.
Arguments are checked here, once, before anything is compiled; the scan itself is jitted on the cell's step, so two
cells that share a step share a compiled program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array

from lstmjax import cudnn
from lstmjax.cells.base import Cell, Recurrence
from lstmjax.fused import fused_scan
from lstmjax.scan import Timeline, advance, in_blocks, select
from lstmjax.typing import Params, Shape, State

Implementation = Literal["fused", "scan", "cudnn"] | None


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
    """Runs a cell over a sequence: (s_t, y_t) = step(params, s_{t−1}, x_t) for t = 0 … T−1.

    Args:
        cell: any :class:`~lstmjax.Cell`.
        params: the cell's parameters, as its ``init`` makes them.
        xs: ``[T, *B, I]`` inputs, time-major, any number of batch axes, floating. T may be 0, and so may any of B.
        state: the state before the first step, each leaf ``[*B, ...]``; the cell's ``initial_state``, in the dtype
            of the parameters, unless given. The carry keeps this state's dtypes throughout.
        lengths: ``[*B]`` whole numbers from 0 to T. Row b takes its first ``lengths[b]`` steps; with 0 it returns
            its initial state.
        mask: ``[T, *B]`` booleans. Where False the step is skipped, and the state stays as it was.
        resets: ``[T, *B]`` booleans. ``resets[t]`` says that x_t begins a new sequence: the state is the cell's
            ``initial_state`` again *before* x_t is consumed, whether or not ``mask`` then skips the step.
        reverse: from each row's last step to its first; outputs keep their places in time. A reset still parts the
            same two sequences: going backwards, it falls after x_t and before x_{t−1}.
        remat_block: keep the state only at the borders of blocks of this many steps, and recompute inside a block
            in the backward pass: less memory, about one more forward pass.
        scan_unroll: how many steps the compiled loop holds in its body, as in ``lax.scan``; chosen unless given.
        implementation: ``"fused"``, the recurrence and its transpose of :mod:`lstmjax.fused`, for cells that have
            one; ``"scan"``, the step under ``lax.scan``, for any cell, and bit for bit the same however a sequence is
            cut; ``"cudnn"``, NVIDIA's, for the requests :mod:`lstmjax.cudnn` can serve; None: ``"fused"`` where the
            cell has it, else ``"scan"``. Values and derivatives agree to rounding.

    Returns:
        The final state, each row's after its own last step, and the outputs, ``[T, *B, H]`` for the cells here,
        zero where a step was skipped.

    Raises:
        ValueError: an argument has the wrong shape, structure or value; lengths are checked against T where they are
            known, and under ``jit`` count as T where they exceed it.
        TypeError: an argument has the wrong dtype, or params are not those of one cell.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> final, ys = unroll(cell, params, jnp.ones((20, 5, 3)), lengths=jnp.array([20, 7, 1, 0, 20]))
    >>> final.c.shape, ys.shape, bool((final.h[1] == ys[6, 1]).all()), float(jnp.abs(ys[7:, 1]).max())
    ((5, 8), (20, 5, 8), True, 0.0)
    """
    start, fresh, timeline = prepare(
        cell, params, xs, state, lengths=lengths, mask=mask, resets=resets, reverse=reverse
    )
    _check_scan_options(remat_block, scan_unroll)
    if implementation == "cudnn":
        unserved = {"mask": mask, "resets": resets, "remat_block": remat_block, "scan_unroll": scan_unroll}
        cudnn.check_request(cell, params, timeline.x, start, **unserved)
        lengths = None if lengths is None else jnp.asarray(lengths)
        return _run_cudnn(params, start, timeline.x, lengths, reverse=reverse)
    return run_scan(
        cell.step, choose(cell, implementation), record_output, params, start, fresh, timeline,
        reverse=reverse, remat_block=remat_block, scan_unroll=scan_unroll,
    )  # fmt: skip


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
        cell: any cell; and ``params``, ``xs``, ``state`` and the options as for :func:`unroll`.
        params: the cell's parameters.
        xs: ``[T, *B, I]`` inputs.
        state: the state before the first step.
        include_initial: put the state before the first step at its place in time: in front, or behind the rest where
            ``reverse`` is set. The time axis is then T + 1 long.
        lengths: as for :func:`unroll`.
        mask: as for :func:`unroll`.
        resets: as for :func:`unroll`.
        reverse: as for :func:`unroll`.
        remat_block: as for :func:`unroll`.
        scan_unroll: as for :func:`unroll`.
        implementation: as for :func:`unroll`.

    Returns:
        A state whose every leaf has a leading time axis. A skipped step repeats the state it left as it was.

    Raises:
        ValueError: as :func:`unroll`.
        TypeError: as :func:`unroll`.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> state_history(cell, params, jnp.ones((20, 3)), include_initial=True).c.shape
    (21, 8)
    """
    start, fresh, timeline = prepare(
        cell, params, xs, state, lengths=lengths, mask=mask, resets=resets, reverse=reverse
    )
    _check_scan_options(remat_block, scan_unroll)
    _, states = run_scan(
        cell.step, choose(cell, implementation), record_state, params, start, fresh, timeline,
        reverse=reverse, remat_block=remat_block, scan_unroll=scan_unroll,
    )  # fmt: skip
    if not include_initial:
        return states

    def with_start(first, rest):
        return jnp.concatenate([rest, first[None]] if reverse else [first[None], rest])

    return jax.tree.map(with_start, start, states)


def prepare(
    cell: Cell,
    params: Params,
    xs: Any,
    state: State | None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
    reverse: bool = False,
) -> tuple[State, State | None, Timeline]:
    """Checks the arguments of an unroll and turns them into what its scan consumes.

    Returns:
        The state before the first step, the state that a reset restores (None where there are no resets), and the
        :class:`Timeline`.
    """
    xs = _check_inputs(xs)
    steps, batch = xs.shape[0], xs.shape[1:-1]
    dtype = np.result_type(*(jnp.asarray(leaf).dtype for leaf in jax.tree.leaves(params) or [xs]))
    fresh = cell.initial_state(batch, dtype)
    start = fresh if state is None else _check_state(state, fresh, batch)
    _check_carry(cell, params, start, xs)

    valid = None if mask is None else _check_flags("mask", mask, xs)
    reset = None if resets is None else _check_flags("resets", resets, xs)
    if lengths is not None:
        within = _steps_within(_check_lengths(lengths, xs), steps)
        valid = within if valid is None else valid & within
        reset = None if reset is None else reset & within
    if reset is not None and reverse:
        # Backwards, the border before x_t is crossed on the way to x_{t−1}; and no border follows the last step.
        reset = jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])
    if valid is not None:
        xs = select(valid, xs, jnp.zeros_like(xs))
    if reset is None:
        return start, None, Timeline(xs, valid, None)
    return (
        start,
        jax.tree.map(lambda f, s: f.astype(s.dtype), fresh, start),
        Timeline(xs, valid, reset),
    )


def choose(cell: Cell, implementation: Implementation) -> Recurrence | None:
    """The recurrence an unroll runs on, or None where it runs on the step."""
    if implementation not in (None, "fused", "scan"):
        raise ValueError(f"implementation is {implementation!r}; wanted None, 'fused', 'scan' or, to unroll, 'cudnn'")
    # A step that was replaced makes the recurrence that came with it another cell's.
    recurrence = cell.recurrence if cell.recurrence and cell.recurrence.step is cell.step else None
    if implementation == "fused" and recurrence is None:
        raise ValueError(
            "implementation is 'fused', and this cell has no recurrence for its step; wanted None or 'scan'"
        )
    return None if implementation == "scan" else recurrence


_run_cudnn = jax.jit(cudnn.cudnn_scan, static_argnames="reverse")


def record_output(state: State, y: Any) -> Any:
    """What :func:`unroll` keeps of a step."""
    del state
    return y


def record_state(state: State, y: Any) -> State:
    """What :func:`state_history` keeps of a step."""
    del y
    return state


@partial(jax.jit, static_argnames=("step", "recurrence", "record", "reverse", "remat_block", "scan_unroll"))
def run_scan(
    step: Callable,
    recurrence: Recurrence | None,
    record: Callable[[State, Any], Any],
    params: Params,
    start: State,
    fresh: State | None,
    timeline: Timeline,
    *,
    reverse: bool = False,
    remat_block: int | None = None,
    scan_unroll: int | None = None,
) -> tuple[State, Any]:
    """The scan itself, over what :func:`prepare` made: by the recurrence where there is one, else by the step.

    ``record`` says what is kept of every step.
    """

    def body(state, now):
        state, y = advance(step, params, fresh, state, now)
        return state, record(state, y)

    def scan(state, part):
        if recurrence is not None:
            return fused_scan(recurrence, record, reverse, scan_unroll, params, state, fresh, part)
        return lax.scan(body, state, part, reverse=reverse, unroll=scan_unroll or 1)

    if remat_block is None:
        return scan(start, timeline)
    # Inside a scan nothing can be merged across iterations, so the barriers against CSE would only cost.
    return in_blocks(jax.checkpoint(scan, prevent_cse=False), start, timeline, remat_block, reverse)


def _steps_within(lengths: Array, steps: int) -> Array:
    times = jnp.arange(steps, dtype=lengths.dtype)
    return times.reshape((steps,) + (1,) * lengths.ndim) < lengths


def _check_inputs(xs: Any) -> Array:
    xs = jnp.asarray(xs)
    if xs.ndim < 2:
        raise ValueError(f"xs has shape {xs.shape}; wanted [T, *B, I]: time, any batch axes, features")
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise TypeError(
            f"xs has dtype {xs.dtype}; wanted a floating dtype: one-hot encode or embed symbols, and cast counts"
        )
    return xs


def _check_state(state: State, expected: State, batch: Shape) -> State:
    given, wanted = jax.tree.structure(state), jax.tree.structure(expected)
    if given != wanted:
        raise ValueError(f"state has structure {given}; wanted this cell's own, {wanted}")
    state = jax.tree.map(jnp.asarray, state)
    for (path, leaf), like in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        name = f"state{jax.tree_util.keystr(path)}"
        if leaf.shape != like.shape:
            raise ValueError(f"{name} has shape {leaf.shape}; wanted {like.shape}, where xs has batch axes {batch}")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name} has dtype {leaf.dtype}; wanted a floating dtype")
    return state


def _check_carry(cell: Cell, params: Params, start: State, xs: Array) -> None:
    """A step must hand on what it was handed; a scan's own complaint would name neither cell nor cause."""
    x = jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)
    new, _ = jax.eval_shape(cell.step, params, start, x)
    given, made = (jax.tree.map(lambda a: (a.shape, str(a.dtype)), s) for s in (start, new))
    if given != made:
        raise ValueError(f"the cell's step was given state {given} and returned {made}; wanted the same back")


def _check_flags(name: str, flags: Any, xs: Array) -> Array:
    flags = jnp.asarray(flags)
    if flags.dtype != jnp.bool_:
        raise TypeError(f"{name} has dtype {flags.dtype}; wanted bool")
    if flags.shape != xs.shape[:-1]:
        raise ValueError(f"{name} has shape {flags.shape}; wanted [T, *B], which for these xs is {xs.shape[:-1]}")
    return flags


def _check_lengths(lengths: Any, xs: Array) -> Array:
    lengths = jnp.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"lengths has dtype {lengths.dtype}; wanted whole numbers")
    if lengths.shape != xs.shape[1:-1]:
        raise ValueError(f"lengths has shape {lengths.shape}; wanted [*B], which for these xs is {xs.shape[1:-1]}")
    if not isinstance(lengths, Tracer):
        known = np.asarray(lengths)
        if known.size and not (known.min() >= 0 and known.max() <= xs.shape[0]):
            raise ValueError(f"lengths run from {known.min()} to {known.max()}; wanted 0 to T = {xs.shape[0]}")
    return lengths


def _check_scan_options(remat_block: int | None, scan_unroll: int | None) -> None:
    for name, value in (("remat_block", remat_block), ("scan_unroll", scan_unroll)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} is {value!r}; wanted a whole number of steps, at least 1")
