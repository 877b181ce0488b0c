"""The gradient report: that it compares like with like, and that its numbers are those of its parts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax.gradients import adjoint_norms, gradient_report

CELLS = {"LSTM": lstmjax.lstm, "GRU": lstmjax.gru, "RNN": lstmjax.rnn}
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
            leaves = jax.tree.leaves(make(other).init(jax.random.key(0), 4))
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
