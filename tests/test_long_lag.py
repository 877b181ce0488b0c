"""The long-lag benchmark: its criteria, its plan, and one small run as its users run it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

import lstmjax
from benchmarks import long_lag
from benchmarks.long_lag_tasks import LAGS, PUBLISHED, Criterion, make_problem
from tests.cells import compiled

ROOT = Path(__file__).parent.parent
SMALL = (
    "--tasks", "adding", "embedded Reber", "--lags", "5", "--cells", "LSTM chrono", "--seeds", "1",
    "--hidden-size", "4", "--max-sequences", "200", "--batch-size", "20",
)  # fmt: skip


def run(out, *arguments):
    command = [sys.executable, "-m", "benchmarks.long_lag", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_writes_and_does_not_run_again_what_is_there(tmp_path, capsys):
    done = run(tmp_path, *SMALL)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"long_lag.{s}" for s in ("csv", "json", "png")]
    results = json.loads((tmp_path / "long_lag.json").read_text())
    assert results["settings"]["complete"] is True
    places = [(r["task"], r["lag"], r["cell"]) for r in results["records"]]
    assert places == [("adding", 5, "LSTM chrono"), ("embedded Reber", 7, "LSTM chrono")]
    for r in results["records"]:
        assert (r["solved"], r["sequences"], r["sequences_run"], len(r["curve"])) == (False, None, 200, 1)
        assert r["tested"] == {"adding": 2560, "embedded Reber": 512}[r["task"]]
        assert 0 <= r["test_wrong"] <= r["tested"]
        assert (r["log10_felt"] is None) == (r["task"] == "embedded Reber")
    with (tmp_path / "long_lag.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["task"], r["cell"]) for r in rows] == [(p[0], p[2]) for p in places]
    assert "curve" not in rows[0]

    long_lag.main(tyro.cli(long_lag.Settings, args=[*SMALL, "--out", str(tmp_path), "--no-progress"]))
    assert "2 of 2 runs are in" in capsys.readouterr().out
    assert json.loads((tmp_path / "long_lag.json").read_text())["records"] == results["records"]


def test_a_run_is_done_only_with_the_same_settings():
    first = long_lag.plan(long_lag.Settings(tasks=("copy",), lags=(5,), seeds=1))[0]
    record = {**first._asdict(), "solved": False}
    assert first.done_in([record])
    changed = first._replace(max_sequences=first.max_sequences + 1)
    assert not changed.done_in([record])
    assert changed.same_place(record)
    assert not first._replace(seed=1).same_place(record)


def test_a_run_that_is_cut_short_keeps_what_was_trained(tmp_path, monkeypatch, capsys):
    def two_runs(todo, tell):
        for r in todo[:2]:
            yield r, finished(r)
        raise KeyboardInterrupt

    monkeypatch.setattr(long_lag, "execute", two_runs)
    settings = long_lag.Settings(out=tmp_path, tasks=("adding",), lags=(5,), seeds=2, progress=False)
    with pytest.raises(KeyboardInterrupt):
        long_lag.main(settings)
    results = json.loads((tmp_path / "long_lag.json").read_text())
    assert results["settings"]["complete"] is False
    assert [r["seed"] for r in results["records"]] == [0, 1]
    assert "Cut short: 2 of 12 runs" in capsys.readouterr().err
    left = [r for r in long_lag.plan(settings) if not r.done_in(results["records"])]
    assert len(left) == 10


def finished(r, *, solved=True, error=0.01):
    return {
        **r._asdict(), "log10_felt": -3.0, "solved": solved, "sequences": 4000 if solved else None,
        "sequences_run": 6000, "diverged": error is None, "seconds": 1.0, "test_wrong": 3, "tested": 2560,
        "test_error": error, "baseline": 0.5, "criterion": "", "curve": [0.3, 0.1],
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("cell_name", ["tanh RNN uniform", "LSTM chrono"])
def test_what_is_felt_of_the_first_step(cell_name):
    run = long_lag.plan(
        long_lag.Settings(tasks=("adding",), lags=(5,), cells=(cell_name,), hidden_size=4, batch_size=7)
    )[0]
    problem, cell = make_problem("adding", 5), long_lag.make_cell(cell_name, 4, 5)
    programs = long_lag.make_programs(run, problem)
    params, key = jax.jit(programs.init)(jax.random.key(0)).params, jax.random.key(1)
    batch = jax.jit(problem.draw(7))(key)

    def from_state(state, xs):
        h = lstmjax.unroll(cell, params["cell"], xs, state)[0].h
        return problem.loss(h @ params["w"] + params["b"], batch)

    def norm(steps):
        state, _ = lstmjax.unroll(cell, params["cell"], batch.xs[:steps])
        grads = jax.tree.leaves(jax.grad(from_state)(state, batch.xs[steps:]))
        return jax.numpy.linalg.norm(jax.numpy.concatenate(grads, axis=-1), axis=-1)

    first, last = compiled(lambda: [norm(1), norm(len(batch.xs))])
    wanted = np.median(np.log10(first / last))
    np.testing.assert_allclose(programs.felt(params, key), wanted, rtol=1e-5)


def test_failures_are_counted():
    runs = long_lag.plan(long_lag.Settings(tasks=("adding",), lags=(5,), cells=("GRU",), seeds=3))
    records = [finished(runs[0]), finished(runs[1], solved=False), finished(runs[2], solved=False, error=None)]
    (row,) = long_lag.summarise(records)
    assert (row["seeds"], row["solved"], row["sequences"], row["test_error"]) == (3, 1, 4000, 0.01)
    assert "1/3" in long_lag.format_table([row])


@pytest.mark.parametrize(
    ("wrong", "window", "wanted"),
    [
        ([1, 0, 0, 0], 20, 30),
        ([0, 0, 1, 0], 21, None),
        ([0, 0, 0, 1], 21, 30),
        ([0, 0, 0, 1], 20, 20),
        ([0], 20, None),
    ],
)
def test_all_right_of_the_most_recent_sequences(wrong, window, wanted):
    assert long_lag.all_right_after(np.array(wrong), window, batch_size=10) == wanted


@pytest.mark.parametrize(
    ("errors", "fresh", "wanted"),
    [
        ([8, 1, 2], 1.0, 30),
        ([8, 1, 2], 1.7, None),
        ([1, 2, 3], 1.0, None),
        ([1, 2, np.nan], 1.0, None),
        ([1], 1.0, None),
    ],
)
def test_an_error_must_be_low_of_the_most_recent_sequences_and_of_fresh_ones(errors, fresh, wanted):
    problem = make_problem("adding", 5)._replace(criterion=Criterion("", window=20, error_below=1.6))
    settings = long_lag.plan(long_lag.Settings(tasks=("adding",), lags=(5,), batch_size=10))[0]
    wrong = np.full(len(errors), 7)
    assert long_lag.solved_after(problem, wrong, np.array(errors, float), settings, lambda: (0, fresh)) == wanted


@pytest.mark.parametrize(("failed", "wanted"), [(0, 20), (1, None)])
def test_an_exam_must_be_all_right(failed, wanted):
    problem = make_problem("embedded Reber", 7)
    settings = long_lag.plan(long_lag.Settings(tasks=("embedded Reber",), batch_size=10))[0]
    wrong = np.array([9, 9])
    assert long_lag.solved_after(problem, wrong, wrong / 10, settings, lambda: (failed, 0.0)) == wanted


@pytest.mark.parametrize("task", LAGS)
def test_perfect_answers_are_right_and_have_no_error(task):
    problem = make_problem(task, 12)

    def judged(key):
        batch = problem.draw(6)(key)
        answers = perfect(problem, batch)
        return [
            [judge(a, batch) for judge in (problem.right, problem.error, problem.loss)]
            # The right answers moved on by one row are wrong for some.
            for a in (answers, jax.numpy.roll(answers, 1, axis=-2))
        ]

    own, moved = jax.jit(judged)(jax.random.key(0))
    assert np.asarray(own[0]).all()
    assert float(own[1]) < 1e-6
    assert not np.asarray(moved[0]).all()
    assert float(own[2]) < float(moved[2])


def perfect(problem, batch):
    if problem.outputs == 1:
        return batch.targets[:, None]
    if batch.targets.dtype == bool:
        return jax.numpy.where(batch.targets, 10.0, -10.0)
    return 100.0 * jax.nn.one_hot(batch.targets, problem.outputs)


def test_published_figures_name_tasks_of_the_benchmark():
    assert {p["task"] for p in PUBLISHED} <= set(LAGS)


def test_settings_that_cannot_be_run_are_refused():
    with pytest.raises(ValueError, match="seeds is 0"):
        long_lag.Settings(seeds=0)
    with pytest.raises(ValueError, match="lags is \\(5, 5\\)"):
        long_lag.Settings(lags=(5, 5))
