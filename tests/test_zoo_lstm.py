"""The LSTM's variants: against their equations in NumPy, other libraries, and the plain scan."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import init, unroll
from lstmjax.gradients import gate_values
from tests.cells import cases, compiled, loss_of, problem, same

T, B, I, H = 6, 2, 3, 4
LENGTHS = np.array([T, 4])


# The equations, one step each, written from the papers: (params, state, x) -> (state, gates).


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def affine(p, x, h):
    return x @ p.w_x + h @ p.w_h + p.b


def coupled_lstm(p, s, x):
    f, g, o = np.split(affine(p, x, s.h), 3, -1)
    f, g, o = sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * s.c + (1 - f) * g
    return s._replace(c=c, h=o * np.tanh(c)), {"input": 1 - f, "forget": f, "candidate": g, "output": o}


def lstm_1997(p, s, x):
    i, g, o = np.split(affine(p, x, s.h), 3, -1)
    i, g, o = sigmoid(i), 4 * sigmoid(g) - 2, sigmoid(o)
    c = s.c + i * g
    return s._replace(c=c, h=o * (2 * sigmoid(c) - 1)), {"input": i, "candidate": g, "output": o}


def janet(p, s, x):
    z, g = np.split(affine(p, x, s.h), 2, -1)
    f, i, g = sigmoid(z), 1 - sigmoid(z - 0.5), np.tanh(g)
    return s._replace(h=f * s.h + i * g), {"input": i, "forget": f, "candidate": g}


def peephole_lstm(p, s, x):
    i, f, g, o = np.split(affine(p, x, s.h), 4, -1)
    p_i, p_f, p_o = np.split(p.p, 3)
    i, f, g = sigmoid(i + p_i * s.c), sigmoid(f + p_f * s.c), np.tanh(g)
    c = f * s.c + i * g
    o = sigmoid(o + p_o * c)
    return s._replace(c=c, h=o * np.tanh(c)), {"input": i, "forget": f, "candidate": g, "output": o}


def layer_norm(v):
    return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)


def layer_norm_lstm(p, s, x):
    z = p.gain_x * layer_norm(x @ p.w_x) + p.gain_h * layer_norm(s.h @ p.w_h) + p.b
    i, f, g, o = np.split(z, 4, -1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * s.c + i * g
    h = o * np.tanh(p.gain_c * layer_norm(c) + p.b_c)
    return s._replace(c=c, h=h), {"input": i, "forget": f, "candidate": g, "output": o}


def lstm(z, s):
    i, f, g, o = np.split(z, 4, -1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c = f * s.c + i * g
    return s._replace(c=c, h=o * np.tanh(c)), {"input": i, "forget": f, "candidate": g, "output": o}


def multiplicative_lstm(p, s, x):
    return lstm(affine(p, x, (x @ p.w_mx) * (s.h @ p.w_mh)), s)


def convolve(v, kernel, wrap):
    """Every place reads its neighbours, one by one; beyond the border are zeros, or the other side."""
    space, sizes = v.shape[1:-1], kernel.shape[:-2]
    out = np.zeros((*v.shape[:-1], kernel.shape[-1]))
    for at in np.ndindex(*space):
        for k in np.ndindex(*sizes):
            there = tuple(a + n - (size - 1) // 2 for a, n, size in zip(at, k, sizes, strict=True))
            if wrap:
                there = tuple(n % size for n, size in zip(there, space, strict=True))
            if all(0 <= n < size for n, size in zip(there, space, strict=True)):
                out[:, *at] += v[:, *there] @ kernel[k]
    return out


def conv_lstm(wrap):
    return lambda p, s, x: lstm(convolve(x, p.w_x, wrap) + convolve(s.h, p.w_h, wrap) + p.b, s)


def slstm(p, s, x):
    """Without a stabiliser: c and n are taken as they are, and divided only to be compared."""
    blocks = np.zeros((H, 4, H))
    for k, block in enumerate(p.w_h):  # [D, 4D] of the head's own units
        own = slice(k * len(block), (k + 1) * len(block))
        blocks[own, :, own] = block.reshape(len(block), 4, len(block))
    i, f, g, o = np.split(x @ p.w_x + s.h @ blocks.reshape(H, 4 * H) + p.b, 4, -1)
    m = np.where(s.n == 0, i, np.maximum(i, np.log(sigmoid(f)) + s.m))
    c, n = s.c * np.exp(s.m), s.n * np.exp(s.m)
    c_new = sigmoid(f) * c + np.exp(i) * np.tanh(g)
    n_new = sigmoid(f) * n + np.exp(i)
    gates = {
        "input": np.exp(i) / n_new, "forget": sigmoid(f) * n / n_new, "candidate": np.tanh(g), "output": sigmoid(o)
    }  # fmt: skip
    return type(s)(c_new * np.exp(-m), n_new * np.exp(-m), m, sigmoid(o) * c_new / n_new), gates


# A cell, its equations, the gate that keeps its state, and why the fast unroll cannot take it, where it cannot.
ZOO = {
    "coupled_lstm": (lstmjax.coupled_lstm(H), coupled_lstm, "forget", None),
    "lstm_1997": (lstmjax.lstm_1997(H), lstm_1997, None, None),
    "janet": (lstmjax.janet(H, beta=0.5), janet, "forget", None),
    "peephole_lstm": (lstmjax.peephole_lstm(H), peephole_lstm, "forget", None),
    "layer_norm_lstm": (lstmjax.layer_norm_lstm(H), layer_norm_lstm, "forget", "its products are not affine in h"),
    "multiplicative_lstm": (
        lstmjax.multiplicative_lstm(H), multiplicative_lstm, "forget", "its products are not affine in h"
    ),
    "slstm": (lstmjax.slstm(H, heads=2), slstm, "forget", None),
    "conv_lstm 1": (lstmjax.conv_lstm(H, (5,)), conv_lstm(wrap=False), "forget", None),
    "conv_lstm 2": (
        lstmjax.conv_lstm(H, (3, 4), kernel_size=(2, 3), padding="CIRCULAR"), conv_lstm(wrap=True), "forget", None
    ),
    "conv_lstm 3": (lstmjax.conv_lstm(H, (2, 3, 2), kernel_size=(3, 2, 1)), conv_lstm(wrap=False), "forget", None),
}  # fmt: skip
SPACE = {"conv_lstm 1": (5,), "conv_lstm 2": (3, 4), "conv_lstm 3": (2, 3, 2)}
named = pytest.mark.parametrize(
    "name", cases(ZOO, slow=["conv_lstm 1", "conv_lstm 3", "coupled_lstm", "peephole_lstm"])
)


def drawn(name, dtype=jnp.float64):
    """Parameters, inputs and a state."""
    cell, space = ZOO[name][0], SPACE.get(name, ())
    params, xs, state = problem(cell, (T, B, *space, I), dtype=dtype)
    if name == "slstm":  # a normaliser is not negative
        state = state._replace(n=1 + abs(state.n))
    return params, xs, state


def by_equations(step, params, xs, state, lengths):
    """The final state, the outputs and the gates; where a step is skipped 0 and NaN."""
    params, xs, state = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, xs, state))
    ys, gates = [], []
    for t, x in enumerate(xs):
        taken = (t < lengths).reshape(-1, *(1,) * (x.ndim - 1))
        new, values = step(params, state, x)
        state = jax.tree.map(lambda a, b, taken=taken: np.where(taken, a, b), new, state)
        ys.append(np.where(taken, state.h, 0.0))
        gates.append({k: np.where(taken, v, np.nan) for k, v in values.items()})
    return state, np.stack(ys), {k: np.stack([g[k] for g in gates]) for k in gates[0]}


@named
def test_values_gates_and_gradients(name, x64):
    cell, step, keeps, reason = ZOO[name]
    params, xs, state = drawn(name)

    def both(params, xs, state):
        def run(implementation):
            return lambda *args: unroll(cell, *args, lengths=LENGTHS, implementation=implementation)

        def gradient(implementation):
            return jax.grad(loss_of(run(implementation)), argnums=(0, 1, 2))(params, xs, state)

        values = *run(None)(params, xs, state), gate_values(cell, params, xs, state, lengths=LENGTHS)
        return values, gradient(None), gradient("scan")

    values, fast, plain = compiled(both, params, xs, state)
    same(values, by_equations(step, params, xs, state, LENGTHS))
    same(fast, plain, 1e-11)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(fast[0]))
    assert cell.step.keeps == keeps
    if reason is None:
        jax.eval_shape(lambda *args: unroll(cell, *args, implementation="fused"), params, xs, state)
    else:
        with pytest.raises(ValueError, match=f"'fused', which cannot run this cell: {reason}"):
            unroll(cell, params, xs, state, implementation="fused")


@named
def test_cells_are_values(name):
    cell = ZOO[name][0]
    again = pickle.loads(pickle.dumps(cell))
    assert again == cell
    assert hash(again) == hash(cell)
    shapes = jax.eval_shape(lambda key: cell.init(key, I), jax.random.key(0))
    with pytest.raises(ValueError, match="x has shape"):
        cell.step(shapes, cell.initial_state((B,)), jnp.ones((B, *SPACE.get(name, ()), I + 1)))
    with pytest.raises(ValueError, match=r"state\.[ch] has shape"):
        cell.step(shapes, cell.initial_state((B + 1,)), jnp.ones((B, *SPACE.get(name, ()), I)))


# How they begin.


def biases(cell):
    return np.asarray(cell.init(jax.random.key(0), I).b).reshape(-1, H)


@pytest.mark.parametrize(
    ("make", "gates", "keep", "admit"),
    [
        (lstmjax.coupled_lstm, 3, 0, None),
        (lstmjax.janet, 2, 0, None),
        (lstmjax.peephole_lstm, 4, 1, 0),
        (lstmjax.layer_norm_lstm, 4, 1, 0),
        (lstmjax.multiplicative_lstm, 4, 1, 0),
        (lstmjax.slstm, 4, 1, 0),
        (lambda size, **options: lstmjax.conv_lstm(size, (3,), **options), 4, 1, 0),
    ],
)
def test_the_bias_of_the_gate_that_keeps_the_state(make, gates, keep, admit):
    want = np.zeros((gates, H))
    for value, options in ((1.0, {}), (3.0, {"forget_bias": 3.0})):
        want[keep] = value
        np.testing.assert_array_equal(biases(make(H, **options)), want)
    got = biases(make(H, b_init=init.chrono(50, gates=gates, keeps=keep, enters=admit)))
    assert ((got[keep] > 0) & (got[keep] < np.log(49))).all()
    want[keep] = got[keep]
    if admit is not None:
        want[admit] = -got[keep]
    np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="forget_bias and b_init both set the biases"):
        make(H, forget_bias=1.0, b_init=init.zeros)


def test_chrono_without_a_gate_that_keeps():
    got = biases(lstmjax.lstm_1997(H, b_init=init.chrono(50, gates=3, keeps=None, enters=0)))
    assert (got[0] < 0).all()
    assert not got[1:].any()


def test_a_block_that_is_not_there_is_said():
    with pytest.raises(ValueError, match="gate is 4; wanted one of the blocks 0 to 3, since gates is 4"):
        init.gate_bias(1.0, gate=4, gates=4)
    with pytest.raises(ValueError, match="enters is 2; wanted one of the blocks 0 to 1, since gates is 2"):
        init.chrono(9, gates=2, keeps=0, enters=2)


# What they share with the LSTM.


def test_without_peepholes_it_is_the_lstm():
    cell, plain = lstmjax.peephole_lstm(H), lstmjax.lstm(H)
    params, xs, _ = problem(plain, (T, B, I), dtype=jnp.float32)
    peeping = lstmjax.PeepholeLSTMParams(*params, p=jnp.zeros(3 * H))
    same(*compiled(lambda xs: (unroll(cell, peeping, xs), unroll(plain, params, xs)), xs), 1e-6)


@pytest.mark.parametrize(
    ("name", "field", "wanted"),
    [
        ("peephole_lstm", "p", r"\(11,\); wanted \[12\]"),
        ("janet", "w_h", r"\(3, 8\); wanted \[4, 8\]"),
        ("multiplicative_lstm", "w_mh", r"\(3, 4\); wanted \[4, 4\]"),
        ("layer_norm_lstm", "b_c", r"\(3,\); wanted \[4\]"),
        ("slstm", "w_h", r"\(1, 2, 8\); wanted \[2, 2, 8\]"),
    ],
)
def test_weights_that_do_not_fit_are_said(name, field, wanted):
    cell = ZOO[name][0]
    params, xs, state = drawn(name, dtype=jnp.float32)
    message = f"params.{field} has shape {wanted}, since the cell is of H = 4 hidden units: are these another cell's"
    with pytest.raises(ValueError, match=message):
        cell.step(params._replace(**{field: getattr(params, field)[1:]}), state, xs[0])


def test_another_cells_weights_are_said():
    cell = lstmjax.coupled_lstm(H)
    params, xs, state = drawn("coupled_lstm", dtype=jnp.float32)
    larger = jax.eval_shape(lambda key: lstmjax.coupled_lstm(H + 1).init(key, I), jax.random.key(0))
    message = r"params.w_x has shape \(3, 15\); wanted \[I, 12\], since the cell is of H = 4 hidden units"
    with pytest.raises(ValueError, match=message):
        cell.step(larger, state, xs[0])
    with pytest.raises(TypeError, match="params is a CoupledLSTMParams; wanted PeepholeLSTMParams"):
        lstmjax.peephole_lstm(H).step(params, state, xs[0])


# What the convolution shares with other libraries, and the rest of what is said.


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR"])
def test_flax_convolutional(padding):
    import flax.linen as nn

    space, kernel = (4, 5), (3, 2)
    theirs = nn.ConvLSTMCell(H, kernel, padding=padding)
    cell = lstmjax.conv_lstm(H, space, kernel_size=kernel, padding=padding)
    params, xs, _ = problem(cell, (T, B, *space, I), dtype=jnp.float32)
    state = jax.tree.map(lambda a: 0.1 + jnp.zeros_like(a), cell.initial_state((B,)))

    def order(a):
        """To Flax's i, g, f, o, which adds 1 to f itself."""
        i, f, g, o = jnp.split(a, 4, -1)
        return jnp.concatenate([i, g, f, o], -1)

    bias = order(params.b.at[H : 2 * H].add(-1.0))
    weights = {
        "ih": {"kernel": order(params.w_x), "bias": bias},
        "hh": {"kernel": order(params.w_h), "bias": jnp.zeros_like(bias)},
    }

    def both(xs, state):
        ours = unroll(cell, params, xs, state)
        carry, ys = jax.lax.scan(lambda c, x: theirs.apply({"params": weights}, c, x), (state.c, state.h), xs)
        return ours, (lstmjax.LSTMState(*carry), ys)

    same(*compiled(both, xs, state), 1e-5)


