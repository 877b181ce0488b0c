"""Cells of one's own, of any kind: what they close over, what they carry, what they read, and what they are fed."""

import copy
import gc
import pickle
import weakref
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import Cell, Recurrence, unroll
from lstmjax.gates import sigmoid
from lstmjax.gradients import adjoint_norms, gate_values
from lstmjax.recurrence import elementwise
from lstmjax.recurrence.parts import Parts, take_apart
from tests.cells import problem

XS = np.random.default_rng(0).normal(size=(12, 2, 3)).astype(np.float32)


class Memory(NamedTuple):
    h: jax.Array


def weights(cell, inputs=3, seed=0):
    """Weights by NumPy, so that nothing is compiled for them."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: cell.init(key, inputs), jax.random.key(0))
    return jax.tree.map(lambda a: (0.5 * rng.normal(size=a.shape)).astype(a.dtype), shapes)


# Closures over traced values.


def by_activation(cell_of, implementation=None):
    params = weights(cell_of(1.0))

    def loss(a):
        return jnp.sum(unroll(cell_of(a), params, XS, implementation=implementation)[1] ** 2)

    return loss


@pytest.mark.parametrize(
    "cell_of",
    [
        lambda a: lstmjax.rnn(4, activation=lambda z: jnp.tanh(a * z)),
        lambda a: lstmjax.gru(4, activation=lambda z: jnp.tanh(a * z)),
        lambda a: lstmjax.lstm(4, gate_activation=lambda z: sigmoid(a * z)),
    ],
    ids=["rnn", "gru", "lstm"],
)
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_the_gradient_of_what_an_activation_closes_over(cell_of, wrap):
    loss = by_activation(cell_of)
    got = float(wrap(jax.grad(loss))(1.3))
    step = 1e-2
    run = jax.jit(loss)
    want = (float(run(1.3 + step)) - float(run(1.3 - step))) / (2 * step)
    assert abs(want) > 0.1
    np.testing.assert_allclose(got, want, rtol=2e-2)
    np.testing.assert_allclose(got, float(jax.grad(by_activation(cell_of, "scan"))(1.3)), rtol=1e-6)


def test_products_that_close_over_traced_values():
    plain = lstmjax.rnn(4)
    params = weights(plain)

    def loss(a, implementation=None):
        step = Recurrence(lambda p, x, h: a * (x @ p.w_x) + h @ p.w_h + p.b, lambda z, s: Memory(jnp.tanh(z[0])))
        cell = plain.replace(
            step=step, initial_state=lambda batch=(), dtype=jnp.float32: Memory(jnp.zeros((*batch, 4)))
        )
        return jnp.sum(unroll(cell, params, XS, implementation=implementation)[1] ** 2)

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.7), jax.grad(lambda a: loss(a, "scan"))(0.7), rtol=1e-6)


# A new state's array that another reads.


@pytest.mark.parametrize(
    ("function", "pairs"),
    [
        # c' is read; a second array made before it is not taken for one that reads it.
        (lambda x, y, z: [x * y, z * jnp.tanh(x * y)], ((0, 0), (1, 0), (0, 1), (1, 1), (1, 2))),
        (lambda x, y, z: through(x * y, lambda c: [c, z * jnp.tanh(c)]), ((0, 0), (0, 1), (1, 2), (1, 3))),
        (lambda x, y, z: through(x * y, lambda h: [z * jnp.tanh(h), h]), ((0, 0), (1, 0), (0, 1), (1, 1), (0, 2))),
        # Three in a row; twice the same; one that is an input; one that is a number.
        (lambda x, y, z: through(x * y, lambda a: through(a + z, lambda b: [a, b, a * b])),
         ((0, 0), (0, 1), (1, 2), (1, 3), (2, 3), (2, 4))),
        (lambda x, y, z: through(jnp.exp(x), lambda a: [a, a]), ((0, 0), (1, 0))),
        (lambda x, y, z: [x, jnp.sin(x) * y], ((0, 0), (1, 0), (1, 1))),
        (lambda x, y, z: [jnp.ones(3), x * y * z], ((1, 0), (1, 1), (1, 2))),
    ],
)  # fmt: skip
def test_diagonals_of_outputs_in_order(function, pairs):
    x, y, z = inputs = [jnp.array([0.3, -1.2, 2.0]), jnp.array([1.5, 0.7, -0.4]), jnp.array([-0.9, 0.2, 1.1])]
    of = lambda v: function(*v)  # noqa: E731
    outputs = of(inputs)
    assert elementwise.diagonals(elementwise.in_order(of, inputs, outputs), [*inputs, *outputs]) == pairs

    new, diagonals = elementwise.linearise(of, pairs, inputs)
    chex.assert_trees_all_equal(new, outputs)
    tangents = [jnp.cos(v) for v in inputs]
    for n in range(len(outputs)):
        terms = [d * tangents[i] for (o, i), d in zip(pairs, diagonals, strict=True) if o == n]
        tangents.append(sum(terms, jnp.zeros(3)))
    want = jax.jvp(function, (x, y, z), tuple(tangents[:3]))[1]
    chex.assert_trees_all_close(tangents[3:], want, rtol=1e-6)


def through(value, function):
    return function(value)


# What is not elementwise.


def test_an_activation_over_all_units_is_not_taken_for_elementwise():
    cell = lstmjax.rnn(4, activation=jax.nn.softmax)
    params = weights(cell)

    def loss(implementation):
        return lambda p: jnp.sum(unroll(cell, p, XS, implementation=implementation)[1][..., 0] ** 2)

    chex.assert_trees_all_close(jax.grad(loss(None))(params), jax.grad(loss("scan"))(params), rtol=1e-6)
    with pytest.raises(ValueError, match=r"'fused', which cannot run this cell: .* not elementwise: reduce_max"):
        loss("fused")(params)


def test_a_custom_rule_that_mixes_units_is_not_taken_for_elementwise():
    @jax.custom_jvp
    def mixing(z):
        return jnp.tanh(z)

    mixing.defjvp(lambda primals, tangents: (jnp.tanh(primals[0]), tangents[0].sum(-1, keepdims=True) + 0 * primals[0]))
    cell = lstmjax.rnn(4, activation=mixing)
    with pytest.raises(ValueError, match="not elementwise: reduce_sum"):
        unroll(cell, weights(cell), XS, implementation="fused")


# A cell in two parts, ten lines.


def leaky(**settings):
    return Cell(
        init=lambda key, inputs, dtype=jnp.float32: {
            "w_x": jnp.ones((inputs, 10), dtype), "w_h": jnp.ones((5, 10), dtype), "rate": jnp.ones(5, dtype)
        },
        initial_state=lambda batch=(), dtype=jnp.float32: Memory(jnp.zeros((*batch, 5), dtype)),
        step=Recurrence(
            # A weight that works elementwise is one more gate.
            pre=lambda p, x, h: (x @ p["w_x"] + h @ p["w_h"], p["rate"]),
            activate=lambda z, s: Memory(sigmoid(z[0] + z[2]) * s.h + sigmoid(-z[0] - z[2]) * jnp.tanh(z[1])),
            **settings,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"lengths": np.array([12, 7])}, {"remat_block": 5, "reverse": True}], ids=str)
def test_a_cell_in_two_parts_has_the_fast_derivative(options, x64):
    cell = leaky()
    params, xs, state = problem(cell, (12, 2, 3))

    def loss(implementation):
        def of(*args):
            final, ys = unroll(cell, *args, implementation=implementation, **options)
            return jnp.sin(ys).sum() + jnp.cos(final.h).sum()

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))(params, xs, state)

    chex.assert_trees_all_close(loss("fused"), loss("scan"), atol=1e-12)


def test_only_diagonals_that_are_not_zero_are_kept():
    # Three diagonals by gates and one by h, and next to them h before every step.
    cell = leaky()
    params = weights(cell)
    _, pull_back = jax.vjp(lambda p: unroll(cell, p, XS)[1], params)
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.shape == (12, 2, 5)]
    assert len(kept) == 4 + 1


def test_a_wrong_width_of_pre_is_said():
    cell = leaky().replace(step=Recurrence(lambda p, x, h: x @ p["w_x"][:, :7], lambda z, s: Memory(z[0])))
    with pytest.raises(ValueError, match="pre returned 7 numbers a row; wanted k·H, k gates side by side, with H = 5"):
        unroll(cell, weights(leaky()), XS)


def test_gates_come_from_the_cell():
    plain = lstmjax.lstm(4)
    params = weights(plain)
    shifted = plain.replace(step=lambda p, s, x: plain.step(p._replace(b=p.b + 5), s, x))
    with pytest.raises(TypeError, match="the cell's step names no gates"):
        gate_values(shifted, params, XS)
    named = leaky(gates=lambda z, s: {"keep": sigmoid(z[0] + z[2])}, keeps="keep")
    assert gate_values(named, weights(named), XS)["keep"].shape == (12, 2, 5)


# States and inputs of any kind.


def counting():
    """Counts its steps, keeps a key, and embeds symbols."""

    def step(params, state, x):
        h, count, key = state
        h = jnp.tanh(h + params[x["symbol"]]) * x["scale"]
        return (h, count + 1, key), h

    return Cell(
        init=lambda key, inputs, dtype=jnp.float32: jnp.ones((inputs, 4), dtype),
        initial_state=lambda batch=(), dtype=jnp.float32: (
            jnp.zeros((*batch, 4), dtype), jnp.zeros(batch, jnp.int32), jnp.broadcast_to(jax.random.key(0), batch)
        ),
        step=step,
        num_feature_axes=0,
    )  # fmt: skip


def test_a_counter_a_key_and_symbols():
    cell, table = counting(), np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    xs = {"symbol": np.arange(24).reshape(12, 2) % 9, "scale": np.ones((12, 2), np.float32)[..., None][..., 0]}
    cell = cell.replace(step=lambda p, s, x: counting().step(p, s, x | {"scale": x["scale"][..., None]}))
    resets = np.zeros((12, 2), bool)
    resets[4, 1] = True
    (h, count, key), _ = unroll(cell, table, xs, lengths=np.array([12, 7]), resets=resets)
    assert count.tolist() == [12, 3]
    assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    again, _ = unroll(cell, table, xs, (h, count, key))
    assert again[1].tolist() == [24, 15]
    assert jnp.isfinite(jax.grad(lambda t: unroll(cell, t, xs)[1].sum())(table)).all()


def test_leaves_of_inputs_agree_on_time_and_batch():
    xs = {"a": jnp.ones((12, 2, 3)), "b": jnp.ones((12, 3, 3))}
    with pytest.raises(ValueError, match=r"xs\['b'\] has time and batch axes \(12, \(3,\)\), .* wanted the same"):
        unroll(lstmjax.rnn(4), None, xs)


# What a skipped step is fed.


@pytest.mark.parametrize(
    "read",
    [
        jnp.log,
        lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True),
        lambda x: (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True),
    ],
    ids=["log", "unit vector", "layer norm"],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_a_skipped_step_has_a_derivative(read, reverse):
    def step(params, h, x):
        h = jnp.tanh(h @ params + read(x))
        return h, h

    cell = Cell(lambda *_: None, lambda batch=(), dtype=jnp.float32: jnp.zeros((*batch, 3), dtype), step)
    xs, params = np.abs(XS) + 0.5, np.eye(3, dtype=np.float32)
    lengths = np.array([7, 0])
    mask = np.arange(24).reshape(12, 2) % 3 != 0
    padded = np.where((np.arange(12)[:, None] < lengths)[..., None] & mask[..., None], xs, 0.0).astype(np.float32)

    def loss(p, xs):
        return unroll(cell, p, xs, lengths=lengths, mask=mask, reverse=reverse)[1].sum()

    by_params, by_xs = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, padded)
    assert np.isfinite(by_params).all()
    assert np.isfinite(by_xs).all()
    assert np.abs(by_xs[~mask]).max() == 0
    # The same row, by itself and without its skipped steps.
    alone = jax.jit(jax.grad(lambda p: unroll(cell, p, xs[:7, 0][mask[:7, 0]], reverse=reverse)[1].sum()))(params)
    np.testing.assert_allclose(by_params, alone, rtol=1e-5, atol=1e-6)


# Cells as values.


class Module(NamedTuple):
    """A learnable activation: cannot be hashed."""

    scale: np.ndarray

    def __call__(self, z):
        return jnp.tanh(self.scale * z)


def test_cells_built_alike_are_equal_and_can_be_pickled():
    def make(a):
        return lstmjax.rnn(4, activation=lambda z: jnp.tanh(a * z))

    for one, other in [
        (lstmjax.lstm(4), lstmjax.lstm(4)), (lstmjax.gru(4), lstmjax.gru(4)), (make(2), make(2)),
        (lstmjax.projected_lstm(4, 2), lstmjax.projected_lstm(4, 2)),
        (lstmjax.lstm(4, b_init=lstmjax.init.chrono(9)), lstmjax.lstm(4, b_init=lstmjax.init.chrono(9))),
    ]:  # fmt: skip
        assert one == other
        assert hash(one) == hash(other)
        assert one != lstmjax.rnn(5)
        assert copy.deepcopy(one) == one
    assert make(2) != make(3)
    for cell in (lstmjax.lstm(4), lstmjax.gru(4), lstmjax.rnn(4), lstmjax.projected_lstm(4, 2)):
        assert pickle.loads(pickle.dumps(cell)) == cell
        assert hash(cell)
        assert b"_hash" not in pickle.dumps(cell)  # strings have others in another process


def test_a_cell_is_an_argument_of_jit_and_equal_cells_share_a_program():
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(lambda cell, params, xs: unroll(cell, params, xs)[1], n=1))
    params = weights(lstmjax.lstm(4))
    run(lstmjax.lstm(4), params, XS)
    run(lstmjax.lstm(4), params, XS)


def test_an_activation_that_cannot_be_hashed():
    cell = lstmjax.rnn(4, activation=Module(np.ones(4, np.float32)))
    params = weights(cell)
    known = unroll(lstmjax.rnn(4), params, XS, implementation="fused")
    chex.assert_trees_all_close(unroll(cell, params, XS), known, rtol=1e-6)


def test_an_activation_written_once_is_compiled_once():
    traced = []

    def call():
        def activation(z):
            traced.append(1)
            return jnp.tanh(z)

        return unroll(lstmjax.rnn(4, activation=activation), PARAMS, XS)

    PARAMS = weights(lstmjax.rnn(4))
    call()
    once = len(traced)
    call()
    assert len(traced) == once


def test_what_an_activation_closes_over_is_let_go():
    class Big:
        pass

    def run():
        big = Big()
        unroll(lstmjax.rnn(4, activation=lambda z: jnp.tanh(z) if big else z), weights(lstmjax.rnn(4)), XS)
        return weakref.ref(big)

    kept = run()
    jax.clear_caches()
    gc.collect()
    assert kept() is None


def test_modules_stay_on_the_fast_path_when_copied():
    from flax import nnx

    from lstmjax.nn.nnx import LSTM, RNN

    module = LSTM(3, 4, rngs=nnx.Rngs(0))
    xs = np.ones((2, 5, 3), np.float32)
    want = module(xs, implementation="fused")
    chex.assert_trees_all_equal(copy.deepcopy(module)(xs, implementation="fused"), want)
    # JAX's own functions are other objects once copied.
    other = RNN(3, 4, activation=jax.nn.relu, rngs=nnx.Rngs(0))
    want = other(xs, implementation="fused")
    chex.assert_trees_all_equal(copy.deepcopy(other)(xs, implementation="fused"), want)


def test_adjoints_of_a_cell_in_two_parts():
    cell = leaky()
    params = weights(cell)
    bare = cell.replace(step=lambda *a: cell.step(*a))
    loss = lambda states: states.h[-1].sum()  # noqa: E731
    got, want = (adjoint_norms(c, params, XS, loss, resets=np.arange(24).reshape(12, 2) == 8) for c in (cell, bare))
    np.testing.assert_allclose(got.h, want.h, rtol=1e-5)


@pytest.mark.parametrize(
    "pre",
    [
        lambda p, x, h: (x @ p.w_x) * (h @ p.w_h) + p.b,
        lambda p, x, h: jnp.tanh(h @ p.w_h) + x @ p.w_x,
        lambda p, x, h: x @ p.w_x + jnp.where(x.sum(-1, keepdims=True) > 0, 1, 2) * (h @ p.w_h),
    ],
    ids=["bilinear", "nested", "a slope by the input"],
)
def test_products_that_are_not_affine_are_not_taken_for_it(pre):
    plain = lstmjax.rnn(4)
    cell = plain.replace(step=Recurrence(pre, lambda z, s: lstmjax.RNNState(jnp.tanh(z[0]))))
    params = weights(cell)

    def grad(implementation):
        return jax.jit(jax.grad(lambda p: unroll(cell, p, XS, implementation=implementation)[1].sum()))(params)

    with pytest.raises(ValueError, match="its products are not affine in h"):
        grad("fused")
    chex.assert_trees_all_close(grad(None), grad("scan"), rtol=1e-6)


_NAMES = """
    celu elu gelu hard_sigmoid hard_silu hard_tanh leaky_relu log_sigmoid mish relu relu6 selu sigmoid silu soft_sign
    softplus sparse_plus sparse_sigmoid squareplus tanh
"""


@pytest.mark.parametrize("name", _NAMES.split())
def test_every_activation_of_jax_is_taken_apart(name):
    # Red where a new JAX writes one with an operation that is not known to be elementwise.
    cell = lstmjax.rnn(4, activation=getattr(jax.nn, name))
    x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    state = jax.eval_shape(lambda: cell.initial_state((2,)))
    assert isinstance(take_apart(cell.step, weights(cell), state, x), Parts)
