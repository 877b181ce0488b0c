"""The independently recurrent network, each unit of which sees of the state itself alone."""

from typing import NamedTuple

from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import Cell, Gates, Recurrence, add_bias
from lstmjax.cells.build import check_activations, make_cell, relu
from lstmjax.cells.rnn import RNNState
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.gates import Activation
from lstmjax.typing import Initializer


class IndRNNParams(NamedTuple):
    """The weights of an IndRNN.

    Attributes:
        w_x: ``[I, H]`` input weights.
        w_h: ``[H]`` recurrent weights, one a unit; the paper's u.
        b: ``[H]`` biases.
    """

    w_x: Array
    w_h: Array
    b: Array


def ind_rnn(
    hidden_size: int,
    *,
    activation: Activation = relu,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer = initializers.zeros,
) -> Cell:
    """The independently recurrent network: `h' = φ(x W_x + w_h ∘ h + b)`.

    A unit's gradient over T steps is a power, `φ'^T w_h^T`, which a bound on ``w_h`` bounds. The paper draws from `U[0,
    1]` and keeps `abs(w_h) ≤ 2^(1/T)` while it trains. Where the last step alone is read, it draws the last layer's
    close to 1: ``w_h_init=init.uniform(0.5 ** (1 / T), 2 ** (1 / T))``, say.

    Args:
        hidden_size: H, the number of hidden units.
        activation: φ, elementwise.
        w_x_init: draws ``[I, H]``.
        w_h_init: draws ``[H]``; default `U[0, 1)`.
        b_init: draws ``[H]``.

    Returns:
        A :class:`Cell` over :class:`IndRNNParams` and :class:`RNNState`.

    Raises:
        ValueError: hidden_size is not a positive whole number.
        TypeError: activation cannot be called.

    Source: Li, Li, Cook, Zhu & Gao (2018).

    >>> import jax
    >>> ind_rnn(4).init(jax.random.key(0), 2).w_h.shape
    (4,)
    """
    size = whole_number("hidden_size", hidden_size)
    check_activations(activation=activation)
    parts = (
        ("w_x", w_x_init, (None, size)),
        ("w_h", w_h_init or initializers.uniform(0.0, 1.0), (size,)),
        ("b", b_init, (size,)),
    )
    return make_cell(IndRNNParams, RNNState, size, parts, Recurrence(_pre, Partial(_activate, activation=activation)))


def _pre(params: IndRNNParams, x: Array, h: Array) -> tuple[Array, Array]:
    del h  # w_h meets it elementwise, and so is handed on as one more gate
    return add_bias(x @ params.w_x, params.b), params.w_h


def _activate(z: Gates, state: RNNState, *, activation: Activation) -> RNNState:
    return RNNState(activation(z[0] + z[1] * state.h))
