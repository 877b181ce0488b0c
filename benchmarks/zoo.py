"""Whose gradient lives, and what does that cost? Every cell of the library that reads a series, side by side.

Three parts, each measured and written by itself, so that each can be measured anew alone: `gradients` at
initialisation; `times` of the two passes next to the LSTM's; `learning`, whether a cell learns to add over 200 steps.

    python -m benchmarks.zoo --out out                         # all, an hour or two, nearly all of it the learning
    python -m benchmarks.zoo --out out --parts gradients times # minutes
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure

import lstmjax
from benchmarks import long_lag
from benchmarks.long_lag_tasks import make_problem
from benchmarks.throughput import compiled, parse_shape, run_rounds
from lstmjax import numerals
from lstmjax.files import replacing
from lstmjax.gradients import gate_statistics, lyapunov_spectrum
from lstmjax.plot import STYLE
from lstmjax.program import gradients
from lstmjax.program.cells import ZOO, named
from lstmjax.program.output import dump_json, environment, number
from lstmjax.progress import progress_bar

PartName = Literal["gradients", "times", "learning"]
CHRONO = ("GRU chrono", "LSTM chrono")
SETTINGS = {
    "co_rnn": "dt=0.06,gamma=66,epsilon=15",  # its authors' for the adding task
    "leaky_rnn": "tau=10",
    "projected_lstm": "projection_size=32",
}
"""What has no default. Everything else begins as its paper, or the library, has it begin."""
CELLS = (*CHRONO, *(f"{name}:{SETTINGS[name]}" if name in SETTINGS else name for name in ZOO))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure every cell of the library: its gradient at initialisation, its cost, and whether it learns to add."""

    out: Path = Path("out")
    """Folder for zoo.json and .png. Parts and cells that zoo.json already holds and this run does not measure stay."""
    parts: tuple[PartName, ...] = get_args(PartName)
    """What to measure. Of learning, runs that zoo.json already holds are not run again."""
    cells: tuple[str, ...] = CELLS
    """Which cells, named as for `lstmjax gradients --cells`."""
    seeds: int = 5
    """Seeds of the gradients; of the learning there is one."""
    hidden_size: int = 64
    """Hidden units, for the gradients and the parameters."""
    length: int = 1000
    """Sequence length of the gradients, in steps."""
    shape: str = "100,32,64,128"
    """T,B,I,H of the times."""
    seconds: float = 60.0
    """Time for the rounds of each of the two passes."""
    max_sequences: int = 60_000
    """Training sequences after which a cell has failed to learn to add."""
    progress: bool = True
    """Show a progress bar on standard error."""

    def __post_init__(self):
        """Refuses settings that cannot be measured."""
        parse_shape(self.shape)
        for name in ("parts", "cells"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; wanted at least one, each once")


Records = list[dict[str, Any]]


def measure_gradients(settings: Settings) -> Records:
    """Half-life, λ₁ and gates at initialisation, on the three inputs of the main job: a record for each cell and input.

    Half-lives are those of the main job, at its longest length alone; λ₁ is the leading Lyapunov exponent a step, over
    the last four fifths, and ``gates`` has for each gate what :func:`lstmjax.gradients.gate_statistics` finds: the
    median unit's mean, shares of saturated steps, and timescale of the gate that keeps the state. All are medians over
    seeds.
    """
    plan = gradients.make_plan(
        gradients.Settings(
            cells=settings.cells, seeds=settings.seeds, hidden_size=settings.hidden_size, lengths=(settings.length,)
        )
    )
    total = len(plan.cells) * len(plan.series)
    bar = progress_bar(gradients.run(plan), "gradients", "curve", shown=settings.progress, total=total * settings.seeds)
    fits = gradients.make_fits(gradients.make_curves(plan.lengths, list(bar)))
    at = {(fit["cell"], fit["input"]): fit for fit in fits}
    records = []
    pairs = itertools.product(plan.cells.items(), plan.series)
    for (name, candidate), series in progress_bar(pairs, "λ₁ and gates", "", shown=settings.progress, total=total):
        cell, exponents, gates = candidate.make(settings.hidden_size), [], []
        for seed in range(settings.seeds):
            # The weights and windows of the main job, whose half-life stands beside.
            batch = gradients.make_batch(series, seed, plan.settings.windows, plan.lengths)
            xs = batch.xs[:, 0].astype(np.float32)
            params = cell.init(jax.random.split(jax.random.key(seed))[0], xs.shape[-1])
            spectrum = lyapunov_spectrum(cell, params, xs, leading=1, burn_in=settings.length // 5)
            exponents.append(np.median(spectrum))
            if getattr(cell.step, "gates", None) is not None:
                gates.append(gate_statistics(cell, params, xs))
        fit = at[name, series.name]
        count = sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(lambda key, cell=cell: cell.init(key, 16), jax.random.key(0)))
        )
        records.append(
            {"cell": name, "input": series.name}
            | {key: fit[key] for key in ("rate_per_step", "half_life", "rate_min", "rate_max", "r2", "left")}
            | {"lyapunov": number(np.median(exponents)), "gates": _over_seeds(gates), "parameters": count}
        )
    return records


