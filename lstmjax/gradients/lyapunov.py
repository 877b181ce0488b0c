"""Lyapunov exponents: the rates at which an unroll stretches small differences, direction by direction."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell
from lstmjax.checks import whole_number
from lstmjax.gradients import scaled
from lstmjax.gradients.linear import Linearised, linearised
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.typing import Params, State


@at_highest_precision
def lyapunov_spectrum(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    leading: int | None = None,
    burn_in: int = 0,
) -> Array:
    """The Lyapunov exponents of an unroll, largest first, natural logarithm per step.

    ::

        Q_t R_t = J_t Q_{t−1},     λ_i = 1/(T − burn_in) Σ_t ln |R_t,ii|

    over the *full* state: `2H` numbers for an LSTM, whose slowest direction lies in c. `λ_1 < 0`: differences die out,
    and gradients vanish at that rate; `λ_1 > 0`: chaos, and gradients explode.

    Differentiable with respect to the parameters. Ask for the leading few there: directions whose exponents are equal
    or whose `R_ii` is 0 have no derivative of their own.

    Args:
        cell: any cell, or a bare ``step(params, state, x) -> (state, y)`` together with a ``state``.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        state: the state before the first step; the cell's initial state unless given.
        leading: how many exponents; all n of the state unless given. The cost is that many tangents, and a QR a step.
        burn_in: steps at the start that only turn Q towards the leading directions and are not counted.

    Returns:
        ``[leading, *B]``, float32 at least, −∞ for directions that a step maps to exactly zero.

    Raises:
        ValueError: leading is no whole number from 1 to n, burn_in none from 0 to `T − 1`, or T is 0; or as
            :func:`~lstmjax.unroll`.
        TypeError: as :func:`~lstmjax.unroll`.
        FloatingPointError: parameters, inputs or states are not finite.

    Source: Benettin et al. (1980); for recurrent networks Engelken, Wolf & Abbott (2023). Tools that take the block
    of h alone, `log₂`, or transposed Jacobians give other numbers.

    >>> def henon(params, state, x):
    ...     a, b = params
    ...     return jnp.stack([1 - a * state[0] ** 2 + state[1], b * state[0]]), x
    >>> exponents = lyapunov_spectrum(henon, (1.4, 0.3), jnp.zeros((20_000, 1)), jnp.array([0.1, 0.1]), burn_in=100)
    >>> print(f"{exponents[0]:.2f}, {exponents.sum():.3f} = ln 0.3")  # published: 0.419; they sum to ln b
    0.42, -1.204 = ln 0.3
    """
    params, xs, state = scaled.wide((params, xs, state))
    linear = linearised(cell, params, xs, state)
    steps, size = jnp.shape(xs)[0], sum(linear.sizes)
    leading = size if leading is None else whole_number("leading", leading)
    if leading > size:
        raise ValueError(f"leading is {leading}; wanted 1 to {size}, the numbers in the state")
    if steps == 0:
        raise ValueError("xs holds no step; wanted at least one: an exponent is an average over them")
    burn_in = whole_number("burn_in", burn_in, 0)
    if burn_in >= steps:
        raise ValueError(f"burn_in is {burn_in}; wanted 0 to T − 1 = {steps - 1}")
    return _spectrum(linear, leading, burn_in)


@at_highest_precision
def flossing_penalty(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    leading: int = 1,
    burn_in: int = 0,
) -> Array:
    """`Σ λ_i²` over the leading exponents, averaged over rows: a loss whose descent keeps gradients alive.

    Driving exponents towards zero keeps the condition number of the long-term Jacobian low. Use it as a loss of its own
    before training, or every few hundred steps during it.

    Args:
        cell: as for :func:`lyapunov_spectrum`, and so are the other arguments.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        state: the state before the first step.
        leading: how many exponents.
        burn_in: steps not counted.

    Returns:
        A scalar, differentiable with respect to the parameters.

    Raises:
        ValueError: as :func:`lyapunov_spectrum`, and where there is no row to average over.

    Source: Engelken (2023), gradient flossing.

    >>> import lstmjax
    >>> cell = lstmjax.rnn(4, activation=lambda z: z, w_h_init=lstmjax.init.identity(0.5))
    >>> params = cell.init(jax.random.key(0), 3)
    >>> print(f"{flossing_penalty(cell, params, jnp.zeros((50, 3)), leading=2):.4f}")  # 2 (ln ½)²
    0.9609
    """
    exponents = lyapunov_spectrum(cell, params, xs, state, leading=leading, burn_in=burn_in)
    if not exponents.size:
        raise ValueError(f"xs has batch axes {exponents.shape[1:]}; wanted at least one row to average over")
    return (exponents**2).sum(0).mean()


@partial(jax.jit, static_argnums=(1, 2))
def _spectrum(linear: Linearised, leading: int, burn_in: int) -> Array:
    here = jax.tree.map(lambda leaf: leaf[0], linear.states)
    axes = linear.batch_axes

    def body(q, at):
        columns = _unflat(q, here, axes)
        moved = jax.vmap(partial(linear.push, at), in_axes=axes, out_axes=axes)(columns)
        # No LAPACK takes the narrow floats that a state of the cell's own making may hold.
        q, r = jnp.linalg.qr(scaled.flat(scaled.wide(moved), axes + 1).swapaxes(-1, -2))
        return q.swapaxes(-1, -2), jnp.log(jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1)))

    size = sum(linear.sizes)
    dtype = np.result_type(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(here)))
    # Columns at random, so that none starts orthogonal to a direction it should find; the same for every row and call.
    q, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (size, leading), dtype))
    start = jnp.broadcast_to(q.T, (*linear.batch, leading, size))
    _, logs = lax.scan(body, start, linear.steps)
    return jnp.moveaxis(logs[burn_in:].mean(0), -1, 0)


def _unflat(array: Array, like: State, axes: int) -> State:
    leaves, tree = jax.tree.flatten(like)
    ends = list(itertools.accumulate(math.prod(leaf.shape[axes:]) for leaf in leaves))
    parts = jnp.split(array, ends[:-1], axis=-1)
    shaped = [
        p.reshape(*array.shape[:-1], *leaf.shape[axes:]).astype(leaf.dtype)
        for p, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, shaped)
