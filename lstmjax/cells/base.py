"""What a cell is, and the one check that every cell's step makes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lstmjax.typing import Params, Shape, State


class Recurrence(NamedTuple):
    """A step taken apart into its products and its elementwise rest, so that its derivative can be taken apart too.

    With z the pre-activations, ``[*B, N]``, N = 4H for an LSTM, a step is::

        z  = pre(weights, x, h)             affine in x and h, linear in the weights: all the matrix products
        s' = activate(z, s)                 elementwise: all the non-linearities

    and its tangent is the linear recurrence::

        dz  = pre(dweights, x, h) + from_x(weights, dx) + from_h(weights, dh)
        ds' = tangent(coefficients, dz, ds)

    whose coefficients ``linearise`` hands out along with the new state, while everything they are made of is at hand.
    The unroll in :mod:`lstmjax.fused` runs on these; ``step`` remains the definition they are tested against.

    Attributes:
        step: the cell's step that this takes apart.
        pack: ``params -> weights``, linear: what the products want, made once outside the loop.
        pre: ``(weights, x, h) -> z``.
        from_x: ``(weights, dx) -> dz``, the part of ``pre`` that is linear in x.
        from_h: ``(weights, dh) -> dz``, the part that is linear in h.
        activate: ``(z, state) -> state``.
        linearise: ``(z, state) -> (state, coefficients)``.
        tangent: ``(coefficients, dz, dstate) -> dstate``, linear in the last two.
    """

    step: Callable
    pack: Callable[[Params], Any]
    pre: Callable[[Any, Array, Array], Array]
    from_x: Callable[[Any, Array], Array]
    from_h: Callable[[Any, Array], Array]
    activate: Callable[[Array, State], State]
    linearise: Callable[[Array, State], tuple[State, Any]]
    tangent: Callable[[Any, Array, State], State]


class Cell(NamedTuple):
    """A recurrent cell: three pure functions, hyper-parameters closed over, parameters and state explicit.

    Anything of this shape can be unrolled, stacked and measured; ``lstm``, ``gru`` and ``rnn`` build three.

    Attributes:
        init: ``(key, input_size, dtype=float32) -> params``.
        initial_state: ``(batch_shape=(), dtype=float32) -> state``, each leaf ``[*B, ...]``.
        step: ``(params, state [*B, ...], x [*B, I]) -> (state, y [*B, ...])``, in the order ``lax.scan`` wants.
        recurrence: the same step taken apart for the fast unroll, or None: the cell is then unrolled by its step.
            It wants a state with a field ``h`` that is also the output.

    A step computes in the dtype of its parameters and returns the state in the dtype the state came in, so that a
    float32 state may be carried through bfloat16 weights and a scan never changes its carry.

    >>> import jax
    >>> leaky = Cell(
    ...     init=lambda key, input_size, dtype=jnp.float32: jnp.full((input_size,), 0.9, dtype),
    ...     initial_state=lambda batch_shape=(), dtype=jnp.float32: jnp.zeros((*batch_shape, 2), dtype),
    ...     step=lambda decay, state, x: (decay * state + x, decay * state + x),
    ... )
    >>> leaky.step(leaky.init(jax.random.key(0), 2), leaky.initial_state(), jnp.ones(2))[1]
    Array([1., 1.], dtype=float32)
    """

    init: Callable[..., Params]
    initial_state: Callable[..., State]
    step: Callable[[Params, State, Any], tuple[State, Any]]
    recurrence: Recurrence | None = None


def zeros_state(state_type: Callable[..., State], leaves: int, hidden_size: int):
    """An ``initial_state`` whose leaves are all zero, ``[*B, H]`` each."""

    def initial_state(batch_shape: Shape = (), dtype=jnp.float32) -> State:
        return state_type(*(jnp.zeros((*batch_shape, hidden_size), dtype) for _ in range(leaves)))

    return initial_state


def check_hidden_size(hidden_size: int) -> None:
    """Raises where a cell is asked for with a hidden size that is no positive whole number."""
    if isinstance(hidden_size, bool) or not isinstance(hidden_size, int) or hidden_size < 1:
        raise ValueError(f"hidden_size is {hidden_size!r}; wanted a whole number of at least 1")


def check_activations(**activations: Any) -> None:
    """Raises where an activation is no function."""
    for name, activation in activations.items():
        if not callable(activation):
            raise TypeError(
                f"{name} is {activation!r}; wanted an elementwise function, such as jnp.tanh or jax.nn.relu"
            )


def check_kind(params: Any, kind: type) -> None:
    """Raises where parameters are not one cell's: a dict that holds them, say, or a tuple of several cells'."""
    if hasattr(params, "w_h"):
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


def check_step(kind: type, gates: int, params: Any, h: Array, x: Array) -> None:
    """Raises, at trace time, where parameters, hidden state and input do not fit one another."""
    check_kind(params, kind)
    hidden = params.w_h.shape[0]
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


class Weights(NamedTuple):
    """Weights packed for one product a step, z = [x, h] W + b, as the LSTM and the vanilla RNN take it.

    Attributes:
        w: ``[I + H, N]``, input weights above recurrent weights.
        b: ``[N]``.
        w_x: ``[I, N]``.
        w_h_t: ``[N, H]``, the recurrent weights transposed, for the way back.
    """

    w: Array
    b: Array
    w_x: Array
    w_h_t: Array


def pack(params: Any) -> Weights:
    """Packs ``w_x``, ``w_h`` and ``b``; linear, so that it packs their tangents as well."""
    return Weights(jnp.concatenate([params.w_x, params.w_h]), params.b, params.w_x, params.w_h.T)


def pre(weights: Weights, x: Float[Array, "*B I"], h: Float[Array, "*B H"]) -> Float[Array, "*B N"]:
    """z = [x, h] W + b, in one product."""
    dtype = weights.w.dtype
    return jnp.concatenate([x.astype(dtype), h.astype(dtype)], axis=-1) @ weights.w + weights.b


def from_x(weights: Any, dx: Float[Array, "*B I"]) -> Float[Array, "*B N"]:
    """dx W_x."""
    return dx.astype(weights.w_x.dtype) @ weights.w_x


def from_h(weights: Any, dh: Float[Array, "*B H"]) -> Float[Array, "*B N"]:
    """dh W_h.

    Written with the transposed weights, so that the product of the backward pass, dz W_hᵀ, which is the transpose of
    this one, meets them row by row: on CPU that is faster by up to a third where the batch is small.
    """
    w_h_t = weights.w_h_t
    return lax.dot_general(dh.astype(w_h_t.dtype), w_h_t, (((dh.ndim - 1,), (1,)), ((), ())))


def like(state: State, *leaves: Array) -> State:
    """A state of the same kind, each leaf in the dtype of the old one."""
    return type(state)(*(new.astype(old.dtype) for new, old in zip(leaves, state, strict=True)))


def working(z: Array, *leaves: Array) -> tuple[Array, ...]:
    """Pre-activations and state leaves in the wider of their dtypes, in which the elementwise part is done."""
    dtype = np.promote_types(z.dtype, leaves[0].dtype)
    return tuple(a.astype(dtype) for a in (z, *leaves))
