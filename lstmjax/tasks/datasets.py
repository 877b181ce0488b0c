"""Real sequences to learn: images row by row, a year at a time, a character at a time."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmjax.checks import whole_number
from lstmjax.tasks.sources import code_points

SUNSPOT_TRAINING = (1700, 1920)
SUNSPOT_TESTS = {"1921-55": (1921, 1955), "1956-79": (1956, 1979), "1921-2008": (1921, 2008)}


class Digits(NamedTuple):
    """Images as sequences of pixels.

    Attributes:
        train_xs: ``[64, N, 1]`` brightness from 0 to 1, left to right and top to bottom.
        train_classes: ``[N]`` 0 to 9.
        test_xs: ``[64, M, 1]``.
        test_classes: ``[M]``.
    """

    train_xs: NDArray
    train_classes: NDArray
    test_xs: NDArray
    test_classes: NDArray


def digits(test_share: float = 0.2, seed: int = 0) -> Digits:
    """Handwritten digits of 8×8 pixels, read one pixel a step; which digit it was is asked for after the last.

    1797 images that ship inside scikit-learn (extra ``tasks``). Criterion: accuracy on the test images, .1 by chance;
    there is no published figure for this form. It stands in for sequential MNIST, for which an LSTM is anywhere from
    24 % to 98.9 % in print.

    Args:
        test_share: of the images kept for testing.
        seed: of the shuffle before the split.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError: test_share leaves one side empty.

    >>> data = digits()
    >>> data.train_xs.shape, data.test_xs.shape, float(data.train_xs.max())
    ((64, 1437, 1), (64, 360, 1), 1.0)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing("digits", "scikit-learn") from error
    data: Any = load_digits()
    train, test = _split(len(data.target), test_share, seed)
    xs = (data.data.T / 16).astype(np.float32)[:, :, None]
    classes = data.target.astype(np.int32)
    return Digits(xs[:, train], classes[train], xs[:, test], classes[test])


class Sunspots(NamedTuple):
    """Sunspots by year.

    Attributes:
        years: ``[309]`` 1700 to 2008.
        activity: ``[309]`` the yearly mean number.
        scaled: ``[309]`` with mean 0 and variance 1 over the training years.
        mean: over the training years.
        deviation: over the training years.
    """

    years: NDArray
    activity: NDArray
    scaled: NDArray
    mean: float
    deviation: float


def sunspots() -> Sunspots:
    """Yearly sunspots, from statsmodels (extra ``tasks``), to be predicted one step ahead.

    Fitted to 1700–1920, tested by the root mean squared error over three spans (:func:`sunspot_errors`): over
    1921–2008 "the same as last year" is at 30.44, an autoregression of order 2 at 20.46 and of order 9 at 17.44.
    A linear model is hard to beat here.

    Raises:
        ImportError: statsmodels is not installed.

    >>> data = sunspots()
    >>> persistence = np.concatenate([data.activity[:1], data.activity[:-1]])
    >>> {span: round(error, 2) for span, error in sunspot_errors(data, persistence).items()}
    {'1921-55': 25.26, '1956-79': 37.98, '1921-2008': 30.44}
    """
    try:
        from statsmodels.datasets import sunspots as source
    except ImportError as error:
        raise _missing("sunspots", "statsmodels") from error
    table: Any = source.load_pandas().data
    years, activity = table["YEAR"].to_numpy().astype(np.int32), table["SUNACTIVITY"].to_numpy()
    training = activity[_within(years, SUNSPOT_TRAINING)]
    mean, deviation = float(training.mean()), float(training.std())
    return Sunspots(years, activity, ((activity - mean) / deviation).astype(np.float32), mean, deviation)


def sunspot_errors(data: Sunspots, predicted: NDArray) -> dict[str, float]:
    """Root mean squared error over each test span, ``"1921-55"``, ``"1956-79"`` and ``"1921-2008"``.

    Args:
        data: from :func:`sunspots`.
        predicted: ``[309]`` each year's activity as foretold from the years before it, unscaled.

    >>> data = sunspots()
    >>> sunspot_errors(data, data.activity)["1921-55"]
    0.0
    """
    squared = (predicted - data.activity) ** 2
    return {name: float(np.sqrt(squared[_within(data.years, span)].mean())) for name, span in SUNSPOT_TESTS.items()}


class Windows(NamedTuple):
    """Text cut for truncated backpropagation: window `w + 1` goes on, in every row, where window w ended.

    Attributes:
        inputs: ``[W, T, B]`` character ids.
        targets: ``[W, T, B]`` the characters that follow.
    """

    inputs: NDArray
    targets: NDArray


class Characters(NamedTuple):
    """Text to learn and text to test on.

    Attributes:
        vocabulary: the characters by id, sorted, of the whole text.
        train: windows of its beginning.
        held_out: windows of its end.
    """

    vocabulary: str
    train: Windows
    held_out: Windows


