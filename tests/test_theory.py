"""What theory says of gradients through time, each statement as an experiment with the library's own instruments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax.gradients import (
    adjoint_norms,
    decay_fit,
    flossing_penalty,
    jacobian_norms,
    lyapunov_spectrum,
    per_step_param_grads,
)
from tests.cells import problem

ZEROS = jax.nn.initializers.zeros


def chain(params, state, x):
    """One number, multiplied by x at every step: the derivatives d1, d2, …, dn are the inputs."""
    return state * x, state


@pytest.mark.parametrize(
    ("derivatives", "product"),
    [([0.03, 0.05], 0.0015), ([0.5] * 50, 8.88e-16), ([2.0] * 50, 1.126e15)],
)
def test_the_gradient_is_the_product_of_the_derivatives(derivatives, product, x64):
    xs = jnp.array(derivatives)[:, None]
    norms = jacobian_norms(chain, (), xs, jnp.ones(1), times=[0])
    np.testing.assert_allclose(np.exp(norms.operator["full"][0]), product, rtol=1e-3)
    np.testing.assert_allclose(norms.operator["full"][0], np.log(derivatives).sum(), atol=1e-12)


@pytest.mark.parametrize(
    ("activation", "steepest"), [(jnp.tanh, 1.0), (jax.nn.sigmoid, 0.25)], ids=["tanh", "logistic"]
)
@pytest.mark.parametrize("scale", [0.5, 0.95, 3.0])
def test_jacobians_are_bounded_by_the_norm_of_the_weights(activation, steepest, scale, x64):
    # ‖∂h_T/∂h_t‖ ≤ (γ ‖W‖)^(T−t); ‖W‖ < 1/γ is sufficient for vanishing.
    cell = lstmjax.rnn(8, activation=activation, w_h_init=lstmjax.init.orthogonal(scale))
    params = cell.init(jax.random.key(0), 3, jnp.float64)
    xs = jax.random.normal(jax.random.key(1), (40, 3))
    lags = 40 - np.arange(41)
    norms = jacobian_norms(cell, params, xs).operator["hh"]
    assert (norms <= lags * np.log(steepest * scale) + 1e-9).all()
    if scale < 1 / steepest:
        assert norms[0] < 0


def test_a_spectral_radius_of_zero_does_not_keep_a_tanh_network_from_exploding(x64):
    # The condition on the spectral radius that is often quoted is right for linear networks alone. These weights are
    # nilpotent, so a linear network forgets in two steps; but inputs that hold one unit at tanh's steep middle and the
    # other at its flat end make each step's Jacobian anything but.
    w_h = 4 * jnp.array([[1.0, 1.0], [-1.0, -1.0]])
    assert np.abs(np.linalg.matrix_power(w_h, 2)).max() == 0
    h = jnp.array([0.0, -0.995])
    xs = jnp.tile(jnp.arctanh(h) - h @ w_h, (20, 1))
    params, state = lstmjax.RNNParams(jnp.eye(2), w_h, jnp.zeros(2)), lstmjax.RNNState(h)
    for activation, least, most in ((jnp.tanh, 20 * np.log(3.9), np.inf), (_identity, -np.inf, -np.inf)):
        norms = jacobian_norms(lstmjax.rnn(2, activation=activation), params, xs, state, times=[0])
        assert least <= norms.operator["hh"][0] <= most


def _identity(z):
    return z


@pytest.mark.parametrize(
    ("bias", "ln_f", "half_life"),
    [(0, -0.693, 1.00), (1, -0.313, 2.21), (2, -0.127, 5.46), (5, -0.0067, 103)],
)
def test_without_recurrent_weights_the_exponent_of_c_is_ln_of_the_forget_gate(bias, ln_f, half_life, x64):
    # ∂c_T/∂c_t = ∏ f exactly, so the exponent is ln σ(b_f), whatever the input of the other gates.
    cell = lstmjax.lstm(4, forget_bias=float(bias), w_h_init=ZEROS)
    params = cell.init(jax.random.key(0), 3, jnp.float64)
    w_x = np.array(params.w_x)
    w_x[:, 4:8] = 0
    params = params._replace(w_x=jnp.asarray(w_x))
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(1000, 3)))
    exponent = -np.log1p(np.exp(-bias))

    norms = adjoint_norms(cell, params, xs, lambda states: states.h[-1].sum())
    fit = decay_fit(jnp.arange(1, 1001), norms.c[:1000][::-1])
    np.testing.assert_allclose(fit.rate, exponent, atol=1e-6)
    np.testing.assert_allclose([fit.rate, fit.half_life], [ln_f, half_life], rtol=5e-3)
    assert jnp.isneginf(norms.h[:-1]).all()  # no way through h
    assert jnp.isneginf(norms.c[-1])  # the loss reads h alone

    # Of a long sequence; here, of one that is the same at every step, so that there is nothing to average.
    spectrum = lyapunov_spectrum(cell, params, jnp.zeros((200, 3)), burn_in=10)
    np.testing.assert_allclose(spectrum[:4], exponent, atol=1e-9)
    assert (spectrum[4:] < -10).all()  # h forgets at once


def test_a_weight_gradient_that_is_not_zero_does_not_show_that_long_dependencies_survive(x64):
    cell = lstmjax.rnn(8, w_h_init=lstmjax.init.orthogonal(0.5))
    params = cell.init(jax.random.key(0), 3, jnp.float64)
    xs = problem(cell, (60, 2, 3))[1]

    def last(states):
        return jnp.sin(states.h[-1]).sum()

    by_step = np.linalg.norm(per_step_param_grads(cell, params, xs, last).w_h.reshape(60, -1), axis=1)
    total = np.linalg.norm(jax.grad(lambda p: jnp.sin(lstmjax.unroll(cell, p, xs)[0].h).sum())(params).w_h)
    assert total > 0.1
    assert by_step[:30].sum() < 1e-8 * total
    assert jacobian_norms(cell, params, xs, times=[30]).operator["hh"].max() < np.log(1e-8)


def test_flossing_lowers_the_condition_number_of_the_long_term_jacobian(x64):
    cell = lstmjax.rnn(6, w_h_init=lstmjax.init.pytorch_uniform(6))
    params = cell.init(jax.random.key(0), 2, jnp.float64)
    xs = 0.1 * jax.random.normal(jax.random.key(1), (30, 2))

    def condition(params):
        def last(h):
            return lstmjax.unroll(cell, params, xs, lstmjax.RNNState(h))[0].h

        values = jnp.linalg.svd(jax.jacobian(last)(jnp.zeros(6)), compute_uv=False)
        return float(values[0] / values[2])

    @jax.jit
    def descend(params):
        grad = jax.grad(lambda p: flossing_penalty(cell, p, xs, leading=3))(params)
        return jax.tree.map(lambda p, g: p - 0.03 * g, params, grad)

    before = condition(params)
    for _ in range(100):
        params = descend(params)
    assert condition(params) < before / 100
