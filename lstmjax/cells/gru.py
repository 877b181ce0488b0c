"""The gated recurrent unit, in the form cuDNN, PyTorch and Flax share (the reset gate acts after the product)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lstmjax import init as initializers
from lstmjax.cells.base import Cell, Gated, Gates, Products, Recurrence, add_bias, from_h, from_x
from lstmjax.cells.build import check_activations, check_step, gated_parts, keep_bias_init, make_cell
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.gates import Activation, sigmoid, tanh
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
    gate_activation: Activation = sigmoid,
    activation: Activation = tanh,
) -> tuple[GRUState, Float[Array, "*B H"]]:
    """One step of the GRU.

    ::

        r  = σ(x W_xr + h W_hr + b_r)                  reset gate
        z  = σ(x W_xz + h W_hz + b_z)                  update gate: the percentage of h to keep
        n  = tanh(x W_xn + b_n' + r ∘ (h W_hn + b_n))  candidate
        h' = (1 − z) ∘ n + z ∘ h

    Args:
        params: weights, see :class:`GRUParams`; `b_n'` above is the last third of ``b``.
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
    return _recurrence(gate_activation, activation)(params, state, x)


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


def _pack(params: Any) -> GRUWeights:
    return GRUWeights(params.w_x, params.w_h, jnp.concatenate([params.b, params.b_n]), params.w_h.T)


def _join(by_x: Array, by_h: Array, size: int) -> Array:
    """z from what x and what h contribute, ``[*B, 3H]`` each; the candidate's two parts stay apart."""
    gates = by_x.shape[-1] - size
    both = by_x[..., :gates] + by_h[..., :gates]
    return jnp.concatenate([both, by_x[..., gates:], by_h[..., gates:]], axis=-1)


def _pre(weights: GRUWeights, x: Array, h: Array) -> Array:
    return add_bias(_join(x @ weights.w_x, h @ weights.w_h, _size(weights)), weights.b)


def _from_x(weights: GRUWeights, dx: Array) -> Array:
    return _padded(from_x(weights, dx), _size(weights))


def _from_h(weights: GRUWeights, dh: Array) -> Array:
    size = _size(weights)
    by_h = from_h(weights, dh)
    gates = by_h.shape[-1] - size
    return jnp.concatenate([_padded(by_h[..., :gates], size), by_h[..., gates:]], axis=-1)


def _size(weights: GRUWeights) -> int:
    """H, or of a layer that is split over devices the units of one: as many as the candidate has second biases."""
    return weights.b.shape[0] - weights.w_h.shape[1]


def _padded(part: Array, size: int) -> Array:
    # A pad is linear; a block of zeros beside it would be kept for the backward pass like any other number.
    return jnp.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, size)])


PRODUCTS = Products(_pre, _pack, _from_x, _from_h)
"""z of any number of gates, the last of which is a candidate whose two parts stay apart."""


def _recurrence(gate_activation: Activation, activation: Activation) -> Recurrence:
    of = {"gate_activation": gate_activation, "activation": activation}
    return Recurrence(
        PRODUCTS, Gated(Partial(_gates, **of), Partial(_update, gate_activation=gate_activation)), keeps="update",
        check=Partial(check_step, kind=GRUParams, gates=3),
    )  # fmt: skip


def _gates(z: Gates, state: GRUState, *, gate_activation: Activation, activation: Activation) -> dict[str, Array]:
    del state
    z_r, z_z, z_x, z_h = z
    reset = gate_activation(z_r)
    return {"reset": reset, "update": gate_activation(z_z), "candidate": activation(z_x + reset * z_h)}


def _update(gates: dict[str, Array], z: Gates, state: GRUState, *, gate_activation: Activation) -> GRUState:
    keep = gates["update"]
    # 1 − σ(z) = σ(−z), which keeps its digits where nearly all is kept.
    renew = sigmoid(-z[1]) if gate_activation is sigmoid else 1 - keep
    return GRUState(renew * gates["candidate"] + keep * state.h)


def last_block(key: Key, shape: tuple[int, ...], dtype: Any, *, b_init: Initializer, gates: int) -> Array:
    """A candidate's second bias ``[H]``, of an initialiser that draws the biases of all gates, ``[gates·H]``."""
    return b_init(key, (gates * shape[-1],), dtype)[-shape[-1] :]


def gru(
    hidden_size: int,
    *,
    update_bias: float | None = None,
    gate_activation: Activation = sigmoid,
    activation: Activation = tanh,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """A GRU cell.

    An update gate that begins at one half forgets half of its state a step. Where memories are to be long it needs a
    bias as the LSTM's forget gate does: ``update_bias=1.0``; or, of all lengths up to 1000 steps,
    ``b_init=init.chrono(1000, keeps=1, enters=None, gates=3)``.

    Args:
        hidden_size: H, the number of hidden units.
        update_bias: the update gate's initial bias, default 0; all other biases start at 0.
        gate_activation: elementwise, in place of σ in both gates.
        activation: elementwise, in place of tanh.
        w_x_init: draws ``[I, 3H]``.
        w_h_init: draws ``[H, 3H]``; default orthogonal, each gate by itself.
        b_init: draws ``[3H]``, in place of ``update_bias``; the candidate's recurrent bias is the last third of a
            second such draw.

    Returns:
        A :class:`Cell` over :class:`GRUParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both update_bias and b_init are given.
        TypeError: an activation cannot be called.

    >>> import jax
    >>> gru(hidden_size=4).init(jax.random.key(0), 2).w_h.shape
    (4, 12)
    """
    size = whole_number("hidden_size", hidden_size)
    check_activations(gate_activation=gate_activation, activation=activation)
    b_init = keep_bias_init(b_init, gate=1, gates=3, update_bias=update_bias)
    parts = (
        *gated_parts(size, 3, w_x_init, w_h_init, b_init),
        ("b_n", Partial(last_block, b_init=b_init, gates=3), (size,)),
    )
    return make_cell(GRUParams, GRUState, size, parts, _recurrence(gate_activation, activation))
