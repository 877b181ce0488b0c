"""Cells whose gates read the input alone, so that the state meets no weight: minGRU and minLSTM."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import Cell, Gated, Gates, Recurrence, add_bias
from lstmjax.cells.build import keep_bias_init, make_cell, mix
from lstmjax.cells.gru import GRUState
from lstmjax.checks import whole_number
from lstmjax.gates import sigmoid
from lstmjax.typing import Initializer


class MinimalParams(NamedTuple):
    """The weights of a minGRU, two gates in the order z, n, or of a minLSTM, three in the order i, f, n.

    Attributes:
        w_x: ``[I, k·H]`` input weights.
        b: ``[k·H]`` biases.
    """

    w_x: Array
    b: Array


def min_gru(
    hidden_size: int,
    *,
    update_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    b_init: Initializer | None = None,
) -> Cell:
    """The minGRU: a GRU that reads no state, linear in h.

    ::

        z  = σ(x W_xz + b_z)          update gate: the percentage of h to keep; the paper's z is 1 − z
        n  = x W_xn + b_n             candidate, linear
        h' = z ∘ h + (1 − z) ∘ n

    Here it is unrolled step by step as every cell is, not by the paper's parallel scan, nor in its logarithms, for
    which the paper makes n positive.

    Args:
        hidden_size: H, the number of hidden units.
        update_bias: the update gate's initial bias, default 0; the other is 0.
        w_x_init: draws ``[I, 2H]``, the gates in the order z, n.
        b_init: draws ``[2H]``, in place of ``update_bias``; for chrono ``init.chrono(T, keeps=0, enters=None,
            gates=2)``.

    Returns:
        A :class:`Cell` over :class:`MinimalParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both update_bias and b_init are given.

    Source: Feng et al. (2024).

    >>> min_gru(4).init(jax.random.key(0), 2).w_x.shape
    (2, 8)
    """
    size = whole_number("hidden_size", hidden_size)
    b_init = keep_bias_init(b_init, gates=2, update_bias=update_bias)
    parts = (("w_x", w_x_init, (None, 2 * size)), ("b", b_init, (2 * size,)))
    step = Recurrence(_pre, Gated(_gru_names, _min_gru), keeps="update")
    return make_cell(MinimalParams, GRUState, size, parts, step)


def min_lstm(
    hidden_size: int,
    *,
    forget_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    b_init: Initializer | None = None,
) -> Cell:
    """The minLSTM: an LSTM that reads no state and whose two gates are made to sum to one, linear in h.

    ::

        i  = σ(x W_xi + b_i)                       input gate
        f  = σ(x W_xf + b_f)                       forget gate
        n  = x W_xn + b_n                          candidate, linear
        h' = f/(f + i) ∘ h + i/(f + i) ∘ n

    What a unit keeps is `f/(f + i)`, and that is what ``gate_values`` calls "forget"; "input" is 1 less that. It is
    computed as `σ(ln f − ln i)`, which stays a number where both gates are shut. Here the cell is unrolled step by
    step, not by the paper's parallel scan.

    Args:
        hidden_size: H, the number of hidden units.
        forget_bias: the forget gate's initial bias, default 0; all other biases start at 0.
        w_x_init: draws ``[I, 3H]``, the gates in the order i, f, n.
        b_init: draws ``[3H]``, in place of ``forget_bias``; for chrono ``init.chrono(T, gates=3)``, by whose biases
            `f + i = 1`.

    Returns:
        A :class:`Cell` over :class:`MinimalParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both forget_bias and b_init are given.

    Source: Feng et al. (2024).

    >>> min_lstm(4, forget_bias=1.0).init(jax.random.key(0), 2).b[4:8].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    size = whole_number("hidden_size", hidden_size)
    b_init = keep_bias_init(b_init, gate=1, gates=3, forget_bias=forget_bias)
    parts = (("w_x", w_x_init, (None, 3 * size)), ("b", b_init, (3 * size,)))
    step = Recurrence(_pre, Gated(_lstm_names, _min_lstm), keeps="forget")
    return make_cell(MinimalParams, GRUState, size, parts, step)


def _pre(params: MinimalParams, x: Array, h: Array) -> Array:
    del h
    return add_bias(x @ params.w_x, params.b)


def _min_gru(gates: dict[str, Array], z: Gates, state: GRUState) -> GRUState:
    return GRUState(mix(z[0], state.h, gates["candidate"]))


def _gru_names(z: Gates, state: Any) -> dict[str, Array]:
    del state
    return {"update": sigmoid(z[0]), "candidate": z[1]}


def _min_lstm(gates: dict[str, Array], z: Gates, state: GRUState) -> GRUState:
    return GRUState(mix(_odds(z), state.h, gates["candidate"]))


def _lstm_names(z: Gates, state: Any) -> dict[str, Array]:
    del state
    return {"input": sigmoid(-_odds(z)), "forget": sigmoid(_odds(z)), "candidate": z[2]}


def _odds(z: Gates) -> Array:
    """ln f − ln i."""
    return jax.nn.softplus(-z[0]) - jax.nn.softplus(-z[1])
