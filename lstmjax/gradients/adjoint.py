"""The adjoint of an unroll: how much the loss still depends on every state it passed through.

Backpropagation through time is a linear recurrence run backwards::

    λ_t = J_{t+1}ᵀ λ_{t+1} + ∂L/∂s_t,     J_{t+1} = ∂s_{t+1}/∂s_t,

with the loss's direct dependence on `s_t` on the right and its total dependence, `λ_t`, on the left. Over a long lag
the product of Jacobians leaves the range of any floating format: `0.5¹⁰⁰⁰` is 1e-301. So the recurrence is run on pairs
`λ_t = v_t 2^{e_t}`, the largest entry of `v_t` near 1 and `e_t` a whole number, whose scaling rounds nothing; and a
norm of 1e-3000 is a number where plain backpropagation in float32 would have read 0.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell
from lstmjax.gradients import scaled
from lstmjax.gradients.linear import Linearised, blank_padding, linearised
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.typing import Params, State


@at_highest_precision
def adjoint_norms(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    loss_fn: Callable[[State], Array],
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> State:
    """`ln ‖∂L/∂s_t‖₂` for every state `s_0 … s_T`, part by part and row by row, from one backward pass.

    `s_0` is the state before the first step and `s_t` the one after t steps, so in a row that takes n steps `s_t` lags
    `n − t` behind the end. The derivative is with respect to one part of the state with the others held: for an LSTM,
    `∂L/∂c_t` leaves out the way through `h_t`, which is in `∂L/∂h_t`. Where the loss sees only the last h, `∂L/∂c_T` is
    therefore exactly 0, its logarithm −∞, and lag 1 is the first at which c counts.

    Args:
        cell: any cell, or a bare ``step(params, state, x) -> (state, y)`` together with a ``state``.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        loss_fn: ``states -> scalar``, differentiable; ``states`` is the history with the initial state in front, each
            leaf ``[T + 1, *B, ...]``, float32 at least. ``states.h[-1]`` is every row's last hidden state, whatever
            its length. Sum over rows: a mean divides every gradient by their number.
        state: the state before the first step; the cell's initial state unless given.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`. The gradient passes a skipped step
            unchanged, and no gradient passes a reset: −∞ before it.

    Returns:
        Natural logarithms in the form of a state, leaves ``[T + 1, *B]``: −∞ where a gradient is exactly zero, NaN
        after a row's end, where there is no state. Everything is computed in float32 at least.

    Raises:
        ValueError: as :func:`~lstmjax.unroll`.
        TypeError: as :func:`~lstmjax.unroll`; or the loss is no scalar.
        FloatingPointError: parameters, inputs or states are not finite; says which, and from which step on.

    Source: Hochreiter (1991); Bengio, Simard & Frasconi (1994); Pascanu, Mikolov & Bengio (2013), section 2.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8, w_h_init=jax.nn.initializers.zeros)  # W_h = 0: no way but the highway
    >>> params = cell.init(jax.random.key(0), 3)
    >>> norms = adjoint_norms(cell, params, jnp.zeros((1000, 3)), lambda states: states.h[-1].sum())
    >>> print(f"{(norms.c[0] - norms.c[999]) / 999:.4f} a step; ln σ(1) = {jnp.log(jax.nn.sigmoid(1.0)):.4f}")
    -0.3133 a step; ln σ(1) = -0.3133
    """
    params, xs, state = scaled.wide((params, xs, state))
    linear = linearised(cell, params, xs, state, lengths=lengths, mask=mask, resets=resets)
    norms = _norms_backwards(linear, jax.grad(loss_fn)(linear.states))
    return blank_padding(norms, lengths)


def adjoints(linear: Linearised, direct: State) -> tuple[State, Array]:
    """`λ_0 … λ_T` as pairs (v, e), leaves ``[T + 1, *B, ...]`` and ``[T + 1, *B]``; to be traced.

    Args:
        linear: the recurrence.
        direct: `∂L/∂s_t` with the other states held.
    """

    def backward(carry, at):
        adjoint, exponent = carry
        step, direct = at
        carry = scaled.add((linear.pull(step, adjoint), exponent), (direct, plain))
        return carry, carry

    plain = jnp.zeros(linear.batch, jnp.int32)
    end = scaled.normalised(jax.tree.map(lambda d: d[-1], direct), plain)
    before = jax.tree.map(lambda d: d[:-1], direct)
    _, rest = lax.scan(backward, end, (linear.steps, before), reverse=True)
    return jax.tree.map(lambda a, e: jnp.concatenate([a, e[None]]), rest, end)


@jax.jit
def _norms_backwards(linear: Linearised, direct: State) -> State:
    vectors, exponents = adjoints(linear, direct)
    return jax.tree.map(lambda leaf: scaled.log_norm(leaf, exponents), vectors)
