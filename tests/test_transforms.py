"""jit, many networks at once, checkpoints, dtypes and export; the derivatives are in the table of every cell."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstmjax import unroll
from tests.cells import CELLS, EVERY_CELL, cases, compiled, problem, same

LENGTHS = np.array([5, 3], np.int32)
DTYPES = ["bfloat16", "float16", "float32", "float64"]


@pytest.fixture(autouse=True, scope="module")
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=EVERY_CELL)
def cell(request):
    return CELLS[request.param]


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def test_jit(cell):
    args = problem(cell, (3, 2, 3))
    eager = unroll(cell, *args)
    same(compiled(lambda *a: unroll(cell, *a), *args), eager, 1e-14)
    with jax.disable_jit():
        same(unroll(cell, *args), eager, 1e-14)


def test_a_second_call_compiles_nothing(cell):
    args = problem(cell, (5, 2, 3), dtype=jnp.float32)
    chex.clear_trace_counter()
    counted = jax.jit(chex.assert_max_traces(lambda *a: unroll(cell, *a), n=1))
    for scale in (1.0, 2.0, 3.0):
        counted(*jax.tree.map(lambda a, scale=scale: np.float32(scale) * np.asarray(a), args))


def many_networks_at_once(cell, args, others):
    sets = [args, *others]
    yield jax.vmap(lambda *a: unroll(cell, *a))(*stacked(sets)), stacked([unroll(cell, *s) for s in sets])


def checkpoint_inside_and_outside(cell, args, others):
    for remat in (None, 2):

        def loss(*a, remat=remat):
            return unroll(cell, *a, remat_block=remat)[1].sum()

        yield jax.grad(jax.checkpoint(loss))(*args), jax.grad(loss)(*args)


IDENTITIES = {f.__name__: f for f in (many_networks_at_once, checkpoint_inside_and_outside)}


@pytest.mark.parametrize("identity", IDENTITIES)
def test_two_ways_to_the_same(identity, cell):
    args, *others = (problem(cell, (5, 2, 3), seed) for seed in range(3))
    for got, wanted in compiled(lambda *a: list(IDENTITIES[identity](cell, *a)), args, others):
        same(got, wanted)


@functools.cache
def by_dtype(name):
    """For every dtype: what an unroll returns, with a state and without, its gradients, and the exact outputs."""
    cell = CELLS[name]

    def loss(*args):
        final, ys = unroll(cell, *args, lengths=LENGTHS)
        return jnp.sin(ys).sum() + sum((s**2).sum() for s in jax.tree.leaves(final)), (final, ys)

    def run(args):
        grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)
        return out, grads, unroll(cell, *args[:2], lengths=LENGTHS)

    def exact(args):
        return jax.vmap(lambda *a: unroll(cell, *a, lengths=LENGTHS)[1])(*stacked(args))

    args = {dtype: problem(cell, (5, 2, 3), dtype=jnp.dtype(dtype)) for dtype in DTYPES}
    wide = [jax.tree.map(lambda a: np.asarray(a, np.float64), a) for a in args.values()]
    found, wanted = compiled(lambda args, wide: ({d: run(a) for d, a in args.items()}, exact(wide)), args, wide)
    return {dtype: (*found[dtype], ys) for dtype, ys in zip(DTYPES, wanted, strict=True)}


def dtypes(tree):
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EVERY_CELL)
def test_dtypes_are_kept(name, dtype):
    run, grads, without_state, exact = by_dtype(name)[dtype]
    assert dtypes((run, grads)) == {dtype}
    # With no state given, the carry is of the parameters' dtype, and float32 at least.
    assert dtypes(without_state) == {"float64" if dtype == "float64" else "float32"}
    # Five steps, each rounding a handful of numbers that are not large.
    np.testing.assert_allclose(run[1].astype(np.float64), exact, atol=40 * float(jnp.finfo(dtype).eps))


def test_a_float32_state_is_carried_through_bfloat16_weights(cell):
    params, xs, state = problem(cell, (5, 2, 3), dtype=jnp.bfloat16)
    state = jax.tree.map(lambda s: s.astype(jnp.float32), state)
    assert dtypes(jax.eval_shape(lambda *a: unroll(cell, *a), params, xs, state)) == {"float32"}


def test_old_and_new_random_keys(cell):
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert jax.eval_shape(lambda k: cell.init(k, 3), key).w_x.shape[0] == 3


@pytest.mark.parametrize("name", cases(["lstm", "gru", "rnn"], slow=["rnn"]))
def test_export_with_sizes_left_open(name):
    cell = CELLS[name]
    params, xs, _ = problem(cell, (20, 7, 3))
    grad = jax.jit(jax.grad(lambda params, xs: (unroll(cell, params, xs)[1] ** 2).sum()))
    shapes = [jax.ShapeDtypeStruct(jax.export.symbolic_shape(s), jnp.float64) for s in ("20, b, 3", "t, b, 3")]
    calls = [jax.export.deserialize(jax.export.export(grad)(params, s).serialize()).call for s in shapes]
    for batch in (1, 7):
        *got, wanted = compiled(lambda *a: [run(*a) for run in (*calls, grad)], params, np.asarray(xs)[:, :batch])
        for way in got:
            chex.assert_trees_all_close(way, wanted, rtol=1e-12, atol=1e-12)
