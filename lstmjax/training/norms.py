"""The norm of a gradient, and clipping by it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lstmjax.cells.base import wide


def global_norm(tree: Any) -> Array:
    """`‖tree‖₂` over all leaves, in float32 or wider.

    A norm squares: in float32 it would overflow from 1.8e19 and vanish below 1e-22, long before an exploding or
    vanishing gradient itself does. So the leaves are divided by the largest of their elements first.

    >>> round(float(global_norm({"a": jnp.array([3e30]), "b": jnp.array([4e30])})) / 1e30, 5)
    5.0
    """
    leaves = [jnp.abs(leaf.astype(wide(leaf.dtype))) for leaf in jax.tree.leaves(tree) if leaf.size]
    if not leaves:
        return jnp.zeros((), jnp.float32)
    dtype = jnp.result_type(*(leaf.dtype for leaf in leaves))
    largest = jnp.stack([leaf.max().astype(dtype) for leaf in leaves]).max()
    unit = jnp.where(jnp.isfinite(largest) & (largest > 0), largest, jnp.ones_like(largest))
    squares = [jnp.sum(jnp.square(leaf.astype(dtype) / unit)) for leaf in leaves]
    return jnp.sqrt(jnp.stack(squares).sum()) * unit


def clip_by_norm(tree: Any, norm: Array, largest: float) -> Any:
    """The tree scaled down to norm ``largest`` where its norm is above that, else as it was.

    >>> clip_by_norm(jnp.array([3.0, 4.0]), jnp.float32(5), 1.0)
    Array([0.6, 0.8], dtype=float32)
    """
    limit = jnp.asarray(largest, norm.dtype)
    scale = jnp.where(norm > limit, limit / norm, jnp.ones_like(norm))
    return jax.tree.map(lambda leaf: (leaf.astype(norm.dtype) * scale).astype(leaf.dtype), tree)
