"""The LSTMs of other libraries with one face, each in its own layout and with the same weights.

None of these packages is imported until its peer is asked for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lstmjax
from lstmjax import convert


class Peer(NamedTuple):
    """One implementation, ready to be timed.

    Attributes:
        variables: its parameters, in its own form.
        xs: the input in its own layout.
        forward: ``(variables, xs) -> ys``, not yet compiled, for a JAX library.
        batch_major: whether its arrays are ``[B, T, ...]``.
    """

    variables: Any
    xs: Any
    forward: Callable[[Any, Any], Any]
    batch_major: bool = False


def lstmjax_peer(params: lstmjax.LSTMParams, xs: jax.Array, **options: Any) -> Peer:
    """This library, with options for its unroll."""
    cell = lstmjax.lstm(params.w_h.shape[0])
    return Peer(params, xs, lambda p, xs: lstmjax.unroll(cell, p, xs, **options)[1])


def linen(params: lstmjax.LSTMParams, xs: jax.Array, optimised: bool) -> Peer:
    """``flax.linen.RNN`` over ``LSTMCell`` or ``OptimizedLSTMCell``."""
    import flax.linen as nn

    cell = (nn.OptimizedLSTMCell if optimised else nn.LSTMCell)(params.w_h.shape[0], parent=None)
    model = nn.RNN(cell, time_major=True)
    return Peer(
        {"params": {"cell": jax.tree.map(jnp.asarray, convert.to_linen(params))}}, xs, lambda v, xs: model.apply(v, xs)
    )


def nnx(params: lstmjax.LSTMParams, xs: jax.Array, optimised: bool) -> Peer:
    """``flax.nnx.RNN`` over ``LSTMCell`` or ``OptimizedLSTMCell``."""
    from flax import nnx

    inputs, hidden = params.w_x.shape[0], params.w_h.shape[0]
    kind = nnx.OptimizedLSTMCell if optimised else nnx.LSTMCell
    cell = convert.to_nnx(params, kind(inputs, hidden, rngs=nnx.Rngs(0)))
    graph, trainable, rest = nnx.split(nnx.RNN(cell, time_major=True), nnx.Param, ...)
    zero = jnp.zeros((xs.shape[1], hidden), xs.dtype)
    carry = (zero, zero)  # given, since a carry that the cell draws itself would count up its random state under jit
    return Peer(trainable, xs, lambda v, xs: nnx.merge(graph, v, rest)(xs, initial_carry=carry))


def haiku(params: lstmjax.LSTMParams, xs: jax.Array) -> Peer:
    """``haiku.dynamic_unroll`` over ``haiku.LSTM``."""
    import haiku as hk

    def run(xs):
        core = hk.LSTM(params.w_h.shape[0])
        return hk.dynamic_unroll(core, xs, core.initial_state(xs.shape[1]))[0]

    model = hk.without_apply_rng(hk.transform(run))
    return Peer({"lstm/linear": jax.tree.map(jnp.asarray, convert.to_haiku(params))}, xs, model.apply)


def equinox(params: lstmjax.LSTMParams, xs: jax.Array) -> Peer:
    """``equinox.nn.LSTMCell`` under ``lax.scan`` and ``vmap``, as its documentation unrolls it."""
    import equinox as eqx

    hidden = params.w_h.shape[0]
    cell = convert.to_equinox(params, eqx.nn.LSTMCell(params.w_x.shape[0], hidden, key=jax.random.key(0)))
    trainable, static = eqx.partition(cell, eqx.is_array)

    def forward(variables, xs):
        cell = eqx.combine(variables, static)
        zero = jnp.zeros((xs.shape[1], hidden), xs.dtype)

        def body(state, x):
            state = jax.vmap(cell)(x, state)
            return state, state[0]

        return jax.lax.scan(body, (zero, zero), xs)[1]

    return Peer(trainable, xs, forward)


def keras(params: lstmjax.LSTMParams, xs: jax.Array) -> Peer:
    """``keras.layers.LSTM`` on the JAX backend; batch-major, as Keras has it."""
    import os

    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    layer = keras.layers.LSTM(params.w_h.shape[0], return_sequences=True)
    xs = xs.swapaxes(0, 1)
    layer.build(xs.shape)
    layer.set_weights(convert.to_keras(params))
    fixed = [v.value for v in layer.non_trainable_variables]

    def forward(variables, xs):
        return layer.stateless_call(variables, fixed, xs)[0]

    return Peer([v.value for v in layer.trainable_variables], xs, forward, batch_major=True)


class TorchPeer:
    """``torch.nn.LSTM``, oneDNN on CPU, cuDNN on a GPU. Eager: it has no compile time and tells no temp memory."""

    def __init__(self, params: lstmjax.LSTMParams, xs: jax.Array):
        import torch

        self.device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        self.torch, dtype = torch, getattr(torch, str(xs.dtype))

        def tensor(array):
            return torch.tensor(np.asarray(array, np.float32)).to(self.device, dtype)

        self.model = torch.nn.LSTM(params.w_x.shape[0], params.w_h.shape[0]).to(self.device, dtype)
        self.model.load_state_dict({name: tensor(w) for name, w in convert.to_torch((params,)).items()})
        self.xs = tensor(xs).requires_grad_()

    def forward(self):
        """The outputs, without a graph."""
        with self.torch.no_grad():
            ys = self.model(self.xs)[0]
        self._wait()
        return ys

    def train(self):
        """Forwards and backwards, with respect to parameters and input."""
        self.model.zero_grad(set_to_none=True)
        self.xs.grad = None
        ys = self.model(self.xs)[0]
        (ys.float() ** 2).mean().backward()
        self._wait()
        return self.xs.grad

    def _wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()


def lstmjax_cudnn(params: lstmjax.LSTMParams, xs: jax.Array) -> Peer:
    """This library through cuDNN, on a GPU alone."""
    if jax.default_backend() != "gpu":
        raise ImportError("cuDNN wants a GPU")
    return lstmjax_peer(params, xs, implementation="cudnn")


JAX_PEERS: dict[str, Callable[[lstmjax.LSTMParams, jax.Array], Peer]] = {
    "lstmjax": lstmjax_peer,
    "lstmjax fused": lambda params, xs: lstmjax_peer(params, xs, implementation="fused"),
    "lstmjax scan": lambda params, xs: lstmjax_peer(params, xs, implementation="scan"),
    "lstmjax cuDNN": lstmjax_cudnn,
    "Flax Linen LSTMCell": lambda params, xs: linen(params, xs, optimised=False),
    "Flax Linen OptimizedLSTMCell": lambda params, xs: linen(params, xs, optimised=True),
    "Flax NNX LSTMCell": lambda params, xs: nnx(params, xs, optimised=False),
    "Flax NNX OptimizedLSTMCell": lambda params, xs: nnx(params, xs, optimised=True),
    "Haiku": haiku,
    "Equinox": equinox,
    "Keras": keras,
}
