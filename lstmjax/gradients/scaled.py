"""Vectors with an exponent of their own: `v 2^e`, for what leaves the range of every floating format.

A pair (vector, exponent) is a pytree, each leaf ``[*B, ...]``, and one whole number for each row, ``[*B]``. The largest
entry of a row is kept near 1. Powers of two round nothing.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lstmjax.typing import State

# What counts as the top of a zero vector: far below any that arises, far from overflowing when two are subtracted.
NOTHING = -(2**24)


def at_highest_precision(function: Callable) -> Callable:
    """The function, its products of float32 taken in float32.

    A TPU, and where JAX is told so a GPU, takes them in fewer digits, which over a thousand steps moves the logarithm
    of a norm.
    """

    @functools.wraps(function)
    def called(*args, **kwargs):
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return called


def wide(tree: Any) -> Any:
    """The tree with every float narrower than float32 as float32: what the instruments compute in.

    Widening rounds nothing. A sum over time in bfloat16 stands still at 256 times its terms, and float16 ends at 65504.
    """

    def widen(leaf):
        dtype = getattr(leaf, "dtype", np.dtype(bool))
        return leaf.astype(jnp.float32) if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else leaf

    return jax.tree.map(widen, tree)


def flat(vector: State, batch_axes: int) -> Array:
    """All leaves of each row side by side, ``[*B, n]``."""
    leaves = jax.tree.leaves(vector)
    dtype = np.result_type(*(leaf.dtype for leaf in leaves))
    # The size in figures: -1 cannot be worked out where a batch axis is empty.
    rows = (leaf.reshape(*leaf.shape[:batch_axes], math.prod(leaf.shape[batch_axes:])) for leaf in leaves)
    return jnp.concatenate([row.astype(dtype) for row in rows], axis=-1)


def exponent_of(vector: State, batch_axes: int) -> Array:
    """The least n with every `|entry|` of a row below `2^n`; ``NOTHING`` where all are zero."""
    leaves = jax.tree.leaves(wide(lax.stop_gradient(vector)))
    tops = [jnp.abs(leaf).max(range(batch_axes, leaf.ndim), initial=0.0) for leaf in leaves]
    dtype = np.result_type(*(t.dtype for t in tops))
    top = functools.reduce(jnp.maximum, (t.astype(dtype) for t in tops))
    return jnp.where(top == 0, NOTHING, jnp.frexp(top)[1])


def normalised(vector: State, exponent: Array) -> tuple[State, Array]:
    """The same `v 2^e` with the largest entry of each row in `[½, 1)`; a zero vector as it was."""
    shift = exponent_of(vector, exponent.ndim)
    shift = jnp.where(shift == NOTHING, 0, shift)
    return times_power_of_two(vector, -shift), exponent + shift


def add(a: tuple[State, Array], b: tuple[State, Array]) -> tuple[State, Array]:
    """`a 2^m + b 2^n` as a pair again, the largest entry of either term in `[½, 1)`."""
    common = functools.reduce(jnp.maximum, (e + exponent_of(v, e.ndim) for v, e in (a, b)))
    # The sum of two zeros is zero at any exponent, and its derivative a number of this format at theirs alone.
    common = jnp.where(common < NOTHING // 2, jnp.minimum(a[1], b[1]), common)
    return jax.tree.map(jnp.add, *(times_power_of_two(v, e - common) for v, e in (a, b))), common


def times_power_of_two(vector: State, exponent: Array) -> State:
    """`v 2^e`, exact but for what is too small to matter; in halves, since one factor alone could overflow."""

    def scale(leaf):
        most = 2 * (jnp.finfo(leaf.dtype).maxexp - 2)
        clipped = jnp.clip(exponent, -most, most)
        for n in (clipped // 2, clipped - clipped // 2):
            factor = jnp.ldexp(jnp.ones(n.shape, np.promote_types(leaf.dtype, jnp.float32)), n).astype(leaf.dtype)
            leaf = leaf * factor.reshape(n.shape + (1,) * (leaf.ndim - n.ndim))
        return leaf

    return jax.tree.map(scale, vector)


def log_norm(vector: State, exponent: Array) -> Array:
    """`ln(‖v‖₂ 2^e)` over all leaves together, row by row; −∞ for a zero vector, whose derivative is taken as 0."""
    # A norm squares: the plain one of a float32 vector is 0 below 1e-22. Each row is scaled by its own top.
    rows = flat(wide(vector), exponent.ndim)
    top = lax.stop_gradient(jnp.abs(rows).max(-1, initial=0.0))
    nothing = top == 0
    top = jnp.where(nothing, 1.0, top)
    squares = ((rows / top[..., None]) ** 2).sum(-1)
    norm = jnp.log(top) + 0.5 * jnp.log(jnp.where(nothing, 1.0, squares)) + log_of_power(exponent, top.dtype)
    return jnp.where(nothing, -jnp.inf, norm)


def log_size(leaf: Array, exponent: Array) -> Array:
    """`ln |v 2^e|` of each entry of a leaf; −∞ of a zero."""
    size = jnp.abs(wide(leaf))
    nothing = size == 0
    shift = log_of_power(exponent, size.dtype)
    log = jnp.log(jnp.where(nothing, 1.0, size)) + shift.reshape(shift.shape + (1,) * (size.ndim - shift.ndim))
    return jnp.where(nothing, -jnp.inf, log)


def log_of_power(exponent: Array, dtype: np.dtype) -> Array:
    """`ln 2^e`."""
    return exponent.astype(dtype) * np.log(2.0).astype(dtype)
