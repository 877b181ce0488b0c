"""The recurrence on a CPU, by the kernels of :mod:`lstmjax.recurrence.native`, for the cells and requests they serve.

Forward they know three cells. The transpose of the linear recurrence they know of every cell whose products are laid
out as theirs are: that wants its diagonals alone. Its forward mode is XLA's, and so is all of second order. What they
do not serve is left to :mod:`lstmjax.recurrence.linear`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import linear_call

from lstmjax.cells.base import DENSE
from lstmjax.cells.build import FIRST_BY_H
from lstmjax.cells.gru import PRODUCTS, GRUParams, gru
from lstmjax.cells.lstm import lstm
from lstmjax.cells.peephole import PEEPHOLES
from lstmjax.cells.rnn import rnn
from lstmjax.gates import split_gates
from lstmjax.recurrence import native
from lstmjax.recurrence.parts import Plan, of_what_moves, why_no_kernel
from lstmjax.recurrence.scan import all_axes, one_axis, record_output
from lstmjax.typing import Params, State

# A step does not know how many units it has.
KINDS = {lstm(1).step: "lstm", gru(1).step: "gru", rnn(1).step: "rnn", rnn(1, activation=jax.nn.relu).step: "relu"}
# The products whose layout they know, and which parameters come after w_x and w_h.
BIASES: dict[Any, tuple[str, ...]] = {DENSE: ("b",), FIRST_BY_H: ("b",), PEEPHOLES: ("b", "p"), PRODUCTS: ("b", "b_n")}


def may_serve(plan: Plan) -> bool:
    """Whether the kernels serve a plan for some arguments, forward and backwards."""
    return may_serve_backwards(plan) and plan.parts.step in KINDS


def may_serve_backwards(plan: Plan) -> bool:
    """Whether they serve its transpose."""
    return plan.implementation not in ("fused", "pallas") and _why_no_transpose(plan) is None


def why_not(plan: Plan, arguments: Any) -> str | None:
    """Why the kernels do not serve a request, forward and backwards, or None where they do."""
    if native.available() and plan.parts.step not in KINDS:
        return "the kernels know the LSTM and the GRU with sigmoid and tanh, and the vanilla RNN with tanh or relu"
    return _why_no_transpose(plan) or _why_not_these(plan, arguments)


def _why_no_transpose(plan: Plan) -> str | None:
    step = plan.parts.step
    if not native.available():
        return native.why_not()
    if step.pre not in tuple(BIASES) or step.project is not None:
        return "its products are not laid out as those of the kernels"
    if len(plan.parts.pairs) > native.MOST_PAIRS:
        return f"the kernels take up to {native.MOST_PAIRS} diagonals"
    return why_no_kernel(plan)


def _why_not_these(plan: Plan, arguments: Any) -> str | None:
    params, start, _, timeline = arguments
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((params, start, timeline.x))}
    if len(dtypes) > 1 or not dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.float64)}:
        names = ", ".join(sorted(map(str, dtypes)))
        return f"params, state and xs are of {names}, and the kernels take float32 or float64, the same for all"
    if not all(isinstance(n, int) for n in timeline.x.shape):
        return "a size is left open"
    wanted = ("w_x", "w_h", *BIASES[plan.parts.step.pre])
    fields = [getattr(tree, "_fields", ()) for tree in (params, start)]
    if fields[0] != wanted or fields[1] not in {("h",), ("c", "h")}:
        return f"the kernels know the parameters {', '.join(wanted)}, and the states h, and c and h"
    return None


def forward(plan: Plan, otherwise: Callable) -> Callable:
    """As :func:`lstmjax.recurrence.linear.forward`, which is ``otherwise``."""

    def run(arguments: Any, _: Any) -> tuple[State, Any]:
        if why_not(plan, arguments) is not None or (plan.implementation is None and _is_tiny(arguments)):
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
        if _why_not_these(plan, arguments) is not None:
            return otherwise(given, moving)
        return linear_call(otherwise, lambda given, out: _transposed(plan, given, out, moving), given, moving)

    return run


def _is_tiny(arguments: Any) -> bool:
    """Whether there are so few multiplications that calling a kernel takes longer than what it saves."""
    params, _, _, timeline = arguments
    *steps, inputs = timeline.x.shape
    hidden, width = params.w_h.shape
    return math.prod(steps) * (inputs + hidden) * width < 2**13


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
    if emit:
        (by_gates, *others), h_before = emitted
        emitted = [*split_gates(by_gates, native.FORMS[kind].gates), *others], h_before
    return type(start)(*final), recorded, emitted


def _transposed(plan: Plan, given: Any, out: Any, moving: Any) -> Any:
    """The cotangents of what moves; None for what does not."""
    (params, start, _, timeline), (coefficients, h_before, _) = given
    d_final, d_recorded = out
    form, axes = _form(plan, params), timeline.x.shape[1:-1]
    states = plan.record is not record_output
    valid, reset = (one_axis(flags, axes, 1) for flags in (timeline.valid, timeline.reset))
    d_recorded = tuple(d_recorded) if states else d_recorded
    if plan.parts.step in KINDS:  # as the kernels put them out: split and joined again, they are no copies to XLA
        by_gates = jnp.concatenate(coefficients[: form.gates], axis=-1)
        coefficients = [by_gates, *coefficients[form.gates :]]
    dz, d_start, d_fresh = native.transposed(
        form, one_axis(coefficients, axes, 1), params.w_h, one_axis(d_recorded, axes, 1),
        one_axis(tuple(d_final), axes, 0), valid=valid, reset=reset, reverse=plan.reverse, states=states,
    )  # fmt: skip
    d_params, d_x = None, None
    moved_params, moved_start, moved_fresh, moved_x = moving
    if jax.tree.leaves(moved_params):
        x, h = (one_axis(a, axes, 1) for a in (timeline.x, h_before))
        d_params = _as_params(params, native.weight_gradients(form, x, h, dz))
    if jax.tree.leaves(moved_x):
        d_x = all_axes(dz[..., : params.w_x.shape[1]] @ params.w_x.T, axes, 1)
    d_start = type(start)(*all_axes(d_start, axes, 0))
    d_fresh = None if d_fresh is None else type(start)(*all_axes(d_fresh, axes, 0))

    return (
        of_what_moves(moved_params, d_params or moved_params), of_what_moves(moved_start, d_start),
        of_what_moves(moved_fresh, d_fresh), of_what_moves(moved_x, d_x),
    )  # fmt: skip


def _form(plan: Plan, params: Params) -> native.Form:
    step = plan.parts.step
    by_x, by_h = (w.shape[1] // len(params.w_h) for w in (params.w_x, params.w_h))
    tail = int(step.pre == PRODUCTS)  # the candidate's part of h
    peepholes = 3 if step.pre == PEEPHOLES else 0
    return native.Form(by_x + tail + peepholes, by_x, by_h - tail, tail, plan.parts.pairs)


def _weights(params: Params) -> tuple[Array, Array, Array]:
    b = jnp.concatenate([params.b, params.b_n]) if isinstance(params, GRUParams) else params.b
    return params.w_x, params.w_h, b


def _as_params(params: Params, found: tuple[Array, Array, Array]) -> Params:
    w_x, w_h, b = found
    biases = b[: len(params.b)], b[len(params.b) :]  # the rest is b_n or p, or of gates that have no bias
    return type(params)(w_x, w_h, *biases[: len(params) - 2])
