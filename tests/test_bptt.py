"""The weight gradient taken apart: by step, and by what truncation leaves out."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import state_history, unroll
from lstmjax.gradients import (
    adjoint_norms,
    gate_statistics,
    gate_values,
    per_step_param_grads,
    precision_audit,
    truncation_bias,
)
from tests.cells import CELLS, EVERY_CELL, cases, problem

MASK = np.arange(24).reshape(12, 2) % 5 != 1


def last(states):
    return jnp.sin(states.h[-1]).sum() + 0.1 * (states.h[3] ** 2).sum()


@pytest.mark.parametrize("name", EVERY_CELL)
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

    def loss_fn(states):
        return jnp.sin(states.h[1:]).sum()

    bias = truncation_bias(cell, params, xs, loss_fn, [2, 5, 12, 40], state, mask=MASK)

    def windowed(params, k):
        now, total = state, 0.0
        for start in range(0, 12, k):
            part = slice(start, start + k)
            now = jax.lax.stop_gradient(now)
            states = state_history(cell, params, xs[part], now, mask=MASK[part], include_initial=True)
            now, total = jax.tree.map(lambda s: s[-1], states), total + loss_fn(states)
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


class TestAnyCell:
    """A bare step, a state that is no named tuple, inputs of several arrays: each against a loop by hand."""

    params, xs = {"a": np.array([0.9, 0.5]), "w": np.array([[0.3, -0.2]])}, {
        "x": np.random.default_rng(0).normal(size=(7, 2, 1)), "y": np.random.default_rng(1).normal(size=(7, 2, 2))
    }  # fmt: skip
    state = (np.ones((2, 2)), np.zeros((2, 2)))

    @staticmethod
    def step(p, s, at):
        slow = p["a"] * s[0] + at["x"] @ p["w"]
        return (slow, jnp.tanh(slow + s[1]) + at["y"]), slow

    @staticmethod
    def loss(states):
        return jnp.sin(states[1][-1]).sum() + (states[0][2] ** 2).sum()

    def by_hand(self, params_of, border=lambda t: False, start=None):
        states = [start or self.state]
        for t in range(7):
            before = jax.lax.stop_gradient(states[-1]) if border(t) else states[-1]
            states.append(self.step(params_of(t), before, jax.tree.map(lambda leaf, t=t: leaf[t], self.xs))[0])
        return self.loss(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))

    def test_what_each_step_contributes(self, x64):
        got = per_step_param_grads(self.step, self.params, self.xs, self.loss, self.state)
        copies = jax.tree.map(lambda p: jnp.stack([p] * 7), self.params)
        want = jax.grad(lambda c: self.by_hand(lambda t: jax.tree.map(lambda leaf: leaf[t], c)))(copies)
        chex.assert_trees_all_close(got, want, atol=1e-12)

    def test_what_truncation_leaves_out(self, x64):
        bias = truncation_bias(self.step, self.params, self.xs, self.loss, [3], self.state)
        full, cut = (
            jax.grad(lambda p, border=border: self.by_hand(lambda t: p, border))(self.params)
            for border in (lambda t: False, lambda t: t > 0 and t % 3 == 0)
        )
        flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]) for g in (full, cut)]
        want = np.linalg.norm(flat[1] - flat[0]) / np.linalg.norm(flat[0])
        np.testing.assert_allclose(bias.relative_error, [want], rtol=1e-9)

    def test_gates_of_its_own(self, x64):
        def gates(params, state, at):
            return {"keep": jax.nn.sigmoid(state[0] + at["x"]), "candidate": state[1]}

        mask = np.arange(14).reshape(7, 2) % 5 != 1
        resets = np.arange(7)[:, None] == np.array([3, 20])
        args = (self.step, self.params, self.xs, self.state)
        got = gate_values(*args, mask=mask, resets=resets, gates=gates)
        state = self.state
        for t in range(7):
            at = jax.tree.map(lambda leaf, t=t: leaf[t], self.xs)
            state = jax.tree.map(lambda s, f, t=t: jnp.where(resets[t][:, None], f, s), state, self.state)
            for name, want in gates(self.params, state, at).items():
                np.testing.assert_allclose(got[name][t], jnp.where(mask[t][:, None], want, jnp.nan), atol=1e-12)
            new, _ = self.step(self.params, state, at)
            state = jax.tree.map(lambda n, s, t=t: jnp.where(mask[t][:, None], n, s), new, state)
        statistics = gate_statistics(*args, mask=mask, resets=resets, gates=gates, keeps="keep")
        mean = np.nanmean(got["keep"], axis=(0, 1))
        np.testing.assert_allclose(statistics["keep"].mean, mean)
        np.testing.assert_allclose(statistics["keep"].timescale, 1 / (1 - mean))

    def test_precision(self):
        args = (self.step, *jax.tree.map(np.float32, (self.params, self.xs)), self.loss)
        audits = precision_audit(*args, jax.tree.map(np.float32, self.state), dtypes=["float32"])
        assert audits["float32"].wrong_from is None

    def test_adjoints(self, x64):
        got = adjoint_norms(self.step, self.params, self.xs, self.loss, self.state)

        def loss(state):  # ∂L/∂s_0
            return self.by_hand(lambda t: self.params, start=state)

        for norms, want in zip(got, jax.grad(loss)(self.state), strict=True):
            np.testing.assert_allclose(np.exp(norms[0]), np.linalg.norm(want, axis=-1), rtol=1e-9)

    def test_an_input_that_is_not_finite_is_named(self):
        xs = self.xs | {"y": np.where(np.arange(7)[:, None, None] == 4, np.nan, self.xs["y"])}
        with pytest.raises(FloatingPointError, match=r"xs\['y'\] at step 4, row \(0,\) holds nan"):
            adjoint_norms(
                self.step, *jax.tree.map(np.float32, (self.params, xs)), self.loss, jax.tree.map(np.float32, self.state)
            )

    @pytest.mark.parametrize("instrument", [
        lambda *args: per_step_param_grads(*args, jnp.sum),
        lambda *args: truncation_bias(*args, jnp.sum, [1]),
        lambda *args: gate_values(*args, gates=lambda *_: {}),
        lambda *args: precision_audit(*args, jnp.sum),
    ])  # fmt: skip
    def test_a_bare_step_wants_a_state(self, instrument):
        with pytest.raises(ValueError, match="cell is a bare step, and no state is given"):
            instrument(self.step, self.params, self.xs)
