"""The gated recurrent unit, in the form cuDNN, PyTorch and Flax share (the reset gate acts after the product)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lstmjax import init as initializers
from lstmjax.cells.base import (
    Cell,
    Recurrence,
    check_activations,
    check_hidden_size,
    check_step,
    from_h,
    from_x,
    like,
    working,
    zeros_state,
)
from lstmjax.gates import Activation, split_gates
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


def gru_step(
    params: GRUParams,
    state: GRUState,
    x: Any,
    *,
    gate_activation: Activation = jax.nn.sigmoid,
    activation: Activation = jnp.tanh,
) -> tuple[GRUState, Float[Array, "*B H"]]:
    """One step of the GRU.

    ::

        r  = σ(x W_xr + h W_hr + b_r)                  reset gate
        z  = σ(x W_xz + h W_hz + b_z)                  update gate: the percentage of h to keep
        n  = tanh(x W_xn + b_n' + r ∘ (h W_hn + b_n))  candidate
        h' = (1 − z) ∘ n + z ∘ h

    Args:
        params: weights, see :class:`GRUParams`; b_n' above is the last third of ``b``.
        state: h, ``[*B, H]``.
        x: ``[*B, I]`` input, floating.
        gate_activation: elementwise, in place of σ in both gates.
        activation: elementwise, in place of tanh.

    Returns:
        The new state, in the dtype of the old one, and the output, which is the new h.

    Raises:
        ValueError: x, state and params disagree in shape.
        TypeError: x is not floating, or params are no cell's.

    Source: Cho et al. (2014), with the reset gate after the product.

    >>> params = GRUParams(jnp.ones((1, 3)), jnp.ones((1, 3)), jnp.zeros(3), jnp.zeros(1))
    >>> state, y = gru_step(params, GRUState(jnp.array([1.0])), jnp.array([1.0]))
    >>> round(float(y[0]), 4)
    0.9946
    """
    check_step(GRUParams, 3, params, state.h, x)
    by_x, before = working(x.astype(params.w_x.dtype) @ params.w_x + params.b, state.h)
    by_h, _ = working(state.h.astype(params.w_h.dtype) @ params.w_h, state.h)
    x_r, x_z, x_n = split_gates(by_x, 3)
    h_r, h_z, h_n = split_gates(by_h, 3)
    r = gate_activation(x_r + h_r)
    z = gate_activation(x_z + h_z)
    n = activation(x_n + r * (h_n + params.b_n.astype(h_n.dtype)))
    new = like(state, (1 - z) * n + z * before)
    return new, new.h


class GRUWeights(NamedTuple):
    """Weights of a GRU for the fast unroll, whose z is ``[*B, 4H]``: r, z, the candidate's part of x and its part of h.

    Attributes:
        w_x: ``[I, 3H]``.
        w_h: ``[H, 3H]``.
        b: ``[4H]``.
        w_h_t: ``[3H, H]``, for the way back.
    """

    w_x: Array
    w_h: Array
    b: Array
    w_h_t: Array


def _pack(params: GRUParams) -> GRUWeights:
    return GRUWeights(params.w_x, params.w_h, jnp.concatenate([params.b, params.b_n]), params.w_h.T)


def _join(by_x: Array, by_h: Array) -> Array:
    """z from what x and what h contribute, ``[*B, 3H]`` each; the candidate's two parts stay apart."""
    size = by_x.shape[-1] // 3
    gates = by_x[..., : 2 * size] + by_h[..., : 2 * size]
    return jnp.concatenate([gates, by_x[..., 2 * size :], by_h[..., 2 * size :]], axis=-1)


def _pre(weights: GRUWeights, x: Array, h: Array) -> Array:
    dtype = weights.w_x.dtype
    return _join(x.astype(dtype) @ weights.w_x, h.astype(dtype) @ weights.w_h) + weights.b


def _from_x(weights: GRUWeights, dx: Array) -> Array:
    return _padded(from_x(weights, dx), weights.w_h.shape[0])


def _from_h(weights: GRUWeights, dh: Array) -> Array:
    size = weights.w_h.shape[0]
    by_h = from_h(weights, dh)
    return jnp.concatenate([_padded(by_h[..., : 2 * size], size), by_h[..., 2 * size :]], axis=-1)


def _padded(part: Array, size: int) -> Array:
    # A pad is linear; a block of zeros beside it would be kept for the backward pass like any other number.
    return jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, size)])


