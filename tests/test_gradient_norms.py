"""The main job, run as its users run it."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tyro

from benchmarks import gradient_norms as job

ROOT = Path(__file__).parent.parent
INPUTS = ("characters", "temperature")  # one-hot and not; white noise is below
SMALL = ("--lengths", "5", "40", "--seeds", "2", "--windows", "2", "--hidden-size", "8", "--inputs", *INPUTS)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, "benchmarks/gradient_norms.py", "--out", str(out), *SMALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done, out, json.loads((out / "gradient_norms.json").read_text())


@pytest.mark.slow
def test_writes_table_progress_and_files(small):
    done, out, results = small
    assert sorted(p.name for p in out.iterdir()) == [f"gradient_norms.{s}" for s in ("csv", "json", "png")]
    for cell in job.Settings.cells:
        assert cell in done.stdout
    assert "24/24" in done.stderr
    assert results["settings"]["complete"] is True
    assert results["environment"]["jax"]


@pytest.mark.slow
def test_records_have_the_promised_form(small):
    _, out, results = small
    keys = ["cell", "input", "seed", "length", "lag", "log10_dL_dh", "log10_dL_dc"]
    assert all(list(r) == keys for r in results["records"])
    assert len(results["records"]) == 6 * 2 * 2 * (6 + len(job.recorded_lags(40)))
    for r in results["records"]:
        assert 0 <= r["lag"] <= r["length"]
        if not r["cell"].startswith("LSTM") or r["lag"] == 0:
            assert r["log10_dL_dc"] is None
        else:
            assert math.isfinite(r["log10_dL_dc"])
    with (out / "gradient_norms.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["records"])
    assert float(rows[3]["log10_dL_dh"]) == results["records"][3]["log10_dL_dh"]


@pytest.mark.slow
def test_fits_have_the_promised_form(small):
    fits = small[2]["fits"]
    assert [(f["input"], f["cell"]) for f in fits] == [(i, c) for i in INPUTS for c in job.Settings.cells]
    for f in fits:
        assert {"cell", "input", "rate_per_step", "half_life", "r2"} <= set(f)
        if f["rate_per_step"] < 0:
            assert f["half_life"] == pytest.approx(-math.log(2) / f["rate_per_step"], rel=1e-3)
        else:
            assert f["half_life"] is None


@pytest.mark.slow
def test_a_length_alone_measures_what_it_measured_among_others(small):
    # Length 5 as a row among longer ones and as the only length: the same windows, the same norms.
    draw = job.make_series("temperature")
    both = job.make_batch(draw, 0, 2, (5, 40))
    alone = job.Batch(both.xs[:5, :1], both.targets[:1], both.lengths[:1])
    cell = job.make_cells(8, 40)["LSTM b_f=1"]
    among = job.measure(cell, both, 0, categorical=False)
    single = job.measure(cell, alone, 0, categorical=False)
    np.testing.assert_allclose(among["h"][:6, 0], single["h"][:, 0], atol=1e-5)
    assert np.isnan(among["h"][6:, 0]).all()
    recorded = [
        r
        for r in small[2]["records"]
        if (r["cell"], r["input"], r["seed"], r["length"]) == ("LSTM b_f=1", "temperature", 0, 5)
    ]
    np.testing.assert_allclose([r["log10_dL_dh"] for r in recorded], among["h"][:6, 0], atol=1e-4)


def test_cells_of_one_kind_compile_once():
    from lstmjax.gradients.adjoint import _norms_backwards

    settings = job.Settings(
        lengths=(3, 7, 11), seeds=2, windows=1, hidden_size=4, inputs=("white noise",),
        cells=("LSTM b_f=0", "LSTM b_f=1", "LSTM chrono"),
    )  # fmt: skip
    _norms_backwards.clear_cache()
    assert len(list(job.run(settings))) == 6
    assert _norms_backwards._cache_size() == 1


@pytest.mark.slow
def test_a_run_cut_short_leaves_what_it_measured(tmp_path, monkeypatch, capsys):
    settings = job.Settings(out=tmp_path, lengths=(4,), seeds=1, windows=1, hidden_size=4, progress=False)

    def interrupted(settings, run=job.run):
        for count, measurement in enumerate(run(settings)):
            if count == 2:
                raise KeyboardInterrupt
            yield measurement

    monkeypatch.setattr(job, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.main(settings)
    results = json.loads((tmp_path / "gradient_norms.json").read_text())
    assert results["settings"]["complete"] is False
    assert {r["cell"] for r in results["records"]} == {"tanh RNN", "identity ReLU RNN"}
    assert "2 of 18 curves" in capsys.readouterr().err


def test_underflow_is_said():
    h = np.array([[0.0], [-50.0], [-np.inf], [np.nan]])
    said = job.count_lost([job.Measurement("rnn", "x", 0, h, None)])
    assert said.startswith("50% of the 2 norms are below 1.2e-38")


def test_powers_of_ten_below_any_float():
    assert [job.power_of_ten(e) for e in (-400.5, 0.0, -1e-9, 2.0)] == [
        "3.2e-401",
        "1.0e+00",
        "1.0e+00",
        "1.0e+02",
    ]


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        tyro.cli(job.Settings, args=["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--out",
        "--lengths",
        "--seeds",
        "--windows",
        "--hidden-size",
        "--cells",
        "--inputs",
        "--progress",
    ):
        assert option in text
    assert "Hidden units of every cell." in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "0"), "seeds is 0; wanted at least 1"),
        (("--lengths", "0", "5"), "wanted each at least 1 step"),
        (("--lengths", "5", "5"), "each once"),
        (("--lengths", "9000"), "the longest length is 9000"),
        (("--cells", "transformer"), "transformer"),
        (("--speed", "11"), "--speed"),
    ],
)
def test_bad_options_are_one_clear_error(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        tyro.cli(job.Settings, args=arguments)
    assert ended.value.code != 0
    said = capsys.readouterr()
    assert message in said.err + said.out
