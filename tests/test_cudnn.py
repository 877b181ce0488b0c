"""The cuDNN path: its layout and its lengths, against JAX's reference of the same call; on a GPU, against itself."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

import lstmjax
from lstmjax import unroll
from lstmjax.recurrence import cudnn
from lstmjax.unroll import _run_cudnn
from tests.cells import problem

ON_GPU = jax.default_backend() == "gpu"


@pytest.fixture(params=["reference", pytest.param("cuDNN", marks=pytest.mark.skipif(not ON_GPU, reason="no GPU"))])
def library(request, monkeypatch):
    """JAX's own reference of ``rnn.lstm`` in place of cuDNN, which refuses a length of 0 as cuDNN does; or cuDNN."""
    if request.param == "reference":

        def lstm(x, h, c, weights, lengths, *sizes):
            chex.assert_type(lengths, jnp.int32)
            parts = rnn.unpack_lstm_weights(weights, *sizes[:3], sizes[4])
            ys, h, c = rnn.lstm_ref(x, h, c, *parts, lengths, *sizes)
            return jax.tree.map(lambda a: jnp.where((lengths > 0).all(), a, jnp.nan), (ys, h, c))

        monkeypatch.setattr(rnn, "lstm", lstm)
        monkeypatch.setattr(cudnn, "only_for_nvidia", lambda lengths: lengths)
    _run_cudnn.clear_cache()
    yield
    _run_cudnn.clear_cache()


OPTIONS = {
    "plain": {},
    "lengths": {"lengths": jnp.array([7, 3, 0], jnp.int32)},
    "reverse": {"reverse": True},
    "reverse, lengths": {"reverse": True, "lengths": jnp.array([7, 3, 0], jnp.int32)},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_scan(options, library):
    options = OPTIONS[options]
    cell = lstmjax.lstm(5)
    args = problem(cell, (7, 3, 4), dtype=jnp.float32)

    def run(implementation):
        def loss(params, xs, state):
            final, ys = unroll(cell, params, xs, state, implementation=implementation, **options)
            return jnp.sin(ys).sum() + (final.c**2).sum() + final.h.sum(), (final, ys)

        with jax.default_matmul_precision("highest"):
            return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*args)

    chex.assert_trees_all_close(run("cudnn"), run("scan"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 3, 4), (0, 2, 4), (6, 0, 4)])
def test_any_batch_axes(shape, library):
    cell = lstmjax.lstm(5)
    args = problem(cell, shape, dtype=jnp.float32)
    with jax.default_matmul_precision("highest"):
        got, want = (unroll(cell, *args, implementation=i) for i in ("cudnn", "scan"))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)


def test_it_is_for_programs_of_an_nvidia_gpu_alone():
    lengths = jnp.array([3, 1], jnp.int32)

    def lowered_for(*platforms):
        return jax.jit(cudnn.only_for_nvidia).trace(lengths).lower(lowering_platforms=platforms).as_text()

    assert "return %arg0" in lowered_for("cuda")
    for others in (("cpu",), ("tpu",), ("rocm",), ("cuda", "cpu")):
        with pytest.raises(
            ValueError, match=r"'cudnn', and the program is lowered for .*; wanted it for an NVIDIA GPU"
        ):
            lowered_for(*others)


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_without_cudnn_that_is_said():
    with pytest.raises(ValueError, match="'cudnn', and JAX, which asks cuDNN for sizes where it traces, finds none"):
        unroll(lstmjax.lstm(5), *problem(lstmjax.lstm(5), (7, 3, 4), dtype=jnp.float32), implementation="cudnn")


@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, False), (2, True)])
def test_the_flat_vector_is_cudnns(num_layers, bidirectional):
    sizes = (3, 5, num_layers, bidirectional)
    flat = jnp.arange(rnn.get_num_params_in_lstm(*sizes), dtype=jnp.float32)
    layers = cudnn.unflatten_lstm(flat, 3, 5, num_layers=num_layers, bidirectional=bidirectional)
    w_ih, w_hh, b_ih, b_hh = rnn.unpack_lstm_weights(flat, *sizes)
    for n, params in enumerate(layers):
        chex.assert_trees_all_equal(params, lstmjax.LSTMParams(w_ih[n].T, w_hh[n].T, b_ih[n] + b_hh[n]))
    again = cudnn.flatten_lstm(layers)
    assert again.shape == flat.shape
    round_trip = cudnn.unflatten_lstm(again, 3, 5, num_layers=num_layers, bidirectional=bidirectional)
    chex.assert_trees_all_equal(round_trip, layers)
    stack = lstmjax.convert.from_cudnn(
        flat, input_size=3, hidden_size=5, num_layers=num_layers, bidirectional=bidirectional
    )
    chex.assert_trees_all_equal(jax.tree.leaves(stack), jax.tree.leaves(layers))
    np.testing.assert_array_equal(lstmjax.convert.to_cudnn(stack), again)
    np.testing.assert_array_equal(again[: -8 * 5 * len(layers)], flat[: -8 * 5 * len(layers)])


def test_layers_that_do_not_follow_one_another_are_an_error():
    first, other = (lstmjax.lstm(5).init(jax.random.key(0), n) for n in (3, 4))
    with pytest.raises(ValueError, match=r"params\[1\].w_x has shape \(4, 20\); wanted \(5, 20\)"):
        lstmjax.convert.to_cudnn((first, other))
    with pytest.raises(TypeError, match="GRUParams; wanted LSTMParams"):
        lstmjax.convert.to_cudnn((lstmjax.gru(5).init(jax.random.key(0), 3),))
