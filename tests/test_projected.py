"""The projected LSTM: against the equations in NumPy, PyTorch, finite differences, and the plain LSTM it contains."""

import chex
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.test_util import check_grads

from lstmjax import init_stack, lstm, unroll, unroll_stack
from lstmjax.cells.lstm import LSTMParams, LSTMState
from lstmjax.cells.projected import ProjectedLSTMParams, projected_lstm, projected_lstm_step

T, B, I, H, P = 6, 2, 3, 5, 4
cell = projected_lstm(H, P)


def problem(cell, shape, seed=0, dtype=jnp.float64):
    """Parameters, inputs of the shape and a state, all at random, drawn without a compiler."""
    rng = np.random.default_rng(seed)
    params = jax.eval_shape(lambda key: cell.init(key, shape[-1], dtype), jax.random.key(0))
    state = jax.eval_shape(lambda: cell.initial_state(shape[1:-1], dtype))
    leaves = params, jax.ShapeDtypeStruct(shape, dtype), state
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) / 2, s.dtype), leaves)


def reference(params, state, xs):
    """The equations, step by step."""
    w_x, w_h, b, w_p = (np.asarray(a, np.float64) for a in params)
    c, h = (np.asarray(a, np.float64) for a in state)
    ys = []
    for x in np.asarray(xs, np.float64):
        i, f, g, o = np.split(x @ w_x + h @ w_h + b, 4, axis=-1)
        i, f, o = (1 / (1 + np.exp(-z)) for z in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = (o * np.tanh(c)) @ w_p
        ys.append(h)
    return c, h, np.stack(ys)


def test_equations(x64):
    params, xs, state = problem(cell, (T, B, I))
    final, ys = unroll(cell, params, xs, state)
    for ours, theirs in zip((*final, ys), reference(params, state, xs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)
    assert ys.shape == (T, B, P)


def test_gradients_against_finite_differences(x64):
    params, xs, state = problem(cell, (3, B, I))
    check_grads(
        lambda *args: unroll(cell, args[0], args[1], args[2]), (params, xs, state), order=1, modes=("fwd", "rev")
    )


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("inputs", "hidden", "projection"), [(3, 5, 4), (6, 2, 1)])
def test_pytorch(inputs, hidden, projection):
    torch = pytest.importorskip("torch")
    ours = projected_lstm(hidden, projection)
    params, xs, state = problem(ours, (T, B, inputs), inputs, jnp.float32)

    module = torch.nn.LSTM(inputs, hidden, proj_size=projection)
    tensors = {
        "weight_ih_l0": params.w_x.T,
        "weight_hh_l0": params.w_h.T,
        "bias_ih_l0": params.b,
        "bias_hh_l0": jnp.zeros_like(params.b),
        "weight_hr_l0": params.w_p.T,
    }
    module.load_state_dict({name: torch.tensor(np.asarray(w)) for name, w in tensors.items()})
    x, h, c = (torch.tensor(np.asarray(a), requires_grad=True) for a in (xs, state.h, state.c))
    ys, (h_n, c_n) = module(x, (h[None], c[None]))
    (torch.sin(ys).sum() + torch.sin(c_n).sum()).backward()

    def loss(params, xs, state):
        final, ys = unroll(ours, params, xs, state)
        return jnp.sin(ys).sum() + jnp.sin(final.c).sum(), (final, ys)

    grads, (final, out) = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(params, xs, state)
    pairs = [(out, ys), (final.h, h_n[0]), (final.c, c_n[0]), (grads[1], x.grad), (grads[2].h, h.grad)]
    pairs += [(grads[2].c, c.grad), (grads[0].w_x.T, module.weight_ih_l0.grad), (grads[0].b, module.bias_hh_l0.grad)]
    pairs += [(grads[0].w_h.T, module.weight_hh_l0.grad), (grads[0].w_p.T, module.weight_hr_l0.grad)]
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine, theirs.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_projection_by_the_identity_is_the_lstm(x64):
    plain = lstm(H)
    params, xs, state = problem(plain, (T, B, I))
    projected = projected_lstm(H, H)
    final, ys = unroll(projected, ProjectedLSTMParams(*params, w_p=jnp.eye(H, dtype=xs.dtype)), xs, state)
    wanted, ys_wanted = unroll(plain, params, xs, state, implementation="scan")
    for mine, theirs in zip((*final, ys), (*wanted, ys_wanted), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-15)


def test_lengths_and_a_batch_by_vmap():
    params, xs, state = problem(cell, (T, B, I), dtype=jnp.float32)
    final, ys = unroll(cell, params, xs, state, lengths=jnp.array([4, 0]))
    one, ys_one = unroll(cell, params, xs[:4, 0], LSTMState(state.c[0], state.h[0]))
    np.testing.assert_allclose(final.c[0], one.c, atol=1e-6)
    np.testing.assert_allclose(ys[:4, 0], ys_one, atol=1e-6)
    np.testing.assert_array_equal(final.h[1], state.h[1])
    np.testing.assert_array_equal(ys[4:, 0], 0)
    mapped, _ = jax.vmap(lambda x, s: unroll(cell, params, x, s), in_axes=(1, 0))(xs, state)
    np.testing.assert_allclose(mapped.c, unroll(cell, params, xs, state)[0].c, atol=1e-6)


def test_both_directions_in_a_stack():
    layers = [(cell, projected_lstm(7, 2)), lstm(H)]
    params = jax.tree.map(
        lambda s: jnp.full(s.shape, 0.1, s.dtype),
        jax.eval_shape(lambda key: init_stack(layers, key, I), jax.random.key(0)),
    )
    (both, _), ys = unroll_stack(layers, params, jnp.ones((T, B, I)))
    assert params[1].w_x.shape == (P + 2, 4 * H)
    assert (both[1].c.shape, both[1].h.shape, ys.shape) == ((B, 7), (B, 2), (T, B, H))


def test_initialisation():
    low = jax.eval_shape(lambda key: projected_lstm(8, 3).init(key, I, jnp.bfloat16), jax.random.key(0))
    assert [a.shape for a in low] == [(I, 32), (3, 32), (32,), (8, 3)]
    assert {a.dtype for a in low} == {jnp.dtype(jnp.bfloat16)}
    params = projected_lstm(8, 3, forget_bias=2.0).init(jax.random.key(0), I)
    np.testing.assert_array_equal(params.b, np.repeat([0.0, 2.0, 0.0, 0.0], 8))
    np.testing.assert_allclose(params.w_p.T @ params.w_p, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(params.w_h[:, 8:16] @ params.w_h[:, 8:16].T, np.eye(3), atol=1e-5)
    one = jax.nn.initializers.ones
    ones = projected_lstm(8, 3, w_x_init=one, w_h_init=one, w_p_init=one, b_init=one)
    drawn = ones.init(jax.random.key(0), I)
    assert all((leaf == 1).all() for leaf in drawn)


def test_the_state_keeps_its_dtype():
    params, _, _ = problem(cell, (T, B, I), dtype=jnp.bfloat16)
    state, y = projected_lstm_step(params, cell.initial_state((B,), jnp.float32), jnp.ones((B, I), jnp.bfloat16))
    assert {leaf.dtype for leaf in (*state, y)} == {jnp.dtype(jnp.float32)}


params, xs, _ = problem(cell, (T, B, I), dtype=jnp.float32)


def step(x=xs[0], params=params, **leaves):
    return projected_lstm_step(params, cell.initial_state((B,))._replace(**leaves), x)


BAD_CALLS = {
    "hidden_size": (ValueError, "hidden_size is 0; wanted", lambda: projected_lstm(0, 1)),
    "projection_size": (ValueError, "projection_size is 0; wanted", lambda: projected_lstm(5, 0)),
    "boolean projection_size": (ValueError, "projection_size is True; wanted", lambda: projected_lstm(5, True)),
    "two biases": (
        ValueError,
        "forget_bias and b_init both",
        lambda: projected_lstm(5, 2, forget_bias=1.0, b_init=jax.nn.initializers.ones),
    ),
    "w_h": (
        ValueError,
        r"params.w_h has shape \(5, 20\); wanted \(4, 20\)",
        lambda: step(params=params._replace(w_h=jnp.ones((5, 20)))),
    ),
    "w_x": (
        ValueError,
        r"params.w_x has shape \(3, 16\); wanted \[I, 4H\] with H = 5",
        lambda: step(params=params._replace(w_x=jnp.ones((3, 16)))),
    ),
    "b": (
        ValueError,
        r"params.b has shape \(5,\); wanted \(20,\)",
        lambda: step(params=params._replace(b=jnp.ones(5))),
    ),
    "features of x": (ValueError, r"x has shape \(2, 4\); wanted .* I = 3", lambda: step(jnp.ones((B, 4)))),
    "integer x": (TypeError, "x has dtype int32", lambda: step(jnp.ones((B, I), jnp.int32))),
    "h of the hidden size": (
        ValueError,
        r"state.h has shape \(2, 5\); wanted \(2, 4\), .* P = 4 for h",
        lambda: step(h=jnp.ones((B, H))),
    ),
    "c of another batch": (
        ValueError,
        r"state.c has shape \(3, 5\); wanted \(2, 5\), .* H = 5 for c",
        lambda: step(c=jnp.ones((3, H))),
    ),
    "the plain LSTM's weights": (
        ValueError,
        "params.w_p has nothing; wanted .* another cell's parameters",
        lambda: step(params=LSTMParams(params.w_x, params.w_h, params.b)),
    ),
    "w_p": (
        ValueError,
        r"params.w_p has shape \(5,\); wanted \[H, P\]",
        lambda: step(params=params._replace(w_p=jnp.ones(5))),
    ),
    "unrolled": (ValueError, r"x has shape \(2, 4\); wanted", lambda: unroll(cell, params, jnp.ones((T, B, 4)))),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    exception, message, call = BAD_CALLS[name]
    with pytest.raises(exception, match=message):
        call()


def test_the_fast_derivative_is_that_of_the_scan(x64):
    args = problem(cell, (7, 2, I))

    def of(implementation):
        def loss(*args):
            final, ys = unroll(cell, *args, implementation=implementation, lengths=np.array([7, 3]))
            return jnp.sin(ys).sum() + (final.c**2).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(*args)

    fused, scan = jax.jit(lambda: (of("fused"), of("scan")))()
    chex.assert_trees_all_close(fused, scan, atol=1e-12)
