"""Two or more cells next to one another, fairly: the same data, loss, readout and seeds; and whether they differ."""

import csv
import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from lstmjax import numerals
from lstmjax.checks import whole_number
from lstmjax.files import replacing
from lstmjax.gradients import GradientReport, gradient_report
from lstmjax.gradients.report import Match, squared_error
from lstmjax.program.cells import Candidate
from lstmjax.program.common import Options, all_series, candidates, described, one
from lstmjax.program.output import claim, dump_json, environment
from lstmjax.program.page import Page
from lstmjax.program.series import InputName, Series

NAME = "comparison"
HEAD = ["phase", "cells", "rate, first − second", "of seeds", "p", "p, Holm"]


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """Compare two or more cells on the same data, before training and after, and test whether they differ.

    Writes a page to read or to send, a picture, and the numbers: comparison.html, .png, .csv and .json.
    """

    input: Annotated[InputName | None, one("NAME", "characters; none, with --data")] = None
    """An input of the library: characters of English text, hourly temperatures, white noise in 16 channels."""
    length: Annotated[int | None, one("STEPS", "200, or what the data hold")] = None
    """Steps of a sequence, after which the next value is predicted."""
    windows: int = 16
    """Sequences in a batch."""
    seeds: int = 10
    """How many seeds; from six on two cells can differ significantly, at the level .05."""
    match: Match = "hidden size"
    """What the cells have in common; by parameters, the first cell has the hidden size, and the others one near it."""
    train_steps: int = 0
    """Steps of Adam, after which all is measured again."""
    learning_rate: float = 1e-3
    """Of Adam."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be measured."""
        super().__post_init__()
        if self.length is not None:
            whole_number("length", self.length)
        if self.data is not None and self.input is not None:
            raise ValueError("input and data both say what to read; give one of them")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate is {self.learning_rate}; wanted a number above 0")

    def run(self) -> None:
        """Measures, prints the tables, and writes the results."""
        main(self)


class Plan(NamedTuple):
    """What a run measures, once files are read and names are looked up.

    Attributes:
        settings: as given.
        series: what is read.
        length: steps of a sequence.
        cells: by name.
    """

    settings: Settings
    series: Series
    length: int
    cells: dict[str, Candidate]


def make_plan(settings: Settings) -> Plan:
    """Reads the files and looks up the names.

    Raises:
        ValueError: something cannot be measured; says what.
        OSError: a file cannot be read.
    """
    (series,) = all_series(settings, [settings.input or "characters"])
    length = settings.length or int(min(200, series.longest))
    if length > series.longest:
        raise ValueError(f"length is {length}; {series.name} holds windows of up to {series.longest} steps")
    cells = candidates(settings, length, [series.features])
    if len(cells) < 2:
        raise ValueError(f"the only cell is {next(iter(cells))!r}; wanted two at least, to compare")
    return Plan(settings, series, length, cells)


def draw_batches(series: Series, length: int, rows: int) -> Callable[[Any], tuple[Any, Any]]:
    """``key -> (xs [T, B, I], targets [B, O])``: windows from places that are drawn, and the value after each.

    >>> from lstmjax.program.series import shipped
    >>> xs, targets = draw_batches(shipped("temperature"), 5, 2)(jax.random.key(0))
    >>> xs.shape, targets.shape
    ((5, 2, 1), (2, 1))
    """
    inputs, targets = jnp.asarray(series.inputs), jnp.asarray(series.targets)

    def read(values: Any) -> Any:
        return jax.nn.one_hot(values, series.symbols) if series.symbols else values

    def draw(key: Any) -> tuple[Any, Any]:
        if series.noise:
            drawn = jax.random.normal(key, (length + 1, rows, series.noise))
            return drawn[:-1], drawn[-1]
        starts = jax.random.randint(key, (rows,), 0, len(inputs) - length)
        return read(inputs[starts + jnp.arange(length)[:, None]]), read(targets[starts + length])

    return draw


def cross_entropy(logits: Any, targets: Any) -> Any:
    """−Σ t ln softmax(z), summed over rows; targets one-hot."""
    return -(jax.nn.log_softmax(logits) * targets).sum()


def measure(plan: Plan) -> GradientReport:
    """The report."""
    settings, series = plan.settings, plan.series
    return gradient_report(
        {name: candidate.make for name, candidate in plan.cells.items()},
        draw_batches(series, plan.length, settings.windows),
        loss_fn=cross_entropy if series.symbols else squared_error,
        hidden_size=settings.hidden_size,
        match=settings.match,
        seeds=settings.seeds,
        train_steps=settings.train_steps,
        learning_rate=settings.learning_rate,
        progress=settings.progress,
    )


