"""The adjoint of an unroll: how much the loss still depends on every state it passed through.

Backpropagation through time is a linear recurrence run backwards,

    λ_t = J_{t+1}ᵀ λ_{t+1} + ∂L/∂s_t,     J_{t+1} = ∂s_{t+1}/∂s_t,

with the loss's direct dependence on s_t on the right and its total dependence, λ_t, on the left. Over a long lag the
product of Jacobians leaves the range of any floating format: 0.5¹⁰⁰⁰ is 1e-301. So the recurrence is run on pairs
λ_t = v_t 2^{e_t}, the largest entry of v_t near 1 and e_t a whole number, whose scaling rounds nothing; and a norm of
1e-3000 is a number where plain backpropagation in float32 would have read 0.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell
from lstmjax.gradients.linear import Linearised, linearised
from lstmjax.typing import Params, State

# The exponent of a zero vector: far below any that arises, far from overflowing when two are subtracted.
_NOTHING = -(2**24)


def adjoint_norms(
    cell: Cell,
    params: Params,
    xs: Any,
    loss_fn: Callable[[State], Array],
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> State:
    """ln ‖∂L/∂s_t‖₂ for every state s_0 … s_T, part by part and row by row, from one backward pass.

    s_0 is the state before the first step and s_t the one after t steps, so in a row that takes n steps s_t lags
    n − t behind the end. The derivative is with respect to one part of the state with the others held: for an LSTM,
    ∂L/∂c_t leaves out the way through h_t, which is in ∂L/∂h_t. Where the loss sees only the last h, ∂L/∂c_T is
    therefore exactly 0, its logarithm −∞, and lag 1 is the first at which c counts.

    Args:
        cell: any cell.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        loss_fn: ``states -> scalar``, differentiable; ``states`` is the history with the initial state in front, each
            leaf ``[T + 1, *B, ...]``. ``states.h[-1]`` is every row's last hidden state, whatever its length. Sum
            over rows: a mean divides every gradient by their number.
        state: the state before the first step; the cell's initial state unless given.
        lengths: as for :func:`~lstmjax.unroll`.
        mask: as for :func:`~lstmjax.unroll`. The gradient passes a skipped step unchanged.
        resets: as for :func:`~lstmjax.unroll`. No gradient passes a reset: −∞ before it.

    Returns:
        Natural logarithms in the form of a state, leaves ``[T + 1, *B]``, float32 (float64 for a float64 state): −∞
        where a gradient is exactly zero, NaN behind a row's end, where there is no state.

    Raises:
        ValueError: as :func:`~lstmjax.unroll`.
        TypeError: as :func:`~lstmjax.unroll`; or the loss is no scalar.

    Source: Hochreiter (1991); Bengio, Simard & Frasconi (1994); Pascanu, Mikolov & Bengio (2013), section 2.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8, w_h_init=jax.nn.initializers.zeros)  # W_h = 0: no way but the highway
    >>> params = cell.init(jax.random.key(0), 3)
    >>> norms = adjoint_norms(cell, params, jnp.zeros((1000, 3)), lambda states: states.h[-1].sum())
    >>> print(f"{(norms.c[0] - norms.c[999]) / 999:.4f} a step; ln σ(1) = {jnp.log(jax.nn.sigmoid(1.0)):.4f}")
    -0.3133 a step; ln σ(1) = -0.3133
    """
    linear = linearised(cell, params, xs, state, lengths=lengths, mask=mask, resets=resets)
    norms = _norms_backwards(linear, jax.grad(loss_fn)(linear.states), batch_axes=jnp.ndim(xs) - 2)
    if lengths is None:
        return norms
    lengths = jnp.asarray(lengths)

    def blank_padding(n):
        times = jnp.arange(n.shape[0], dtype=lengths.dtype).reshape((-1,) + (1,) * lengths.ndim)
        return jnp.where(times <= lengths, n, jnp.nan)

    return jax.tree.map(blank_padding, norms)


@partial(jax.jit, static_argnames="batch_axes")
def _norms_backwards(linear: Linearised, direct: State, batch_axes: int) -> State:
    def backward(carry, at):
        adjoint, exponent = carry
        step, direct = at
        carry = _add_scaled(linear.pull(step, adjoint), exponent, direct, batch_axes)
        return carry, carry

    last = jax.tree.map(lambda d: d[-1], direct)
    nothing = jax.tree.map(jnp.zeros_like, last), jnp.full(jax.tree.leaves(last)[0].shape[:batch_axes], _NOTHING)
    end = _add_scaled(*nothing, last, batch_axes)
    before = jax.tree.map(lambda d: d[:-1], direct)
    _, rest = lax.scan(backward, end, (linear.steps, before), reverse=True, unroll=linear.unroll)
    adjoints, exponents = jax.tree.map(lambda a, e: jnp.concatenate([a, e[None]]), rest, end)
    return jax.tree.map(lambda leaf: _log_norm(leaf, exponents), adjoints)


def _add_scaled(vector: State, exponent: Array, plain: State, batch_axes: int) -> tuple[State, Array]:
    """v 2^e + d as a pair again, scaled by a power of two so that the largest entry of either term is in [½, 1)."""
    common = jnp.maximum(exponent + _exponent(vector, batch_axes), _exponent(plain, batch_axes))
    a, b = _times_power_of_two(vector, exponent - common), _times_power_of_two(plain, -common)
    return jax.tree.map(jnp.add, a, b), common


def _exponent(vector: State, batch_axes: int) -> Array:
    """The least n with every |entry| of a row below 2^n."""
    tops = [jnp.abs(leaf).max(range(batch_axes, leaf.ndim), initial=0.0) for leaf in jax.tree.leaves(vector)]
    dtype = np.result_type(np.float32, *(t.dtype for t in tops))
    top = functools.reduce(jnp.maximum, (t.astype(dtype) for t in tops))
    return jnp.where(top == 0, _NOTHING, jnp.frexp(top)[1])


def _times_power_of_two(vector: State, exponent: Array) -> State:
    """Exact but for what is too small to matter, and applied in halves: one factor alone could overflow."""
    half = jnp.clip(exponent, -250, 250) // 2

    def scale(leaf):
        for n in (half, jnp.clip(exponent, -250, 250) - half):
            factor = jnp.ldexp(jnp.ones(n.shape, leaf.dtype), n)
            leaf = leaf * factor.reshape(n.shape + (1,) * (leaf.ndim - n.ndim))
        return leaf

    return jax.tree.map(scale, vector)


def _log_norm(leaf: Array, exponent: Array) -> Array:
    """ln(‖v‖ 2^e) over all but the axes of the exponents."""
    # A norm squares: the plain one of a float32 vector is 0 below 1e-22. Each part is scaled by its own top.
    leaf = leaf.reshape(*exponent.shape, -1).astype(np.promote_types(leaf.dtype, jnp.float32))
    top = jnp.abs(leaf).max(-1, initial=0.0)
    unit = leaf / jnp.where(top == 0, 1.0, top)[..., None]
    norm = jnp.log(top) + 0.5 * jnp.log((unit * unit).sum(-1))
    return jnp.where(top == 0, -jnp.inf, norm + exponent.astype(norm.dtype) * np.log(2.0).astype(norm.dtype))
