"""The program, run as its users run it: on their cells, on their data, and with their mistakes."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax.convert import save_safetensors, to_torch
from lstmjax.gradients import GradientReport, with_output
from lstmjax.plot import CELL_LINES, LINES, lines_of
from lstmjax.program import cells, compare, main, output, series
from lstmjax.program import gradients as job

ROOT = Path(__file__).parent.parent
INPUTS = ("characters", "temperature")  # one-hot and not; white noise is below
SMALL = ("--lengths", "5", "40", "--seeds", "2", "--windows", "2", "--hidden-size", "8", "--inputs", *INPUTS)
TINY = ("--lengths", "3", "6", "--seeds", "1", "--windows", "1", "--hidden-size", "4", "--no-progress")
HEADLINE = list(cells.headline(10))


def said_by(capsys):
    """What was printed, without the frame around it and its line breaks."""
    said = capsys.readouterr()
    return re.sub(r"[\s│╭╮╰╯─]+", " ", said.out + said.err)


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert ended.value.code == 2
    return said_by(capsys)


# The main job.


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, "benchmarks/gradient_norms.py", "--out", str(out), *SMALL]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    return done, out, json.loads((out / "gradient_norms.json").read_text())


@pytest.mark.slow
def test_writes_table_progress_and_files(small):
    done, out, results = small
    assert sorted(p.name for p in out.iterdir()) == [f"gradient_norms.{s}" for s in ("csv", "html", "json", "png")]
    for cell in HEADLINE:
        assert cell in done.stdout
    assert "28/28" in done.stderr
    assert results["settings"]["complete"] is True
    assert results["environment"]["jax"]


@pytest.mark.slow
def test_records_have_the_promised_form(small):
    _, out, results = small
    keys = ["cell", "input", "seed", "length", "lag", "log10_dL_dh", "log10_dL_dc", "log10_dL_ds"]
    assert all(list(r) == keys for r in results["records"])
    assert len(results["records"]) == 7 * 2 * 2 * (6 + len(job.recorded_lags(40)))
    for r in results["records"]:
        assert 0 <= r["lag"] <= r["length"]
        if not r["cell"].startswith("LSTM") or r["lag"] == 0:
            assert r["log10_dL_dc"] is None
        else:
            assert math.isfinite(r["log10_dL_dc"])
            squares = 10 ** (2 * r["log10_dL_dh"]) + 10 ** (2 * r["log10_dL_dc"])  # of medians, so nearly
            assert r["log10_dL_ds"] == pytest.approx(0.5 * math.log10(squares), abs=0.1)
    with (out / "gradient_norms.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results["records"])
    assert float(rows[3]["log10_dL_dh"]) == results["records"][3]["log10_dL_dh"]


@pytest.mark.slow
def test_fits_have_the_promised_form(small):
    fits = small[2]["fits"]
    assert [(f["input"], f["cell"]) for f in fits] == [(i, c) for i in INPUTS for c in HEADLINE]
    for f in fits:
        assert f["rate_min"] <= f["rate_per_step"] <= f["rate_max"]
        assert f["rate_min_windows"] <= f["rate_max_windows"]
        assert list(f["left"]) == ["10"]  # there is no lag 100 in 40 steps
        if f["rate_per_step"] < 0:
            assert f["half_life"] == pytest.approx(-math.log(2) / f["rate_per_step"], rel=1e-3)
        else:
            assert f["half_life"] is None


@pytest.mark.slow
def test_a_length_alone_measures_what_it_measured_among_others(small):
    # Length 5 as a row among longer ones and as the only length: the same windows, the same norms.
    both = job.make_batch(series.shipped("temperature"), 0, 2, (5, 40))
    alone = job.Batch(both.xs[:5, :1], both.targets[:1], both.lengths[:1])
    cell = cells.headline(40)["LSTM b_f=1"].make(8)
    among = job.measure(cell, both, 0, categorical=False)
    single = job.measure(cell, alone, 0, categorical=False)
    np.testing.assert_allclose(among["h"][:6, 0], single["h"][:, 0], atol=1e-5)
    assert np.isnan(among["h"][6:, 0]).all()
    recorded = [
        r
        for r in small[2]["records"]
        if (r["cell"], r["input"], r["seed"], r["length"]) == ("LSTM b_f=1", "temperature", 0, 5)
    ]
    medians = np.median(among["h"][:6, 0], axis=-1)
    np.testing.assert_allclose([r["log10_dL_dh"] for r in recorded], medians, atol=1e-4)


def test_the_text_is_the_same_under_every_python():
    from lstmjax.tasks import english_text, seattle_temperatures

    assert len(english_text()) == 465_048
    assert seattle_temperatures().shape == (8759, 1)
    assert series.shipped("characters").features == 103


@pytest.mark.slow
def test_cells_of_one_kind_compile_once():
    from lstmjax.gradients.adjoint import _norms_backwards

    settings = job.Settings(
        lengths=(3, 7, 11), seeds=2, windows=1, hidden_size=4, inputs=("white noise",),
        cells=("LSTM b_f=0", "LSTM b_f=1", "LSTM chrono"),
    )  # fmt: skip
    _norms_backwards.clear_cache()
    assert len(list(job.run(job.make_plan(settings)))) == 6
    assert _norms_backwards._cache_size() == 1


@pytest.mark.slow
def test_a_run_cut_short_leaves_what_it_measured(tmp_path, monkeypatch, capsys):
    def interrupted(plan, run=job.run):
        for count, measurement in enumerate(run(plan)):
            if count == 2:
                raise KeyboardInterrupt
            yield measurement

    monkeypatch.setattr(job, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["gradients", "--out", str(tmp_path), *TINY])
    assert ended.value.code == 130
    results = json.loads((tmp_path / "gradient_norms.json").read_text())
    assert results["settings"]["complete"] is False
    assert {r["cell"] for r in results["records"]} == {"tanh RNN", "identity ReLU RNN"}
    assert "cut short" in (tmp_path / "gradient_norms.html").read_text()
    assert "2 of 21 curves" in capsys.readouterr().err


def test_underflow_is_said():
    h = np.array([[0.0], [-50.0], [-np.inf], [np.nan]])
    said = job.count_lost([job.Measurement("rnn", "x", 0, {"s": h, "h": h}, h.T)])
    assert said.startswith("50% of the 2 norms are below 1.2e-38")
    said = job.count_lost([job.Measurement("rnn", "x", 0, {"s": h[:1]}, h.T)])
    assert said == "No norm is below 1.2e-38, the least normal float32."


# What is written.


@pytest.fixture
def table(tmp_path):
    """A newcomer's file: a day, two columns of numbers, one of words."""
    rng, t = np.random.default_rng(0), np.arange(60)
    path = tmp_path / "series.csv"
    rows = [f"day {n},{np.sin(n / 5):.4f},{rng.normal():.4f},ok" for n in t]
    path.write_text("\n".join(["day,wave,noise,note", *rows]) + "\n")
    return path


