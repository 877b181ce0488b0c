"""Values and gradients against independent implementations: NumPy, finite differences, PyTorch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import unroll
from tests import reference
from tests.cells import CELLS, EVERY_CELL, cases, compiled, inner, loss_of, problem, same


def test_lstm_equals_numpy(x64):
    cell = lstmjax.lstm(7)
    args = problem(cell, (23, 4, 3))
    weights = np.random.default_rng(9).normal(size=(23, 4, 7))

    def loss(params, xs, state):
        final, ys = unroll(cell, params, xs, state)
        return (weights * ys).sum() + jnp.sin(final.c).sum(), (final, ys)

    grads, (final, ys) = compiled(jax.grad(loss, argnums=(0, 1, 2), has_aux=True), *args)
    params, xs, state = jax.tree.map(np.asarray, args)
    expected_ys, expected_c, tape = reference.lstm(*params, xs, *state)
    np.testing.assert_allclose(ys, expected_ys, atol=1e-10, rtol=0)
    np.testing.assert_allclose(final.c, expected_c, atol=1e-10, rtol=0)
    np.testing.assert_array_equal(final.h, ys[-1])
    expected = reference.lstm_backward(params.w_x, params.w_h, tape, weights, np.cos(expected_c))
    for got, want in zip(jax.tree.leaves(grads), expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", EVERY_CELL)
def test_derivatives_equal_finite_differences(name, x64):
    # Forward and reverse mode, first and second order, along one direction in all arguments at once.
    cell, eps = CELLS[name], 1e-6
    loss = loss_of(lambda *args: unroll(cell, *args, lengths=np.array([4, 2])))
    at, along = problem(cell, (4, 2, 3)), problem(cell, (4, 2, 3), seed=1)

    def derivatives(at, along):
        def moved(scale):
            return jax.tree.map(lambda a, v: a + scale * v, at, along)

        gradient = jax.grad(lambda at: loss(*at))
        nearby = jax.lax.map(lambda scale: (loss(*moved(scale)), gradient(moved(scale))), np.array([-eps, eps]))
        first = {
            "differences": (nearby[0][1] - nearby[0][0]) / (2 * eps),
            "forward": jax.jvp(lambda at: loss(*at), (at,), (along,))[1],
            "reverse": inner(gradient(at), along),
        }
        second = {
            "differences": jax.tree.map(lambda g: (g[1] - g[0]) / (2 * eps), nearby[1]),
            "forward over reverse": jax.jvp(gradient, (at,), (along,))[1],
            "reverse over reverse": jax.grad(lambda at: inner(gradient(at), along))(at),
            "reverse over forward": jax.grad(lambda at: jax.jvp(lambda a: loss(*a), (at,), (along,))[1])(at),
        }
        return first, second

    for ways in compiled(derivatives, at, along):
        differences, exact, *others = ways.values()
        same(differences, exact, 1e-7)
        for other in others:
            same(other, exact, 1e-11)


def torch_model(kind, layers, bidirectional, seed):
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    return torch, getattr(torch.nn, kind)(3, 5, num_layers=layers, bidirectional=bidirectional)


def params_from_torch(model, layer, suffix=""):
    """One direction of one layer: transposed, and the two biases added where they add."""

    def get(name):
        return getattr(model, f"{name}_l{layer}{suffix}").detach().numpy()

    w_x, w_h, b_x, b_h = get("weight_ih").T, get("weight_hh").T, get("bias_ih"), get("bias_hh")
    if model.mode == "GRU":
        recurrent = np.concatenate([b_h[:10], np.zeros(5, np.float32)])
        return lstmjax.GRUParams(w_x, w_h, b_x + recurrent, b_h[10:])
    kind = lstmjax.LSTMParams if model.mode == "LSTM" else lstmjax.RNNParams
    return kind(w_x, w_h, b_x + b_h)


# How many layers, whether of two directions, whether of padded sequences. A padded batch has a full row too.
QUICK = [(1, False, False), (1, True, True), (2, True, True)]
EVERY = list(itertools.product((1, 2, 3), (False, True), (False, True)))
FORMS = cases(EVERY, slow=[form for form in EVERY if form not in QUICK])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("form", FORMS)
def test_equals_pytorch(kind, form):
    layers, bidirectional, padded = form
    torch, model = torch_model(kind, layers, bidirectional, seed=layers)
    cell = {"LSTM": lstmjax.lstm, "GRU": lstmjax.gru, "RNN": lstmjax.rnn}[kind](5)
    net = [(cell, cell) if bidirectional else cell] * layers
    suffixes = ("", "_reverse")
    params = [
        tuple(params_from_torch(model, n, s) for s in suffixes) if bidirectional else params_from_torch(model, n)
        for n in range(layers)
    ]
    rng = np.random.default_rng(layers)
    xs = rng.standard_normal((11, 4, 3), np.float32)
    lengths = np.array([11, 7, 4, 1]) if padded else np.full(4, 11)
    directions = 2 if bidirectional else 1
    start = {k: rng.standard_normal((layers * directions, 4, 5), np.float32) for k in ("h", "c")}

    # PyTorch: values, and the gradients of a weighted sum of the outputs and the final states.
    t_xs = torch.tensor(xs, requires_grad=True)
    t_start = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    hx = (t_start["h"], t_start["c"]) if kind == "LSTM" else t_start["h"]
    packed = torch.nn.utils.rnn.pack_padded_sequence(t_xs, torch.tensor(lengths))
    t_out, t_final = model(packed, hx)
    t_ys, _ = torch.nn.utils.rnn.pad_packed_sequence(t_out, total_length=11)
    t_final = dict(zip(("h", "c"), t_final, strict=True)) if kind == "LSTM" else {"h": t_final}
    weights = rng.standard_normal(t_ys.shape, np.float32)
    t_loss = (torch.tensor(weights) * t_ys).sum() + sum((v**2).sum() for v in t_final.values())
    t_loss.backward()

    empty = jax.eval_shape(lambda: cell.initial_state((4,)))

    def pack(start):
        """PyTorch's [layers · directions, B, H] as states of ours."""
        states = [type(empty)(**{k: start[k][n] for k in t_final}) for n in range(len(start["h"]))]
        return list(zip(states[::2], states[1::2], strict=True)) if bidirectional else states

    def run(params, xs, start):
        finals, ys = lstmjax.unroll_stack(net, params, xs, pack(start), lengths=lengths if padded else None)
        flat = [s for final in finals for s in (final if bidirectional else (final,))]
        return ys, {k: jnp.stack([getattr(s, k) for s in flat]) for k in t_final}

    def loss(params, xs, start):
        ys, final = run(params, xs, start)
        return (weights * ys).sum() + sum((v**2).sum() for v in final.values()), (ys, final)

    start = {k: start[k] for k in t_final}
    gradients, (ys, final) = compiled(jax.grad(loss, argnums=(0, 1, 2), has_aux=True), params, xs, start)
    close(ys, t_ys)
    d_params, d_xs, d_start = gradients
    close(d_xs, t_xs.grad)
    for k in t_final:
        close(final[k], t_final[k])
        close(d_start[k], t_start[k].grad)
    flat = [p for layer in d_params for p in (layer if bidirectional else (layer,))]
    names = [f"_l{n}{s}" for n in range(layers) for s in suffixes[:directions]]
    for got, name in zip(flat, names, strict=True):
        close(got.w_x, getattr(model, f"weight_ih{name}").grad.T)
        close(got.w_h, getattr(model, f"weight_hh{name}").grad.T)
        close(got.b, getattr(model, f"bias_ih{name}").grad)
        if kind == "GRU":
            close(got.b_n, getattr(model, f"bias_hh{name}").grad[10:])


