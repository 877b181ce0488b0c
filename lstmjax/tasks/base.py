"""What the long-lag tasks share.

Each task closes over its sizes and returns ``draw(key) -> Batch``, which is pure and can be jitted, so training and
drawing fit into one compiled loop. Criteria are those of Hochreiter & Schmidhuber (1997), "the 1997 paper", unless
another source is named.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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
    outputs: Float[Array, "*B N"], classes: Int[Array, "*B"], tolerance: float = 0.3
) -> Bool[Array, "*B"]:
    """Which rows the 1997 paper counts as correct: every output, between 0 and 1, within a tolerance of its target.

    >>> outputs_correct(jnp.array([[0.75, 0.25], [0.6, 0.4]]), jnp.array([0, 0])).tolist()
    [True, False]
    """
    wanted = jax.nn.one_hot(classes, outputs.shape[-1], dtype=outputs.dtype)
    return (jnp.abs(outputs - wanted) < tolerance).all(-1)


def one_hot_until(ids: Int[Array, "T B"], size: int, lengths: Int[Array, " B"]) -> Float[Array, "T B N"]:
    """One-hot rows, zero from each sequence's length on.

    >>> one_hot_until(jnp.array([[1], [0]]), 2, jnp.array([1])).tolist()
    [[[0.0, 1.0]], [[0.0, 0.0]]]
    """
    within = jnp.arange(len(ids), dtype=lengths.dtype)[:, None] < lengths
    return jax.nn.one_hot(jnp.where(within, ids, -1), size)


def all_steps(length: int, batch_size: int) -> Array:
    """Lengths ``[B]`` of rows that are all as long as the batch.

    >>> all_steps(7, 2).tolist()
    [7, 7]
    """
    return jnp.full((batch_size,), length, jnp.int32)


def check_sizes(batch_size: int, least: int, **sizes: Any) -> None:
    """Raises ValueError where a size is too small for its task."""
    for name, value, wanted in (("batch_size", batch_size, 1), *((n, v, least) for n, v in sizes.items())):
        if value < wanted:
            raise ValueError(f"{name} is {value}; wanted at least {wanted}")
