"""Cells of the GRU's kind: one gate mixes the old state and a candidate, `h' = z ∘ h + (1 − z) ∘ n`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import DENSE, Cell, Gated, Gates, Recurrence, add_bias
from lstmjax.cells.build import GatedParams, check_activations, gated_parts, keep_bias_init, make_cell, mix, relu
from lstmjax.cells.gru import PRODUCTS, GRUState, last_block
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.gates import Activation, sigmoid, tanh
from lstmjax.typing import Initializer


def ugrnn(
    hidden_size: int,
    *,
    update_bias: float | None = None,
    activation: Activation = tanh,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """The update gate RNN: a GRU without reset gate.

    ::

        z  = σ(x W_xz + h W_hz + b_z)      update gate: the percentage of h to keep
        n  = tanh(x W_xn + h W_hn + b_n)   candidate
        h' = z ∘ h + (1 − z) ∘ n

    Args:
        hidden_size: H, the number of hidden units.
        update_bias: the update gate's initial bias, default 1.0, as TensorFlow's ``UGRNNCell`` has it; the other is 0.
        activation: elementwise, in place of tanh.
        w_x_init: draws ``[I, 2H]``, the gates in the order z, n.
        w_h_init: draws ``[H, 2H]``; default orthogonal, each gate by itself.
        b_init: draws ``[2H]``, in place of ``update_bias``; for chrono ``init.chrono(T, keeps=0, enters=None,
            gates=2)``.

    Returns:
        A :class:`Cell` over :class:`GatedParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both update_bias and b_init are given.
        TypeError: activation cannot be called.

    Source: Collins, Sohl-Dickstein & Sussillo (2017).

    >>> import jax
    >>> ugrnn(4).init(jax.random.key(0), 2).b.tolist()
    [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    b_init = keep_bias_init(b_init, 1.0, gates=2, update_bias=update_bias)
    return _two_gates(hidden_size, activation, w_x_init, w_h_init, b_init)


def light_gru(
    hidden_size: int,
    *,
    update_bias: float | None = None,
    activation: Activation = relu,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """The light GRU (Li-GRU): no reset gate, and a candidate by ReLU.

    ::

        z  = σ(x W_xz + h W_hz + b_z)      update gate: the percentage of h to keep
        n  = relu(x W_xn + h W_hn + b_n)   candidate
        h' = z ∘ h + (1 − z) ∘ n

    The paper normalises `x W_x` over the batch, which bounds what ReLU lets grow. That is not in this cell, since a
    step here reads one row at a time; the biases stand in for the normalisation's shift.

    Args:
        hidden_size: H, the number of hidden units.
        update_bias: the update gate's initial bias, default 0; the other is 0.
        activation: elementwise, in place of ReLU.
        w_x_init: draws ``[I, 2H]``, the gates in the order z, n.
        w_h_init: draws ``[H, 2H]``; default orthogonal, each gate by itself, as in the paper.
        b_init: draws ``[2H]``, in place of ``update_bias``; for chrono ``init.chrono(T, keeps=0, enters=None,
            gates=2)``.

    Returns:
        A :class:`Cell` over :class:`GatedParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both update_bias and b_init are given.
        TypeError: activation cannot be called.

    Source: Ravanelli, Brakel, Omologo & Bengio (2018).

    >>> import jax
    >>> light_gru(4).init(jax.random.key(0), 2).w_h.shape
    (4, 8)
    """
    b_init = keep_bias_init(b_init, gates=2, update_bias=update_bias)
    return _two_gates(hidden_size, activation, w_x_init, w_h_init, b_init)


def _two_gates(
    hidden_size: int,
    activation: Activation,
    w_x_init: Initializer,
    w_h_init: Initializer | None,
    b_init: Initializer,
) -> Cell:
    size = whole_number("hidden_size", hidden_size)
    check_activations(activation=activation)
    parts = gated_parts(size, 2, w_x_init, w_h_init, b_init)
    return make_cell(GatedParams, GRUState, size, parts, _mixture(DENSE, _pair, sigmoid, activation))


def _mixture(
    pre: Any, names: Callable[..., dict[str, Array]], gate_activation: Activation, activation: Activation, at: int = 0
) -> Recurrence:
    """h' = z ∘ h + (1 − z) ∘ n, with z the gate ``at`` and the candidate n among what ``names`` makes of all gates."""
    names = Partial(names, gate_activation=gate_activation, activation=activation)
    return Recurrence(pre, Gated(names, Partial(_mixed, gate_activation=gate_activation, at=at)), keeps="update")


def _mixed(values: dict[str, Array], z: Gates, state: GRUState, *, gate_activation: Activation, at: int) -> GRUState:
    return GRUState(mix(z[at], state.h, values["candidate"], gate_activation))


def _pair(z: Gates, state: Any, *, gate_activation: Activation, activation: Activation) -> dict[str, Array]:
    del state
    return {"update": gate_activation(z[0]), "candidate": activation(z[1])}


