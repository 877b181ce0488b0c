"""The vanilla recurrent network, of Elman (1990), whose gradient is the product that vanishes or explodes."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from lstmjax import init as initializers
from lstmjax.cells.base import DENSE, Cell, Gates, Recurrence
from lstmjax.cells.build import check_activations, check_step, gated_parts, make_cell
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.gates import Activation, tanh
from lstmjax.typing import Initializer


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
    params: RNNParams, state: RNNState, x: Any, *, activation: Activation = tanh
) -> tuple[RNNState, Float[Array, "*B H"]]:
    """One step of the vanilla RNN: `h' = φ(x W_x + h W_h + b)`.

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

    >>> import jax.numpy as jnp
    >>> params = RNNParams(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.zeros(1))
    >>> round(float(rnn_step(params, RNNState(jnp.array([1.0])), jnp.array([1.0]))[1][0]), 4)
    0.964
    """
    return _recurrence(activation)(params, state, x)


def _recurrence(activation: Activation) -> Recurrence:
    check = Partial(check_step, kind=RNNParams, gates=1)
    return Recurrence(DENSE, Partial(_activate, activation=activation), check=check)


def _activate(z: Gates, state: RNNState, *, activation: Activation) -> RNNState:
    del state
    return RNNState(activation(z[0]))


def rnn(
    hidden_size: int,
    *,
    activation: Activation = tanh,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = initializers.zeros,
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

    >>> import jax
    >>> rnn(hidden_size=4).init(jax.random.key(0), 2).w_h.shape
    (4, 4)
    """
    size = whole_number("hidden_size", hidden_size)
    check_activations(activation=activation)
    parts = gated_parts(size, 1, w_x_init, w_h_init, b_init)
    return make_cell(RNNParams, RNNState, size, parts, _recurrence(activation))
