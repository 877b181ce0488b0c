"""Where batches come from, and how far along it is."""

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax.training.metrics import plain


def check_batches(batches: Any) -> None:
    """Refuses one batch where batches are wanted, whose time steps or fields would else be taken for batches.

    A list is a list of batches; a tuple of arrays is one batch, such as (inputs, targets).

    Raises:
        TypeError: it is one batch: an array, a dict, a named tuple or a tuple of arrays; or it is neither iterable
            nor a function.

    >>> check_batches((np.ones((20, 4, 3)), np.ones(4)))
    Traceback (most recent call last):
        ...
    TypeError: batches is a tuple of arrays, which looks like one batch; wanted an iterable of batches, such as [batch]
    """
    name = type(batches).__name__
    if _is_array(batches):
        one = f"an array of shape {batches.shape}"
    elif isinstance(batches, Mapping) or hasattr(batches, "_fields"):
        one = f"a {name}"
    elif isinstance(batches, tuple) and len(batches) > 0 and all(map(_is_array, batches)):
        one = "a tuple of arrays"
    else:
        one = None
    if one is not None:
        raise TypeError(f"batches is {one}, which looks like one batch; wanted an iterable of batches, such as [batch]")
    if not (callable(batches) or hasattr(batches, "__iter__")):
        raise TypeError(f"batches is {name}; wanted an iterable of batches, or a function of a key")


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


class Batches:
    """Batches in order, from any iterable, with a position that can be saved.

    An iterator that knows its state (Grain's: ``get_state``, ``set_state``) is asked for it. Of any other iterable
    the position is the number of batches taken, and to come back there they are taken again. An iterable that ends
    is begun again; an iterator that ends, ends.

    Args:
        source: a Grain dataset, loader or iterator, or any iterable of batches.

    >>> batches = Batches([np.zeros(2), np.ones(2)])
    >>> batches.take(3)[:, 0]
    array([0., 1., 0.])
    >>> batches.position()
    {'taken': 3}
    """

    def __init__(self, source: Iterable[Any]) -> None:
        self._source = source
        self._iterator: Iterator[Any] = iter(source)
        self._taken = 0

    def take(self, count: int) -> Any:
        """The next ``count`` batches, stacked on a new first axis."""
        return stack([self._next() for _ in range(count)], self._taken - count + 1)

    def position(self) -> dict[str, Any]:
        """Where the next batch will come from, as JSON has it."""
        if not self._knows_its_state():
            return {"taken": self._taken}
        state = self._iterator.get_state()  # pyright: ignore[reportAttributeAccessIssue]
        encoded = {"bytes": base64.b64encode(state).decode()} if isinstance(state, bytes) else {"state": state}
        return {"taken": self._taken, **encoded}

    def go_to(self, position: dict[str, Any]) -> None:
        """Comes back to a position."""
        if self._knows_its_state() != ("bytes" in position or "state" in position):
            kinds = {True: "an iterator with a state", False: "a count of batches"}
            raise ValueError(
                f"batches is {type(self._source).__name__}, {kinds[self._knows_its_state()]}, and the checkpoint holds "
                f"the position of {kinds[not self._knows_its_state()]}; wanted the batches that it was saved with"
            )
        if self._knows_its_state():
            state = base64.b64decode(position["bytes"]) if "bytes" in position else position["state"]
            self._iterator.set_state(state)  # pyright: ignore[reportAttributeAccessIssue]
            self._taken = position["taken"]
        else:
            while self._taken < position["taken"]:
                self._next()

    def _next(self) -> Any:
        try:
            batch = next(self._iterator)
        except StopIteration:
            batch = self._begin_again()
        self._taken += 1
        return batch

    def _begin_again(self) -> Any:
        again = iter(self._source)
        if again is self._source:
            raise ValueError(f"batches ended after {self._taken}; wanted more, or an iterable that can begin again")
        self._iterator = again
        try:
            return next(again)
        except StopIteration:
            raise ValueError("batches is empty; wanted at least one batch") from None

    def _knows_its_state(self) -> bool:
        return hasattr(self._iterator, "get_state") and hasattr(self._iterator, "set_state")


def stack(batches: list[Any], first: int) -> Any:
    """Batches stacked leaf by leaf, ``[count, ...]``; on the device where they are there already."""
    shapes = [jax.tree.map(np.shape, batch) for batch in batches]
    for i, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise ValueError(
                f"batch {first + i} has shapes {shape}, and batch {first} {shapes[0]}; wanted all alike where several "
                "steps are one call: drop the remainder of the data, pad it, or let steps_per_call be 1"
            )

    def join(*leaves):
        if any(isinstance(leaf, jax.Array) for leaf in leaves):
            return jnp.stack(leaves)
        return np.asarray(leaves[0])[None] if len(leaves) == 1 else np.stack(leaves)

    return jax.tree.map(join, *batches)


def everyones(position: dict[str, Any] | None) -> list[Any]:
    """Every process's position, by its index."""
    if jax.process_count() == 1:
        return [plain(position)]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(plain(position)).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: text.size] = text
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:n].tobytes()) for row, n in zip(rows, lengths, strict=True)]
