"""The picture of the long-lag benchmark: what is left of the error, and how many sequences it took, against the lag."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lstmjax.plot import LINES, STYLE

# The colours of the gradient benchmark, where there are six cells.
STYLES: dict[str, dict[str, Any]] = dict(
    zip(
        ("tanh RNN", "tanh RNN uniform", "GRU", "LSTM b_f=1", "LSTM chrono"),
        (LINES[0], LINES[1], LINES[2], LINES[4], LINES[5]),
        strict=True,
    )
)
FLOOR = 1e-4
"""Errors below this share of the baseline are drawn here; many are exactly 0."""


def long_lag_figure(
    summary: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]
) -> Figure:
    """A column for each task, a line for each cell, a mark for each seed, against the lag.

    Above, the error on fresh sequences over that of remembering nothing, 1 being a memory of nothing. Below, the
    training sequences until the criterion was met; an open mark is a seed that did not meet it, at the sequences it
    was given. Stars are published LSTMs. Lines join medians.

    Args:
        summary: a row for each task, lag and cell.
        records: a row for each run.
        published: rows with ``task``, ``lag`` and, where there is one, ``sequences``.

    Returns:
        The figure.
    """
    tasks = list(dict.fromkeys(r["task"] for r in records))
    cells = list(dict.fromkeys(r["cell"] for r in records))
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(max(4.2, 1.75 * len(tasks) + 0.6), 4.4), dpi=220, layout="constrained")
        grid = figure.subplots(2, len(tasks), squeeze=False, sharex="col", sharey="row")
        for column, task in enumerate(tasks):
            above, below = grid[:, column]
            for i, cell in enumerate(cells):
                own = [r for r in records if (r["task"], r["cell"]) == (task, cell)]
                rows = [r for r in summary if (r["task"], r["cell"]) == (task, cell)]
                rows = sorted(rows, key=lambda r: r["lag"])
                _draw_errors(above, rows, own, STYLES[cell], spread=i - (len(cells) - 1) / 2)
                _draw_sequences(below, rows, own, STYLES[cell], spread=i - (len(cells) - 1) / 2)
            known = [p for p in published if p["task"] == task and "sequences" in p]
            known = [p for p in known if p["lag"] in {r["lag"] for r in records if r["task"] == task}]
            below.plot([p["lag"] for p in known], [p["sequences"] for p in known], "*", color="black", markersize=7)
            _finish(above, below, task, sorted({r["lag"] for r in records if r["task"] == task}))
        grid[0, 0].set_ylabel("error on fresh sequences\nover remembering nothing")
        grid[1, 0].set_ylabel("training sequences\nto the criterion")
        _legend(figure, cells)
    return figure


def _draw_errors(axis: Any, rows: Sequence, records: Sequence, style: Mapping, spread: float) -> None:
    rows = [r for r in rows if r["test_error"] is not None]
    shares = [max(r["test_error"] / r["baseline"], FLOOR) for r in rows]
    axis.plot([r["lag"] * _shift(spread) for r in rows], shares, linewidth=1.2, **style)
    for r in records:
        if r["test_error"] is not None:
            axis.plot(r["lag"] * _shift(spread), max(r["test_error"] / r["baseline"], FLOOR), **_mark(r, style))


def _draw_sequences(axis: Any, rows: Sequence, records: Sequence, style: Mapping, spread: float) -> None:
    rows = [r for r in rows if r["sequences"] is not None]
    axis.plot([r["lag"] * _shift(spread) for r in rows], [r["sequences"] for r in rows], linewidth=1.2, **style)
    for r in records:
        axis.plot(r["lag"] * _shift(spread), r["sequences"] or r["sequences_run"], **_mark(r, style))


def _mark(record: Mapping[str, Any], style: Mapping[str, Any]) -> dict[str, Any]:
    face = style["color"] if record["solved"] else "none"
    return {"marker": "o", "markersize": 3.2, "markerfacecolor": face, "color": style["color"], "markeredgewidth": 0.8}


def _shift(spread: float) -> float:
    """Cells stand side by side at each lag."""
    return 1.0 + 0.035 * spread


def _finish(above: Any, below: Any, task: str, lags: Sequence[int]) -> None:
    above.set_title(task)
    above.set_yscale("log")
    above.axhline(1.0, color="0.5", linewidth=0.8)
    below.set_yscale("log")
    below.set_xscale("log")
    below.set_xlim(min(lags) / 1.4, max(lags) * 1.4)
    below.set_xticks(lags, [str(lag) for lag in lags])
    below.set_xticks([], minor=True)
    below.set_xlabel("lag (steps)")
    for axis in (above, below):
        axis.grid(True)


def _legend(figure: Figure, cells: Sequence[str]) -> None:
    handles = [
        Line2D([], [], label=cell.replace("b_f", "$b_f$"), marker="o", markersize=3.2, **STYLES[cell]) for cell in cells
    ]
    handles += [
        Line2D([], [], label="not solved", marker="o", markerfacecolor="none", color="0.4", linestyle="none"),
        Line2D([], [], label="published", marker="*", color="black", linestyle="none", markersize=7),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
