"""Real sequences that ship inside packages."""

import numpy as np
from numpy.typing import NDArray


def english_text() -> str:
    """The English prose that ships with Python: the help topics of ``pydoc``, some 465,000 characters.

    The text varies a little with the version of Python.

    >>> text = english_text()
    >>> len(text) > 300_000, "statement" in text
    (True, True)
    """
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def code_points(text: str) -> NDArray[np.int32]:
    r"""A text as ``[len(text)]`` numbers, one a character, in the characters' order; ``chr`` leads back.

    NumPy's own strings will not do: they end before a NUL.

    >>> code_points("a\0").tolist()
    [97, 0]
    """
    return np.fromiter(map(ord, text), np.int32, len(text))


def one_hot_text(text: str) -> NDArray[np.float32]:
    """A text as ``[len(text), symbols]``: one row a character, one column a distinct symbol, in sorted order.

    >>> one_hot_text("abba").tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
    """
    symbols, index = np.unique(code_points(text), return_inverse=True)
    return np.eye(len(symbols), dtype=np.float32)[index]


def seattle_temperatures() -> NDArray[np.float32]:
    """Hourly temperatures at Seattle through one year, ``[8759, 1]``, standardised to mean 0 and variance 1.

    NOAA's normals for 2010, in the public domain, as packaged by ``vega_datasets`` (extra ``benchmarks``).

    >>> series = seattle_temperatures()
    >>> series.shape, abs(float(series.mean())) < 1e-4
    ((8759, 1), True)
    """
    from vega_datasets import data

    degrees = data.seattle_temps()["temp"].to_numpy()
    return ((degrees - degrees.mean()) / degrees.std()).astype(np.float32)[:, None]
