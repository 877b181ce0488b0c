"""The projected LSTM, whose hidden state is a projection of the unit's output to fewer numbers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lstmjax import init as initializers
from lstmjax.cells.base import Cell, check_hidden_size, check_input, check_kind, like, working
from lstmjax.cells.lstm import LSTMState
from lstmjax.gates import (
    candidate,
    emit_hidden_state,
    forget_gate,
    input_gate,
    output_gate,
    pre_activation,
    split_gates,
    update_cell_state,
)
from lstmjax.typing import Initializer, Key, Shape


class ProjectedLSTMParams(NamedTuple):
    """The weights of a projected LSTM, four gates side by side in the order i, f, g, o.

    Attributes:
        w_x: ``[I, 4H]`` input weights.
        w_h: ``[P, 4H]`` recurrent weights.
        b: ``[4H]`` biases; the forget bias is in here, at ``b[H:2H]``, and nowhere else.
        w_p: ``[H, P]`` projection.
    """

    w_x: Array
    w_h: Array
    b: Array
    w_p: Array


def projected_lstm_step(
    params: ProjectedLSTMParams, state: LSTMState, x: Any
) -> tuple[LSTMState, Float[Array, "*B P"]]:
    """One step of the projected LSTM: c' = f ∘ c + i ∘ g and h' = (o ∘ tanh(c')) W_p.

    The gates are those of the LSTM, reading the projected h.

    Args:
        params: weights, see :class:`ProjectedLSTMParams`.
        state: c, ``[*B, H]``, and h, ``[*B, P]``.
        x: ``[*B, I]`` input, floating.

    Returns:
        The new state, in the dtype of the old one, and the output, which is the new h.

    Raises:
        ValueError: x, state and params disagree in shape, or params have no projection.
        TypeError: x is not floating, or params are no cell's.

    Source: Sak, Senior & Beaufays (2014), without peepholes; PyTorch's ``proj_size``.

    >>> params = ProjectedLSTMParams(jnp.ones((1, 8)), jnp.ones((1, 8)), jnp.zeros(8), jnp.array([[1.0], [-0.5]]))
    >>> state, y = projected_lstm_step(params, LSTMState(c=jnp.array([2.0, 2.0]), h=jnp.array([1.0])), jnp.array([1.0]))
    >>> round(float(state.c[0]), 4), round(float(y[0]), 4)
    (2.6107, 0.4357)
    """
    _check_step(params, state, x)
    z, c_before = working(pre_activation(params.w_x, params.w_h, params.b, x=x, h=state.h), state.c)
    z_i, z_f, z_g, z_o = split_gates(z, 4)
    c = update_cell_state(forget_gate(z_f), c_before, input_gate(z_i), candidate(z_g))
    m = emit_hidden_state(output_gate(z_o), c)
    new = like(state, c, m.astype(params.w_p.dtype) @ params.w_p)
    return new, new.h


def _check_step(params: ProjectedLSTMParams, state: LSTMState, x: Any) -> None:
    """Raises, at trace time, where parameters, state and input do not fit one another."""
    check_kind(params, ProjectedLSTMParams)
    w_p = getattr(params, "w_p", None)
    if w_p is None or w_p.ndim != 2:
        given = "nothing" if w_p is None else f"shape {w_p.shape}"
        raise ValueError(f"params.w_p has {given}; wanted [H, P]: are these another cell's parameters?")
    hidden, projection = w_p.shape
    for name, wanted in (("w_h", (projection, 4 * hidden)), ("b", (4 * hidden,))):
        given = getattr(params, name).shape
        if given != wanted:
            raise ValueError(
                f"params.{name} has shape {given}; wanted {wanted}, since params.w_p, [H, P], is {(hidden, projection)}"
            )
    if params.w_x.shape[1:] != (4 * hidden,):
        raise ValueError(f"params.w_x has shape {params.w_x.shape}; wanted [I, 4H] with H = {hidden}")
    check_input(params, x)
    for name, size in (("c", hidden), ("h", projection)):
        given, wanted = getattr(state, name).shape, (*x.shape[:-1], size)
        if given != wanted:
            raise ValueError(
                f"state.{name} has shape {given}; wanted {wanted}, the batch axes of x, and of params H = {hidden} for "
                f"c, P = {projection} for h"
            )


def projected_lstm(
    hidden_size: int,
    projection_size: int,
    *,
    forget_bias: float | None = None,
    w_x_init: Initializer = jax.nn.initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    w_p_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """A projected LSTM cell: a cell state of H numbers that costs recurrent weights for P.

    It has no fused recurrence, so it is unrolled by its step.

    Args:
        hidden_size: H, the number of hidden units.
        projection_size: P, the size of the hidden state and the output.
        forget_bias: the forget gate's initial bias, 1.0 unless told; all other biases start at 0.
        w_x_init: draws ``[I, 4H]``.
        w_h_init: draws ``[P, 4H]``; orthogonal, each gate by itself, unless told.
        w_p_init: draws ``[H, P]``; orthogonal unless told.
        b_init: draws ``[4H]``, in place of ``forget_bias``; see :func:`lstmjax.init.chrono`.

    Returns:
        A :class:`Cell` over :class:`ProjectedLSTMParams` and :class:`LSTMState`, whose c is ``[*B, H]`` and whose h
        is ``[*B, P]``.

    Raises:
        ValueError: a size is not a positive whole number, or both forget_bias and b_init are given.

    >>> cell = projected_lstm(hidden_size=8, projection_size=3)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> params.w_h.shape, params.w_p.shape, cell.initial_state((5,)).h.shape
    ((3, 32), (8, 3), (5, 3))
    """
    check_hidden_size(hidden_size)
    if isinstance(projection_size, bool) or not isinstance(projection_size, int) or projection_size < 1:
        raise ValueError(f"projection_size is {projection_size!r}; wanted a whole number of at least 1")
    if forget_bias is not None and b_init is not None:
        raise ValueError("forget_bias and b_init both set the biases; give one of them")
    w_h_init = w_h_init or initializers.per_gate(initializers.orthogonal(), 4)
    w_p_init = w_p_init or initializers.orthogonal()
    b_init = b_init or initializers.forget_bias(1.0 if forget_bias is None else forget_bias)

    def init(key: Key, input_size: int, dtype=jnp.float32) -> ProjectedLSTMParams:
        k_x, k_h, k_b, k_p = jax.random.split(key, 4)
        return ProjectedLSTMParams(
            w_x=w_x_init(k_x, (input_size, 4 * hidden_size), dtype),
            w_h=w_h_init(k_h, (projection_size, 4 * hidden_size), dtype),
            b=b_init(k_b, (4 * hidden_size,), dtype),
            w_p=w_p_init(k_p, (hidden_size, projection_size), dtype),
        )

    def initial_state(batch_shape: Shape = (), dtype=jnp.float32) -> LSTMState:
        return LSTMState(
            c=jnp.zeros((*batch_shape, hidden_size), dtype), h=jnp.zeros((*batch_shape, projection_size), dtype)
        )

    return Cell(init, initial_state, projected_lstm_step)
