"""Gates, depth, precision, and where a number stops being finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import unroll
from lstmjax.gradients import (
    adjoint_norms,
    cell_highway,
    depth_norms,
    feed_forward,
    gate_statistics,
    gate_values,
    jacobian_norms,
    lyapunov_spectrum,
    precision_audit,
)
from tests.cells import CELLS, problem


def last(states):
    return states.h[-1].sum()


def test_gates_of_an_lstm_make_its_states(x64):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (9, 2, 3))
    resets = np.arange(9)[:, None] == np.array([3, 20])
    gates = gate_values(cell, params, xs, state, resets=resets)
    c = state.c
    for t in range(9):
        c = jnp.where(resets[t][:, None], 0, c)
        c = gates["forget"][t] * c + gates["input"][t] * gates["candidate"][t]
        h = gates["output"][t] * jnp.tanh(c)
    final, _ = unroll(cell, params, xs, state, resets=resets)
    np.testing.assert_allclose(c, final.c, atol=1e-12)
    np.testing.assert_allclose(h, final.h, atol=1e-12)


def test_gates_of_a_gru_make_its_states(x64):
    cell = lstmjax.gru(5, gate_activation=jax.nn.hard_sigmoid, activation=jax.nn.soft_sign)
    params, xs, state = problem(cell, (9, 2, 3))
    gates = gate_values(cell, params, xs, state)
    h = state.h
    for t in range(9):
        h = (1 - gates["update"][t]) * gates["candidate"][t] + gates["update"][t] * h
    np.testing.assert_allclose(h, unroll(cell, params, xs, state)[0].h, atol=1e-12)


def test_statistics_count_the_steps_that_were_taken(x64):
    cell = lstmjax.lstm(4, w_h_init=jax.nn.initializers.zeros, b_init=jax.nn.initializers.zeros)
    params = cell.init(jax.random.key(0), 1, jnp.float64)
    # Unit by unit the forget gate is σ(x): 3 is above 0.9, -3 below 0.1, 0 between.
    w_x = jnp.zeros_like(params.w_x).at[:, 4:8].set(1.0)
    xs = jnp.array([[3.0], [3.0], [-3.0], [0.0], [9.0]])[:, None]
    got = gate_statistics(cell, params._replace(w_x=w_x), xs, lengths=jnp.array([4]))
    values = 1 / (1 + np.exp(-np.array([3.0, 3.0, -3.0, 0.0])))
    np.testing.assert_allclose(got["forget"].mean, values.mean())
    np.testing.assert_array_equal(got["forget"].right_saturated, 0.5)
    np.testing.assert_array_equal(got["forget"].left_saturated, 0.25)
    np.testing.assert_allclose(got["forget"].timescale, 1 / (1 - values.mean()))
    assert got["input"].timescale is None
    assert sorted(got) == ["forget", "input", "output"]
    assert sorted(gate_statistics(CELLS["gru"], *problem(CELLS["gru"], (9, 2, 3)))) == ["reset", "update"]


def test_depth_norms_are_the_products_of_the_slides(x64):
    # One unit a layer: dL/dW_l is a product of slopes, weights and the layer's input.
    init, apply = feed_forward(depth=6, width=1, activation=jax.nn.sigmoid)
    params = init(jax.random.key(0), jnp.float64)
    x = jnp.array([0.7])
    got = depth_norms(lambda p: apply(p, x).sum(), params, learning_rate=0.5)
    y, inputs, slopes = 0.7, [], []
    for w, _ in params:
        inputs.append(y)
        y = 1 / (1 + np.exp(-float(w[0, 0]) * y))
        slopes.append(y * (1 - y))
    for layer in range(6):
        through = np.prod([slopes[k] * float(params[k].w[0, 0]) for k in range(layer + 1, 6)])
        d_w, d_b = through * slopes[layer] * inputs[layer], through * slopes[layer]
        norm, weight = np.hypot(d_w, d_b), abs(float(params[layer].w[0, 0]))
        np.testing.assert_allclose(got.gradient[layer], np.log(norm), rtol=1e-9)
        np.testing.assert_allclose(got.relative_change[layer], np.log(0.5 * norm / weight), rtol=1e-9)


def test_depth_of_the_logistic_network_costs_a_factor_of_four_a_layer():
    x = jax.random.normal(jax.random.key(1), (64, 32))

    def fall(activation):
        init, apply = feed_forward(30, 32, activation=activation, w_init=lstmjax.init.orthogonal())
        norms = depth_norms(lambda p: (apply(p, x) ** 2).mean(), init(jax.random.key(0)))
        return float(norms.gradient[1] - norms.gradient[-1]) / 28

    assert fall(jax.nn.sigmoid) < np.log(0.25)  # its slope is at most 1/4
    assert fall(jnp.tanh) > np.log(0.9)
    assert fall(jax.nn.sigmoid) < fall(jax.nn.relu) < fall(jnp.tanh)


def test_depth_of_stacked_recurrent_layers(x64):
    layers = [lstmjax.lstm(4)] * 3
    params = lstmjax.init_stack(layers, jax.random.key(0), 3, jnp.float64)
    xs = jax.random.normal(jax.random.key(1), (8, 2, 3))

    def loss(params):
        return lstmjax.unroll_stack(layers, params, xs)[1].sum()

    norms = depth_norms(loss, params)
    grads = jax.grad(loss)(params)
    for layer in range(3):
        size = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in grads[layer]))
        np.testing.assert_allclose(norms.gradient[layer], np.log(size), rtol=1e-12)


@pytest.mark.slow
def test_each_dtype_fails_where_its_numbers_end():
    # W_h = 0 and σ(b_f) = ½: the gradient of c is 2^-lag exactly, so every format ends at a lag one can name.
    cell = lstmjax.lstm(2, forget_bias=0.0, w_h_init=jax.nn.initializers.zeros)
    params = cell.init(jax.random.key(0), 1)
    audits = precision_audit(cell, params, jnp.zeros((400, 1)), lambda s: s.c[-1].sum())
    for name, smallest, least in (("float32", -126, -149), ("bfloat16", -126, -149), ("float16", -14, -24)):
        audit = audits[name]
        np.testing.assert_allclose(audit.rescaled, 0.5 * np.log(2) - np.arange(401) * np.log(2), rtol=1e-5)
        # Subnormals are kept or flushed as the hardware has it.
        assert -smallest < audit.wrong_from <= -least + 2
        assert audit.infinite_from is None


def test_an_exploding_gradient_is_infinite_from_a_lag_on():
    cell = lstmjax.rnn(2, activation=lambda z: z, w_h_init=lstmjax.init.identity(2.0))
    params = cell.init(jax.random.key(0), 1)
    audits = precision_audit(cell, params, jnp.zeros((40, 1)), last, dtypes=["float16", "float32"])
    assert audits["float16"].infinite_from == 16
    assert audits["float32"].infinite_from is None
    np.testing.assert_allclose(audits["float16"].rescaled[-1], 40 * np.log(2) + 0.5 * np.log(2), rtol=1e-3)


class TestNotFinite:
    """What is not finite is named, with the step at which it appears, by every instrument."""

    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (9, 2, 3), dtype=jnp.float32)
    instruments = pytest.mark.parametrize(
        "run",
        [
            lambda *args: adjoint_norms(args[0], *args[1:3], last),
            jacobian_norms,
            cell_highway,
            lyapunov_spectrum,
        ],
    )

    @instruments
    @pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
    def test_data(self, run, bad):
        with pytest.raises(FloatingPointError, match=r"xs at step 4, row \(1,\) holds (nan|inf)"):
            run(self.cell, self.params, self.xs.at[4, 1, 2].set(bad))

    @instruments
    def test_parameters(self, run):
        params = self.params._replace(w_h=self.params.w_h.at[0, 0].set(jnp.nan))
        with pytest.raises(FloatingPointError, match=r"params.w_h holds a NaN"):
            run(self.cell, params, self.xs)

    def test_states_that_explode(self):
        cell = lstmjax.rnn(2, activation=lambda z: z, w_h_init=lstmjax.init.identity(1e10))
        params = cell.init(jax.random.key(0), 3)
        with pytest.raises(FloatingPointError, match=r"state.h after so many steps: 5, row \(0,\) holds -?inf"):
            adjoint_norms(cell, params, 10 * self.xs, last)

    def test_padding_does_not_count(self):
        xs = self.xs.at[7:, 1].set(jnp.nan)
        norms = adjoint_norms(self.cell, self.params, xs, last, lengths=jnp.array([9, 7]))
        assert jnp.isfinite(norms.h[:7]).all()


def test_bare_steps_want_a_state():
    def step(params, state, x):
        return state + x, state

    with pytest.raises(ValueError, match="cell is a bare step, and no state is given"):
        lyapunov_spectrum(step, (), jnp.ones((3, 1)))


@pytest.mark.parametrize(
    ("call", "exception", "message"),
    [
        (lambda c, p, x: jacobian_norms(c, p, x, times=[10]), ValueError, "times run from 10 to 10; wanted 0 to T = 9"),
        (lambda c, p, x: jacobian_norms(c, p, x, method="svd"), ValueError, "method is 'svd'; wanted None, 'exact'"),
        (lambda c, p, x: lyapunov_spectrum(c, p, x, leading=11), ValueError, "leading is 11; wanted 1 to 10"),
        (lambda c, p, x: lyapunov_spectrum(c, p, x, burn_in=9), ValueError, "burn_in is 9; wanted 0 to T − 1 = 8"),
        (lambda c, p, x: precision_audit(c, p, x, last, dtypes=["int32"]), TypeError, "dtypes holds int32"),
        (lambda c, p, x: precision_audit(c, p, x, last, dtypes=["float64"]), ValueError, "jax_enable_x64"),
    ],
)
def test_bad_calls(call, exception, message, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    cell = CELLS["lstm"]
    with pytest.raises(exception, match=message):
        call(cell, *problem(cell, (9, 2, 3), dtype=jnp.float32)[:2])


def test_cells_without_what_is_asked_for():
    rnn = CELLS["rnn"]
    args = problem(rnn, (9, 2, 3), dtype=jnp.float32)
    with pytest.raises(TypeError, match="step names no gates; wanted a Recurrence with gates"):
        gate_values(rnn, *args)
    with pytest.raises(ValueError, match=r"parts \['h'\]; wanted c and h"):
        cell_highway(rnn, *args)
    with pytest.raises(ValueError, match="depth is 0"):
        feed_forward(0, 3, activation=jnp.tanh)
    with pytest.raises(ValueError, match="params has no entry"):
        depth_norms(lambda p: 0.0, [])
