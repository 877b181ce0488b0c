"""The recurrence on a CPU, by the kernels of :mod:`lstmjax.recurrence.native`, for the cells and requests they serve.

Forward, and the transpose of the linear recurrence, are theirs; its forward mode is XLA's, and so is all of second
order. What they do not serve is left to :mod:`lstmjax.recurrence.linear`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import linear_call

from lstmjax.cells.gru import GRUParams, gru
from lstmjax.cells.lstm import lstm
from lstmjax.cells.rnn import rnn
from lstmjax.recurrence import native
from lstmjax.recurrence.parts import Plan, of_what_moves, why_no_kernel
from lstmjax.recurrence.scan import all_axes, one_axis, record_output
from lstmjax.typing import Params, State

# A step does not know how many units it has.
KINDS = {lstm(1).step: "lstm", gru(1).step: "gru", rnn(1).step: "rnn", rnn(1, activation=jax.nn.relu).step: "relu"}


def may_serve(plan: Plan) -> bool:
    """Whether the kernels serve a plan for some arguments."""
    return plan.implementation not in ("fused", "pallas") and _why_never(plan) is None


def why_not(plan: Plan, arguments: Any) -> str | None:
    """Why the kernels do not serve a request, or None where they do."""
    return _why_never(plan) or _why_not_these(arguments)


def _why_never(plan: Plan) -> str | None:
    if not native.available():
        return native.why_not()
    if plan.parts.step not in KINDS:
        return "the kernels know the LSTM and the GRU with sigmoid and tanh, and the vanilla RNN with tanh or relu"
    return why_no_kernel(plan)


def _why_not_these(arguments: Any) -> str | None:
    params, start, _, timeline = arguments
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((params, start, timeline.x))}
    if len(dtypes) > 1 or not dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.float64)}:
        names = ", ".join(sorted(map(str, dtypes)))
        return f"params, state and xs are of {names}, and the kernels take float32 or float64, the same for all"
    if not all(isinstance(n, int) for n in timeline.x.shape):
        return "a size is left open"
    return None


def forward(plan: Plan, otherwise: Callable) -> Callable:
    """As :func:`lstmjax.recurrence.linear.forward`, which is ``otherwise``."""

    def run(arguments: Any, _: Any) -> tuple[State, Any]:
        if why_not(plan, arguments) is not None:
            return otherwise(arguments, _)
        final, recorded, _ = _run(plan, arguments, emit=False)
        return final, recorded

    return run


def linearised_forward(plan: Plan, otherwise: Callable) -> Callable:
    """As :func:`lstmjax.recurrence.linear.linearised_forward`, which is ``otherwise``."""

    def run(arguments: Any, _: Any) -> tuple[State, Any, Any]:
        if why_not(plan, arguments) is not None:
            return otherwise(arguments, _)
        final, recorded, (coefficients, h_before) = _run(plan, arguments, emit=True)
        return final, recorded, (coefficients, h_before, None)

    return run


def linear(plan: Plan, otherwise: Callable) -> Callable:
    """As :func:`lstmjax.recurrence.linear.linear`, which is ``otherwise``; its transpose is that of the kernels."""

    def run(given: Any, moving: Any) -> tuple[State, Any]:
        arguments, _ = given
        if why_not(plan, arguments) is not None:
            return otherwise(given, moving)
        return linear_call(otherwise, lambda given, out: _transposed(plan, given, out, moving), given, moving)

    return run


def _run(plan: Plan, arguments: Any, *, emit: bool) -> tuple[State, Any, Any]:
    params, start, fresh, timeline = arguments
    kind, axes = KINDS[plan.parts.step], timeline.x.shape[1:-1]
    final, recorded, emitted = native.forward(
        kind, one_axis(timeline.x, axes, 1), _weights(params), one_axis(tuple(start), axes, 0),
        fresh=None if timeline.reset is None else one_axis(tuple(fresh), axes, 0),
        valid=one_axis(timeline.valid, axes, 1), reset=one_axis(timeline.reset, axes, 1), reverse=plan.reverse,
        states=plan.record is not record_output, emit=emit,
    )  # fmt: skip
    final, recorded, emitted = (all_axes(tree, axes, at) for tree, at in ((final, 0), (recorded, 1), (emitted, 1)))
    recorded = recorded if plan.record is record_output else type(start)(*recorded)
    return type(start)(*final), recorded, emitted


def _transposed(plan: Plan, given: Any, out: Any, moving: Any) -> Any:
    """The cotangents of what moves; None for what does not."""
    (params, start, _, timeline), (coefficients, h_before, _) = given
    d_final, d_recorded = out
    kind, axes = KINDS[plan.parts.step], timeline.x.shape[1:-1]
    states = plan.record is not record_output
    valid, reset = (one_axis(flags, axes, 1) for flags in (timeline.valid, timeline.reset))
    d_recorded = tuple(d_recorded) if states else d_recorded
    dz, d_start, d_fresh = native.transposed(
        kind, one_axis(coefficients, axes, 1), params.w_h, one_axis(d_recorded, axes, 1),
        one_axis(tuple(d_final), axes, 0), valid=valid, reset=reset, reverse=plan.reverse, states=states,
    )  # fmt: skip
    d_params, d_x = None, None
    moved_params, moved_start, moved_fresh, moved_x = moving
    if jax.tree.leaves(moved_params):
        x, h = (one_axis(a, axes, 1) for a in (timeline.x, h_before))
        d_params = _as_params(params, native.weight_gradients(kind, x, h, dz))
    if jax.tree.leaves(moved_x):
        d_x = all_axes(dz[..., : params.w_x.shape[1]] @ params.w_x.T, axes, 1)
    d_start = type(start)(*all_axes(d_start, axes, 0))
    d_fresh = None if d_fresh is None else type(start)(*all_axes(d_fresh, axes, 0))

    return (
        of_what_moves(moved_params, d_params or moved_params), of_what_moves(moved_start, d_start),
        of_what_moves(moved_fresh, d_fresh), of_what_moves(moved_x, d_x),
    )  # fmt: skip


def _weights(params: Params) -> tuple[Array, Array, Array]:
    b = jnp.concatenate([params.b, params.b_n]) if isinstance(params, GRUParams) else params.b
    return params.w_x, params.w_h, b


def _as_params(params: Params, found: tuple[Array, Array, Array]) -> Params:
    w_x, w_h, b = found
    if isinstance(params, GRUParams):
        return GRUParams(w_x, w_h, *jnp.split(b, [len(params.b)]))
    return type(params)(w_x, w_h, b)
