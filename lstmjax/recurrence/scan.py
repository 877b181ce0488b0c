"""The plain scan over any step; and what every way to run one shares, resets and skipped steps."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import cast_floating, cast_like, wide
from lstmjax.typing import Params, Shape, State


class Timeline(NamedTuple):
    """What each step of a scan consumes, every leaf with a leading time axis.

    Attributes:
        x: ``[T, *B, I]`` inputs; where the step is skipped something harmless, so that padding cannot leak, not even a
            NaN.
        valid: ``[T, *B]`` whether the step is taken, or None: every step is.
        reset: ``[T, *B]`` whether the state is restored before the step, or None: never.
    """

    x: Any
    valid: Array | None
    reset: Array | None


def record_output(state: State, y: Any) -> Any:
    """What :func:`~lstmjax.unroll` keeps of a step."""
    del state
    return y


def record_state(state: State, y: Any) -> State:
    """What :func:`~lstmjax.state_history` keeps of a step."""
    del y
    return state


def record_states(state: State, y: Any) -> State:
    """The same, where the state before the first step is added later."""
    del y
    return state


def plain_scan(
    step: Callable,
    record: Callable[[State, Any], Any],
    reverse: bool,
    scan_unroll: int | None,
    params: Params,
    start: State,
    fresh: State | None,
    timeline: Timeline,
) -> tuple[State, Any]:
    """``lax.scan`` over a step; ``record`` says what is kept of every one: the final state, and what was kept."""
    narrow = accumulated(params)

    def body(state, now):
        state, y = advance(step, narrow(), fresh, state, now)
        return state, record(state, y)

    return lax.scan(body, start, timeline, reverse=reverse, unroll=scan_unroll or 1)


def accumulated(params: Params) -> Callable[[], Params]:
    """The parameters, to be asked for anew in every step, so that their gradient is summed in float32 at least.

    JAX sums what the steps of a scan contribute in the dtype of what was closed over. That is here a float32 copy,
    which a step casts back: the values are the same, and a sum over a thousand steps in bfloat16 is not taken.
    """
    copies = jax.tree.map(lambda p: cast_floating(p, wide(p.dtype)), params)
    return lambda: cast_like(copies, params)


def advance(step: Callable, params: Params, fresh: State | None, state: State, now: Timeline) -> tuple[State, Any]:
    """One step of any cell as a scan takes it: reset first, then step, then undo it where it is skipped."""
    before = restored(fresh, state, now)
    new, y = step(params, before, now.x)
    return kept(new, y, before, now)


def restored(fresh: State | None, state: State, now: Timeline) -> State:
    """The state a step starts from: the one handed on, or a fresh one after a reset."""
    return state if now.reset is None else select(now.reset, fresh, state)


def kept(new: State, y: Any, before: State, now: Timeline) -> tuple[State, Any]:
    """What a step hands on and puts out: where it is skipped, the state before it and an output of 0."""
    if now.valid is not None:
        new = select(now.valid, new, before)
        y = select(now.valid, y, jax.tree.map(jnp.zeros_like, y))
    return new, y


def select(flag: Array, yes: Any, no: Any) -> Any:
    """``where`` over pytrees, the flag ``[...]`` spread over each leaf's trailing axes."""

    def pick(a, b):
        return jnp.where(lax.expand_dims(flag, range(flag.ndim, a.ndim)), a, b)

    return jax.tree.map(pick, yes, no)


def in_blocks(scan: Callable, state: State, sequence: Any, block: int | None, reverse: bool) -> tuple[State, Any]:
    """Runs ``scan(state, part)`` over blocks of a sequence, and over the steps at its end that fill no block.

    Args:
        scan: ``(state, part [t, ...]) -> (state, ys [t, ...])`` for any number of steps t.
        state: the state before.
        sequence: pytree with leading axis T.
        block: steps a block; None: the whole sequence is one.
        reverse: whether the blocks are run from the last to the first.

    Returns:
        The final state, and ys over all T.
    """
    steps = jax.tree.leaves(sequence)[0].shape[0]
    if block is None or (isinstance(steps, int) and block >= steps):
        return scan(state, sequence)
    # A T left open is a multiple of the block: see whole_blocks.
    count, left = divmod(steps, block) if isinstance(steps, int) else (steps // block, 0)
    whole = jax.tree.map(lambda a: a[: count * block].reshape(count, block, *a.shape[1:]), sequence)
    rest = jax.tree.map(lambda a: a[count * block :], sequence)

    def over_blocks(state):
        state, ys = lax.scan(scan, state, whole, reverse=reverse)
        return state, jax.tree.map(lambda a: a.reshape(count * block, *a.shape[2:]), ys)

    if left == 0:
        return over_blocks(state)
    if reverse:
        state, last = scan(state, rest)
        state, first = over_blocks(state)
    else:
        state, first = over_blocks(state)
        state, last = scan(state, rest)
    return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, last)


def whole_blocks(timeline: Timeline, batch: Shape, block: int) -> Timeline:
    """The timeline with skipped steps at its end, so that blocks of so many steps fill it whatever T will be."""
    steps = jax.tree.leaves(timeline.x)[0].shape[0]
    valid = jnp.ones((steps, *batch), bool) if timeline.valid is None else timeline.valid

    def pad(a):
        # The last step again, where a cell can be evaluated; T is 1 at least where it is left open.
        more = (
            jnp.broadcast_to(a[-1:], (block - 1, *a.shape[1:]))
            if a is not valid
            else jnp.zeros((block - 1, *batch), bool)
        )
        return jnp.concatenate([a, more])[: (steps + block - 1) // block * block]

    return jax.tree.map(pad, timeline._replace(valid=valid))


def over_time(start: Any, after: Any, *, reverse: bool = False) -> Any:
    """What was before the first step and what was after each, in order of time: leaves ``[T + 1, ...]``."""

    def join(first, rest):
        return jnp.concatenate([rest, first[None]] if reverse else [first[None], rest])

    return jax.tree.map(join, start, after)


def first_step(xs: Any) -> Any:
    """One step's input out of those of all, for its shape, dtype and place; zeros where there may be no step."""

    def first(a):
        return a[0] if isinstance(a.shape[0], int) and a.shape[0] else jnp.zeros(a.shape[1:], a.dtype)

    return jax.tree.map(first, xs)


def one_axis(tree: Any, axes: Shape, at: int) -> Any:
    """Leaves ``[..., *B, ...]`` with all batch axes as one, the axis ``at``."""
    rows = math.prod(axes)
    return jax.tree.map(lambda a: a.reshape(*a.shape[:at], rows, *a.shape[at + len(axes) :]), tree)


def all_axes(tree: Any, axes: Shape, at: int) -> Any:
    """The reverse of :func:`one_axis`."""
    return jax.tree.map(lambda a: a.reshape(*a.shape[:at], *axes, *a.shape[at + 1 :]), tree)
