"""Where arrays lie: inside ``shard_map``, on explicit and automatic meshes, of two devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lstmjax
from lstmjax import unroll
from tests.cells import cases, problem

pytestmark = pytest.mark.skipif(jax.device_count() < 2, reason="wants two devices")

LENGTHS, RESETS = np.array([12, 7, 0, 3]), np.arange(48).reshape(12, 4) % 7 == 3
CELLS = {
    "lstm": lstmjax.lstm(4),
    "gru": lstmjax.gru(4),
    "projected": lstmjax.projected_lstm(4, 2),
    "a step": lstmjax.lstm(4).replace(step=lambda *a: lstmjax.lstm_step(*a)),
}


def loss(cell):
    def of(params, xs, lengths, resets):
        final, ys = unroll(cell, params, xs, lengths=lengths, resets=resets)
        return jnp.sin(ys).sum(), (final, ys)

    return jax.value_and_grad(of, has_aux=True)


def modules():
    from flax import nnx

    from lstmjax.nn.nnx import LSTM

    module = LSTM(3, 4, time_major=True, rngs=nnx.Rngs(0))
    graph, params = nnx.split(module)

    def of(params, xs, lengths, resets):
        final, ys = nnx.merge(graph, params)(xs, seq_lengths=lengths, resets=resets)
        return jnp.sin(ys).sum(), (final, ys)

    return params, jax.value_and_grad(of, has_aux=True)


def case(name):
    xs = problem(lstmjax.lstm(4), (12, 4, 3), dtype=jnp.float32)[1]
    if name == "module":
        params, run = modules()
    else:
        params, run = problem(CELLS[name], (12, 4, 3), dtype=jnp.float32)[0], loss(CELLS[name])
    return run, (params, xs, LENGTHS, RESETS)


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)


DATA = (P(None, "data"), P("data"), P(None, "data"))


@pytest.mark.parametrize("name", cases([*CELLS, "module"], slow=["gru", "projected", "a step"]))
def test_inside_shard_map(name):
    run, args = case(name)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def part(*args):
        (value, aux), grads = run(*args)  # of replicated parameters JAX sums the gradients itself
        return (jax.lax.psum(value, "data"), aux), grads

    outs = ((P(), (P("data"), P(None, "data"))), P())
    spread = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(P(), *DATA), out_specs=outs))
    close(spread(*args), jax.jit(run)(*args))
    spread.trace(*args).lower(lowering_platforms=("cuda",))  # whose own way is traced only now


@pytest.mark.parametrize("axes", [AxisType.Explicit, AxisType.Auto], ids=str)
@pytest.mark.parametrize("name", cases([*CELLS, "module"], slow=["gru", "a step", "projected"]))
def test_on_a_mesh(name, axes):
    run, args = case(name)
    want = jax.jit(run)(*args)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axes,))
    with jax.set_mesh(mesh):
        placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(args, (P(), *DATA), strict=True)]
        got = jax.jit(run)(*placed)
        jax.jit(run).trace(*placed).lower(lowering_platforms=("cuda",))
    assert len(got[0][1][1].sharding.device_set) == 2
    close(got, want)
