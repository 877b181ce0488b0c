"""The long short-term memory cell."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
    pack,
    pre,
    working,
    zeros_state,
)
from lstmjax.gates import (
    Activation,
    candidate,
    emit_hidden_state,
    forget_gate,
    input_gate,
    output_gate,
    pre_activation,
    split_gates,
    update_cell_state,
)
from lstmjax.typing import Initializer, Key


class LSTMParams(NamedTuple):
    """The weights of an LSTM, four gates side by side in the order i, f, g, o.

    Attributes:
        w_x: ``[I, 4H]`` input weights.
        w_h: ``[H, 4H]`` recurrent weights.
        b: ``[4H]`` biases; the forget bias is in here, at ``b[H:2H]``, and nowhere else.
    """

    w_x: Array
    w_h: Array
    b: Array


class LSTMState(NamedTuple):
    """The two memories of an LSTM, ordered ``(c, h)`` as a Flax carry.

    Attributes:
        c: ``[*B, H]`` cell state, the long-term memory.
        h: ``[*B, H]`` hidden state, the short-term memory and the output.
    """

    c: Array
    h: Array


def lstm_step(
    params: LSTMParams,
    state: LSTMState,
    x: Any,
    *,
    gate_activation: Activation = jax.nn.sigmoid,
    activation: Activation = jnp.tanh,
) -> tuple[LSTMState, Float[Array, "*B H"]]:
    """One step of the LSTM: every gate reads x and h, then c' = f ∘ c + i ∘ g and h' = o ∘ tanh(c').

    Args:
        params: weights, see :class:`LSTMParams`.
        state: c and h, each ``[*B, H]``.
        x: ``[*B, I]`` input, floating.
        gate_activation: elementwise, in place of σ in the three gates.
        activation: elementwise, in place of tanh, for the candidate and for the way out of the cell state.

    Returns:
        The new state, in the dtype of the old one, and the output, which is the new h.

    Raises:
        ValueError: x, state and params disagree in shape.
        TypeError: x is not floating, or params are no cell's.

    Source: :mod:`lstmjax.gates`, where each equation stands.

    >>> params = LSTMParams(jnp.ones((1, 4)), jnp.ones((1, 4)), jnp.zeros(4))
    >>> state, y = lstm_step(params, LSTMState(c=jnp.array([2.0]), h=jnp.array([1.0])), jnp.array([1.0]))
    >>> round(float(state.c[0]), 4), round(float(y[0]), 4)
    (2.6107, 0.8713)
    """
    check_step(LSTMParams, 4, params, state.h, x)
    z, c_before = working(pre_activation(*params, x=x, h=state.h), state.c)
    z_i, z_f, z_g, z_o = split_gates(z, 4)
    f, i = forget_gate(z_f, gate_activation), input_gate(z_i, gate_activation)
    c = update_cell_state(f, c_before, i, candidate(z_g, activation))
    new = like(state, c, emit_hidden_state(output_gate(z_o, gate_activation), c, activation))
    return new, new.h


def _activations(z: Array) -> Array:
    """i, f, g, o side by side, from one tanh over all of z, by σ(z) = (1 + tanh(z/2))/2.

    Four passes over four slices are not vectorised by XLA on CPU, and slower by far.
    """
    slope = _each_gate(0.5, 0.5, 1.0, 0.5, like=z)
    return jnp.tanh(z * slope) * slope + (1 - slope)


def _each_gate(i: float, f: float, g: float, o: float, like: Array) -> np.ndarray:
    """A constant ``[4H]`` with a value for each gate."""
    return np.repeat(np.array([i, f, g, o], like.dtype), like.shape[-1] // 4)


def _activate(z: Array, state: LSTMState) -> LSTMState:
    z, c = working(z, state.c)
    i, f, g, o = split_gates(_activations(z), 4)
    c = update_cell_state(f, c, i, g)
    return like(state, c, emit_hidden_state(o, c))


def _linearise(z: Array, state: LSTMState) -> tuple[LSTMState, tuple[Array, Array, Array]]:
    """The new state, and the derivatives of c' by z and c, and of h' by z_o and c'.

    k = [i(1−i) g, f(1−f) c, (1−g)(1+g) i, o(1−o) tanh c'],   f,   o (1 − tanh² c')
    """
    z, c_before = working(z, state.c)
    a = _activations(z)
    i, f, g, o = split_gates(a, 4)
    c = update_cell_state(f, c_before, i, g)
    tanh_c = jnp.tanh(c)
    # σ' = (1 − σ)(σ + 0) and tanh' = (1 − tanh)(tanh + 1), in one pass over all four gates.
    k = (1 - a) * (a + _each_gate(0.0, 0.0, 1.0, 0.0, like=z)) * jnp.concatenate([g, c_before, i, tanh_c], axis=-1)
    return like(state, c, o * tanh_c), (k, f, o * (1 - tanh_c * tanh_c))


def _tangent(coefficients: tuple[Array, Array, Array], dz: Array, dstate: LSTMState) -> LSTMState:
    """dc' = f dc + k_i dz_i + k_f dz_f + k_g dz_g;   dh' = k_o dz_o + o (1 − tanh² c') dc'."""
    k, f, k_c = coefficients
    by_i, by_f, by_g, by_o = split_gates(k * dz.astype(k.dtype), 4)
    dc = f * dstate.c.astype(k.dtype) + (by_i + by_f + by_g)
    return like(dstate, dc, by_o + k_c * dc)


RECURRENCE = Recurrence(lstm_step, pack, pre, from_x, from_h, _activate, _linearise, _tangent)


@functools.cache
def _with_activations(gate_activation: Activation, activation: Activation) -> tuple[Callable, Recurrence | None]:
    """The step and the recurrence; one object for each pair, so that equal cells share a compiled unroll.

    The recurrence is written for σ and tanh; with others the cell is unrolled by its step.
    """
    if (gate_activation, activation) == (jax.nn.sigmoid, jnp.tanh):
        return lstm_step, RECURRENCE
    return functools.partial(lstm_step, gate_activation=gate_activation, activation=activation), None


def lstm(
    hidden_size: int,
    *,
    forget_bias: float | None = None,
    gate_activation: Activation = jax.nn.sigmoid,
    activation: Activation = jnp.tanh,
    w_x_init: Initializer = jax.nn.initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """An LSTM cell.

    Args:
        hidden_size: H, the number of hidden units.
        forget_bias: the forget gate's initial bias, 1.0 unless told; all other biases start at 0.
        gate_activation: elementwise, in place of σ in the three gates. With it or ``activation`` other than the
            defaults the cell has no fused recurrence.
        activation: elementwise, in place of tanh.
        w_x_init: draws ``[I, 4H]``.
        w_h_init: draws ``[H, 4H]``; orthogonal, each gate by itself, unless told.
        b_init: draws ``[4H]``, in place of ``forget_bias``; see :func:`lstmjax.init.chrono`.

    Returns:
        A :class:`Cell` over :class:`LSTMParams` and :class:`LSTMState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both forget_bias and b_init are given.
        TypeError: an activation cannot be called.

    >>> cell = lstm(hidden_size=3)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> params.w_x.shape, params.b.tolist()
    ((2, 12), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    """
    check_hidden_size(hidden_size)
    check_activations(gate_activation=gate_activation, activation=activation)
    if forget_bias is not None and b_init is not None:
        raise ValueError("forget_bias and b_init both set the biases; give one of them")
    w_h_init = w_h_init or initializers.per_gate(initializers.orthogonal(), 4)
    b_init = b_init or initializers.forget_bias(1.0 if forget_bias is None else forget_bias)

    def init(key: Key, input_size: int, dtype=jnp.float32) -> LSTMParams:
        k_x, k_h, k_b = jax.random.split(key, 3)
        return LSTMParams(
            w_x=w_x_init(k_x, (input_size, 4 * hidden_size), dtype),
            w_h=w_h_init(k_h, (hidden_size, 4 * hidden_size), dtype),
            b=b_init(k_b, (4 * hidden_size,), dtype),
        )

    return Cell(init, zeros_state(LSTMState, 2, hidden_size), *_with_activations(gate_activation, activation))
