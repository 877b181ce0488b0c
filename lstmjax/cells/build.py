"""A cell put together of its parts: what most cells share, so that a file holds its own equations alone."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import Cell, Products, Recurrence, Step, add_bias, from_h, from_x, wide
from lstmjax.functions import Partial
from lstmjax.gates import Activation, sigmoid
from lstmjax.typing import Initializer, Key, Params, Shape, State

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
    gates: int | tuple[int, int, int],
    w_x_init: Initializer,
    w_h_init: Initializer | None,
    b_init: Initializer,
) -> Parts:
    """The parts of w_x ``[I, k·H]``, w_h ``[H, m·H]`` and b ``[n·H]``; default w_h orthogonal, each gate by itself.

    ``gates`` is ``(k, m, n)``, or one number for all three.
    """
    k, m, n = gates if isinstance(gates, tuple) else (gates,) * 3
    return (
        ("w_x", w_x_init, (None, k * size)),
        ("w_h", w_h_init or initializers.per_gate(initializers.orthogonal(), m), (size, m * size)),
        ("b", b_init, (n * size,)),
    )


def make_cell(kind: type, state: Any, size: int, parts: Parts, step: Recurrence | Step) -> Cell:
    """A cell of H = ``size`` hidden units, whose step says what does not fit.

    Args:
        kind: the named tuple of parameters.
        state: that of the state, whose fields are ``[*B, H]`` each.
        size: H.
        parts: how the parameters are drawn, and so what shapes they have.
        step: the step; where it has no check of its own, it is given one.
    """
    check = Partial(check_shapes, shapes=kind(**{name: shape for name, _, shape in parts}), size=size)
    if not isinstance(step, Recurrence):
        step = Partial(_checked, step=step, check=check)
    elif step.check is None:
        step = dataclasses.replace(step, check=check)
    return Cell(
        init=Partial(draw_params, kind=kind, parts=parts),
        initial_state=Partial(zeros_state, kind=state, sizes=(size,) * len(state._fields)),
        step=step,
    )


def zeros_state(batch_shape: Shape = (), dtype=jnp.float32, *, kind: Callable[..., State], sizes: tuple[int, ...]):
    """The state whose leaves are all zero, ``[*B, size]`` each."""
    return kind(*(jnp.zeros((*batch_shape, size), dtype) for size in sizes))


def draw_params(key: Key, input_size: int, dtype=jnp.float32, *, kind: Callable[..., Params], parts: Parts) -> Params:
    """Parameters drawn part by part, each with its own key.

    Where every initialiser is the library's own, that is one compiled program; of others it is not known whether they
    may be called once for several draws.
    """
    draw = _draw_compiled if all(initializers.is_own(draw) for _, draw, _ in parts) else _draw
    return draw(key, input_size, dtype, kind, parts)


def _draw(key: Key, input_size: int, dtype: Any, kind: Callable[..., Params], parts: Parts) -> Params:
    keys = jax.random.split(key, len(parts))
    return kind(
        **{
            name: draw(k, tuple(input_size if n is None else n for n in shape), dtype)
            for k, (name, draw, shape) in zip(keys, parts, strict=True)
        }
    )


_draw_compiled = jax.jit(_draw, static_argnums=(1, 2, 3, 4))


def forget_bias_init(
    forget_bias: float | None, b_init: Initializer | None, name: str = "b_init", *, gates: int = 4, keeps: int = 1
) -> Initializer:
    """:func:`keep_bias_init` of a forget gate, which begins at 1; ``name`` is that of ``b_init``."""
    return keep_bias_init(b_init, 1.0, gate=keeps, gates=gates, name=name, forget_bias=forget_bias)


def keep_bias_init(
    b_init: Initializer | None,
    default: float = 0.0,
    *,
    gate: int = 0,
    gates: int,
    name: str = "b_init",
    **given: float | None,
) -> Initializer:
    """A gated cell's initialiser of biases ``[gates·H]``, of the two ways to say it.

    Args:
        b_init: draws them all.
        default: the bias of the gate that keeps the state, where nothing is given.
        gate: that gate's block.
        gates: how many blocks there are.
        name: what the cell calls ``b_init``.
        given: that gate's bias, under the name the cell has for it.

    Raises:
        ValueError: both are given.
    """
    ((bias_name, bias),) = given.items()
    if bias is not None and b_init is not None:
        raise ValueError(f"{bias_name} and {name} both set the biases; give one of them")
    return b_init or initializers.gate_bias(default if bias is None else bias, gate=gate, gates=gates)


def check_activations(**activations: Any) -> None:
    """Raises where an activation is no function."""
    for name, activation in activations.items():
        if not callable(activation):
            raise TypeError(
                f"{name} is {activation!r}; wanted an elementwise function, such as jnp.tanh or jax.nn.relu"
            )


def check_kind(params: Any, kind: type, fields: tuple[str, ...] = ("w_h",)) -> None:
    """Raises where parameters are not one cell's: a dict that holds them, say, or a tuple of several cells'."""
    if all(hasattr(params, field) for field in fields):
        return
    given, hint = f"a {type(params).__name__}", ""
    if isinstance(params, dict):
        given += f" with keys {', '.join(map(repr, params)) or 'none'}"
    elif isinstance(params, tuple | list) and not hasattr(params, "_fields"):
        given, hint = f"{given} of {len(params)}", "; unroll_stack takes layers and pairs"
    elif (shape := getattr(params, "shape", None)) is not None:  # under a trace the type would be that of a tracer
        given = f"an array of shape {shape}"
    raise TypeError(f"params is {given}; wanted {kind.__name__}{hint}")


def check_input(params: Any, x: Array) -> None:
    """Raises, at trace time, where an input does not fit the input weights, or is not floating."""
    if x.ndim < 1 or x.shape[-1] != params.w_x.shape[0]:
        raise ValueError(
            f"x has shape {x.shape}; wanted [..., I] with I = {params.w_x.shape[0]} features, the rows of params.w_x"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x has dtype {x.dtype}; wanted a floating dtype: one-hot encode or embed symbols, and cast counts"
        )


def check_step(params: Params, state: State, x: Array, *, kind: type, gates: int) -> None:
    """Raises, at trace time, where parameters, hidden state and input do not fit one another, of any size."""
    check_kind(params, kind)
    h, hidden = state.h, params.w_h.shape[0]
    if params.w_h.shape != (hidden, gates * hidden):
        raise ValueError(
            f"params.w_h has shape {params.w_h.shape}; wanted [H, {gates}·H], which for H = {hidden} is "
            f"{(hidden, gates * hidden)}: are these another cell's parameters?"
        )
    check_input(params, x)
    if h.shape != (*x.shape[:-1], hidden):
        sizes = ""
        if h.shape and h.shape[:-1] == x.shape[:-1]:  # said first, since an unroll may have made the state itself
            sizes = f"params are of H = {hidden} hidden units, and the cell, or a state given, of H = {h.shape[-1]}: "
        raise ValueError(
            f"{sizes}state.h has shape {h.shape}; wanted {(*x.shape[:-1], hidden)}, "
            f"the batch axes of x and H = {hidden} hidden units"
        )


def check_shapes(params: Params, state: State, x: Any, *, shapes: Any, size: int) -> None:
    """Raises, at trace time, where parameters, state and input do not fit the cell or one another.

    ``shapes`` is the named tuple of parameters with a shape in the place of each, None for I.
    """
    check_kind(params, type(shapes), shapes._fields)
    for name, shape in zip(shapes._fields, shapes, strict=True):
        given = getattr(params, name).shape
        if given != shape and (
            len(given) != len(shape) or any(n not in (None, g) for n, g in zip(shape, given, strict=True))
        ):
            wanted = ", ".join("I" if n is None else str(n) for n in shape)
            raise ValueError(
                f"params.{name} has shape {given}; wanted [{wanted}], since the cell is of H = {size} hidden units: "
                "are these another cell's parameters?"
            )
    check_input(params, x)
    wanted = (*x.shape[:-1], size)
    for name, leaf in zip(state._fields, state, strict=True):
        if leaf.shape != wanted:
            raise ValueError(
                f"state.{name} has shape {leaf.shape}; wanted {wanted}, the batch axes of x and H = {size} hidden units"
            )


def _checked(params: Params, state: State, x: Any, *, step: Step, check: Callable[..., None]) -> tuple[State, Any]:
    check(params, state, x)
    return step(params, state, x)


def mix(z: Array, old: Array, new: Array, gate_activation: Activation = sigmoid) -> Array:
    """`σ(z) ∘ old + (1 − σ(z)) ∘ new`, where `1 − σ(z) = σ(−z)` keeps its digits though nearly all is kept.

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
        w_h: ``[H, M]``, `M ≤ N`.
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