@pytest.mark.slow
def test_a_page_of_ones_own_data_and_cell(table, tmp_path, capsys):
    (tmp_path / "my_cell.py").write_text(
        "import lstmjax\n\n\ndef make_cell(hidden_size):\n"
        '    """An LSTM <that> forgets little."""\n    return lstmjax.lstm(hidden_size, forget_bias=4.0)\n'
    )
    out = tmp_path / "new" / "out"
    main(
        ["gradients", "--data", str(table), "--target", "wave", "--cells", "gru:update_bias=1", "GRU", "--cell-file",
         f"{tmp_path}/my_cell.py:make_cell", "--out", str(out), "--format", "svg", *TINY]
    )  # fmt: skip
    assert sorted(p.suffix for p in out.iterdir()) == [".csv", ".html", ".json", ".svg"]
    results = json.loads((out / "gradient_norms.json").read_text())
    assert results["settings"]["cells"] == ["gru:update_bias=1", "GRU", "make_cell"]
    assert results["settings"]["target"] == ["wave"]
    page = (out / "gradient_norms.html").read_text()
    for words in (
        "make_cell", "An LSTM &lt;that&gt; forgets little. From my_cell.py.", "series.csv", "60 steps of wave, noise",
        "@software{lstmjax", "Cho et al. (2014)", "prefers-color-scheme: dark", "float32", "sha256",
    ):  # fmt: skip
        assert words in page, words
    # It stands by itself: nothing is loaded from anywhere.
    assert not re.findall(r'(?:src|href|srcset)="(?!data:)', page)
    assert "<script" not in page
    assert re.search(r"series.csv +make_cell ", capsys.readouterr().out)


