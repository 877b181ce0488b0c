"""Does the gradient survive the lag? ‖∂L/∂h_t‖ and ‖∂L/∂c_t‖ of recurrent cells, the main job.

For every cell, input and seed, the loss is that of predicting the value after the last step of a sequence, and one
backward pass gives its gradient with respect to every earlier state. All sequence lengths run in one batch, as rows of
different length, so each kind of cell is compiled once for each input.
"""

import csv
import dataclasses
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from lstmjax import numerals
from lstmjax.cells import Cell
from lstmjax.files import replacing
from lstmjax.gradients import adjoint_norms, decay_fit
from lstmjax.gradients.decay import half_life
from lstmjax.gradients.outputs import with_output
from lstmjax.program.cells import Candidate
from lstmjax.program.common import Options, all_series, candidates, described, several
from lstmjax.program.output import claim, dump_json, environment, number
from lstmjax.program.page import Page
from lstmjax.program.series import InputName, Series
from lstmjax.progress import progress_bar

FLOAT32_TINY = math.log10(float(np.finfo(np.float32).tiny))
LENGTHS = (10, 20, 50, 100, 200, 500, 1000)
INPUTS: tuple[InputName, ...] = ("characters", "temperature", "white noise")
NAME = "gradient_norms"
PARTS = ("h", "c", "s")
HEAD = ("input", "cell", "half-life", "of seeds", "of windows")


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """Measure how the gradient of recurrent cells decays with the lag, before training or with trained weights.

    Writes a page to read or to send, a picture, and the numbers: gradient_norms.html, .png, .csv and .json.
    """

    inputs: Annotated[tuple[InputName, ...] | None, several("NAME", "all three; none, with --data")] = None
    """Inputs of the library: characters of English text, hourly temperatures, white noise in 16 channels."""
    lengths: Annotated[tuple[int, ...] | None, several("STEPS", "those of 10 20 50 … 1000 that the data hold")] = None
    """Sequence lengths in steps. The longest is also the one that fits, table and picture are made of."""
    seeds: int = 5
    """How many seeds; each draws weights, readout and windows of its own."""
    windows: int = 4
    """Windows of input for each seed; a record is the median over them."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be measured."""
        super().__post_init__()
        if self.lengths is not None and min(self.lengths) < 1:
            raise ValueError(f"lengths is {self.lengths}; wanted each at least 1 step")
        if self.data is not None and self.inputs is not None:
            raise ValueError("inputs and data both say what to read; give one of them")

    def run(self) -> None:
        """Measures, prints the table, and writes the results."""
        main(self)


class Plan(NamedTuple):
    """What a run measures, once files are read and names are looked up.

    Attributes:
        settings: as given.
        series: what is read.
        lengths: in steps.
        cells: by name.
    """

    settings: Settings
    series: list[Series]
    lengths: tuple[int, ...]
    cells: dict[str, Candidate]


def make_plan(settings: Settings) -> Plan:
    """Reads the files and looks up the names.

    Raises:
        ValueError: something cannot be measured; says what.
        OSError: a file cannot be read.
    """
    series = all_series(settings, settings.inputs or INPUTS)
    shortest = min(series, key=lambda s: s.longest)
    lengths = settings.lengths or tuple(n for n in LENGTHS if n <= shortest.longest) or (int(shortest.longest),)
    if max(lengths) > shortest.longest:
        raise ValueError(
            f"the longest length is {max(lengths)}; {shortest.name} holds windows of up to {shortest.longest} steps"
        )
    return Plan(settings, series, lengths, candidates(settings, max(lengths), [s.features for s in series]))


class Batch(NamedTuple):
    """Windows of input with, for every length, the value that follows.

    Attributes:
        xs: ``[T, L, W, I]`` the same W windows for each of L lengths.
        targets: ``[L, W, O]`` the value after the last step.
        lengths: ``[L, W]``.
    """

    xs: NDArray
    targets: NDArray
    lengths: NDArray


def make_batch(series: Series, seed: int, windows: int, lengths: Sequence[int]) -> Batch:
    """Draws one seed's windows."""
    rng = np.random.default_rng(seed)
    longest, rows = max(lengths), (len(lengths), windows)
    drawn = [series.window(rng, longest + 1) for _ in range(windows)]
    inputs, targets = (np.stack(parts, axis=1) for parts in zip(*drawn, strict=True))
    xs = np.broadcast_to(inputs[:-1, None], (longest, *rows, inputs.shape[-1]))
    return Batch(xs, targets[list(lengths)], np.broadcast_to(np.array(lengths)[:, None], rows))