def difference_rows(report: GradientReport) -> list[list[str]]:
    """A line for each phase and pair of cells, in words."""
    return [
        [
            phase, f"{d.first} − {d.second}", f"{d.median:+.4g}", f"{d.least:+.4g} … {d.greatest:+.4g}",
            f"{d.p:.2g}", f"{d.p_holm:.2g}",
        ]
        for phase, differences in report.differences().items()
        for d in differences
    ]  # fmt: skip


def settings_of(plan: Plan) -> dict[str, Any]:
    """What makes the run the run it is."""
    names = ("windows", "seeds", "hidden_size", "match", "train_steps", "learning_rate")
    more = {name: getattr(plan.settings, name) for name in names}
    return described(plan.settings, input=plan.series.name, length=plan.length, cells=list(plan.cells), **more)


def write_results(plan: Plan, report: GradientReport) -> list[str]:
    """Writes .json, .csv, .html and the picture, each whole or not at all; returns the files' names."""
    out, picture, settings, env = plan.settings.out, plan.settings.picture, settings_of(plan), environment("float32")
    differences = [d._asdict() | {"phase": phase} for phase, of in report.differences().items() for d in of]
    results = {"environment": env, "settings": settings, **report.to_dict(), "differences": differences}
    names = [f"{NAME}.{kind}" for kind in ("json", "csv", "html")]
    with replacing(out / names[0]) as path:
        path.write_text(dump_json(results))
    with replacing(out / names[1]) as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(report.records[0]))
        writer.writeheader()
        writer.writerows(report.records)
    figure = report.figure() if picture else None
    if figure is not None:
        names.append(f"{NAME}.{picture}")
        with replacing(out / names[-1]) as path:
            figure.savefig(path, format=picture)
    with replacing(out / names[2]) as path:
        path.write_text(make_page(plan, report, figure).html(settings, env), encoding="utf-8")
    return names


def make_page(plan: Plan, report: GradientReport, figure: Any) -> Page:
    """The report as a page."""
    settings, series = plan.settings, plan.series
    page = Page("Which cell keeps the gradient?", f"lstmjax compare: {', '.join(plan.cells)}")
    page.paragraph(
        f"Everything but the cell is the same: inputs, targets, loss, a linear readout, seeds, and {report.matched}. "
        f"The loss predicts the value after {plan.length} steps; ‖∂L/∂h‖ is the norm of its gradient with respect to "
        "the hidden state so many steps before."
    )
    page.figure(
        figure,
        f"Gradient norm against the lag, over its value at lag 0: medians over {settings.seeds} seeds, bands from the "
        "least to the greatest.",
    )
    page.heading("The numbers")
    page.table(*report.rows(), words=2)
    page.items(
        {
            "loss": "A row's, mean over rows.",
            "half-life": "Steps in which the gradient halves, from a straight line through its logarithm: the median "
            "over seeds. Of seeds and of rows: from the least to the greatest. Where R² is low the curve is no "
            "exponential, and the columns by lag tell more.",
            "lag": "‖∂L/∂h‖ so many steps back over that at lag 0.",
            "λ₁": "The leading Lyapunov exponent a step: below 0, differences between states die out.",
            "timescale": "1/(1 − f) of the gate that keeps the state, in steps, of the median unit.",
        }
    )
    page.heading("Do they differ?")
    page.table(HEAD, difference_rows(report), words=2)
    page.paragraph(
        "The rate is that of ln ‖∂L/∂h‖ a step, above 0 where it grows; the first cell keeps its gradient longer where "
        "the difference is above 0. p: the Wilcoxon signed-rank test over seeds, two-sided, each seed a pair; by Holm, "
        "raised for the number of pairs in the phase. Below .05 two cells are commonly said to differ."
    )
    page.heading("What each curve means")
    for name, candidate in plan.cells.items():
        page.candidate(name, candidate)
    page.heading("What was read")
    loss = "the cross-entropy of the next symbol" if series.symbols else "half the squared error of the next value"
    page.entry(series.name, f"{series.about[0].upper()}{series.about[1:]}. The loss is {loss}.")
    return page


def main(settings: Settings) -> None:
    """Measures, prints the tables, and writes the results."""
    plan = make_plan(settings)
    claim(settings.out, NAME, settings_of(plan), settings.overwrite)
    report = measure(plan)
    names = write_results(plan, report)
    print(report.table())
    print(f"\n{numerals.plain_table(HEAD, difference_rows(report), words=2)}\n")
    print("rate: of ln ‖∂L/∂h‖ a step; p: Wilcoxon signed-rank over seeds, by Holm raised for the number of pairs")
    print(f"Wrote {', '.join(names)} to {settings.out}/")
