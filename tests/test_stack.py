"""Stacks: layers one after another, directions side by side, dropout between."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import init_stack, unroll, unroll_stack
from tests.cells import CELLS, compiled, same

MIXED = [CELLS["gru"], (lstmjax.lstm(4), lstmjax.gru(3)), CELLS["rnn"]]


@pytest.fixture(autouse=True, scope="module")
def _x64():
    with jax.enable_x64(True):
        yield


def shapes(layers=MIXED, dtype=jnp.float64):
    return jax.eval_shape(lambda: init_stack(layers, jax.random.key(0), 3, dtype))


def draw(layers=MIXED, steps=8, dtype=jnp.float64):
    rng = np.random.default_rng(0)
    like = shapes(layers, dtype), jax.ShapeDtypeStruct((steps, 2, 3), dtype)
    return jax.tree.map(lambda s: jnp.asarray((rng.normal(size=s.shape) / 2).astype(s.dtype)), like)


def test_layers_are_sized_to_the_outputs_before_them():
    params = shapes()
    assert params[1][0].w_x.shape == (5, 16)
    assert params[1][1].w_x.shape == (5, 9)
    assert params[2].w_x.shape == (7, 5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lengths": np.array([8, 3], np.int32)},
        {"resets": np.arange(16).reshape(8, 2) % 5 == 2},
        {"mask": np.arange(16).reshape(8, 2) % 3 != 1, "remat_block": 3},
    ],
)
def test_stacked_is_one_after_another(options):
    def both_ways(params, xs):
        first, h = unroll(MIXED[0], params[0], xs, **options)
        ahead, h_ahead = unroll(MIXED[1][0], params[1][0], h, **options)
        back, h_back = unroll(MIXED[1][1], params[1][1], h, reverse=True, **options)
        last, h = unroll(MIXED[2], params[2], jnp.concatenate([h_ahead, h_back], -1), **options)
        return unroll_stack(MIXED, params, xs, **options), ((first, (ahead, back), last), h)

    same(*compiled(both_ways, *draw()))


def test_streaming_a_stack_bit_for_bit():
    layers = [lstmjax.lstm(4), lstmjax.gru(4)]
    params, xs = draw(layers, 9, jnp.float32)
    middle, first = unroll_stack(layers, params, np.asarray(xs)[:4])
    final, second = unroll_stack(layers, params, np.asarray(xs)[4:], middle)
    chex.assert_trees_all_equal((final, np.concatenate([first, second])), unroll_stack(layers, params, xs))


def test_a_stack_is_differentiable_and_jits():
    params, xs = draw()

    def loss(params):
        return jnp.sin(unroll_stack(MIXED, params, xs)[1]).sum()

    same(compiled(jax.grad(loss), params), jax.grad(loss)(params))


class TestDropout:
    layers = (lstmjax.rnn(400, activation=lambda z: z), lstmjax.rnn(400, activation=lambda z: z))

    def run(self, **dropout):
        # The first layer is constant 1, the second hands its input on: the outputs are the mask itself.
        def passing(w):
            return lstmjax.RNNParams(w, np.zeros((400, 400)), np.zeros(400))

        params = (passing(np.ones((1, 400))), passing(np.eye(400)))
        return unroll_stack(self.layers, params, np.ones((30, 2, 1)), **dropout)[1]

    def test_keeps_the_expected_share_and_scale(self):
        ys = self.run(dropout_rate=0.25, dropout_key=jax.random.key(0))
        ys = np.asarray(ys)
        kept = ys != 0
        np.testing.assert_allclose(kept.mean(), 0.75, atol=0.01)  # 24000 draws: 3.6 standard deviations
        np.testing.assert_allclose(ys[kept], 4 / 3)

    def test_masks_differ_between_steps_and_keys(self):
        ys = self.run(dropout_rate=0.5, dropout_key=jax.random.key(0))
        assert (np.asarray(ys)[0] != np.asarray(ys)[1]).any()
        assert (ys != self.run(dropout_rate=0.5, dropout_key=jax.random.key(1))).any()
        np.testing.assert_array_equal(ys, self.run(dropout_rate=0.5, dropout_key=jax.random.key(0)))

    def test_none_after_the_last_layer(self):
        params, xs = draw([CELLS["lstm"]])
        dropped = unroll_stack([CELLS["lstm"]], params, xs, dropout_rate=0.9, dropout_key=jax.random.key(0))
        chex.assert_trees_all_equal(dropped, unroll_stack([CELLS["lstm"]], params, xs))
