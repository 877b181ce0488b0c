"""What a cell is, and the one check that every cell's step makes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from lstmjax.typing import Params, State


class Cell(NamedTuple):
    """A recurrent cell: three pure functions, hyper-parameters closed over, parameters and state explicit.

    Anything of this shape can be unrolled, stacked and measured; ``lstm``, ``gru`` and ``rnn`` build three.

    Attributes:
        init: ``(key, input_size, dtype=float32) -> params``.
        initial_state: ``(batch_shape=(), dtype=float32) -> state``, each leaf ``[*B, ...]``.
        step: ``(params, state [*B, ...], x [*B, I]) -> (state, y [*B, ...])``, in the order ``lax.scan`` wants.

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


def zeros_state(state_type: Callable[..., State], leaves: int, hidden_size: int):
    """An ``initial_state`` whose leaves are all zero, ``[*B, H]`` each."""

    def initial_state(batch_shape: tuple[int, ...] = (), dtype=jnp.float32) -> State:
        return state_type(*(jnp.zeros((*batch_shape, hidden_size), dtype) for _ in range(leaves)))

    return initial_state


def check_hidden_size(hidden_size: int) -> None:
    """Raises where a cell is asked for with a hidden size that is no positive whole number."""
    if isinstance(hidden_size, bool) or not isinstance(hidden_size, int) or hidden_size < 1:
        raise ValueError(f"hidden_size is {hidden_size!r}; wanted a whole number of at least 1")


def check_step(gates: int, params: Any, h: Array, x: Array) -> None:
    """Raises, at trace time, where parameters, hidden state and input do not fit one another."""
    hidden = params.w_h.shape[0]
    if params.w_h.shape != (hidden, gates * hidden):
        raise ValueError(
            f"params.w_h has shape {params.w_h.shape}; wanted [H, {gates}·H], which for H = {hidden} is "
            f"{(hidden, gates * hidden)}: are these another cell's parameters?"
        )
    if x.ndim < 1 or x.shape[-1] != params.w_x.shape[0]:
        raise ValueError(
            f"x has shape {x.shape}; wanted [..., I] with I = {params.w_x.shape[0]} features, the rows of params.w_x"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x has dtype {x.dtype}; wanted a floating dtype: one-hot encode or embed symbols, and cast counts"
        )
    if h.shape != (*x.shape[:-1], hidden):
        raise ValueError(
            f"state.h has shape {h.shape}; wanted {(*x.shape[:-1], hidden)}, "
            f"the batch axes of x and H = {hidden} hidden units"
        )