def measure(cell: Cell, batch: Batch, seed: int, categorical: bool) -> dict[str, NDArray]:
    """log10 of ‖∂L/∂h‖ and ‖∂L/∂c‖, where the state has them, and of ‖∂L/∂s‖ over the whole state, ``[T + 1, L, W]``.

    By lag, NaN where that is beyond the length. L is the cross-entropy of the next character, or half the squared error
    of the next value, from a linear readout of the last hidden state, or of the last output where there is none.
    """
    key_cell, key_readout = jax.random.split(jax.random.key(seed))
    cell = with_output(cell, batch.xs.shape[-1])
    params = cell.init(key_cell, batch.xs.shape[-1])
    own = cell.initial_state()
    features = own.h.shape[-1]
    readout = jax.nn.initializers.lecun_normal()(key_readout, (features, batch.targets.shape[-1]))

    def loss(states):
        predicted = states.h[-1] @ readout
        if categorical:
            return -(jax.nn.log_softmax(predicted) * batch.targets).sum()
        return 0.5 * ((predicted - batch.targets) ** 2).sum()

    norms = adjoint_norms(cell, params, batch.xs, loss, lengths=batch.lengths)
    with np.errstate(invalid="ignore"):  # NaN after a row's end
        parts = {"s": np.logaddexp.reduce([2 * np.asarray(n) for n in jax.tree.leaves(norms)]) / 2}
    if not hasattr(own, "own"):  # the output that was added passes nothing on
        parts |= {part: np.asarray(getattr(norms, part)) for part in ("h", "c") if hasattr(own, part)}
    return {part: by_lag(values, batch.lengths) for part, values in parts.items()}


def by_lag(norms: NDArray, lengths: NDArray) -> NDArray:
    """Turns natural logarithms by time, ``[T + 1, L, W]``, into base-10 ones by lag."""
    times = lengths[None] - np.arange(len(norms)).reshape(-1, 1, 1)
    picked = np.take_along_axis(norms, np.maximum(times, 0), axis=0)
    return np.where(times >= 0, picked, np.nan) / np.log(10)


def recorded_lags(length: int) -> list[int]:
    """Every lag to 10, then ten a decade, and the whole length."""
    decades = np.rint(10 ** np.arange(1, math.log10(max(length, 10)) + 1e-9, 0.1)).astype(int)
    return sorted({*range(min(10, length) + 1), *(int(d) for d in decades if d <= length), length})


class Measurement(NamedTuple):
    """One cell on one input from one seed.

    Attributes:
        cell: its name.
        input: that of what it read.
        seed: which.
        parts: base-10 logarithms by lag, medians over windows, ``[T + 1, L]``, by part of the state: h, c and s.
        windows: the same at the longest length window by window, ``[W, T + 1]``, of the part that fits are made of.
    """

    cell: str
    input: str
    seed: int
    parts: dict[str, NDArray]
    windows: NDArray


def run(plan: Plan) -> Iterator[Measurement]:
    """Measures every input, cell and seed, one at a time."""
    settings, longest = plan.settings, int(np.argmax(plan.lengths))
    made = {name: candidate.make(settings.hidden_size) for name, candidate in plan.cells.items()}
    for series in plan.series:
        batches = [make_batch(series, seed, settings.windows, plan.lengths) for seed in range(settings.seeds)]
        for (name, cell), seed in itertools.product(made.items(), range(settings.seeds)):
            rows = measure(cell, batches[seed], seed, bool(series.symbols))
            parts = {part: np.median(values, axis=-1) for part, values in rows.items()}
            yield Measurement(name, series.name, seed, parts, rows[fitted(rows)][:, longest].T)


def fitted(parts: dict[str, Any]) -> str:
    """The part of the state that fits, table and picture are made of: h, or of a cell without it the whole state."""
    return "h" if "h" in parts else "s"


