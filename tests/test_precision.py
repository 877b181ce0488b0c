"""How exact the core is: at both ends of a gate, in narrow formats over long sequences, in lengths of any dtype."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import lstmjax
from lstmjax import gates, unroll
from lstmjax.gradients import adjoint_norms
from tests.cells import cases
from tests.test_any_cell import weights

SHUT = np.array([-87.0, -60.0, -18.0, -17.0, -14.0, -2.0, 0.0, 1.0, 9.0, 17.0, 40.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gates_are_exact_at_both_ends(dtype, x64):
    z = SHUT.astype(dtype)
    exact = SHUT.astype(np.longdouble)
    e = np.exp(-np.abs(exact))
    sigmoid, slope = np.where(exact < 0, e, 1) / (1 + e), e / (1 + e) ** 2
    e2 = np.exp(-2 * np.abs(exact))
    sech = 4 * e2 / (1 + e2) ** 2
    rtol = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(jax.jit(gates.sigmoid)(z), sigmoid.astype(dtype), rtol=rtol)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(gates.sigmoid)))(z), slope.astype(dtype), rtol=rtol)
    inside = np.abs(z) < 44  # tanh' is subnormal in float32 beyond
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(gates.tanh)))(z)[inside], sech.astype(dtype)[inside], rtol=rtol
    )
    # σ'' = σ' (σ(−z) − σ(z)), tanh'' = −2 tanh tanh'.
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(jax.grad(gates.sigmoid))))(z),
        (slope * np.where(exact < 0, 1 - e, e - 1) / (1 + e)).astype(dtype), rtol=rtol, atol=0,
    )  # fmt: skip
    np.testing.assert_allclose(
        jax.jit(jax.vmap(jax.grad(jax.grad(gates.tanh))))(z)[inside],
        (-2 * np.tanh(exact) * sech).astype(dtype)[inside], rtol=rtol, atol=0,
    )  # fmt: skip


def biased(b_i=0.0, b_f=0.0, b_g=0.0, b_o=0.0):
    """An LSTM of two units with these biases and no weights."""
    cell = lstmjax.lstm(2)
    params = jax.tree.map(np.zeros_like, weights(cell))
    return cell, params._replace(b=np.repeat(np.array([b_i, b_f, b_g, b_o], np.float32), 2))


@pytest.mark.parametrize("b_f", [-18.0, -40.0, -80.0])
@pytest.mark.parametrize("bare", [False, True], ids=["parts", "step"])
def test_a_shut_forget_gate_passes_a_gradient(b_f, bare):
    cell, params = biased(b_f=b_f, b_g=1.0)
    cell = cell.replace(step=lambda *a: lstmjax.lstm_step(*a)) if bare else cell
    norms = adjoint_norms(cell, params, np.zeros((30, 3), np.float32), lambda states: states.c[-1].sum())
    np.testing.assert_allclose((norms.c[0] - norms.c[30]) / 30, b_f, rtol=1e-6)


@pytest.mark.parametrize("implementation", ["fused", "scan"])
@pytest.mark.parametrize("b_i", [-14.0, -17.0, -60.0])
def test_a_shut_input_gate_lets_its_part_in(b_i, implementation):
    cell, params = biased(b_i=b_i, b_f=-100.0, b_g=1.0)

    def c(params):
        return unroll(cell, params, np.zeros((2, 3), np.float32), implementation=implementation)[0].c[0]

    value, grad = jax.jit(jax.value_and_grad(c))(params)
    right = np.exp(np.float64(b_i)) * np.tanh(1.0)
    np.testing.assert_allclose(value, right / (1 + np.exp(b_i)), rtol=1e-6)
    np.testing.assert_allclose(grad.b[0], right, rtol=3e-6)


def test_a_gru_that_keeps_all_but_a_little():
    cell = lstmjax.gru(2)
    params = jax.tree.map(np.zeros_like, weights(cell))._replace(b=np.array([0, 0, 20, 20, 1, 1], np.float32))
    value = unroll(cell, params, np.zeros((1, 3), np.float32))[0].h[0]
    np.testing.assert_allclose(value, np.exp(-20.0) * np.tanh(1.0), rtol=1e-6)


# Narrow formats.


@functools.cache
def chrono(steps=1000, hidden=32, rows=8):
    cell = lstmjax.lstm(hidden, b_init=lstmjax.init.chrono(steps))
    params = jax.tree.map(lambda a: a / np.sqrt(hidden), weights(cell))
    b = np.asarray(cell.init(jax.random.key(0), 3).b)
    xs = np.random.default_rng(1).normal(size=(steps, rows, 3)).astype(np.float32)
    return cell, params._replace(b=b), xs


def narrowed(tree, dtype):
    """The values as the narrow format has them, in that format and in float32."""
    narrow = jax.tree.map(lambda a: a.astype(dtype), tree)
    return narrow, jax.tree.map(lambda a: a.astype(np.float32), narrow)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("implementation", ["fused", "scan"])
def test_the_memory_of_a_thousand_steps_in_a_narrow_format(dtype, implementation):
    cell, params, xs = chrono()
    (narrow, narrow_xs), (exact, exact_xs) = narrowed((params, xs), dtype)
    run = jax.jit(functools.partial(unroll, cell, implementation=implementation))
    got, want = run(narrow, narrow_xs)[0], run(exact, exact_xs)[0]
    assert got.c.dtype == got.h.dtype == np.float32
    for part in ("c", "h"):
        off = np.linalg.norm(getattr(got, part) - getattr(want, part)) / np.linalg.norm(getattr(want, part))
        assert off < 0.01


@pytest.mark.parametrize("implementation", ["fused", "scan"])
@pytest.mark.parametrize("name", cases(MIXED := ["lstm", "gru", "rnn", "projected", "softplus"], slow=MIXED[1:4]))
def test_weight_gradients_in_bfloat16(name, implementation):
    cell = {
        "lstm": lstmjax.lstm(16), "gru": lstmjax.gru(16), "rnn": lstmjax.rnn(16),
        "projected": lstmjax.projected_lstm(16, 8), "softplus": lstmjax.lstm(16, activation=jax.nn.softplus),
    }[name]  # fmt: skip
    params = jax.tree.map(lambda a: 0.4 * a, weights(cell))
    xs = np.random.default_rng(1).normal(size=(300, 32, 3)).astype(np.float32)
    (narrow, narrow_xs), (exact, exact_xs) = narrowed((params, xs), ml_dtypes.bfloat16)
    grad = jax.jit(jax.grad(lambda p, xs: unroll(cell, p, xs, implementation=implementation)[1].sum()))
    got, want = grad(narrow, narrow_xs), grad(exact, exact_xs)
    for field in params._fields:
        a, b = (np.asarray(getattr(g, field), np.float64) for g in (got, want))
        assert np.linalg.norm(a - b) < 0.01 * np.linalg.norm(b), field


def test_gradients_of_ones_own_step_in_bfloat16_are_summed_over_time_in_float32():
    def step(params, h, x):
        h = (0.5 * h.astype(x.dtype) + x * params).astype(h.dtype)
        return h, h

    cell = lstmjax.Cell(lambda *_: None, lambda batch=(), dtype=jnp.float32: jnp.zeros((*batch, 3), dtype), step)
    xs = np.ones((2000, 1, 3), ml_dtypes.bfloat16)
    grad = jax.jit(jax.grad(lambda p: unroll(cell, p, xs)[1].sum()))(np.ones(3, ml_dtypes.bfloat16))
    np.testing.assert_allclose(grad.astype(np.float32), 2 * 2000, rtol=5e-3)


# Whole numbers of any dtype.


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("compiled", [False, True], ids=["known", "traced"])
def test_lengths_in_any_integer_dtype(dtype, compiled, x64):
    count = lstmjax.Cell(
        lambda *_: None, lambda batch=(), dtype=jnp.float32: jnp.zeros(batch, jnp.int32), lambda p, n, x: (n + 1, n)
    )
    xs = np.zeros((300, 2, 1), np.float32)

    def run(lengths):
        return unroll(count, None, xs, lengths=lengths)

    run = jax.jit(run) if compiled else run
    assert run(np.array([10, 20], dtype))[0].tolist() == [10, 20]
    if np.iinfo(dtype).max > 2**31 and compiled:  # what is not known to be too long counts as T
        assert run(np.array([np.iinfo(dtype).max, 20], dtype))[0].tolist() == [300, 20]
