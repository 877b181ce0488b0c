"""Identities of the unroll. Each holds for every cell, in float64 to 1e-12 unless a test says otherwise."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lstmjax
from lstmjax import state_history, unroll
from tests.cells import CELLS, problem

TOLERANCE = {"atol": 1e-12, "rtol": 1e-12}
steps = st.integers(0, 9)
batches = st.lists(st.integers(0, 3), max_size=2).map(tuple)
names = st.sampled_from(sorted(CELLS))
seeds = st.integers(0, 2**16)


def same(a, b):
    chex.assert_trees_all_close(a, b, **TOLERANCE)


@pytest.fixture(autouse=True)
def _x64(x64):
    pass


def loop(cell, params, xs, state):
    ys = []
    for x in xs:
        state, y = cell.step(params, state, x)
        ys.append(y)
    return state, jnp.stack(ys) if ys else jnp.zeros((0, *jax.tree.leaves(state)[0].shape))


@given(name=names, t=steps, batch=batches, seed=seeds)
def test_loop_is_scan(name, t, batch, seed):
    cell = CELLS[name]
    args = problem(cell, (t, *batch, 3), seed)
    same(unroll(cell, *args), loop(cell, *args))


@pytest.mark.parametrize("name", CELLS)
def test_gradients_of_loop_are_gradients_of_scan(name):
    cell = CELLS[name]
    args = problem(cell, (7, 2, 3))

    def loss(run):
        def of(*args):
            final, ys = run(cell, *args)
            return jnp.sin(ys).sum() + sum((s**2).sum() for s in jax.tree.leaves(final))

        return jax.grad(of, argnums=(0, 1, 2))

    same(loss(unroll)(*args), loss(loop)(*args))


@given(name=names, t=steps, seed=seeds)
def test_vmap_is_a_batch_axis(name, t, seed):
    cell = CELLS[name]
    params, xs, state = problem(cell, (t, 4, 3), seed)

    def one(x, s):
        return unroll(cell, params, x, s)

    same(jax.vmap(one, in_axes=(1, 0), out_axes=(0, 1))(xs, state), unroll(cell, params, xs, state))


@given(name=names, t=steps, batch=batches, seed=seeds)
def test_reverse_is_flip(name, t, batch, seed):
    cell = CELLS[name]
    params, xs, state = problem(cell, (t, *batch, 3), seed)
    final, ys = unroll(cell, params, xs[::-1], state)
    same(unroll(cell, params, xs, state, reverse=True), (final, ys[::-1]))


@given(name=names, t=steps, seed=seeds, reverse=st.booleans(), data=st.data())
def test_lengths_are_truncation(name, t, seed, reverse, data):
    cell = CELLS[name]
    lengths = data.draw(st.lists(st.integers(0, t), min_size=3, max_size=3))
    params, xs, state = problem(cell, (t, 3, 3), seed)
    dirty = jnp.where(jnp.arange(t)[:, None, None] < jnp.array(lengths)[:, None], xs, jnp.nan)
    final, ys = unroll(cell, params, dirty, state, lengths=jnp.array(lengths), reverse=reverse)
    for row, n in enumerate(lengths):
        alone = jax.tree.map(lambda s, row=row: s[row], state)
        final_row, ys_row = unroll(cell, params, xs[:n, row], alone, reverse=reverse)
        same(jax.tree.map(lambda s, row=row: s[row], final), final_row)
        same(ys[:n, row], ys_row)
        assert not ys[n:, row].any()


@given(name=names, t=steps, seed=seeds, reverse=st.booleans(), data=st.data())
def test_mask_leaves_out_steps(name, t, seed, reverse, data):
    cell = CELLS[name]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=t, max_size=t)), bool)
    params, xs, state = problem(cell, (t, 3), seed)
    final, ys = unroll(cell, params, xs, state, mask=mask, reverse=reverse)
    final_kept, ys_kept = unroll(cell, params, xs[mask], state, reverse=reverse)
    same((final, ys[mask]), (final_kept, ys_kept))
    assert not ys[~mask].any()


@pytest.mark.parametrize("name", CELLS)
def test_mask_of_ones_is_no_mask(name):
    cell = CELLS[name]
    params, xs, state = problem(cell, (6, 2, 3))
    whole = unroll(cell, params, xs, state)
    same(unroll(cell, params, xs, state, mask=jnp.ones((6, 2), bool)), whole)
    same(unroll(cell, params, xs, state, lengths=jnp.array([6, 6])), whole)
    same(unroll(cell, params, xs, state, resets=jnp.zeros((6, 2), bool)), whole)


@given(name=names, seed=seeds, at=st.integers(0, 7), reverse=st.booleans())
def test_a_reset_parts_two_sequences(name, seed, at, reverse):
    cell = CELLS[name]
    params, xs, state = problem(cell, (8, 3), seed)
    resets = jnp.arange(8) == at
    final, ys = unroll(cell, params, xs, state, resets=resets, reverse=reverse)
    if reverse:
        # The later sequence is run first, from the state given; the earlier one, if any, from a fresh state.
        final_late, late = unroll(cell, params, xs[at:], state, reverse=True)
        final_early, early = unroll(cell, params, xs[:at], reverse=True)
        same((final, ys), (final_early if at else final_late, jnp.concatenate([early, late])))
    else:
        _, early = unroll(cell, params, xs[:at], state)
        final_late, late = unroll(cell, params, xs[at:])
        same((final, ys), (final_late, jnp.concatenate([early, late])))


def test_a_reset_acts_though_the_step_is_skipped_but_not_in_padding():
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (6, 3))
    resets, at = jnp.arange(6) == 2, jnp.arange(6) != 2
    final, _ = unroll(cell, params, xs, state, resets=resets, mask=at)
    same(final, unroll(cell, params, xs[3:])[0])
    final, _ = unroll(cell, params, xs, state, resets=resets, lengths=jnp.array(2))
    same(final, unroll(cell, params, xs[:2], state)[0])


def test_no_gradient_passes_a_reset():
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (6, 3))
    resets = jnp.arange(6) == 3
    grad = jax.grad(lambda xs: unroll(cell, params, xs, state, resets=resets)[0].h.sum())(xs)
    assert not grad[:3].any()
    assert grad[3:].all()


@given(
    name=names,
    t=steps,
    seed=seeds,
    block=st.integers(1, 10),
    reverse=st.booleans(),
    unrolled=st.integers(1, 3),
)
def test_checkpointed_is_not_checkpointed(name, t, seed, block, reverse, unrolled):
    cell = CELLS[name]
    args = problem(cell, (t, 2, 3), seed)
    options = {"reverse": reverse, "lengths": jnp.array([t, t // 2])}

    def grads(**more):
        def loss(*args):
            final, ys = unroll(cell, *args, **options, **more)
            return jnp.sin(ys).sum() + sum((s**2).sum() for s in jax.tree.leaves(final))

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(*args)

    same(grads(remat_block=block, scan_unroll=unrolled), grads())


def test_checkpointing_saves_memory():
    cell = lstmjax.lstm(32)
    params, xs, _ = problem(cell, (512, 8, 4))

    def temp_bytes(**options):
        grad = jax.grad(lambda p: unroll(cell, p, xs, **options)[1].sum())
        return jax.jit(grad).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temp_bytes(remat_block=16) < 0.5 * temp_bytes()


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("cut", [0, 1, 5, 12])
@pytest.mark.parametrize("implementation", ["fused", "scan"])
def test_streaming_is_bit_for_bit(name, cut, implementation):
    cell, run = CELLS[name], functools.partial(unroll, implementation=implementation)
    params, xs, state = problem(cell, (12, 2, 3), dtype=jnp.float32)
    middle, first = run(cell, params, xs[:cut], state)
    final, second = run(cell, params, xs[cut:], middle)
    whole = run(cell, params, xs, state)
    chex.assert_trees_all_equal((final, jnp.concatenate([first, second])), whole)


@given(name=names, t=steps, batch=batches, seed=seeds, reverse=st.booleans())
def test_history_holds_every_state(name, t, batch, seed, reverse):
    cell = CELLS[name]
    params, xs, state = problem(cell, (t, *batch, 3), seed)
    final, ys = unroll(cell, params, xs, state, reverse=reverse)
    history = state_history(cell, params, xs, state, include_initial=True, reverse=reverse)
    first, last = (-1, 0) if reverse else (0, -1)
    same(jax.tree.map(lambda s: s[first], history), state)
    same(jax.tree.map(lambda s: s[last], history), final)
    after = slice(None, -1) if reverse else slice(1, None)
    same(history.h[after], ys)
    same(
        jax.tree.map(lambda s: s[after], history),
        state_history(cell, params, xs, state, reverse=reverse),
    )


def test_history_of_a_skipped_step_repeats_the_state():
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (5, 3))
    history = state_history(cell, params, xs, state, mask=jnp.arange(5) != 2)
    same(history.c[2], history.c[1])
    assert history.c[2].any()


def test_causality():
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (9, 3))
    for run, later in ((False, np.triu), (True, np.tril)):
        jacobian = jax.jacrev(lambda xs, run=run: unroll(cell, params, xs, state, reverse=run)[1])(xs)
        touched = np.abs(jacobian).sum((1, 3)).T  # [input time, output time]
        np.testing.assert_array_equal(touched, later(touched))
        assert later(touched).any()


def test_any_cell_will_do():
    # A bare bundle of lambdas, with a state and an output of its own form.
    counter = lstmjax.Cell(
        init=lambda key, size, dtype=jnp.float32: jnp.ones((), dtype),
        initial_state=lambda batch=(), dtype=jnp.float32: {"n": jnp.zeros(batch, dtype)},
        step=lambda p, s, x: ({"n": s["n"] + p}, {"sum": x.sum(-1), "n": s["n"]}),
    )
    final, ys = unroll(counter, jnp.ones(()), jnp.ones((4, 2, 3)), lengths=jnp.array([4, 2]))
    assert final["n"].tolist() == [4.0, 2.0]
    assert ys["sum"][:, 1].tolist() == [3.0, 3.0, 0.0, 0.0]


def test_cells_that_share_a_step_share_a_program():
    from lstmjax.unroll import run

    xs = jnp.ones((6, 2, 3), jnp.float32)
    run.clear_cache()
    for seed in range(3):
        cell = lstmjax.lstm(4, forget_bias=float(seed))
        unroll(cell, cell.init(jax.random.key(seed), 3), xs)
    assert run._cache_size() == 1
