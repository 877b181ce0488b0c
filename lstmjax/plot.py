"""Every figure of measurements, in one place; the unit itself is drawn by :mod:`lstmjax.drawing`.

Needs matplotlib: ``pip install 'lstmjax[plots]'``.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

try:
    import matplotlib.pyplot as plt
except ImportError as error:
    raise ImportError(f"figures want matplotlib: pip install 'lstmjax[plots]' ({error})") from error
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator
from numpy.typing import NDArray

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.4,
    "grid.color": "0.88",
}

# Okabe & Ito's colours, which people with any colour vision tell apart; dashes serve those who print in grey.
LINES = [
    {"color": "#000000", "linestyle": (0, (1, 1))},
    {"color": "#D55E00", "linestyle": (0, (4, 1.2))},
    {"color": "#E69F00", "linestyle": (0, (4, 1, 1, 1))},
    {"color": "#56B4E9", "linestyle": (0, (6, 1.5))},
    {"color": "#0072B2", "linestyle": "-"},
    {"color": "#009E73", "linestyle": "-"},
    {"color": "#CC79A7", "linestyle": (0, (2, 1))},
]

# A line belongs to its cell, whatever else a figure shows.
CELL_LINES = {
    "tanh RNN": 0, "RNN": 0, "rnn": 0, "identity ReLU RNN": 1, "GRU": 2, "gru": 2, "GRU chrono": 6,
    "LSTM b_f=0": 3, "LSTM b_f=1": 4, "LSTM": 4, "lstm": 4, "LSTM chrono": 5,
}  # fmt: skip

# How many decades above the level where float32 reads 0 a curve is near it.
NEAR = 6.0


class Curve(NamedTuple):
    """One line of a figure.

    Attributes:
        x: ``[N]`` where it is measured: lags in steps, layers, a setting.
        y: ``[seeds, N]`` what is measured; of norms the base-10 logarithms, −∞ for one that is exactly zero. The line
            is the median over seeds, the band runs from the least to the greatest.
    """

    x: NDArray
    y: NDArray


def gradient_decay(panels: Mapping[str, Mapping[str, Curve]], *, underflow: float | None = None) -> Figure:
    """Gradient norm against lag, over its value at the first lag, a panel for each input, a line for each cell.

    Args:
        panels: curves by panel title and cell; those of a known cell have its colour in every figure.
        underflow: base-10 logarithm below which a plain backward pass would read zero, where the loss is scaled so that
            the gradient at the first lag is 1; a line marks it if a curve comes near.

    Returns:
        The figure; save it with ``figure.savefig``.

    Raises:
        ValueError: there is no curve.

    >>> lags = np.arange(100)
    >>> curve = Curve(lags, np.log10(0.5) * lags[None] + np.array([[0.0], [0.3]]))
    >>> gradient_decay({"white noise": {"tanh RNN": curve}}).axes[0].get_xlabel()
    'lag (steps)'
    """
    ylabel = r"gradient norm  $\|\partial L/\partial h_{T-\mathrm{lag}}\|\;/\;\|\partial L/\partial h_T\|$"
    over_first = {title: {name: _over_first(c) for name, c in curves.items()} for title, curves in panels.items()}
    return bands(over_first, xlabel="lag (steps)", ylabel=ylabel, underflow=underflow)


def bands(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    xlabel: str,
    ylabel: str,
    logarithmic: bool = True,
    underflow: float | None = None,
) -> Figure:
    """Lines with bands over seeds, a panel for each title, one y axis and one legend for all.

    Args:
        panels: curves by panel title and name.
        xlabel: what x is, with its unit.
        ylabel: what y is, with its unit.
        logarithmic: whether y holds base-10 logarithms.
        underflow: as for :func:`gradient_decay`.

    Returns:
        The figure.

    Raises:
        ValueError: there is no curve.

    >>> curve = Curve(np.arange(3), np.zeros((1, 3)))
    >>> bands({"depth": {"tanh": curve}}, xlabel="layer", ylabel="gradient norm").axes[0].get_xlabel()
    'layer'
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    if not names:
        raise ValueError("panels hold no curve; wanted at least one")
    with plt.rc_context(STYLE):
        # A figure of its own, outside pyplot's global list, so that nothing has to be closed.
        width = {1: 4.2, 2: 6.0}.get(len(panels), 2.3 * len(panels) + 0.6)
        figure = Figure(figsize=(width, 3.0), dpi=220, layout="constrained")
        axes = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
        styles = lines_of(names)
        for axis, (title, curves) in zip(axes, panels.items(), strict=True):
            for name, curve in curves.items():
                _draw_band(axis, curve, label=name, **styles[name])
            axis.set_title(title)
            axis.set_xlabel(xlabel)
            axis.set_xlim(min(c.x.min() for c in curves.values()), max(c.x.max() for c in curves.values()))
            whole = all(np.issubdtype(c.x.dtype, np.integer) for c in curves.values())
            axis.xaxis.set_major_locator(MaxNLocator(4 if whole else 7, integer=whole))
            axis.grid(True)
        if underflow is not None and _lowest(panels) < underflow + NEAR:
            _mark_underflow(axes, underflow)
        axes[0].set_ylabel(ylabel)
        if logarithmic:
            axes[0].yaxis.set_major_locator(MaxNLocator(7, integer=True))
            axes[0].yaxis.set_major_formatter(lambda value, _: f"$10^{{{value:g}}}$")
        _shared_legend(figure, axes, names, columns=3 if len(panels) == 1 else 6)
    return figure


