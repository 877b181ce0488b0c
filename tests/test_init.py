"""What each initialiser promises about singular values, biases and ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax import init

KEY = jax.random.key(0)
orthogonal = init.orthogonal()


def block_singular_values(w):
    return np.stack([np.linalg.svd(block)[1] for block in np.split(np.asarray(w), 4, axis=1)])


def test_per_gate_orthogonal_keeps_every_block_orthogonal():
    w = init.per_gate(orthogonal, 4)(KEY, (64, 256), jnp.float32)
    np.testing.assert_allclose(block_singular_values(w), 1.0, atol=1e-5)
    assert (w[:, :64] != w[:, 64:128]).any()


def test_the_same_word_means_three_decays():
    # Root-mean-square singular value of a gate's block: 1, 1/2 and 1/√3.
    def rms(initializer):
        return np.sqrt((block_singular_values(initializer(KEY, (128, 512), jnp.float32)) ** 2).mean())

    np.testing.assert_allclose(rms(init.per_gate(orthogonal, 4)), 1.0, atol=1e-4)
    np.testing.assert_allclose(rms(orthogonal), 0.5, atol=1e-4)
    np.testing.assert_allclose(rms(init.pytorch_uniform(128)), 3**-0.5, atol=0.01)


@pytest.mark.parametrize("cell", [lstmjax.lstm(8), lstmjax.gru(8), lstmjax.rnn(8)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_default_recurrent_weights_are_orthogonal(cell, dtype):
    params = cell.init(KEY, 3, jnp.dtype(dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    first = params.w_h[:, :8].astype(jnp.float32)
    np.testing.assert_allclose(first.T @ first, np.eye(8), atol=1e-5 if dtype == "float32" else 2e-2)


def test_forget_bias_is_visible_and_only_in_the_parameters():
    params = lstmjax.lstm(3, forget_bias=2.5).init(KEY, 2)
    assert params.b.tolist() == [0.0] * 3 + [2.5] * 3 + [0.0] * 6
    # With all weights zero the step keeps σ(b_f) of c: nothing else is added.
    params = jax.tree.map(jnp.zeros_like, params)._replace(b=params.b)
    state = lstmjax.LSTMState(jnp.ones(3), jnp.zeros(3))
    new, _ = lstmjax.lstm_step(params, state, jnp.zeros(2))
    np.testing.assert_allclose(new.c, jax.nn.sigmoid(2.5), rtol=1e-6)


def test_chrono_spreads_memory_evenly_over_time_scales():
    b = np.asarray(init.chrono(1000)(KEY, (4 * 4096,), jnp.float32)).reshape(4, -1)
    np.testing.assert_array_equal(b[0], -b[1])
    assert not b[2:].any()
    scales = np.exp(b[1])  # uniform on [1, 999]
    assert scales.min() >= 1
    assert scales.max() <= 999
    np.testing.assert_allclose(np.quantile(scales, [0.25, 0.5, 0.75]), [250.5, 500, 749.5], rtol=0.05)


def test_pytorch_uniform_range():
    w = init.pytorch_uniform(16)(KEY, (64, 64), jnp.float32)
    assert jnp.abs(w).max() <= 0.25
    np.testing.assert_allclose(w.std(), 0.25 / 3**0.5, rtol=0.03)
    two = init.pytorch_uniform(16, draws=2)(KEY, (4096,), jnp.float32)
    np.testing.assert_allclose(two.std(), 0.25 * (2 / 3) ** 0.5, rtol=0.05)


def test_every_initialiser_takes_a_key_shape_and_dtype():
    for initializer, biases in (
        (init.per_gate(orthogonal, 4), False), (init.identity(), False), (init.pytorch_uniform(4), False),
        (init.forget_bias(1.0), True), (init.chrono(10), True),
    ):  # fmt: skip
        assert initializer(KEY, (16,) if biases else (4, 16), jnp.bfloat16).dtype == jnp.bfloat16
