"""The vanilla recurrent network, of Elman (1990), whose gradient is the product that vanishes or explodes."""

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
    pack,
    pre,
    working,
    zeros_state,
)
from lstmjax.gates import Activation, pre_activation
from lstmjax.typing import Initializer, Key


class RNNParams(NamedTuple):
    """The weights of a vanilla RNN.

    Attributes:
        w_x: ``[I, H]`` input weights.
        w_h: ``[H, H]`` recurrent weights.
        b: ``[H]`` biases.
    """

    w_x: Array
    w_h: Array
    b: Array


class RNNState(NamedTuple):
    """The one memory of a vanilla RNN.

    Attributes:
        h: ``[*B, H]`` hidden state.
    """

    h: Array


def rnn_step(
    params: RNNParams, state: RNNState, x: Any, *, activation: Activation = jnp.tanh
) -> tuple[RNNState, Float[Array, "*B H"]]:
    """One step of the vanilla RNN: h' = φ(x W_x + h W_h + b).

    Args:
        params: weights, see :class:`RNNParams`.
        state: h, ``[*B, H]``.
        x: ``[*B, I]`` input, floating.
        activation: φ, elementwise.

    Returns:
        The new state, in the dtype of the old one, and the output, which is the new h.

    Raises:
        ValueError: x, state and params disagree in shape.
        TypeError: x is not floating, or params are no cell's.

    >>> params = RNNParams(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.zeros(1))
    >>> round(float(rnn_step(params, RNNState(jnp.array([1.0])), jnp.array([1.0]))[1][0]), 4)
    0.964
    """
    check_step(RNNParams, 1, params, state.h, x)
    z, _ = working(pre_activation(*params, x=x, h=state.h), state.h)
    new = like(state, activation(z))
    return new, new.h


@functools.cache
def _with_activation(activation: Activation) -> tuple[Callable, Recurrence]:
    """The step and the recurrence, one object for each activation, so that equal cells share a compiled unroll."""

    def activate(z: Array, state: RNNState) -> RNNState:
        z, _ = working(z, state.h)
        return like(state, activation(z))

    def linearise(z: Array, state: RNNState) -> tuple[RNNState, Array]:
        z, _ = working(z, state.h)
        h, slope = jax.jvp(activation, (z,), (jnp.ones_like(z),))
        return like(state, h), slope

    def tangent(slope: Array, dz: Array, dstate: RNNState) -> RNNState:
        return like(dstate, slope * dz.astype(slope.dtype))

    step = functools.partial(rnn_step, activation=activation)
    return step, Recurrence(step, pack, pre, from_x, from_h, activate, linearise, tangent)


def rnn(
    hidden_size: int,
    *,
    activation: Activation = jnp.tanh,
    w_x_init: Initializer = jax.nn.initializers.lecun_normal(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = jax.nn.initializers.zeros,
) -> Cell:
    """A vanilla RNN cell.

    The identity network of Le, Jaitly & Hinton (2015) is ``rnn(H, activation=jax.nn.relu, w_h_init=identity())``,
    with :func:`lstmjax.init.identity`.

    Args:
        hidden_size: H, the number of hidden units.
        activation: φ, an elementwise function such as ``jnp.tanh`` or ``jax.nn.relu``.
        w_x_init: draws ``[I, H]``.
        w_h_init: draws ``[H, H]``.
        b_init: draws ``[H]``.

    Returns:
        A :class:`Cell` over :class:`RNNParams` and :class:`RNNState`.

    Raises:
        ValueError: hidden_size is not a positive whole number.
        TypeError: activation cannot be called.

    >>> rnn(hidden_size=4).init(jax.random.key(0), 2).w_h.shape
    (4, 4)
    """
    check_hidden_size(hidden_size)
    check_activations(activation=activation)

    def init(key: Key, input_size: int, dtype=jnp.float32) -> RNNParams:
        k_x, k_h, k_b = jax.random.split(key, 3)
        return RNNParams(
            w_x=w_x_init(k_x, (input_size, hidden_size), dtype),
            w_h=w_h_init(k_h, (hidden_size, hidden_size), dtype),
            b=b_init(k_b, (hidden_size,), dtype),
        )

    return Cell(init, zeros_state(RNNState, 1, hidden_size), *_with_activation(activation))
