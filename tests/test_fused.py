"""The fused unroll: the same numbers as the scan, to every order, from fewer and larger products."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lstmjax
from lstmjax import unroll
from lstmjax.recurrence import linear
from lstmjax.unroll import run
from tests.cells import CELLS, problem


@pytest.fixture(autouse=True)
def _x64(x64):
    pass


def loss_of(cell, implementation, **options):
    def loss(*args):
        final, ys = unroll(cell, *args, implementation=implementation, **options)
        return jnp.sin(ys).sum() + sum((s**2).sum() for s in jax.tree.leaves(final))

    return loss


@pytest.fixture(params=[1, 64, 2**19], ids=["blocks of the least size", "small blocks", "one block"])
def blocks(request, monkeypatch):
    """Block lengths that do and do not divide T; nothing compiled under another length is used again."""
    monkeypatch.setattr(linear, "BLOCK_ELEMENTS", request.param)
    run.clear_cache()
    yield
    run.clear_cache()


OPTIONS = {
    "plain": {},
    "lengths": {"lengths": jnp.array([70, 33], jnp.int32)},
    "mask and resets": {
        "mask": np.arange(140).reshape(70, 2) % 5 != 1,
        "resets": np.arange(140).reshape(70, 2) % 17 == 3,
    },
    "reverse": {
        "reverse": True,
        "lengths": jnp.array([70, 33], jnp.int32),
        "resets": np.arange(140).reshape(70, 2) % 17 == 3,
    },
    "remat": {"remat_block": 16},
}


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_scan(name, options, blocks):
    cell, options = CELLS[name], OPTIONS[options]
    args = problem(cell, (70, 2, 3))
    got = jax.value_and_grad(loss_of(cell, "fused", **options), argnums=(0, 1, 2))(*args)
    want = jax.value_and_grad(loss_of(cell, "scan", **options), argnums=(0, 1, 2))(*args)
    chex.assert_trees_all_close(got, want, atol=1e-11, rtol=1e-11)


@given(name=st.sampled_from(sorted(CELLS)), t=st.integers(0, 9), batch=st.lists(st.integers(0, 3), max_size=2))
def test_equals_the_scan_for_any_shape(name, t, batch):
    cell = CELLS[name]
    args = problem(cell, (t, *batch, 3))
    tangents = problem(cell, (t, *batch, 3), seed=1)
    for run in (
        lambda f: jax.value_and_grad(f, argnums=(0, 1, 2))(*args),
        lambda f: jax.jvp(f, args, tangents),
    ):
        chex.assert_trees_all_close(run(loss_of(cell, "fused")), run(loss_of(cell, "scan")), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_second_order_equals_the_scan(name):
    cell = CELLS[name]
    args, v = problem(cell, (6, 2, 3)), problem(cell, (6, 2, 3), seed=1)

    def products(implementation):
        grad = jax.grad(loss_of(cell, implementation), argnums=(0, 1, 2))

        def along_v(*args):
            pairs = zip(jax.tree.leaves(grad(*args)), jax.tree.leaves(v), strict=True)
            return sum((x * y).sum() for x, y in pairs)

        return jax.jvp(grad, args, v)[1], jax.grad(along_v, argnums=(0, 1, 2))(*args)

    chex.assert_trees_all_close(products("fused"), products("scan"), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("wanted", ["params", "xs", "state"])
def test_derivatives_by_one_argument_alone(wanted):
    # What is not asked for is a symbolic zero inside the rule.
    cell = CELLS["lstm"]
    args = problem(cell, (9, 2, 3))
    at = ("params", "xs", "state").index(wanted)
    got = jax.grad(loss_of(cell, "fused"), argnums=at)(*args)
    chex.assert_trees_all_close(got, jax.grad(loss_of(cell, "scan"), argnums=at)(*args), atol=1e-12)


def test_state_history_is_differentiable():
    cell = CELLS["lstm"]
    args = problem(cell, (9, 2, 3))

    def of(implementation):
        def loss(*args):
            states = lstmjax.state_history(cell, *args, implementation=implementation, include_initial=True)
            return jnp.sin(states.c).sum() + jnp.cos(states.h).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(*args)

    chex.assert_trees_all_close(of("fused"), of("scan"), atol=1e-12)


def residual_arrays(cell, steps, batch):
    """How many [T, B, H] arrays the forward pass of a gradient keeps, beside its arguments."""
    args = problem(cell, (steps, batch, 3), dtype=jnp.float32)
    _, pull_back = jax.vjp(lambda *a: unroll(cell, *a)[1], *args)
    given = {id(leaf) for leaf in jax.tree.leaves(args)}
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(pull_back) if id(leaf) not in given}
    return sum(leaf.size for leaf in kept.values()) / (steps * batch * 5)


@pytest.mark.parametrize(("name", "most"), [("lstm", 7), ("gru", 6), ("rnn", 2)])
def test_residuals_are_few(name, most):
    # Beside the arrays over time there are the packed weights and the inputs, laid out anew: small here.
    steps, batch = 400, 16
    kept = residual_arrays(CELLS[name], steps, batch)
    inputs = 3 / 5
    assert kept <= most + inputs + 0.1


def test_programs_do_not_grow_with_time():
    cell = lstmjax.lstm(8)

    def instructions(steps):
        params, xs, state = problem(cell, (steps, 2, 3), dtype=jnp.float32)
        grad = jax.grad(lambda p: unroll(cell, p, xs, state)[1].sum())
        return jax.jit(grad).lower(params).as_text().count("stablehlo.")

    # Both longer than a block, and divided evenly.
    assert instructions(200_000) == instructions(20_000)


def test_a_replaced_step_is_the_one_that_runs():
    cell = CELLS["lstm"]
    doubled = cell.replace(step=lambda p, s, x: (s, 2 * x[..., :2]))
    params, xs, _ = problem(cell, (4, 2, 3))
    np.testing.assert_array_equal(unroll(doubled, params, xs)[1], 2 * xs[..., :2])


@pytest.mark.parametrize(
    ("shape", "length"),
    [
        ((28, 128, 512), 7), ((100, 32, 512), 25), ((128, 64, 1024), 8), ((1000, 1, 256), 1000), ((200, 16, 128), 200),
        ((512, 8, 2048), 32), ((50, 256, 256), 5), ((101, 256, 256), 8), ((0, 2, 8), 1), ((5, 0, 8), 5),
        ((64, 512, 4096), 1),
    ],
)  # fmt: skip
def test_block_lengths(shape, length):
    assert linear.block_length(shape) == length
