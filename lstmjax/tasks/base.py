"""What the long-lag tasks share.

Each task closes over its sizes and returns ``draw(key) -> Batch``, which is pure and can be jitted, so training and
drawing fit into one compiled loop. Criteria are those of Hochreiter & Schmidhuber (1997), "the 1997 paper", unless
another source is named.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from lstmjax.typing import Key


class Batch(NamedTuple):
    """Sequences and what is wanted of them.

    Attributes:
        xs: ``[T, B, I]`` inputs, time-major; zero behind a row's end.
        targets: what is wanted; the task says its shape.
        lengths: ``[B]`` steps of each row, as ``unroll`` takes them.
    """

    xs: Array
    targets: Array
    lengths: Array


Draw = Callable[[Key], Batch]


def outputs_correct(
    outputs: Float[Array, "*B N"], classes: Integer[Array, "*B"], tolerance: float = 0.3
) -> Bool[Array, "*B"]:
    """Which rows the 1997 paper counts as correct: every output, between 0 and 1, within a tolerance of its target.

    >>> outputs_correct(jnp.array([[0.75, 0.25], [0.6, 0.4]]), jnp.array([0, 0])).tolist()
    [True, False]
    """
    outputs = at_least_float32(outputs)
    wanted = jax.nn.one_hot(at_least_32_bits(classes), outputs.shape[-1], dtype=outputs.dtype)
    return (jnp.abs(outputs - wanted) < tolerance).all(-1)


def one_hot_until(ids: Integer[Array, "T B"], size: int, lengths: Integer[Array, " B"]) -> Float[Array, "T B N"]:
    """One-hot rows, zero from each sequence's length on.

    >>> one_hot_until(jnp.array([[1], [0]]), 2, jnp.array([1])).tolist()
    [[[0.0, 1.0]], [[0.0, 0.0]]]
    """
    rows = jax.nn.one_hot(at_least_32_bits(ids), size)
    return jnp.where(steps_taken(len(ids), lengths)[..., None], rows, 0)


def steps_taken(steps: int, lengths: Integer[Array, " B"]) -> Bool[Array, "T B"]:
    """Whether a step comes before its row's end.

    >>> steps_taken(3, jnp.array([1, 2], jnp.int8)).tolist()
    [[True, True], [False, True], [False, False]]
    """
    lengths = at_least_32_bits(lengths)
    return jnp.arange(steps, dtype=lengths.dtype)[:, None] < lengths


def at_least_32_bits(numbers: Integer[Array, "..."]) -> Integer[Array, "..."]:
    """Whole numbers in a dtype in which steps and symbols can be counted: in int8 a count wraps after 127.

    >>> at_least_32_bits(jnp.array([3], jnp.uint8)).dtype
    dtype('int32')
    """
    return numbers if numbers.dtype.itemsize >= 4 else numbers.astype(jnp.int32)


def at_least_float32(numbers: Float[Array, "..."]) -> Float[Array, "..."]:
    """Numbers in a dtype in which a bound such as .2 is not rounded to a neighbour that bfloat16 or float16 has.

    >>> at_least_float32(jnp.ones(2, jnp.bfloat16)).dtype
    dtype('float32')
    """
    return numbers if numbers.dtype.itemsize >= 4 else numbers.astype(jnp.float32)


def all_steps(length: int, batch_size: int) -> Array:
    """Lengths ``[B]`` of rows that are all as long as the batch.

    >>> all_steps(7, 2).tolist()
    [7, 7]
    """
    return jnp.full((batch_size,), length, jnp.int32)
