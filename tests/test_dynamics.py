"""Fixed points of networks whose fixed points are known, and dimensions and entropies of known attractors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import lstmjax
from lstmjax.gradients import entropy_rate, fixed_points, kaplan_yorke_dimension, lyapunov_spectrum


def rnn(w_h, b=None, **options):
    """A vanilla RNN of a matrix, with inputs of one feature that it does not read."""
    w_h = jnp.asarray(w_h, jnp.float64)
    b = jnp.zeros(len(w_h)) if b is None else jnp.asarray(b)
    return lstmjax.rnn(len(w_h), **options), lstmjax.RNNParams(jnp.zeros((1, len(w_h))), w_h, b)


def starts(shape, scale=1.0, seed=0):
    return lstmjax.RNNState(jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape)))


X = np.zeros(1)


def test_one_tanh_unit(x64):
    # h = tanh(2 h): 0, where the slope is 2, and ± its positive root, where it is 2 (1 − h²).
    root = brentq(lambda h: np.tanh(2 * h) - h, 0.5, 1, xtol=1e-15)
    points = fixed_points(*rnn([[2.0]]), X, starts((30, 1)), fixed_below=1e-25)
    order = points.states.h[:, 0].argsort()
    np.testing.assert_allclose(points.states.h[order, 0], [-root, 0, root], atol=1e-12)
    slopes = np.array([2 * (1 - root**2), 2, 2 * (1 - root**2)])
    np.testing.assert_allclose(points.eigenvalues[order, 0], slopes, atol=1e-10)
    np.testing.assert_allclose(points.timescales[order, 0], -1 / np.log(slopes), rtol=1e-9)
    assert points.stable[order].tolist() == [True, False, True]
    assert points.fixed.all()
    assert np.isinf(points.periods).all()
    assert points.starts.sum() == 30


def test_a_linear_network_has_one(x64):
    rng = np.random.default_rng(0)
    w_h = 0.4 * rng.normal(size=(4, 4))
    b = rng.normal(size=4)
    cell, params = rnn(w_h, b, activation=lambda z: z)
    points = fixed_points(cell, params, X, starts((5, 4)))
    # h = h W + b
    np.testing.assert_allclose(points.states.h, np.linalg.solve((np.eye(4) - w_h).T, b)[None], atol=1e-9)
    want = np.linalg.eigvals(w_h)
    np.testing.assert_allclose(np.sort_complex(points.eigenvalues[0]), np.sort_complex(want), atol=1e-9)
    assert (np.diff(np.abs(points.eigenvalues[0])) <= 1e-12).all()


def test_a_rotation_has_its_period(x64):
    angle, size = 2 * np.pi / 7, 0.9
    w_h = size * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    cell, params = rnn(w_h, activation=lambda z: z)
    points = fixed_points(cell, params, X, starts((3, 2)))
    np.testing.assert_allclose(points.states.h, np.zeros((1, 2)), atol=1e-9)
    np.testing.assert_allclose(points.periods, [[7, 7]])
    np.testing.assert_allclose(points.timescales, [[-1 / np.log(0.9)] * 2])


def test_what_stays_and_what_is_gone_at_once(x64):
    cell, params = rnn(np.diag([1.0, 0.0, -0.5]), activation=lambda z: z)
    points = fixed_points(cell, params, X, lstmjax.RNNState(jnp.eye(3)[:1]))
    np.testing.assert_allclose(points.eigenvalues[0], [1, -0.5, 0], atol=1e-12)
    assert points.timescales[0, 0] == np.inf
    assert points.timescales[0, 2] == 0
    np.testing.assert_allclose(points.periods[0, 1], 2)
    assert not points.stable[0]


def test_a_slow_point(x64):
    # h' = h + h² + ε passes 0 at speed ε, and stands still nowhere.
    def step(params, h, x):
        return h + h**2 + params, h

    epsilon = 1e-4
    points = fixed_points(step, jnp.array(epsilon), X, jnp.array([[-0.3], [0.2]]))
    np.testing.assert_allclose(points.states, [[0.0]], atol=1e-4)
    np.testing.assert_allclose(points.speed, [epsilon**2 / 2], rtol=1e-3)
    assert not points.fixed.any()
    assert not len(fixed_points(step, jnp.array(epsilon), X, jnp.array([[-0.3]]), slow_below=1e-10).speed)


def test_of_an_lstm_in_float32_they_stand_still():
    cell = lstmjax.lstm(6)
    params = jax.tree.map(lambda p: 2 * p, cell.init(jax.random.key(3), 2))
    x = jnp.array([1.0, -1.0])
    rng = np.random.default_rng(0)
    c, h = (jnp.asarray(rng.normal(size=(20, 6)), jnp.float32) for _ in range(2))
    points = fixed_points(cell, params, x, lstmjax.LSTMState(c, h))
    assert points.fixed.any()
    at = jax.tree.map(lambda leaf: jnp.asarray(leaf[points.fixed][0]), points.states)
    after, _ = cell.step(params, at, x)
    np.testing.assert_allclose(np.concatenate(after), np.concatenate(at), atol=3e-6)
    # Where it is stable, a run ends there.
    if points.stable[points.fixed][0]:
        near = jax.tree.map(lambda leaf: leaf + 1e-2, at)
        final, _ = lstmjax.unroll(cell, params, jnp.broadcast_to(x, (3000, 2)), near)
        np.testing.assert_allclose(final.h, at.h, atol=1e-3)


def test_bad_input():
    cell = lstmjax.rnn(2)
    params = cell.init(jax.random.key(0), 1)
    for bad, error, match in [
        (lstmjax.RNNState(jnp.zeros(())), ValueError, r"starts hold arrays \[\(\)\]; wanted one leading axis"),
        (lstmjax.RNNState(jnp.zeros((0, 2))), ValueError, r"starts hold arrays \[\(0, 2\)\]"),
        (lstmjax.RNNState(jnp.zeros((3, 2), int)), TypeError, "starts.h has dtype int32; wanted a floating dtype"),
        (lstmjax.RNNState(jnp.full((3, 2), jnp.nan)), FloatingPointError, "starts.h holds a NaN"),
    ]:
        with pytest.raises(error, match=match):
            fixed_points(cell, params, jnp.zeros(1), bad)
    for function in (kaplan_yorke_dimension, entropy_rate):
        with pytest.raises(ValueError, match=r"exponents have shape \(0,\); wanted \[n, \*B\]"):
            function(jnp.zeros(0))


def test_dimension_and_entropy_by_hand():
    spectra = np.array(
        [[0.5, 0.2, -0.4, -9.0], [-0.1, -0.2, -0.3, -np.inf], [2.0, -0.5, -0.5, -0.5], [0.5, -np.inf, -np.inf, -np.inf]]
    )
    got = kaplan_yorke_dimension(spectra.T.astype(np.float32))
    np.testing.assert_allclose(got, [3 + 0.3 / 9, 0, 4, 1], rtol=1e-6)
    np.testing.assert_allclose(entropy_rate(spectra.T.astype(np.float32)), [0.7, 0, 2, 0.5], rtol=1e-6)


def lorenz(dt, state, x):
    """A step of Runge and Kutta's method."""

    def slope(s):
        a, b, c = s
        return jnp.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c])

    k1 = slope(state)
    k2 = slope(state + dt / 2 * k1)
    k3 = slope(state + dt / 2 * k2)
    k4 = slope(state + dt * k3)
    return state + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4), x


@pytest.mark.slow
def test_lorenz_has_its_published_exponents(x64):
    # Sprott (2003): 0.9056, 0, −14.5723; dimension 2.06215.
    dt = 0.01
    got = lyapunov_spectrum(lorenz, jnp.array(dt), jnp.zeros((400_000, 1)), jnp.ones(3), burn_in=10_000) / dt
    np.testing.assert_allclose(got[0], 0.9056, atol=0.005)
    np.testing.assert_allclose(got[1], 0, atol=0.005)
    np.testing.assert_allclose(got.sum(), -(10 + 1 + 8 / 3), atol=1e-3)  # the divergence of the flow
    np.testing.assert_allclose(kaplan_yorke_dimension(got), 2.06215, atol=0.001)
    np.testing.assert_allclose(entropy_rate(got), 0.9056, atol=0.005)
