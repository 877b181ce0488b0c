"""The gated recurrent unit, in the form cuDNN, PyTorch and Flax share (the reset gate acts after the product)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lstmjax import init as initializers
from lstmjax.cells.base import Cell, check_hidden_size, check_step, zeros_state
from lstmjax.gates import split_gates
from lstmjax.typing import Initializer, Key


class GRUParams(NamedTuple):
    """The weights of a GRU, three gates side by side in the order r, z, n.

    Attributes:
        w_x: ``[I, 3H]`` input weights.
        w_h: ``[H, 3H]`` recurrent weights.
        b: ``[3H]`` biases.
        b_n: ``[H]`` the candidate's recurrent bias, which the reset gate multiplies and so cannot join ``b``.
    """

    w_x: Array
    w_h: Array
    b: Array
    b_n: Array


class GRUState(NamedTuple):
    """The one memory of a GRU.

    Attributes:
        h: ``[*B, H]`` hidden state.
    """

    h: Array


def gru_step(params: GRUParams, state: GRUState, x: Any) -> tuple[GRUState, Float[Array, "*B H"]]:
    """One step of the GRU.

        r  = σ(x W_xr + h W_hr + b_r)                  reset gate
        z  = σ(x W_xz + h W_hz + b_z)                  update gate: the percentage of h to keep
        n  = tanh(x W_xn + b_n' + r ∘ (h W_hn + b_n))  candidate
        h' = (1 − z) ∘ n + z ∘ h

    Args:
        params: weights, see :class:`GRUParams`; b_n' above is the last third of ``b``.
        state: h, ``[*B, H]``.
        x: ``[*B, I]`` input, floating.

    Returns:
        The new state, in the dtype of the old one, and the output, which is the new h.

    Raises:
        ValueError: x, state and params disagree in shape.
        TypeError: x is not floating.

    Source: Cho et al. (2014), with the reset gate after the product.

    >>> params = GRUParams(jnp.ones((1, 3)), jnp.ones((1, 3)), jnp.zeros(3), jnp.zeros(1))
    >>> state, y = gru_step(params, GRUState(jnp.array([1.0])), jnp.array([1.0]))
    >>> round(float(y[0]), 4)
    0.9946
    """
    check_step(3, params, state.h, x)
    dtype = np.promote_types(params.w_h.dtype, state.h.dtype)
    from_x = (x.astype(params.w_x.dtype) @ params.w_x + params.b).astype(dtype)
    from_h = (state.h.astype(params.w_h.dtype) @ params.w_h).astype(dtype)
    x_r, x_z, x_n = split_gates(from_x, 3)
    h_r, h_z, h_n = split_gates(from_h, 3)
    r = jax.nn.sigmoid(x_r + h_r)
    z = jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * (h_n + params.b_n.astype(dtype)))
    h = (1 - z) * n + z * state.h.astype(dtype)
    new = GRUState(h.astype(state.h.dtype))
    return new, new.h


def gru(
    hidden_size: int,
    *,
    w_x_init: Initializer = jax.nn.initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer = jax.nn.initializers.zeros,
) -> Cell:
    """A GRU cell.

    Args:
        hidden_size: H, the number of hidden units.
        w_x_init: draws ``[I, 3H]``.
        w_h_init: draws ``[H, 3H]``; orthogonal, each gate by itself, unless told.
        b_init: draws ``[3H]``, and ``[H]`` for the candidate's recurrent bias.

    Returns:
        A :class:`Cell` over :class:`GRUParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number.

    >>> gru(hidden_size=4).init(jax.random.key(0), 2).w_h.shape
    (4, 12)
    """
    check_hidden_size(hidden_size)
    w_h_init = w_h_init or initializers.per_gate(initializers.orthogonal(), 3)

    def init(key: Key, input_size: int, dtype=jnp.float32) -> GRUParams:
        k_x, k_h, k_b, k_n = jax.random.split(key, 4)
        return GRUParams(
            w_x=w_x_init(k_x, (input_size, 3 * hidden_size), dtype),
            w_h=w_h_init(k_h, (hidden_size, 3 * hidden_size), dtype),
            b=b_init(k_b, (3 * hidden_size,), dtype),
            b_n=b_init(k_n, (hidden_size,), dtype),
        )

    return Cell(init, zeros_state(GRUState, 1, hidden_size), gru_step)
