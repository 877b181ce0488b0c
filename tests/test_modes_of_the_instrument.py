"""Every public function of the instrument under JAX's strictest settings, all at once."""

import contextlib
import inspect
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

import lstmjax
from lstmjax import gradients
from lstmjax.gradients import (
    adjoint_norms,
    cell_highway,
    decay_fit,
    depth_norms,
    entropy_rate,
    feed_forward,
    fixed_points,
    flossing_penalty,
    gate_statistics,
    gate_values,
    gradient_report,
    gradient_row,
    input_norms,
    integrated_gradients,
    jacobian_norms,
    kaplan_yorke_dimension,
    linear_memory,
    lyapunov_spectrum,
    memory_capacity,
    per_step_param_grads,
    precision_audit,
    rate_differences,
    truncation_bias,
    truncation_window,
    with_output,
)
from tests.cells import cases


@pytest.fixture(autouse=True)
def _strictest():
    with contextlib.ExitStack() as settings:
        settings.enter_context(jax.debug_nans(True))
        settings.enter_context(jax.numpy_rank_promotion("raise"))
        settings.enter_context(jax.numpy_dtype_promotion("strict"))
        yield


def step(params, state, x):
    """An LSTM without forget bias, written so that no array is spread over axes that it does not have."""
    z = x @ params.w_x + state.h @ params.w_h
    i, f, g, o = jnp.split(z + params.b.reshape((1,) * (z.ndim - 1) + params.b.shape), 4, axis=-1)
    c = jax.nn.sigmoid(f) * state.c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return lstmjax.LSTMState(c, h), h


class Weights(NamedTuple):
    """Those of an LSTM, which this is not: it has no gates to be asked for."""

    w_x: Array
    w_h: Array
    b: Array


def make(hidden_size):
    lstm = lstmjax.lstm(hidden_size)
    return lstmjax.Cell(lambda *args: Weights(*lstm.init(*args)), lstm.initial_state, step)


def bare_step(params, c, x):
    state, h = step(params, lstmjax.LSTMState(c, jnp.tanh(c)), x)
    return state.c, h


# Its state is one array, without a name.
BARE = lstmjax.Cell(make(2).init, lambda b=(), dtype=jnp.float32: jnp.zeros((*b, 2), dtype), bare_step)
CELL, GATED = make(2), lstmjax.lstm(2)
PARAMS = GATED.init(jax.random.key(0), 3)
XS = jax.random.normal(jax.random.key(1), (4, 2, 3))
LENGTHS = jnp.array([4, 2])
MASK = np.array([[True, True], [True, False], [False, True], [True, True]])


def last(states):
    return states.h[-1].sum()


def deep(params, x):
    _, apply = feed_forward(2, 3, activation=jnp.tanh)
    return apply(params, x).sum()


