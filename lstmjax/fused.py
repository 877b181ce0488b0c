"""The fast unroll: the tangent of a recurrence is a linear recurrence, and backpropagation is its transpose.

For a cell that hands over its step in parts (:class:`~lstmjax.cells.base.Recurrence`), this module gives the scan a
derivative of its own. Differentiated, the forward scan emits the coefficients of the linear recurrence::

    ds_t = A_t ds_{t−1} + e_t,      e_t = what the tangents of the weights and of x_t put in,

while they are in cache, so nothing non-linear is left for later; and the rule is a ``custom_jvp`` that runs it. Forward
mode is the rule itself. Reverse mode is JAX's own transpose of it: the reversed loop holds one product, dz W_hᵀ, and
all products for the weights stand outside, one for each block of steps. Second order differentiates the rule again.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from lstmjax.cells.base import Recurrence
from lstmjax.scan import Timeline, in_blocks, kept, restored
from lstmjax.typing import Params, Shape, State

# Where a step's pre-activations, [B, N], are no more than this, a loop costs more than what is in it: the loops of a
# differentiated scan then hold four steps each.
SMALL_STEP_ELEMENTS = 2**12

# On CPU, the pre-activations of one block, [block, B, N], are kept to about this many: two megabytes in float32. Up to
# there the products of a block find dz in cache; beyond, they lose more than larger products gain.
BLOCK_ELEMENTS = 2**19


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
def fused_scan(
    recurrence: Recurrence,
    record: Callable[[State, Any], Any],
    reverse: bool,
    scan_unroll: int | None,
    params: Params,
    start: State,
    fresh: State | None,
    timeline: Timeline,
) -> tuple[State, Any]:
    """What ``lax.scan`` over the cell's step returns, with a fast derivative of any mode and order.

    Args:
        recurrence: the cell's step in parts.
        record: ``(state, y) -> what is kept of the step``, linear.
        reverse: whether to run from the last step to the first.
        scan_unroll: as in ``lax.scan``; None: :func:`loop_unroll` decides for the differentiated loops.
        params: the cell's parameters.
        start: the state before the first step.
        fresh: the state a reset restores, or None.
        timeline: inputs, validity and resets.

    Returns:
        The final state, and what was recorded, ``[T, ...]``.
    """
    weights = recurrence.pack(params)

    def body(state, now):
        before = restored(fresh, state, now)
        new = recurrence.activate(recurrence.pre(weights, now.x, before.h), before)
        new, y = kept(new, new.h, before, now)
        return new, record(new, y)

    return lax.scan(body, start, timeline, reverse=reverse, unroll=scan_unroll or 1)


@partial(fused_scan.defjvp, symbolic_zeros=True)
def _fused_scan_jvp(recurrence, record, reverse, scan_unroll, primals, tangents):
    params, start, fresh, timeline = primals
    d_params, d_start, d_fresh, d_timeline = tangents
    weights = recurrence.pack(params)

    def forward(state, now):
        before = restored(fresh, state, now)
        new, coefficients = recurrence.linearise(recurrence.pre(weights, now.x, before.h), before)
        new, y = kept(new, new.h, before, now)
        return new, (record(new, y), coefficients, before.h)

    width = pre_shape(recurrence, weights, timeline.x, start.h)
    scan = partial(lax.scan, reverse=reverse, unroll=scan_unroll or loop_unroll(width))
    final, (recorded, coefficients, h_before) = scan(forward, start, timeline)

    d_weights = None
    if not all(map(_is_zero, jax.tree.leaves(d_params, is_leaf=_is_zero))):
        d_weights = recurrence.pack(_instantiated(d_params, params))
    d_x = None if _is_zero(d_timeline.x) else d_timeline.x
    d_start, d_fresh = _instantiated(d_start, start), _instantiated(d_fresh, fresh)

    # What the backward pass wants of these products is x joined to h, for dW. That is a copy of what is kept anyway:
    # rematerialised, it is made again block by block, in cache, and not kept for all T.
    by_weights = jax.checkpoint(recurrence.pre, prevent_cse=False)

    def linear_block(d_state, block):
        """The linear recurrence over some steps, what drives it found for all of them at once."""
        coefficients, h_before, now, d_x = block
        drive = []
        if d_weights is not None:
            drive.append(by_weights(d_weights, now.x, h_before))
        if d_x is not None:
            drive.append(recurrence.from_x(weights, d_x))
        drive = sum(drive[1:], drive[0]) if drive else None

        def linear(d_state, at):
            coefficients, drive, now = at
            before = restored(d_fresh, d_state, now)
            dz = recurrence.from_h(weights, before.h)
            new = recurrence.tangent(coefficients, dz if drive is None else drive + dz, before)
            new, y = kept(new, new.h, before, now)
            return new, record(new, y)

        flags = Timeline(None, now.valid, now.reset)
        return scan(linear, d_state, (coefficients, drive, flags))

    d_final, d_recorded = in_blocks(
        linear_block, d_start, (coefficients, h_before, timeline, d_x), block_length(width), reverse
    )
    return (final, recorded), (d_final, d_recorded)


def pre_shape(recurrence: Recurrence, weights: Any, xs: Array, h: Array) -> Shape:
    """The shape of all pre-activations, ``[T, *B, N]``, for inputs ``[T, *B, I]`` and a state ``[*B, H]``."""
    hs = jax.ShapeDtypeStruct((xs.shape[0], *h.shape), h.dtype)
    return jax.eval_shape(recurrence.pre, weights, xs, hs).shape


def loop_unroll(shape: Shape) -> int:
    """How many steps the loops of a differentiated scan hold, for pre-activations ``[T, *B, N]``."""
    small = math.prod(_stand_in(shape[1:])) <= SMALL_STEP_ELEMENTS
    return 4 if small and isinstance(shape[0], int) else 1


def block_length(shape: Shape) -> int | None:
    """How many steps one product takes together, for pre-activations ``[T, *B, N]``.

    As many as keep a block's pre-activations within :data:`BLOCK_ELEMENTS`, but enough for products of 128 rows; and
    of the lengths from there down to a quarter, the longest that divides T, since steps left over cost a loop of their
    own. On an accelerator None, the whole sequence: there, few and large products win; and so where T is symbolic.
    """
    steps = shape[0]
    if jax.default_backend() != "cpu" or not isinstance(steps, int):
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


def _instantiated(tangents: Any, primals: Any) -> Any:
    return jax.tree.map(lambda t, p: jnp.zeros_like(p) if _is_zero(t) else t, tangents, primals, is_leaf=_is_zero)
