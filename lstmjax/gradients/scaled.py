"""Vectors with an exponent of their own: v 2^e, for what leaves the range of every floating format.

A pair (vector, exponent) is a pytree, each leaf ``[*B, ...]``, and one whole number for each row, ``[*B]``. The largest
entry of a row is kept near 1. Powers of two round nothing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lstmjax.typing import State

# The exponent of a zero vector: far below any that arises, far from overflowing when two are subtracted.
NOTHING = -(2**24)


def exponent_of(vector: State, batch_axes: int) -> Array:
    """The least n with every |entry| of a row below 2^n."""
    tops = [jnp.abs(leaf).max(range(batch_axes, leaf.ndim), initial=0.0) for leaf in jax.tree.leaves(vector)]
    dtype = np.result_type(np.float32, *(t.dtype for t in tops))
    top = functools.reduce(jnp.maximum, (t.astype(dtype) for t in tops))
    return jnp.where(top == 0, NOTHING, jnp.frexp(top)[1])


def normalised(vector: State, exponent: Array) -> tuple[State, Array]:
    """The same v 2^e with the largest entry of each row in [½, 1)."""
    shift = exponent_of(vector, exponent.ndim)
    return times_power_of_two(vector, -shift), jnp.maximum(exponent + shift, NOTHING)


def add(a: tuple[State, Array], b: tuple[State, Array]) -> tuple[State, Array]:
    """a 2^m + b 2^n as a pair again, the largest entry of either term in [½, 1)."""
    common = functools.reduce(jnp.maximum, (e + exponent_of(v, e.ndim) for v, e in (a, b)))
    common = jnp.maximum(common, NOTHING)
    return jax.tree.map(jnp.add, *(times_power_of_two(v, e - common) for v, e in (a, b))), common


def times_power_of_two(vector: State, exponent: Array) -> State:
    """v 2^e, exact but for what is too small to matter; in halves, since one factor alone could overflow."""

    def scale(leaf):
        most = 2 * (jnp.finfo(leaf.dtype).maxexp - 2)
        clipped = jnp.clip(exponent, -most, most)
        for n in (clipped // 2, clipped - clipped // 2):
            factor = jnp.ldexp(jnp.ones(n.shape, np.promote_types(leaf.dtype, jnp.float32)), n).astype(leaf.dtype)
            leaf = leaf * factor.reshape(n.shape + (1,) * (leaf.ndim - n.ndim))
        return leaf

    return jax.tree.map(scale, vector)


def log_norm(leaf: Array, exponent: Array) -> Array:
    """ln(‖v‖₂ 2^e), over all axes but those of the exponent; −∞ for a zero vector."""
    # A norm squares: the plain one of a float32 vector is 0 below 1e-22. Each leaf is scaled by its own top.
    leaf = leaf.reshape(*exponent.shape, -1).astype(np.promote_types(leaf.dtype, jnp.float32))
    top = jnp.abs(leaf).max(-1, initial=0.0)
    unit = leaf / jnp.where(top == 0, 1.0, top)[..., None]
    norm = jnp.log(top) + 0.5 * jnp.log((unit * unit).sum(-1))
    return jnp.where(top == 0, -jnp.inf, norm + log_of_power(exponent, norm.dtype))


def log_norm_of_all(vector: State, exponent: Array) -> Array:
    """:func:`log_norm` over all leaves together."""
    flat = [leaf.reshape(*exponent.shape, -1) for leaf in jax.tree.leaves(vector)]
    return log_norm(jnp.concatenate(flat, axis=-1), exponent)


def log_of_power(exponent: Array, dtype: np.dtype) -> Array:
    """ln 2^e."""
    return exponent.astype(dtype) * np.log(2.0).astype(dtype)
