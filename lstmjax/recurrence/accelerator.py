"""The forward recurrence for a GPU or a TPU, where each operation of a loop's body is a launch and costs as such.

So a step holds as few as can be: the inputs' products are taken for the whole sequence before the loop; a step that is
to be linearised puts what it hands on into one array, and is linearised after the loop, all steps at once::

    z_t = (x W_x + b)_t + h_{t−1} W_h,   s_t = activate(z_t, s_{t−1})      the product, the cell, one write
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lstmjax.recurrence.parts import Plan
from lstmjax.recurrence.scan import Timeline, first_step, kept, over_time, restored, select
from lstmjax.typing import State

# Steps in the body of a loop: they share the loop's counter, which is a launch too.
UNROLL = 4


def forward(plan: Plan) -> Callable:
    """As :func:`lstmjax.recurrence.linear.forward`."""

    def run(arguments: Any, _: Any) -> tuple[State, Any]:
        return _scan(plan, arguments, lambda z, new, y: plan.record(new, y))

    return run


def linearised_forward(plan: Plan) -> Callable:
    """As :func:`lstmjax.recurrence.linear.linearised_forward`."""
    parts = plan.parts

    def run(arguments: Any, _: Any) -> tuple[State, Any, Any]:
        _, start, fresh, timeline = arguments
        final, packed = _scan(plan, arguments, lambda z, new, y: _side_by_side([z, *jax.tree.leaves(new)]))
        z, *leaves = _apart(packed, start)
        after = jax.tree.unflatten(jax.tree.structure(start), leaves)
        y = after.h if timeline.valid is None else select(timeline.valid, after.h, jnp.zeros_like(after.h))

        # What each step began with: the state after the one before it, or a fresh one.
        before = over_time(start, after, reverse=plan.reverse)
        before = jax.tree.map(lambda a: a[1:] if plan.reverse else a[:-1], before)
        before = restored(jax.tree.map(lambda leaf: leaf[None], fresh), before, timeline)
        new, coefficients = parts.linearise(z, before)
        unprojected = None if parts.step.project is None else new.h
        return final, plan.record(after, y), (coefficients, before.h, unprojected)

    return run


def _scan(plan: Plan, arguments: Any, record: Callable[[Array, State, Array], Any]) -> tuple[State, Any]:
    """The recurrence; ``record(z, new state, output)`` says what is kept of every step."""
    params, start, fresh, timeline = arguments
    parts, step = plan.parts, plan.parts.step
    weights, still = step.pack(params), first_step(timeline.x)

    def body(state, at):
        from_x, now = at
        before = restored(fresh, state, now)
        z = from_x + parts.dz_by_h(weights, still, before.h)
        new, y = step.finish(params, step.activate(step.split(z, before), step.working(before)), before)
        new, y = kept(new, y, before, now)
        return new, record(z, new, y)

    from_x = parts.z_by_x(weights, timeline.x, start.h)
    unroll = plan.scan_unroll or loop_unroll(from_x.shape[0])
    flags = Timeline(None, timeline.valid, timeline.reset)
    return lax.scan(body, start, (from_x, flags), reverse=plan.reverse, unroll=unroll)


def loop_unroll(steps: Any) -> int:
    """Steps in the body of a loop over so many, which may be left open."""
    return UNROLL if isinstance(steps, int) else 1


def _side_by_side(arrays: list[Array]) -> Array:
    """Arrays ``[*B, n]`` as one; the first is of the widest dtype."""
    return jnp.concatenate([a.astype(arrays[0].dtype) for a in arrays], axis=-1)


def _apart(packed: Array, state: State) -> list[Array]:
    """z, and the state's leaves in their dtypes, of what :func:`_side_by_side` joined."""
    leaves = jax.tree.leaves(state)
    parts, end = [], packed.shape[-1]
    for leaf in reversed(leaves):
        parts.append(packed[..., end - leaf.shape[-1] : end].astype(leaf.dtype))
        end -= leaf.shape[-1]
    return [packed[..., :end], *reversed(parts)]