@pytest.mark.slow
def test_another_run_is_not_overwritten(table, tmp_path, capsys):
    run = ["gradients", "--data", str(table), "--cells", "rnn", "--out", str(tmp_path / "out"), *TINY]
    main(run)
    main(run)  # the same run
    before = (tmp_path / "out" / "gradient_norms.json").read_text()
    assert "is of another run" in refused([*run, "--seeds", "2"], capsys)
    table.write_text(table.read_text().replace("day 3,", "day 3,1"))
    assert "another --out, or --overwrite" in refused(run, capsys)
    assert (tmp_path / "out" / "gradient_norms.json").read_text() == before
    main([*run, "--overwrite"])
    assert (tmp_path / "out" / "gradient_norms.json").read_text() != before


def test_a_folder_that_cannot_be_written_costs_no_run(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job, "run", lambda plan: pytest.fail("it was measured"))
    (tmp_path / "file").write_text("")
    said = refused(["gradients", "--data", table, "--out", tmp_path / "file" / "out"], capsys)
    assert re.search(r"out is .*file/out, where nothing can be written: Not a directory", said)


def test_without_matplotlib_there_is_a_page_and_no_picture(table, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run = ["gradients", "--data", str(table), "--cells", "rnn", "--out", str(tmp_path / "out"), *TINY]
    main(run)
    assert sorted(p.suffix for p in (tmp_path / "out").iterdir()) == [".csv", ".html", ".json"]
    assert "pip install 'lstmjax[plots]'" in (tmp_path / "out" / "gradient_norms.html").read_text().replace(
        "&#x27;", "'"
    )
    assert "pip install 'lstmjax[plots]'" in refused([*run, "--format", "pdf"], capsys)


def test_one_step_has_no_half_life(table, tmp_path, capsys):
    run = ["gradients", "--data", str(table), "--cells", "rnn", "--out", str(tmp_path / "out"), *TINY, "--lengths", "1"]
    main(run)
    said = capsys.readouterr().out
    assert "no decay" not in said
    assert re.search(r"^input +cell +half-life +of seeds +of windows +R²$", said, re.MULTILINE)  # and there are no lags
    assert re.search(r"^series.csv +rnn +- +- +- +-$", said, re.MULTILINE)


@pytest.mark.slow
def test_compare(table, tmp_path, capsys):
    with jax.numpy_dtype_promotion("standard"):  # as Optax wants it
        main(
            ["compare", "--data", str(table), "--cells", "rnn", "lstm:forget_bias=3", "--length", "12", "--seeds", "6",
             "--windows", "2", "--hidden-size", "4", "--train-steps", "2", "--out", str(tmp_path), "--no-progress"]
        )  # fmt: skip
    said = capsys.readouterr().out
    line = r"^2 steps +rnn − lstm:forget_bias=3 +-0\.\d+ +-0\.\d+ … -0\.\d+ +0\.031 +0\.031$"
    assert re.search(line, said, re.MULTILINE)
    report = GradientReport.load(tmp_path / "comparison.json")
    assert report.table() in said
    assert "Wilcoxon" in (tmp_path / "comparison.html").read_text()


# What is measured.


def test_a_trained_network(tmp_path):
    cell = lstmjax.lstm(5)
    params = (cell.init(jax.random.key(3), 2),)
    save_safetensors(params, path := tmp_path / "net.safetensors")
    name, candidate = cells.trained(str(path))
    assert name == "net"
    made = candidate.make(99)
    for key in (0, 1):
        drawn = made.init(jax.random.key(key), 2)
        assert all(map(np.array_equal, drawn, params[0]))
    with pytest.raises(ValueError, match="holds weights for 2 input features, and the data have 7"):
        made.init(jax.random.key(0), 7)


def test_a_trained_network_of_two_layers_under_a_prefix(tmp_path):
    from safetensors.numpy import save_file

    layers = [lstmjax.gru(4), lstmjax.gru(4)]
    params = lstmjax.init_stack(layers, jax.random.key(0), 3)
    save_file({f"enc.{k}": v for k, v in to_torch(params).items()}, path := tmp_path / "model.safetensors")
    _, candidate = cells.trained(f"{path}:enc.")
    cell = with_output(candidate.make(1), 3)
    xs = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    weights = cell.init(jax.random.key(9), 3)
    np.testing.assert_allclose(
        lstmjax.unroll(cell, weights, xs)[1], lstmjax.unroll_stack(layers, params, xs)[1], rtol=1e-5
    )


def test_a_cell_without_h_is_measured_by_its_whole_state():
    cell = lstmjax.Cell(
        init=lambda key, inputs, dtype=jnp.float32: jax.random.normal(key, (inputs, 3), dtype),
        initial_state=lambda batch=(), dtype=jnp.float32: (
            jnp.zeros((*batch, 3), dtype),
            jnp.zeros((*batch, 3), dtype),
        ),
        step=lambda w, s, x: ((0.9 * s[0] + x @ w, 0.5 * s[1] + s[0]), jnp.tanh(s[0] + s[1])),
    )
    batch = job.make_batch(series.shipped("temperature"), 0, 2, (4, 9))
    parts = job.measure(cell, batch, 0, categorical=False)
    assert list(parts) == ["s"]
    key_cell, key_readout = jax.random.split(jax.random.key(0))
    params = cell.init(key_cell, 1)
    readout = jax.nn.initializers.lecun_normal()(key_readout, (3, 1))

    def loss(state):  # that of four steps on: lag 4 of the first length
        _, ys = lstmjax.unroll(cell, params, batch.xs[:4, 0, 0], state)
        return 0.5 * ((ys[-1] @ readout - batch.targets[0, 0]) ** 2).sum()

    gradient = jax.grad(loss)(cell.initial_state())
    want = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
    assert 10 ** parts["s"][4, 0, 0] == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("lstm:forget_bias=2", lambda: lstmjax.lstm(4, forget_bias=2.0)),
        ("gru:update_bias=1.5", lambda: lstmjax.gru(4, update_bias=1.5)),
        ("rnn:activation=relu,w_h_init=identity(0.5)",
         lambda: lstmjax.rnn(4, activation=jax.nn.relu, w_h_init=lstmjax.init.identity(0.5))),
        ("lstm:b_init=chrono(50)", lambda: lstmjax.lstm(4, b_init=lstmjax.init.chrono(50))),
        ("projected_lstm:projection_size=2", lambda: lstmjax.projected_lstm(4, 2)),
        ("slstm:heads=2", lambda: lstmjax.slstm(4, heads=2)),
        ("LSTM b_f=0", lambda: lstmjax.lstm(4, forget_bias=0.0)),
        ("rnn:b_init=zeros", lambda: lstmjax.rnn(4, b_init=lstmjax.init.zeros)),
    ],
)  # fmt: skip
def test_a_word_names_a_cell(name, wanted):
    assert cells.named(name, 100).make(4) == wanted()


