"""What every scan over a cell shares: what a step consumes, and what becomes of it under resets and skipped steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lstmjax.typing import Params, State


class Timeline(NamedTuple):
    """What each step of a scan consumes, every leaf with a leading time axis.

    Attributes:
        x: ``[T, *B, I]`` inputs; zero where the step is skipped, so that padding cannot leak, not even a NaN.
        valid: ``[T, *B]`` whether the step is taken, or None: every step is.
        reset: ``[T, *B]`` whether the state is restored before the step, or None: never.
    """

    x: Any
    valid: Array | None
    reset: Array | None


def advance(step: Callable, params: Params, fresh: State | None, state: State, now: Timeline) -> tuple[State, Any]:
    """One step of any cell as a scan takes it: reset first, then step, then undo it where it is skipped."""
    before = restored(fresh, state, now)
    new, y = step(params, before, now.x)
    return kept(new, y, before, now)


def restored(fresh: State | None, state: State, now: Timeline) -> State:
    """The state a step starts from: the one handed on, or a fresh one behind a reset."""
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
        return jnp.where(flag.reshape(flag.shape + (1,) * (a.ndim - flag.ndim)), a, b)

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
    if block is None or block >= steps:
        return scan(state, sequence)
    count, left = divmod(steps, block)
    whole = jax.tree.map(lambda a: a[: count * block].reshape(count, block, *a.shape[1:]), sequence)
    rest = jax.tree.map(lambda a: a[count * block :], sequence)

    def over_blocks(state):
        state, ys = lax.scan(scan, state, whole, reverse=reverse)
        return state, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), ys)

    if left == 0:
        return over_blocks(state)
    if reverse:
        state, behind = scan(state, rest)
        state, ahead = over_blocks(state)
    else:
        state, ahead = over_blocks(state)
        state, behind = scan(state, rest)
    return state, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ahead, behind)
