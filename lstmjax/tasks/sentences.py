"""The sentence whose verb depends on its first word.

Today, due to my current job situation and family conditions, I need to take a loan.
Last year, due to my current job situation and family conditions, I had to take a loan.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from lstmjax.checks import whole_number
from lstmjax.tasks.base import Batch, Draw
from lstmjax.typing import Key

_OPENINGS, _VERBS = ("Today", "Last year"), ("need", "had")
_BEFORE = (",", "due", "to", "my")
_AFTER = ("current", "job", "situation", "and", "family", "conditions", ",", "I")
_ENDING = ("to", "take", "a", "loan", ".")
_ADJECTIVES = (
    "bad", "busy", "changed", "costly", "difficult", "hard", "long", "new", "odd", "old", "quiet", "rough", "short",
    "strange", "tight", "troubled",
)  # fmt: skip

LOAN_VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys((*_OPENINGS, *_VERBS, *_BEFORE, *_AFTER, *_ENDING, *_ADJECTIVES))
)
"""The words of the loan sentences, each standing for its place in the list."""


def loan_sentences(gap: int, batch_size: int) -> Draw:
    """Sentences up to the word before the verb; the first word decides whether it is "need" or "had".

    Today / Last year, due to my *gap adjectives* current job situation and family conditions, I …

    The adjectives are drawn at random, each from all sixteen, so that nothing but the first word tells the verb, which
    comes ``gap + 13`` words later. "Last year" is one word here, so that both sentences are equally long.

    Criterion: the right verb on the 2000 most recent sentences; by chance one of two is right, a cross-entropy of
    `ln 2 = .693`. The sentences are those of the slides; the gap and the criterion are ours.

    Args:
        gap: adjectives put in, 0 or more.
        batch_size: B, the number of sequences.

    Returns:
        ``draw``: xs ``[gap + 13, B, V]`` one-hot over :data:`LOAN_VOCABULARY`, targets ``[B]``: 0 for "need", 1 for
        "had".

    Raises:
        ValueError: gap is no whole number of at least 0, or batch_size none of at least 1.

    >>> batch = jax.jit(loan_sentences(gap=0, batch_size=8))(jax.random.key(0))
    >>> for text in sorted({loan_text(batch.xs[:, b], batch.targets[b]) for b in range(8)}):
    ...     print(text)
    Last year, due to my current job situation and family conditions, I had to take a loan.
    Today, due to my current job situation and family conditions, I need to take a loan.
    """
    gap, batch_size = whole_number("gap", gap, 0), whole_number("batch_size", batch_size)
    openings, before, after, adjectives = map(_ids, (_OPENINGS, _BEFORE, _AFTER, _ADJECTIVES))

    def draw(key: Key) -> Batch:
        k_first, k_gap = jax.random.split(key)
        verbs = jax.random.randint(k_first, (batch_size,), 0, 2)
        filler = adjectives[jax.random.randint(k_gap, (gap, batch_size), 0, len(adjectives))]
        parts = _rows(before, batch_size), filler, _rows(after, batch_size)
        ids = jnp.concatenate([openings[verbs][None], *parts])
        return Batch(jax.nn.one_hot(ids, len(LOAN_VOCABULARY)), verbs, jnp.full((batch_size,), len(ids), jnp.int32))

    return draw


def loan_text(xs: Float[Array, "T V"], verb: int | Integer[Array, ""]) -> str:
    """One sentence in words: what was read, the verb (0 for "need", 1 for "had"), and how it ends.

    >>> words = jnp.array([LOAN_VOCABULARY.index(word) for word in ("Today", ",", "I")])
    >>> loan_text(jax.nn.one_hot(words, len(LOAN_VOCABULARY)), 0)
    'Today, I need to take a loan.'
    """
    words = [LOAN_VOCABULARY[i] for i in np.asarray(xs).argmax(-1)]
    text = " ".join([*words, _VERBS[int(verb)], *_ENDING])
    return text.replace(" ,", ",").replace(" .", ".")


def _ids(words: Sequence[str]) -> Array:
    return jnp.array([LOAN_VOCABULARY.index(word) for word in words])


def _rows(ids: Array, batch_size: int) -> Array:
    return jnp.broadcast_to(ids[:, None], (len(ids), batch_size))
