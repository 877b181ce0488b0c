"""The sLSTM of xLSTM: exponential gates with a normaliser and a stabiliser, and heads."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import Cell, Gated, Gates, Recurrence, add_bias, wide
from lstmjax.cells.build import forget_bias_init, make_cell
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.gates import sigmoid, tanh
from lstmjax.typing import Initializer


class SLSTMParams(NamedTuple):
    """The weights of an sLSTM of K heads, `H = K·D`, four gates side by side in the order i, f, g, o.

    Attributes:
        w_x: ``[I, 4H]`` input weights.
        w_h: ``[K, D, 4D]`` recurrent weights, those of each head.
        b: ``[4H]`` biases.
    """

    w_x: Array
    w_h: Array
    b: Array


class SLSTMState(NamedTuple):
    """The memory of an sLSTM.

    Attributes:
        c: ``[*B, H]`` cell state, divided by `e^m`.
        n: ``[*B, H]`` normaliser, divided by `e^m`; 0 where nothing is stored yet.
        m: ``[*B, H]`` stabiliser, the logarithm of what the two were divided by.
        h: ``[*B, H]`` hidden state, and the output.
    """

    c: Array
    n: Array
    m: Array
    h: Array


def _pre(params: SLSTMParams, x: Array, h: Array) -> Array:
    heads, size, _ = params.w_h.shape
    by_h = jnp.einsum("...kd,kdn->...kn", h.reshape(*h.shape[:-1], heads, size), params.w_h)
    # From each head's four gates to each gate's heads.
    by_h = by_h.reshape(*by_h.shape[:-1], 4, size).swapaxes(-3, -2).reshape(*h.shape[:-1], 4 * heads * size)
    by_x = x @ params.w_x
    return add_bias(by_x.astype(wide(by_x.dtype)) + by_h.astype(wide(by_h.dtype)), params.b)


def _stabilised(z: Gates, state: SLSTMState) -> tuple[Array, Array, Array]:
    """m', and i and f divided by what keeps the larger of the two terms at 1."""
    z_i, z_f, _, _ = z
    # Where nothing is stored there is nothing to keep in range, and i alone sets the scale.
    kept = jax.nn.log_sigmoid(z_f) + jnp.where(state.n == 0, -jnp.inf, state.m)
    m = jnp.maximum(z_i, kept)
    return m, jnp.exp(z_i - m), jnp.exp(kept - m)


def _gates(z: Gates, state: SLSTMState) -> dict[str, Array]:
    _, i, f = _stabilised(z, state)
    n = f * state.n + i
    return {"input": i / n, "forget": f * state.n / n, "candidate": tanh(z[2]), "output": sigmoid(z[3])}


def _update(gates: dict[str, Array], z: Gates, state: SLSTMState) -> SLSTMState:
    m, i, f = _stabilised(z, state)
    c, n = f * state.c + i * gates["candidate"], f * state.n + i
    return SLSTMState(c, n, m, sigmoid(z[3]) * c / n)


def slstm(
    hidden_size: int,
    *,
    heads: int = 1,
    forget_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """An sLSTM cell: an LSTM whose input gate is exponential, so that it can outweigh all it has stored before.

    ::

        z  = x W_x + h W_h + b          W_h block-diagonal, a block for each head
        i  = exp(z_i)                   input gate
        f  = σ(z_f)                     forget gate
        g  = tanh(z_g)                  candidate
        o  = σ(z_o)                     output gate
        c' = f ∘ c + i ∘ g
        n' = f ∘ n + i                  normaliser: what all candidates in c were weighed by
        h' = o ∘ c' / n'

    c and n would overflow, so they are kept divided by `e^m`, which leaves h as it is::

        m' = max(log f + m, z_i),   i ← exp(z_i − m'),   f ← exp(log f + m − m')

    It is elementwise but for the products, so it is unrolled as fast as an LSTM is. The gates that
    :func:`~lstmjax.gradients.gate_values` shows as ``forget`` and ``input`` are the shares `f n / n'` and `i / n'`,
    which the memory and the candidate have in `c' / n'`: they sum to one.

    Args:
        hidden_size: H, the number of hidden units.
        heads: K, which divides H. A unit reads h of its own head alone.
        forget_bias: the forget gate's initial bias, default 1.0; all other biases start at 0.
        w_x_init: draws ``[I, 4H]``.
        w_h_init: draws ``[K, D, 4D]`` with `D = H/K`; default orthogonal, each head and gate by itself.
        b_init: draws ``[4H]``, in place of ``forget_bias``; see :func:`lstmjax.init.chrono`.

    Returns:
        A :class:`Cell` over :class:`SLSTMParams` and :class:`SLSTMState`, each leaf ``[*B, H]``. Its step raises
        ValueError where x, state and params disagree in shape, and TypeError where x is not floating.

    Raises:
        ValueError: hidden_size or heads is not a positive whole number, heads does not divide hidden_size, or both
            forget_bias and b_init are given.

    Source: Beck et al. (2024), xLSTM, with the sigmoid of its two forget gates; the convolution before the cell and the
    norm over heads after it belong to the block, not to the cell.

    >>> cell = slstm(4, heads=2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> params.w_h.shape, cell.step(params, cell.initial_state((5,)), jnp.ones((5, 3)))[1].shape
    ((2, 2, 8), (5, 4))
    """
    size, count = whole_number("hidden_size", hidden_size), whole_number("heads", heads)
    if size % count:
        raise ValueError(f"heads is {count}; wanted a number that divides hidden_size, {size}")
    head = size // count
    parts = (
        ("w_x", w_x_init, (None, 4 * size)),
        ("w_h", w_h_init or Partial(_orthogonal_heads), (count, head, 4 * head)),
        ("b", forget_bias_init(forget_bias, b_init), (4 * size,)),
    )
    return make_cell(SLSTMParams, SLSTMState, size, parts, Recurrence(_pre, Gated(_gates, _update), keeps="forget"))


def _orthogonal_heads(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    draw = initializers.per_gate(initializers.orthogonal(), 4)
    return jnp.stack([draw(k, shape[1:], dtype) for k in jax.random.split(key, shape[0])])
