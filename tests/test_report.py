"""The gradient report: that it compares like with like, and that its numbers are those of its parts."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax.gradients import adjoint_norms, gradient_report

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
    assert all(f"{phase:<15} {cell:<20}" in table for phase in report.curves for cell in CELLS)
    axes = report.figure().axes
    assert [axis.get_title() for axis in axes] == ["initialisation", "3 steps"]
    assert {line.get_label() for line in axes[0].get_lines()} >= set(CELLS)


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
            ({}, r"targets have shape \(3,\); wanted \[B, O\], here \(3, O\): .* or outputs for labels"),
            ({"outputs": 6}, "targets hold the label 6; wanted labels below outputs = 6"),
            ({"outputs": 6.0}, "outputs is 6.0; wanted a whole number of at least 1"),
        ],
    )
    def test_that_do_not_fit_are_refused(self, arguments, message, monkeypatch):
        monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
        data = (XS, self.labels)
        with pytest.raises(ValueError, match=message):
            gradient_report({"RNN": lstmjax.rnn}, data, loss_fn=cross_entropy, hidden_size=6, seeds=1, **arguments)

    def test_outputs_that_are_not_those_of_the_targets(self):
        with pytest.raises(ValueError, match=r"targets have shape \(3, 4\); wanted \[B, O\], here \(3, 5\)$"):
            gradient_report({"RNN": lstmjax.rnn}, (XS, XS[-1]), outputs=5, hidden_size=6, seeds=1)


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
