"""The layer-normalised LSTM."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import Cell, Gated, Gates, Recurrence, add_bias, wide
from lstmjax.cells.build import forget_bias_init, gated_parts, make_cell
from lstmjax.cells.lstm import LSTMState
from lstmjax.checks import whole_number
from lstmjax.gates import sigmoid, tanh, update_cell_state
from lstmjax.typing import Initializer

EPSILON = 1e-5


class LayerNormLSTMParams(NamedTuple):
    """The weights of a layer-normalised LSTM, four gates side by side in the order i, f, g, o.

    Attributes:
        w_x: ``[I, 4H]`` input weights.
        w_h: ``[H, 4H]`` recurrent weights.
        b: ``[4H]`` biases; those of the two normalised products would only add to them.
        gain_x: ``[4H]`` gain of the normalised `x W_x`.
        gain_h: ``[4H]`` gain of the normalised `h W_h`.
        gain_c: ``[H]`` gain of the normalised cell state.
        b_c: ``[H]`` bias of the normalised cell state.
    """

    w_x: Array
    w_h: Array
    b: Array
    gain_x: Array
    gain_h: Array
    gain_c: Array
    b_c: Array


def _normalised(v: Array) -> Array:
    """(v − mean) / √(variance + ε) over the last axis, in float32 at least."""
    v = v.astype(wide(v.dtype))
    v = v - v.mean(-1, keepdims=True)
    return v * lax.rsqrt((v * v).mean(-1, keepdims=True) + EPSILON)


def _pre(params: LayerNormLSTMParams, x: Array, h: Array) -> tuple[Array, Array, Array]:
    by_x, by_h = _normalised(x @ params.w_x), _normalised(h @ params.w_h)
    gain_x, gain_h = (jnp.broadcast_to(g.astype(by_x.dtype), by_x.shape) for g in (params.gain_x, params.gain_h))
    return add_bias(gain_x * by_x + gain_h * by_h, params.b), params.gain_c, params.b_c


def _gates(z: Gates, state: LSTMState) -> dict[str, Array]:
    del state
    return {"input": sigmoid(z[0]), "forget": sigmoid(z[1]), "candidate": tanh(z[2]), "output": sigmoid(z[3])}


def _update(gates: dict[str, Array], z: Gates, state: LSTMState) -> LSTMState:
    gain_c, b_c = z[4], z[5]
    c = update_cell_state(gates["forget"], state.c, gates["input"], gates["candidate"])
    return LSTMState(c, gates["output"] * tanh(gain_c * _normalised(c) + b_c))


def layer_norm_lstm(
    hidden_size: int,
    *,
    forget_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
    gain_init: Initializer = jax.nn.initializers.ones,
) -> Cell:
    """A layer-normalised LSTM cell.

    With `LN(v) = (v − mean v) / √(var v + 1e-5)` over all entries of v::

        z  = α_x ∘ LN(x W_x) + α_h ∘ LN(h W_h) + b      of all 4H entries together
        i, f, g, o = σ(z_i), σ(z_f), tanh(z_g), σ(z_o)
        c' = f ∘ c + i ∘ g
        h' = o ∘ tanh(α_c ∘ LN(c') + b_c)

    A norm over units is not elementwise, and of `h W_h` it is not affine in h. So the cell has no linearisation by
    diagonals, and is unrolled by a plain scan.

    Args:
        hidden_size: H, the number of hidden units.
        forget_bias: the forget gate's initial bias, default 1.0; all other biases start at 0.
        w_x_init: draws ``[I, 4H]``.
        w_h_init: draws ``[H, 4H]``; default orthogonal, each gate by itself.
        b_init: draws ``[4H]``, in place of ``forget_bias``; see :func:`lstmjax.init.chrono`.
        gain_init: draws the gains, `α_x` and `α_h` ``[4H]`` and `α_c` ``[H]``; default the paper's ones.

    Returns:
        A :class:`Cell` over :class:`LayerNormLSTMParams` and :class:`LSTMState`, c and h ``[*B, H]``. Its step raises
        ValueError where x, state and params disagree in shape, and TypeError where x is not floating.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both forget_bias and b_init are given.

    Source: Ba, Kiros & Hinton (2016), equations 20 to 22.

    >>> cell = layer_norm_lstm(2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> params.gain_c.tolist(), cell.step(params, cell.initial_state((5,)), jnp.ones((5, 3)))[1].shape
    ([1.0, 1.0], (5, 2))
    """
    size = whole_number("hidden_size", hidden_size)
    parts = (
        *gated_parts(size, 4, w_x_init, w_h_init, forget_bias_init(forget_bias, b_init)),
        ("gain_x", gain_init, (4 * size,)),
        ("gain_h", gain_init, (4 * size,)),
        ("gain_c", gain_init, (size,)),
        ("b_c", initializers.zeros, (size,)),
    )
    step = Recurrence(_pre, Gated(_gates, _update), keeps="forget")
    return make_cell(LayerNormLSTMParams, LSTMState, size, parts, step)
