"""The fast unroll: the tangent of a recurrence is a linear recurrence, and backpropagation is its transpose.

For a step that can be taken apart (:class:`~lstmjax.recurrence.parts.Parts`), this module gives the scan a derivative
of its own. Differentiated, the forward scan emits the coefficients of the linear recurrence::

    ds_t = A_t ds_{t−1} + e_t,      e_t = what the tangents of the weights and of x_t put in,

while they are in cache, so nothing non-linear is left for later; and the rule is a ``custom_jvp`` that runs it. Forward
mode is the rule itself. Reverse mode is JAX's own transpose of it: the reversed loop holds one product, `dz W_hᵀ`, and
all products for the weights stand outside, one for each block of steps. Second order differentiates the rule again.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.custom_derivatives import SymbolicZero

from lstmjax.recurrence import accelerator, cpu, pallas
from lstmjax.recurrence.parts import Parts, Plan, zero_like
from lstmjax.recurrence.platforms import WHOLE, Places, by_platform
from lstmjax.recurrence.scan import Timeline, first_step, in_blocks, kept, restored
from lstmjax.typing import Params, Shape, State

# On CPU, the pre-activations of one block, [block, B, N], are kept to about this many: two megabytes in float32. Up to
# there the products of a block find dz in cache; beyond, they lose more than larger products gain.
BLOCK_ELEMENTS = 2**19


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def linear_scan(plan: Plan, params: Params, start: State, fresh: State | None, timeline: Timeline) -> tuple[State, Any]:
    """What ``lax.scan`` over the step returns, with a fast derivative of any mode and order.

    Args:
        plan: the step, and what is to be kept of it.
        params: the cell's parameters.
        start: the state before the first step.
        fresh: the state a reset restores, or None.
        timeline: inputs, validity and resets.

    Returns:
        The final state, and what was recorded, ``[T, ...]``.
    """
    return _run(_forward_on, plan, (params, start, fresh, timeline), (), _places(plan, 0, 1))


@partial(linear_scan.defjvp, symbolic_zeros=True)
def _linear_scan_jvp(plan, primals, tangents):
    d_params, d_start, d_fresh, d_timeline = tangents
    final, recorded, kept_of_steps = _run(_linearised_forward_on, plan, primals, (), _places(plan, 0, 1, 1))
    moving = jax.tree.map(
        lambda t: None if _is_zero(t) else t, (d_params, d_start, d_fresh, d_timeline.x), is_leaf=_is_zero
    )
    if not jax.tree.leaves(moving):
        return (final, recorded), jax.tree.map(zero_like, (final, recorded))
    out = _run(_linear_on, plan, (primals, kept_of_steps), moving, _places(plan, 0, 1, linear=True))
    return (final, recorded), out


def _run(ways: Callable, plan: Plan, fixed: Any, moving: Any, places: Places | None) -> Any:
    kernels = ("cpu", "cuda") if plan.implementation == "pallas" else ("cpu",)
    return by_platform(partial(ways, plan), fixed, moving, places, kernels)


def _places(plan: Plan, *results: int, linear: bool = False) -> Places | None:
    """Where a batch axis may stand. Of the cells that have kernels it is known; a user's may take one axis alone."""
    if not cpu.may_serve_backwards(plan) and not pallas.may_serve(plan):
        return None
    arguments = (WHOLE, 0, 0, 1)  # parameters, two states, and what begins with time
    return (((arguments, 1), arguments) if linear else (arguments, ())), results


def _forward_on(plan: Plan, platform: str | None) -> Callable | None:
    own = cpu.may_serve, cpu.forward, accelerator.forward, pallas.forward
    return _on(plan, platform, forward(plan), *own)


def _linearised_forward_on(plan: Plan, platform: str | None) -> Callable | None:
    own = cpu.may_serve, cpu.linearised_forward, accelerator.linearised_forward, pallas.linearised_forward
    return _on(plan, platform, linearised_forward(plan), *own)