def test_the_whole_zoo_can_be_named():
    settings = {"projected_lstm": "projection_size=2", "co_rnn": "dt=0.1,gamma=2,epsilon=1", "leaky_rnn": "tau=4"}
    for name in cells.ZOO:
        candidate = cells.named(f"{name}:{settings.get(name, '')}", 100)
        assert isinstance(candidate.make(4), lstmjax.Cell)
        assert candidate.about
    assert {"lstm", "gru", "rnn", "mgu", "lem", "ind_rnn"} <= set(cells.ZOO)


class TestFiles:
    def test_columns_of_numbers_are_read(self, table):
        read = series.read_file(table)
        assert read.inputs.shape == (60, 2)
        np.testing.assert_allclose(read.inputs.mean(0), 0, atol=1e-6)
        np.testing.assert_allclose(read.inputs.std(0), 1, rtol=1e-6)
        assert read.targets is not None
        assert read.longest == 59

    def test_target_columns_and_scaling(self, table):
        read = series.read_file(table, columns=["noise"], target=["wave", "noise"], scaling="range")
        assert read.inputs.shape == (60, 1)
        assert read.targets.shape == (60, 2)
        assert (read.targets.min(0) == 0).all()
        assert (read.targets.max(0) == 1).all()

    def test_a_window_and_the_value_after_it(self):
        ramp = np.arange(50, dtype=np.float32)[:, None]
        drawn = job.make_batch(series.Series("ramp", "", ramp, -ramp), 0, 3, (4, 9))
        first = drawn.xs[0, 0, :, 0]
        np.testing.assert_array_equal(drawn.xs[:, 1, :, 0], first + np.arange(9)[:, None])
        np.testing.assert_array_equal(drawn.targets[..., 0], -(first + np.array([[4], [9]])))

    @pytest.mark.parametrize("length", [1, 49])
    def test_batches_of_a_comparison(self, length):
        ramp = np.arange(50, dtype=np.float32)[:, None]
        xs, targets = compare.draw_batches(series.Series("ramp", "", ramp, -ramp), length, 4)(jax.random.key(0))
        np.testing.assert_array_equal(xs[..., 0], xs[0, :, 0] + jnp.arange(length, dtype=jnp.float32)[:, None])
        np.testing.assert_array_equal(targets, -(xs[-1] + 1))

    def test_a_text(self, tmp_path):
        (tmp_path / "text.txt").write_text("abcab\n", encoding="utf-8-sig")
        read = series.read_file(tmp_path / "text.txt")
        assert read.features == 4
        xs, targets = read.window(np.random.default_rng(0), 6)
        np.testing.assert_array_equal(xs.argmax(1), [1, 2, 3, 1, 2, 0])
        np.testing.assert_array_equal(xs, targets)

    @pytest.mark.parametrize("shape", [(30,), (30, 3)])
    def test_an_array(self, shape, tmp_path):
        np.save(tmp_path / "array.npy", np.random.default_rng(0).normal(size=shape))
        assert series.read_file(tmp_path / "array.npy", scaling="none").inputs.shape == (30, *shape[1:], 1)[:2]

    @pytest.mark.parametrize(("head", "cut"), [("a;b\n", ";"), ("", "\t"), ("a,b\n", ",")])
    def test_delimiters_and_no_names(self, head, cut, tmp_path):
        (tmp_path / "s.csv").write_text(head + "".join(f"{n}{cut}{n**2}\n" for n in range(9)))
        read = series.read_file(tmp_path / "s.csv", scaling="none")
        np.testing.assert_array_equal(read.inputs[:, 1], np.arange(9) ** 2)

    def test_parquet_wants_a_package(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        (tmp_path / "s.parquet").write_text("")
        with pytest.raises(ImportError, match="pip install pyarrow"):
            series.read_file(tmp_path / "s.parquet")

    @pytest.mark.parametrize(
        ("name", "content", "options", "message"),
        [
            ("s.csv", "a,b\n1,2\n3,\n", {}, r"column 'b': 1 of 2 steps hold no finite number, first step 1, .*: ''"),
            ("s.csv", "a,b\n1,2\n3,x\n", {"columns": ["b"]}, "column 'b': 1 of 2 steps hold no finite number"),
            ("s.csv", "a,b\n1,2\n3\n", {}, "1 entries in row 3; wanted 2"),
            ("s.csv", "a,a\n1,2\n", {}, "two columns of one name"),
            ("s.csv", "", {}, "is empty"),
            ("s.csv", "a,b\nx,y\nu,v\n", {}, "holds no column of numbers"),
            ("s.csv", "a,b\n1,2\n3,2\n", {}, "column 'b' is 2 at every step, which cannot be scaled"),
            ("s.csv", "a,b\n1,2\n3,4\n", {"columns": ["c"]}, "columns names 'c', and .* it has a, b"),
            ("s.csv", "a,b\n1,2\n3,4\n", {"target": ["lag1"]}, "target names 'lag1', and .* it has a, b"),
            ("s.csv", "a,b\n1,2\n", {"scaling": "none"}, "holds 1 steps; wanted at least 2"),
            ("s.txt", "aaa", {}, "3 characters, 1 of them distinct"),
            ("s.txt", "ab", {"columns": ["a"]}, "is a text, which has no columns"),
            ("s.npy", "no array", {}, "is no array of NumPy's"),
            ("s.xlsx", "", {}, r"wanted a name that ends in .csv, .tsv, .txt, .npy, .parquet"),
        ],
    )
    def test_bad_files(self, name, content, options, message, tmp_path):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            series.read_file(tmp_path / name, **options)


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gradients", "--seeds", "0"), "seeds is 0; wanted a whole number of at least 1"),
        (("gradients", "--lengths", "0", "5"), "wanted each at least 1 step"),
        (("gradients", "--lengths", "5", "5"), "each once"),
        (("gradients", "--lengths"), "lengths is (); wanted at least one"),
        (("gradients", "--lengths", "9000"), "the longest length is 9000; temperature holds windows of up to 8758 steps"),
        (("gradients", "--cells", "transformer"), "cells names 'transformer'; wanted one of 'tanh RNN'"),
        (("gradients", "--cells", "lstm:forget=2"), "lstm has no setting 'forget'; it has forget_bias"),
        (("gradients", "--cells", "lstm:2"), "wanted settings as in lstm:a=1,b=2"),
        (("gradients", "--cells", "leaky_rnn"), "leaky_rnn wants tau: leaky_rnn:tau="),
        (("gradients", "--cells", "lstm:activation=nosuch"), "activation is nosuch; wanted a number or a name of jax.nn"),
        (("gradients", "--cells", "lstm:b_init=chrono(0)"), "b_init is chrono(0): "),
        (("gradients", "--cells", "slstm:heads=5"), "the cell 'slstm:heads=5', of hidden size 64"),
        (("gradients", "--cell-file", "my_cell.py"), "wanted FILE:FUNCTION, such as my_cell.py:make_cell"),
        (("gradients", "--cell-file", "nosuch.py:make"), "cell_file names nosuch.py, which is no file"),
        (("gradients", "--params", "nosuch.safetensors"), "nosuch.safetensors does not exist"),
        (("gradients", "--data", "nosuch.csv"), "data is nosuch.csv, which is no file"),
        (("gradients", "--columns", "a"), "columns and target are those of a file; wanted --data too"),
        (("gradients", "--data", "a.csv", "--inputs", "characters"), "inputs and data both say what to read"),
        (("gradients", "--device", "abacus"), "device is 'abacus', and there is none of this kind here; there is cpu"),
        (("gradients", "--speed", "11"), "--speed"),
        (("compare", "--cells", "gru"), "the only cell is 'gru'; wanted two at least"),
        (("compare", "--learning-rate", "nan"), "learning_rate is nan; wanted a number above 0"),
        (("explain", "--c", "nan"), "c is nan; wanted a finite number"),
        (("explain", "--h", "inf"), "h is inf; wanted a finite number"),
        (("explain", "--sequence"), "sequence is empty; wanted A, B or both, each once"),
        (("explain", "--sequence", "A", "A"), "sequence is A A; wanted A, B or both, each once"),
        (("explain", "--sequence", "C"), "C"),
        (("explain", "--x", "1", "--sequence", "A"), "x is the input of one step, and sequence brings its own"),
        (("explain", "--picture", "unit.txt"), "picture is unit.txt; wanted a name that ends in .png, .pdf or .svg"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_error(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # as users run it
    monkeypatch.chdir(tmp_path)
    assert message in refused(arguments, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        ("x = 1\n1 / 0\n", "make", "bad.py cannot be run: line 2: ZeroDivisionError"),
        ("def other(n): ...\n", "make", "holds no function 'make'; it holds other"),
        ("def make(n): return 3\n", "make", "the cell 'make', of hidden size 64, for 1 features: made of it was a int"),
    ],
)
def test_mistakes_in_a_cell_file(code, name, message, tmp_path, capsys):
    (tmp_path / "bad.py").write_text(code)
    run = ["gradients", "--inputs", "temperature", "--out", tmp_path / "out"]
    assert message in refused([*run, "--cell-file", f"{tmp_path}/bad.py:{name}"], capsys)


@pytest.mark.parametrize("command", ["gradients", "compare", "explain"])
def test_help_names_the_program_and_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    said = said_by(capsys)
    assert said.startswith(f"usage: lstmjax {command} [-h]")
    assert "{None}" not in said
    assert "default: None" not in said


def test_commands_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = said_by(capsys)
    assert all(command in said for command in ("gradients", "compare", "explain"))


def test_a_bar_in_a_terminal_without_columns(monkeypatch, capsys):
    from lstmjax.progress import progress_bar

    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((0, 0)))
    monkeypatch.delenv("COLUMNS", raising=False)
    list(progress_bar(range(3), "curves", "curve"))
    assert "3/3" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c(tmp_path):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lstmjax", "gradients", "--out", str(tmp_path), "--seeds", "50"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    seen = ""
    while not re.search(r" [1-9]\d*/\d", seen):  # a curve has been measured
        letter = process.stderr.read(1)
        assert letter, seen
        seen += letter
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "curves were measured" in err
    assert (tmp_path / "gradient_norms.html").exists()


# The picture.


def test_colours_belong_to_cells():
    alone, among = lines_of(["GRU"]), lines_of(["zebra", "LSTM $b_f$=1", "tanh RNN", "GRU"])
    assert alone["GRU"] == among["GRU"]
    assert among["LSTM $b_f$=1"] == LINES[CELL_LINES["LSTM b_f=1"]]
    names = [f"cell {n}" for n in range(20)]
    found = lines_of(names)
    assert found == lines_of(names[::-1])
    assert len({(line["color"], str(line["linestyle"])) for line in found.values()}) == 20


@pytest.mark.parametrize(("rate", "near"), [(-0.1, False), (-2.0, True)])
def test_the_line_of_float32_is_drawn_where_it_is_near(rate, near):
    from lstmjax.plot import Curve, gradient_decay

    lags = np.arange(21)
    # What the table gives: relative to lag 0, wherever that is.
    figure = gradient_decay({"": {"GRU": Curve(lags, 5 + rate * lags[None])}}, underflow=-37.9)
    (curve, *others) = figure.axes[0].get_lines()
    np.testing.assert_allclose(curve.get_ydata(), rate * lags)
    assert bool(others) == near


def test_a_claim_says_what_is_there(tmp_path):
    output.claim(tmp_path / "new", "run", {"seeds": 3}, overwrite=False)
    (tmp_path / "run.json").write_text("no json")
    with pytest.raises(FileExistsError, match="is of another run, of unknown date"):
        output.claim(tmp_path, "run", {"seeds": 3}, overwrite=False)
    output.claim(tmp_path, "run", {"seeds": 3}, overwrite=True)