def character_windows(text: str, steps: int, batch_size: int, held_out: float = 0.1) -> Characters:
    """Text as windows for truncated backpropagation, in contiguous streams.

    Each part is cut into B streams of equal length, and each stream into windows of T steps, so the state of row b
    after one window is its state before the next. What does not fill the last window is left out. Criterion:
    cross-entropy of the next character on held-out text, to be below :func:`bigram_entropy` and, before that, below
    :func:`unigram_entropy`; both are what the best table of such counts reaches on the very text it counts.

    Args:
        text: see :func:`lstmjax.tasks.english_text`.
        steps: T, the length of a window.
        batch_size: B, the number of rows.
        held_out: share of the text, at its end.

    Raises:
        ValueError: a part is too short for one window of every row, a size is no whole number of at least 1, or
            held_out not between 0 and 1.

    >>> text = "abcdefghijklmnopqrstuvwxyz" * 4
    >>> data = character_windows(text, steps=5, batch_size=2, held_out=0.25)
    >>> data.train.inputs.shape, data.held_out.inputs.shape
    ((7, 5, 2), (2, 5, 2))
    >>> [decode_characters(data.vocabulary, data.train.inputs[w, :, 0]) for w in (0, 1)]
    ['abcde', 'fghij']
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; wanted a share between 0 and 1")
    steps, batch_size = whole_number("steps", steps), whole_number("batch_size", batch_size)
    symbols, ids = np.unique(code_points(text), return_inverse=True)
    ids = ids.astype(np.int32)
    border = len(ids) - round(held_out * len(ids))
    parts = [_windows(part, steps, batch_size) for part in (ids[:border], ids[border:])]
    return Characters("".join(map(chr, symbols)), *parts)


def decode_characters(vocabulary: str, ids: NDArray) -> str:
    """Ids as text.

    Raises:
        ValueError: an id is below 0, or there is no such character.

    >>> decode_characters("ab", np.array([1, 0]))
    'ba'
    """
    ids = np.asarray(ids)
    if ids.size and not 0 <= ids.min() <= ids.max() < len(vocabulary):
        raise ValueError(f"ids run from {ids.min()} to {ids.max()}; wanted 0 to {len(vocabulary) - 1}")
    return "".join(vocabulary[i] for i in ids)


def unigram_entropy(text: str) -> float:
    """Bits a character of the best guess that knows how often each occurs: `H = −Σ p(a) log2 p(a)`.

    Raises:
        ValueError: text is empty.

    >>> unigram_entropy("abab")
    1.0
    """
    _check_text(text, 1)
    return _entropy(np.unique(code_points(text), return_counts=True)[1])


def bigram_entropy(text: str) -> float:
    """Bits a character of the best guess that knows the one before: `H = −Σ p(a, b) log2 p(b | a)`.

    Raises:
        ValueError: text has less than two characters.

    >>> bigram_entropy("abab")
    0.0
    """
    _check_text(text, 2)
    ids = np.unique(code_points(text), return_inverse=True)[1].astype(np.int64)
    pairs = np.unique(ids[:-1] * (ids.max() + 1) + ids[1:], return_counts=True)[1]
    return _entropy(pairs) - _entropy(np.unique(ids[:-1], return_counts=True)[1])


def _entropy(counts: NDArray) -> float:
    p = counts / counts.sum()
    return float((p * np.log2(1 / p)).sum())


def _check_text(text: str, least: int) -> None:
    if len(text) < least:
        raise ValueError(f"text has {len(text)} characters; wanted at least {least}")


def _windows(ids: NDArray, steps: int, batch_size: int) -> Windows:
    count = (len(ids) - 1) // (batch_size * steps)
    if count < 1:
        raise ValueError(
            f"a part of the text has {len(ids)} characters; wanted more than {batch_size * steps}, one window of "
            f"{steps} steps in each of {batch_size} rows and the character that follows"
        )
    used = batch_size * count * steps

    def cut(part: NDArray) -> NDArray:
        return np.ascontiguousarray(part.reshape(batch_size, count, steps).transpose(1, 2, 0))

    return Windows(cut(ids[:used]), cut(ids[1 : used + 1]))


def _split(count: int, test_share: float, seed: int) -> tuple[NDArray, NDArray]:
    test = int(np.ceil(test_share * count))
    if not 0 < test < count:
        raise ValueError(f"test_share is {test_share}; wanted a share that leaves examples to train on and to test on")
    order = np.random.default_rng(seed).permutation(count)
    return order[test:], order[:test]


def _within(years: NDArray, span: tuple[int, int]) -> NDArray:
    return (years >= span[0]) & (years <= span[1])


def _missing(name: str, package: str) -> ImportError:
    return ImportError(f"{name} reads data that ship with {package}: pip install 'lstmjax[tasks]'")
