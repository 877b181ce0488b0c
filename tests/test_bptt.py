"""The weight gradient taken apart: by step, and by what truncation leaves out."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import state_history, unroll
from lstmjax.gradients import adjoint_norms, per_step_param_grads, truncation_bias
from tests.cells import CELLS, MOST_CELLS, cases, problem

MASK = np.arange(24).reshape(12, 2) % 5 != 1


def last(states):
    return jnp.sin(states.h[-1]).sum() + 0.1 * (states.h[3] ** 2).sum()


@pytest.mark.parametrize("name", MOST_CELLS)
def test_steps_sum_to_the_bptt_gradient(name, x64):
    cell = CELLS[name]
    args = problem(cell, (12, 2, 3))
    options = {"mask": MASK, "lengths": jnp.array([12, 7])}
    by_step = per_step_param_grads(cell, args[0], args[1], last, args[2], **options)

    def loss(params):
        return last(state_history(cell, params, *args[1:], include_initial=True, **options))

    chex.assert_trees_all_close(jax.tree.map(lambda g: g.sum(0), by_step), jax.grad(loss)(args[0]), rtol=1e-10)
    assert all((g[7:, ...][~MASK[7:, 0]] == 0).all() for g in jax.tree.leaves(by_step))  # both rows skip there


def test_steps_sum_to_the_bptt_gradient_in_float32():
    cell = lstmjax.lstm(16)
    params, xs, state = problem(cell, (50, 4, 3), dtype=jnp.float32)
    by_step = per_step_param_grads(cell, params, xs, last, state)
    want = jax.grad(lambda p: last(state_history(cell, p, xs, state, include_initial=True)))(params)
    for got, leaf in zip(jax.tree.leaves(by_step), jax.tree.leaves(want), strict=True):
        assert jnp.linalg.norm(got.sum(0) - leaf) <= 1e-6 * jnp.linalg.norm(leaf)


def test_one_step_alone_is_its_own_derivative(x64):
    cell = CELLS["lstm"]
    params, xs, state = problem(cell, (6, 2, 3))
    by_step = per_step_param_grads(cell, params, xs, lambda s: jnp.sin(s.h[-1]).sum(), state)
    for t in (0, 3, 5):

        def loss(theirs, t=t):
            before, _ = unroll(cell, params, xs[:t], state)
            at, _ = unroll(cell, theirs, xs[t : t + 1], before)
            return jnp.sin(unroll(cell, params, xs[t + 1 :], at)[0].h).sum()

        chex.assert_trees_all_close(jax.tree.map(lambda g, t=t: g[t], by_step), jax.grad(loss)(params), atol=1e-12)


def test_adjoints_equal_pytorchs_retained_gradients():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.LSTMCell(3, 5)
    w_ih, w_hh, b_ih, b_hh = (jnp.asarray(p.detach().numpy()) for p in module.parameters())
    params = lstmjax.LSTMParams(w_ih.T, w_hh.T, b_ih + b_hh)
    xs = np.random.default_rng(0).normal(size=(20, 2, 3)).astype(np.float32)

    h, c, kept = torch.zeros(2, 5), torch.zeros(2, 5), []
    h.requires_grad_()
    for x in torch.tensor(xs):
        kept.append(h)
        h, c = module(x, (h, c))
        h.retain_grad()
    kept.append(h)
    torch.sin(h).sum().backward()
    want = np.array([k.grad.norm(dim=-1).numpy() for k in kept])

    got = adjoint_norms(lstmjax.lstm(5), params, xs, lambda states: jnp.sin(states.h[-1]).sum())
    np.testing.assert_allclose(np.exp(got.h), want, rtol=1e-5)


@pytest.mark.parametrize("name", cases(["lstm", "rnn"], slow=["rnn"]))
def test_truncation_is_a_stopped_gradient_at_the_borders(name, x64):
    cell = CELLS[name]
    params, xs, state = problem(cell, (12, 2, 3))

    def loss_fn(ys):
        return jnp.sin(ys).sum()

    bias = truncation_bias(cell, params, xs, loss_fn, [2, 5, 12, 40], state, mask=MASK)

    def windowed(params, k):
        now, total = state, 0.0
        for start in range(0, 12, k):
            part = slice(start, start + k)
            now, ys = unroll(cell, params, xs[part], jax.lax.stop_gradient(now), mask=MASK[part])
            total = total + loss_fn(ys)
        return total

    gradient = jax.jit(jax.grad(windowed), static_argnums=1)
    full = gradient(params, 12)
    for n, k in enumerate([2, 5]):
        got = gradient(params, k)
        flat, want = (jnp.concatenate([leaf.ravel() for leaf in tree]) for tree in (got, full))
        np.testing.assert_allclose(
            bias.relative_error[n], jnp.linalg.norm(flat - want) / jnp.linalg.norm(want), rtol=1e-9
        )
        cosine = flat @ want / jnp.linalg.norm(flat) / jnp.linalg.norm(want)
        np.testing.assert_allclose(bias.cosine[n], cosine, rtol=1e-9)
        by_leaf = jax.tree.map(lambda g, w: jnp.linalg.norm(g - w) / jnp.linalg.norm(w), got, full)
        chex.assert_trees_all_close(jax.tree.map(lambda b, n=n: b[n], bias.by_leaf), by_leaf, rtol=1e-9)
    assert (bias.relative_error[2:] == 0).all()
    assert (bias.relative_error[:2] > 0.01).all()
