"""Lyapunov exponents, against matrices and maps whose exponents are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import lstmjax
from lstmjax.gradients import flossing_penalty, lyapunov_spectrum
from tests.cells import CELLS, cases, problem


def henon(params, state, x):
    a, b = params
    return jnp.stack([1 - a * state[0] ** 2 + state[1], b * state[0]]), x


def logistic(r, state, x):
    return r * state * (1 - state), x


def test_the_henon_map_has_its_published_exponents(x64):
    # Sprott (2003): 0.41922 and -1.62319 for a = 1.4, b = 0.3.
    got = lyapunov_spectrum(henon, (1.4, 0.3), jnp.zeros((50_000, 1)), jnp.array([0.1, 0.1]), burn_in=1000)
    np.testing.assert_allclose(got, [0.41922, -1.62319], rtol=0.01)
    np.testing.assert_allclose(got.sum(), np.log(0.3), atol=1e-9)


def test_the_logistic_map_at_4_has_ln_2(x64):
    got = lyapunov_spectrum(logistic, jnp.array(4.0), jnp.zeros((50_000, 1)), jnp.array(0.3), burn_in=100)
    np.testing.assert_allclose(got, [np.log(2)], rtol=0.01)


def test_a_linear_network_has_its_own_exponents(x64):
    # A symmetric matrix: its exponents are the logarithms of its eigenvalues, which are its singular values.
    values = np.array([1.5, 0.9, 0.5, 0.2])
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    params = lstmjax.RNNParams(jnp.ones((3, 4)), jnp.asarray(q @ np.diag(values) @ q.T), jnp.zeros(4))
    cell = lstmjax.rnn(4, activation=lambda z: z)
    got = lyapunov_spectrum(cell, params, jnp.zeros((400, 3)), burn_in=200)
    np.testing.assert_allclose(got, np.log(values), atol=1e-9)


@pytest.mark.parametrize("name", cases(["lstm", "gru"], slow=["lstm"]))
def test_the_sum_is_the_mean_log_determinant(name, x64):
    cell = CELLS[name]
    params, xs, state = problem(cell, (30, 2, 3))
    got = lyapunov_spectrum(cell, params, xs, state)

    def flat_step(leaves, x):
        return jnp.concatenate(jax.tree.leaves(cell.step(params, type(state)(*jnp.split(leaves, len(state))), x)[0]))

    states = lstmjax.state_history(cell, params, xs, state, include_initial=True)
    flat = jnp.concatenate(jax.tree.leaves(states), -1)[:-1]
    jacobians = jax.vmap(jax.vmap(jax.jacobian(flat_step)))(flat, xs)
    np.testing.assert_allclose(got.sum(0), jnp.linalg.slogdet(jacobians)[1].mean(0), atol=1e-8)


def test_rows_and_leading_exponents_stand_alone(x64):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (30, 2, 3))
    every = lyapunov_spectrum(cell, params, xs, state, burn_in=10)
    row = lyapunov_spectrum(cell, params, xs[:, 1], jax.tree.map(lambda s: s[1], state), burn_in=10, leading=2)
    assert every.shape == (10, 2)
    np.testing.assert_allclose(row[0], every[0, 1], atol=0.02)  # other random columns, the same direction


def test_leading_exponents_are_differentiable(x64):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (12, 2, 3))

    def two(params):
        return lyapunov_spectrum(cell, params, xs, state, leading=2).sum()

    check_grads(two, (params,), order=1, modes=("rev",), eps=1e-6, rtol=1e-5)


def test_flossing_raises_an_exponent_towards_zero(x64):
    cell = lstmjax.rnn(6, w_h_init=lstmjax.init.orthogonal(0.5))
    params = cell.init(jax.random.key(0), 2, jnp.float64)
    xs = 0.1 * jax.random.normal(jax.random.key(1), (60, 2, 2))

    @jax.jit
    def descend(params):
        value, grad = jax.value_and_grad(lambda p: flossing_penalty(cell, p, xs, leading=2, burn_in=20))(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grad), value

    values = []
    for _ in range(60):
        params, value = descend(params)
        values.append(float(value))
    assert values[-1] < 0.05 * values[0]
    assert (np.abs(lyapunov_spectrum(cell, params, xs, leading=1, burn_in=20)) < 0.2).all()
