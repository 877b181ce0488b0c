"""The long short-term memory cell."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from lstmjax import init as initializers
from lstmjax.cells.base import DENSE, Cell, Gated, Gates, Recurrence
from lstmjax.cells.build import check_activations, check_step, forget_bias_init, gated_parts, make_cell
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.gates import (
    Activation,
    candidate,
    emit_hidden_state,
    forget_gate,
    input_gate,
    output_gate,
    sigmoid,
    tanh,
    update_cell_state,
)
from lstmjax.typing import Initializer


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
    gate_activation: Activation = sigmoid,
    activation: Activation = tanh,
) -> tuple[LSTMState, Float[Array, "*B H"]]:
    """One step of the LSTM: every gate reads x and h, then `c' = f ∘ c + i ∘ g` and `h' = o ∘ tanh(c')`.

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

    >>> import jax.numpy as jnp
    >>> params = LSTMParams(jnp.ones((1, 4)), jnp.ones((1, 4)), jnp.zeros(4))
    >>> state, y = lstm_step(params, LSTMState(c=jnp.array([2.0]), h=jnp.array([1.0])), jnp.array([1.0]))
    >>> round(float(state.c[0]), 4), round(float(y[0]), 4)
    (2.6107, 0.8713)
    """
    return recurrence(gate_activation, activation)(params, state, x)


def recurrence(
    gate_activation: Activation = sigmoid,
    activation: Activation = tanh,
    *,
    project: Callable[[Any, Array], Array] | None = None,
    check: Callable[[Any, Any, Any], None] | None = None,
) -> Recurrence:
    """The LSTM's step in its two parts, for any pair of activations; with a projection and a check of its own."""
    of = {"gate_activation": gate_activation, "activation": activation}
    return Recurrence(
        DENSE, Gated(Partial(_gates, **of), Partial(from_gates, activation=activation)), project=project,
        keeps="forget", check=check or Partial(check_step, kind=LSTMParams, gates=4),
    )  # fmt: skip


def _gates(z: Gates, state: LSTMState, *, gate_activation: Activation, activation: Activation) -> dict[str, Array]:
    del state
    z_i, z_f, z_g, z_o = z
    return {
        "input": input_gate(z_i, gate_activation),
        "forget": forget_gate(z_f, gate_activation),
        "candidate": candidate(z_g, activation),
        "output": output_gate(z_o, gate_activation),
    }


def from_gates(gates: dict[str, Array], z: Gates, state: LSTMState, activation: Activation = tanh) -> LSTMState:
    """`c' = f ∘ c + i ∘ g` and `h' = o ∘ tanh(c')`, of gates by their names."""
    del z
    c = update_cell_state(gates["forget"], state.c, gates["input"], gates["candidate"])
    return LSTMState(c, emit_hidden_state(gates["output"], c, activation))


def lstm(
    hidden_size: int,
    *,
    forget_bias: float | None = None,
    gate_activation: Activation = sigmoid,
    activation: Activation = tanh,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """An LSTM cell.

    Args:
        hidden_size: H, the number of hidden units.
        forget_bias: the forget gate's initial bias, default 1.0; all other biases start at 0.
        gate_activation: elementwise, in place of σ in the three gates.
        activation: elementwise, in place of tanh.
        w_x_init: draws ``[I, 4H]``.
        w_h_init: draws ``[H, 4H]``; default orthogonal, each gate by itself.
        b_init: draws ``[4H]``, in place of ``forget_bias``; see :func:`lstmjax.init.chrono`.

    Returns:
        A :class:`Cell` over :class:`LSTMParams` and :class:`LSTMState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both forget_bias and b_init are given.
        TypeError: an activation cannot be called.

    >>> import jax
    >>> cell = lstm(hidden_size=3)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> params.w_x.shape, params.b.tolist()
    ((2, 12), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    """
    size = whole_number("hidden_size", hidden_size)
    check_activations(gate_activation=gate_activation, activation=activation)
    parts = gated_parts(size, 4, w_x_init, w_h_init, forget_bias_init(forget_bias, b_init))
    return make_cell(LSTMParams, LSTMState, size, parts, recurrence(gate_activation, activation))
