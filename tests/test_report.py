"""The gradient report: that it compares like with like, and that its numbers are those of its parts."""

import itertools
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax.gradients import GradientReport, adjoint_norms, gradient_report, rate_differences

CELLS = {"LSTM": lstmjax.lstm, "RNN": lstmjax.rnn}  # each compiles
XS = jax.random.normal(jax.random.key(0), (40, 3, 4))


@pytest.fixture(autouse=True, scope="module")
def _dtypes_as_optax_wants_them():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def report(_dtypes_as_optax_wants_them):
    return gradient_report(CELLS, (XS, XS[-1, :, :2]), hidden_size=12, seeds=2, train_steps=3)


def test_every_cell_seed_and_phase_is_there(report):
    keys = [(r["phase"], r["cell"], r["seed"]) for r in report.records]
    phases = ("initialisation", "3 steps")
    assert sorted(keys) == sorted((p, c, s) for p in phases for c in CELLS for s in range(2))
    assert report.matched == "hidden size, 12"
    assert {r["hidden_size"] for r in report.records} == {12}
    for phase in phases:
        assert all(curve.shape == (2, 41) for curve in report.curves[phase].values())


def test_the_numbers_are_those_of_the_curve(report):
    for r in report.records:
        curve = report.curves[r["phase"]][r["cell"]][r["seed"]]
        rate = np.polyfit(np.arange(1, 41), curve[1:] * np.log(10), 1)[0]
        np.testing.assert_allclose(r["rate"], rate, rtol=1e-3)
        assert r["half_life"] == pytest.approx(-math.log(2) / r["rate"], rel=1e-4)
    assert {r["cell"] for r in report.records if r["timescale"] is None} == {"RNN"}


def test_training_lowers_the_loss_of_every_cell(report):
    for name in CELLS:
        before, after = (
            np.mean([r["loss"] for r in report.records if r["cell"] == name and r["phase"] == phase])
            for phase in ("initialisation", "3 steps")
        )
        assert after < before


def test_the_curve_is_the_adjoint_of_the_same_loss():
    # A readout drawn from the same key, so that the curve can be had by hand.
    report = gradient_report({"LSTM": lstmjax.lstm}, (XS, XS[-1]), hidden_size=12, seeds=1)
    key_init, _, _ = jax.random.split(jax.random.key(0), 3)
    key_cell, key_readout = jax.random.split(key_init)
    cell = lstmjax.lstm(12)
    readout = jax.nn.initializers.lecun_normal()(key_readout, (12, 4))

    def loss(states):
        return 0.5 * ((states.h[-1] @ readout - XS[-1]) ** 2).sum()

    norms = adjoint_norms(cell, cell.init(key_cell, 4), XS, loss)
    want = np.median(norms.h, axis=1)[::-1] / np.log(10)
    np.testing.assert_allclose(report.curves["initialisation"]["LSTM"][0], want, atol=1e-5)


@pytest.mark.slow
def test_matched_by_parameters():
    report = gradient_report(CELLS, (XS, XS[-1]), hidden_size=12, match="parameters", seeds=1)
    assert "medians over 1 seed\n" in report.table()
    counts = {r["cell"]: r["parameters"] for r in report.records}
    sizes = {r["cell"]: r["hidden_size"] for r in report.records}
    assert counts["LSTM"] == 4 * 12 * (4 + 12 + 1)
    assert report.matched == f"number of parameters, near the {counts['LSTM']} of LSTM"
    for name, make in CELLS.items():
        for other in (sizes[name] - 1, sizes[name] + 1):
            leaves = jax.tree.leaves(jax.eval_shape(partial(make(other).init, input_size=4), jax.random.key(0)))
            there = abs(sum(leaf.size for leaf in leaves) - counts["LSTM"])
            assert abs(counts[name] - counts["LSTM"]) <= there


def test_table_and_figure(report):
    table = report.table()
    assert "matched by hidden size, 12; medians over 2 seeds" in table
    assert "lag 10 " in table
    assert "lag 100" not in table  # T is 40
    assert "λ₁: leading Lyapunov exponent a step" in table.splitlines()[-1]
    assert all(re.search(rf"^{phase} +{cell} +12 ", table, re.MULTILINE) for phase in report.curves for cell in CELLS)
    axes = report.figure().axes
    assert [axis.get_title() for axis in axes] == ["initialisation", "3 steps"]
    assert {line.get_label() for line in axes[0].get_lines()} >= set(CELLS)