def lines_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and dashes for each name, all different: a known cell's own, and another's by its name alone.

    Where two names would have one line, the later of them in the alphabet has the next that is free, so that no order
    of the names matters.

    >>> lines_of(["GRU"]) == {"GRU": lines_of(["tanh RNN", "mgu", "GRU"])["GRU"]}
    True
    """
    known = {name: CELL_LINES[n] for name in names if (n := name.replace("$", "")) in CELL_LINES}
    places: dict[str, int] = {}
    for name in [*known, *sorted(set(names) - set(known))]:
        place = known.get(name, zlib.crc32(name.encode()) % len(LINES))
        start = place
        while place in places.values():  # the colours first, and then the same ones with other dashes
            turn = place // len(LINES) * len(LINES)
            place = turn + (place + 1) % len(LINES)
            if place == turn + start % len(LINES):
                place += len(LINES)
        places[name] = place
    return {name: _style(places[name]) for name in names}


def _style(place: int) -> dict[str, Any]:
    turn, colour = divmod(place, len(LINES))
    dashes = LINES[colour]["linestyle"] if turn == 0 else (0, (1, 1, 1 + 3 * turn, 1))
    return {"color": LINES[colour]["color"], "linestyle": dashes}


def speed_ratios(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Every implementation's time over lstmjax's, a panel for each pass, a group of marks for each point.

    Args:
        records: rows with ``implementation``, ``pass``, ``T``, ``B``, ``I``, ``H`` and ``ratio_to_lstmjax``.

    Returns:
        The figure. Right of the line at 1, lstmjax is the faster.

    >>> row = {"implementation": "Haiku", "pass": "train", "T": 9, "B": 8, "I": 7, "H": 6, "ratio_to_lstmjax": 1.2}
    >>> speed_ratios([row]).axes[0].get_title()
    'train'
    """
    passes = list(dict.fromkeys(r["pass"] for r in records))
    names = [n for n in dict.fromkeys(r["implementation"] for r in records) if n != "lstmjax"]
    points = list(dict.fromkeys((r["T"], r["B"], r["I"], r["H"]) for r in records))
    markers = "osD^vP*X<>"
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.5 + 0.32 * len(points)), dpi=220, layout="constrained")
        axes = list(figure.subplots(1, len(passes), sharey=True, squeeze=False)[0])
        for axis, pass_name in zip(axes, passes, strict=True):
            axis.axvline(1.0, color="0.3", linewidth=0.8)
            for n, name in enumerate(names):
                rows = [r for r in records if r["pass"] == pass_name and r["implementation"] == name]
                axis.plot(
                    [r["ratio_to_lstmjax"] for r in rows],
                    [points.index((r["T"], r["B"], r["I"], r["H"])) for r in rows],
                    markers[n % len(markers)], color=LINES[n % len(LINES)]["color"], label=name, markersize=4,
                    alpha=0.85, markeredgewidth=0,
                )  # fmt: skip
            axis.set_title(pass_name)
            axis.set_xlabel("time / time of lstmjax")
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(FixedLocator([0.5, 0.7, 1, 1.5, 2, 3, 5]))
            axis.xaxis.set_minor_locator(FixedLocator([]))
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.grid(True)
        axes[0].set_yticks(range(len(points)), [",".join(map(str, p)) for p in points])
        axes[0].set_ylabel("T, B, I, H")
        axes[0].invert_yaxis()
        _shared_legend(figure, axes, names, columns=4)
    return figure


