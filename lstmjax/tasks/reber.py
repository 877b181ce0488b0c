"""The Reber grammar, embedded in a frame whose first choice must be repeated at the end.

A string is B, then T or P, then a string of Reber's grammar, then the same T or P, then E::

    inner    0 -B-> 1    1 -T-> 2, -P-> 3    2 -S-> 2, -X-> 4    3 -T-> 3, -V-> 5    4 -X-> 3, -S-> 6
             5 -P-> 4, -V-> 6    6 -E-> end

Where two symbols are legal each is taken half of the time. Only the last T or P needs a memory: of what was read at
least seven symbols before.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer
from numpy.typing import NDArray

from lstmjax.checks import whole_number
from lstmjax.tasks.base import Batch, steps_taken
from lstmjax.typing import Key

REBER_SYMBOLS = "BTPSXVE"
"""The seven symbols of the grammar, each standing for its place in the string."""

Node = dict[str, int]
_INNER: tuple[Node, ...] = (
    {"B": 1},
    {"T": 2, "P": 3},
    {"S": 2, "X": 4},
    {"T": 3, "V": 5},
    {"X": 3, "S": 6},
    {"P": 4, "V": 6},
    {"E": 7},
)


@functools.cache
def embedded_graph() -> tuple[Node, ...]:
    """The nodes of the embedded grammar: from each, the legal symbols and where they lead. The last E leads to 0.

    >>> len(embedded_graph()), embedded_graph()[1], embedded_graph()[9], embedded_graph()[17]
    (19, {'T': 2, 'P': 10}, {'T': 18}, {'P': 18})
    """

    def inner(start: int) -> list[Node]:
        return [{symbol: start + node for symbol, node in n.items()} for n in _INNER]

    return ({"B": 1}, {"T": 2, "P": 10}, *inner(2), {"T": 18}, *inner(10), {"P": 18}, {"E": 0})


def embedded_reber(strings: int, seed: int = 0) -> Batch:
    """Strings of the embedded Reber grammar, and at each of their symbols which may come next.

    Criterion (Hochreiter & Schmidhuber 1997, experiment 1): at every step of every string, of 256 for training and 256
    for testing, each legal next symbol is more active than each illegal one (:func:`reber_correct`). The paper's LSTM
    needs 8,440 strings in the best of its set-ups; Elman's network never succeeds. Without a memory of the frame the
    last T or P is a guess, and at best half of the strings are correct.

    Drawn on the host, since strings differ in length; the paper does not say how long, and here they are as they come.

    Args:
        strings: how many, B.
        seed: of NumPy's generator. Strings may repeat within a set, and between two.

    Returns:
        A batch with xs ``[T, B, 7]``, one-hot in the order of :data:`REBER_SYMBOLS`, all symbols but the last E, T
        being the most that occur; targets ``[T, B, 7]`` booleans, the legal successors; lengths ``[B]``.

    Raises:
        ValueError: strings is no whole number of at least 1.

    >>> batch = embedded_reber(2)
    >>> [reber_string(batch.xs[:n, b]) for b, n in enumerate(batch.lengths.tolist())]
    ['BPBPVPXTTTTVVEP', 'BPBPVVEP']
    """
    strings = whole_number("strings", strings)
    rng = np.random.default_rng(seed)
    walks = [_walk(rng) for _ in range(strings)]
    longest = max(len(ids) for ids, _ in walks)
    xs = np.zeros((longest, strings, 7), np.float32)
    legal = np.zeros((longest, strings, 7), bool)
    for row, (ids, nodes) in enumerate(walks):
        xs[np.arange(len(ids)), row, ids] = 1
        legal[: len(ids), row] = _tables()[0][nodes]
    lengths = np.array([len(ids) for ids, _ in walks], np.int32)
    return Batch(jnp.asarray(xs), jnp.asarray(legal), jnp.asarray(lengths))


def continual_reber(length: int, batch_size: int) -> Callable[[Key], Batch]:
    """Streams of embedded Reber strings one after another, without a sign where one ends.

    Criterion (Gers et al. 2000): every step of 10 streams of 100,000 symbols right. In their hands the LSTM without
    forget gates reaches it in 0 % of runs, with them in 18 %, with a decaying learning rate in 62 %.

    Args:
        length: T, symbols of each stream.
        batch_size: B, the number of sequences.

    Returns:
        ``draw``: xs ``[T, B, 7]`` one-hot, targets ``[T, B, 7]`` booleans, the legal successors; all rows T long.

    Raises:
        ValueError: a size is no whole number of at least 1.

    >>> batch = jax.jit(continual_reber(40, 2))(jax.random.key(1))
    >>> batch.xs.shape, reber_string(batch.xs[:3, 0]) in ("BTB", "BPB")
    ((40, 2, 7), True)
    """
    length, batch_size = whole_number("length", length), whole_number("batch_size", batch_size)
    legal, symbols, nodes = _tables()

    def draw(key: Key) -> Batch:
        coins = jax.random.randint(key, (length, batch_size), 0, 2)

        def step(node, coin):
            symbol, after = jnp.asarray(symbols)[node, coin], jnp.asarray(nodes)[node, coin]
            return after, (symbol, jnp.asarray(legal)[after])

        start = jnp.zeros((batch_size,), nodes.dtype)
        _, (ids, following) = jax.lax.scan(step, start, coins)
        return Batch(jax.nn.one_hot(ids, 7), following, jnp.full((batch_size,), length, jnp.int32))

    return draw


def reber_correct(
    activations: Float[Array, "T B 7"], legal: Bool[Array, "T B 7"], lengths: Integer[Array, " B"]
) -> Bool[Array, " B"]:
    """Which strings are predicted: at every step, the least active legal symbol above the most active illegal one.

    >>> legal = jnp.array([[[True, True] + [False] * 5]])
    >>> [reber_correct(jnp.array([[row]]), legal, jnp.array([1])).item() for row in
    ...  ([0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0], [0.4, 0.2, 0.3, 0.1, 0.0, 0.0, 0.0])]
    [True, False]
    """
    worst = jnp.where(legal, activations, jnp.inf).min(-1)
    best = jnp.where(legal, -jnp.inf, activations).max(-1)
    return ((worst > best) | ~steps_taken(len(legal), lengths)).all(0)


def reber_string(xs: Float[Array, "T 7"]) -> str:
    """One-hot rows as letters.

    >>> reber_string(jnp.eye(7))
    'BTPSXVE'
    """
    return "".join(REBER_SYMBOLS[i] for i in np.asarray(xs).argmax(-1))


def _walk(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """The symbols of one string without its last E, and the node after each."""
    graph, node, ids, nodes = embedded_graph(), 0, [], []
    while node != 18:
        symbols = list(graph[node])
        symbol = symbols[rng.integers(len(symbols))]
        node = graph[node][symbol]
        ids.append(REBER_SYMBOLS.index(symbol))
        nodes.append(node)
    return ids, nodes


@functools.cache
def _tables() -> tuple[NDArray, NDArray, NDArray]:
    """By node: the legal symbols ``[19, 7]``; by node and coin: the symbol ``[19, 2]`` and the node it leads to."""
    graph = embedded_graph()
    legal = np.array([[s in node for s in REBER_SYMBOLS] for node in graph])
    moves = [[list(node.items())[coin % len(node)] for coin in range(2)] for node in graph]
    symbols = np.array([[REBER_SYMBOLS.index(symbol) for symbol, _ in move] for move in moves], np.int32)
    return legal, symbols, np.array([[node for _, node in move] for move in moves], np.int32)
