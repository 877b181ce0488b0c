"""The multiplicative LSTM, whose recurrent weights depend on the input."""

import dataclasses
from typing import NamedTuple

from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import Cell
from lstmjax.cells.build import forget_bias_init, gated_parts, make_cell
from lstmjax.cells.lstm import LSTMState, recurrence
from lstmjax.checks import whole_number
from lstmjax.gates import pre_activation
from lstmjax.typing import Initializer


class MultiplicativeLSTMParams(NamedTuple):
    """The weights of a multiplicative LSTM, four gates side by side in the order i, f, g, o.

    Attributes:
        w_x: ``[I, 4H]`` input weights.
        w_h: ``[H, 4H]`` recurrent weights, by which the gates read m.
        b: ``[4H]`` biases.
        w_mx: ``[I, H]`` by which m reads x.
        w_mh: ``[H, H]`` by which m reads h.
    """

    w_x: Array
    w_h: Array
    b: Array
    w_mx: Array
    w_mh: Array


def _pre(params: MultiplicativeLSTMParams, x: Array, h: Array) -> Array:
    return pre_activation(params.w_x, params.w_h, params.b, x, (x @ params.w_mx) * (h @ params.w_mh))


def multiplicative_lstm(
    hidden_size: int,
    *,
    forget_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
    w_mx_init: Initializer = initializers.lecun_normal(),
    w_mh_init: Initializer | None = None,
) -> Cell:
    """A multiplicative LSTM cell: an LSTM that reads m in place of h, which x and h have made together.

    ::

        m  = (x W_mx) ∘ (h W_mh)
        i  = σ(x W_xi + m W_hi + b_i)       input gate
        f  = σ(x W_xf + m W_hf + b_f)       forget gate
        g  = tanh(x W_xg + m W_hg + b_g)    candidate
        o  = σ(x W_xo + m W_ho + b_o)       output gate
        c' = f ∘ c + i ∘ g
        h' = o ∘ tanh(c')

    For a given x the gates are affine in h, but the slope depends on x. So the products of a step do not fit the form
    that is unrolled fast, and the cell is unrolled by a plain scan.

    Args:
        hidden_size: H, the number of hidden units, and of m.
        forget_bias: the forget gate's initial bias, default 1.0; all other biases start at 0.
        w_x_init: draws ``[I, 4H]``.
        w_h_init: draws ``[H, 4H]``; default orthogonal, each gate by itself.
        b_init: draws ``[4H]``, in place of ``forget_bias``; see :func:`lstmjax.init.chrono`.
        w_mx_init: draws ``[I, H]``.
        w_mh_init: draws ``[H, H]``; default orthogonal.

    Returns:
        A :class:`Cell` over :class:`MultiplicativeLSTMParams` and :class:`LSTMState`, c and h ``[*B, H]``. Its step
        raises ValueError where x, state and params disagree in shape, and TypeError where x is not floating.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both forget_bias and b_init are given.

    Source: Krause, Lu, Murray & Renals (2016).

    >>> import jax, jax.numpy as jnp
    >>> cell = multiplicative_lstm(2)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> cell.step(params, cell.initial_state((5,)), jnp.ones((5, 3)))[1].shape
    (5, 2)
    """
    size = whole_number("hidden_size", hidden_size)
    parts = (
        *gated_parts(size, 4, w_x_init, w_h_init, forget_bias_init(forget_bias, b_init)),
        ("w_mx", w_mx_init, (None, size)),
        ("w_mh", w_mh_init or initializers.orthogonal(), (size, size)),
    )
    step = dataclasses.replace(recurrence(), pre=_pre, check=None)
    return make_cell(MultiplicativeLSTMParams, LSTMState, size, parts, step)