def fixed_points(points: Any, states: Any = None) -> Figure:
    """Fixed and slow points where the states lie widest, next to their eigenvalues in the complex plane.

    Args:
        points: from :func:`~lstmjax.gradients.fixed_points`, at least one.
        states: states with any leading axes, such as a history: the grey dots behind the points.

    Returns:
        The figure. The left panel shows the two principal components of states and points together, with their share of
        the variance; the circle of the right one is `|λ| = 1`, within which differences die out.

    Raises:
        ValueError: there is no point.

    >>> from lstmjax.gradients import FixedPoints
    >>> two, one = np.zeros((2, 3)), np.ones(2, bool)
    >>> points = FixedPoints(np.eye(3)[:2], two[:, 0], one, one, 0.5 + two, two, two, one)
    >>> fixed_points(points).axes[1].get_title()
    'eigenvalues'
    """
    if not len(points.speed):
        raise ValueError("points hold none; wanted at least one fixed or slow point")
    sizes = [math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(points.states)]
    places, seen = (
        np.concatenate([np.reshape(leaf, (-1, n)) for leaf, n in zip(jax.tree.leaves(s), sizes, strict=True)], axis=1)
        for s in (points.states, points.states if states is None else states)
    )
    everything = np.concatenate([places, seen]).astype(np.float64)
    middle = everything.mean(0)
    _, widths, directions = np.linalg.svd(everything - middle, full_matrices=False)
    shares = widths**2 / max((widths**2).sum(), np.finfo(float).tiny)
    # A state of one number has one component; the other is level.
    flat = np.zeros((2, everything.shape[1]))
    flat[: len(directions)] = directions[:2]
    kinds = {
        "stable": (points.fixed & points.stable, {"color": LINES[4]["color"], "marker": "o"}),
        "unstable": (points.fixed & ~points.stable, {"color": LINES[1]["color"], "marker": "^", "facecolor": "none"}),
        "slow": (~points.fixed, {"color": LINES[6]["color"], "marker": "x"}),
    }
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(6.0, 3.2), dpi=220, layout="constrained")
        left, right = figure.subplots(1, 2)
        if states is not None:
            left.scatter(*(flat @ (seen - middle).T), s=1, color="0.8", linewidths=0, zorder=1)
        turn = np.linspace(0, 2 * np.pi, 200)
        right.plot(np.cos(turn), np.sin(turn), color="0.6", linewidth=0.7)
        for name, (of, mark) in kinds.items():
            if of.any():
                left.scatter(*(flat @ (places[of] - middle).T), s=24, label=name, zorder=2, linewidths=1.0, **mark)
                values = points.eigenvalues[of].ravel()
                right.scatter(values.real, values.imag, s=7, zorder=2, linewidths=0.6, **mark)
        left.set_title("states")
        shares = [*shares, 0.0]
        left.set_xlabel(f"principal component 1 ({shares[0]:.0%})")
        left.set_ylabel(f"principal component 2 ({shares[1]:.0%})")
        right.set_title("eigenvalues")
        right.set_xlabel("real part of λ")
        right.set_ylabel("imaginary part of λ")
        right.set_aspect("equal", adjustable="datalim")
        for axis in (left, right):
            axis.grid(True)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def half_lives(records: Sequence[Mapping[str, Any]]) -> Figure:
    """How half-lives move while a network trains: a line for each part of the state, a band over rows.

    Where a gradient does not shrink, its half-life is infinite, and line or band leave the picture by the top; where
    it is so in every row, there is none.

    Args:
        records: those of a run, or the lines of its file, some of which hold ``step`` and what
            :func:`~lstmjax.gradients.gradient_row` measured, under any prefix.

    Returns:
        The figure.

    Raises:
        ValueError: no record holds a half-life.

    >>> row = {"half_life_h": 2.0, "half_life_h_least": 1.0, "half_life_h_greatest": 3.0}
    >>> half_lives([{"step": 100, **row}, {"step": 200, **row}]).axes[0].get_xlabel()
    'step of training'
    """
    # JSON has null for an infinity.
    rows = [{key: np.inf if value is None else value for key, value in r.items()} for r in records]
    keys = dict.fromkeys(key for r in rows for key in r if "half_life_" in key)
    middles = [key.removesuffix("_least") for key in keys if key.endswith("_least")]
    if not middles:
        raise ValueError("no record holds a half_life_…; wanted those of a run that watches gradient_row")
    most = max((r[key] for r in rows for key in keys if key in r and np.isfinite(r[key])), default=1.0)
    curves = {}
    for key in middles:
        of = [r for r in rows if key in r]
        # Of these three the median is the middle one.
        lives = np.array([[float(r[k]) for r in of] for k in (key, f"{key}_least", f"{key}_greatest")])
        # What does not end leaves the picture by the top; of all rows alike, null may as well stand for no number.
        lives[:, np.isposinf(lives).all(axis=0)] = np.nan
        lives = np.where(np.isposinf(lives), 1e3 * most, lives)
        curves[key.split("half_life_")[-1]] = Curve(np.array([r["step"] for r in of]), lives)
    figure = bands(
        {"": curves}, xlabel="step of training", ylabel="half-life of the gradient (steps back)", logarithmic=False
    )
    (axis,) = figure.axes
    axis.set_yscale("log")
    axis.set_ylim(top=1.5 * most)
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(FixedLocator([]))
    return figure