@pytest.mark.slow
def test_data_can_be_drawn_for_every_seed_and_step():
    def draw(key):
        xs = jax.random.normal(key, (20, 3, 4))
        return xs, xs[0]

    report = gradient_report({"RNN": lstmjax.rnn}, draw, hidden_size=6, seeds=2, train_steps=2)
    first, second = report.curves["initialisation"]["RNN"]
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ("arguments", "exception", "message"),
    [
        ({"cells": {}}, ValueError, "cells is empty"),
        ({"cells": [lstmjax.lstm]}, TypeError, "cells is a list; wanted a dict of names and functions"),
        ({"cells": {"L": lstmjax.lstm(4)}}, TypeError, r"cells\['L'\] is a Cell; wanted a function .* lstmjax.lstm"),
        ({"seeds": 0}, ValueError, "seeds is 0; wanted a whole number of at least 1"),
        ({"train_steps": -1}, ValueError, "train_steps is -1; wanted a whole number of at least 0"),
        ({"match": "flops"}, ValueError, "match is 'flops'; wanted 'hidden size' or 'parameters'"),
    ],
)
def test_bad_settings(arguments, exception, message, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(exception, match=message):
        gradient_report(**{"cells": CELLS, "data": (XS, XS[-1])} | arguments)


@pytest.mark.parametrize(
    ("xs", "targets", "exception", "message"),
    [
        (XS[:, 0], XS[-1], ValueError, r"xs has shape \(40, 4\); wanted \[T, B, I\]: xs\[:, None\] for one sequence"),
        (
            XS,
            XS[-1, :, 0],
            ValueError,
            r"targets have shape \(3,\); wanted .* here \(3, O\): targets\[:, None\] for one",
        ),
        (XS, XS[:, :, :1], ValueError, r"targets have shape \(40, 3, 1\); wanted \[B, O\], here \(3, O\)$"),
        (XS, XS[-1, :1], ValueError, r"targets have shape \(1, 4\); wanted \[B, O\], here \(3, O\)$"),
        (
            XS,
            XS[-1].at[1, 2].set(np.nan),
            FloatingPointError,
            "targets at row 1 hold nan, the first that is not finite",
        ),
    ],
)
def test_bad_data(xs, targets, exception, message):
    with pytest.raises(exception, match=message):
        gradient_report({"RNN": lstmjax.rnn}, (xs, targets), hidden_size=6, seeds=1)


def leaky(hidden_size):
    """A state that is a bare array, an output that is another, and as many parameters whatever the size."""

    def step(decay, state, x):
        state = decay * state + x.sum(-1, keepdims=True)
        return state, jnp.tanh(state) + x[..., :1]

    return lstmjax.Cell(
        init=lambda key, input_size, dtype=jnp.float32: jnp.full(3, 0.9, dtype),
        initial_state=lambda batch_shape=(), dtype=jnp.float32: jnp.zeros((*batch_shape, 3), dtype),
        step=step,
    )


def test_a_cell_without_h_is_read_by_its_output():
    # ∂L/∂s_t = 0.9^(T−t) tanh'(s_T) W r, with L = ½‖y W − t‖², r the error and s_T known in closed form.
    xs = 0.1 * XS
    report = gradient_report({"leaky": leaky}, (xs, XS[-1]), hidden_size=12, seeds=1)
    key_init, _, _ = jax.random.split(jax.random.key(0), 3)
    readout = np.asarray(jax.nn.initializers.lecun_normal()(jax.random.split(key_init)[1], (3, 4)), np.float64)
    read = np.asarray(xs, np.float64)
    state = sum(0.9 ** (39 - t) * read[t].sum(-1, keepdims=True) for t in range(40)) * np.ones(3)
    output = np.tanh(state) + read[-1, :, :1]
    to_output = (output @ readout - np.asarray(XS[-1])) @ readout.T
    to_state = np.log10(np.linalg.norm(to_output / np.cosh(state) ** 2, axis=-1))
    want = np.array([np.median(to_state) + lag * np.log10(0.9) for lag in range(41)])
    want[0] = np.median(np.log10(np.linalg.norm(to_output, axis=-1)))
    np.testing.assert_allclose(report.curves["initialisation"]["leaky"][0], want, atol=1e-4)
    (record,) = report.records
    assert record["rate"] == pytest.approx(math.log(0.9), rel=1e-4)
    assert record["lyapunov"] == pytest.approx(math.log(0.9), rel=1e-4)
    assert record["loss"] == pytest.approx(0.5 * ((output @ readout - np.asarray(XS[-1])) ** 2).sum() / 3, rel=1e-4)
    assert record["timescale"] is None


def test_an_output_that_cannot_be_read():
    def two_outputs(hidden_size):
        cell = leaky(hidden_size)
        return cell.replace(step=lambda *args: (cell.step(*args)[0], (cell.step(*args)[1],) * 2))

    with pytest.raises(TypeError, match=r"the cell of cells\['two'\] puts out \(ShapeDtypeStruct.* wanted one array"):
        gradient_report({"two": two_outputs}, (XS, XS[-1]), seeds=1)


def test_parameters_that_do_not_grow_cannot_be_matched():
    message = r"match is 'parameters', and cells\['leaky'\] has 3 of them at hidden size \d+; wanted .* the 36 of RNN"
    with pytest.raises(ValueError, match=message):
        gradient_report({"RNN": lstmjax.rnn, "leaky": leaky}, (XS, XS[-1]), hidden_size=4, match="parameters", seeds=1)


def cross_entropy(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1, mode="fill").sum()


class TestLabels:
    labels = jnp.array([0, 6, 2])

    def test_have_a_readout_of_as_many_outputs_as_there_are_classes(self):
        report = gradient_report(
            {"RNN": lstmjax.rnn}, (XS, self.labels), loss_fn=cross_entropy, outputs=7, hidden_size=6, seeds=1
        )
        (record,) = report.records
        assert 0.5 * math.log(7) < record["loss"] < 2 * math.log(7)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, r"targets are whole numbers of shape \(3,\), and no number of outputs .* wanted outputs="),
            ({"outputs": 6}, "targets hold the label 6; wanted labels from 0 on, below outputs = 6"),
            ({"outputs": 6.0}, "outputs is 6.0; wanted a whole number of at least 1"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, arguments, message, monkeypatch):
        monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
        data = (XS, self.labels)
        with pytest.raises(ValueError, match=message):
            gradient_report({"RNN": lstmjax.rnn}, data, loss_fn=cross_entropy, hidden_size=6, seeds=1, **arguments)

    @pytest.mark.parametrize(
        ("targets", "options", "message"),
        [
            # One output of a softmax is 1, and its loss 0, whatever the label.
            (labels[:, None], {}, r"targets are whole numbers of shape \(3, 1\)"),
            # Counted from the end, −1 would be the last class.
            (labels - 1, {"outputs": 7}, "targets hold the label -1; wanted labels from 0 on, below outputs = 7"),
        ],
    )
    def test_that_would_be_read_as_others_are_refused(self, targets, options, message):
        with pytest.raises(ValueError, match=message):
            gradient_report({"RNN": lstmjax.rnn}, (XS, targets), loss_fn=cross_entropy, seeds=1, **options)

    def test_outputs_that_are_not_those_of_the_targets(self):
        with pytest.raises(ValueError, match=r"targets have shape \(3, 4\); wanted \[B, O\], here \(3, 5\)$"):
            gradient_report({"RNN": lstmjax.rnn}, (XS, XS[-1]), outputs=5, hidden_size=6, seeds=1)