class MGUParams(NamedTuple):
    """The weights of a minimal gated unit, the gates in the order z, n.

    Attributes:
        w_x: ``[I, 2H]`` input weights.
        w_h: ``[H, 2H]`` recurrent weights.
        b: ``[2H]`` biases.
        b_n: ``[H]`` the candidate's recurrent bias, which the gate multiplies.
    """

    w_x: Array
    w_h: Array
    b: Array
    b_n: Array


def mgu(
    hidden_size: int,
    *,
    reset_gate: bool = True,
    update_bias: float | None = None,
    gate_activation: Activation = sigmoid,
    activation: Activation = tanh,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """The minimal gated unit: a GRU whose one gate does both gates' work.

    ::

        z  = σ(x W_xz + h W_hz + b_z)                  update gate: the percentage of h to keep
        n  = tanh(x W_xn + b_n' + z ∘ (h W_hn + b_n))  candidate
        h' = z ∘ h + (1 − z) ∘ n

    `b_n'` is the last half of ``b``. Without ``reset_gate`` the gate does not act on the candidate, `n = tanh(x W_xn +
    h W_hn + b_n')`, and there is no `b_n`: those are the equations of :func:`ugrnn`.

    The form and the defaults are those of Flax's ``MGUCell``, where z is called f. In the paper f is the percentage to
    renew, and it multiplies h before the product.

    Args:
        hidden_size: H, the number of hidden units.
        reset_gate: whether the gate acts on the candidate.
        update_bias: the update gate's initial bias, default 1.0; all other biases start at 0.
        gate_activation: elementwise, in place of σ.
        activation: elementwise, in place of tanh.
        w_x_init: draws ``[I, 2H]``, the gates in the order z, n.
        w_h_init: draws ``[H, 2H]``; default orthogonal, each gate by itself.
        b_init: draws ``[2H]``, in place of ``update_bias``, and `b_n` is the last half of a second such draw; for
            chrono ``init.chrono(T, keeps=0, enters=None, gates=2)``.

    Returns:
        A :class:`Cell` over :class:`MGUParams`, without ``reset_gate`` :class:`GatedParams`, and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both update_bias and b_init are given.
        TypeError: an activation cannot be called.

    Source: Zhou, Wu, Zhang & Zhou (2016).

    >>> import jax
    >>> mgu(4).init(jax.random.key(0), 2).b_n.shape
    (4,)
    """
    size = whole_number("hidden_size", hidden_size)
    check_activations(gate_activation=gate_activation, activation=activation)
    b_init = keep_bias_init(b_init, 1.0, gates=2, update_bias=update_bias)
    parts = gated_parts(size, 2, w_x_init, w_h_init, b_init)
    if not reset_gate:
        return make_cell(GatedParams, GRUState, size, parts, _mixture(DENSE, _pair, gate_activation, activation))
    parts += (("b_n", Partial(last_block, b_init=b_init, gates=2), (size,)),)
    return make_cell(MGUParams, GRUState, size, parts, _mixture(PRODUCTS, _minimal, gate_activation, activation))


def _minimal(z: Gates, state: Any, *, gate_activation: Activation, activation: Activation) -> dict[str, Array]:
    del state
    update = gate_activation(z[0])
    return {"update": update, "candidate": activation(z[1] + update * z[2])}


def gru_reset_before(
    hidden_size: int,
    *,
    update_bias: float | None = None,
    gate_activation: Activation = sigmoid,
    activation: Activation = tanh,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """The GRU as it was first written, its reset gate before the product: Keras's ``GRU(reset_after=False)``.

    ::

        r  = σ(x W_xr + h W_hr + b_r)             reset gate
        z  = σ(x W_xz + h W_hz + b_z)             update gate: the percentage of h to keep
        n  = tanh(x W_xn + (r ∘ h) W_hn + b_n)    candidate
        h' = z ∘ h + (1 − z) ∘ n

    `(r ∘ h) W_hn` is a product after a non-linearity, so z is not affine in h: the step is unrolled by a plain scan,
    and ``implementation="fused"`` refuses it. :func:`gru` is the form that is fast.

    Args:
        hidden_size: H, the number of hidden units.
        update_bias: the update gate's initial bias, default 0; all other biases start at 0.
        gate_activation: elementwise, in place of σ in both gates.
        activation: elementwise, in place of tanh.
        w_x_init: draws ``[I, 3H]``, the gates in the order r, z, n. (Keras has them in the order z, r, n.)
        w_h_init: draws ``[H, 3H]``; default orthogonal, each gate by itself.
        b_init: draws ``[3H]``, in place of ``update_bias``; for chrono ``init.chrono(T, keeps=1, enters=None,
            gates=3)``.

    Returns:
        A :class:`Cell` over :class:`GatedParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both update_bias and b_init are given.
        TypeError: an activation cannot be called.

    Source: Cho et al. (2014).

    >>> import jax
    >>> gru_reset_before(4, update_bias=1.0).init(jax.random.key(0), 2).b.shape
    (12,)
    """
    size = whole_number("hidden_size", hidden_size)
    check_activations(gate_activation=gate_activation, activation=activation)
    b_init = keep_bias_init(b_init, gate=1, gates=3, update_bias=update_bias)
    step = _mixture(Partial(_reset_before, gate_activation=gate_activation), _three, gate_activation, activation, at=1)
    return make_cell(GatedParams, GRUState, size, gated_parts(size, 3, w_x_init, w_h_init, b_init), step)


def _reset_before(params: GatedParams, x: Array, h: Array, *, gate_activation: Activation) -> Array:
    size = h.shape[-1]
    by_x, two = add_bias(x @ params.w_x, params.b), h @ params.w_h[:, : 2 * size]
    gates = by_x[..., : 2 * size] + two.astype(by_x.dtype)
    left = gate_activation(gates[..., :size]) * h.astype(by_x.dtype)
    third = left.astype(params.w_h.dtype) @ params.w_h[:, 2 * size :]
    return jnp.concatenate([gates, by_x[..., 2 * size :] + third.astype(by_x.dtype)], axis=-1)


def _three(z: Gates, state: Any, *, gate_activation: Activation, activation: Activation) -> dict[str, Array]:
    del state
    return {"reset": gate_activation(z[0]), "update": gate_activation(z[1]), "candidate": activation(z[2])}


class FastGRNNParams(NamedTuple):
    """The weights of a FastGRNN, whose gate and candidate share theirs.

    Attributes:
        w_x: ``[I, H]`` input weights.
        w_h: ``[H, H]`` recurrent weights.
        b: ``[2H]`` biases, of the update gate and of the candidate.
        zeta: ``[1]`` σ of it is ζ.
        nu: ``[1]`` σ of it is ν.
    """

    w_x: Array
    w_h: Array
    b: Array
    zeta: Array
    nu: Array


def fast_grnn(
    hidden_size: int,
    *,
    update_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer | None = None,
) -> Cell:
    """FastGRNN: a gate and a candidate of the same weights, for the smallest devices.

    ::

        a  = x W_x + h W_h
        z  = σ(a + b_z)                                update gate: the percentage of h to keep
        n  = tanh(a + b_n)                             candidate
        h' = z ∘ h + (ζ (1 − z) + ν) ∘ n,              ζ = σ(zeta), ν = σ(nu), learnt

    What the paper does to make the weights few and small, by rank, sparsity and whole numbers, is not in here.

    Args:
        hidden_size: H, the number of hidden units.
        update_bias: the update gate's initial bias, with 0 for the candidate's; default 1 for both.
        w_x_init: draws ``[I, H]``.
        w_h_init: draws ``[H, H]``.
        b_init: draws ``[2H]``, in place of ``update_bias``; for chrono ``init.chrono(T, keeps=0, enters=None,
            gates=2)``.

    Returns:
        A :class:`Cell` over :class:`FastGRNNParams`, zeta 1 and nu −4 at the start, as in the authors' code, and
        :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both update_bias and b_init are given.

    Source: Kusupati et al. (2018).

    >>> import jax
    >>> params = fast_grnn(4).init(jax.random.key(0), 2)
    >>> params.zeta.tolist(), params.nu.tolist(), params.b.tolist()
    ([1.0], [-4.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    """
    size = whole_number("hidden_size", hidden_size)
    if update_bias is None and b_init is None:
        b_init = initializers.gate_bias(1.0, gate=0, gates=1)
    parts = (
        ("w_x", w_x_init, (None, size)),
        ("w_h", w_h_init, (size, size)),
        ("b", keep_bias_init(b_init, gates=2, update_bias=update_bias), (2 * size,)),
        ("zeta", initializers.gate_bias(1.0, gate=0, gates=1), (1,)),
        ("nu", initializers.gate_bias(-4.0, gate=0, gates=1), (1,)),
    )
    names = Partial(_pair, gate_activation=sigmoid, activation=tanh)
    step = Recurrence(_shared, Gated(names, _fast), keeps="update")
    return make_cell(FastGRNNParams, GRUState, size, parts, step)


def _shared(params: FastGRNNParams, x: Array, h: Array) -> tuple[Array, ...]:
    a = x @ params.w_x + h @ params.w_h
    zeta, nu = (jnp.broadcast_to(p, h.shape[-1:]) for p in (params.zeta, params.nu))
    return add_bias(jnp.concatenate([a, a], axis=-1), params.b), zeta, nu


def _fast(values: dict[str, Array], z: Gates, state: GRUState) -> GRUState:
    update, _, zeta, nu = z
    share = sigmoid(zeta) * sigmoid(-update) + sigmoid(nu)
    return GRUState(values["update"] * state.h + share * values["candidate"])
