"""Whether two cells differ: their rates of decay over the same seeds, held against one another."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np


class Difference(NamedTuple):
    """How two cells' rates of decay differ, seed by seed.

    Attributes:
        first: a cell.
        second: another.
        median: the median over seeds of `first − second`.
        least: the least over seeds.
        greatest: the greatest over seeds.
        p: the probability of differences as lopsided as these if neither cell were the faster (two-sided, exact up to
            50 seeds); NaN where a rate is.
        p_holm: the same, raised for as many pairs as were compared: below .05 for one pair in 20 comparisons at most
            where no two cells differ.
    """

    first: str
    second: str
    median: float
    least: float
    greatest: float
    p: float
    p_holm: float


def rate_differences(rates: Mapping[str, Sequence[float] | Any]) -> list[Difference]:
    """Every pair of cells, with the Wilcoxon signed-rank test of whether their rates differ.

    The test takes the same seeds of both cells as pairs and assumes no distribution. It can tell two cells apart at the
    level .05 from six seeds on, and 15 pairs of six cells from ten on.

    Args:
        rates: for each cell ``[seeds]`` rates, such as ``decay_fit(...).rate``, the seeds in one order.

    Returns:
        A :class:`Difference` for each pair, in the order of the cells.

    Raises:
        ValueError: the cells have not one number of seeds.

    Source: Wilcoxon (1945); Holm (1979) for several pairs; Demšar (2006) for the use of both to compare models.

    >>> slow, fast = np.linspace(-0.10, -0.09, 8), np.linspace(-0.33, -0.30, 8)
    >>> (difference,) = rate_differences({"LSTM": slow, "RNN": fast})
    >>> f"{difference.median:.3f}, p = {difference.p:.4f}"
    '0.220, p = 0.0078'
    """
    values = {name: np.asarray(rate, np.float64) for name, rate in rates.items()}
    if len({v.shape for v in values.values()}) > 1 or any(v.ndim != 1 for v in values.values()):
        shapes = {name: v.shape for name, v in values.items()}
        raise ValueError(f"rates have shapes {shapes}; wanted [seeds], of one number of seeds")
    pairs = list(combinations(values, 2))
    ps = [_p_value(values[a] - values[b]) for a, b in pairs]
    raised = _holm(ps)
    found = []
    for (a, b), p, p_holm in zip(pairs, ps, raised, strict=True):
        between = values[a] - values[b]
        found.append(Difference(a, b, float(np.median(between)), float(min(between)), float(max(between)), p, p_holm))
    return found


def _p_value(differences: np.ndarray) -> float:
    from scipy.stats import wilcoxon  # slow to import, and wanted here alone

    if not np.isfinite(differences).all():
        return float("nan")
    if not differences.any():
        return 1.0
    result: Any = wilcoxon(differences)
    return float(result.pvalue)


def _holm(ps: list[float]) -> list[float]:
    """Holm's step-down: the n-th smallest of k times k − n + 1, none below one that is smaller."""
    raised, least = list(ps), 0.0
    known = sorted((n for n, p in enumerate(ps) if not np.isnan(p)), key=lambda n: ps[n])
    for rank, n in enumerate(known):
        least = max(least, min(1.0, ps[n] * (len(known) - rank)))
        raised[n] = least
    return raised
