"""The kernels for CPU behind ``unroll``: chosen where they serve, and the same numbers as the scan of the step."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import state_history, unroll
from lstmjax.recurrence import native
from tests.cells import cases, compiled, loss_of, problem, same

pytestmark = pytest.mark.skipif(not native.available(), reason=f"no kernels here: {native.why_not()}")

T, B, I, H = 7, 3, 2, 5
CELLS = {
    "lstm": lstmjax.lstm(H),
    "gru": lstmjax.gru(H),
    "rnn": lstmjax.rnn(H),
    "relu": lstmjax.rnn(H, activation=jax.nn.relu),
}
MASK = np.random.default_rng(0).random((T, B)) < 0.7
RESETS = np.random.default_rng(1).random((T, B)) < 0.3
OPTIONS = {
    "plain": {},
    "reverse": {"reverse": True},
    "lengths": {"lengths": np.array([7, 3, 0])},
    "mask and resets": {"mask": MASK, "resets": RESETS},
    "rematerialised": {"remat_block": 3},
}
KERNEL = "lstmjax_"


def text(function, *args):
    return jax.jit(function).lower(*args).as_text()


EVERY = list(itertools.product(CELLS, OPTIONS))
QUICK = [
    ("lstm", "lengths"),
    ("rnn", "reverse"),
    ("relu", "plain"),
]


@pytest.mark.parametrize("case", cases(EVERY, slow=[case for case in EVERY if case not in QUICK]), ids=str)
def test_values_and_all_derivatives(x64, case):
    name, options = case
    cell = CELLS[name]
    params, xs, state = problem(cell, (T, B, I))
    along = jax.tree.map(jnp.cos, (params, xs, state))

    def ways(*args):
        def run(implementation):
            def loss(*args):
                final, ys = unroll(cell, *args, implementation=implementation, **OPTIONS[options])
                return jnp.sin(ys).sum() + sum(jnp.cos(leaf).sum() for leaf in final)

            gradient = jax.grad(loss, argnums=(0, 1, 2))
            tangent, twice = jax.jvp(loss, args, along)[1], jax.jvp(gradient, args, along)[1]
            return loss(*args), gradient(*args), tangent, twice

        return run("native"), run("scan")

    same(*compiled(ways, params, xs, state), 1e-11)


@pytest.mark.parametrize("name", CELLS)
def test_a_history(x64, name):
    cell = CELLS[name]
    params, xs, state = problem(cell, (T, B, I))

    def gradient(implementation):
        def loss(*args):
            states = state_history(cell, *args, resets=RESETS, include_initial=True, implementation=implementation)
            return sum(jnp.sin(leaf).sum() for leaf in states)

        return jax.grad(loss, argnums=(0, 1, 2))

    same(*compiled(lambda *args: (gradient("native")(*args), gradient("scan")(*args)), params, xs, state), 1e-11)


OTHERS = {
    "lstm of relu": lstmjax.lstm(H, activation=jax.nn.relu),  # c and h, and h' reads c'
    "janet": lstmjax.janet(H),  # h alone
    "mgu": lstmjax.mgu(H),  # a candidate in two parts
    "ran": lstmjax.ran(H),  # gates that do not read h, and have no bias
    "peepholes": lstmjax.peephole_lstm(H),  # gates that read neither x nor h
}


@pytest.mark.parametrize("name", cases(OTHERS, slow=["janet", "mgu"]))
def test_the_way_back_of_another_cell(x64, name):
    cell = OTHERS[name]
    params, xs, state = problem(cell, (T, B, I))

    def gradient(implementation):
        def loss(*args):
            reverse = unroll(cell, *args, lengths=np.array([7, 3, 0]), reverse=True, implementation=implementation)
            states = state_history(cell, *args, mask=MASK, resets=RESETS, implementation=implementation)
            return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves((reverse, states)))

        return jax.grad(loss, argnums=(0, 1, 2))

    same(*compiled(lambda *args: (gradient(None)(*args), gradient("scan")(*args)), params, xs, state), 1e-11)
    program = text(gradient(None), params, xs, state)
    assert program.count("@lstmjax_transposed") == 2
    assert "@lstmjax_forward" not in program
    assert KERNEL not in text(gradient("fused"), params, xs, state)


@pytest.mark.parametrize("cell", [lstmjax.projected_lstm(H, 3), lstmjax.min_gru(H), lstmjax.ind_rnn(H)])
def test_the_way_back_of_cells_with_other_products_is_not(cell):
    params, xs, state = problem(cell, (T, B, I), dtype=jnp.float32)
    assert KERNEL not in text(jax.grad(lambda p: unroll(cell, p, xs, state)[1].sum()), params)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_batch_axes(x64, batch):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (T, *batch, I))
    same(*(unroll(cell, params, xs, state, implementation=way) for way in ("native", "scan")), 1e-12)


def test_a_network_of_both_directions(x64):
    layers = [CELLS["gru"], (CELLS["lstm"], CELLS["lstm"])]
    params = lstmjax.init_stack(layers, jax.random.key(0), I, dtype=jnp.float64)
    xs = jax.random.normal(jax.random.key(1), (T, B, I), jnp.float64)
    lengths = np.array([7, 3, 1])

    def gradient(params, implementation):
        def loss(params):
            return jnp.sin(
                lstmjax.unroll_stack(layers, params, xs, lengths=lengths, implementation=implementation)[1]
            ).sum()

        return jax.grad(loss)(params)

    same(*compiled(lambda p: (gradient(p, "native"), gradient(p, "scan")), params), 1e-11)


class TestChosen:
    """Which program holds a kernel."""

    def test_by_none_on_one_cpu(self):
        params, xs, _ = problem(CELLS["lstm"], (100, B, I), dtype=jnp.float32)
        assert KERNEL in text(lambda *a: unroll(CELLS["lstm"], *a), params, xs)
        assert KERNEL not in text(lambda *a: unroll(CELLS["lstm"], *a), params, xs[:10])  # too little to do
        assert KERNEL in text(jax.grad(lambda p: unroll(CELLS["lstm"], p, xs)[1].sum()), params)
        assert KERNEL not in text(lambda *a: unroll(CELLS["lstm"], *a, implementation="fused"), params, xs)
        assert KERNEL not in text(lambda *a: unroll(CELLS["lstm"], *a, scan_unroll=2), params, xs)

    def test_of_another_dtype_it_is_not(self):
        params, xs, _ = problem(CELLS["lstm"], (T, B, I), dtype=jnp.bfloat16)
        assert KERNEL not in text(lambda *a: unroll(CELLS["lstm"], *a), params, xs)

    def test_of_another_cell_it_is_not(self):
        cell = lstmjax.lstm(H, activation=jax.nn.relu)
        params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)
        assert KERNEL not in text(lambda *a: unroll(cell, *a), params, xs)

    def test_over_an_axis_of_vmap_that_weights_have_it_is_not(self):
        params, xs, _ = problem(CELLS["gru"], (T, B, I), dtype=jnp.float32)
        over = jax.vmap(lambda p: unroll(CELLS["gru"], p, xs))
        many = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
        assert KERNEL not in text(over, many)
        one_by_one = [unroll(CELLS["gru"], jax.tree.map(lambda a, n=n: a[n], many), xs) for n in range(2)]
        chex.assert_trees_all_close(
            over(many), jax.tree.map(lambda *a: jnp.stack(a), *one_by_one), rtol=1e-5, atol=1e-6
        )

    def test_in_an_exported_program_it_is_not(self):
        params, xs, _ = problem(CELLS["lstm"], (T, B, I), dtype=jnp.float32)
        exported = jax.export.export(jax.jit(lambda *a: unroll(CELLS["lstm"], *a)))(params, xs)
        assert KERNEL not in str(exported.mlir_module())

    def test_over_several_devices_it_is_not(self):
        mesh = jax.make_mesh((2,), ("data",))
        params, xs, _ = problem(CELLS["lstm"], (T, 4, I), dtype=jnp.float32)
        split = jax.device_put(xs, jax.NamedSharding(mesh, jax.P(None, "data")))
        assert KERNEL not in text(lambda *a: unroll(CELLS["lstm"], *a), params, split)


# What a vmap is over, (xs, state, lengths), and whether there is a second one around it.
OVER = {"inputs": ((0, None, None), False), "all of it, twice": ((1, 0, 0), True)}


@pytest.mark.parametrize("name", cases(["lstm", "gru", "rnn"], slow=["gru", "rnn"]))
@pytest.mark.parametrize("over", cases(OVER, slow=["inputs"]))
def test_vmap_is_a_batch_axis(name, over, x64):
    """Values, and the gradient and its derivative by all arguments; and the gradient of each element by itself."""
    axes, twice = OVER[over]
    params, xs, state = problem(CELLS[name], (T, B, I))
    lengths = jnp.array([7, 3, 0])

    def two(tree, axis):
        return jax.tree.map(lambda a: jnp.stack([a, a // 2 if a.dtype == int else a / 2], axis), tree)

    xs, state, lengths = (
        a if axis is None else two(a, axis) for a, axis in zip((xs, state, lengths), axes, strict=True)
    )
    if twice:
        xs, state, lengths = (jax.tree.map(lambda a: jnp.stack([a] * 3, -1), a) for a in (xs, state, lengths))

    def way(implementation):
        def run(params, xs, state, lengths):
            return loss_of(lambda *a: unroll(CELLS[name], *a, lengths=lengths, implementation=implementation))(
                params, xs, state
            )

        def over_all(run):
            run = jax.vmap(run, in_axes=(None, *axes))
            return jax.vmap(run, in_axes=(None, -1, -1, -1)) if twice else run

        def total(*args):
            return over_all(run)(*args, lengths).sum()

        def both(*args):
            gradient = jax.grad(total, argnums=(0, 1, 2))
            return (
                total(*args),
                gradient(*args),
                jax.jvp(gradient, args, args)[1],
                over_all(jax.grad(run))(*args, lengths),
            )

        return both

    args = params, xs, state
    same(*compiled(lambda *args: (way(None)(*args), way("scan")(*args)), *args), 1e-11)
    assert text(way(None), *args).count(f"custom_call @{KERNEL}") >= 2


@pytest.mark.parametrize(
    ("cell", "dtype", "options", "why"),
    [
        (
            lstmjax.lstm(H, activation=jax.nn.relu),
            jnp.float32,
            {},
            "the kernels know the LSTM and the GRU with sigmoid",
        ),
        (CELLS["lstm"], jnp.bfloat16, {}, "params, state and xs are of bfloat16, .* take float32 or float64"),
        (CELLS["lstm"], jnp.float32, {"scan_unroll": 2}, "scan_unroll is given"),
    ],
)
def test_a_request_it_does_not_serve(cell, dtype, options, why):
    params, xs, _ = problem(cell, (T, B, I), dtype=dtype)
    with pytest.raises(ValueError, match=f"implementation is 'native', which cannot run this: {why}"):
        unroll(cell, params, xs, implementation="native", **options)


def test_for_a_gpu_it_is_refused():
    params, xs, _ = problem(CELLS["lstm"], (T, B, I), dtype=jnp.float32)
    run = jax.jit(lambda *a: unroll(CELLS["lstm"], *a, implementation="native"))
    with pytest.raises(ValueError, match="implementation is 'native', and the program is lowered for cuda"):
        run.trace(params, xs).lower(lowering_platforms=("cuda",))
