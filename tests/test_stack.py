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


MERGES = {"sum": np.add, "mean": lambda a, b: (a + b) / 2, "product": np.multiply}


@pytest.mark.parametrize("merge", MERGES)
def test_directions_are_merged(merge):
    layers = [(lstmjax.gru(4), lstmjax.rnn(4)), lstmjax.rnn(2)]
    like = jax.eval_shape(lambda: init_stack(layers, jax.random.key(0), 3, jnp.float64, merge=merge))
    assert like[1].w_x.shape == (4, 2)
    params = jax.tree.map(lambda s: np.random.default_rng(s.size).normal(size=s.shape) / 2, like)
    xs = np.random.default_rng(0).normal(size=(6, 2, 3))
    (gru, back), rnn = params
    _, ahead = unroll(layers[0][0], gru, xs)
    _, behind = unroll(layers[0][1], back, xs, reverse=True)
    wanted = unroll(layers[1], rnn, MERGES[merge](np.asarray(ahead), np.asarray(behind)))[1]
    same(unroll_stack(layers, params, xs, merge=merge)[1], wanted)


def test_layers_of_images():
    layers = [
        (lstmjax.conv_lstm(4, (5, 6)), lstmjax.conv_lstm(2, (5, 6))),
        lstmjax.zoneout(lstmjax.conv_lstm(3, (5, 6)), 0.1),
    ]
    params = shapes(layers)
    assert params[1].w_x.shape == (3, 3, 6, 12)
    xs = jax.ShapeDtypeStruct((2, 1, 5, 6, 3), jnp.float64)
    assert jax.eval_shape(lambda params, xs: unroll_stack(layers, params, xs)[1], params, xs).shape == (2, 1, 5, 6, 3)


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