def make_records(lengths: Sequence[int], measured: list[Measurement]) -> list[dict[str, Any]]:
    """The measurements as flat rows, thinned to :func:`recorded_lags`."""
    return [
        {"cell": m.cell, "input": m.input, "seed": m.seed, "length": length, "lag": lag}
        | {f"log10_dL_d{p}": number(m.parts[p][lag, column]) if p in m.parts else None for p in PARTS}
        for m in measured
        for column, length in enumerate(lengths)
        for lag in recorded_lags(length)
    ]


def make_curves(lengths: Sequence[int], measured: list[Measurement]) -> dict[tuple[str, str], tuple[NDArray, NDArray]]:
    """‖∂L/∂h‖ at the longest length by (cell, input): one row a seed, and one row a window of any seed."""
    column = int(np.argmax(lengths))
    found: dict[tuple[str, str], list[Measurement]] = {}
    for m in measured:
        found.setdefault((m.cell, m.input), []).append(m)
    return {
        key: (np.stack([m.parts[fitted(m.parts)][:, column] for m in of]), np.concatenate([m.windows for m in of]))
        for key, of in found.items()
    }


def make_fits(curves: dict[tuple[str, str], tuple[NDArray, NDArray]]) -> list[dict[str, Any]]:
    """A line through ln ‖∂L/∂h‖ over all lags of the longest length, for each cell and input: medians over seeds.

    Beside the median rate the least and the greatest: of the seeds, and of all their windows, each fitted by itself.
    """
    fits = []
    for (cell, input_name), (seeds, windows) in curves.items():
        lags = np.arange(1, seeds.shape[1], dtype=np.float32)
        fit, every = (decay_fit(lags, rows[:, 1:] * np.log(10)) for rows in (seeds, windows))
        rate = float(np.median(fit.rate))
        spread = {
            f"{which}{over}": number(f(rates))
            for over, rates in (("", fit.rate), ("_windows", every.rate))
            for which, f in (("rate_min", np.min), ("rate_max", np.max))
        }
        with np.errstate(invalid="ignore"):
            left = {str(lag): number(np.median(seeds[:, lag] - seeds[:, 0])) for lag in shown_lags(seeds.shape[1] - 1)}
        fits.append(
            {
                "cell": cell,
                "input": input_name,
                "rate_per_step": number(rate),
                "half_life": number(half_life(rate)),  # of the rate next to it
                "r2": number(np.median(fit.r2)),
                **spread,
                "left": left,
            }
        )
    return fits


def shown_lags(longest: int) -> list[int]:
    """The lags that have a column in the table: those that there are."""
    return [lag for lag in (10, 100, 1000) if lag <= longest]


class Row(NamedTuple):
    """A line of the table, in words."""

    input: str
    cell: str
    half_life: str
    over_seeds: str
    over_windows: str
    left: list[str]
    r2: str


def make_rows(fits: list[dict[str, Any]]) -> list[Row]:
    """The fits in words."""

    def spread(fit: dict[str, Any], over: str) -> str:
        low, high = fit[f"rate_min{over}"], fit[f"rate_max{over}"]
        if low is None or high is None:
            return "-"
        return numerals.half_lives(float(half_life(low)), float(half_life(high)))

    def steps(fit: dict[str, Any]) -> str:
        if fit["rate_per_step"] is None:
            return "-"
        return numerals.half_life(math.inf if fit["half_life"] is None else fit["half_life"])

    return [
        Row(
            fit["input"], fit["cell"], steps(fit), spread(fit, ""), spread(fit, "_windows"),
            [numerals.power_of_ten(-math.inf if e is None else e) for e in fit["left"].values()],
            "-" if fit["r2"] is None else f"{fit['r2']:.3f}",
        )
        for fit in fits
    ]  # fmt: skip


def format_table(fits: list[dict[str, Any]]) -> str:
    """The fits as a table to read."""
    head = [*HEAD, *(f"lag {lag}" for lag in fits[0]["left"]), "R²"]
    rows = [[r.input, r.cell, r.half_life, r.over_seeds, r.over_windows, *r.left, r.r2] for r in make_rows(fits)]
    return numerals.plain_table(head, rows, words=2)


def count_lost(measured: list[Measurement]) -> str:
    """Says how many norms a plain float32 backward pass would have lost."""
    kept = [m.parts[part] for m in measured for part in (m.parts if len(m.parts) == 1 else m.parts.keys() - {"s"})]
    values = np.concatenate([norms[np.isfinite(norms)] for norms in kept])
    if not (values < FLOAT32_TINY).any():
        return "No norm is below 1.2e-38, the least normal float32."
    return (
        f"{(values < FLOAT32_TINY).mean():.0%} of the {values.size} norms are below 1.2e-38, the least normal float32, "
        "where plain backpropagation loses digits and then reads 0; they were carried as a mantissa and an exponent."
    )


