"""The gradient instrument, against autodiff in float64 and against what theory knows exactly."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import unroll
from lstmjax.gradients import adjoint_norms, decay_fit
from tests.cells import CELLS, EVERY_CELL, cases, compiled, problem


def norms_by_perturbation(cell, params, xs, loss_fn, state, **options):
    """ln ‖∂L/∂s_t‖ the plain way: add a zero to every state, differentiate with respect to the zeros."""
    steps = len(xs)
    zeros = jax.tree.map(lambda s: np.zeros((steps + 1, *s.shape), s.dtype), state)

    def loss(zeros):
        now = jax.tree.map(lambda s, z: s + z[0], state, zeros)
        states = [now]
        for t in range(steps):
            sliced = {k: v[t : t + 1] for k, v in options.items()}
            now, _ = unroll(cell, params, xs[t : t + 1], now, **sliced)
            now = jax.tree.map(lambda s, z, t=t: s + z[t + 1], now, zeros)
            states.append(now)
        return loss_fn(jax.tree.map(lambda *s: jnp.stack(s), *states))

    by_zeros = jax.grad(loss)
    return compiled(lambda zeros: jax.tree.map(lambda g: jnp.log(jnp.linalg.norm(g, axis=-1)), by_zeros(zeros)), zeros)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_equals_the_plain_derivative(name, x64):
    cell = CELLS[name]
    params, xs, state = problem(cell, (9, 2, 3))

    def last(states):
        return jnp.sin(states.h[-1]).sum()

    got = adjoint_norms(cell, params, xs, last, state)
    chex.assert_trees_all_close(got, norms_by_perturbation(cell, params, xs, last, state), atol=1e-10)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_a_loss_at_every_step(name, x64):
    cell = CELLS[name]
    params, xs, state = problem(cell, (9, 2, 3))
    weights = np.exp(np.random.default_rng(5).normal(size=(10, 2, 1)) * 6)  # from 1e-5 to 1e5

    def every(states):
        return sum((weights * jnp.sin(s)).sum() for s in jax.tree.leaves(states))

    got = adjoint_norms(cell, params, xs, every, state)
    chex.assert_trees_all_close(got, norms_by_perturbation(cell, params, xs, every, state), atol=1e-10)


def test_masks_and_resets(x64):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (9, 2, 3))
    mask = np.arange(18).reshape(9, 2) % 4 != 1
    resets = np.arange(9)[:, None] == np.array([3, 20])

    def last(states):
        return states.h[-1].sum() + states.c[-1].sum()

    got = adjoint_norms(cell, params, xs, last, state, mask=mask, resets=resets)
    want = norms_by_perturbation(cell, params, xs, last, state, mask=mask, resets=resets)
    chex.assert_trees_all_close(got, want, atol=1e-10)
    assert np.isneginf(np.asarray(got.h)[:4, 0]).all()  # s_3 is replaced before x_3


@pytest.mark.slow
def test_lengths_are_truncation(x64):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (9, 3, 3))
    lengths = np.array([9, 4, 0])

    def last(states):
        return jnp.sin(states.h[-1]).sum()

    got = jax.tree.map(np.asarray, adjoint_norms(cell, params, xs, last, state, lengths=lengths))
    xs, state = jax.tree.map(np.asarray, (xs, state))
    for row, n in enumerate(lengths):
        alone = jax.tree.map(lambda s, row=row: s[row], state)
        want = adjoint_norms(cell, params, xs[:n, row], last, alone)
        chex.assert_trees_all_close(jax.tree.map(lambda g, row=row, n=n: g[: n + 1, row], got), want, atol=1e-12)
        assert np.isnan(got.h[n + 1 :, row]).all()


@pytest.mark.parametrize("name", cases(["lstm", "gru", "rnn"], slow=["gru", "rnn"]))
def test_float32_stays_right_far_below_its_smallest_number(name):
    cell = CELLS[name]
    params, xs, state = problem(cell, (5000, 2, 3), dtype=jnp.float32)

    def last(states):
        return states.h[-1].sum()

    single = adjoint_norms(cell, params, xs, last, state)
    with jax.enable_x64(True):
        args = jax.tree.map(lambda a: a.astype(jnp.float64), (params, xs))
        double = adjoint_norms(cell, *args, last, jax.tree.map(lambda a: a.astype(jnp.float64), state))
    assert single.h.min() < -1000  # e^−1000, where float32 ends at e^−103 and float64 at e^−744
    np.testing.assert_allclose(single.h, double.h, rtol=1e-4, atol=1e-3)


def test_a_linear_network_decays_and_explodes_as_its_matrix():
    # h' = a h: the gradient at lag k is a^k exactly, a power of two to be free of rounding.
    for a in (0.5, 2.0):
        cell = lstmjax.rnn(1, activation=lambda z: z, w_h_init=lstmjax.init.identity(a))
        params = cell.init(jax.random.key(0), 1)
        norms = adjoint_norms(cell, params, jnp.zeros((10_000, 1)), lambda states: states.h[-1].sum())
        lags = np.arange(10_000, -1, -1)
        np.testing.assert_allclose(norms.h, lags * np.log(a), rtol=1e-6)


@pytest.mark.slow
def test_bfloat16_and_jit_and_vmap():
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (50, 2, 3), dtype=jnp.bfloat16)

    def last(states):
        return states.h[-1].sum()

    norms = adjoint_norms(cell, params, xs, last, state)
    assert norms.h.dtype == jnp.float32
    jitted = compiled(lambda p, x, s: adjoint_norms(cell, p, x, last, s), params, xs, state)
    chex.assert_trees_all_close(jitted, norms, atol=1e-5)

    def both_ways(params, xs, state):
        mapped = jax.vmap(lambda x, s: adjoint_norms(cell, params, x, last, s), (1, 0), 1)(xs, state)
        return mapped, adjoint_norms(cell, params, xs, last, state)

    chex.assert_trees_all_close(*compiled(both_ways, *problem(cell, (50, 2, 3), dtype=jnp.float32)), atol=1e-4)


def test_norms_of_no_steps():
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (0, 2, 3), dtype=jnp.float32)
    norms = adjoint_norms(cell, params, xs, lambda states: states.h[-1].sum(), state)
    np.testing.assert_allclose(norms.h, 0.5 * np.log(5) * np.ones((1, 2)), rtol=1e-6)


class TestDecayFit:
    lags = np.arange(200.0, dtype=np.float32)

    @pytest.mark.parametrize("rate", [-0.693, -0.001, 0.02])
    def test_recovers_a_line(self, rate):
        fit = decay_fit(self.lags, 3.0 + rate * self.lags)
        np.testing.assert_allclose([fit.rate, fit.intercept, fit.r2], [rate, 3.0, 1.0], rtol=1e-4)
        np.testing.assert_allclose(fit.half_life, -np.log(2) / rate if rate < 0 else np.inf, rtol=1e-4)

    def test_equals_scipy_on_noise(self):
        from scipy.stats import linregress

        y = (-0.1 * self.lags + np.random.default_rng(0).standard_normal((3, 200))).astype(np.float32)
        fit = decay_fit(self.lags, y)
        for row in range(3):
            want = linregress(self.lags, y[row])
            np.testing.assert_allclose(fit.rate[row], want.slope, rtol=1e-5)
            np.testing.assert_allclose(fit.intercept[row], want.intercept, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(fit.r2[row], want.rvalue**2, rtol=1e-5)

    def test_leaves_out_what_is_not_finite(self):
        y = np.where(self.lags % 3 == 0, -np.inf, np.where(self.lags > 150, np.nan, -0.2 * self.lags))
        fit = decay_fit(self.lags, y.astype(np.float32))
        np.testing.assert_allclose(fit.rate, -0.2, rtol=1e-5)
        assert int(fit.points) == np.isfinite(y).sum()

    def test_the_spread_over_seeds_and_rows(self):
        rates = np.array([[-0.5, 0.1, -0.25], [-0.3, -0.2, np.nan]])
        bar = decay_fit(self.lags, np.float32(rates[..., None] * self.lags)).spread()
        np.testing.assert_allclose(bar[:3], [-0.25, -0.5, 0.1], rtol=1e-5)
        np.testing.assert_allclose(bar[3:], [np.log(2) / 0.25, np.log(2) / 0.5, np.inf], rtol=1e-5)

    def test_no_line_through_nothing(self):
        fit = decay_fit(self.lags, np.full(200, -np.inf, np.float32))
        assert np.isnan([fit.rate, fit.half_life, fit.r2]).all()
        assert int(fit.points) == 0

    def test_a_level_line(self):
        fit = decay_fit(self.lags, np.ones(200, np.float32))
        assert (fit.rate, fit.half_life, fit.r2) == (0.0, np.inf, 1.0)
