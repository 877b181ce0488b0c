"""The LSTM as it was first published, without a forget gate."""

from typing import NamedTuple

from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import DENSE, Cell, Gated, Gates, Recurrence
from lstmjax.cells.build import gated_parts, make_cell
from lstmjax.cells.lstm import LSTMState
from lstmjax.checks import whole_number
from lstmjax.gates import sigmoid, tanh
from lstmjax.typing import Initializer


class LSTM1997Params(NamedTuple):
    """The weights of an LSTM without forget gate, three gates side by side in the order i, g, o.

    Attributes:
        w_x: ``[I, 3H]`` input weights.
        w_h: ``[H, 3H]`` recurrent weights.
        b: ``[3H]`` biases.
    """

    w_x: Array
    w_h: Array
    b: Array


def _gates(z: Gates, state: LSTMState) -> dict[str, Array]:
    del state
    z_i, z_g, z_o = z
    return {"input": sigmoid(z_i), "candidate": 2 * tanh(z_g / 2), "output": sigmoid(z_o)}


def _update(gates: dict[str, Array], z: Gates, state: LSTMState) -> LSTMState:
    del z
    c = state.c + gates["input"] * gates["candidate"]
    return LSTMState(c, gates["output"] * tanh(c / 2))


def lstm_1997(
    hidden_size: int,
    *,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer = initializers.zeros,
) -> Cell:
    """An LSTM cell of 1997: nothing is ever forgotten, and `∂c'/∂c` along the cell state is 1.

    ::

        i  = σ(x W_xi + h W_hi + b_i)                  input gate
        g  = 4 σ(x W_xg + h W_hg + b_g) − 2            candidate, between −2 and 2: 2 tanh(·/2)
        o  = σ(x W_xo + h W_ho + b_o)                  output gate
        c' = c + i ∘ g
        h' = o ∘ (2 σ(c') − 1)                         tanh(c'/2)

    The two functions that squash are the paper's; those of the LSTM of today are tanh. The derivative is the whole one:
    the paper's training leaves out what flows back through h. No gate keeps the state, so there is no ``forget_bias``.

    Args:
        hidden_size: H, the number of hidden units.
        w_x_init: draws ``[I, 3H]``. The paper draws all weights from `U(−0.1, 0.1)` or `U(−0.2, 0.2)`.
        w_h_init: draws ``[H, 3H]``; default orthogonal, each gate by itself.
        b_init: draws ``[3H]``, default zeros; ``init.chrono(max_lag, gates=3, keeps=None, enters=0)`` lets little in,
            so that c stays small over a long sequence.

    Returns:
        A :class:`Cell` over :class:`LSTM1997Params` and :class:`LSTMState`, c and h ``[*B, H]``. Its step raises
        ValueError where x, state and params disagree in shape, and TypeError where x is not floating.

    Raises:
        ValueError: hidden_size is not a positive whole number.

    Source: Hochreiter & Schmidhuber (1997), memory cells in blocks of one.

    >>> import jax, jax.numpy as jnp
    >>> cell = lstm_1997(2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> cell.step(params, cell.initial_state((5,)), jnp.ones((5, 3)))[1].shape
    (5, 2)
    """
    size = whole_number("hidden_size", hidden_size)
    parts = gated_parts(size, 3, w_x_init, w_h_init, b_init)
    return make_cell(LSTM1997Params, LSTMState, size, parts, Recurrence(DENSE, Gated(_gates, _update)))
