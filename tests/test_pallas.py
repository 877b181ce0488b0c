"""The kernels for an NVIDIA GPU, interpreted on a CPU: the same numbers as the scan of the step. None ran on a GPU."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

import lstmjax
from lstmjax import state_history, unroll
from lstmjax.cells.base import DENSE, Recurrence
from lstmjax.recurrence import pallas
from tests.cells import cases, compiled, loss_of, problem, same

T, B, I, H = 4, 3, 2, 5


class Memory(NamedTuple):
    h: Any
    slow: Any


def own(products, activate):
    """A user's cell: two fields, two gates, an activation that is in no table."""
    rnn = lstmjax.rnn(2 * H)

    def init(key, input_size, dtype=jnp.float32):
        params = rnn.init(key, input_size, dtype)
        return params._replace(w_h=params.w_h[:H])

    def initial_state(batch=(), dtype=jnp.float32):
        return Memory(jnp.zeros((*batch, H), dtype), jnp.ones((*batch, H), dtype))

    return lstmjax.Cell(init, initial_state, Recurrence(products, activate))


def activate(z, state):
    slow = 0.9 * state.slow + jnp.sin(z[0]) * state.h
    return Memory(jax.nn.softplus(z[1]) - jnp.where(slow > 0, slow, 0.1 * slow), slow)


def written_out(params, x, h):
    return x @ params.w_x + h @ params.w_h + jnp.broadcast_to(params.b, (*h.shape[:-1], 2 * H))


CELLS = {
    "lstm": lstmjax.lstm(H),
    "gru": lstmjax.gru(H),
    "rnn": lstmjax.rnn(H),
    "star": lstmjax.star(H),
    "peephole": lstmjax.peephole_lstm(H),
    "own": own(DENSE, activate),
    "own, written out": own(written_out, activate),
}
MASK = np.random.default_rng(0).random((T, B)) < 0.7
RESETS = np.random.default_rng(1).random((T, B)) < 0.3
OPTIONS = {
    "plain": {},
    "lengths, resets, reverse": {"lengths": np.array([4, 3, 0]), "resets": RESETS, "reverse": True},
    "mask and resets": {"mask": MASK, "resets": RESETS},
    "rematerialised": {"remat_block": 3},
}


def ways(cell, *args, run=unroll, **options):
    """Values and gradients by all arguments: of the kernels, and of the scan."""

    def way(implementation):
        def by(*args):
            returned = run(cell, *args, implementation=implementation, **options)
            return (jax.tree.map(jnp.cos, returned), returned.h) if run is state_history else returned

        return jax.value_and_grad(loss_of(by), argnums=(0, 1, 2))

    return compiled(lambda *args: (way("pallas")(*args), way("scan")(*args)), *args)


EVERY = list(itertools.product(CELLS, OPTIONS))
QUICK = [
    ("lstm", "lengths, resets, reverse"),
    ("gru", "mask and resets"),
    ("rnn", "plain"),
    ("star", "plain"),
    ("own", "mask and resets"),
    ("own, written out", "rematerialised"),
]


@pytest.mark.parametrize("case", cases(EVERY, slow=[case for case in EVERY if case not in QUICK]), ids=str)
def test_values_and_gradients(x64, case):
    name, options = case
    same(*ways(CELLS[name], *problem(CELLS[name], (T, B, I)), **OPTIONS[options]), 1e-11)


@pytest.mark.parametrize("name", cases(["lstm", "gru", "peephole"], slow=["peephole"]))
def test_several_tiles_and_programs(x64, name, monkeypatch):
    """Units that no tile divides, and rows that no program's share does."""
    monkeypatch.setattr(pallas, "HELD_BYTES", 0)
    monkeypatch.setattr(pallas, "TILE_BYTES", 0)  # the smallest tile
    cell = {"lstm": lstmjax.lstm, "gru": lstmjax.gru, "peephole": lstmjax.peephole_lstm}[name](37)
    resets = np.random.default_rng(2).random((T, 19)) < 0.3
    same(*ways(cell, *problem(cell, (T, 19, I)), resets=resets), 1e-11)


def test_tiles_do_not_wait_for_one_another(x64, monkeypatch):
    """Between two barriers a GPU's threads may be at any tile: from the last to the first it is the same."""
    monkeypatch.setattr(pallas, "HELD_BYTES", 0)
    monkeypatch.setattr(pallas, "TILE_BYTES", 0)

    def backwards(problem, body, carried):
        last = (-(-problem.units // problem.tile) - 1) * problem.tile
        return over(problem, lambda span, carried: body(span._replace(start=last - span.start), carried), carried)

    over = pallas._over
    monkeypatch.setattr(pallas, "_over", backwards)
    cell = lstmjax.lstm(38)
    same(*ways(cell, *problem(cell, (T, B, I)), resets=RESETS), 1e-11)


def test_a_history(x64):
    cell = CELLS["lstm"]
    args = problem(cell, (T, B, I))
    same(*ways(cell, *args, run=state_history, mask=MASK, resets=RESETS, include_initial=True), 1e-11)


def test_forward_mode_and_second_order(x64):
    cell = CELLS["gru"]
    args = problem(cell, (T, B, I))
    along = jax.tree.map(jnp.cos, args)

    def derivatives(implementation):
        loss = loss_of(lambda *args: unroll(cell, *args, implementation=implementation))
        return jax.jvp(loss, args, along)[1], jax.jvp(jax.grad(loss), args, along)[1]

    same(*compiled(lambda: (derivatives("pallas"), derivatives("scan"))), 1e-11)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_any_batch_axes(x64, batch):
    cell = CELLS["lstm"]
    same(*ways(cell, *problem(cell, (T, *batch, I))), 1e-11)


@pytest.mark.parametrize("shape", cases([(0, B, I), (T, 0, I)], slow=[(T, 0, I)]))
def test_nothing_to_run(shape):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, shape, dtype=jnp.float32)
    same(*(unroll(cell, params, xs, state, implementation=way) for way in ("pallas", "scan")), 0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 1e-2)])