def shaded_text(text: str, values: Any, *, label: str, signed: bool = False, columns: int = 60) -> Figure:
    """A text with every letter on a ground as dark as its value, and a bar that says what a shade means.

    Args:
        text: T letters; a space shows by its ground, a line's end as ↵.
        values: ``[T]`` a number for each letter, such as its share of a loss; −∞ and NaN have no ground.
        label: what the values are, with their unit.
        signed: white is 0, and below it is blue and above it red; else white is the least and blue the most.
        columns: letters in a line.

    Returns:
        The figure.

    Raises:
        ValueError: there is no letter, or not one value for each.

    >>> shaded_text("to be", np.arange(5.0), label="share of the loss").axes[1].get_ylabel()
    'share of the loss'
    """
    values = np.asarray(values, np.float64)
    if not text or values.shape != (len(text),):
        raise ValueError(f"text has {len(text)} letters and values shape {values.shape}; wanted a value for each, [T]")
    known = values[np.isfinite(values)]
    least, most = (known.min(), known.max()) if known.size else (0.0, 0.0)
    if signed:
        most = max(abs(least), abs(most))
        least = -most
    most = most if most > least else least + 1.0
    lines = -(-len(text) // columns)
    grid = np.full(lines * columns, np.nan)
    grid[: len(text)] = np.where(np.isfinite(values), values, np.nan)
    width = min(columns, len(text))
    # The scale goes on beyond the values: on its darkest shades no letter could be read.
    beyond = 0.6 * (most - least)
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(0.105 * width + 1.0, max(0.2 * lines + 0.1, 1.3)), dpi=220, layout="constrained")
        axis = figure.subplots()
        image = axis.imshow(
            grid.reshape(lines, columns)[:, :width],
            cmap="RdBu_r" if signed else "Blues",
            vmin=least - beyond * signed, vmax=most + beyond, aspect=1.6,
        )  # fmt: skip
        for n, letter in enumerate(text):
            axis.text(
                n % columns, n // columns, letter.replace("\n", "↵"), ha="center", va="center_baseline",
                family="monospace", fontsize=7.5, parse_math=False,
            )  # fmt: skip
        axis.set_axis_off()
        bar = figure.colorbar(image, ax=axis, label=label, aspect=8, shrink=0.9)
        bar.ax.set_ylim(least, most)
        bar.locator = MaxNLocator(4)
        bar.update_ticks()
    return figure


def _draw_band(axis: Any, curve: Curve, *, label: str, **line: Any) -> None:
    # A gradient that is exactly zero is −∞ here: it counts in the median, and ends the line where it wins.
    middle, low, high = (f(curve.y, axis=0) for f in (np.median, np.min, np.max))
    drawn = np.isfinite(middle)
    axis.plot(curve.x[drawn], middle[drawn], label=label, linewidth=1.3, **line)
    drawn &= np.isfinite(low) & np.isfinite(high)
    axis.fill_between(curve.x[drawn], low[drawn], high[drawn], color=line["color"], alpha=0.15, linewidth=0)


def _over_first(curve: Curve) -> Curve:
    with np.errstate(invalid="ignore"):  # −∞ over −∞: a gradient that is zero from the start
        return Curve(curve.x, curve.y - curve.y[:, :1])


def _lowest(panels: Mapping[str, Mapping[str, Curve]]) -> float:
    """The least that a line comes to."""
    middles = [np.median(curve.y, axis=0) for curves in panels.values() for curve in curves.values()]
    return min(min(m[np.isfinite(m)], default=np.inf) for m in middles)


def _mark_underflow(axes: Sequence[Any], level: float) -> None:
    for axis in axes:
        axis.axhline(level, color="0.45", linewidth=0.7)
    # Outside, where no line can run through the words, and above the level, where no tick label of x stands.
    axes[-1].annotate(
        "float32\nreads 0\nbelow", xy=(1, level), xycoords=("axes fraction", "data"),
        xytext=(3, -1), textcoords="offset points", ha="left", va="bottom", fontsize=6, color="0.35",
    )  # fmt: skip


def _shared_legend(figure: Figure, axes: Sequence[Any], names: list[str], columns: int = 6) -> None:
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    rows = -(-len(names) // columns)
    figure.legend(
        [handles[n] for n in names], names,
        loc="outside lower center", ncols=-(-len(names) // rows), frameon=False, handlelength=2.6, columnspacing=1.4,
    )  # fmt: skip