def test_pytorch_layer_norm(x64):
    torch = pytest.importorskip("torch")
    params, xs, state = drawn("layer_norm_lstm")
    p = jax.tree.map(lambda a: torch.tensor(np.asarray(a)), params)
    c, h = (torch.tensor(np.asarray(a)) for a in state)
    norm = torch.nn.functional.layer_norm
    for x in torch.tensor(np.asarray(xs)):
        z = norm(x @ p.w_x, (4 * H,), p.gain_x) + norm(h @ p.w_h, (4 * H,), p.gain_h, p.b)
        i, f, g, o = z.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * norm(c, (H,), p.gain_c, p.b_c).tanh()
    final, _ = compiled(lambda *args: unroll(ZOO["layer_norm_lstm"][0], *args), params, xs, state)
    same(tuple(final), (c.numpy(), h.numpy()))


def test_exponential_gates_do_not_overflow():
    cell = lstmjax.slstm(H)
    params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)
    loud = params._replace(b=params.b.at[:H].set(500.0))
    quiet = params._replace(b=params.b.at[:H].set(-500.0))
    loss = lambda p: jnp.sin(unroll(cell, p, xs)[1]).sum()  # noqa: E731
    run = jax.jit(jax.vmap(jax.value_and_grad(loss)))
    # The scale of all input gates cancels: h is a mean.
    values, gradients = run(jax.tree.map(lambda *a: jnp.stack(a), loud, quiet, params))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(values, values[2], rtol=1e-3)


def test_each_head_and_gate_begins_orthogonal():
    cell = lstmjax.slstm(H, heads=2)
    w_h = cell.init(jax.random.key(0), I).w_h
    np.testing.assert_allclose(np.einsum("kdn,ken->kde", w_h[..., :2], w_h[..., :2]), [np.eye(2)] * 2, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lstmjax.slstm(4, heads=3), "heads is 3; wanted a number that divides hidden_size, 4"),
        (lambda: lstmjax.conv_lstm(4, ()), "spatial_shape is .*; wanted one, two or three sizes"),
        (lambda: lstmjax.conv_lstm(4, (5, 5), kernel_size=(3,)), "kernel_size is .*; wanted 2 sizes"),
        (lambda: lstmjax.conv_lstm(4, (5,), padding="VALID"), "padding is 'VALID'; wanted 'SAME' or 'CIRCULAR'"),
        (lambda: lstmjax.conv_lstm(4, (0,)), "a size in spatial_shape is 0; wanted a whole number of at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
