"""A cell put together of its parts: what most cells share, so that a file holds its own equations alone."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import (
    Cell,
    Products,
    Recurrence,
    Step,
    add_bias,
    check_input,
    check_kind,
    draw_params,
    from_h,
    from_x,
    wide,
    zeros_state,
)
from lstmjax.functions import Partial
from lstmjax.gates import Activation, sigmoid
from lstmjax.typing import Initializer, Params, State

Parts = tuple[tuple[str, Initializer, tuple[int | None, ...]], ...]
"""``(name, initialiser, shape)`` of every parameter, None in a shape for I."""


class GatedParams(NamedTuple):
    """The weights of a gated cell, its gates side by side; which they are, and in what order, the cell says.

    Attributes:
        w_x: ``[I, k·H]`` input weights.
        w_h: ``[H, m·H]`` recurrent weights, of the first m of the k gates.
        b: ``[n·H]`` biases, of the first n.
    """

    w_x: Array
    w_h: Array
    b: Array


def gated_parts(
    size: int,
    x_gates: int,
    h_gates: int,
    biases: int,
    w_x_init: Initializer,
    w_h_init: Initializer | None,
    b_init: Initializer,
) -> Parts:
    """The parts of :class:`GatedParams`; default recurrent weights are orthogonal, each gate by itself."""
    return (
        ("w_x", w_x_init, (None, x_gates * size)),
        ("w_h", w_h_init or initializers.per_gate(initializers.orthogonal(), h_gates), (size, h_gates * size)),
        ("b", b_init, (biases * size,)),
    )


def make_cell(kind: type, state: Any, size: int, parts: Parts, step: Recurrence | Step) -> Cell:
    """A cell of H = ``size`` hidden units, whose step says what does not fit.

    Args:
        kind: the named tuple of parameters.
        state: that of the state, whose fields are ``[*B, H]`` each.
        size: H.
        parts: how the parameters are drawn, and so what shapes they have.
        step: the step, not yet checked.
    """
    shapes = tuple((name, shape) for name, _, shape in parts)
    check = Partial(check_shapes, kind=kind, fields=state._fields, size=size, shapes=shapes)
    if isinstance(step, Recurrence):
        step = dataclasses.replace(step, check=check)
    else:
        step = Partial(_checked, step=step, check=check)
    return Cell(
        init=Partial(draw_params, kind=kind, parts=parts),
        initial_state=Partial(zeros_state, kind=state, sizes=(size,) * len(state._fields)),
        step=step,
    )


def check_shapes(
    params: Params,
    state: State,
    x: Any,
    *,
    kind: type,
    fields: tuple[str, ...],
    size: int,
    shapes: tuple[tuple[str, tuple[int | None, ...]], ...],
) -> None:
    """Raises, at trace time, where parameters, state and input do not fit the cell or one another."""
    check_kind(params, kind, tuple(name for name, _ in shapes))
    for name, shape in shapes:
        given = getattr(params, name).shape
        if len(given) != len(shape) or any(n not in (None, g) for n, g in zip(shape, given, strict=True)):
            wanted = ", ".join("I" if n is None else str(n) for n in shape)
            raise ValueError(
                f"params.{name} has shape {given}; wanted [{wanted}], since the cell is of H = {size} hidden units: "
                "are these another cell's parameters?"
            )
    check_input(params, x)
    for name in fields:
        given, wanted = getattr(state, name).shape, (*x.shape[:-1], size)
        if given != wanted:
            raise ValueError(
                f"state.{name} has shape {given}; wanted {wanted}, the batch axes of x and H = {size} hidden units"
            )


def _checked(params: Params, state: State, x: Any, *, step: Step, check: Callable[..., None]) -> tuple[State, Any]:
    check(params, state, x)
    return step(params, state, x)


def mix(z: Array, old: Array, new: Array, gate_activation: Activation = sigmoid) -> Array:
    """σ(z) ∘ old + (1 − σ(z)) ∘ new, where 1 − σ(z) = σ(−z) keeps its digits though nearly all is kept.

    >>> float(mix(jnp.array(40.0), jnp.array(0.0), jnp.array(1.0))) > 0
    True
    """
    keep = gate_activation(z)
    return keep * old + (sigmoid(-z) if gate_activation is sigmoid else 1 - keep) * new


def relu(z: Array) -> Array:
    """``jax.nn.relu`` as a function that can be pickled, and with it the cells whose default it is.

    >>> relu(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
    """
    return jax.nn.relu(z)


class PartWeights(NamedTuple):
    """:class:`GatedParams` for the fast unroll.

    Attributes:
        w_x: ``[I, N]``.
        w_h: ``[H, M]``, M ≤ N.
        b: ``[N]``, zero where a gate has none.
        w_h_t: ``[M, H]``, for the way back.
    """

    w_x: Array
    w_h: Array
    b: Array
    w_h_t: Array


def _pack(params: GatedParams) -> PartWeights:
    return PartWeights(params.w_x, params.w_h, _padded(params.b, params.w_x.shape[-1]), params.w_h.T)


def _pre(weights: PartWeights, x: Array, h: Array) -> Array:
    by_h = h @ weights.w_h
    return add_bias(x @ weights.w_x, weights.b) + _padded(by_h.astype(wide(by_h.dtype)), weights.b.shape[-1])


def _from_h(weights: PartWeights, dh: Array) -> Array:
    return _padded(from_h(weights, dh), weights.b.shape[-1])


def _padded(part: Array, width: int) -> Array:
    return jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, width - part.shape[-1])])


FIRST_BY_H = Products(_pre, _pack, from_x, _from_h)
"""z of :class:`GatedParams` whose first gates read x and h, the rest x alone."""
