"""Depth: the product `d1·d2·…·dn` down a stack of layers, and the weights it leaves where they were."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lstmjax import init as initializers
from lstmjax.checks import whole_number
from lstmjax.gradients import scaled
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.typing import Initializer, Key, Params


class DepthNorms(NamedTuple):
    """Layer by layer, from the input to the output; natural logarithms.

    Attributes:
        gradient: ``[layers]`` `ln ‖∂L/∂W‖` over all of a layer's parameters.
        relative_change: ``[layers]`` `ln(η ‖∂L/∂W‖ / ‖W‖)`, by which share one step of gradient descent moves them.
    """

    gradient: Array
    relative_change: Array


@at_highest_precision
def depth_norms(
    loss_fn: Callable[[Sequence[Params]], Array], params: Sequence[Params], *, learning_rate: float = 0.1
) -> DepthNorms:
    """How the gradient shrinks or grows from layer to layer, and how little the weights then change.

    Args:
        loss_fn: ``params -> scalar``.
        params: one entry a layer: of a :func:`feed_forward` network, or of :func:`~lstmjax.init_stack`.
        learning_rate: η.

    Returns:
        A :class:`DepthNorms`.

    Raises:
        ValueError: there is no layer.
        TypeError: the loss is no scalar.

    Source: the deep network of the slides, after Hochreiter (1991) and Glorot & Bengio (2010).

    >>> init, apply = feed_forward(depth=20, width=32, activation=jax.nn.sigmoid)
    >>> x = jax.random.normal(jax.random.key(1), (64, 32))
    >>> norms = depth_norms(lambda p: (apply(p, x) ** 2).mean(), init(jax.random.key(0)))
    >>> print(f"the first layer's gradient is e^{norms.gradient[0] - norms.gradient[-1]:.0f} times the last one's")
    the first layer's gradient is e^-28 times the last one's
    """
    if not len(params):
        raise ValueError("params has no entry; wanted one for each layer")
    grads = jax.grad(loss_fn)(params)
    once = jnp.zeros((), jnp.int32)
    gradient, weight = (jnp.stack([scaled.log_norm(layer, once) for layer in tree]) for tree in (grads, params))
    return DepthNorms(gradient, gradient - weight + jnp.log(jnp.asarray(learning_rate, gradient.dtype)))


class DenseParams(NamedTuple):
    """Weights of one layer.

    Attributes:
        w: ``[in, out]``.
        b: ``[out]``.
    """

    w: Array
    b: Array


def feed_forward(
    depth: int,
    width: int,
    *,
    activation: Callable[[Array], Array],
    w_init: Initializer = initializers.lecun_normal(),
) -> tuple[Callable[[Key], tuple[DenseParams, ...]], Callable[..., Array]]:
    """The slides' deep network: ``depth`` layers of one width, `y ← φ(y W + b)`.

    Args:
        depth: how many layers.
        width: units of every layer, and features of the input.
        activation: φ: the logistic function, tanh, ReLU.
        w_init: draws ``[width, width]``; biases start at 0.

    Returns:
        ``init(key, dtype=float32) -> params`` and ``apply(params, x [*B, width]) -> [*B, width]``.

    Raises:
        ValueError: depth or width is no whole number of at least 1.

    >>> init, apply = feed_forward(depth=3, width=4, activation=jnp.tanh)
    >>> apply(init(jax.random.key(0)), jnp.ones((2, 4))).shape
    (2, 4)
    """
    depth, width = whole_number("depth", depth), whole_number("width", width)

    def init(key: Key, dtype: Any = jnp.float32) -> tuple[DenseParams, ...]:
        keys = jax.random.split(key, depth)
        return tuple(DenseParams(w_init(k, (width, width), dtype), jnp.zeros(width, dtype)) for k in keys)

    def apply(params: Sequence[DenseParams], x: Float[Array, "*B W"]) -> Float[Array, "*B W"]:
        for w, b in params:
            x = x @ w
            x = activation(x + b.reshape((1,) * (x.ndim - 1) + b.shape))
        return x

    return init, apply