# name: a call of (params, xs, options).
CALLS = {
    "adjoint_norms": lambda p, x, **o: adjoint_norms(CELL, p, x, last, **o),
    "input_norms": lambda p, x, **o: input_norms(CELL, p, x, last, **o),
    "integrated_gradients": lambda p, x, **o: integrated_gradients(CELL, p, x, last, points=2, **o),
    "jacobian_norms": lambda p, x, **o: jacobian_norms(CELL, p, x, **o),
    "jacobian_norms, matrix-free": lambda p, x, **o: jacobian_norms(CELL, p, x, method="matrix-free", times=[1], **o),
    "cell_highway": lambda p, x, **o: cell_highway(CELL, p, x, **o),
    "per_step_param_grads": lambda p, x, **o: per_step_param_grads(CELL, p, x, last, **o),
    "truncation_bias": lambda p, x, **o: truncation_bias(CELL, p, x, lambda s: s.h[1:].sum(), [1, 4], **o),
    "gradient_row": lambda p, x, **o: gradient_row(GATED, p, x, last, **o),
    "gate_values": lambda p, x, **o: gate_values(GATED, p, x, **o),
    "gate_statistics": lambda p, x, **o: gate_statistics(GATED, p, x, **o),
    "lyapunov_spectrum": lambda p, x: lyapunov_spectrum(CELL, p, x, leading=1),
    "flossing_penalty": lambda p, x: flossing_penalty(CELL, p, x),
    "kaplan_yorke_dimension": lambda p, x: kaplan_yorke_dimension(x),
    "entropy_rate": lambda p, x: entropy_rate(x),
    "decay_fit": lambda p, x: decay_fit(jnp.arange(4), x.reshape(6, 4)),
    "depth_norms": lambda p, x: depth_norms(
        lambda p: deep(p, x[0]), feed_forward(2, 3, activation=jnp.tanh)[0](jax.random.key(0))
    ),
    "with_output": lambda p, x: adjoint_norms(with_output(BARE, 3), p, x, last),
    "feed_forward": lambda p, x: deep(feed_forward(2, 3, activation=jnp.tanh)[0](jax.random.key(0)), x),
}
# Those that look at values on the host, with the calls of which the numbers are taken there.
ON_THE_HOST = {
    "rate_differences": lambda: rate_differences({"LSTM": np.ones(3), "GRU": np.zeros(3)}),
    "truncation_window": lambda: truncation_window(CELL, PARAMS, XS, lambda s: s.h[1:].sum()),
    "fixed_points": lambda: fixed_points(CELL, PARAMS, XS[0, 0], lstmjax.LSTMState(*jnp.zeros((2, 3, 2)))),
    "linear_memory": lambda: linear_memory(np.diag([0.5, 0.2]), 3),
    "memory_capacity": lambda: memory_capacity(CELL, PARAMS, np.sin(np.arange(60.0)), 2, into=np.ones(3), washout=0),
    "precision_audit": lambda: precision_audit(CELL, PARAMS, XS, last),
    "gradient_report": lambda: gradient_report(
        {"LSTM": make}, (XS, jnp.array([0, 1])), outputs=2, hidden_size=2, seeds=1, match="parameters",
        loss_fn=lambda y, labels: optax.losses.softmax_cross_entropy_with_integer_labels(y, labels).sum(),
    ).table(),
}  # fmt: skip


# What compiles longest.
DEAR = ["jacobian_norms, matrix-free", "gradient_row", "truncation_bias", "cell_highway"]
WITH_LENGTHS = [n for n in CALLS if "lengths" in inspect.signature(getattr(gradients, n.split(",")[0])).parameters]


def test_nothing_is_left_out():
    public = {name for name in gradients.__all__ if inspect.isfunction(getattr(gradients, name))}
    assert public == {name.split(",")[0] for name in CALLS} | set(ON_THE_HOST)


@pytest.mark.parametrize("name", cases(CALLS, slow=DEAR))
def test_under_jit(name):
    jax.block_until_ready(jax.jit(CALLS[name])(PARAMS, XS))


@pytest.mark.parametrize("name", cases(ON_THE_HOST, slow=["gradient_report", "precision_audit", "truncation_window"]))
def test_on_the_host(name):
    assert ON_THE_HOST[name]()


@pytest.mark.parametrize("name", cases(WITH_LENGTHS, slow=DEAR))
def test_blanks_are_no_faults(name):
    # NaN after a row's end is what is promised, and no fault of the computation.
    got = CALLS[name](PARAMS, XS, lengths=LENGTHS, mask=MASK)
    assert jax.tree.leaves(got)


@pytest.mark.parametrize("run", [adjoint_norms, cell_highway])
def test_a_fault_is_found_all_the_same(run):
    params = PARAMS._replace(b=PARAMS.b.at[0].set(jnp.inf), w_x=PARAMS.w_x.at[:, 0].set(-jnp.inf))
    with pytest.raises(FloatingPointError):
        jax.jit(lambda p: CALLS[run.__name__](p, jnp.abs(XS)))(params)