def _linear_on(plan: Plan, platform: str | None) -> Callable | None:
    elsewhere = partial(linear, on_accelerator=True)
    return _on(plan, platform, linear(plan), cpu.may_serve_backwards, cpu.linear, elsewhere, pallas.linear)


def _on(
    plan: Plan,
    platform: str | None,
    anywhere: Callable,
    kernels: Callable[[Plan], bool],
    on_cpu: Callable,
    elsewhere: Callable,
    by_pallas: Callable,
) -> Callable | None:
    """A platform's way out of its candidates; None where it has none of its own.

    Raises:
        ValueError: kernels are asked for that are of another platform.
    """
    if platform is None:
        return anywhere
    if plan.implementation == "pallas":
        if platform not in ("cpu", "cuda"):
            raise ValueError(
                f"implementation is 'pallas', and the program is lowered for {platform}; wanted it for an NVIDIA GPU, "
                "cuda, or for a CPU, which interprets the kernels"
            )
        otherwise = anywhere if platform == "cpu" else elsewhere(plan)
        return by_pallas(plan, otherwise, interpret=platform == "cpu")
    if platform == "cpu":
        return on_cpu(plan, anywhere) if kernels(plan) else None
    if plan.implementation == "native":
        raise ValueError(f"implementation is 'native', and the program is lowered for {platform}; wanted it for a CPU")
    return elsewhere(plan)


def forward(plan: Plan) -> Callable:
    """The recurrence as it is run where nothing is differentiated: ``(arguments, ()) -> (final, recorded)``."""
    step = plan.parts.step

    def run(arguments, _):
        params, start, fresh, timeline = arguments
        weights = step.pack(params)

        def body(state, now):
            before = restored(fresh, state, now)
            gates = step.split(step.z(weights, now.x, before.h), before)
            new, y = kept(*step.finish(params, step.activate(gates, step.working(before)), before), before, now)
            return new, plan.record(new, y)

        return lax.scan(body, start, timeline, reverse=plan.reverse, unroll=plan.scan_unroll or 1)

    return run


def linearised_forward(plan: Plan) -> Callable:
    """The same, and what the linear recurrence is made of: ``(arguments, ()) -> (final, recorded, kept)``."""

    def run(arguments, _):
        params, start, fresh, timeline = arguments
        weights = plan.parts.step.pack(params)

        def body(state, now):
            new, (y, coefficients, before, unprojected) = linearised_step(
                plan.parts, weights, params, fresh, state, now
            )
            return new, (plan.record(new, y), (coefficients, before.h, unprojected))

        loops = plan.scan_unroll or 1
        final, (recorded, kept_of_steps) = lax.scan(body, start, timeline, reverse=plan.reverse, unroll=loops)
        return final, recorded, kept_of_steps

    return run


