"""The adjoint of an unroll: how much the loss still depends on every state it passed through.

Backpropagation through time is a linear recurrence run backwards,

    λ_t = J_{t+1}ᵀ λ_{t+1} + ∂L/∂s_t,     J_{t+1} = ∂s_{t+1}/∂s_t,

with the loss's direct dependence on s_t on the right and its total dependence, λ_t, on the left. Over a long lag the
product of Jacobians leaves the range of any floating format: 0.5¹⁰⁰⁰ is 1e-301. So the recurrence is run on pairs
λ_t = v_t 2^{e_t}, the largest entry of v_t near 1 and e_t a whole number, whose scaling rounds nothing; and a norm of
1e-3000 is a number where plain backpropagation in float32 would have read 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell
from lstmjax.scan import advance
from lstmjax.typing import Params, State
from lstmjax.unroll import choose, prepare, record_state, run_scan

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
    start, fresh, timeline = prepare(cell, params, xs, state, lengths=lengths, mask=mask, resets=resets)
    _, after = run_scan(cell.step, choose(cell, None), record_state, params, start, fresh, timeline)
    states = jax.tree.map(lambda s, rest: jnp.concatenate([s[None], rest]), start, after)
    norms = _norms_backwards(cell.step, params, fresh, states, timeline, jax.grad(loss_fn)(states))
    if lengths is None:
        return norms
    lengths = jnp.asarray(lengths)

    def blank_padding(n):
        times = jnp.arange(n.shape[0], dtype=lengths.dtype).reshape((-1,) + (1,) * lengths.ndim)
        return jnp.where(times <= lengths, n, jnp.nan)

    return jax.tree.map(blank_padding, norms)


@partial(jax.jit, static_argnums=0)
def _norms_backwards(step, params, fresh, states, timeline, direct):
    batch = timeline.x.shape[1:-1]

    def backward(carry, at):
        adjoint, exponent = carry
        state, now, direct = at
        _, pull_back = jax.vjp(lambda s: advance(step, params, fresh, s, now)[0], state)
        carry = _add_scaled((*pull_back(adjoint), exponent), (direct, jnp.zeros_like(exponent)), batch)
        return carry, _log_norms(*carry, batch)

    before = jax.tree.map(lambda s: s[:-1], (states, direct))
    last = _normalised(jax.tree.map(lambda d: d[-1], direct), jnp.zeros(batch, jnp.int32), batch)
    _, norms = lax.scan(backward, last, (before[0], timeline, before[1]), reverse=True)
    return jax.tree.map(lambda n, end: jnp.concatenate([n, end[None]]), norms, _log_norms(*last, batch))


def _normalised(vector: State, exponent: Array, batch: tuple[int, ...]) -> tuple[State, Array]:
    """The same vector 2^exponent, scaled by a power of two so that its largest entry is in [½, 1)."""
    top = jnp.zeros(batch)
    for leaf in jax.tree.leaves(vector):
        top = jnp.maximum(top, jnp.abs(_rows(leaf, batch)).max(-1, initial=0.0).astype(top.dtype))
    _, shift = jnp.frexp(top)
    exponent = jnp.where(top == 0, _NOTHING, exponent + shift)
    return _times_power_of_two(vector, -shift), exponent


def _add_scaled(a: tuple[State, Array], b: tuple[State, Array], batch) -> tuple[State, Array]:
    """a 2^m + b 2^n, at the larger of the two scales."""
    a, b = _normalised(*a, batch), _normalised(*b, batch)
    common = jnp.maximum(a[1], b[1])
    # Beyond 2^−120 the smaller term is below the last digit of the larger, in every dtype.
    a, b = (_times_power_of_two(v, jnp.maximum(e - common, -120)) for v, e in (a, b))
    return jax.tree.map(jnp.add, a, b), common


def _times_power_of_two(vector: State, exponent: Array) -> State:
    factor = jnp.ldexp(jnp.ones(exponent.shape, jnp.float32), exponent)

    def scale(leaf):
        return leaf * factor.reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim)).astype(leaf.dtype)

    return jax.tree.map(scale, vector)


def _log_norms(vector: State, exponent: Array, batch: tuple[int, ...]) -> State:
    def log_norm(leaf):
        # A norm squares: the plain one of a float32 vector is 0 below 1e-22. Each part is scaled by its own top.
        leaf = _rows(leaf, batch).astype(np.promote_types(leaf.dtype, jnp.float32))
        top = jnp.abs(leaf).max(-1, initial=0.0)
        unit = leaf / jnp.where(top == 0, 1.0, top)[..., None]
        norm = jnp.log(top) + 0.5 * jnp.log((unit * unit).sum(-1))
        return jnp.where(top == 0, -jnp.inf, norm + exponent.astype(norm.dtype) * np.log(2.0).astype(norm.dtype))

    return jax.tree.map(log_norm, vector)


def _rows(leaf: Array, batch: tuple[int, ...]) -> Array:
    return leaf.reshape(*batch, -1)
