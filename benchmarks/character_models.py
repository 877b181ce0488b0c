"""One model of text, trained by four libraries as each one's users would: embedding, LSTM, linear readout, Adam.

All begin with the same weights, take the same windows in the same order, carry the state from window to window and cut
the gradient there, and clip its norm at 1. None of these packages is imported until its trainer is asked for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from numpy.typing import NDArray

import lstmjax
from lstmjax import convert, training
from lstmjax.tasks import Windows

CLIP_NORM = 1.0


class Weights(NamedTuple):
    """The model's parameters.

    Attributes:
        embedding: ``[V, E]``.
        lstm: of E features and H hidden units.
        w: ``[H, V]``.
        b: ``[V]``.
    """

    embedding: Array
    lstm: lstmjax.LSTMParams
    w: Array
    b: Array


class Trainer:
    """A library's model and optimiser, on their way.

    A library says what an ``update`` on one window is, which goes on with the state after the one before and returns
    the loss in nats, and what the ``loss`` of a window from a carry is: the loss and the next carry.
    """

    start: Any
    update: Callable[[Windows], Any]
    loss: Callable[[Any, Windows], tuple[Any, Any]]

    def train(self, windows: Windows) -> NDArray:
        """An update on each window; returns the losses, waited for once."""
        return np.array(jax.device_get([self.update(window) for window in _one_by_one(windows)]))

    def test(self, windows: Windows) -> float:
        """Mean cross-entropy in nats, the state carried through all windows from zeros."""
        carry, losses = self.start, []
        for window in _one_by_one(windows):
            loss, carry = self.loss(carry, window)
            losses.append(float(loss))
        return float(np.mean(losses))


def draw_weights(key: Array, vocabulary: int, hidden_size: int, features: int = 64) -> Weights:
    """The weights that every library begins with."""
    k_embedding, k_lstm, k_readout = jax.random.split(key, 3)
    lecun = jax.nn.initializers.lecun_normal()
    return Weights(
        jax.random.normal(k_embedding, (vocabulary, features)),
        lstmjax.lstm(hidden_size, forget_bias=1.0).init(k_lstm, features),
        lecun(k_readout, (hidden_size, vocabulary), jnp.float32),
        jnp.zeros(vocabulary),
    )


class Lstmjax(Trainer):
    """This library: ``fit`` on a truncated-BPTT step, so many steps to a dispatch, over a mesh or on one device."""

    def __init__(
        self, weights: Weights, batch_size: int, learning_rate: float, steps_per_call: int, mesh: Mesh | None = None
    ):
        cell = lstmjax.lstm(weights.w.shape[0])
        optimizer = optax.adam(learning_rate)

        def loss_fn(params: Weights, carry: Any, window: Windows, key: Any = None) -> Any:
            carry, ys = lstmjax.unroll(cell, params.lstm, params.embedding[window.inputs], carry)
            return _cross_entropy(ys @ params.w + params.b, window.targets), (carry, {})

        self.jitted = jax.jit(loss_fn)
        self.options: dict[str, Any] = {"steps_per_call": steps_per_call, "progress": False}
        self.step = training.make_tbptt_step(loss_fn, optimizer, clip_norm=CLIP_NORM)
        self.start = cell.initial_state((batch_size,))
        if mesh is not None:
            self.options["batch_sharding"] = training.batch_sharding(mesh)
            weights = training.shard_params(weights, mesh)
            self.start = training.shard_batch(self.start, training.batch_sharding(mesh, dim=0))
        self.state = training.init_state(weights, optimizer, jax.random.key(0), carry=self.start)

    def train(self, windows: Windows) -> NDArray:
        """As every trainer, by one call of ``fit``."""
        steps = int(self.state.step) + len(windows.inputs)
        result = training.fit(self.state, self.step, _one_by_one(windows), steps=steps, **self.options)
        self.state = result.state
        return result.history["loss"]

    def loss(self, carry: Any, window: Windows) -> tuple[Array, Any]:
        """Of one window."""
        loss, (carry, _) = self.jitted(self.state.params, carry, window)
        return loss, carry


class Linen(Trainer):
    """Flax Linen and Optax: a jitted step in a Python loop."""

    def __init__(self, weights: Weights, batch_size: int, learning_rate: float):
        from flax import linen as nn

        (vocabulary, features), hidden = weights.embedding.shape, weights.w.shape[0]

        class Model(nn.Module):
            @nn.compact
            def __call__(self, ids: Any, carry: Any) -> Any:
                rnn = nn.RNN(nn.OptimizedLSTMCell(hidden, name="cell"), time_major=True, return_carry=True)
                carry, ys = rnn(nn.Embed(vocabulary, features, name="embed")(ids), initial_carry=carry)
                return carry, nn.Dense(vocabulary, name="readout")(ys)

        model, optimizer = Model(), _optimizer(learning_rate)

        def loss_fn(params: Any, carry: Any, window: Windows) -> Any:
            carry, logits = model.apply({"params": params}, window.inputs, carry)
            return _cross_entropy(logits, window.targets), carry

        @jax.jit
        def step(params: Any, opt_state: Any, carry: Any, window: Windows) -> Any:
            (loss, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, carry, window)
            updates, opt_state = optimizer.update(grads, opt_state)
            return optax.apply_updates(params, updates), opt_state, carry, loss

        params = {
            "embed": {"embedding": weights.embedding},
            "cell": convert.to_linen(weights.lstm),
            "readout": {"kernel": weights.w, "bias": weights.b},
        }
        self.start = _zeros(batch_size, hidden)
        self.step, self.jitted, self.state = step, jax.jit(loss_fn), (params, optimizer.init(params), self.start)

    def update(self, window: Windows) -> Array:
        """Of all parameters."""
        *self.state, loss = self.step(*self.state, window)
        return loss

    def loss(self, carry: Any, window: Windows) -> tuple[Array, Any]:
        """Of one window."""
        return self.jitted(self.state[0], carry, window)


class NNX(Trainer):
    """Flax NNX and Optax: a step under ``nnx.jit`` in a Python loop."""

    def __init__(self, weights: Weights, batch_size: int, learning_rate: float):
        from flax import nnx

        (vocabulary, features), hidden = weights.embedding.shape, weights.w.shape[0]

        class Model(nnx.Module):
            def __init__(self, rngs: nnx.Rngs):
                self.embed = nnx.Embed(vocabulary, features, rngs=rngs)
                cell = convert.to_nnx(weights.lstm, nnx.OptimizedLSTMCell(features, hidden, rngs=rngs))
                self.rnn = nnx.RNN(cell, time_major=True, return_carry=True)
                self.readout = nnx.Linear(hidden, vocabulary, rngs=rngs)

            def __call__(self, ids: Any, carry: Any) -> Any:
                carry, ys = cast(Any, self.rnn(self.embed(ids), initial_carry=carry))
                return carry, self.readout(ys)

        def loss_fn(model: Model, carry: Any, window: Windows) -> Any:
            carry, logits = model(window.inputs, carry)
            return _cross_entropy(logits, window.targets), carry

        @nnx.jit
        def step(model: Model, optimizer: Any, carry: Any, window: Windows) -> Any:
            (loss, carry), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, carry, window)
            optimizer.update(model, grads)
            return carry, loss

        self.model: Any = Model(nnx.Rngs(0))
        self.model.embed.embedding[...] = weights.embedding
        self.model.readout.kernel[...], self.model.readout.bias[...] = weights.w, weights.b
        self.optimizer = nnx.Optimizer(self.model, _optimizer(learning_rate), wrt=nnx.Param)
        self.start = self.carry = _zeros(batch_size, hidden)
        self.step, self.jitted = step, nnx.jit(loss_fn)

    def update(self, window: Windows) -> Array:
        """Of all parameters, in place."""
        self.carry, loss = self.step(self.model, self.optimizer, self.carry, window)
        return loss

    def loss(self, carry: Any, window: Windows) -> tuple[Array, Any]:
        """Of one window."""
        return self.jitted(self.model, carry, window)


class Torch(Trainer):
    """PyTorch: its own modules and its own Adam, eagerly, in a Python loop."""

    def __init__(self, weights: Weights, batch_size: int, learning_rate: float):
        import torch
        from torch import nn

        (vocabulary, features), hidden = weights.embedding.shape, weights.w.shape[0]
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
        own = {"embed.weight": weights.embedding, "readout.weight": weights.w.T, "readout.bias": weights.b}
        own |= {f"lstm.{name}": w for name, w in convert.to_torch((weights.lstm,)).items()}
        self.model: Any = nn.ModuleDict(
            {
                "embed": nn.Embedding(vocabulary, features),
                "lstm": nn.LSTM(features, hidden),
                "readout": nn.Linear(hidden, vocabulary),
            }
        )
        self.model.load_state_dict({name: torch.tensor(np.asarray(w)) for name, w in own.items()})
        self.model.to(self.device)
        # Two biases that add would take a step of Adam each, where the others take one.
        self.model["lstm"].bias_hh_l0.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate)
        self.start = self.carry = tuple(torch.zeros(1, batch_size, hidden, device=self.device) for _ in range(2))

    def update(self, window: Windows) -> Any:
        """Of all parameters, in place."""
        self.optimizer.zero_grad()
        loss, carry = self._forward(self.carry, window)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.carry = tuple(part.detach() for part in carry)
        return loss.detach()

    def train(self, windows: Windows) -> NDArray:
        """As every trainer."""
        return self.torch.stack([self.update(window) for window in _one_by_one(windows)]).cpu().numpy()

    def loss(self, carry: Any, window: Windows) -> tuple[Any, Any]:
        """Of one window, without a graph."""
        with self.torch.no_grad():
            return self._forward(carry, window)

    def _forward(self, carry: Any, window: Windows) -> tuple[Any, Any]:
        ids, targets = (self.torch.from_numpy(part).long().to(self.device) for part in window)
        ys, carry = self.model["lstm"](self.model["embed"](ids), carry)
        logits = self.model["readout"](ys)
        return self.torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), carry


TRAINERS: dict[str, Callable[[Weights, int, float, int], Trainer]] = {
    "lstmjax": Lstmjax,
    "lstmjax, a device a core": lambda *arguments: Lstmjax(*arguments, mesh=training.auto_mesh(data=-1)),
    "lstmjax, a step a call": lambda weights, size, rate, _: Lstmjax(weights, size, rate, steps_per_call=1),
    "Flax Linen + Optax": lambda weights, size, rate, _: Linen(weights, size, rate),
    "Flax NNX + Optax": lambda weights, size, rate, _: NNX(weights, size, rate),
    "PyTorch": lambda weights, size, rate, _: Torch(weights, size, rate),
}
"""By name: ``(weights, batch_size, learning_rate, steps_per_call) -> Trainer``."""


def _cross_entropy(logits: Any, targets: Any) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def _optimizer(learning_rate: float) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adam(learning_rate))


def _zeros(batch_size: int, hidden: int) -> tuple[Array, Array]:
    """A carry (c, h) of Flax."""
    return jnp.zeros((batch_size, hidden)), jnp.zeros((batch_size, hidden))


def _one_by_one(windows: Windows) -> list[Windows]:
    return [Windows(*window) for window in zip(*windows, strict=True)]
