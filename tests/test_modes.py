"""JAX's strict modes, and sizes of zero: everything public of the core works in them."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import init_stack, state_history, unroll, unroll_stack
from tests.cells import cases, problem

CELLS = {
    "lstm": lstmjax.lstm(4),
    "gru": lstmjax.gru(4),
    "rnn": lstmjax.rnn(4),
    "projected": lstmjax.projected_lstm(4, 2),
    "a step": lstmjax.lstm(4).replace(step=lambda *a: lstmjax.lstm_step(*a)),
}


@contextlib.contextmanager
def finite():
    with jax.debug_nans(True), jax.debug_infs(True):
        yield


MODES = {
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "debug_nans and debug_infs": finite,
    "disable_jit": lambda: jax.disable_jit(),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", cases(CELLS, slow=["gru", "rnn", "projected"]))
def test_values_and_gradients_in_a_mode(name, mode):
    cell = CELLS[name]
    params, xs, state = problem(cell, (6, 2, 3), dtype=jnp.float32)
    padded = np.where(np.arange(6)[:, None, None] < 4, xs, np.nan) if mode == "rank promotion" else xs

    def loss(params, state):
        final, ys = unroll(cell, params, padded, state, lengths=np.array([4, 0]), resets=RESETS, remat_block=4)
        states = state_history(cell, params, padded, lengths=np.array([4, 0]), include_initial=True)
        return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves((final, ys, states)))

    with MODES[mode]():
        grads = (loss if mode == "disable_jit" else jax.jit(jax.grad(loss)))(params, state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


RESETS = np.arange(12).reshape(6, 2) % 5 == 2


def test_a_stack_under_rank_promotion():
    layers = [(lstmjax.lstm(4), lstmjax.lstm(4)), lstmjax.gru(3)]
    with jax.numpy_rank_promotion("raise"):
        params = init_stack(layers, jax.random.key(0), 3)
        ys = jax.jit(lambda p: unroll_stack(layers, p, jnp.ones((5, 2, 3)), lengths=np.array([5, 2]))[1])(params)
    assert ys.shape == (5, 2, 3)


@pytest.mark.parametrize("name", cases(CELLS, slow=["rnn", "projected"]))
@pytest.mark.parametrize(("steps", "rows", "inputs"), [(0, 2, 3), (5, 0, 3), (5, 2, 0), (0, 0, 0)])
@pytest.mark.parametrize("block", [None, 2])
def test_sizes_of_zero(name, steps, rows, inputs, block):
    cell = CELLS[name]
    params, xs, state = problem(cell, (steps, rows, inputs), dtype=jnp.float32)

    def loss(params, state):
        final, ys = unroll(cell, params, xs, state, lengths=np.zeros(rows, int), remat_block=block)
        return ys.sum() + sum(leaf.sum() for leaf in jax.tree.leaves(final)), ys

    grads, ys = jax.jit(jax.grad(loss, argnums=1, has_aux=True))(params, state)
    assert ys.shape[:2] == (steps, rows)
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(grads))  # no step is taken


@pytest.mark.parametrize("name", ["lstm", "a step"])
def test_rematerialised_with_a_time_left_open(name):
    cell = CELLS[name]
    params, xs, _ = problem(cell, (11, 2, 3), dtype=jnp.float32)
    grad = jax.jit(jax.grad(lambda params, xs: (unroll(cell, params, xs, remat_block=4)[1] ** 2).sum()))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("t, 2, 3"), jnp.float32)
    exported = jax.export.export(grad)(params, shape)
    for steps in (3, 8, 11):
        got, want = exported.call(params, xs[:steps]), grad(params, xs[:steps])
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_mixed_narrow_dtypes():
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (6, 2, 3), dtype=jnp.float32)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    state = jax.tree.map(lambda s: s.astype(jnp.float16), state)
    final, ys = unroll(cell, params, xs, state)
    assert {leaf.dtype for leaf in (*final, ys)} == {jnp.dtype(jnp.float16)}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((1, 1, 1), ValueError, "layer 0: params has 3 entries; wanted 2, for the two cells of a bidirectional layer"),
        ((1,), ValueError, "layer 0: params has 1 entries; wanted 2"),
        ({}, TypeError, "layer 0: params is a dict; wanted a pair"),
    ],
)
def test_a_pair_of_cells_wants_a_pair_of_parameters(given, error, message):
    cell = CELLS["lstm"]
    with pytest.raises(error, match=message):
        unroll_stack([(cell, cell)], [given], jnp.ones((2, 1, 3)))