def linear(plan: Plan, *, on_accelerator: bool = False) -> Callable:
    """The linear recurrence, ``((arguments, kept), tangents of the arguments) -> (d_final, d_recorded)``.

    A tangent that is zero is None.
    """
    parts, step, record = plan.parts, plan.parts.step, plan.record

    def run(given, moving):
        (params, start, fresh, timeline), kept_of_steps = given
        d_params, d_start, d_fresh, d_x = moving
        fixed = not jax.tree.leaves(d_params)
        d_params, d_start, d_fresh = (
            jax.tree.map(lambda p, t: zero_like(p) if t is None else t, p, t)
            for p, t in ((params, d_params), (start, d_start), (fresh, d_fresh))
        )
        weights, d_weights = jax.jvp(step.pack, (params,), (d_params,))
        width = pre_shape(parts, weights, timeline.x, start)
        loops = plan.scan_unroll or (accelerator.loop_unroll(width[0]) if on_accelerator else 1)
        scan = partial(lax.scan, reverse=plan.reverse, unroll=loops)

        # What the backward pass wants of these products is x joined to h, for dW. That is a copy of what is kept
        # anyway: rematerialised, it is made again block by block, in cache, and not kept for all T.
        @partial(jax.checkpoint, prevent_cse=False)
        def by_weights(d_weights, x, h):
            return parts.dz_by_weights(weights, d_weights, x, h)

        def linear_block(d_state, block):
            """The linear recurrence over some steps, what drives it found for all of them at once."""
            (coefficients, h_before, unprojected), now, d_x = block
            drive, d_h = [], None
            if not fixed:
                drive.append(by_weights(d_weights, now.x, h_before))
                d_h = parts.dh_by_params(params, d_params, unprojected)
            if any(t is not None for t in d_x):
                drive.append(parts.dz_by_x(weights, now.x, d_x, h_before))
            drive = sum(drive[1:], drive[0]) if drive else None
            still = first_step(now.x)

            def by_h(d_state):
                return parts.dz_by_h(weights, still, d_state.h)

            def one(carried, at):
                coefficients, drive, d_h, now = at
                before, dz = restored((d_fresh, d_fresh and by_h(d_fresh)), carried, now)
                dz = dz if drive is None else drive + dz
                new = parts.push(params, coefficients, dz, before, d_h)
                new, y = kept(new, new.h, before, now)
                return (new, by_h(new)), record(new, y)

            flags = Timeline(None, now.valid, now.reset)
            (d_state, _), d_recorded = scan(one, (d_state, by_h(d_state)), (coefficients, drive, d_h, flags))
            return d_state, d_recorded

        # On an accelerator the whole sequence is one block: there, few and large products win.
        block = None if on_accelerator else block_length(width)
        d_x = jax.tree.leaves(d_x, is_leaf=lambda t: t is None)
        return in_blocks(linear_block, d_start, (kept_of_steps, timeline, d_x), block, plan.reverse)

    return run


def linearised_step(
    parts: Parts, weights: Any, params: Params, fresh: State | None, state: State, now: Timeline
) -> tuple[State, tuple[Any, Any, State, Any]]:
    """One step of the forward scan that emits coefficients.

    Returns:
        The new state; and the output, the coefficients, the state the step started from, and where there is a
        projection the h before it.
    """
    step = parts.step
    before = restored(fresh, state, now)
    new, coefficients = parts.linearise(step.z(weights, now.x, before.h), before)
    unprojected = None if step.project is None else new.h
    new, y = kept(*step.finish(params, new, before), before, now)
    return new, (y, coefficients, before, unprojected)


def pre_shape(parts: Parts, weights: Any, xs: Any, state: State) -> Shape:
    """The shape of all pre-activations, ``[T, *B, N]``, for inputs ``[T, *B, I]`` and the state before them."""
    steps = jax.tree.leaves(xs)[0].shape[0]
    z = jax.eval_shape(lambda w, xs, h: parts.step.z(w, first_step(xs), h), weights, xs, state.h)
    return (steps, *z.shape)


def block_length(shape: Shape) -> int | None:
    """How many steps one product takes together, for pre-activations ``[T, *B, N]``.

    As many as keep a block's pre-activations within :data:`BLOCK_ELEMENTS`, but enough for products of 128 rows; and
    of the lengths from there down to a quarter, the longest that divides T, since steps left over cost a loop of their
    own. Where T is symbolic None, the whole sequence.
    """
    steps = shape[0]
    if not isinstance(steps, int):
        return None
    rest = _stand_in(shape[1:])
    per_step = max(1, math.prod(rest))
    rows = max(1, math.prod(rest[:-1]))
    most = min(max(BLOCK_ELEMENTS // per_step, -(-128 // rows), 1), max(steps, 1))
    return next((n for n in range(most, most // 4, -1) if steps % n == 0), most)


def _stand_in(shape: Shape) -> Shape:
    """The shape with 32 for every symbolic size, of which ``jax.export`` knows nothing: any choice is correct."""
    return tuple(n if isinstance(n, int) else 32 for n in shape)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)