def _over_seeds(found: list[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Gate statistics as numbers: medians over units and seeds; a cell without gates has none."""
    return {
        gate: {
            field: number(np.median([getattr(statistics[gate], field) for statistics in found]))
            for field in found[0][gate]._fields
            if getattr(found[0][gate], field) is not None
        }
        for gate in (found[0] if found else ())
    }


def measure_times(settings: Settings) -> Records:
    """Time of each pass over that of ``lstm`` in the same round: all cells run in every round, in an order drawn anew.

    ``forward`` makes the outputs; ``train`` the gradient of their mean square by parameters and input.
    """
    steps, batch, inputs, hidden = parse_shape(settings.shape)
    names = list(dict.fromkeys(("lstm", *settings.cells)))
    xs = jax.random.normal(jax.random.key(1), (steps, batch, inputs))
    found: dict[str, dict[str, Any]] = {name: {"cell": name} for name in names}
    for pass_name in ("forward", "train"):
        runs = {}
        for name in progress_bar(names, f"compiling, {pass_name}", "cell", shown=settings.progress):
            cell = named(name, steps).make(hidden)
            program = _forward(cell) if pass_name == "forward" else jax.grad(_mean_square(cell), argnums=(0, 1))
            runs[name] = compiled(program, cell.init(jax.random.key(0), inputs), xs)[0].run
        times = run_rounds(runs, settings.seconds)
        for name, of in times.items():
            found[name] |= {
                f"{pass_name}_over_lstm": round(float(np.median(of / times["lstm"])), 4),
                f"{pass_name}_ms": round(float(np.median(of)) * 1e3, 4),
                f"{pass_name}_rounds": len(of),
            }
    return list(found.values())


def _forward(cell: lstmjax.Cell) -> Callable[..., Any]:
    return lambda params, xs: lstmjax.unroll(cell, params, xs)[1]


def _mean_square(cell: lstmjax.Cell) -> Callable[..., Any]:
    return lambda params, xs: (lstmjax.unroll(cell, params, xs)[1] ** 2).mean()


def learning_runs(settings: Settings) -> list[long_lag.Run]:
    """The adding task over 200 steps, as the long-lag benchmark has it, from one seed for each cell."""
    plan = long_lag.plan(
        long_lag.Settings(tasks=("adding",), lags=(200,), cells=("GRU",), seeds=1, max_sequences=settings.max_sequences)
    )
    return [plan[0]._replace(cell=cell) for cell in settings.cells]


def learn(run: long_lag.Run, tell: Callable[[str], None]) -> dict[str, Any]:
    """One run of the long-lag benchmark."""
    problem = make_problem(run.task, run.lag)
    return long_lag.train(run, problem, long_lag.make_programs(run, problem), tell)


class Row(NamedTuple):
    """What is known of a cell, part by part; None: not measured.

    Attributes:
        cell: its name.
        by_input: a record of the gradients for each input.
        times: its record.
        learning: its record.
    """

    cell: str
    by_input: dict[str, dict[str, Any]]
    times: dict[str, Any] | None
    learning: dict[str, Any] | None

    def half_life(self, name: str) -> float:
        """In steps; ∞ where the gradient does not decay, and NaN where it is 0 and no line can be fitted."""
        fit = self.by_input[name]
        if fit["rate_per_step"] is None:
            return math.nan
        return math.inf if fit["half_life"] is None else fit["half_life"]


def rows_of(results: dict[str, Any]) -> list[Row]:
    """A row for each cell whose gradients are measured, the longest half-life first: the median over the inputs."""
    records = results["gradients"]
    times, learning = ({r["cell"]: r for r in results.get(part, [])} for part in ("times", "learning"))
    rows = [
        Row(cell, {r["input"]: r for r in records if r["cell"] == cell}, times.get(cell), learning.get(cell))
        for cell in dict.fromkeys(r["cell"] for r in records)
    ]
    lives = {row.cell: [row.half_life(name) for name in row.by_input] for row in rows}
    return sorted(rows, key=lambda row: -np.median(np.nan_to_num(lives[row.cell], nan=0.0, posinf=np.inf)))


def format_table(results: dict[str, Any]) -> str:
    """Every cell in Markdown, the longest half-life first."""
    rows = rows_of(results)
    inputs = list(rows[0].by_input)
    timed, taught = any(row.times for row in rows), any(row.learning for row in rows)
    head = ["cell", *(f"half-life, {name}" for name in inputs), "λ₁", "timescale", "parameters"]
    head += ["forward", "training"] if timed else []
    head += ["learns to add"] if taught else []
    return numerals.markdown_table(head, [_columns(row, inputs, timed, taught) for row in rows])


def _columns(row: Row, inputs: list[str], timed: bool, taught: bool) -> list[str]:
    last = row.by_input[inputs[-1]]
    scale = [gate["timescale"] for gate in last["gates"].values() if "timescale" in gate]
    times = [f"{row.times[f'{p}_over_lstm']:.2f}" if row.times else "–" for p in ("forward", "train")] if timed else []
    exponent = "−∞" if last["lyapunov"] is None else f"{last['lyapunov']:.3f}".replace("-", "−")
    return [
        f"`{row.cell}`" if row.cell not in CHRONO else row.cell,
        *(numerals.half_life(row.half_life(name)) for name in inputs),
        exponent,
        f"{scale[0]:.3g}" if scale else "–",
        f"{last['parameters']:,}",
        *times,
        *([_learned(row.learning)] if taught else []),
    ]


def _learned(record: dict[str, Any] | None) -> str:
    if record is None:
        return "–"
    if record["solved"]:
        return f"{record['sequences']:,}"
    return "no" if record["test_error"] is None else f"no, {record['test_error']:.2g}"


def draw_figure(results: dict[str, Any]) -> Figure:
    """A line for each cell, the longest half-life above: half-lives to the left, and what they cost to the right."""
    rows = rows_of(results)
    inputs, timed = list(rows[0].by_input), any(row.times for row in rows)
    places = np.arange(len(rows))
    lives = np.array([[row.half_life(name) for name in inputs] for row in rows])
    most = 10 ** math.ceil(math.log10(lives[np.isfinite(lives)].max()) + 0.5)
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(6.0 if timed else 4.6, 0.165 * len(rows) + 1.2), dpi=220, layout="constrained")
        panels = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False, width_ratios=[3, 2][: 1 + timed])[0]
        for name, mark, column in zip(inputs, "os^", lives.T, strict=False):
            panels[0].plot(np.where(np.isposinf(column), most, column), places, mark, markersize=4, label=name)
        panels[0].set_xscale("log")
        panels[0].set_xlim(0.25, 2 * most)
        decades = 10 ** np.arange(0, round(math.log10(most)))
        panels[0].set_xticks([*decades, most], [*(f"{d:g}" for d in decades), "no\ndecay"])
        panels[0].set_xticks([], minor=True)
        panels[0].set_xlabel("half-life of the gradient at initialisation (steps)")
        panels[0].set_yticks(places, [_label(row) for row in rows])
        panels[0].invert_yaxis()
        if timed:
            for pass_name, mark, colour in (("forward", "D", "#CC79A7"), ("train", "o", "#000000")):
                known = [(row.times[f"{pass_name}_over_lstm"], n) for n, row in enumerate(rows) if row.times]
                label = {"forward": "forward pass", "train": "training step"}[pass_name]
                panels[1].plot(*zip(*known, strict=True), mark, markersize=3.5, color=colour, label=label)
            panels[1].axvline(1.0, color="0.5", linewidth=0.8)
            panels[1].set_xscale("log")
            panels[1].set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
            panels[1].set_xticks([], minor=True)
            panels[1].set_xlabel("time over that of lstm")
        for panel in panels:
            panel.grid(True)
            panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, columnspacing=1.0)
    return figure


def _label(row: Row) -> str:
    """Its name without settings, and a mark where it learned to add."""
    solved = row.learning is not None and row.learning["solved"]
    return f"{row.cell.partition(':')[0]}{' ✓' if solved else ''}"


def keep_others(old: Records, new: Records) -> Records:
    """The new records, and the old ones of cells that the new ones say nothing of, in the order of the cells."""
    measured = {r["cell"] for r in new}
    records = [r for r in old if r["cell"] not in measured] + new
    known = {name: n for n, name in enumerate(CELLS)}
    return sorted(records, key=lambda r: known.get(r["cell"], len(known)))


def write_results(settings: Settings, results: dict[str, Any], part: PartName, new: Records) -> dict[str, Any]:
    """The results with one part's new records, written: zoo.json, and zoo.png where there are gradients to draw."""
    env = {**results.get("environment", {}), part: environment("float32", "optax")}
    used = {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "progress", "parts", "cells")}
    results = {
        **results,
        "environment": env,
        "settings": {**results.get("settings", {}), part: used},
        part: keep_others(results.get(part, []), new),
    }
    with replacing(settings.out / "zoo.json") as path:
        path.write_text(dump_json(results))
    if "gradients" in results:
        with replacing(settings.out / "zoo.png") as path:
            draw_figure(results).savefig(path, format="png")
    return results


def main(settings: Settings) -> None:
    """Measures part by part, and writes after each, and after each cell that was trained."""
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / "zoo.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if "gradients" in settings.parts:
        results = write_results(settings, results, "gradients", measure_gradients(settings))
    if "times" in settings.parts:
        results = write_results(settings, results, "times", measure_times(settings))
    if "learning" in settings.parts:
        todo = [run for run in learning_runs(settings) if not run.done_in(results.get("learning", []))]
        bar = progress_bar(todo, "learning", "cell", shown=settings.progress)
        for run in bar:
            results = write_results(settings, results, "learning", [learn(run, bar.set_postfix_str)])
    if "gradients" in results:
        print(format_table(results))
    print(f"\nWrote zoo.json and .png to {settings.out}/")


if __name__ == "__main__":
    main(tyro.cli(Settings))
