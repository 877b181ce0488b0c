"""What does the gradient's survival buy? Trains RNN, GRU and LSTM on tasks whose answer lies a long lag back.

Each run trains one cell on one task at one lag from one seed, on sequences drawn afresh on the device, until the
task's published criterion is met or its allowance of sequences is spent; a run that fails is a result. Results are
written after every run, and a run that the output file already holds with the same settings is not run again.

    python -m benchmarks.long_lag --tasks adding --lags 200 600 --out out
"""

import csv
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import Array
from numpy.typing import NDArray

import lstmjax
from benchmarks.long_lag_figure import long_lag_figure
from benchmarks.long_lag_tasks import LAGS, PUBLISHED, Problem, TaskName, make_problem
from lstmjax import numerals, training
from lstmjax.files import replacing
from lstmjax.gradients import adjoint_norms
from lstmjax.program.cells import named
from lstmjax.program.output import dump_json, environment, number
from lstmjax.progress import progress_bar
from lstmjax.tasks import Batch

CellName = Literal["tanh RNN", "tanh RNN uniform", "GRU", "GRU chrono", "LSTM b_f=1", "LSTM chrono"]
TEST_SEQUENCES = 2560
QUICK = {
    "tasks": ("temporal order", "loan sentences"), "cells": ("tanh RNN", "LSTM chrono"),
    "lags": (20,), "seeds": 1, "hidden_size": 32, "max_sequences": 20_000,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """Train recurrent cells on long-lag tasks, and write who solves what, after how many sequences."""

    out: Path = Path("out")
    """Folder for long_lag.json, .csv and .png. Runs that long_lag.json already holds are kept."""
    tasks: tuple[TaskName, ...] = tuple(LAGS)
    """Which tasks."""
    lags: tuple[int, ...] | None = None
    """Lags in steps, for every task alike (embedded Reber has none to choose); each task's own unless given."""
    cells: tuple[CellName, ...] = get_args(CellName)
    """Which cells. b_f is the forget gate's initial bias; chrono spreads the bias of the gate that keeps the state up
    to the length of the sequence; uniform draws all weights from ±1/√H, as PyTorch does."""
    seeds: int = 3
    """How many seeds; each draws weights and sequences of its own."""
    hidden_size: int = 128
    """Hidden units of every cell."""
    batch_size: int | None = None
    """Sequences an update; each task's own unless given."""
    learning_rate: float | None = None
    """Of Adam; each task's own unless given."""
    clip_norm: float = 1.0
    """Norm that gradients are scaled down to where they exceed it."""
    max_sequences: int | None = None
    """Training sequences after which a run has failed; each task's own unless given."""
    quick: bool = False
    """Two tasks at a short lag, two cells, one seed, in under a minute."""
    progress: bool = True
    """Show a progress bar on standard error."""

    def __post_init__(self):
        """Refuses settings that cannot be run."""
        for name in ("seeds", "hidden_size", "batch_size", "max_sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; wanted at least 1")
        for name in ("tasks", "lags", "cells"):
            values = getattr(self, name)
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{name} is {values}; wanted at least one, each once")


class Run(NamedTuple):
    """One training run, and all that its result depends on."""

    task: TaskName
    lag: int
    cell: str
    seed: int
    hidden_size: int
    batch_size: int
    learning_rate: float
    clip_norm: float
    max_sequences: int

    def same_place(self, record: dict[str, Any]) -> bool:
        """Whether a record is of this task, lag, cell and seed."""
        return all(record[name] == getattr(self, name) for name in ("task", "lag", "cell", "seed"))

    def done_in(self, records: list[dict[str, Any]]) -> bool:
        """Whether a record is of this very run."""
        return any(all(r.get(name) == value for name, value in self._asdict().items()) for r in records)


def plan(settings: Settings) -> list[Run]:
    """Every run, the seeds of one cell one after another, since they share a compiled program."""
    runs = []
    for task in settings.tasks:
        own = LAGS[task] if settings.lags is None or task == "embedded Reber" else settings.lags
        for lag in own:
            problem = make_problem(task, lag)
            options = (
                settings.hidden_size,
                settings.batch_size or problem.batch_size,
                settings.learning_rate or problem.learning_rate,
                settings.clip_norm,
                settings.max_sequences or problem.max_sequences,
            )
            runs += [Run(task, lag, cell, seed, *options) for cell in settings.cells for seed in range(settings.seeds)]
    return runs


def make_cell(name: str, hidden_size: int, longest: int) -> lstmjax.Cell:
    """The named cell: one of the program's, or the one whose weights are all uniform."""
    if name == "tanh RNN uniform":
        uniform, twice = (lstmjax.init.pytorch_uniform(hidden_size, draws=n) for n in (1, 2))  # two biases that add
        return lstmjax.rnn(hidden_size, w_x_init=uniform, w_h_init=uniform, b_init=twice)
    return named(name, longest).make(hidden_size)


class Programs(NamedTuple):
    """The compiled programs of a task, lag and cell, which seeds share.

    Attributes:
        init: ``key -> state`` before training.
        train: ``state -> (state, metrics)`` over 2000 sequences, 400 where there is an exam to sit after them;
            ``wrong`` and ``error`` for each update.
        felt: ``(params, key) -> log10`` of ‖∂L/∂s‖ after the first step over that after the last, the median row's;
            None where the loss is of every step.
        test: ``(params, key) -> (wrong, error)`` on fresh sequences, or on the exam.
        tested: how many sequences a test is of.
    """

    init: Callable[[Array], Any]
    train: Callable[[Any], tuple[Any, dict[str, Array]]]
    felt: Callable[[Any, Array], Array] | None
    test: Callable[[Any, Array], tuple[Array, Array]]
    tested: int


def make_programs(run: Run, problem: Problem) -> Programs:
    """Cell, linear readout, loss and Adam, put together."""
    draw = problem.draw(run.batch_size)
    example = jax.eval_shape(draw, jax.random.key(0))
    longest, _, inputs = example.xs.shape
    cell = make_cell(run.cell, run.hidden_size, longest)
    optimizer = optax.adam(run.learning_rate)

    def init(key: Array) -> Any:
        k_cell, k_readout, k_run = jax.random.split(key, 3)
        features = cell.initial_state().h.shape[-1]
        w = jax.nn.initializers.lecun_normal()(k_readout, (features, problem.outputs), jnp.float32)
        params = {"cell": cell.init(k_cell, inputs), "w": w, "b": jnp.zeros(problem.outputs)}
        return training.init_state(params, optimizer, k_run)

    def readout(params: Any, h: Array) -> Array:
        return h @ params["w"] + params["b"]

    def felt(params: Any, key: Array) -> Array:
        batch = draw(key)
        norms = adjoint_norms(
            cell, params["cell"], batch.xs, lambda states: problem.loss(readout(params, states.h[-1]), batch)
        )
        whole = jax.nn.logsumexp(2 * jnp.stack(jax.tree.leaves(norms)), axis=0) / 2
        return jnp.median(whole[1] - whole[-1]) / jnp.log(10)

    def judge(params: Any, batch: Batch) -> tuple[Array, dict[str, Array]]:
        final, ys = lstmjax.unroll(cell, params["cell"], batch.xs, lengths=batch.lengths)
        answers = readout(params, ys if problem.every_step else final.h)
        wrong = jnp.logical_not(problem.right(answers, batch)).sum()
        return problem.loss(answers, batch), {"wrong": wrong, "error": problem.error(answers, batch)}

    def test(params: Any, key: Array) -> tuple[Array, Array]:
        if problem.exam is not None:
            metrics = judge(params, problem.exam)[1]
            return metrics["wrong"], metrics["error"]
        some = problem.draw(TEST_SEQUENCES // 10)
        metrics = jax.lax.map(lambda k: judge(params, some(k))[1], jax.random.split(key, 10))
        return metrics["wrong"].sum(), metrics["error"].mean()

    step = training.make_train_step(lambda params, batch, _: judge(params, batch), optimizer, clip_norm=run.clip_norm)
    chunk = 2000 if problem.exam is None else 400
    loop = training.make_train_loop(step, draw, steps=max(1, min(chunk, run.max_sequences) // run.batch_size))
    compiled = jax.jit(loop).lower(jax.eval_shape(init, jax.random.key(0))).compile()
    tested = TEST_SEQUENCES if problem.exam is None else problem.exam.xs.shape[1]
    return Programs(jax.jit(init), compiled, None if problem.every_step else jax.jit(felt), jax.jit(test), tested)


def train(run: Run, problem: Problem, programs: Programs, tell: Callable[[str], None]) -> dict[str, Any]:
    """Trains until the criterion is met, the allowance spent or the loss no longer a number, then tests."""
    key_init, key_test = jax.random.split(jax.random.key(run.seed))
    state = programs.init(key_init)
    felt = None if programs.felt is None else number(programs.felt(state.params, key_test))
    wrong, errors = np.zeros(0, int), np.zeros(0)
    curve: list[float | None] = []
    solved_at, diverged, seconds = None, False, 0.0
    while solved_at is None and not diverged and len(wrong) * run.batch_size < run.max_sequences:
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(programs.train(state))
        seconds += time.perf_counter() - start
        wrong = np.concatenate([wrong, np.asarray(metrics["wrong"])])
        errors = np.concatenate([errors, np.asarray(metrics["error"])])
        curve.append(number(np.mean(metrics["error"])))
        diverged = not np.isfinite(np.asarray(metrics["loss"])).all()
        solved_at = solved_after(problem, wrong, errors, run, partial(programs.test, state.params, key_test))
        done = len(wrong) * run.batch_size
        tell(f"{run.task} {run.lag}, {run.cell}, seed {run.seed}: {done} sequences, error {curve[-1]}")
    test_wrong, test_error = programs.test(state.params, key_test)
    return {
        **run._asdict(),
        "log10_felt": felt,
        "solved": solved_at is not None,
        "sequences": solved_at,
        "sequences_run": len(wrong) * run.batch_size,
        "diverged": diverged,
        "seconds": round(seconds, 2),
        "test_wrong": int(test_wrong),
        "tested": programs.tested,
        "test_error": number(test_error),
        "baseline": number(problem.baseline),
        "criterion": problem.criterion.words,
        "curve": curve,
    }


def solved_after(
    problem: Problem, wrong: NDArray, errors: NDArray, run: Run, test: Callable[[], tuple[Array, Array]]
) -> int | None:
    """After how many sequences the task was solved; None: not yet. What wants a test is known at the end of a call."""
    window, error_below = problem.criterion.window, problem.criterion.error_below
    if problem.exam is None and error_below is None:
        return all_right_after(wrong, window, run.batch_size)
    if error_below is not None:
        span = math.ceil(window / run.batch_size)
        met = len(errors) >= span and errors[-span:].mean() < error_below and float(test()[1]) < error_below
    else:
        met = int(test()[0]) == 0
    return len(wrong) * run.batch_size if met else None


def all_right_after(wrong: NDArray, window: int, batch_size: int) -> int | None:
    """After how many sequences the ``window`` most recent ones were all right for the first time; None: never.

    Args:
        wrong: ``[updates]`` how many of each batch were wrong, before it was learnt from.
        window: how many sequences, rounded up to whole batches.
        batch_size: sequences an update.

    >>> all_right_after(np.array([0, 1, 0, 0, 0]), window=3, batch_size=1)
    5
    """
    span = math.ceil(window / batch_size)
    if len(wrong) < span:
        return None
    total = np.concatenate([[0], np.cumsum(wrong)])
    clean = total[span:] == total[:-span]
    return int(span + np.argmax(clean)) * batch_size if clean.any() else None


def execute(runs: list[Run], tell: Callable[[str], None]) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Trains each run; the programs are compiled once for the seeds of a cell, outside the time of any."""
    shared: tuple[Any, Any] = None, None
    for run in runs:
        problem = make_problem(run.task, run.lag)
        if shared[0] != run._replace(seed=0):
            shared = run._replace(seed=0), make_programs(run, problem)
        yield run, train(run, problem, shared[1], tell)


def load(path: Path) -> list[dict[str, Any]]:
    """The records that are already there."""
    return json.loads(path.read_text())["records"] if path.exists() else []


def summarise(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task, lag and cell: how many seeds solved it, and medians."""
    rows = []
    for place in dict.fromkeys((r["task"], r["lag"], r["cell"]) for r in records):
        group = [r for r in records if (r["task"], r["lag"], r["cell"]) == place]
        solved = [r["sequences"] for r in group if r["solved"]]
        felt = [r["log10_felt"] for r in group]
        finite = [r["test_error"] for r in group if r["test_error"] is not None]
        rows.append(
            {
                **dict(zip(("task", "lag", "cell"), place, strict=True)),
                "log10_felt": None if None in felt else number(np.median(felt)),
                "seeds": len(group),
                "solved": len(solved),
                "sequences": int(np.median(solved)) if solved else None,
                "sequences_min": min(solved, default=None),
                "sequences_max": max(solved, default=None),
                "max_sequences": max(r["max_sequences"] for r in group),
                "test_wrong": int(np.median([r["test_wrong"] for r in group])),
                "tested": group[0]["tested"],
                "test_error": number(np.median(finite)) if finite else None,
                "baseline": group[0]["baseline"],
                "seconds": number(np.median([r["seconds"] for r in group])),
            }
        )
    return rows


def format_table(summary: list[dict[str, Any]]) -> str:
    """Who solved what, next to what was published."""
    head = (
        f"{'task':<16}{'lag':>5}  {'cell':<18}{'felt':>10}{'solved':>8}{'sequences':>11}{'wrong':>11}{'error':>9}"
        f"{'seconds':>9}"
    )
    lines = [head, "-" * len(head)]
    for task, lag in dict.fromkeys((row["task"], row["lag"]) for row in summary):
        rows = [r for r in summary if (r["task"], r["lag"]) == (task, lag)]
        for row in rows:
            sequences = f"> {row['max_sequences']}" if row["sequences"] is None else f"{row['sequences']}"
            error = "-" if row["test_error"] is None else f"{row['test_error']:.2g}"
            solved, wrong = f"{row['solved']}/{row['seeds']}", f"{row['test_wrong']}/{row['tested']}"
            felt = "-" if row["log10_felt"] is None else numerals.power_of_ten(row["log10_felt"])
            lines.append(
                f"{task:<16}{lag:>5}  {row['cell']:<18}{felt:>10}{solved:>8}{sequences:>11}{wrong:>11}{error:>9}"
                f"{row['seconds']:>9.0f}"
            )
        for known in (p for p in PUBLISHED if (p["task"], p["lag"]) == (task, lag)):
            sequences, wrong, error = (str(known.get(k, "")) for k in ("sequences", "test_wrong", "error"))
            line = f"{'':<8}{'published: ' + known['source']:<51}{sequences:>11}{wrong:>11}{error:>9}"
            lines.append(line.rstrip())
        lines.append(f"{'':<8}{'remembering nothing':<51}{'':>11}{'':>11}{rows[0]['baseline']:>9.2g}")
    return "\n".join(lines)


def write_results(settings: Settings, records: list[dict[str, Any]], complete: bool, picture: bool) -> None:
    """Writes .json and .csv, and where ``picture`` is set .png, each whole or not at all; in order, however run."""
    tasks, cells = list(LAGS), get_args(CellName)
    records = sorted(records, key=lambda r: (tasks.index(r["task"]), r["lag"], cells.index(r["cell"]), r["seed"]))
    summary = summarise(records)
    results = {
        "environment": environment("float32", "optax"),
        "settings": {  # of the last command; each record has its own
            **{k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "progress")},
            "complete": complete,
            "log10_felt": "before training, ‖∂L/∂s‖ after the first step over that after the last",
            "sequences": "training sequences until the criterion was met; null: it was not, within max_sequences",
            "seconds": "of training, without compiling",
            "curve": "mean error of each 2000 training sequences (Reber: 400), each judged before it is learnt from",
        },
        "summary": summary,
        "published": PUBLISHED,
        "records": records,
    }
    with replacing(settings.out / "long_lag.json") as path:
        path.write_text(dump_json(results))
    with replacing(settings.out / "long_lag.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in records[0] if name != "curve"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(records)
    if picture:
        with replacing(settings.out / "long_lag.png") as path:
            long_lag_figure(summary, records, PUBLISHED).savefig(path, format="png")


def main(settings: Settings) -> None:
    """Trains what is not yet trained, writes the results after every run, prints the table."""
    if settings.quick:
        settings = dataclasses.replace(settings, **QUICK)
    settings.out.mkdir(parents=True, exist_ok=True)
    records = load(settings.out / "long_lag.json")
    runs = plan(settings)
    todo = [run for run in runs if not run.done_in(records)]
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are in {settings.out}/long_lag.json already")
    bar = progress_bar([], "long lag", "run", shown=settings.progress, total=len(todo))
    left = len(todo)
    try:
        for run, record in execute(todo, lambda text: bar.set_postfix_str(text)):
            records = [r for r in records if not run.same_place(r)] + [record]
            left -= 1
            write_results(settings, records, complete=left == 0, picture=False)
            bar.update()
    finally:
        bar.close()
        if records:
            write_results(settings, records, complete=left == 0, picture=True)
            print(format_table(summarise(records)))
            print(f"\nWrote long_lag.json, .csv and .png to {settings.out}/")
        if left:
            print(f"Cut short: {len(todo) - left} of {len(todo)} runs were made.", file=sys.stderr)


if __name__ == "__main__":
    main(tyro.cli(Settings))