def close(got, want):
    """Equal to 1e-5 of the largest entry, in float32."""
    want = want.detach().numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(np.abs(want).max(), 1.0))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_other_activations_take_the_place_of_theirs(name, x64):
    def gate(z):
        return 1 / (1 + z * z)

    def soft_sign(z):
        return z / (1 + abs(z))

    cell = getattr(lstmjax, name)(5, gate_activation=gate, activation=soft_sign)
    params, xs, state = problem(cell, (1, 2, 3))
    got, _ = compiled(lambda *a: unroll(cell, *a), params, xs, state)
    x, h = np.asarray(xs)[0], np.asarray(state.h)
    w_x, w_h, b, *_ = map(np.asarray, params)
    if name == "lstm":
        i, f, g, o = np.split(x @ w_x + h @ w_h + b, 4, axis=-1)
        c = gate(f) * np.asarray(state.c) + gate(i) * soft_sign(g)
        want = gate(o) * soft_sign(c)
        np.testing.assert_allclose(got.c, c, atol=1e-14)
    else:
        by_x, by_h = np.split(x @ w_x + b, 3, axis=-1), np.split(h @ w_h, 3, axis=-1)
        r, z = gate(by_x[0] + by_h[0]), gate(by_x[1] + by_h[1])
        want = (1 - z) * soft_sign(by_x[2] + r * (by_h[2] + np.asarray(params.b_n))) + z * h
    np.testing.assert_allclose(got.h, want, atol=1e-14)
