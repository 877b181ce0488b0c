"""The LSTM whose input and forget gates are one: what is not kept is let in."""

from typing import NamedTuple

from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import DENSE, Cell, Gated, Gates, Recurrence
from lstmjax.cells.build import forget_bias_init, gated_parts, make_cell
from lstmjax.cells.lstm import LSTMState, from_gates
from lstmjax.checks import whole_number
from lstmjax.gates import sigmoid, tanh
from lstmjax.typing import Initializer


class CoupledLSTMParams(NamedTuple):
    """The weights of an LSTM with coupled gates, three gates side by side in the order f, g, o.

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
    z_f, z_g, z_o = z
    # 1 − σ(z) = σ(−z), which keeps its digits where nearly all is kept.
    return {"input": sigmoid(-z_f), "forget": sigmoid(z_f), "candidate": tanh(z_g), "output": sigmoid(z_o)}


def coupled_lstm(
    hidden_size: int,
    *,
    forget_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """An LSTM cell with coupled input and forget gates (CIFG).

    ::

        f  = σ(x W_xf + h W_hf + b_f)       forget gate: the percentage of c to keep
        i  = 1 − f                          input gate
        g  = tanh(x W_xg + h W_hg + b_g)    candidate
        o  = σ(x W_xo + h W_ho + b_o)       output gate
        c' = f ∘ c + i ∘ g
        h' = o ∘ tanh(c')

    Args:
        hidden_size: H, the number of hidden units.
        forget_bias: the forget gate's initial bias, default 1.0; all other biases start at 0.
        w_x_init: draws ``[I, 3H]``. The paper draws all weights from `N(0, 0.1²)`: ``jax.nn.initializers.normal(0.1)``.
        w_h_init: draws ``[H, 3H]``; default orthogonal, each gate by itself.
        b_init: draws ``[3H]``, in place of ``forget_bias``; ``init.chrono(max_lag, gates=3, keeps=0, enters=None)``.

    Returns:
        A :class:`Cell` over :class:`CoupledLSTMParams` and :class:`LSTMState`, c and h ``[*B, H]``. Its step raises
        ValueError where x, state and params disagree in shape, and TypeError where x is not floating.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both forget_bias and b_init are given.

    Source: Greff, Srivastava, Koutník, Steunebrink & Schmidhuber (2017), "CIFG", here without peepholes.

    >>> import jax, jax.numpy as jnp
    >>> cell = coupled_lstm(2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> params.b.tolist(), cell.step(params, cell.initial_state((5,)), jnp.ones((5, 3)))[1].shape
    ([1.0, 1.0, 0.0, 0.0, 0.0, 0.0], (5, 2))
    """
    size = whole_number("hidden_size", hidden_size)
    parts = gated_parts(size, 3, w_x_init, w_h_init, forget_bias_init(forget_bias, b_init, gates=3, keeps=0))
    step = Recurrence(DENSE, Gated(_gates, from_gates), keeps="forget")
    return make_cell(CoupledLSTMParams, LSTMState, size, parts, step)
