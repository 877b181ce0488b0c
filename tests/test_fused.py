"""The fused unroll: the same numbers as the scan, to every order, from fewer and larger products."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import unroll
from lstmjax.recurrence import linear
from tests.cells import CELLS, EVERY_CELL, block_elements, cases, compiled, problem, same
from tests.cells import loss_of as loss_of_run


@pytest.fixture(autouse=True, scope="module")
def _x64():
    with jax.enable_x64(True):
        yield


def loss_of(cell, implementation, **options):
    return loss_of_run(lambda *args: unroll(cell, *args, implementation=implementation, **options))


OPTIONS = {
    "plain": {},
    "lengths": {"lengths": np.array([70, 33], np.int32)},
    "mask and resets": {
        "mask": np.arange(140).reshape(70, 2) % 5 != 1,
        "resets": np.arange(140).reshape(70, 2) % 17 == 3,
    },
    "reverse": {
        "reverse": True,
        "lengths": np.array([70, 33], np.int32),
        "resets": np.arange(140).reshape(70, 2) % 17 == 3,
    },
    "remat": {"remat_block": 16},
}
# Blocks of lengths that do and do not divide T, by how many elements they hold: one step each, some, all.
EVERY = list(itertools.product(OPTIONS, (1, 64, 2**19)))
QUICK = [
    ("plain", 1), ("plain", 2**19), ("lengths", 64), ("mask and resets", 64), ("reverse", 1), ("reverse", 64),
    ("remat", 64),
]  # fmt: skip


@pytest.mark.parametrize("name", cases(["lstm", "gru", "rnn"], slow=["gru"]))
@pytest.mark.parametrize("case", cases(EVERY, slow=[case for case in EVERY if case not in QUICK]))
def test_equals_the_scan(name, case):
    options, elements = case

    def both(*args):
        def run(implementation):
            loss = loss_of(CELLS[name], implementation, **OPTIONS[options])
            return jax.value_and_grad(loss, argnums=(0, 1, 2))(*args)

        with block_elements(elements):
            return run("fused"), run("scan")

    same(*compiled(both, *problem(CELLS[name], (70, 2, 3))), 1e-11)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_equals_the_scan_for_any_shape(name):
    cell = CELLS[name]
    shapes = [(9, 2, 3), (1, 3), (0, 2, 3), (2, 0, 3), (3, 1, 2, 3)]
    args = [tuple(problem(cell, shape, seed) for seed in (0, 1)) for shape in shapes]

    def both(args):
        for at, along in args:
            for way in (
                lambda loss, at=at: jax.value_and_grad(loss, argnums=(0, 1, 2))(*at),
                lambda loss, at=at, along=along: jax.jvp(loss, at, along),
            ):
                yield way(loss_of(cell, "fused")), way(loss_of(cell, "scan"))

    for got, wanted in compiled(lambda args: list(both(args)), args):
        same(got, wanted, 1e-11)


@pytest.mark.parametrize("name", cases(["lstm", "gru", "rnn"], slow=["gru"]))
def test_second_order_equals_the_scan(name):
    cell = CELLS[name]

    # By forward-over-reverse; that the other ways come to the same, test_reference.py says.
    def product(implementation, at, along):
        return jax.jvp(jax.grad(loss_of(cell, implementation), argnums=(0, 1, 2)), at, along)[1]

    args = problem(cell, (6, 2, 3)), problem(cell, (6, 2, 3), seed=1)
    same(*compiled(lambda *a: [product("fused", *a), product("scan", *a)], *args), 1e-10)


def test_derivatives_by_one_argument_alone():
    # What is not asked for is a symbolic zero inside the rule.
    cell = CELLS["lstm"]

    def both(*args):
        return [
            [jax.grad(loss_of(cell, implementation), argnums=at)(*args) for at in range(3)]
            for implementation in ("fused", "scan")
        ]

    same(*compiled(both, *problem(cell, (9, 2, 3))))


def test_state_history_is_differentiable():
    cell = CELLS["lstm"]

    def of(implementation):
        def loss(*args):
            states = lstmjax.state_history(cell, *args, implementation=implementation, include_initial=True)
            return jnp.sin(states.c).sum() + jnp.cos(states.h).sum()

        return jax.grad(loss, argnums=(0, 1, 2))

    same(*compiled(lambda *args: [of("fused")(*args), of("scan")(*args)], *problem(cell, (9, 2, 3))))


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
    np.testing.assert_array_equal(unroll(doubled, params, xs)[1], 2 * np.asarray(xs)[..., :2])


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