def _gates(z: Array) -> tuple[Array, Array, Array, Array]:
    z_r, z_z, z_x, z_h = split_gates(z, 4)
    r, keep = jax.nn.sigmoid(z_r), jax.nn.sigmoid(z_z)
    return r, keep, jnp.tanh(z_x + r * z_h), z_h


def _activate(z: Array, state: GRUState) -> GRUState:
    z, h = working(z, state.h)
    _, keep, n, _ = _gates(z)
    return like(state, (1 - keep) * n + keep * h)


def _linearise(z: Array, state: GRUState) -> tuple[GRUState, tuple[Array, Array]]:
    """The new state, and the derivatives of h' by z and by h.

    With k_n = (1−z)(1−n²):  k = [k_n r(1−r) z_h, z(1−z)(h − n), k_n, k_n r],   z
    """
    z, h = working(z, state.h)
    r, keep, n, z_h = _gates(z)
    k_n = (1 - keep) * (1 - n * n)
    k = jnp.concatenate([k_n * r * (1 - r) * z_h, keep * (1 - keep) * (h - n), k_n, k_n * r], axis=-1)
    return like(state, (1 - keep) * n + keep * h), (k, keep)


def _tangent(coefficients: tuple[Array, Array], dz: Array, dstate: GRUState) -> GRUState:
    """dh' = k · dz + z dh, the first a sum over the four parts of z."""
    k, keep = coefficients
    by_r, by_z, by_x, by_h = split_gates(k * dz.astype(k.dtype), 4)
    return like(dstate, (by_r + by_z + by_x + by_h) + keep * dstate.h.astype(k.dtype))


RECURRENCE = Recurrence(gru_step, _pack, _pre, _from_x, _from_h, _activate, _linearise, _tangent)


@functools.cache
def _with_activations(gate_activation: Activation, activation: Activation) -> tuple[Callable, Recurrence | None]:
    """The step and the recurrence, as for the LSTM."""
    if (gate_activation, activation) == (jax.nn.sigmoid, jnp.tanh):
        return gru_step, RECURRENCE
    return functools.partial(gru_step, gate_activation=gate_activation, activation=activation), None


def gru(
    hidden_size: int,
    *,
    gate_activation: Activation = jax.nn.sigmoid,
    activation: Activation = jnp.tanh,
    w_x_init: Initializer = jax.nn.initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer = jax.nn.initializers.zeros,
) -> Cell:
    """A GRU cell.

    Args:
        hidden_size: H, the number of hidden units.
        gate_activation: elementwise, in place of σ in both gates. With it or ``activation`` other than the defaults
            the cell has no fused recurrence.
        activation: elementwise, in place of tanh.
        w_x_init: draws ``[I, 3H]``.
        w_h_init: draws ``[H, 3H]``; orthogonal, each gate by itself, unless told.
        b_init: draws ``[3H]``, and ``[H]`` for the candidate's recurrent bias.

    Returns:
        A :class:`Cell` over :class:`GRUParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number.
        TypeError: an activation cannot be called.

    >>> gru(hidden_size=4).init(jax.random.key(0), 2).w_h.shape
    (4, 12)
    """
    check_hidden_size(hidden_size)
    check_activations(gate_activation=gate_activation, activation=activation)
    w_h_init = w_h_init or initializers.per_gate(initializers.orthogonal(), 3)

    def init(key: Key, input_size: int, dtype=jnp.float32) -> GRUParams:
        k_x, k_h, k_b, k_n = jax.random.split(key, 4)
        return GRUParams(
            w_x=w_x_init(k_x, (input_size, 3 * hidden_size), dtype),
            w_h=w_h_init(k_h, (hidden_size, 3 * hidden_size), dtype),
            b=b_init(k_b, (3 * hidden_size,), dtype),
            b_n=b_init(k_n, (hidden_size,), dtype),
        )

    return Cell(init, zeros_state(GRUState, 1, hidden_size), *_with_activations(gate_activation, activation))
