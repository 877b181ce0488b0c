"""The projected LSTM, whose hidden state is a projection of the unit's output to fewer numbers."""

from typing import Any, NamedTuple

from jaxtyping import Array, Float

from lstmjax import init as initializers
from lstmjax.cells.base import Cell
from lstmjax.cells.build import check_input, check_kind, draw_params, forget_bias_init, zeros_state
from lstmjax.cells.lstm import LSTMState, recurrence
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.typing import Initializer


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
    """One step of the projected LSTM: `c' = f ∘ c + i ∘ g` and `h' = (o ∘ tanh(c')) W_p`.

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

    >>> import jax.numpy as jnp
    >>> params = ProjectedLSTMParams(jnp.ones((1, 8)), jnp.ones((1, 8)), jnp.zeros(8), jnp.array([[1.0], [-0.5]]))
    >>> state, y = projected_lstm_step(params, LSTMState(c=jnp.array([2.0, 2.0]), h=jnp.array([1.0])), jnp.array([1.0]))
    >>> round(float(state.c[0]), 4), round(float(y[0]), 4)
    (2.6107, 0.4357)
    """
    return RECURRENCE(params, state, x)


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


def _project(params: ProjectedLSTMParams, m: Float[Array, "*B H"]) -> Float[Array, "*B P"]:
    return m @ params.w_p


RECURRENCE = recurrence(project=_project, check=_check_step)


def projected_lstm(
    hidden_size: int,
    projection_size: int,
    *,
    forget_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    w_p_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """A projected LSTM cell: a cell state of H numbers that costs recurrent weights for P.

    Args:
        hidden_size: H, the number of hidden units.
        projection_size: P, the size of the hidden state and the output.
        forget_bias: the forget gate's initial bias, default 1.0; all other biases start at 0.
        w_x_init: draws ``[I, 4H]``.
        w_h_init: draws ``[P, 4H]``; default orthogonal, each gate by itself.
        w_p_init: draws ``[H, P]``; default orthogonal.
        b_init: draws ``[4H]``, in place of ``forget_bias``; see :func:`lstmjax.init.chrono`.

    Returns:
        A :class:`Cell` over :class:`ProjectedLSTMParams` and :class:`LSTMState`, whose c is ``[*B, H]`` and whose h
        is ``[*B, P]``.

    Raises:
        ValueError: a size is not a positive whole number, or both forget_bias and b_init are given.

    >>> import jax
    >>> cell = projected_lstm(hidden_size=8, projection_size=3)
    >>> params = cell.init(jax.random.key(0), 2)
    >>> params.w_h.shape, params.w_p.shape, cell.initial_state((5,)).h.shape
    ((3, 32), (8, 3), (5, 3))
    """
    size, projected = (
        whole_number(n, v) for n, v in (("hidden_size", hidden_size), ("projection_size", projection_size))
    )
    parts = (
        ("w_x", w_x_init, (None, 4 * size)),
        ("w_h", w_h_init or initializers.per_gate(initializers.orthogonal(), 4), (projected, 4 * size)),
        ("b", forget_bias_init(forget_bias, b_init), (4 * size,)),
        ("w_p", w_p_init or initializers.orthogonal(), (size, projected)),
    )
    return Cell(
        init=Partial(draw_params, kind=ProjectedLSTMParams, parts=parts),
        initial_state=Partial(zeros_state, kind=LSTMState, sizes=(size, projected)),
        step=RECURRENCE,
    )
