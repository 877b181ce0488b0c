"""The picture of the long-lag benchmark: what is left of the error, and how many sequences it took, against the lag."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lstmjax.plot import LINES, STYLE

# The colours of the gradient benchmark.
STYLES: dict[str, dict[str, Any]] = dict(
    zip(
        ("tanh RNN", "tanh RNN uniform", "GRU", "GRU chrono", "LSTM b_f=1", "LSTM chrono"),
        (LINES[0], LINES[1], LINES[2], LINES[6], LINES[4], LINES[5]),
        strict=True,
    )
)
FLOOR = 1e-4
"""Errors below this share of the baseline are drawn here; many are exactly 0."""


def long_lag_figure(
    summary: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]
) -> Figure:
    """Two panels for each task, four tasks side by side; a line for each cell, a mark for each seed, against the lag.

    Above, the error on fresh sequences over that of remembering nothing, 1 being a memory of nothing. Below, the
    training sequences until the criterion was met; an open mark is a seed that did not meet it, at the sequences it
    was given. Stars are published LSTMs. Lines join medians; cells stand side by side at each lag.

    Args:
        summary: a row for each task, lag and cell.
        records: a row for each run.
        published: rows with ``task``, ``lag`` and, where there is one, ``sequences``.

    Returns:
        The figure.
    """
    tasks = list(dict.fromkeys(r["task"] for r in records))
    cells = [cell for cell in STYLES if any(r["cell"] == cell for r in records)]
    across = min(4, len(tasks))
    with plt.rc_context(STYLE):
        bands = math.ceil(len(tasks) / across)
        figure = Figure(figsize=(max(4.2, 1.9 * across + 0.6), 4.1 * bands), dpi=220, layout="constrained")
        grid = figure.subplots(2 * bands, across, squeeze=False, sharey="row")
        for unused in grid[-2:, len(tasks) - across * (bands - 1) :].flat:
            unused.axis("off")
        for place, task in enumerate(tasks):
            above, below = grid[2 * (place // across) :, place % across][:2]
            lags = sorted({r["lag"] for r in records if r["task"] == task})
            for i, cell in enumerate(cells):
                own = [r for r in records if (r["task"], r["cell"]) == (task, cell)]
                rows = [r for r in summary if (r["task"], r["cell"]) == (task, cell)]
                rows = sorted(rows, key=lambda r: r["lag"])
                beside = (2 * max(lags) / min(lags)) ** (0.025 * (i - (len(cells) - 1) / 2))
                _draw_errors(above, rows, own, STYLES[cell], beside)
                _draw_sequences(below, rows, own, STYLES[cell], beside)
            known = [p for p in published if p["task"] == task and "sequences" in p]
            known = [p for p in known if p["lag"] in lags]
            below.plot([p["lag"] for p in known], [p["sequences"] for p in known], "*", color="black", markersize=7)
            _finish(above, below, task, lags)
        for above, below in grid[:, 0].reshape(-1, 2):
            above.set_ylabel("error on fresh sequences\nover remembering nothing")
            below.set_ylabel("training sequences\nto the criterion")
        _legend(figure, cells)
    return figure


def _draw_errors(axis: Any, rows: Sequence, records: Sequence, style: Mapping, beside: float) -> None:
    rows = [r for r in rows if r["test_error"] is not None]
    shares = [max(r["test_error"] / r["baseline"], FLOOR) for r in rows]
    axis.plot([r["lag"] * beside for r in rows], shares, linewidth=1.2, **style)
    for r in records:
        if r["test_error"] is not None:
            axis.plot(r["lag"] * beside, max(r["test_error"] / r["baseline"], FLOOR), **_mark(r, style))


def _draw_sequences(axis: Any, rows: Sequence, records: Sequence, style: Mapping, beside: float) -> None:
    rows = [r for r in rows if r["sequences"] is not None]
    axis.plot([r["lag"] * beside for r in rows], [r["sequences"] for r in rows], linewidth=1.2, **style)
    for r in records:
        axis.plot(r["lag"] * beside, r["sequences"] or r["sequences_run"], **_mark(r, style))


def _mark(record: Mapping[str, Any], style: Mapping[str, Any]) -> dict[str, Any]:
    face = style["color"] if record["solved"] else "none"
    return {"marker": "o", "markersize": 3.2, "markerfacecolor": face, "color": style["color"], "markeredgewidth": 0.8}


def _finish(above: Any, below: Any, task: str, lags: Sequence[int]) -> None:
    above.set_title(task)
    above.set_yscale("log")
    above.axhline(1.0, color="0.5", linewidth=0.8)
    below.set_yscale("log")
    below.set_xlabel("lag (steps)")
    for axis in (above, below):
        axis.set_xscale("log")
        axis.set_xlim(min(lags) / 1.4, max(lags) * 1.4)
        axis.set_xticks(lags, [str(lag) for lag in lags])
        axis.set_xticks([], minor=True)
        axis.grid(True)
    above.tick_params(labelbottom=False)


def _legend(figure: Figure, cells: Sequence[str]) -> None:
    handles = [
        Line2D([], [], label=cell.replace("b_f", "$b_f$"), marker="o", markersize=3.2, **STYLES[cell]) for cell in cells
    ]
    handles += [
        Line2D([], [], label="not solved", marker="o", markerfacecolor="none", color="0.4", linestyle="none"),
        Line2D([], [], label="published", marker="*", color="black", linestyle="none", markersize=7),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
