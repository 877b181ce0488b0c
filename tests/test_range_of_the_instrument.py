"""The instrument at the ends of its range: narrow floats, large and small numbers, short types of lengths, no rows."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import lstmjax
from lstmjax.gradients import (
    adjoint_norms,
    cell_highway,
    decay_fit,
    flossing_penalty,
    gate_statistics,
    gate_values,
    gradient_report,
    jacobian_norms,
    lyapunov_spectrum,
    per_step_param_grads,
    precision_audit,
    truncation_bias,
)
from lstmjax.gradients.linear import blank_padding
from tests.cells import cases, compiled, inner, problem

ZEROS = jax.nn.initializers.zeros
CELL = lstmjax.lstm(3)


def last(states):
    return jnp.sin(states.h[-1]).sum()


# Every instrument that unrolls a cell; of gate_values the dtype is the cell's, and of an audit the one it is asked for.
INSTRUMENTS = {
    "adjoint_norms": lambda cell, params, xs, state, **options: adjoint_norms(cell, params, xs, last, state, **options),
    "jacobian_norms": jacobian_norms,
    "jacobian_norms, matrix-free": lambda *args, **options: jacobian_norms(
        *args, method="matrix-free", times=[0, len(args[2])], **options
    ),
    "cell_highway": cell_highway,
    "per_step_param_grads": lambda cell, params, xs, state, **options: per_step_param_grads(
        cell, params, xs, last, state, **options
    ),
    "truncation_bias": lambda cell, params, xs, state, **options: truncation_bias(
        cell, params, xs, lambda states: jnp.sin(states.h[1:]).sum(), [2], state, **options
    ),
    "gate_statistics": gate_statistics,
    "lyapunov_spectrum": lyapunov_spectrum,
    "flossing_penalty": flossing_penalty,
}
WITH_LENGTHS = [name for name in INSTRUMENTS if name not in ("lyapunov_spectrum", "flossing_penalty")]


# What compiles longest.
DEAR = ["jacobian_norms", "jacobian_norms, matrix-free", "truncation_bias", "cell_highway", "lyapunov_spectrum"]
NARROW = ["bfloat16", "float16"]


class TestNarrowFloats:
    """Nothing is summed, and no matrix decomposed, in less than float32."""

    @pytest.mark.parametrize("dtype", cases(NARROW, slow=["float16"]))
    @pytest.mark.parametrize("name", cases(INSTRUMENTS, slow=DEAR))
    def test_they_are_read_in_float32(self, name, dtype):
        narrow = problem(CELL, (6, 2, 3), dtype=jnp.dtype(dtype))
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float32)), narrow)
        got, want = (INSTRUMENTS[name](CELL, *args) for args in (narrow, wide))
        chex.assert_trees_all_equal(got, want)

    @pytest.mark.parametrize("dtype", cases(NARROW, slow=["float16"]))
    def test_a_sum_over_a_long_lag_does_not_stand_still(self, dtype):
        # ∂/∂c_0 of Σ c_t where nothing is forgotten: one for each state. In bfloat16, 256 + 1 is 256.
        cell = lstmjax.lstm(2, forget_bias=20.0, w_h_init=ZEROS, w_x_init=ZEROS)
        params = cell.init(jax.random.key(0), 3, dtype)
        start = cell.initial_state((), dtype)
        norms = adjoint_norms(cell, params, jnp.zeros((1000, 3), dtype), lambda s: s.c.sum(), start)
        np.testing.assert_allclose(np.exp(norms.c[0]), 1001 * np.sqrt(2), rtol=1e-4)

    @pytest.mark.parametrize("dtype", cases(NARROW, slow=["float16"]))
    def test_gates_over_many_steps_and_rows(self, dtype):
        cell = lstmjax.lstm(8)
        params = cell.init(jax.random.key(0), 3, jnp.float32)
        xs = jax.random.normal(jax.random.key(1), (100, 32, 3))
        want = gate_statistics(cell, params, xs)["forget"]
        got = gate_statistics(cell, *jax.tree.map(lambda a: a.astype(dtype), (params, xs)))["forget"]
        np.testing.assert_allclose(got.mean, want.mean, rtol=0.005)
        np.testing.assert_allclose(got.timescale, want.timescale, rtol=0.01)
        np.testing.assert_allclose(got.mean.mean(), 0.68, atol=0.02)

    @pytest.mark.parametrize("dtype", cases(NARROW, slow=["float16"]))
    def test_a_line(self, dtype):
        lags = np.arange(1000)
        y = jnp.asarray(-0.1 * lags, dtype)
        fit = decay_fit(lags, y)
        slope, intercept = np.polyfit(lags, np.asarray(y, np.float64), 1)
        np.testing.assert_allclose([fit.rate, fit.intercept], [slope, intercept], rtol=1e-3, atol=1e-4)
        assert fit.half_life == pytest.approx(-math.log(2) / slope, rel=1e-3)


class TestRange:
    """A square overflows long before the number does."""

    cell = lstmjax.rnn(4, activation=jax.nn.relu, w_h_init=lstmjax.init.identity(2.5))
    xs = jnp.abs(jax.random.normal(jax.random.key(1), (70, 2, 3)))

    @pytest.mark.parametrize("scale", [1e-30, 1e25])
    def test_truncation_of_a_loss_of_any_size(self, scale):
        args = problem(CELL, (12, 2, 3), dtype=jnp.float32)
        want, got = (
            truncation_bias(CELL, *args[:2], lambda states, by=by: by * jnp.sin(states.h[1:]).sum(), [3], args[2])
            for by in (1.0, scale)
        )
        assert want.relative_error[0] > 0.01
        chex.assert_trees_all_close(got, want, rtol=1e-4)

    @pytest.mark.slow
    def test_truncation_of_a_gradient_that_explodes(self):
        params = self.cell.init(jax.random.key(0), 3)

        def bias(params, xs):
            return truncation_bias(self.cell, params, xs, lambda states: states.h[1:].sum(), [5, 69])

        got = bias(params, self.xs)
        with jax.enable_x64(True):
            want = bias(*jax.tree.map(lambda a: a.astype(jnp.float64), (params, self.xs)))
        assert np.isfinite(want.relative_error).all()
        chex.assert_trees_all_close(got, want, rtol=1e-3)

    def test_truncation_of_nothing(self):
        # What does not depend on the parameters at all: nothing is lost, and there is no angle.
        args = problem(CELL, (4, 2, 3), dtype=jnp.float32)
        got = truncation_bias(CELL, *args[:2], lambda states: 0 * states.h.sum(), [1], args[2])
        assert (got.relative_error == 0).all()
        assert np.isnan(got.cosine).all()
        # With windows of one step the recurrent weights still see h; after one step from zero they see nothing at all.
        got = truncation_bias(CELL, args[0], args[1][:1], lambda states: states.h[1:].sum(), [1])
        assert all((leaf == 0).all() for leaf in got.by_leaf)

    @pytest.mark.slow
    def test_training_in_a_report_is_clipped_at_any_size(self):
        # Steps of Adam do not depend on the size of a loss; clipped by a norm that overflows, they are all zero.
        def loss_fn(predictions, targets):
            return 1e25 * (predictions - targets).sum()

        with jax.numpy_dtype_promotion("standard"):
            report = gradient_report(
                {"RNN": lstmjax.rnn}, (self.xs[:3], self.xs[-1]), loss_fn=loss_fn, hidden_size=2, seeds=1,
                train_steps=2, learning_rate=0.1,
            )  # fmt: skip
        before, after = (r["loss"] for r in report.records)
        assert after < before - 1e24


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32"]


class TestLengths:
    """Row by row to its own end, in any type of whole numbers: 300 steps are more than a byte counts."""

    ends = np.array([10, 20])

    @pytest.mark.parametrize("dtype", INTEGERS)
    def test_blanks_begin_at_a_rows_end(self, dtype):
        for times in (None, [5, 15, 299]):
            values = jnp.ones((301 if times is None else 3, 2))
            got = blank_padding(values, jnp.asarray(self.ends, dtype), times)
            at = np.arange(301) if times is None else np.array(times)
            np.testing.assert_array_equal(np.isnan(got), at[:, None] > self.ends)

    @pytest.mark.parametrize("name", cases(["gate_values", *WITH_LENGTHS], slow=DEAR))
    def test_every_instrument(self, name):
        cell = lstmjax.lstm(2)
        args = problem(cell, (300, 2, 1), dtype=jnp.float32)
        run = {"gate_values": gate_values, **INSTRUMENTS}[name]
        want = run(cell, *args, lengths=jnp.asarray(self.ends, jnp.int32))
        for dtype in ("int8", "uint8"):  # in which 300 is 44: what is longer is counted no other way
            chex.assert_trees_all_equal(run(cell, *args, lengths=jnp.asarray(self.ends, dtype)), want)


class TestDerivatives:
    """Of every number that is finite, whatever is exactly zero beside it."""

    resets = np.arange(7)[:, None] == np.array([3, 20])
    bare = lstmjax.lstm(3, w_h_init=ZEROS)  # no way but the highway

    # Truncation stops gradients, and so has no derivative that differences would show. Of the two rows one has a reset.
    @pytest.mark.parametrize("name", cases([name for name in INSTRUMENTS if name != "truncation_bias"], slow=DEAR))
    def test_with_respect_to_the_parameters(self, name, x64):
        params, xs, state = problem(CELL, (7, 2, 3))
        options = {"resets": self.resets} if name in WITH_LENGTHS else {"leading": 2}

        def run(params):
            numbers = INSTRUMENTS[name](CELL, params, xs, state, **options)
            if name != "gate_statistics":
                return numbers
            return {gate: (n.mean, n.timescale) for gate, n in numbers.items()}  # of shares there is no derivative

        def finite(params):
            leaves = [leaf for leaf in jax.tree.leaves(run(params)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
            return sum(jnp.where(jnp.isfinite(leaf), leaf, 0).sum() for leaf in leaves)

        self.same_by_differences(finite, params)

    def same_by_differences(self, function, params):
        along = problem(CELL, (7, 2, 3), seed=1)[0]

        def both(params, along):
            moved = [jax.tree.map(lambda p, a, by=by: p + by * a, params, along) for by in (-1e-6, 1e-6)]
            below, above = jax.lax.map(function, jax.tree.map(lambda *p: jnp.stack(p), *moved))
            return (above - below) / 2e-6, inner(jax.grad(function)(params), along)

        np.testing.assert_allclose(*compiled(both, params, along), rtol=1e-5)

    @pytest.mark.slow
    def test_of_the_highway_where_there_is_no_other_way(self, x64):
        params, xs, state = problem(self.bare, (7, 2, 3))
        params = params._replace(w_h=jnp.zeros_like(params.w_h))

        def each(params):
            parts = cell_highway(self.bare, params, xs, state)
            return 1.0 * parts.full[0].sum() + 2.0 * parts.highway[0].sum() + 3.0 * parts.log_forget[0].sum()

        self.same_by_differences(each, params)

    def test_of_a_line(self, x64):
        lags = np.arange(12.0)
        y = np.where(lags % 3 == 0, -np.inf, -0.2 * lags + np.sin(lags))

        def numbers(y):
            return sum(decay_fit(lags, y)[:4])

        grads = jax.grad(numbers)(jnp.asarray(y))
        np.testing.assert_array_equal(grads[::3], 0)
        used = lags % 3 != 0
        check_grads(
            lambda some: numbers(jnp.asarray(y).at[np.flatnonzero(used)].set(some)), (jnp.asarray(y[used]),), order=1,
            modes=("rev",), eps=1e-6, rtol=1e-5,
        )  # fmt: skip
        assert (jax.grad(lambda y: decay_fit(lags, y).r2)(jnp.ones(12)) == 0).all()


class TestNothing:
    """No row, no feature, no step: arrays of the same form as ever."""

    @pytest.mark.parametrize("name", [n for n in INSTRUMENTS if n != "flossing_penalty"])
    def test_no_row(self, name):
        def run(rows):
            return lambda: INSTRUMENTS[name](CELL, *problem(CELL, (4, rows, 3), dtype=jnp.float32))

        got, like = run(0)(), jax.eval_shape(run(7))
        for there, leaf in zip(jax.tree.leaves(got), jax.tree.leaves(like), strict=True):
            assert there.shape == tuple(0 if n == 7 else n for n in leaf.shape)

    @pytest.mark.parametrize("name", cases(INSTRUMENTS, slow=DEAR))
    def test_no_feature(self, name):
        # The same as of features that are all zero.
        params, xs, state = problem(CELL, (4, 2, 3), dtype=jnp.float32)
        none = params._replace(w_x=params.w_x[:0]), xs[..., :0], state
        got, want = (INSTRUMENTS[name](CELL, *args) for args in (none, (params, 0 * xs, state)))
        if name in ("per_step_param_grads",):
            got, want = got._replace(w_x=0), want._replace(w_x=0)
        if name == "truncation_bias":
            assert want.by_leaf.w_x == got.by_leaf.w_x == 0
        chex.assert_trees_all_close(got, want, atol=1e-5)

    @pytest.mark.parametrize("name", [n for n in WITH_LENGTHS if n != "gate_statistics"])
    def test_no_step(self, name):
        got = INSTRUMENTS[name](CELL, *problem(CELL, (0, 2, 3), dtype=jnp.float32))
        steps = {"per_step_param_grads": 0, "jacobian_norms, matrix-free": 2, "truncation_bias": 1}.get(name, 1)
        assert all(leaf.shape[0] == steps for leaf in jax.tree.leaves(got))

    def test_no_statistics_of_no_step(self):
        statistics = gate_statistics(CELL, *problem(CELL, (0, 2, 3), dtype=jnp.float32))["forget"]
        assert all(np.isnan(leaf).all() for leaf in statistics)

    def test_medians_and_averages_over_nothing_are_refused(self):
        params, xs, _ = problem(CELL, (4, 2, 3), dtype=jnp.float32)
        with pytest.raises(ValueError, match=r"xs has batch axes \(0,\); wanted at least one row"):
            precision_audit(CELL, params, xs[:, :0], last)
        with pytest.raises(ValueError, match=r"xs has batch axes \(0,\); wanted at least one row"):
            flossing_penalty(CELL, params, xs[:, :0])
        with pytest.raises(ValueError, match="xs holds no step; wanted at least one"):
            lyapunov_spectrum(CELL, params, xs[:0])
        for none in (xs[:, :0], xs[:0]):
            with pytest.raises(ValueError, match=r"xs has shape .* wanted at least one step and one row"):
                gradient_report({"LSTM": lstmjax.lstm}, (none, none[:1, :, 0].T))


def test_a_gate_that_is_not_finite_is_no_skipped_step():
    params, xs, state = problem(CELL, (4, 2, 3), dtype=jnp.float32)
    statistics = gate_statistics(CELL, params, xs.at[2, 0, 0].set(jnp.nan), state, lengths=np.array([4, 3]))
    assert all(np.isnan(g.mean).all() for g in statistics.values())


def test_a_gate_that_changes_the_sign_of_the_cell_has_a_logarithm(x64):
    cell = lstmjax.lstm(2, gate_activation=jnp.tanh, forget_bias=-1.0, w_h_init=ZEROS)
    parts = cell_highway(cell, cell.init(jax.random.key(0), 1, jnp.float64), jnp.zeros((5, 1)))
    np.testing.assert_allclose(parts.log_forget[0], 5 * np.log(np.tanh(1.0)), rtol=1e-12)