def test_other_dtypes(dtype, tolerance):
    """Against float32, of the same parameters: values, and the gradient over its largest entry."""
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (T, B, I), dtype=jnp.float32)
    params, xs = jax.tree.map(lambda a: a.astype(dtype), (params, xs))

    def way(implementation, dtype):
        def loss(params):
            final, ys = unroll(cell, params, xs.astype(dtype), state, implementation=implementation)
            return jnp.sin(ys).sum() + final.c.sum(), (final, ys)

        gradient, returned = jax.grad(loss, has_aux=True)(jax.tree.map(lambda p: p.astype(dtype), params))
        return returned, jax.tree.map(lambda g: g.astype(jnp.float32) / jnp.abs(g).max().astype(jnp.float32), gradient)

    found, wanted = compiled(lambda: (way("pallas", dtype), way("scan", jnp.float32)))
    same(found, wanted, tolerance)


def test_a_state_in_half_precision():
    cell = CELLS["gru"]
    params, xs, state = problem(cell, (T, B, I), dtype=jnp.bfloat16)
    found, wanted = ways(cell, params, xs, state, resets=RESETS)
    kinds = [[leaf.dtype for leaf in jax.tree.leaves(tree)] for tree in (found, wanted)]
    assert kinds[0] == kinds[1]
    found, wanted = (jax.tree.map(lambda a: a.astype(np.float32) / 10, tree) for tree in (found, wanted))
    same(found, wanted, 5e-3)


# Newer JAX wants to know what GPU a kernel is for, and says that this compiler of Pallas's will go.
H100 = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
ON_A_GPU = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


def text(platform, function, *args):
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=H100)):
        return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


KERNEL = "xla.gpu.triton"


@ON_A_GPU
@pytest.mark.parametrize("over", ["inputs", "weights"])
def test_vmap(over):
    """Over sequences it is a batch axis of the kernels; over weights it is XLA's."""
    cell = CELLS["lstm"]
    params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)
    axes = (None, 0) if over == "inputs" else (0, None)
    params, xs = (
        tree if axis is None else jax.tree.map(lambda a: jnp.stack([a, a / 2]), tree)
        for tree, axis in zip((params, xs), axes, strict=True)
    )

    def gradient(implementation):
        def loss(params, xs):
            return jnp.sin(unroll(cell, params, xs, implementation=implementation)[1]).sum()

        return jax.grad(lambda *args: jax.vmap(loss, axes)(*args).sum(), argnums=(0, 1))

    same(*compiled(lambda *args: (gradient("pallas")(*args), gradient("scan")(*args)), params, xs), 1e-5)
    assert text("cuda", gradient("pallas"), params, xs).count(KERNEL) == (2 if over == "inputs" else 0)


@ON_A_GPU
def test_chosen_where_it_is_asked_for():
    cell = CELLS["own"]
    params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)
    for implementation in ("pallas", "fused", None):
        found = text("cuda", lambda *args, i=implementation: unroll(cell, *args, implementation=i), params, xs)
        assert found.count(KERNEL) == (implementation == "pallas")


def test_for_a_tpu_it_is_refused():
    params, xs, _ = problem(CELLS["lstm"], (T, B, I), dtype=jnp.float32)
    with pytest.raises(ValueError, match="implementation is 'pallas', and the program is lowered for tpu; wanted it"):
        text("tpu", lambda *args: unroll(CELLS["lstm"], *args, implementation="pallas"), params, xs)


def clocked(z, state):
    return activate(z, state)._replace(slow=state.slow * jnp.arange(H, dtype=state.slow.dtype))


@pytest.mark.parametrize(
    ("cell", "options", "why"),
    [
        (lstmjax.lstm(H), {"scan_unroll": 2}, "scan_unroll is given"),
        (lstmjax.projected_lstm(H, 2), {}, "its hidden state is a projection"),
        (own(DENSE, clocked), {}, "its activation is not the same for every unit and row"),
        (lstmjax.layer_norm_lstm(H), {}, "its products are not affine in h"),
    ],
)
def test_a_request_it_does_not_serve(cell, options, why):
    params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)
    with pytest.raises(ValueError, match=f"implementation is 'pallas', which cannot run this.*: {why}"):
        unroll(cell, params, xs, implementation="pallas", **options)


def test_weights_of_the_rows_it_does_not_serve():
    cell = lstmjax.variational_dropout(CELLS["lstm"], 0.5)
    params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)
    masked = lstmjax.draw_masks(jax.random.key(0), cell, params, xs)
    with pytest.raises(ValueError, match="its products differ between the rows of the batch"):
        unroll(*masked, implementation="pallas")
    same(*(unroll(cell, params, xs, implementation=way) for way in ("pallas", "scan")), 1e-6)
