"""Over eight devices: a layer whose units are split, and a batch that is; what they compute, and what they send."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import lstmjax
from benchmarks.compiled import read_program
from lstmjax import split_units, training
from lstmjax.nn.nnx import LSTMCell
from tests.cells import cases, problem, same

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="wants eight devices")

T, B, I, H = 12, 4, 3, 8
LENGTHS, RESETS = np.array([12, 7, 0, 3]), np.arange(T * B).reshape(T, B) % 7 == 3
CELLS = {"lstm": lstmjax.lstm(H), "gru": lstmjax.gru(H), "rnn": lstmjax.rnn(H), "mgu": lstmjax.mgu(H)}
OPTIONS = {
    "plain": {},
    "lengths and resets": {"lengths": LENGTHS, "resets": RESETS},
    "reverse, in blocks": {"lengths": LENGTHS, "reverse": True, "remat_block": 5},
    "scan": {"implementation": "scan"},
}


def loops(compiled):
    """The collectives outside of all loops; and those of every loop that has some, a step, whichever unrolls four."""
    outside, *inside = read_program(compiled.as_text())
    return outside.collectives, [{k: n * p.runs / T for k, n in p.collectives.items()} for p in inside if p.collectives]


@pytest.fixture(scope="module")
def mesh():
    return training.auto_mesh(data=2, model=4)


def gradient(cell, options):
    def loss(params, xs, state):
        final, ys = lstmjax.unroll(cell, params, xs, state, **options)
        return jnp.sin(ys).sum() + sum((s**2).sum() for s in jax.tree.leaves(final)), (final, ys)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


EVERY = [(name, options) for name in CELLS for options in OPTIONS]
QUICK = [("lstm", "plain"), ("gru", "lengths and resets")]


@pytest.mark.parametrize("case", cases(EVERY, slow=[case for case in EVERY if case not in QUICK]), ids=str)
def test_units_split_over_devices_compute_the_same(case, mesh):
    name, options = case
    cell = CELLS[name]
    params, xs, state = problem(cell, (T, B, I), dtype=jnp.float32)
    split = split_units(cell, mesh, batch_axis="data")
    placed = (params, jax.device_put(xs, NamedSharding(mesh, P(None, "data"))), state)
    compiled = gradient(split, OPTIONS[options]).lower(*placed).compile()
    got = compiled(*placed)
    same(jax.tree.map(np.asarray, got), gradient(cell, OPTIONS[options])(params, xs, state), 2e-5)
    assert got[0][1][1].sharding.spec == P(None, "data", "model")
    if options in ("plain", "lengths and resets"):
        assert loops(compiled)[1] == [{"all-gather": 1}, {"reduce-scatter": 1}]


@pytest.mark.slow
def test_states_on_the_way_and_the_other_derivatives(mesh):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (T, B, I), dtype=jnp.float32)

    def run(cell):
        def history(xs):
            return lstmjax.state_history(cell, params, xs, state, include_initial=True, resets=RESETS)

        def curvature(xs):
            return jax.jvp(jax.grad(lambda xs: jnp.sin(history(xs).c).sum()), (xs,), (jnp.cos(xs),))[1]

        return jax.jit(lambda xs: (history(xs), jax.jvp(history, (xs,), (jnp.cos(xs),))[1], curvature(xs)))(xs)

    same(jax.tree.map(np.asarray, run(split_units(cell, mesh))), run(cell), 2e-5)


def test_one_sequence_has_no_batch_to_split(mesh):
    cell = CELLS["lstm"]
    params, xs, _ = problem(cell, (T, I), dtype=jnp.float32)
    got = lstmjax.unroll(split_units(cell, mesh, batch_axis="data"), params, xs)
    same(jax.tree.map(np.asarray, got), lstmjax.unroll(cell, params, xs), 2e-5)


def test_a_data_parallel_step_sends_once(mesh):
    cell, optimizer = CELLS["lstm"], optax.adam(1e-2)
    params, xs, _ = problem(cell, (T, 2 * B, I), dtype=jnp.float32)

    def loss_fn(params, xs, key):
        del key
        return (lstmjax.unroll(cell, params, xs)[1] ** 2).mean(), {}

    step = jax.jit(training.make_train_step(loss_fn, optimizer, clip_norm=1.0))
    state = training.init_state(training.shard_params(params, mesh), optimizer, jax.random.key(0))
    compiled = step.lower(state, jax.device_put(xs, NamedSharding(mesh, P(None, ("data", "model"))))).compile()
    assert loops(compiled) == ({"all-reduce": 1}, [])


REFUSED = {
    "no such axis": (ValueError, "axis is 'units', and the mesh has", {"axis": "units"}),
    "no such batch axis": (ValueError, "batch_axis is 'rows', and the mesh has", {"batch_axis": "rows"}),
    "units": (ValueError, "the cell has 6 units, and axis 'model' 4 devices", {"cell": lstmjax.lstm(6)}),
    "a projection": (TypeError, "units cannot be split", {"cell": lstmjax.projected_lstm(8, 4)}),
    "peepholes": (TypeError, "units cannot be split", {"cell": lstmjax.peephole_lstm(8)}),
    "any step": (TypeError, "units cannot be split", {"cell": CELLS["lstm"].replace(step=lambda p, s, x: (s, x))}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_split_is_said(case, mesh):
    kind, message, given = REFUSED[case]
    with pytest.raises(kind, match=message):
        split_units(**{"cell": CELLS["lstm"], "mesh": mesh, **given})


def test_an_explicit_axis_is_refused(mesh):
    with pytest.raises(ValueError, match="of the kind Auto"):
        split_units(CELLS["lstm"], jax.make_mesh((8,), ("model",), axis_types=(AxisType.Explicit,)))


@pytest.mark.slow
@pytest.mark.parametrize("layers", ["a bidirectional stack", "the cell of a module", "mapped"])
def test_split_units_are_a_cell_like_any_other(layers, mesh):
    cell, other = CELLS["lstm"], CELLS["gru"]
    params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)
    split = functools.partial(split_units, mesh=mesh, batch_axis="data")
    if layers == "mapped":
        got, want = (
            jax.vmap(functools.partial(lstmjax.unroll, c, params), 1)(xs[:, None]) for c in (split(cell), cell)
        )
    elif layers == "the cell of a module":
        module = LSTMCell(I, H, rngs=nnx.Rngs(0))
        got, want = (lstmjax.unroll(c, module.params, xs) for c in (split(module.cell), module.cell))
    else:
        params = lstmjax.init_stack([(cell, cell), other], jax.random.key(0), I)
        got = lstmjax.unroll_stack([(split(cell), split(cell)), split(other)], params, xs, lengths=LENGTHS)
        want = lstmjax.unroll_stack([(cell, cell), other], params, xs, lengths=LENGTHS)
    same(jax.tree.map(np.asarray, got), want, 2e-5)
