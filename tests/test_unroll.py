"""Identities of the unroll. Each holds for every cell, in float64 to 1e-12 unless a test says otherwise."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import state_history, unroll
from tests.cells import CELLS, EVERY_CELL, compiled, loss_of, problem, same

T, B, I = 6, 3, 3


@pytest.fixture(autouse=True, scope="module")
def _x64():
    with jax.enable_x64(True):
        yield


def row(tree, n):
    return jax.tree.map(lambda leaf: leaf[n], tree)


def loop(cell, params, xs, state):
    ys = []
    for x in xs:
        state, y = cell.step(params, state, x)
        ys.append(y)
    return state, jnp.stack(ys) if ys else jnp.zeros((0, *jax.tree.leaves(state)[0].shape))


# Each of these yields what one way says and what the other says, for some shapes cut from one problem.


def shapes(xs, state):
    """Any number of steps, from none, and any batch axes, from none and of none."""
    yield xs, state
    yield xs[:1, 0], row(state, 0)
    yield xs[:0], state
    yield xs[:3, None], jax.tree.map(lambda s: s[None], state)
    yield xs[:2, :0], jax.tree.map(lambda s: s[:0], state)


def loop_is_scan(cell, params, xs, state):
    for x, s in shapes(xs, state):
        yield unroll(cell, params, x, s), loop(cell, params, x, s)


def gradients_of_loop_are_gradients_of_scan(cell, *args):
    of_unroll, of_loop = (
        jax.grad(loss_of(lambda *a, run=run: run(cell, *a)), argnums=(0, 1, 2)) for run in (unroll, loop)
    )
    yield of_unroll(*args), of_loop(*args)


def vmap_is_a_batch_axis(cell, params, xs, state):
    def one(x, s):
        return unroll(cell, params, x, s)

    for t in (T, 1, 0):
        over_rows = jax.vmap(one, in_axes=(1, 0), out_axes=(0, 1))(xs[:t], state)
        yield over_rows, unroll(cell, params, xs[:t], state)


def reverse_is_flip(cell, params, xs, state):
    for x, s in shapes(xs, state):
        final, ys = unroll(cell, params, x[::-1], s)
        yield unroll(cell, params, x, s, reverse=True), (final, ys[::-1])


def lengths_are_truncation(cell, params, xs, state):
    # Every length from 0 to T - 1 as a row of one unroll, and alone; what lies in the padding is poison.
    t = 4
    lengths = np.arange(t)
    many, states = xs[:t, np.arange(t) % B], row(state, np.arange(t) % B)
    dirty = jnp.where(np.arange(t)[:, None, None] < lengths[:, None], many, jnp.nan)
    for reverse in (False, True):
        final, ys = unroll(cell, params, dirty, states, lengths=lengths, reverse=reverse)
        for n in lengths:
            alone, ys_alone = unroll(cell, params, many[:n, n], row(states, n), reverse=reverse)
            yield (row(final, n), ys[:n, n]), (alone, ys_alone)
            yield ys[n:, n], np.zeros((t - n, ys.shape[-1]))


def mask_leaves_out_steps(cell, params, xs, state):
    # Every mask of three steps as a row of one unroll, and the steps it keeps alone.
    masks = np.array(list(itertools.product([False, True], repeat=3))).T
    many, states = xs[:3, np.arange(8) % B], row(state, np.arange(8) % B)
    for reverse in (False, True):
        final, ys = unroll(cell, params, many, states, mask=masks, reverse=reverse)
        for n, kept in enumerate(masks.T):
            alone = unroll(cell, params, many[np.flatnonzero(kept), n], row(states, n), reverse=reverse)
            yield (row(final, n), ys[np.flatnonzero(kept), n]), alone
            yield ys[np.flatnonzero(~kept), n], np.zeros(((~kept).sum(), ys.shape[-1]))


def mask_of_ones_is_no_mask(cell, params, xs, state):
    whole = unroll(cell, params, xs, state)
    yield unroll(cell, params, xs, state, mask=np.ones((T, B), bool)), whole
    yield unroll(cell, params, xs, state, lengths=np.full(B, T)), whole
    yield unroll(cell, params, xs, state, resets=np.zeros((T, B), bool)), whole


def a_reset_parts_two_sequences(cell, params, xs, state):
    # A reset before each of T steps as a row of one unroll, and the two sequences that it parts.
    many, states = xs[:, np.arange(T) % B], row(state, np.arange(T) % B)
    for reverse in (False, True):
        final, ys = unroll(cell, params, many, states, resets=np.eye(T, dtype=bool), reverse=reverse)
        for at in range(T):
            first, second = (slice(at, T), slice(at)) if reverse else (slice(at), slice(at, T))
            end, ys_first = unroll(cell, params, many[first, at], row(states, at), reverse=reverse)
            # Backwards, a reset before the first step parts nothing from what was.
            fresh = None if at or not reverse else end
            end, ys_second = unroll(cell, params, many[second, at], fresh, reverse=reverse)
            both = [ys_second, ys_first] if reverse else [ys_first, ys_second]
            yield (row(final, at), ys[:, at]), (end, jnp.concatenate(both))


def checkpointed_is_not_checkpointed(cell, params, xs, state):
    lengths = np.array([T, T // 2, 0])

    def grads(xs, lengths, **options):
        loss = loss_of(lambda *a: unroll(cell, *a, lengths=lengths, **options))
        return jax.value_and_grad(loss, argnums=(0, 1, 2))(params, xs, state)

    for reverse, blocks in ((False, [(1, 2), (T + 1, 3)]), (True, [(4, 1)])):
        plain = grads(xs, lengths, reverse=reverse)
        for block, unrolled in blocks:
            yield grads(xs, lengths, reverse=reverse, remat_block=block, scan_unroll=unrolled), plain
    yield grads(xs[:0], np.zeros(B, int), remat_block=2), grads(xs[:0], np.zeros(B, int))


def history_holds_every_state(cell, params, xs, state):
    for (x, s), reverse in itertools.product(shapes(xs, state), (False, True)):
        final, ys = unroll(cell, params, x, s, reverse=reverse)
        history = state_history(cell, params, x, s, include_initial=True, reverse=reverse)
        first, last = (-1, 0) if reverse else (0, -1)
        yield (row(history, first), row(history, last)), (s, final)
        after = row(history, slice(None, -1) if reverse else slice(1, None))
        yield after.h, ys
        yield after, state_history(cell, params, x, s, reverse=reverse)


IDENTITIES = {
    f.__name__: f
    for f in (
        loop_is_scan, gradients_of_loop_are_gradients_of_scan, vmap_is_a_batch_axis, reverse_is_flip,
        lengths_are_truncation, mask_leaves_out_steps, mask_of_ones_is_no_mask, a_reset_parts_two_sequences,
        checkpointed_is_not_checkpointed, history_holds_every_state,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY_CELL)
@pytest.mark.parametrize("identity", IDENTITIES)
def test_two_ways_to_the_same(identity, name):
    args = problem(CELLS[name], (T, B, I))
    pairs = compiled(lambda *a: list(IDENTITIES[identity](CELLS[name], *a)), *args)
    assert pairs
    for got, wanted in pairs:
        same(got, wanted)


def test_a_reset_acts_though_the_step_is_skipped_but_not_in_padding():
    cell = CELLS["lstm"]
    resets, at = np.arange(6) == 2, np.arange(6) != 2

    def both(params, xs, state):
        skipped = unroll(cell, params, xs, state, resets=resets, mask=at)[0], unroll(cell, params, xs[3:])[0]
        padding = unroll(cell, params, xs, state, resets=resets, lengths=2)[0], unroll(cell, params, xs[:2], state)[0]
        return skipped, padding

    for got, wanted in compiled(both, *problem(cell, (6, 3))):
        same(got, wanted)


def test_no_gradient_passes_a_reset():
    cell, resets = CELLS["lstm"], np.arange(6) == 3
    params, xs, state = problem(cell, (6, 3))
    grad = compiled(jax.grad(lambda xs: unroll(cell, params, xs, state, resets=resets)[0].h.sum()), xs)
    assert not grad[:3].any()
    assert grad[3:].all()


def test_checkpointing_saves_memory():
    cell = lstmjax.lstm(32)
    params, xs, _ = problem(cell, (512, 8, 4))

    def temp_bytes(**options):
        grad = jax.grad(lambda p: unroll(cell, p, xs, **options)[1].sum())
        return jax.jit(grad).lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temp_bytes(remat_block=16) < 0.5 * temp_bytes()


@pytest.mark.parametrize("name", EVERY_CELL)
@pytest.mark.parametrize("implementation", ["fused", "scan"])
def test_streaming_is_bit_for_bit(name, implementation):
    cell, run = CELLS[name], functools.partial(unroll, implementation=implementation)
    params, xs, state = problem(cell, (12, 2, 3), dtype=jnp.float32)
    whole = run(cell, params, xs, state)
    for cut in (0, 1, 5, 12):
        # Each part a program of its own, as a stream has it.
        middle, first = run(cell, params, np.asarray(xs)[:cut], state)
        final, second = run(cell, params, np.asarray(xs)[cut:], middle)
        chex.assert_trees_all_equal((final, np.concatenate([first, second])), whole)


def test_history_of_a_skipped_step_repeats_the_state():
    cell = CELLS["lstm"]
    history = compiled(lambda *a: state_history(cell, *a, mask=np.arange(5) != 2), *problem(cell, (5, 3)))
    same(history.c[2], history.c[1])
    assert history.c[2].any()


def test_causality():
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (9, 3))

    def jacobian(reverse):
        return jax.jacrev(lambda xs: unroll(cell, params, xs, state, reverse=reverse)[1])(xs)

    for found, later in zip(compiled(lambda: [jacobian(False), jacobian(True)]), (np.triu, np.tril), strict=True):
        touched = np.abs(found).sum((1, 3)).T  # [input time, output time]
        np.testing.assert_array_equal(touched, later(touched))
        assert later(touched).any()


def test_any_cell_will_do():
    # A bare bundle of lambdas, with a state and an output of its own form.
    counter = lstmjax.Cell(
        init=lambda key, size, dtype=jnp.float32: jnp.ones((), dtype),
        initial_state=lambda batch=(), dtype=jnp.float32: {"n": jnp.zeros(batch, dtype)},
        step=lambda p, s, x: ({"n": s["n"] + p}, {"sum": x.sum(-1), "n": s["n"]}),
    )
    final, ys = unroll(counter, np.ones(()), np.ones((4, 2, 3)), lengths=np.array([4, 2]))
    assert final["n"].tolist() == [4.0, 2.0]
    assert np.asarray(ys["sum"])[:, 1].tolist() == [3.0, 3.0, 0.0, 0.0]
