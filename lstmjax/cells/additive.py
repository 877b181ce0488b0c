"""Cells whose candidate reads the input alone, so that only gates see the state: RAN, CFN, STAR and nBRC."""

from typing import Any

from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells.base import Cell, Gated, Gates, Recurrence
from lstmjax.cells.build import FIRST_BY_H, GatedParams, check_activations, gated_parts, keep_bias_init, make_cell, mix
from lstmjax.cells.gru import GRUState
from lstmjax.cells.lstm import LSTMState
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.gates import Activation, sigmoid, tanh
from lstmjax.typing import Initializer, Key


def ran(
    hidden_size: int,
    *,
    forget_bias: float | None = None,
    activation: Activation = tanh,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """The recurrent additive network: an LSTM whose memory is a weighed sum of its inputs.

    ::

        i  = σ(x W_xi + h W_hi + b_i)      input gate
        f  = σ(x W_xf + h W_hf + b_f)      forget gate: the percentage of c to keep
        g  = x W_xg                        content, linear
        c' = f ∘ c + i ∘ g
        h' = tanh(c')

    Args:
        hidden_size: H, the number of hidden units.
        forget_bias: the forget gate's initial bias, default 0; the other is 0.
        activation: elementwise, in place of the last tanh; the paper also has the identity, ``lambda c: c``.
        w_x_init: draws ``[I, 3H]``, in the order i, f, g.
        w_h_init: draws ``[H, 2H]``; default orthogonal, each gate by itself.
        b_init: draws ``[2H]``, in place of ``forget_bias``; for chrono ``init.chrono(T, gates=2)``.

    Returns:
        A :class:`Cell` over :class:`GatedParams` and :class:`LSTMState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both forget_bias and b_init are given.
        TypeError: activation cannot be called.

    Source: Lee, Levy & Zettlemoyer (2017).

    >>> import jax
    >>> params = ran(4).init(jax.random.key(0), 2)
    >>> params.w_x.shape, params.w_h.shape, params.b.shape
    ((2, 12), (4, 8), (8,))
    """
    size = whole_number("hidden_size", hidden_size)
    check_activations(activation=activation)
    b_init = keep_bias_init(b_init, gate=1, gates=2, forget_bias=forget_bias)
    step = Recurrence(FIRST_BY_H, Gated(_ran_names, Partial(_ran, activation=activation)), keeps="forget")
    return make_cell(GatedParams, LSTMState, size, gated_parts(size, (3, 2, 2), w_x_init, w_h_init, b_init), step)


def _ran(gates: dict[str, Array], z: Gates, state: LSTMState, *, activation: Activation) -> LSTMState:
    del z
    c = gates["forget"] * state.c + gates["input"] * gates["candidate"]
    return LSTMState(c=c, h=activation(c))


def _ran_names(z: Gates, state: Any) -> dict[str, Array]:
    del state
    return {"input": sigmoid(z[0]), "forget": sigmoid(z[1]), "candidate": z[2]}


def cfn(
    hidden_size: int,
    *,
    forget_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """The chaos free network: with no input its state can only shrink to 0.

    ::

        i  = σ(x W_xi + h W_hi + b_i)      input gate, the paper's η
        f  = σ(x W_xf + h W_hf + b_f)      forget gate, the paper's θ: the percentage of tanh(h) to keep
        h' = f ∘ tanh(h) + i ∘ tanh(x W_xg)

    Args:
        hidden_size: H, the number of hidden units.
        forget_bias: the forget gate's initial bias, with 0 for the input gate's; default 1 and −1, as in the paper.
        w_x_init: draws ``[I, 3H]``, in the order i, f, g.
        w_h_init: draws ``[H, 2H]``; default orthogonal, each gate by itself.
        b_init: draws ``[2H]``, in place of ``forget_bias``; for chrono ``init.chrono(T, gates=2)``.

    Returns:
        A :class:`Cell` over :class:`GatedParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both forget_bias and b_init are given.

    Source: Laurent & von Brecht (2017).

    >>> import jax
    >>> cfn(2).init(jax.random.key(0), 2).b.tolist()
    [-1.0, -1.0, 1.0, 1.0]
    """
    size = whole_number("hidden_size", hidden_size)
    if forget_bias is None and b_init is None:
        b_init = Partial(_cfn_biases)
    b_init = keep_bias_init(b_init, gate=1, gates=2, forget_bias=forget_bias)
    step = Recurrence(FIRST_BY_H, Gated(_cfn_names, _cfn), keeps="forget")
    return make_cell(GatedParams, GRUState, size, gated_parts(size, (3, 2, 2), w_x_init, w_h_init, b_init), step)


def _cfn_biases(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    i, f = (initializers.gate_bias(value, gate=n, gates=2)(key, shape, dtype) for n, value in enumerate((-1.0, 1.0)))
    return i + f


def _cfn(gates: dict[str, Array], z: Gates, state: GRUState) -> GRUState:
    del z
    return GRUState(gates["forget"] * tanh(state.h) + gates["input"] * gates["candidate"])


def _cfn_names(z: Gates, state: Any) -> dict[str, Array]:
    del state
    return {"input": sigmoid(z[0]), "forget": sigmoid(z[1]), "candidate": tanh(z[2])}


def star(
    hidden_size: int,
    *,
    update_bias: float | None = None,
    w_x_init: Initializer = initializers.orthogonal(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer | None = None,
) -> Cell:
    """The stackable recurrent cell, for many layers.

    ::

        z  = σ(x W_xz + h W_hz + b_z)      update gate: the percentage of h to keep; the paper's k is 1 − z
        n  = tanh(x W_xn + b_n)            candidate
        h' = tanh(z ∘ h + (1 − z) ∘ n)

    Args:
        hidden_size: H, the number of hidden units.
        update_bias: the update gate's initial bias, default 0; the other is 0.
        w_x_init: draws ``[I, H]`` twice, for z and for n; default orthogonal, as in the paper.
        w_h_init: draws ``[H, H]``; default orthogonal.
        b_init: draws ``[2H]``, in place of ``update_bias``; for chrono, which the authors' code has,
            ``init.chrono(T, keeps=0, enters=None, gates=2)``.

    Returns:
        A :class:`Cell` over :class:`GatedParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both update_bias and b_init are given.

    Source: Turkoglu, D'Aronco, Wegner & Schindler (2021).

    >>> import jax
    >>> params = star(4).init(jax.random.key(0), 2)
    >>> params.w_x.shape, params.w_h.shape, params.b.shape
    ((2, 8), (4, 4), (8,))
    """
    size = whole_number("hidden_size", hidden_size)
    b_init = keep_bias_init(b_init, gates=2, update_bias=update_bias)
    parts = gated_parts(size, (2, 1, 2), initializers.per_gate(w_x_init, 2), w_h_init, b_init)
    return make_cell(
        GatedParams, GRUState, size, parts, Recurrence(FIRST_BY_H, Gated(_star_names, _star), keeps="update")
    )


def _star(gates: dict[str, Array], z: Gates, state: GRUState) -> GRUState:
    return GRUState(tanh(mix(z[0], state.h, gates["candidate"])))


def _star_names(z: Gates, state: Any) -> dict[str, Array]:
    del state
    return {"update": sigmoid(z[0]), "candidate": tanh(z[1])}


def nbrc(
    hidden_size: int,
    *,
    update_bias: float | None = None,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """The neuromodulated bistable recurrent cell: a unit whose feedback a exceeds 1 has two states that it stays in.

    ::

        a  = 1 + tanh(x W_xa + h W_ha + b_a)     feedback, between 0 and 2
        z  = σ(x W_xz + h W_hz + b_z)            update gate, the paper's c: the percentage of h to keep
        n  = tanh(x W_xn + a ∘ h)                candidate
        h' = z ∘ h + (1 − z) ∘ n

    The paper's equations have no biases: here they are 0 at the start. ``gate_values`` gives `a/2`, a percentage, as
    "feedback".

    Args:
        hidden_size: H, the number of hidden units.
        update_bias: the update gate's initial bias, default 0; the other is 0.
        w_x_init: draws ``[I, 3H]``, in the order a, z, n.
        w_h_init: draws ``[H, 2H]``; default orthogonal, each gate by itself.
        b_init: draws ``[2H]``, in place of ``update_bias``; for chrono ``init.chrono(T, keeps=1, enters=None,
            gates=2)``.

    Returns:
        A :class:`Cell` over :class:`GatedParams` and :class:`GRUState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both update_bias and b_init are given.

    Source: Vecoven, Ernst & Drion (2021).

    >>> nbrc(4).initial_state((3,)).h.shape
    (3, 4)
    """
    size = whole_number("hidden_size", hidden_size)
    b_init = keep_bias_init(b_init, gate=1, gates=2, update_bias=update_bias)
    parts = gated_parts(size, (3, 2, 2), w_x_init, w_h_init, b_init)
    return make_cell(
        GatedParams, GRUState, size, parts, Recurrence(FIRST_BY_H, Gated(_nbrc_names, _nbrc), keeps="update")
    )


def _nbrc(gates: dict[str, Array], z: Gates, state: GRUState) -> GRUState:
    return GRUState(mix(z[1], state.h, gates["candidate"]))


def _nbrc_names(z: Gates, state: GRUState) -> dict[str, Array]:
    feedback = sigmoid(2 * z[0])  # (1 + tanh(z)) / 2
    return {"feedback": feedback, "update": sigmoid(z[1]), "candidate": tanh(z[2] + 2 * feedback * state.h)}
