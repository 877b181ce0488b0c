"""Jacobian norms and the cell highway, against products of explicit step Jacobians in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import state_history
from lstmjax.gradients import cell_highway, jacobian, jacobian_norms
from lstmjax.gradients.linear import linearised
from lstmjax.recurrence.scan import Timeline, advance
from tests.cells import CELLS, EVERY_CELL, HIDDEN, cases, problem


def explicit(cell, params, xs, state, mask=None, resets=None, detach=False):
    """∂s_T/∂s_t for every t, ``[T + 1, B, n, n]``, one step's ``jax.jacobian`` after another."""
    steps, batch = xs.shape[:2]
    leaves, tree = jax.tree.flatten(cell.initial_state((), xs.dtype))
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def flat_step(flat, x, valid, reset):
        state = jax.tree.unflatten(tree, jnp.split(flat, ends))
        seen = state._replace(h=jax.lax.stop_gradient(state.h)) if detach else state
        fresh = jax.tree.unflatten(tree, leaves)
        new, _ = advance(cell.step, params, fresh, seen, Timeline(x, valid, reset))
        return jnp.concatenate(jax.tree.leaves(new))

    states = state_history(cell, params, xs, state, include_initial=True, mask=mask, resets=resets)
    flat = jnp.concatenate(jax.tree.leaves(states), axis=-1)
    mask = jnp.ones((steps, batch), bool) if mask is None else mask
    resets = jnp.zeros((steps, batch), bool) if resets is None else resets
    jacobian = jax.vmap(jax.vmap(jax.jacobian(flat_step)))(flat[:-1], xs, mask, resets)
    products = [jnp.broadcast_to(jnp.eye(flat.shape[-1]), jacobian.shape[1:])]
    for j in jacobian[::-1]:
        products.append(products[-1] @ j)
    return jnp.stack(products[::-1])


def blocks_of(matrix, names):
    blocks = {"full": matrix}
    for n, a in enumerate(names):
        for m, b in enumerate(names):
            rows, columns = (slice(k * HIDDEN, (k + 1) * HIDDEN) for k in (n, m))
            blocks[a + b] = matrix[..., rows, columns]
    return blocks


@pytest.mark.parametrize("name", EVERY_CELL)
def test_equals_the_product_of_step_jacobians(name, x64):
    cell = CELLS[name]
    args = problem(cell, (12, 2, 3))
    mask, resets = np.arange(24).reshape(12, 2) % 5 != 1, np.arange(12)[:, None] == np.array([3, 20])
    got = jacobian_norms(cell, *args, mask=mask, resets=resets)
    matrices = blocks_of(explicit(cell, *args, mask=mask, resets=resets), args[2]._fields)
    for which, order in (("operator", 2), ("frobenius", "fro")):
        want = {k: jnp.log(jnp.linalg.norm(m, ord=order, axis=(-2, -1))) for k, m in matrices.items()}
        chex.assert_trees_all_close(getattr(got, which), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", cases(["lstm", "gru"], slow=["gru"]))
@pytest.mark.slow
def test_without_the_matrix(name, x64):
    cell = CELLS[name]
    args = problem(cell, (40, 2, 3))
    times = [0, 20, 39, 40]
    exact = jacobian_norms(cell, *args, times=times)
    free = jacobian_norms(cell, *args, times=times, method="matrix-free")
    for key in exact.operator:
        assert (free.operator[key] <= exact.operator[key] + 1e-9).all()  # a lower bound
        known = np.isfinite(exact.operator[key])
        np.testing.assert_allclose(free.operator[key][known], exact.operator[key][known], atol=0.05)
        np.testing.assert_allclose(free.frobenius[key][known], exact.frobenius[key][known], atol=0.3)
        assert (np.isneginf(free.operator[key]) == ~known).all()


def test_a_linear_network_has_the_singular_values_of_its_matrix_powers(x64):
    cell = CELLS["linear"]
    params, xs, state = problem(cell, (9, 2, 3))
    got = jacobian_norms(cell, params, xs, state)
    for t in range(10):
        # States are rows, so ∂h_T/∂h_t is the transpose of W_h^(T−t).
        values = np.linalg.svd(np.linalg.matrix_power(np.asarray(params.w_h), 9 - t))[1]
        np.testing.assert_allclose(got.operator["hh"][t], np.log(values.max()), atol=1e-12)
        np.testing.assert_allclose(got.frobenius["hh"][t], 0.5 * np.log((values**2).sum()), atol=1e-12)


@pytest.mark.slow
def test_lengths_are_truncation(x64):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (9, 2, 3))
    lengths = jnp.array([9, 4])
    got = jacobian_norms(cell, params, xs, state, lengths=lengths)
    short = jacobian_norms(cell, params, xs[:4, 1], jax.tree.map(lambda s: s[1], state))
    chex.assert_trees_all_close(jax.tree.map(lambda n: n[:5, 1], got), short, atol=1e-12)
    assert jnp.isnan(got.operator["full"][5:, 1]).all()
    some = jacobian_norms(cell, params, xs, state, lengths=lengths, times=[7, 2])
    chex.assert_trees_all_close(some, jax.tree.map(lambda n: n[np.array([7, 2])], got), atol=1e-12)


