"""The row of numbers to watch while a network trains: each against the tool of which it is the summary."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lstmjax
from lstmjax import training
from lstmjax.gradients import (
    adjoint_norms,
    decay_fit,
    gate_statistics,
    gradient_row,
    lyapunov_spectrum,
    truncation_bias,
    truncation_window,
)
from tests.board import scalars
from tests.cells import CELLS, cases, problem

OPTIONS = {
    "plain": {},
    "lengths": {"lengths": np.array([40, 25, 33])},
    "mask and resets": {
        "mask": np.arange(120).reshape(40, 3) % 5 != 1,
        "resets": np.arange(40)[:, None] == np.array([3, 90, 20]),
    },
}


def last(states):
    return jnp.sin(states.h[-1]).sum()


@pytest.mark.parametrize("name", cases(CELLS, slow=["linear", "gru", "lstm"]))
@pytest.mark.parametrize("options", cases(OPTIONS, slow=[name for name in OPTIONS if name != "mask and resets"]))
def test_every_number_is_that_of_its_own_tool(name, options, x64):
    cell, options = CELLS[name], OPTIONS[options]
    params, xs, state = problem(cell, (40, 3, 3))
    row = jax.jit(lambda p: gradient_row(cell, p, xs, last, state, **options))(params)
    ends = options.get("lengths", np.full(3, 40))

    norms = adjoint_norms(cell, params, xs, last, state, **options)
    for part, values in norms._asdict().items():
        curves = [np.asarray(values)[: n + 1, b][::-1] for b, n in enumerate(ends)]
        rates = np.array([decay_fit(np.arange(1.0, len(c)), c[1:]).rate for c in curves])
        lives = sorted(np.where(rates < 0, -np.log(2) / rates, np.inf))
        got = [row[f"half_life_{part}{which}"] for which in ("_least", "", "_greatest")]
        if not np.isfinite(rates).all():  # no gradient passes a reset
            continue
        np.testing.assert_allclose(got, [lives[0], -np.log(2) / np.median(rates), lives[-1]], rtol=1e-9)
        shortest = min(ends)
        curve = np.median([c[: shortest + 1] for c in curves], axis=0) / np.log(10)
        np.testing.assert_allclose(row[f"by_lag_{part}"][: shortest + 1], curve, atol=1e-9)
        np.testing.assert_allclose(row[f"lag_10_{part}"], curve[10], atol=1e-9)
    assert row["by_lag_h"].shape == (41,)
    assert "lag_100_h" not in row

    def loss(params):
        return last(lstmjax.state_history(cell, params, xs, state, include_initial=True, **options))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(row["loss"], value)
    for leaf, grad in grads._asdict().items():
        np.testing.assert_allclose(row[f"norm_{leaf}"], np.linalg.norm(grad), rtol=1e-9)

    if cell.step.gates is not None:
        for gate, of in gate_statistics(cell, params, xs, state, **options).items():
            np.testing.assert_allclose(row[f"{gate}_shut"], of.left_saturated.mean())
            np.testing.assert_allclose(row[f"{gate}_open"], of.right_saturated.mean())


@pytest.mark.slow
def test_the_leading_exponent_and_the_gates_of_the_first_rows(x64):
    cell = CELLS["gru"]
    params, xs, state = problem(cell, (400, 10, 3))
    mask = np.ones((400, 10), bool)
    mask[::2] = False
    row = jax.jit(lambda mask: gradient_row(cell, params, xs, last, state, mask=mask))
    # A step that is not taken neither grows nor counts.
    for taken, which in ((slice(None), np.ones((400, 10), bool)), (slice(1, None, 2), mask)):
        got, first = row(which), jax.tree.map(lambda s: s[:8], state)
        want = lyapunov_spectrum(cell, params, xs[taken, 0], state._replace(h=state.h[0]), leading=1, burn_in=20)
        np.testing.assert_allclose(got["lyapunov"], want[0], rtol=0.03)
        few = gate_statistics(cell, params, xs[taken, :8], first)["update"]
        np.testing.assert_allclose(got["update_open"], few.right_saturated.mean())


def test_a_state_and_parameters_without_names():
    def step(w, s, x):
        return jnp.tanh(w * s + x.sum(-1)), x

    row = gradient_row(step, jnp.array(0.5), jnp.zeros((30, 2, 3)), lambda states: states[-1].sum(), jnp.zeros(2))
    np.testing.assert_allclose(row["half_life_state"], 1, rtol=1e-5)
    assert {"by_lag_state", "norm_params", "lyapunov"} <= set(row)


def test_too_short():
    with pytest.raises(ValueError, match="xs holds 1 steps; wanted at least two"):
        gradient_row(CELLS["lstm"], *problem(CELLS["lstm"], (1, 2, 3), dtype=jnp.float32)[:2], last)


def test_in_a_run_and_in_a_loop_of_ones_own(tmp_path):
    cell, optimizer = lstmjax.lstm(4), optax.adam(1e-2)
    xs = jax.random.normal(jax.random.key(0), (12, 4, 3))
    params = {"cell": cell.init(jax.random.key(1), 3), "readout": jnp.ones((4, 1))}

    def loss(readout, h):
        return ((h @ readout - xs[0, :, :1]) ** 2).sum()

    def loss_fn(params, batch, key):
        return loss(params["readout"], lstmjax.unroll(cell, params["cell"], batch)[1][-1]), {}

    @jax.jit
    def row(params):
        return gradient_row(cell, params["cell"], xs, lambda states: loss(params["readout"], states.h[-1]))

    result = training.fit(
        training.init_state(params, optimizer, jax.random.key(2)), training.make_train_step(loss_fn, optimizer), [xs],
        steps=6, callbacks=[training.probe(row, every=3, name="gradient")], log_every=6, progress=False,
        metrics=[tmp_path / "run.jsonl", training.TensorBoard(tmp_path / "board")],
    )  # fmt: skip
    written = [r for r in training.read_jsonl(tmp_path / "run.jsonl") if "gradient/loss" in r]
    assert [r["step"] for r in written] == [3, 6]
    assert len(written[0]["gradient/by_lag_h"]) == 13
    np.testing.assert_allclose(written[1]["gradient/half_life_h"], row(result.state.params)["half_life_h"], rtol=1e-6)

    shown = scalars(tmp_path / "board")
    for record in written:
        numbers = {name: value for name, value in record.items() if name[:9] == "gradient/" and np.ndim(value) == 0}
        assert {"gradient/half_life_h", "gradient/lag_10_h"} <= numbers.keys()
        for name, value in numbers.items():
            np.testing.assert_allclose(shown[record["step"], name], value, rtol=1e-6)

    lines = training.JSONLines(tmp_path / "own.jsonl")
    lines.open(0)
    lines.write({"step": 6, **row(result.state.params)})
    lines.close()
    (own,) = training.read_jsonl(tmp_path / "own.jsonl")
    np.testing.assert_allclose(own["half_life_h"], written[1]["gradient/half_life_h"], rtol=1e-6)


class TestTruncationWindow:
    def setup_method(self):
        self.cell = lstmjax.rnn(4, activation=lambda z: z, w_h_init=lstmjax.init.identity(0.5))
        self.params = self.cell.init(jax.random.key(0), 3)
        self.xs = jax.random.normal(jax.random.key(1), (100, 3))

    def test_all_longer_windows_keep_it_and_the_next_shorter_does_not(self):
        def every(states):
            return (states.h[1:] ** 2).sum()

        got = truncation_window(self.cell, self.params, self.xs, every, keep=0.95)
        windows = [1, 2, 4, 8, 16, 32, 64, 100]
        errors = truncation_bias(self.cell, self.params, self.xs, every, windows).relative_error
        at = windows.index(got)
        assert 0 < at < len(windows) - 1
        assert (errors[at:] <= 0.05).all()
        assert errors[at - 1] > 0.05

    def test_what_needs_it_all_and_what_needs_nothing(self):
        def end(states):
            return states.h[-1].sum()

        lossless = self.params._replace(w_h=jnp.eye(4))
        assert truncation_window(self.cell, lossless, self.xs, end) == 100
        memoryless = self.params._replace(w_h=jnp.zeros((4, 4)))
        assert truncation_window(self.cell, memoryless, self.xs, lambda s: jnp.sin(s.h[1:]).sum(), keep=0.0) == 1
        assert truncation_window(self.cell, self.params, self.xs[:1], end) == 1

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"keep is 99\.0; wanted a share from 0 to 1"):
            truncation_window(self.cell, self.params, self.xs, last, keep=99.0)
        with pytest.raises(ValueError, match="xs holds no step"):
            truncation_window(self.cell, self.params, self.xs[:0], last)


def test_half_lives_in_a_figure():
    from lstmjax import plot

    records = [
        {"step": n, "g/half_life_h": 2.0 * n, "g/half_life_h_least": 1.0 * n, "g/half_life_h_greatest": None}
        for n in (10, 20)
    ]
    nothing = dict.fromkeys(records[0], None) | {"step": 40}
    figure = plot.half_lives([*records, {"step": 30, "loss": 1.0}, nothing])
    (line,) = figure.axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [[10, 20], [20, 40]])
    assert figure.axes[0].get_ylim()[1] == 60  # half of the rows have none, and the band goes on
    assert figure.axes[0].collections[0].get_paths()[0].vertices[:, 1].max() > 1000
    assert "20" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
    with pytest.raises(ValueError, match="no record holds a half_life"):
        plot.half_lives([{"step": 1}])


def test_decades_that_are_no_whole_numbers_are_told_apart():
    from lstmjax import plot

    curve = plot.Curve(np.arange(3), np.array([[0.1, 0.5, 0.9]]))
    (axis,) = plot.bands({"": {"a": curve}}, xlabel="x", ylabel="y").axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(set(labels)) == len(labels)
