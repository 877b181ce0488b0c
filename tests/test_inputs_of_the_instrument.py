"""Gradients with respect to inputs and attributions, against autodiff and against what attributions must sum to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax.gradients import input_norms, integrated_gradients
from tests.cells import CELLS, cases, compiled, problem

LENGTHS = np.array([9, 4])
MASK = np.arange(18).reshape(9, 2) % 4 != 1
RESETS = np.arange(9)[:, None] == np.array([3, 20])


def last(states):
    return jnp.sin(states.h[-1]).sum()


def every(states):
    return sum(jnp.sin(leaf).sum() for leaf in states)


@pytest.mark.parametrize("name", cases(CELLS, slow=["linear", "gru", "lstm"]))
@pytest.mark.parametrize("loss", [last, every])
def test_equals_the_plain_derivative(name, loss, x64):
    cell = CELLS[name]
    params, xs, state = problem(cell, (9, 2, 3))

    def value(xs):
        return loss(lstmjax.state_history(cell, params, xs, state, include_initial=True))

    want, got = compiled(lambda xs: (jax.grad(value)(xs), input_norms(cell, params, xs, loss, state)), xs)
    np.testing.assert_allclose(got.feature, np.log(np.abs(want)), atol=1e-10)
    np.testing.assert_allclose(got.step, np.log(np.linalg.norm(want, axis=-1)), atol=1e-10)


@pytest.mark.slow
def test_skipped_steps_and_resets(x64):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (9, 2, 3))
    xs = xs.at[5:, 1].set(jnp.nan)
    options = {"lengths": LENGTHS, "mask": MASK, "resets": RESETS}

    def value(xs):
        return last(lstmjax.state_history(cell, params, xs, state, include_initial=True, **options))

    want = np.asarray(jax.grad(value)(xs))
    got = np.exp(input_norms(cell, params, xs, last, state, **options).feature)
    np.testing.assert_allclose(got, np.abs(want), atol=1e-12)
    assert not got[:3, 0].any()  # x_1 … x_3 are forgotten before x_4
    assert not got[4:, 1].any()
    shares = integrated_gradients(cell, params, xs, last, state, **options).by_input
    assert np.isfinite(shares).all()
    assert not np.asarray(shares)[4:, 1].any()


def test_reaches_far_below_the_range_of_the_format():
    cell = lstmjax.lstm(4, forget_bias=0.0, w_h_init=jax.nn.initializers.zeros)
    params = cell.init(jax.random.key(0), 2)
    got = input_norms(cell, params, jnp.zeros((3000, 2)), lambda s: s.h[-1].sum())
    np.testing.assert_allclose(got.step[0] - got.step[2000], 2000 * np.log(0.5), rtol=1e-6)  # 1e-602


class TestIntegratedGradients:
    def test_sums_to_the_change_of_the_loss(self, x64):
        cell = CELLS["lstm"]
        params, xs, state = problem(cell, (9, 2, 3))
        baseline = 0.3 * xs[:1] + 1
        states = [lstmjax.state_history(cell, params, x, state, include_initial=True) for x in (xs, 0 * xs + baseline)]
        got = integrated_gradients(cell, params, xs, last, state, baseline=baseline)
        np.testing.assert_allclose(got.change, last(states[0]) - last(states[1]), atol=1e-12)
        np.testing.assert_allclose(got.by_input.sum(), got.change, atol=1e-10)
        assert abs(got.gap) < 1e-10

    def test_few_points_leave_a_gap_that_is_told(self, x64):
        cell = CELLS["lstm"]
        params, xs, state = problem(cell, (9, 2, 3))
        got = integrated_gradients(cell, params, 5 * xs, last, state, points=1)
        np.testing.assert_allclose(got.gap, got.by_input.sum() - got.change)
        assert abs(got.gap) > 1e-3

    def test_of_a_linear_network_is_input_times_weight(self, x64):
        cell = CELLS["linear"]
        params, xs, state = problem(cell, (9, 2, 3))
        got = integrated_gradients(cell, params, xs, lambda s: s.h[-1].sum(), state, points=1)
        powers = [np.linalg.matrix_power(np.asarray(params.w_h), 8 - t) for t in range(9)]
        by_x = np.stack([np.asarray(params.w_x) @ p @ np.ones(5) for p in powers])
        np.testing.assert_allclose(got.by_input, xs * by_x[:, None], atol=1e-12)
        assert abs(got.gap) < 1e-12

    def test_bad_input(self):
        cell = CELLS["lstm"]
        params, xs, _ = problem(cell, (4, 2, 3), dtype=jnp.float32)
        with pytest.raises(ValueError, match=r"baseline has shape \(2,\); wanted that of xs, \(4, 2, 3\)"):
            integrated_gradients(cell, params, xs, last, baseline=jnp.zeros(2))
        with pytest.raises(ValueError, match="points is 0; wanted a whole number of at least 1"):
            integrated_gradients(cell, params, xs, last, points=0)
        for function in (input_norms, integrated_gradients):
            with pytest.raises(TypeError, match="xs has dtype int32, which has no derivative"):
                function(cell, params, xs.astype(jnp.int32), last)
