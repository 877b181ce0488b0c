"""The unit as a drawing, with its numbers, and its memories day by day.

Needs matplotlib: ``pip install 'lstmjax[plots]'``.

What is drawn comes as the named tuples of :mod:`lstmjax.explain`, which is not imported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

try:
    import matplotlib.pyplot as plt
except ImportError as error:
    raise ImportError(f"figures want matplotlib: pip install 'lstmjax[plots]' ({error})") from error
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from lstmjax.numerals import short, signed
from lstmjax.plot import STYLE

# Okabe & Ito's colours: the slides' green line and pink line, the input, the point on a curve. Text is darker.
LONG, SHORT, INPUT, POINT = "#009E73", "#CC79A7", "#0072B2", "#D55E00"
INK = {LONG: "#00694D", SHORT: "#9A3F72", INPUT: "#004F7D"}
WIRE = "0.3"
FACES = {"sigmoid": "#EDF3F9", "tanh": "#FCF1E3"}

# Places in inches: the page, the three lines, the gates' blocks with their middles, the way from c' to h'.
WIDTH, HEIGHT = 7.0, 5.1
LONG_Y, SHORT_Y, INPUT_Y = 4.55, 0.72, 0.28
LOW, HIGH, BLOCK = 1.0, 3.74, 1.18
MIDDLES = {"forget": 1.42, "input": 2.68, "candidate": 3.94, "output": 5.2}
ADD_X, OUT_X = 3.31, 6.42

# Letter, words, term, activation.
GATES = {
    "forget": ("f", "% of long-term\nmemory to remember", "forget gate", "sigmoid"),
    "input": ("i", "% of potential\nmemory to remember", "input gate", "sigmoid"),
    "candidate": ("g", "potential\nlong-term memory", "candidate", "tanh"),
    "output": ("o", "% of short-term\nmemory to remember", "output gate", "sigmoid"),
}


def unit_diagram(explanation: Any) -> Figure:
    """One step of one unit in the slides' manner, every number in its place.

    The long-term memory runs across the top and meets one multiplication and one addition; the short-term memory runs
    below and, with the input, goes through the weights of the four gates. Numbers have four digits.

    Args:
        explanation: an :class:`~lstmjax.explain.Explanation` of one step.

    Returns:
        The figure, 7 inches wide; save it with ``figure.savefig``.

    Raises:
        ValueError: the explanation is of a sequence.

    Source: the drawing of StatQuest, "Long Short-Term Memory, clearly explained".

    >>> import jax.numpy as jnp
    >>> from lstmjax import LSTMState
    >>> from lstmjax.explain import explain_step
    >>> from lstmjax.tasks.companies import slide_unit
    >>> state = LSTMState(c=jnp.array([2.0]), h=jnp.array([1.0]))
    >>> figure = unit_diagram(explain_step(slide_unit(), state, jnp.array([1.0])))
    >>> "f = 0.9974" in [text.get_text() for text in figure.axes[0].texts]
    True
    """
    e = jax.tree.map(np.asarray, explanation)
    if np.ndim(e.c):
        raise ValueError(f"explanation is of {len(e.c)} steps; wanted one: memory_diagram takes a sequence")
    with plt.rc_context(STYLE):
        # A figure of its own, outside pyplot's global list, so that nothing has to be closed.
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=220)
        axis = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axis.set_axis_off()
        _draw_short_term_and_input(axis, e)
        for name in GATES:
            _draw_gate(axis, getattr(e, name), name)
        _draw_long_term(axis, e)
        _draw_way_out(axis, e)
    return figure


def memory_diagram(
    explanations: Mapping[str, Any], *, step: str = "step", targets: Mapping[str, float] | None = None
) -> Figure:
    """Long- and short-term memory step by step, and the gates that moved them below, a column for each sequence.

    Args:
        explanations: an :class:`~lstmjax.explain.Explanation` of a sequence under each title; two side by side are 7
            inches wide.
        step: what a step is called.
        targets: what the last short-term memory is to be, by title; marked one step on.

    Returns:
        The figure; save it with ``figure.savefig``.

    Raises:
        ValueError: there is no explanation, or one is of no steps or of a single one without a time axis.

    >>> from lstmjax.explain import explain_sequence
    >>> from lstmjax.tasks.companies import company_values, slide_unit
    >>> days = {f"company {name}": explain_sequence(slide_unit(), company_values(name)) for name in "AB"}
    >>> len(memory_diagram(days, step="day", targets={"company A": 0.0, "company B": 1.0}).axes)
    4
    """
    if not explanations:
        raise ValueError("explanations are empty; wanted at least one")
    for title, e in explanations.items():
        if np.ndim(e.c) != 1 or not len(e.c):
            raise ValueError(
                f"explanation {title!r} has no steps; wanted one of a sequence, as explain_sequence makes it"
            )
    explanations = jax.tree.map(np.asarray, dict(explanations))
    columns = len(explanations)
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(0.8 + 3.1 * columns, 4.3), dpi=220, layout="constrained")
        grid = {"height_ratios": (1.25, 1)}
        axes = figure.subplots(2, columns, sharex="col", sharey="row", squeeze=False, gridspec_kw=grid)
        for (title, e), (memories, gates) in zip(explanations.items(), axes.T, strict=True):
            _draw_memories(memories, e, None if targets is None else targets.get(title))
            _draw_gates(gates, e)
            ends = f"c = {_number(e.new_c[-1])}, h = {_number(e.new_h[-1])}"
            memories.set_title(f"{title}: ends at {ends}")
            gates.set_xlabel(step)
            gates.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            gates.xaxis.set_major_formatter(lambda value, _: "start" if value == 0 else f"{value:.0f}")
        axes[0, 0].set_ylabel("memory")
        axes[1, 0].set_ylabel("gates, candidate")
        handles = {}
        for axis in axes.flat:
            handles.update(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(
            handles.values(), handles,
            loc="outside lower center", ncols=min(4, 2 * columns), frameon=False, handlelength=3,
        )  # fmt: skip
    return figure


def _draw_memories(axis: Axes, e: Any, target: float | None) -> None:
    """The memories after each step, from those before the first; the input, where it is one number, as bars."""
    times = np.arange(len(e.c) + 1)
    long_term = np.concatenate([e.c[:1], e.new_c])
    short_term = np.concatenate([e.h[:1, int(e.unit[0])], e.new_h])
    axis.axhline(0, color="0.7", linewidth=0.5)
    if e.x.shape[1] == 1:
        axis.bar(times[1:], e.x[:, 0], 0.3, color=INPUT, alpha=0.25, label="input x")
    axis.plot(times, long_term, color=LONG, label="long-term memory c", **_line(e, 2.2))
    dashes = (0, (4, 1.2))
    axis.plot(times, short_term, color=SHORT, linestyle=dashes, label="short-term memory h", **_line(e, 1.6))
    if target is not None:
        axis.plot([len(times)], [target], "D", color="black", markerfacecolor="white", label="wanted of h")


def _draw_gates(axis: Axes, e: Any) -> None:
    times = np.arange(1, len(e.c) + 1)
    for name, color, dashes in (
        ("forget", "black", "-"),
        ("input", "#0072B2", (0, (4, 1.2))),
        ("output", "#D55E00", (0, (1, 1))),
        ("candidate", "#E69F00", (0, (4, 1, 1, 1))),
    ):
        letter, _, term, _ = GATES[name]
        values = getattr(e, name).value
        axis.plot(times, values, color=color, linestyle=dashes, label=f"{term} {letter}", **_line(e, 1.3))
    axis.axhline(0, color="0.7", linewidth=0.5)
    axis.set_ylim(-1.05, 1.05)


def _line(e: Any, width: float) -> dict[str, Any]:
    """A line with points where steps are few, a thinner one where they are many."""
    return {"linewidth": width, "marker": "o", "markersize": 3.5} if len(e.c) <= 30 else {"linewidth": width / 2}


def _draw_short_term_and_input(axis: Axes, e: Any) -> None:
    """The two lines that the gates read, from the left to the last gate."""
    last = MIDDLES["output"]
    _wire(axis, [(0.1, SHORT_Y), (last - 0.285, SHORT_Y)], SHORT, width=3.0, arrow=False)
    _wire(axis, [(0.1, INPUT_Y), (last + 0.285, INPUT_Y)], INPUT, width=2.0, arrow=False)
    h = f"h = {_number(e.h[0])}" if len(e.h) == 1 else f"h: {len(e.h)} units"
    x = f"x = {_number(e.x[0])}" if len(e.x) == 1 else f"x: {len(e.x)} inputs"
    _text(axis, 0.1, SHORT_Y + 0.06, f"short-term\nmemory\n{h}", INK[SHORT], ha="left", va="bottom")
    _text(axis, 0.1, INPUT_Y + 0.05, f"input  {x}", INK[INPUT], ha="left", va="bottom")


def _draw_gate(axis: Axes, gate: Any, name: str) -> None:
    """From the bottom up: two taps through their weights, the sum with the bias, the curve, the value."""
    letter, words, term, activation = GATES[name]
    x = MIDDLES[name]
    _box(axis, (x - BLOCK / 2, LOW), (BLOCK, HIGH - LOW), face=FACES[activation], edge="0.75")
    for tap, y, weights, colour in ((x - 0.285, SHORT_Y, gate.w_h, SHORT), (x + 0.285, INPUT_Y, gate.w_x, INPUT)):
        axis.add_patch(Circle((tap, y), 0.04, color=colour, zorder=4))
        _wire(axis, [(tap, y), (tap, 1.56)], colour)
        _box(axis, (tap - 0.265, 1.12), (0.53, 0.2), face="white", edge=colour, zorder=4)
        if len(weights) == 1:
            _text(axis, tap, 1.22, f"× {_number(weights[0])}", INK[colour], size=6.5)
        else:
            _text(axis, tap, 1.22, f"{len(weights)} weights", INK[colour], size=5.5 if len(weights) < 1000 else 4.8)
    _box(axis, (x - 0.54, 1.56), (1.08, 0.5), face="white", edge="0.6")
    _text(axis, x, 1.96, f"{_number(gate.by_h)} {_signed(gate.by_x)}", size=6.5)
    _text(axis, x, 1.82, f"{_signed(gate.b)} bias", size=6.5)
    _text(axis, x, 1.66, f"sum = {_number(gate.z)}", size=7.5)
    _wire(axis, [(x, 2.06), (x, 2.24)], WIRE)
    _draw_curve(axis, x, 2.3, gate.z, gate.value, activation)
    _text(axis, x, 3.12, term, "0.35", size=6.5, style="italic")
    _text(axis, x, 3.34, words)
    _text(axis, x, 3.6, f"{letter} = {_number(gate.value)}", size=8.0, weight="bold")


def _draw_long_term(axis: Axes, e: Any) -> None:
    """The line across the top, its multiplication and its addition, and no weight."""
    _wire(axis, [(0.1, LONG_Y), (WIDTH - 0.08, LONG_Y)], LONG, width=3.0)
    forget, update = (MIDDLES["forget"], LONG_Y), (ADD_X, LONG_Y - 0.5)
    _wire(axis, [(MIDDLES["forget"], HIGH), (forget[0], LONG_Y - 0.13)], WIRE)
    for name, side in (("input", -0.13), ("candidate", 0.13)):
        _wire(axis, [(MIDDLES[name], HIGH), (MIDDLES[name], update[1]), (ADD_X + side, update[1])], WIRE)
    _wire(axis, [update, (ADD_X, LONG_Y - 0.13)], WIRE)
    _node(axis, forget, "×", LONG)
    _node(axis, update, "×", WIRE)
    _node(axis, (ADD_X, LONG_Y), "+", LONG)
    above: dict[str, Any] = {"va": "bottom", "color": INK[LONG]}
    _text(axis, 0.1, LONG_Y + 0.1, f"long-term memory\n{_of_unit(e)}c = {_number(e.c)}", ha="left", **above)
    _text(axis, 2.36, LONG_Y + 0.1, f"remembered\nf × c = {_number(e.kept)}", **above)
    _text(axis, ADD_X + 0.08, LONG_Y - 0.27, f"added  i × g = {_number(e.added)}", ha="left")
    _text(axis, 4.3, LONG_Y + 0.1, "no weight on this line", style="italic", **above)
    new = f"new long-term memory\nc′ = {_number(e.kept)} {_signed(e.added)} = {_number(e.new_c)}"
    _text(axis, WIDTH - 0.1, LONG_Y + 0.1, new, ha="right", **above)


def _draw_way_out(axis: Axes, e: Any) -> None:
    """From the new long-term memory, through tanh and the output gate, to the new short-term memory."""
    low, product = 2.2, (OUT_X, 1.72)
    gap = MIDDLES["output"] + BLOCK / 2 + 0.07
    axis.add_patch(Circle((OUT_X, LONG_Y), 0.05, color=LONG, zorder=4))
    _wire(axis, [(OUT_X, LONG_Y), (OUT_X, HIGH)], LONG)
    _box(axis, (OUT_X - 0.5, low), (1.0, HIGH - low), face=FACES["tanh"], edge="0.75")
    _draw_curve(axis, OUT_X + 0.03, 2.96, e.new_c, e.tanh_c, "tanh")
    _text(axis, OUT_X, 2.75, "potential short-\nterm memory")
    _text(axis, OUT_X, 2.51, "tanh(c′) =")
    _text(axis, OUT_X, 2.34, _number(e.tanh_c), size=8.0, weight="bold")
    _wire(axis, [(MIDDLES["output"], HIGH), (MIDDLES["output"], HIGH + 0.16), (gap, HIGH + 0.16), (gap, product[1]),
                 (OUT_X - 0.13, product[1])], WIRE)  # fmt: skip
    _wire(axis, [(OUT_X, low), (OUT_X, product[1] + 0.13)], WIRE)
    _wire(axis, [product, (OUT_X, SHORT_Y), (WIDTH - 0.08, SHORT_Y)], SHORT, width=3.0)
    _node(axis, product, "×", SHORT)
    new = f"new short-term memory\n{_of_unit(e)}h′ = {_number(e.new_h)}"
    _text(axis, WIDTH - 0.08, SHORT_Y - 0.1, new, INK[SHORT], ha="right", va="top")


def _of_unit(e: Any) -> str:
    return f"unit {int(e.unit)}: " if len(e.h) > 1 else ""


def _draw_curve(axis: Axes, middle: float, low: float, z: Any, value: Any, activation: str) -> None:
    """A sigmoid or a tanh, 0.72 by 0.62 inches, with the point that z and its value make."""
    z, value = float(z), float(value)
    left, width, height = middle - 0.36, 0.72, 0.62
    reach = max(6.0, 1.2 * abs(z)) if np.isfinite(z) else 6.0
    floor = 0.0 if activation == "sigmoid" else -1.0

    def place(across: Any, up: Any) -> tuple[Any, Any]:
        return left + width * (across + reach) / (2 * reach), low + height * (up - floor) / (1 - floor)

    across = np.linspace(-reach, reach, 401)
    curve = 0.5 * (1 + np.tanh(across / 2)) if activation == "sigmoid" else np.tanh(across)
    for ends in (((-reach, reach), (0, 0)), ((0, 0), (floor, 1))):
        axis.plot(*place(np.array(ends[0]), np.array(ends[1])), color="0.7", linewidth=0.5, zorder=3)
    axis.plot(*place(across, curve), color="0.2", linewidth=1.2, zorder=4)
    axis.plot(
        *place(np.array([z, z, 0]), np.array([0, value, value])), color=POINT, linewidth=0.7, dashes=(2, 1.5), zorder=4
    )
    axis.plot(*place(z, value), "o", color=POINT, markersize=4, zorder=5)
    for level in (floor, 1.0):
        _text(axis, left - 0.02, place(0, level)[1], _number(level), "0.4", size=5.5, ha="right")
    _text(axis, left + 0.02, low + height, activation, "0.4", size=5.5, ha="left", va="top")


def _wire(
    axis: Axes, points: Sequence[tuple[float, float]], color: str, *, width: float = 1.1, arrow: bool = True
) -> None:
    style = f"-|>,head_length={2 + width},head_width={1.2 + 0.6 * width}" if arrow else "-"
    axis.add_patch(
        FancyArrowPatch(
            path=Path(points),
            arrowstyle=style,
            mutation_scale=1,
            color=color,
            linewidth=width,
            zorder=3,
            joinstyle="miter",
            capstyle="butt",
            shrinkA=0,
            shrinkB=0,
        )
    )


def _node(axis: Axes, centre: tuple[float, float], sign: str, color: str) -> None:
    axis.add_patch(Circle(centre, 0.13, facecolor="white", edgecolor=color, linewidth=1.5, zorder=5))
    axis.text(centre[0], centre[1] - 0.005, sign, fontsize=12, ha="center", va="center", zorder=6)


def _box(
    axis: Axes, corner: tuple[float, float], size: tuple[float, float], *, face: str, edge: str, zorder: int = 1
) -> None:
    style = "round,pad=0,rounding_size=0.05"
    axis.add_patch(
        FancyBboxPatch(corner, *size, boxstyle=style, facecolor=face, edgecolor=edge, linewidth=0.7, zorder=zorder)
    )


def _text(
    axis: Axes,
    x: float,
    y: float,
    words: str,
    color: str = "black",
    *,
    size: float = 7.0,
    ha: str = "center",
    va: str = "center",
    **options: Any,
) -> None:
    """Lines of text on baselines set by hand: matplotlib moves them by whichever letters reach below."""
    em, lines = size / 72, words.split("\n")
    below = 1.3 * em * (len(lines) - 1)
    first = {"bottom": y + 0.24 * em + below, "center": y + (below - 0.73 * em) / 2, "top": y - 0.76 * em}[va]
    for n, line in enumerate(lines):
        place = x, first - 1.3 * em * n
        axis.text(*place, line, color=color, fontsize=size, ha=ha, va="baseline", zorder=6, **options)


def _number(value: Any) -> str:
    """A number to four digits, as a drawing has it: with a minus sign.

    >>> [_number(v) for v in (2.0, 0.9999999, -12.3456, -123456.0)]
    ['2', '1.0000', '−12.35', '−1.23e5']
    """
    return short(value, 4).replace("-", "−")


def _signed(value: Any) -> str:
    return signed(_number(value))
