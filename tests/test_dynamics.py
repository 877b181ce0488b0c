"""Fixed points of networks whose fixed points are known, and dimensions and entropies of known attractors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq

import lstmjax
from lstmjax import plot, training
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


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def flip_flop():
    """A network that has learnt to hold two bits, each set by its last pulse; with the states it passes through."""
    cell, optimizer = lstmjax.rnn(16), optax.adam(5e-3)

    def draw(key):
        key_when, key_what = jax.random.split(key)
        when = jax.random.bernoulli(key_when, 0.1, (40, 64, 2)).at[0].set(True)
        pulses = jnp.where(when, jax.random.rademacher(key_what, (40, 64, 2), jnp.float32), 0.0)

        def hold(held, pulse):
            held = jnp.where(pulse == 0, held, pulse)
            return held, held

        return pulses, jax.lax.scan(hold, jnp.zeros((64, 2)), pulses)[1]

    def loss_fn(params, batch, key):
        _, h = lstmjax.unroll(cell, params["cell"], batch[0])
        return ((h @ params["readout"] - batch[1]) ** 2).mean(), {}

    params = {"cell": cell.init(jax.random.key(0), 2), "readout": 0.1 * jax.random.normal(jax.random.key(1), (16, 2))}
    state = training.init_state(params, optimizer, jax.random.key(2))
    step = training.make_train_step(loss_fn, optimizer, clip_norm=1.0)
    result = training.fit(state, step, draw, steps=1500, steps_per_call=500, progress=False)
    params = result.state.params
    states = lstmjax.state_history(cell, params["cell"], draw(jax.random.key(3))[0])
    return cell, params, states, float(result.history["loss"][-50:].mean())


@pytest.mark.slow
def test_a_flip_flop_holds_its_bits_in_fixed_points(flip_flop):
    cell, params, states, loss = flip_flop
    assert loss < 0.01
    starts = jax.tree.map(lambda leaf: leaf.reshape(-1, 16)[::10], states)
    points = fixed_points(cell, params["cell"], jnp.zeros(2), starts)
    assert points.fixed.all()
    held = points.states.h[points.stable] @ np.asarray(params["readout"])
    np.testing.assert_allclose(np.abs(held), 1, atol=0.1)
    assert sorted(map(tuple, np.sign(held).astype(int).tolist())) == [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    # Between two of them a saddle with one way out, where one bit is undecided, and one point where both are.
    assert sorted((np.abs(points.eigenvalues) > 1).sum(1).tolist()) == [0] * 4 + [1] * 4 + [2]


@pytest.mark.slow
def test_a_figure_of_them(flip_flop, tmp_path):
    cell, params, states, _ = flip_flop
    starts = jax.tree.map(lambda leaf: leaf.reshape(-1, 16)[::10], states)
    points = fixed_points(cell, params["cell"], jnp.zeros(2), starts)
    figure = plot.fixed_points(points, states)
    figure.savefig(tmp_path / "points.png")
    assert [axis.get_title() for axis in figure.axes] == ["states", "eigenvalues"]


def test_a_figure_of_one_number_and_of_none(x64):
    cell, params = rnn([[2.0]])
    points = fixed_points(cell, params, X, starts((30, 1)))
    assert plot.fixed_points(points).axes[0].get_xlabel().startswith("principal component 1")
    none = fixed_points(cell, params, X, starts((3, 1)), slow_below=-1.0)
    with pytest.raises(ValueError, match="points hold none"):
        plot.fixed_points(none)
