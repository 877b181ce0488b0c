"""The benchmark of all cells: what a run keeps of the one before, how it is shown, and one small run of each part."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import long_lag, zoo
from lstmjax.program.cells import ZOO, named


def fit(cell, name, life, **more):
    gates = {"forget": {"mean": 0.9, "timescale": 10.0}, "output": {"mean": 0.5}}
    record = {
        "cell": cell,
        "input": name,
        "rate_per_step": -0.1,
        "half_life": life,
        "lyapunov": -0.25,
        "gates": gates,
        "parameters": 1234,
    }
    return record | more


RESULT = Path(__file__).parent.parent / "benchmarks" / "results" / "long_lag.json"
RESULTS = {
    "gradients": [
        fit("rnn", "characters", 3.0, gates={}, lyapunov=None), fit("rnn", "white noise", 1.0, gates={}, lyapunov=None),
        fit("LSTM chrono", "characters", 300.0), fit("LSTM chrono", "white noise", None),
    ]
}  # fmt: skip
TIMES = {"times": [{"cell": "rnn", "forward_over_lstm": 0.5, "train_over_lstm": 0.25}]}
LEARNING = {
    "learning": [
        {"cell": "rnn", "solved": False, "test_error": 0.1798},
        {"cell": "LSTM chrono", "solved": True, "sequences": 34000},
    ]
}


def test_every_cell_can_be_made():
    assert {name.partition(":")[0] for name in zoo.CELLS} == {*ZOO, *zoo.CHRONO}
    for name in zoo.CELLS:
        named(name, 10).make(64)


def test_a_gradient_of_0_has_no_half_life():
    row, _ = zoo.rows_of({"gradients": [fit("rnn", "noise", None, rate_per_step=None), fit("gru", "noise", None)]})[
        ::-1
    ]
    assert [row.cell, str(row.half_life("noise"))] == ["rnn", "nan"]


def test_the_longest_half_life_stands_first():
    assert zoo.format_table(RESULTS).splitlines() == [
        "| cell | half-life, characters | half-life, white noise | λ₁ | timescale | parameters |",
        "|---|---|---|---|---|---|",
        "| LSTM chrono | 300 | no decay | −0.250 | 10 | 1,234 |",
        "| `rnn` | 3 | 1 | −∞ | – | 1,234 |",
    ]


def test_what_is_not_measured_is_left_open():
    assert zoo.format_table(RESULTS | TIMES | LEARNING).splitlines()[2:] == [
        "| LSTM chrono | 300 | no decay | −0.250 | 10 | 1,234 | – | – | 34,000 |",
        "| `rnn` | 3 | 1 | −∞ | – | 1,234 | 0.50 | 0.25 | no, 0.18 |",
    ]


@pytest.mark.parametrize("more", [{}, TIMES | LEARNING])
def test_the_picture_has_a_line_for_each_cell(more):
    figure = zoo.draw_figure(RESULTS | more)
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert ticks == ["LSTM chrono ✓" if more else "LSTM chrono", "rnn"]
    assert len(figure.axes) == (2 if more else 1)


def test_records_of_other_cells_and_parts_stay(tmp_path):
    settings = zoo.Settings(out=tmp_path, cells=("rnn",))
    before = zoo.write_results(settings, {}, "learning", LEARNING["learning"])
    after = zoo.write_results(settings, before, "learning", [{"cell": "rnn", "solved": True, "sequences": 7}])
    zoo.write_results(settings, after, "times", TIMES["times"])
    written = json.loads((tmp_path / "zoo.json").read_text())
    assert written["times"] == TIMES["times"]
    assert [(r["cell"], r["sequences"]) for r in written["learning"]] == [("LSTM chrono", 34000), ("rnn", 7)]
    assert written["environment"].keys() == {"times", "learning"}


def test_learning_is_the_long_lag_benchmark_s():
    (run,) = zoo.learning_runs(zoo.Settings(cells=("LSTM chrono",), max_sequences=120_000))
    records = long_lag.load(RESULT)
    assert run.done_in(records)


@pytest.mark.parametrize("settings", [{"parts": ()}, {"cells": ("rnn", "rnn")}, {"shape": "1,2,3"}])
def test_settings_that_cannot_be_measured_are_refused(settings):
    with pytest.raises(ValueError, match="wanted"):
        zoo.Settings(**settings)


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys):
    settings = zoo.Settings(
        out=tmp_path, cells=("gru", "co_rnn:dt=0.06,gamma=66,epsilon=15"), seeds=2, hidden_size=5, length=20,
        shape="6,2,3,4", seconds=0.1, max_sequences=400, progress=False,
    )  # fmt: skip
    zoo.main(settings)
    results = json.loads((tmp_path / "zoo.json").read_text())
    assert [r["cell"] for r in results["gradients"]] == [name for name in settings.cells[::-1] for _ in range(3)]
    of_gru = results["gradients"][-1]
    assert of_gru["gates"].keys() == {"reset", "update"}
    assert of_gru["parameters"] == 3 * 5 * (16 + 5 + 1) + 5
    assert np.isfinite([r["lyapunov"] for r in results["gradients"]]).all()
    assert {r["cell"] for r in results["times"]} == {"lstm", *settings.cells}
    assert [r["train_over_lstm"] for r in results["times"] if r["cell"] == "lstm"] == [1.0]
    assert [r["sequences_run"] for r in results["learning"]] == [400, 400]
    assert "| `gru` |" in capsys.readouterr().out
