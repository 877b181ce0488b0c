"""The GRU's kin and the other recurrent cells, each against its equations in NumPy, and against whoever else has it."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import init, unroll
from lstmjax.gradients import gate_statistics, gate_values
from tests.cells import cases, compiled, loss_of, problem, same

H = 4


def sigma(z):
    return 1 / (1 + np.exp(-z))


def cut(a, parts):
    return np.split(a, parts, axis=-1)


def ugrnn(p, s, x, candidate=np.tanh):
    z, n = cut(x @ p.w_x + s.h @ p.w_h + p.b, 2)
    return s._replace(h=sigma(z) * s.h + (1 - sigma(z)) * candidate(n))


def light_gru(p, s, x):
    return ugrnn(p, s, x, lambda n: np.maximum(n, 0))


def mgu(p, s, x):
    (x_z, x_n), (h_z, h_n) = cut(x @ p.w_x + p.b, 2), cut(s.h @ p.w_h, 2)
    z = sigma(x_z + h_z)
    return s._replace(h=z * s.h + (1 - z) * np.tanh(x_n + z * (h_n + p.b_n)))


def gru_reset_before(p, s, x):
    x_r, x_z, x_n = cut(x @ p.w_x + p.b, 3)
    w_r, w_z, w_n = cut(p.w_h, 3)
    r, z = sigma(x_r + s.h @ w_r), sigma(x_z + s.h @ w_z)
    return s._replace(h=z * s.h + (1 - z) * np.tanh(x_n + (r * s.h) @ w_n))


def fast_grnn(p, s, x):
    a, (b_z, b_n) = x @ p.w_x + s.h @ p.w_h, cut(p.b, 2)
    z = sigma(a + b_z)
    return s._replace(h=z * s.h + (sigma(p.zeta) * (1 - z) + sigma(p.nu)) * np.tanh(a + b_n))


def min_gru(p, s, x):
    z, n = cut(x @ p.w_x + p.b, 2)
    return s._replace(h=sigma(z) * s.h + (1 - sigma(z)) * n)


def min_lstm(p, s, x):
    i, f, n = cut(x @ p.w_x + p.b, 3)
    i, f = sigma(i), sigma(f)
    return s._replace(h=f / (f + i) * s.h + i / (f + i) * n)


def first_by_h(p, s, x):
    """The gates that read x and h, and what reads x alone."""
    by_x, gates = x @ p.w_x, p.b.shape[0] // H
    by_h = s.h @ p.w_h
    by_x[..., : gates * H] += p.b
    by_x[..., : by_h.shape[-1]] += by_h
    return cut(by_x, by_x.shape[-1] // H)


def ran(p, s, x):
    i, f, g = first_by_h(p, s, x)
    c = sigma(f) * s.c + sigma(i) * g
    return s._replace(c=c, h=np.tanh(c))


def cfn(p, s, x):
    i, f, g = first_by_h(p, s, x)
    return s._replace(h=sigma(f) * np.tanh(s.h) + sigma(i) * np.tanh(g))


def star(p, s, x):
    z, n = first_by_h(p, s, x)
    return s._replace(h=np.tanh(sigma(z) * s.h + (1 - sigma(z)) * np.tanh(n)))


def nbrc(p, s, x):
    a, z, n = first_by_h(p, s, x)
    return s._replace(h=sigma(z) * s.h + (1 - sigma(z)) * np.tanh(n + (1 + np.tanh(a)) * s.h))


def ind_rnn(p, s, x):
    return s._replace(h=np.maximum(x @ p.w_x + p.w_h * s.h + p.b, 0))


def leaky_rnn(p, s, x):
    return s._replace(h=0.7 * s.h + 0.3 * np.tanh(x @ p.w_x + s.h @ p.w_h + p.b))


def continuous_time_rnn(p, s, x):
    rate = 1 / (1 + np.exp(p.keep))
    return s._replace(h=s.h + rate * (np.tanh(x @ p.w_x + s.h @ p.w_h + p.b) - s.h))


def antisymmetric(p, s, x, gated=False):
    a = s.h @ (p.w_h - p.w_h.T - 0.02 * np.eye(H))
    parts = cut(x @ p.w_x + p.b, 2 if gated else 1)
    return s._replace(h=s.h + 0.3 * np.tanh(parts[0] + a) * (sigma(parts[1] + a) if gated else 1))


def antisymmetric_gated(p, s, x):
    return antisymmetric(p, s, x, gated=True)


def co_rnn(p, s, x):
    v = s.v + 0.3 * (np.tanh(x @ p.w_x + s.h @ p.w_h + s.v @ p.w_v + p.b) - 0.9 * s.h - 0.4 * s.v)
    return s._replace(h=s.h + 0.3 * v, v=v)


def lem(p, s, x):
    (x_a, x_b, x_z, x_h), (h_a, h_b, h_z) = cut(x @ p.w_x + p.b, 4), cut(s.h @ p.w_h, 3)
    a, b = 0.8 * (1 - sigma(x_a + h_a)), 0.8 * (1 - sigma(x_b + h_b))
    z = (1 - a) * s.z + a * np.tanh(x_z + h_z)
    return s._replace(z=z, h=(1 - b) * s.h + b * np.tanh(x_h + z @ p.w_z))


NOT_AFFINE, NOT_IN_PARTS = "its products are not affine in h", "its step is not made of two parts"
CELLS = {  # the cell, its equations, its gates, and why it is not on the fast path
    "ugrnn": (lstmjax.ugrnn(H), ugrnn, "candidate update", None),
    "light_gru": (lstmjax.light_gru(H), light_gru, "candidate update", None),
    "mgu": (lstmjax.mgu(H), mgu, "candidate update", None),
    "mgu without reset": (lstmjax.mgu(H, reset_gate=False), ugrnn, "candidate update", None),
    "gru_reset_before": (lstmjax.gru_reset_before(H), gru_reset_before, "candidate reset update", NOT_AFFINE),
    "fast_grnn": (lstmjax.fast_grnn(H), fast_grnn, "candidate update", None),
    "min_gru": (lstmjax.min_gru(H), min_gru, "candidate update", None),
    "min_lstm": (lstmjax.min_lstm(H), min_lstm, "candidate forget input", None),
    "ran": (lstmjax.ran(H), ran, "candidate forget input", None),
    "cfn": (lstmjax.cfn(H), cfn, "candidate forget input", None),
    "star": (lstmjax.star(H), star, "candidate update", None),
    "nbrc": (lstmjax.nbrc(H), nbrc, "candidate feedback update", None),
    "ind_rnn": (lstmjax.ind_rnn(H), ind_rnn, "", None),
    "leaky_rnn": (lstmjax.leaky_rnn(H, tau=2.0, dt=0.6), leaky_rnn, "", None),
    "continuous_time_rnn": (lstmjax.continuous_time_rnn(H), continuous_time_rnn, "candidate keep", None),
    "antisymmetric_rnn": (lstmjax.antisymmetric_rnn(H, epsilon=0.3, gamma=0.02), antisymmetric, "", None),
    "antisymmetric_rnn gated": (
        lstmjax.antisymmetric_rnn(H, epsilon=0.3, gamma=0.02, gated=True), antisymmetric_gated, "candidate input", None
    ),
    "co_rnn": (lstmjax.co_rnn(H, dt=0.3, gamma=0.9, epsilon=0.4), co_rnn, "", NOT_IN_PARTS),
    "lem": (lstmjax.lem(H, dt=0.8), lem, "", NOT_IN_PARTS),
}  # fmt: skip


def test_cells_built_alike_are_equal_and_can_be_pickled():
    for name, (cell, *_) in CELLS.items():
        assert pickle.loads(pickle.dumps(cell)) == cell, name
    assert CELLS["mgu without reset"][0] == CELLS["ugrnn"][0]  # the same equations, and so the same program
    assert len({cell for cell, *_ in CELLS.values()}) == len(CELLS) - 1


def test_exported_programs_can_take_and_return_them():
    pytest.importorskip("flatbuffers")
    for cell, *_ in CELLS.values():
        params = jax.eval_shape(lambda key, cell=cell: cell.init(key, 3), jax.random.key(0))
        state = jax.eval_shape(cell.initial_state)
        jax.export.export(jax.jit(lambda *args: args))(params, state).serialize()


def over_time(step, params, xs, state):
    ys = []
    for x in np.asarray(xs):
        state = step(params, state, x)
        ys.append(state.h)
    return state, np.stack(ys)


@pytest.mark.parametrize("name", cases(CELLS, slow=CELLS.keys() - {"mgu", "min_gru", "lem"}))
def test_values_derivatives_and_gates(name, x64):
    cell, step, gates, why_not = CELLS[name]
    params, xs, state = problem(cell, (6, 2, 3))

    def loss(implementation):
        return loss_of(lambda *args: unroll(cell, *args, implementation=implementation))

    def both(*args):
        ways = ("scan",) if why_not else ("fused", "scan")
        named = gate_values(cell, *args) if gates else {}
        return unroll(cell, *args), [jax.grad(loss(way), argnums=(0, 1, 2))(*args) for way in ways], named

    got, gradients, named = compiled(both, params, xs, state)
    same(got, over_time(step, *jax.tree.map(np.asarray, (params, xs, state))), 1e-13)
    same(gradients[0], gradients[-1], 1e-11)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    assert " ".join(sorted(named)) == gates
    if why_not:
        with pytest.raises(ValueError, match=why_not):
            jax.eval_shape(lambda *args: unroll(cell, *args, implementation="fused"), params, xs, state)


def test_1_minus_the_gate_keeps_its_digits():
    # Of a state that is kept but for e^−40 a step, what is renewed is that much, and not 0.
    for name, z in [
        ("ugrnn", (40, 1)), ("mgu", (40, 1, 1)), ("star", (40, 1)), ("nbrc", (0, 40, 1)), ("min_gru", (40, 1)),
        ("min_lstm", (-40, 40, 1)), ("continuous_time_rnn", (1, 40)),
    ]:  # fmt: skip
        cell = CELLS[name][0]
        new = cell.step.activate(tuple(jnp.full(H, float(n)) for n in z), cell.initial_state())
        assert 0.7 < float(new.h[0]) / np.exp(-40) <= 1.01, name
    gates = CELLS["min_lstm"][0].step.gates((jnp.array(-200.0), jnp.array(-200.0), jnp.array(1.0)), None)
    assert float(gates["forget"]) == 0.5  # both shut: 0/0, were it written as it stands


@pytest.mark.parametrize("reset_gate", [True, False])
def test_mgu_is_that_of_flax(reset_gate):
    from flax import linen

    cell, module = lstmjax.mgu(H, reset_gate=reset_gate), linen.MGUCell(H, reset_gate=reset_gate)
    params, xs, state = problem(cell, (6, 2, 3), dtype=jnp.float32)
    (w_f, w_n), (u_f, u_n), (b_f, b_n) = (jnp.split(a, 2, axis=-1) for a in params[:3])
    theirs = {
        "if": {"kernel": w_f, "bias": b_f}, "in": {"kernel": w_n, "bias": b_n},
        "hf": {"kernel": u_f}, "hn": {"kernel": u_n} | ({"bias": params.b_n} if reset_gate else {}),
    }  # fmt: skip

    def both(theirs, params, xs, state):
        _, ys = jax.lax.scan(lambda h, x: module.apply({"params": theirs}, h, x), state.h, xs)
        return ys, unroll(cell, params, xs, state)[1]

    same(*compiled(both, theirs, params, xs, state), 1e-6)
    ours = jax.eval_shape(lambda: module.init(jax.random.key(0), state.h, xs[0]))["params"]
    assert jax.tree.map(jnp.shape, theirs) == jax.tree.map(jnp.shape, ours)


@pytest.mark.slow
def test_gru_reset_before_is_that_of_keras(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    cell = lstmjax.gru_reset_before(H)
    params, xs, state = problem(cell, (6, 2, 3), dtype=jnp.float32)
    layer = keras.layers.GRU(H, reset_after=False, return_sequences=True)
    layer.build((2, 6, 3))
    order = lambda a: np.concatenate([cut(np.asarray(a), 3)[n] for n in (1, 0, 2)], -1)  # noqa: E731
    layer.set_weights([order(params.w_x), order(params.w_h), order(params.b)])
    theirs = layer(np.swapaxes(xs, 0, 1), initial_state=np.asarray(state.h))
    same(np.swapaxes(np.asarray(theirs), 0, 1), np.asarray(unroll(cell, params, xs, state)[1]), 1e-5)


# Biases.


def drawn(cell):
    return cell.init(jax.random.key(0), 3)


@pytest.mark.parametrize(
    ("make", "name", "block", "gates"),
    [
        (lstmjax.gru, "update_bias", 1, 3),
        (lstmjax.gru_reset_before, "update_bias", 1, 3),
        (lstmjax.mgu, "update_bias", 0, 2),
        (lstmjax.light_gru, "update_bias", 0, 2),
        (lstmjax.ugrnn, "update_bias", 0, 2),
        (lstmjax.fast_grnn, "update_bias", 0, 2),
        (lstmjax.min_gru, "update_bias", 0, 2),
        (lstmjax.min_lstm, "forget_bias", 1, 3),
        (lstmjax.ran, "forget_bias", 1, 2),
        (lstmjax.cfn, "forget_bias", 1, 2),
        (lstmjax.star, "update_bias", 0, 2),
        (lstmjax.nbrc, "update_bias", 1, 2),
        (lstmjax.lem, "update_bias", 0, 2),
    ],
)
def test_the_gate_that_keeps_the_state_is_given_its_bias(make, name, block, gates):
    params = drawn(make(H, **{name: 3.0}))
    blocks = np.split(np.asarray(params.b), gates)
    assert [b.tolist() for b in blocks] == [[3.0 * (n == block)] * len(b) for n, b in enumerate(blocks)]
    if hasattr(params, "b_n"):
        assert params.b_n.tolist() == [0] * H
    cell = make(H, **{name: 3.0})
    if (keeps := getattr(cell.step, "keeps", None)) and make is not lstmjax.min_lstm:
        share = gate_values(cell, params, np.zeros((1, 3), np.float32))[keeps][0]
        np.testing.assert_allclose(share, sigma(3.0), rtol=1e-6)
    with pytest.raises(ValueError, match=f"{name} and b_init both set the biases; give one of them"):
        make(H, b_init=init.zeros, **{name: 3.0})


def test_chrono_of_any_cell():
    lags = init.chrono(1000, keeps=1, enters=None, gates=3)
    cell = lstmjax.gru(300, b_init=lags, w_x_init=init.zeros, w_h_init=init.zeros)
    params = drawn(cell)
    assert params.b_n.tolist() == [0] * 300  # H is a multiple of 3, and no block of b_n is an update gate's
    r, z, n = np.split(np.asarray(params.b), 3)
    assert not r.any()
    assert not n.any()
    assert 1 <= np.exp(z).min() < 30
    assert 970 < np.exp(z).max() <= 999.01
    # It keeps: the update gate says how much of h stays, and the time scales are spread.
    still = gate_statistics(cell, params, np.zeros((1, 3), np.float32))["update"]
    assert 400 < np.median(still.timescale) < 600
    b = np.asarray(init.chrono(1000)(jax.random.key(0), (8,), jnp.float32))
    np.testing.assert_array_equal(np.asarray(init.chrono(1000, gates=2)(jax.random.key(0), (4,), jnp.float32)), b[:4])
    with pytest.raises(ValueError, match="keeps is 3; wanted one of the blocks 0 to 2, since gates is 3"):
        init.chrono(1000, keeps=3, gates=3)


def test_chrono_of_a_flax_gru():
    from flax import nnx

    from lstmjax.nn.nnx import GRU

    # 6 is a multiple of 3: of b_n alone, a third would be taken for an update gate's.
    module = GRU(3, 6, bias_init=init.chrono(1000, keeps=1, enters=None, gates=3), rngs=nnx.Rngs(0))
    biases = {k[-1]: np.asarray(v) for k, v in nnx.to_flat_state(nnx.state(module, nnx.Param)) if v.ndim == 1}
    assert {k: np.abs(v).reshape(-1, 6).max(-1).round().astype(bool).tolist() for k, v in biases.items()} == {
        "b": [False, True, False], "b_n": [False]
    }  # fmt: skip


def test_leaks():
    keep = drawn(lstmjax.continuous_time_rnn(H, tau=5.0, dt=0.5)).keep
    np.testing.assert_allclose(0.5 * (1 + np.exp(keep)), 5.0, rtol=1e-6)
    for make, settings, says in [
        (lstmjax.leaky_rnn, {"tau": 0.5}, "dt is 1.0 and tau is 0.5; wanted dt above 0 and at most tau"),
        (lstmjax.continuous_time_rnn, {"tau": 1.0}, "tau is 1.0; wanted above dt, 1.0"),
        (lstmjax.continuous_time_rnn, {"tau": 2.0, "keep_init": init.zeros}, "tau and keep_init both set"),
    ]:
        with pytest.raises(ValueError, match=says):
            make(H, **settings)


def test_what_does_not_fit_is_said():
    cell = lstmjax.ran(H)
    params, xs, state = problem(cell, (6, 2, 3), dtype=jnp.float32)
    for given, says in [
        ((params._replace(w_h=params.w_x), xs, state), r"params.w_h has shape \(3, 12\); wanted \[4, 8\], since the"),
        ((params, xs[..., :2], state), r"x has shape \(2, 2\); wanted \[..., I\] with I = 3"),
        ((params, xs, state._replace(c=state.c[:1])), "state"),
    ]:
        with pytest.raises(ValueError, match=says):
            unroll(cell, *given)
    with pytest.raises(TypeError, match="params is a dict with keys 'w_x'; wanted GatedParams"):
        unroll(cell, {"w_x": params.w_x}, xs)
    with pytest.raises(TypeError, match=r"params is .*; wanted MinimalParams"):
        unroll(lstmjax.min_gru(H), (1, 2), xs)