def test_float32_at_lag_10000_equals_a_rescaled_float64_product():
    # The plain product is far below float32's smallest number, 1e-45.
    cell = lstmjax.lstm(4, forget_bias=-1.0)
    params, xs, state = problem(cell, (10_000, 3), dtype=jnp.float32)
    got = jacobian_norms(cell, params, xs, state, times=[0, 5000])
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: a.astype(jnp.float64), (params, xs, state))
        states = state_history(cell, *wide, include_initial=True)
        pull = jax.jit(jax.vmap(jax.jacobian(lambda s, x: cell.step(wide[0], s, x)[0]), in_axes=(0, 0)))
        before = jax.tree.map(lambda s: s[:-1], states)
        rows = pull(before, wide[1])
        step_jacobians = np.concatenate(
            [np.concatenate([rows.c.c, rows.c.h], -1), np.concatenate([rows.h.c, rows.h.h], -1)], axis=-2
        )
    product, log_scale, want = np.eye(8), 0.0, {}
    for t in range(9_999, -1, -1):
        product = product @ step_jacobians[t]
        size = np.abs(product).max()
        product, log_scale = product / size, log_scale + np.log(size)
        want[t] = np.log(np.linalg.norm(product, ord=2)) + log_scale
    assert want[0] < np.log(1e-45) * 10
    np.testing.assert_allclose(got.operator["full"], [want[0], want[5000]], rtol=1e-4)


def test_tanh_is_bounded_by_the_operator_norm_and_not_by_the_spectral_radius(x64):
    # Spectral radius 0 (a nilpotent matrix) and an exploding gradient all the same, while ‖W‖ bounds every product.
    cell = lstmjax.rnn(2)
    w_h = jnp.array([[0.0, 4.0], [0.0, 0.0]])
    params = lstmjax.RNNParams(jnp.eye(2), w_h, jnp.zeros(2))
    assert np.abs(np.linalg.eigvals(w_h)).max() == 0
    got = jacobian_norms(cell, params, jnp.zeros((1, 2)), times=[0]).operator["hh"][0]
    np.testing.assert_allclose(got, np.log(4.0), atol=1e-12)

    wide = lstmjax.rnn(16, w_h_init=lstmjax.init.orthogonal(1.3))
    params, xs, state = problem(wide, (30, 3))
    bound = np.log(np.linalg.norm(params.w_h, ord=2)) * (30 - np.arange(31))
    assert (jacobian_norms(wide, params, xs, state).operator["hh"] <= bound + 1e-9).all()


def test_the_highway_is_the_jacobian_with_the_gradient_stopped_at_h(x64):
    cell = CELLS["lstm"]
    args = problem(cell, (12, 2, 3))
    mask = np.arange(24).reshape(12, 2) % 5 != 1
    parts = cell_highway(cell, *args, mask=mask)
    full = blocks_of(explicit(cell, *args, mask=mask), "ch")["cc"]
    alone = blocks_of(explicit(cell, *args, mask=mask, detach=True), "ch")["cc"]
    forget = jnp.exp(parts.log_forget)
    np.testing.assert_allclose(jax.vmap(jax.vmap(jnp.diag))(forget), alone, atol=1e-12)

    def log_norm(matrix):
        return jnp.log(jnp.linalg.norm(matrix, axis=(-2, -1)))

    np.testing.assert_allclose(parts.highway, log_norm(alone), atol=1e-9)
    np.testing.assert_allclose(parts.full, log_norm(full), atol=1e-9)
    np.testing.assert_allclose(parts.gates[:-2], log_norm(full - alone)[:-2], atol=1e-7)
    assert jnp.isneginf(parts.gates[-1]).all()
    ratio = jnp.linalg.norm(full - alone, axis=(-2, -1)) / jnp.linalg.norm(alone, axis=(-2, -1))
    np.testing.assert_allclose(parts.share, ratio / (1 + ratio), atol=1e-9)


def test_without_recurrent_weights_the_highway_is_everything(x64):
    cell = lstmjax.lstm(6, forget_bias=2.0, w_h_init=jax.nn.initializers.zeros)
    params = cell.init(jax.random.key(0), 3, jnp.float64)
    parts = cell_highway(cell, params, jnp.zeros((1000, 3)))
    assert jnp.isneginf(parts.gates).all()
    assert (parts.share == 0).all()
    np.testing.assert_allclose(parts.full, parts.highway, rtol=1e-14)
    np.testing.assert_allclose(parts.log_forget[0] / 1000, np.log(1 / (1 + np.exp(-2.0))), atol=1e-12)


@pytest.mark.slow
def test_highway_with_lengths_and_resets(x64):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (9, 2, 3))
    parts = cell_highway(cell, params, xs, state, lengths=jnp.array([9, 4]))
    short = cell_highway(cell, params, xs[:4], state)
    chex.assert_trees_all_close(*(jax.tree.map(lambda a: a[:5, 1], p) for p in (parts, short)), atol=1e-12)
    assert jnp.isnan(parts.full[5:, 1]).all()
    reset = cell_highway(cell, params, xs, state, resets=np.arange(9)[:, None] == np.array([3, 3]))
    assert jnp.isneginf(reset.full[:4]).all()
    assert jnp.isfinite(reset.full[4:]).all()


@pytest.mark.parametrize("method", cases(["exact", "matrix-free"], slow=["matrix-free"]))
def test_memory_for_all_lags_is_not_quadratic_in_time(method):
    run = {"exact": jacobian._exact, "matrix-free": jacobian._matrix_free}[method]
    cell = CELLS["lstm"]

    def temp_bytes(steps):
        linear = linearised(cell, *problem(cell, (steps, 3), dtype=jnp.float32))
        # Matrix-free, every lag is a run of its own, all side by side: the times are what grows with T.
        times = tuple(range(steps + 1)) if method == "exact" else (0, steps // 2)
        return run.lower(linear, times).compile().memory_analysis().temp_size_in_bytes

    assert temp_bytes(800) < 2.5 * temp_bytes(400)
