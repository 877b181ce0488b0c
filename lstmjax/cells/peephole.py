"""The LSTM whose gates look at the cell state."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import DENSE, Cell, Gated, Gates, Products, Recurrence
from lstmjax.cells.build import forget_bias_init, gated_parts, make_cell
from lstmjax.cells.lstm import LSTMState
from lstmjax.checks import whole_number
from lstmjax.gates import emit_hidden_state, sigmoid, tanh, update_cell_state
from lstmjax.typing import Initializer


class PeepholeLSTMParams(NamedTuple):
    """The weights of an LSTM with peepholes, four gates side by side in the order i, f, g, o.

    Attributes:
        w_x: ``[I, 4H]`` input weights.
        w_h: ``[H, 4H]`` recurrent weights.
        b: ``[4H]`` biases.
        p: ``[3H]`` peepholes of i, f and o, which weigh c elementwise.
    """

    w_x: Array
    w_h: Array
    b: Array
    p: Array


# A weight that works elementwise is one more gate, which reads neither x nor h.
def _pack(params: PeepholeLSTMParams) -> tuple[Any, Array]:
    return DENSE.pack(params), params.p


def _pre(weights: tuple[Any, Array], x: Array, h: Array) -> tuple[Array, Array]:
    dense, p = weights
    return DENSE.pre(dense, x, h), p


def _from_x(weights: tuple[Any, Array], dx: Array) -> tuple[Array, Array]:
    dense, p = weights
    return DENSE.from_x(dense, dx), jnp.zeros_like(p)


def _from_h(weights: tuple[Any, Array], dh: Array) -> tuple[Array, Array]:
    dense, p = weights
    return DENSE.from_h(dense, dh), jnp.zeros_like(p)


PEEPHOLES = Products(_pre, _pack, _from_x, _from_h)
"""z of :class:`PeepholeLSTMParams`: four gates, then the three peepholes."""


def _gates(z: Gates, state: LSTMState) -> dict[str, Array]:
    z_i, z_f, z_g, z_o, p_i, p_f, p_o = z
    i, f, g = sigmoid(z_i + p_i * state.c), sigmoid(z_f + p_f * state.c), tanh(z_g)
    c = update_cell_state(f, state.c, i, g)
    return {"input": i, "forget": f, "candidate": g, "output": sigmoid(z_o + p_o * c)}


def _update(gates: dict[str, Array], z: Gates, state: LSTMState) -> LSTMState:
    c = update_cell_state(gates["forget"], state.c, gates["input"], gates["candidate"])
    return LSTMState(c, emit_hidden_state(sigmoid(z[3] + z[6] * c), c))


def peephole_lstm(
    hidden_size: int,
    *,
    forget_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
    p_init: Initializer = initializers.zeros,
) -> Cell:
    """An LSTM cell with peepholes: each gate also reads its own unit's cell state.

    ::

        i  = σ(x W_xi + h W_hi + p_i ∘ c + b_i)     input gate
        f  = σ(x W_xf + h W_hf + p_f ∘ c + b_f)     forget gate
        g  = tanh(x W_xg + h W_hg + b_g)            candidate
        c' = f ∘ c + i ∘ g
        o  = σ(x W_xo + h W_ho + p_o ∘ c' + b_o)    output gate, which looks at the new c
        h' = o ∘ tanh(c')

    All of it is elementwise but the products, the look at the new c too, so it is unrolled as fast as an LSTM is.

    Args:
        hidden_size: H, the number of hidden units.
        forget_bias: the forget gate's initial bias, default 1.0; all other biases start at 0.
        w_x_init: draws ``[I, 4H]``.
        w_h_init: draws ``[H, 4H]``; default orthogonal, each gate by itself.
        b_init: draws ``[4H]``, in place of ``forget_bias``; see :func:`lstmjax.init.chrono`.
        p_init: draws ``[3H]``; default zeros, with which it begins as an LSTM.

    Returns:
        A :class:`Cell` over :class:`PeepholeLSTMParams` and :class:`LSTMState`, c and h ``[*B, H]``. Its step raises
        ValueError where x, state and params disagree in shape, and TypeError where x is not floating.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both forget_bias and b_init are given.

    Source: Gers & Schmidhuber (2000), "Recurrent nets that time and count".

    >>> import jax, jax.numpy as jnp
    >>> cell = peephole_lstm(2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> params.p.shape, cell.step(params, cell.initial_state((5,)), jnp.ones((5, 3)))[1].shape
    ((6,), (5, 2))
    """
    size = whole_number("hidden_size", hidden_size)
    parts = gated_parts(size, 4, w_x_init, w_h_init, forget_bias_init(forget_bias, b_init))
    step = Recurrence(PEEPHOLES, Gated(_gates, _update), keeps="forget")
    return make_cell(PeepholeLSTMParams, LSTMState, size, (*parts, ("p", p_init, (3 * size,))), step)