def settings_of(plan: Plan) -> dict[str, Any]:
    """What makes the run the run it is."""
    settings = plan.settings
    return described(
        settings,
        lengths=list(plan.lengths),
        seeds=settings.seeds,
        windows=settings.windows,
        hidden_size=settings.hidden_size,
        cells=list(plan.cells),
        inputs=[series.name for series in plan.series],
    )


def write_results(plan: Plan, measured: list[Measurement], complete: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Writes .json, .csv, .html and the picture, each whole or not at all; returns the fits and the files' names."""
    records, curves = make_records(plan.lengths, measured), make_curves(plan.lengths, measured)
    fits, out = make_fits(curves), plan.settings.out
    settings, env = settings_of(plan), environment("float32")
    results = {
        "environment": env,
        "settings": {
            **settings,
            "complete": complete,
            "fit": "natural log of dL/dh over lags 1 to the longest length, medians over seeds; dL/ds without an h",
            "spread": "rate_min and rate_max: of the seeds; with _windows: of every window of every seed",
            "left": "log10 of dL/dh at the lag over dL/dh at lag 0, at the longest length, medians over seeds",
            "null": "a gradient that is exactly zero (dL/dc at lag 0 always is: L reads h alone), or no half-life",
        },
        "records": records,
        "fits": fits,
    }
    names = [f"{NAME}.{kind}" for kind in ("json", "csv", "html")]
    with replacing(out / names[0]) as path:
        path.write_text(dump_json(results))
    with replacing(out / names[1]) as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    picture = plan.settings.picture
    figure = draw_figure(plan, curves) if picture else None
    if figure is not None:
        names.append(f"{NAME}.{picture}")
        with replacing(out / names[-1]) as path:
            figure.savefig(path, format=picture)
    with replacing(out / names[2]) as path:
        page = make_page(plan, measured, curves, fits, complete, figure)
        path.write_text(page.html(settings, env), encoding="utf-8")
    return fits, names


def draw_figure(plan: Plan, curves: dict[tuple[str, str], tuple[NDArray, NDArray]]) -> Any:
    """‖∂L/∂h‖ against the lag, relative to lag 0 as the table is."""
    from lstmjax.plot import Curve, gradient_decay

    longest = max(plan.lengths)
    lags = np.unique(np.linspace(0, longest, 151).astype(int))  # more than a panel has room for
    panels = {
        f"input: {series.name}": {
            cell.replace("b_f", "$b_f$"): Curve(lags, seeds[:, lags])
            for (cell, i), (seeds, _) in curves.items()
            if i == series.name
        }
        for series in plan.series
    }
    return gradient_decay({title: of for title, of in panels.items() if of}, underflow=FLOAT32_TINY)


def make_page(
    plan: Plan,
    measured: list[Measurement],
    curves: dict[tuple[str, str], tuple[NDArray, NDArray]],
    fits: list[dict[str, Any]],
    complete: bool,
    figure: Any,
) -> Page:
    """The run as a page."""
    settings, longest, rows = plan.settings, max(plan.lengths), make_rows(fits)
    series = {s.name: s for s in plan.series}
    page = Page("Does the gradient survive the lag?", f"lstmjax gradients: {', '.join(series)}")
    if not complete:
        page.warning("The run was cut short. What follows is what had been measured.")
    page.paragraph(
        f"How strongly a loss at step {longest} still depends on a cell's state, any number of steps before: the norm "
        "of its gradient with respect to the hidden state, ‖∂L/∂h‖, over its value at lag 0. Where the curve falls, "
        "what lies that far back can hardly be learned by gradient descent."
    )
    page.figure(
        figure,
        f"Gradient norm against the lag, over its value at lag 0. The line is the median over {settings.seeds} seeds, "
        "the band goes from the least to the greatest. A line that ends has come to a gradient of exactly 0. "
        "Below the level line, where there is one, a plain backward pass in float32 reads 0, for a loss scaled so that "
        "the gradient at lag 0 is 1.",
    )
    page.heading("The numbers")
    page.table(
        [*HEAD, *(f"lag {lag}" for lag in fits[0]["left"]), "R²"],
        [[r.input, r.cell, r.half_life, r.over_seeds, r.over_windows, *r.left, r.r2] for r in rows],
        words=2,
    )
    n = len({m.seed for m in measured})
    page.items(
        {
            "half-life": "Steps in which the gradient halves, from a straight line through its logarithm over all lags "
            "from 1 on: the median over seeds. It tells the decay where R² is near 1. Where R² is low the curve is no "
            "exponential, and the columns by lag tell more.",
            "of seeds": f"The least and the greatest half-life over {n} seed{'s' * (n > 1)}, each with weights, a "
            "readout and windows of its own." + coverage(n),
            "of windows": f"The same over every window of every seed, {settings.windows} windows a seed, each fitted "
            "by itself.",
            "lag": "What is left of the gradient so many steps back: ‖∂L/∂h‖ there over that at lag 0, a median over "
            "seeds of medians over windows. 0 is exactly 0.",
            "R²": "The share of the curve's variance that the straight line explains.",
        }
    )
    page.paragraph(count_lost(measured))
    page.heading("What each curve means")
    for name in dict.fromkeys(cell for cell, _ in curves):
        page.candidate(name, plan.cells[name])
    if any("h" not in m.parts for m in measured):
        page.paragraph(
            "Of a cell whose state has no field h, ‖∂L/∂s‖ over its whole state stands in the place of ‖∂L/∂h‖, and at "
            "lag 0 the norm of the gradient with respect to its output."
        )
    page.heading("What was read")
    for s in plan.series:
        loss = "the cross-entropy of the next symbol" if s.symbols else "half the squared error of the next value"
        page.entry(
            s.name,
            f"{s.about[0].upper()}{s.about[1:]}. The loss is {loss}, from a linear readout drawn with each seed.",
        )
    page.heading("By lag")
    page.details("Medians over seeds", *_by_lag_table(curves, longest))
    return page


def coverage(seeds: int) -> str:
    """What the range over seeds is worth, in words: of n independent draws, it misses the median once in 2^(n−1).

    >>> coverage(5)
    ' The range holds the median over all possible seeds with a probability of 93.8 %.'
    """
    if seeds < 2:
        return ""
    share = 1 - 2.0 ** (1 - seeds)
    return f" The range holds the median over all possible seeds with a probability of {min(100 * share, 99.9):.3g} %."


def _by_lag_table(
    curves: dict[tuple[str, str], tuple[NDArray, NDArray]], longest: int
) -> tuple[list[str], list[list[str]]]:
    """What is left at every recorded lag, a column for each cell and input."""
    with np.errstate(invalid="ignore"):
        left = {key: np.median(seeds - seeds[:, :1], axis=0) for key, (seeds, _) in curves.items()}
    head = ["lag", *(f"{cell}, {i}" for cell, i in left)]
    return head, [[str(lag), *(numerals.power_of_ten(y[lag]) for y in left.values())] for lag in recorded_lags(longest)]


def main(settings: Settings) -> None:
    """Measures, prints the table, and writes the results; what is measured is written even if the run is cut short."""
    plan = make_plan(settings)
    claim(settings.out, NAME, settings_of(plan), settings.overwrite)
    if settings.picture is None:
        print("There will be no picture: pictures want matplotlib, pip install 'lstmjax[plots]'.", file=sys.stderr)
    total = len(plan.series) * len(plan.cells) * settings.seeds
    measured: list[Measurement] = []
    bar = progress_bar(run(plan), "gradient norms", "curve", shown=settings.progress, total=total)
    try:
        for measurement in bar:
            bar.set_postfix_str(f"{measurement.cell}, {measurement.input}", refresh=False)
            measured.append(measurement)
    finally:
        bar.close()
        if measured:
            fits, names = write_results(plan, measured, complete=len(measured) == total)
            print(f"Gradient of a loss at step {max(plan.lengths)}: ‖∂L/∂h‖ at a lag, over its value at lag 0\n")
            print(format_table(fits))
            print(f"\n{count_lost(measured)}\nWrote {', '.join(names)} to {settings.out}/")
        if len(measured) < total:
            print(f"Cut short: {len(measured)} of {total} curves were measured.", file=sys.stderr)