def test_a_bare_step_is_no_cell():
    with pytest.raises(TypeError, match=r"cells\['step'\] made a function of hidden size 6; wanted a lstmjax.Cell"):
        gradient_report({"step": lambda size: lstmjax.rnn_step}, (XS, XS[-1]), hidden_size=6, seeds=1)


def test_spread_over_rows_and_seeds(report):
    for r in report.records:
        assert r["rate_min"] <= r["rate"] <= r["rate_max"]  # of three rows, the median is one
    of = [r["rate"] for r in report.records if r["phase"] == "initialisation" and r["cell"] == "RNN"]
    lives = sorted(-math.log(2) / rate for rate in of)
    line = next(line for line in report.table().splitlines() if re.match("initialisation +RNN", line))
    assert f" {lives[0]:.3g}–{lives[1]:.3g} " in line
    assert f" {-math.log(2) / np.median(of):.3g} " in line


def test_saved_and_loaded(report, tmp_path):
    report.save(tmp_path / "report.json")
    again = GradientReport.load(tmp_path / "report.json")
    assert again.table() == report.table()
    assert again.records == report.records
    for phase, curves in report.curves.items():
        for name, curve in curves.items():
            np.testing.assert_array_equal(again.curves[phase][name], curve)
    (tmp_path / "other.json").write_text('{"records": []}')
    with pytest.raises(ValueError, match=r"other\.json holds no report of gradients"):
        GradientReport.load(tmp_path / "other.json")


