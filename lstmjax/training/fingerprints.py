"""Fingerprints of arrays: whether what was read is what was written, bit for bit.

Storage checks little: a flipped bit inside a chunk is read back without a word. A fingerprint is a sum, modulo `2³²`,
of the bits of every element mixed with its place. Sums of integers come out the same in any order, so it is made where
the array lies, on any number of devices, and stays the same on any other number. One changed word always changes it.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array


def fingerprints(tree: Any) -> dict[str, int]:
    """A number from 0 to `2³² − 1` for every leaf, by its path.

    >>> a, b = fingerprints({"w": jnp.ones(3)}), fingerprints({"w": jnp.array([1.0, 1.0, 1.0000001])})
    >>> list(a), a == b
    (["['w']"], False)
    """
    leaves = {jax.tree_util.keystr(path): words(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}
    return {path: int(value) for path, value in jax.device_get(_sums(leaves)).items()}


def words(leaf: Any) -> Array:
    """The array behind a leaf: a random key's data, any other as it is."""
    leaf = jnp.asarray(leaf)
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@jax.jit
def _sums(leaves: dict[str, Array]) -> dict[str, Array]:
    return {path: _sum(leaf) for path, leaf in leaves.items()}


def _sum(leaf: Array) -> Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _sum(leaf.real) + jnp.uint32(31) * _sum(leaf.imag)
    bits = _bits(leaf)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(bits.shape):
        stride = math.prod(bits.shape[axis + 1 :]) % 2**32
        place = place + lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride)
        del size
    return jnp.sum(_mix(bits ^ _mix(place + jnp.uint32(0x9E3779B9))), dtype=jnp.uint32)


def _bits(leaf: Array) -> Array:
    """The elements as uint32; of eight bytes, two."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[np.dtype(leaf.dtype).itemsize]
    return lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)


def _mix(x: Array) -> Array:
    """A bijection of 32-bit words that leaves no two alike: two rounds of xor-shift and odd multiplication."""
    for multiplier in (0x7FEB352D, 0x846CA68B):
        x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(multiplier)
    return x ^ (x >> jnp.uint32(16))
