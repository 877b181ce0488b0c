"""Linear memory capacity, against networks of which it is known; and the naive estimate, which is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov

import lstmjax
from lstmjax.gradients import linear_memory, memory_capacity

RNG = np.random.default_rng(0)


def linear(w_h, w_x=None):
    """A linear network of a matrix, and its parameters."""
    n = len(w_h)
    w_x = RNG.normal(size=(1, n)) if w_x is None else w_x
    return lstmjax.rnn(n, activation=lambda z: z), lstmjax.RNNParams(jnp.asarray(w_x), jnp.asarray(w_h), jnp.zeros(n))


def delay_line(n):
    return linear(np.eye(n, k=1), np.eye(1, n))


def random_matrix(n, radius):
    w = RNG.normal(size=(n, n))
    return radius * w / np.abs(np.linalg.eigvals(w)).max()


def by_covariance(w_h, w_x, delays):
    """MC_k = vᵀ Γ⁻¹ v with v = w W^k and Γ the covariance of the state: the textbook's way."""
    covariance = solve_discrete_lyapunov(w_h.T, np.outer(w_x, w_x))
    responses = [w_x @ np.linalg.matrix_power(w_h, k) for k in range(delays + 1)]
    return np.array([v @ np.linalg.solve(covariance, v) for v in responses])


def by_regression(states, signal, delays):
    """R² of a regression for each delay: the naive estimate."""
    x = np.asarray(states)[delays:] - np.asarray(states)[delays:].mean(0)
    found = []
    for k in range(delays + 1):
        u = signal[delays - k : len(signal) - k]
        u = u - u.mean()
        residual = u - x @ np.linalg.lstsq(x, u, rcond=None)[0]
        found.append(1 - (residual**2).sum() / (u**2).sum())
    return np.array(found)


def test_a_delay_line_of_n_units_has_n_where_the_naive_estimate_has_more(x64):
    cell, params = delay_line(5)
    signal = RNG.uniform(-1, 1, size=1200)
    got = memory_capacity(cell, params, signal, 200, washout=0)
    np.testing.assert_allclose(got.by_delay[:5], 1, atol=1e-9)
    np.testing.assert_allclose(got.by_delay[5:], 0, atol=0.03)
    assert abs(got.total - 5) < 4 * got.error < 0.25
    assert got.rank == 5
    states = lstmjax.state_history(cell, params, signal[:, None]).h
    assert by_regression(states, signal, 200).sum() > 5.8  # 5 numbers explain 1/200 of each of 196 more delays


def test_the_estimate_is_that_of_the_theory_where_the_states_are_well_conditioned(x64):
    w_h = 0.8 * np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    cell, params = linear(w_h)
    got = memory_capacity(cell, params, RNG.normal(size=(2000, 10)), 60)
    want = linear_memory(w_h, 60)
    np.testing.assert_allclose(got.by_delay, want.by_delay, atol=0.03)
    assert got.rank == 6
    assert abs(got.total - 6) < 4 * got.error < 0.1


@pytest.mark.slow
def test_its_error_is_that_of_many_runs(x64):
    # u² is no line of u: what the unit seems to remember scatters around nothing, by as much as is said.
    def square(params, state, x):
        return x**2 + 0.5 * state, x

    runs = [memory_capacity(square, None, RNG.normal(size=400), 30, jnp.zeros(1), washout=0) for _ in range(60)]
    totals = np.array([run.total for run in runs])
    assert abs(totals.mean()) < 4 * runs[0].error / np.sqrt(60)
    np.testing.assert_allclose(totals.std(), runs[0].error, rtol=0.35)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_the_exact_curve_is_the_textbooks(n):
    w_h = random_matrix(n, 0.7)
    got = linear_memory(w_h, 30)
    for _ in range(2):  # whatever the input's weights are
        np.testing.assert_allclose(got.by_delay, by_covariance(w_h, RNG.normal(size=n), 30), atol=1e-5)


def test_a_generic_network_of_n_units_has_n_where_the_naive_ways_have_not(x64):
    w_h, w_x = random_matrix(60, 0.5), RNG.normal(size=60)
    got = linear_memory(w_h, 300)
    np.testing.assert_allclose(got.by_delay.sum(), 60, atol=1e-9)
    assert got.total == 60
    assert ((got.by_delay > -1e-12) & (got.by_delay < 1 + 1e-12)).all()
    assert by_covariance(w_h, w_x, 100).sum() < 50  # Γ has a condition number beyond 1e17
    cell, params = linear(w_h, w_x[None])
    estimate = memory_capacity(cell, params, RNG.normal(size=(500, 10)), 90)
    assert estimate.rank < 50  # and says so
    np.testing.assert_allclose(estimate.total, estimate.rank, atol=0.1)


def test_a_delay_line_exactly():
    np.testing.assert_allclose(linear_memory(np.eye(4, k=1), 8).by_delay, [1] * 4 + [0] * 5)


def test_a_cell_that_is_not_linear():
    cell = lstmjax.lstm(4)
    params = cell.init(jax.random.key(0), 2)
    signal = np.asarray(RNG.normal(size=(300, 8)), np.float32)
    got = memory_capacity(cell, params, signal, 20, into=np.array([1.0, -1.0], np.float32), washout=20)
    assert 1 < got.total <= got.rank == 8
    assert (np.diff(got.by_delay[:4]) < 0).all()


def test_bad_input():
    cell, params = lstmjax.rnn(3), lstmjax.rnn(3).init(jax.random.key(0), 1)
    for signal, match in [
        (1.0, r"signal is one number; wanted \[T, \*B\]"),
        (np.ones(110, np.float32), "signal leaves 0 samples after 100"),
    ]:
        with pytest.raises(ValueError, match=match):
            memory_capacity(cell, params, signal, 10)
    with pytest.raises(ValueError, match="delays is 0; wanted a whole number of at least 1"):
        memory_capacity(cell, params, np.ones(9, np.float32), 0)
    with pytest.raises(ValueError, match="w_h has an eigenvalue of size 1; wanted all below 1"):
        linear_memory(np.eye(2), 5)
    with pytest.raises(ValueError, match=r"w_h has shape \(2, 3\); wanted \[n, n\]"):
        linear_memory(np.ones((2, 3)), 5)
