"""Cells that are steps of a differential equation: leaky, continuous-time, antisymmetric, coRNN and LEM."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lstmjax import init as initializers
from lstmjax.cells.base import (
    DENSE,
    Cell,
    Gates,
    Products,
    Recurrence,
    add_bias,
    cast_floating,
    cast_like,
    working_dtype,
)
from lstmjax.cells.build import GatedParams, check_activations, gated_parts, keep_bias_init, make_cell, mix
from lstmjax.cells.rnn import RNNParams, RNNState
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.gates import Activation, pre_activation, sigmoid, split_gates, tanh
from lstmjax.typing import Initializer


def leaky_rnn(
    hidden_size: int,
    *,
    tau: float,
    dt: float = 1.0,
    activation: Activation = tanh,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = initializers.zeros,
) -> Cell:
    """The leaky RNN, all of whose units forget at one rate, which is given: `h' = (1 − α) h + α φ(x W_x + h W_h + b)`.

    With `α = dt/τ` it is an Euler step of `τ dh/dt = −h + φ(x W_x + h W_h + b)`.

    Args:
        hidden_size: H, the number of hidden units.
        tau: τ, the time constant, in the unit of ``dt``.
        dt: the time that a step takes, above 0 and at most τ.
        activation: φ, elementwise.
        w_x_init: draws ``[I, H]``.
        w_h_init: draws ``[H, H]``.
        b_init: draws ``[H]``.

    Returns:
        A :class:`Cell` over :class:`RNNParams` and :class:`RNNState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or dt is not above 0 and at most tau.
        TypeError: activation cannot be called.

    Source: Jaeger, Lukoševičius, Popovici & Siewert (2007), whose weights are not trained.

    >>> cell = leaky_rnn(1, tau=4.0)
    >>> params = RNNParams(jnp.ones((1, 1)), jnp.ones((1, 1)), jnp.zeros(1))
    >>> round(float(cell.step(params, RNNState(jnp.array([1.0])), jnp.array([-1.0]))[1][0]), 4)
    0.75
    """
    size = whole_number("hidden_size", hidden_size)
    check_activations(activation=activation)
    leak = _leak(tau, dt)
    parts = (("w_x", w_x_init, (None, size)), ("w_h", w_h_init, (size, size)), ("b", b_init, (size,)))
    step = Recurrence(DENSE, Partial(_leaky, leak=leak, activation=activation))
    return make_cell(RNNParams, RNNState, size, parts, step)


def _leak(tau: float, dt: float) -> float:
    if not 0 < dt <= tau:
        raise ValueError(f"dt is {dt!r} and tau is {tau!r}; wanted dt above 0 and at most tau")
    return dt / tau


def _leaky(z: Gates, state: RNNState, *, leak: float, activation: Activation) -> RNNState:
    return RNNState((1 - leak) * state.h + leak * activation(z[0]))


class ContinuousTimeRNNParams(NamedTuple):
    """The weights of a continuous-time RNN.

    Attributes:
        w_x: ``[I, H]`` input weights.
        w_h: ``[H, H]`` recurrent weights.
        b: ``[H]`` biases.
        keep: ``[H]`` σ of it is how much of its state a unit keeps, `1 − dt/τ`.
    """

    w_x: Array
    w_h: Array
    b: Array
    keep: Array


def continuous_time_rnn(
    hidden_size: int,
    *,
    tau: float | None = None,
    dt: float = 1.0,
    activation: Activation = tanh,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer = initializers.orthogonal(),
    b_init: Initializer = initializers.zeros,
    keep_init: Initializer | None = None,
) -> Cell:
    """The continuous-time RNN: a leaky one, each unit of which learns its own time constant τ.

    ::

        α  = dt/τ = σ(−keep)
        h' = (1 − α) ∘ h + α ∘ φ(x W_x + h W_h + b)

    an Euler step of `τ dh/dt = −h + φ(x W_x + h W_h + b)`. So `τ = dt (1 + e^keep)` is never below dt, and the step is
    stable.

    Args:
        hidden_size: H, the number of hidden units.
        tau: τ at the start, above dt; default `2 dt`.
        dt: the time that a step takes, above 0.
        activation: φ, elementwise.
        w_x_init: draws ``[I, H]``.
        w_h_init: draws ``[H, H]``.
        b_init: draws ``[H]``.
        keep_init: draws ``[H]``, in place of ``tau``; ``init.chrono(T, keeps=0, enters=None, gates=1)`` spreads `τ/dt`
            evenly from 2 to T.

    Returns:
        A :class:`Cell` over :class:`ContinuousTimeRNNParams` and :class:`RNNState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, tau is not above dt or dt not above 0, or both tau and
            keep_init are given.
        TypeError: activation cannot be called.

    Source: Funahashi & Nakamura (1993).

    >>> import jax
    >>> round(float(sigmoid(continuous_time_rnn(1, tau=4.0).init(jax.random.key(0), 2).keep)[0]), 4)
    0.75
    """
    size = whole_number("hidden_size", hidden_size)
    check_activations(activation=activation)
    if tau is not None and keep_init is not None:
        raise ValueError("tau and keep_init both set the time constants; give one of them")
    leak = _leak(2 * dt if tau is None else tau, dt)
    if leak == 1:
        raise ValueError(f"tau is {tau!r}; wanted above dt, {dt!r}, since σ never is 0")
    keep_init = keep_init or initializers.gate_bias(math.log(1 / leak - 1), gate=0, gates=1)
    parts = (
        ("w_x", w_x_init, (None, size)),
        ("w_h", w_h_init, (size, size)),
        ("b", b_init, (size,)),
        ("keep", keep_init, (size,)),
    )
    of = {"activation": activation}
    step = Recurrence(_with_keep, Partial(_continuous, **of), gates=Partial(_continuous_names, **of), keeps="keep")
    return make_cell(ContinuousTimeRNNParams, RNNState, size, parts, step)


def _with_keep(params: ContinuousTimeRNNParams, x: Array, h: Array) -> tuple[Array, Array]:
    return add_bias(x @ params.w_x + h @ params.w_h, params.b), params.keep


def _continuous(z: Gates, state: RNNState, *, activation: Activation) -> RNNState:
    return RNNState(mix(z[1], state.h, activation(z[0])))


def _continuous_names(z: Gates, state: Any, *, activation: Activation) -> dict[str, Array]:
    del state
    return {"keep": sigmoid(z[1]), "candidate": activation(z[0])}


def antisymmetric_rnn(
    hidden_size: int,
    *,
    epsilon: float = 0.1,
    gamma: float = 0.01,
    gated: bool = False,
    w_x_init: Initializer = initializers.lecun_normal(),
    w_h_init: Initializer | None = None,
    b_init: Initializer = initializers.zeros,
) -> Cell:
    """The antisymmetric RNN, whose Jacobian has eigenvalues close to 1.

    ::

        A  = W_h − W_hᵀ − γ I
        h' = h + ε tanh(x W_xn + h A + b_n)

    and ``gated``::

        z  = σ(x W_xz + h A + b_z)                  input gate, by the same A
        h' = h + ε z ∘ tanh(x W_xn + h A + b_n)

    an Euler step of an equation that without γ neither grows nor decays: the eigenvalues of `W_h − W_hᵀ` are imaginary.
    No gate keeps the state: all of h is kept.

    Args:
        hidden_size: H, the number of hidden units.
        epsilon: ε, the size of the step.
        gamma: γ, the diffusion, which keeps the Euler step stable.
        gated: whether there is the gate.
        w_x_init: draws ``[I, H]``, or for n and z ``[I, 2H]``.
        w_h_init: draws `W_h`, ``[H, H]``; default normal of variance `1/H`, as in the paper.
        b_init: draws ``[H]``, or for n and z ``[2H]``.

    Returns:
        A :class:`Cell` over :class:`GatedParams` and :class:`RNNState`.

    Raises:
        ValueError: hidden_size is not a positive whole number.

    Source: Chang, Chen, Haber & Chi (2019).

    >>> import jax
    >>> antisymmetric_rnn(4, gated=True).init(jax.random.key(0), 2).w_x.shape
    (2, 8)
    """
    size = whole_number("hidden_size", hidden_size)
    gates = 2 if gated else 1
    parts = gated_parts(size, (gates, 1, gates), w_x_init, w_h_init or initializers.lecun_normal(), b_init)
    products = Products(DENSE.pre, Partial(_pack, gamma=gamma, gates=gates), DENSE.from_x, DENSE.from_h)
    step = Recurrence(products, Partial(_antisymmetric, epsilon=epsilon), gates=_antisymmetric_names if gated else None)
    return make_cell(GatedParams, RNNState, size, parts, step)


def _pack(params: GatedParams, *, gamma: float, gates: int) -> Any:
    w_h = params.w_h - params.w_h.T - gamma * jnp.eye(len(params.w_h), dtype=params.w_h.dtype)
    return DENSE.pack(params._replace(w_h=jnp.tile(w_h, (1, gates))))


def _antisymmetric(z: Gates, state: RNNState, *, epsilon: float) -> RNNState:
    change = tanh(z[0]) if len(z) == 1 else tanh(z[0]) * sigmoid(z[1])
    return RNNState(state.h + epsilon * change)


def _antisymmetric_names(z: Gates, state: Any) -> dict[str, Array]:
    del state
    return {"input": sigmoid(z[1]), "candidate": tanh(z[0])}


class CoRNNParams(NamedTuple):
    """The weights of a coRNN.

    Attributes:
        w_x: ``[I, H]`` input weights.
        w_h: ``[H, H]`` recurrent weights, of the position h.
        w_v: ``[H, H]`` recurrent weights, of the velocity v.
        b: ``[H]`` biases.
    """

    w_x: Array
    w_h: Array
    w_v: Array
    b: Array


class CoRNNState(NamedTuple):
    """The oscillators of a coRNN.

    Attributes:
        h: ``[*B, H]`` positions, the output.
        v: ``[*B, H]`` velocities.
    """

    h: Array
    v: Array


def co_rnn(
    hidden_size: int,
    *,
    dt: float,
    gamma: float,
    epsilon: float,
    w_x_init: Initializer | None = None,
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """The coupled oscillatory RNN: units that swing, driven by one another and by the input.

    ::

        v' = v + dt (tanh(x W_x + h W_h + v W_v + b) − γ h − ε v)
        h' = h + dt v'

    Two memories, h and v, meet weights, while the fast unroll has products of the output h alone: the cell is unrolled
    by a plain scan, and ``implementation="fused"`` refuses it.

    Args:
        hidden_size: H, the number of hidden units.
        dt: the size of the step. dt, γ and ε are chosen for each task: .06, 66 and 15 in the authors' code for the
            adding task.
        gamma: γ, the stiffness.
        epsilon: ε, the damping.
        w_x_init: draws ``[I, H]``; default, as of the rest, `U(−1/√H, 1/√H)`.
        w_h_init: draws ``[H, H]``, for `W_h` and for `W_v`.
        b_init: draws ``[H]``.

    Returns:
        A :class:`Cell` over :class:`CoRNNParams` and :class:`CoRNNState`.

    Raises:
        ValueError: hidden_size is not a positive whole number.

    Source: Rusch & Mishra (2021).

    >>> import jax
    >>> cell = co_rnn(4, dt=0.05, gamma=2.0, epsilon=1.0)
    >>> cell.step(cell.init(jax.random.key(0), 2), cell.initial_state(), jnp.ones(2))[1].shape
    (4,)
    """
    size = whole_number("hidden_size", hidden_size)
    drawn = initializers.pytorch_uniform(size)
    parts = (
        ("w_x", w_x_init or drawn, (None, size)),
        ("w_h", w_h_init or drawn, (size, size)),
        ("w_v", w_h_init or drawn, (size, size)),
        ("b", b_init or drawn, (size,)),
    )
    return make_cell(CoRNNParams, CoRNNState, size, parts, Partial(_co_rnn, dt=dt, gamma=gamma, epsilon=epsilon))


def _co_rnn(
    params: CoRNNParams, state: CoRNNState, x: Any, *, dt: float, gamma: float, epsilon: float
) -> tuple[CoRNNState, Float[Array, "*B H"]]:
    h, v = cast_floating(state, working_dtype(state))
    drive = pre_activation(params.w_x, params.w_h, params.b, x, h).astype(h.dtype)
    drive = tanh(drive + (v.astype(params.w_v.dtype) @ params.w_v).astype(h.dtype))
    v = v + dt * (drive - gamma * h - epsilon * v)
    new = cast_like(CoRNNState(h + dt * v, v), state)
    return new, new.h


class LEMParams(NamedTuple):
    """The weights of a LEM, in the order of its equations: two gates, then the slow memory z, then the fast one h.

    Attributes:
        w_x: ``[I, 4H]`` input weights.
        w_h: ``[H, 3H]`` recurrent weights that read h, of both gates and of z.
        w_z: ``[H, H]`` recurrent weights that read z, of h.
        b: ``[4H]`` biases.
    """

    w_x: Array
    w_h: Array
    w_z: Array
    b: Array


class LEMState(NamedTuple):
    """The two memories of a LEM.

    Attributes:
        h: ``[*B, H]`` the output, the paper's y.
        z: ``[*B, H]`` the other.
    """

    h: Array
    z: Array


def lem(
    hidden_size: int,
    *,
    dt: float = 1.0,
    update_bias: float | None = None,
    w_x_init: Initializer | None = None,
    w_h_init: Initializer | None = None,
    b_init: Initializer | None = None,
) -> Cell:
    """The long expressive memory: two memories, each with time steps that it learns.

    ::

        α  = dt (1 − σ(x W_xα + h W_hα + b_α))      the step of z; 1 − α is the percentage of it to keep
        β  = dt (1 − σ(x W_xβ + h W_hβ + b_β))      the step of h
        z' = (1 − α) ∘ z + α ∘ tanh(x W_xz + h W_hz + b_z)
        h' = (1 − β) ∘ h + β ∘ tanh(x W_xh + z' W_z + b_h)

    The paper writes `α = dt σ(…)`: its weights of the two gates are these with the other sign.

    `z' W_z` is a product after a non-linearity: the cell is unrolled by a plain scan, and ``implementation="fused"``
    refuses it. So its step, which is not in two parts, names no gates.

    Args:
        hidden_size: H, the number of hidden units.
        dt: the largest step; with 1 the gates' σ are the percentages that are kept.
        update_bias: the initial bias of both gates, all other biases then 0; default `U(−1/√H, 1/√H)` for all.
        w_x_init: draws ``[I, 4H]``, in the order α, β, z, h; default, as of the rest, `U(−1/√H, 1/√H)`, as in the
            authors' code.
        w_h_init: draws ``[H, 3H]``, and `W_z`, ``[H, H]``.
        b_init: draws ``[4H]``, in place of ``update_bias``; for chrono in both gates ``init.chrono(T, keeps=0,
            enters=None, gates=2)``, whose two halves are the gates and the rest.

    Returns:
        A :class:`Cell` over :class:`LEMParams` and :class:`LEMState`.

    Raises:
        ValueError: hidden_size is not a positive whole number, or both update_bias and b_init are given.

    Source: Rusch, Mishra, Erichson & Mahoney (2022).

    >>> import jax
    >>> lem(4).init(jax.random.key(0), 2).w_h.shape
    (4, 12)
    """
    size = whole_number("hidden_size", hidden_size)
    drawn = initializers.pytorch_uniform(size)
    if update_bias is not None or b_init is not None:
        b_init = keep_bias_init(b_init, gates=2, update_bias=update_bias)
    parts = (
        ("w_x", w_x_init or drawn, (None, 4 * size)),
        ("w_h", w_h_init or drawn, (size, 3 * size)),
        ("w_z", w_h_init or drawn, (size, size)),
        ("b", b_init or drawn, (4 * size,)),
    )
    return make_cell(LEMParams, LEMState, size, parts, Partial(_lem, dt=dt))


def _lem(params: LEMParams, state: LEMState, x: Any, *, dt: float) -> tuple[LEMState, Float[Array, "*B H"]]:
    h, z = cast_floating(state, working_dtype(state))
    size = h.shape[-1]
    by_x = add_bias(x.astype(params.w_x.dtype) @ params.w_x, params.b).astype(h.dtype)
    by_h = (h.astype(params.w_h.dtype) @ params.w_h).astype(h.dtype)
    step_z, step_h, new = split_gates(by_x[..., : 3 * size] + by_h, 3)
    z = z + dt * sigmoid(-step_z) * (tanh(new) - z)
    by_z = (z.astype(params.w_z.dtype) @ params.w_z).astype(h.dtype)
    h = h + dt * sigmoid(-step_h) * (tanh(by_x[..., 3 * size :] + by_z) - h)
    new = cast_like(LEMState(h, z), state)
    return new, new.h
