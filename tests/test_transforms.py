"""jit, grad, jvp, grad of grad, hessian, vmap, x64 and bf16, on every cell."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lstmjax import unroll
from tests.cells import CELLS, problem


@pytest.fixture(params=sorted(CELLS))
def cell(request):
    return CELLS[request.param]


def loss_of(cell):
    def loss(params, xs, state):
        final, ys = unroll(cell, params, xs, state, lengths=jnp.array([5, 3], jnp.int32))
        return jnp.tanh(ys).sum() + sum((s**2).sum() for s in jax.tree.leaves(final))

    return loss


def test_jit(cell, x64):
    args = problem(cell, (5, 2, 3))
    chex.assert_trees_all_close(jax.jit(lambda *a: unroll(cell, *a))(*args), unroll(cell, *args), atol=1e-14)
    with jax.disable_jit():
        without = unroll(cell, *args)
    chex.assert_trees_all_close(without, unroll(cell, *args), atol=1e-14)


def test_a_second_call_compiles_nothing(cell):
    args = problem(cell, (5, 2, 3), dtype=jnp.float32)
    chex.clear_trace_counter()
    counted = jax.jit(chex.assert_max_traces(lambda *a: unroll(cell, *a), n=1))
    for scale in (1.0, 2.0, 3.0):
        counted(*jax.tree.map(lambda a, scale=scale: scale * a, args))


def test_jvp_is_the_transpose_of_vjp(cell, x64):
    # ⟨u, J v⟩ = ⟨Jᵀ u, v⟩ for random u and v.
    args = problem(cell, (5, 2, 3))

    def run(*a):
        return unroll(cell, *a)

    v = problem(cell, (5, 2, 3), seed=1)
    out, tangent = jax.jvp(run, args, v)
    u = jax.tree.map(lambda o: jnp.cos(o), out)
    (pulled) = jax.vjp(run, *args)[1](u)

    def inner(a, b):
        return sum((x * y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    np.testing.assert_allclose(inner(u, tangent), inner(pulled, v), rtol=1e-12)


def test_second_order(cell, x64):
    # Hessian-vector products by forward-over-reverse, reverse-over-reverse and reverse-over-forward agree.
    args, v = problem(cell, (5, 2, 3)), problem(cell, (5, 2, 3), seed=1)[0]
    loss = loss_of(cell)

    def of(params):
        return loss(params, *args[1:])

    def along(params, derivative):
        return sum((a * b).sum() for a, b in zip(jax.tree.leaves(derivative(params)), jax.tree.leaves(v), strict=True))

    forward_over_reverse = jax.jvp(jax.grad(of), (args[0],), (v,))[1]
    reverse_over_reverse = jax.grad(lambda p: along(p, jax.grad(of)))(args[0])
    reverse_over_forward = jax.grad(lambda p: jax.jvp(of, (p,), (v,))[1])(args[0])
    chex.assert_trees_all_close(forward_over_reverse, reverse_over_reverse, atol=1e-11)
    chex.assert_trees_all_close(forward_over_reverse, reverse_over_forward, atol=1e-11)


def test_hessian_is_symmetric(cell, x64):
    params, xs, state = problem(cell, (3, 2))
    flat, unflatten = ravel_pytree(params)
    hessian = jax.hessian(lambda p: unroll(cell, unflatten(p), xs, state)[1].sum())(flat)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)


def test_per_example_gradients(cell, x64):
    params, xs, state = problem(cell, (5, 4, 3))

    def loss(params, x, s):
        return unroll(cell, params, x, s)[1].sum()

    each = jax.vmap(jax.grad(loss), in_axes=(None, 1, 0))(params, xs, state)
    whole = jax.grad(loss)(params, xs, state)
    chex.assert_trees_all_close(jax.tree.map(lambda g: g.sum(0), each), whole, atol=1e-12)


def test_many_networks_at_once(cell, x64):
    sets = [problem(cell, (5, 3), seed=s) for s in range(3)]
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sets)
    outs = jax.vmap(lambda *a: unroll(cell, *a))(*together)
    alone = [unroll(cell, *s) for s in sets]
    chex.assert_trees_all_close(outs, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone), atol=1e-12)


@pytest.mark.parametrize("remat", [None, 2])
def test_checkpoint_inside_and_outside(cell, x64, remat):
    args = problem(cell, (5, 2, 3))

    def loss(*a):
        return unroll(cell, *a, remat_block=remat)[1].sum()

    chex.assert_trees_all_close(jax.grad(jax.checkpoint(loss))(*args), jax.grad(loss)(*args), atol=1e-13)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes_are_kept(cell, dtype, x64):
    args = problem(cell, (5, 2, 3), dtype=jnp.dtype(dtype))
    final, ys = unroll(cell, *args)
    grads = jax.grad(loss_of(cell), argnums=(0, 1, 2))(*args)
    assert {a.dtype for a in jax.tree.leaves((final, ys, grads))} == {jnp.dtype(dtype)}
    # With no state given, the carry is of the parameters' dtype.
    assert {a.dtype for a in jax.tree.leaves(unroll(cell, *args[:2]))} == {jnp.dtype(dtype)}
    exact = unroll(cell, *jax.tree.map(lambda a: a.astype(jnp.float64), args))[1]
    # Five steps, each rounding a handful of numbers that are not large.
    np.testing.assert_allclose(ys.astype(jnp.float64), exact, atol=40 * float(jnp.finfo(dtype).eps))


def test_a_float32_state_is_carried_through_bfloat16_weights(cell):
    params, xs, state = problem(cell, (5, 2, 3), dtype=jnp.bfloat16)
    state = jax.tree.map(lambda s: s.astype(jnp.float32), state)
    final, ys = unroll(cell, params, xs, state)
    assert {a.dtype for a in jax.tree.leaves((final, ys))} == {jnp.dtype("float32")}


def test_old_and_new_random_keys(cell):
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert cell.init(key, 3).w_x.shape[0] == 3


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("sizes", ["20, b, 3", "t, b, 3"])
def test_export_with_sizes_left_open(name, sizes):
    cell = CELLS[name]
    params, xs, _ = problem(cell, (20, 7, 3), dtype=jnp.float32)
    grad = jax.jit(jax.grad(lambda params, xs: (unroll(cell, params, xs)[1] ** 2).sum()))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape(sizes), jnp.float32)
    exported = jax.export.deserialize(jax.export.export(grad)(params, shape).serialize())
    for batch in (1, 7):
        got, want = exported.call(params, xs[:, :batch]), grad(params, xs[:, :batch])
        chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
