"""Real sequences that come with this library."""

import gzip
from importlib import resources

import numpy as np
from numpy.typing import NDArray


def english_text() -> str:
    """English prose, 465,048 characters: the help topics of ``pydoc`` as Python 3.11.7 ships them.

    The text comes with this library, so that it is the same under every version of Python, whose own is not.

    >>> text = english_text()
    >>> len(text), "statement" in text
    (465048, True)
    """
    return _packed("english.txt.gz")


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

    NOAA's normals for 2010, in the public domain.

    >>> series = seattle_temperatures()
    >>> series.shape, abs(float(series.mean())) < 1e-4
    ((8759, 1), True)
    """
    degrees = np.array(_packed("seattle_temperatures.txt.gz").split(), np.float64)
    return ((degrees - degrees.mean()) / degrees.std()).astype(np.float32)[:, None]


def _packed(name: str) -> str:
    """A text that comes with this library: ``data/LICENSE.txt`` says where from."""
    return gzip.decompress((resources.files("lstmjax.tasks") / "data" / name).read_bytes()).decode()