def test_progress_is_shown(capsys):
    gradient_report({"RNN": lstmjax.rnn}, (XS, XS[-1]), hidden_size=6, seeds=1)
    assert "1/1" in capsys.readouterr().err
    gradient_report({"RNN": lstmjax.rnn}, (XS, XS[-1]), hidden_size=6, seeds=1, progress=False)
    assert not capsys.readouterr().err


class TestDifferences:
    rng = np.random.default_rng(0)

    def test_the_exact_test_of_eight_pairs(self):
        # Every sign pattern of the ranks 1 … 8, counted.
        a, b = self.rng.normal(size=(2, 8))
        ranks = np.argsort(np.argsort(abs(a - b))) + 1
        observed = ranks[a > b].sum()
        signs = np.array(list(itertools.product([0, 1], repeat=8)))
        sums = signs @ np.arange(1, 9)
        want = min(1.0, 2 * min((sums >= observed).mean(), (sums <= observed).mean()))
        (found,) = rate_differences({"a": a, "b": b})
        assert found.p == pytest.approx(want, rel=1e-12)
        assert found.p_holm == found.p
        np.testing.assert_allclose(found[2:5], [np.median(a - b), min(a - b), max(a - b)])

    def test_holm_raises_for_the_number_of_pairs(self):
        rates = {n: self.rng.normal(shift, size=8) for n, shift in (("a", 0.0), ("b", 0.3), ("c", 9.0))}
        found = rate_differences(rates)
        assert [(d.first, d.second) for d in found] == [("a", "b"), ("a", "c"), ("b", "c")]
        smallest, middle, largest = sorted(d.p for d in found)
        wanted = [3 * smallest, max(3 * smallest, 2 * middle), max(3 * smallest, 2 * middle, largest)]
        np.testing.assert_allclose(sorted(d.p_holm for d in found), np.minimum(wanted, 1))

    def test_false_alarms_are_as_rare_as_p_says(self):
        ps = [rate_differences({"a": a, "b": b})[0].p for a, b in self.rng.normal(size=(400, 2, 8))]
        assert np.mean(np.array(ps) <= 0.05) <= 0.08

    def test_nothing_to_tell_apart(self):
        same, broken = np.ones(6), np.full(6, np.nan)
        found = rate_differences({"a": same, "b": same, "c": broken})
        assert [d.p for d in found[:1]] == [1.0]
        assert all(math.isnan(d.p) for d in found[1:])
        assert found[0].p_holm == 1.0

    def test_of_one_number_of_seeds(self):
        with pytest.raises(ValueError, match=r"rates have shapes .* wanted \[seeds\]"):
            rate_differences({"a": np.ones(3), "b": np.ones(4)})

    def test_of_a_report(self, report):
        by_phase = report.differences()
        assert list(by_phase) == list(report.curves)
        assert [(d.first, d.second) for d in by_phase["initialisation"]] == [("LSTM", "RNN")]


def test_sizes_may_be_numpys(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    report = gradient_report({"RNN": lstmjax.rnn}, (XS, XS[-1]), hidden_size=np.int32(6), seeds=np.int64(1))
    assert report.records[0]["hidden_size"] == 6


def test_a_loss_that_is_not_finite_is_named():
    def draw(key):
        xs = jax.random.normal(key, (5, 3, 4))
        return xs, xs[0]

    def loss_fn(predictions, targets):
        return jnp.log(((predictions - targets) ** 2).sum() - 1e9)

    with pytest.raises(FloatingPointError, match="training RNN, seed 0: the loss is first not finite at step 0"):
        gradient_report({"RNN": lstmjax.rnn}, draw, loss_fn=loss_fn, hidden_size=6, seeds=1, train_steps=2)
    with pytest.raises(FloatingPointError, match="RNN, seed 0, initialisation: the loss is nan"):
        gradient_report({"RNN": lstmjax.rnn}, draw, loss_fn=loss_fn, hidden_size=6, seeds=1)
