"""The gates of the LSTM unit, one pure function each.

The unit keeps two memories. The cell state c is the long-term memory: it meets one multiplication and one
addition a step, and no weight. The hidden state h is the short-term memory: it passes through the weights. Every
gate reads the input and the short-term memory through its own quarter of the weights and turns the sum into a
percentage::

    z   = x W_x + h W_h + b          all four pre-activations at once, [*B, 4H], order i, f, g, o
    i   = σ(z_i)                     input gate: percent of the candidate to remember
    f   = σ(z_f)                     forget gate: percent of the long-term memory to remember
    g   = tanh(z_g)                  candidate: potential long-term memory, between −1 and 1
    o   = σ(z_o)                     output gate: percent of the potential short-term memory to remember
    c'  = f ∘ c + i ∘ g              the new long-term memory
    h'  = o ∘ tanh(c')               the new short-term memory, and the unit's output

Source: Hochreiter & Schmidhuber (1997), with the forget gate of Gers, Schmidhuber & Cummins (2000). Order and
layout are those of PyTorch, Keras, cuDNN and Flax.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Floats = Float[Array, "..."]
"""A floating array of any shape."""

Activation = Callable[[Array], Array]
"""An elementwise function. The equations are written with σ and tanh; every gate takes another in its place."""


def sigmoid(z: Floats) -> Floats:
    """`σ(z) = 1/(1 + e^−z)`, with a derivative that is as exact as the value.

    ::

        σ'(z) = σ(z) σ(−z)

    The usual form `σ(1 − σ)` reads 0 for a gate that is wide open: in float32 from `z = 17` on, where 4e-8 is right.

    >>> print(f"{sigmoid(jnp.array(-17.0)):.3e}, {jax.grad(sigmoid)(17.0):.3e}")
    4.140e-08, 4.140e-08
    """
    return _sigmoid(z)


def tanh(z: Floats) -> Floats:
    """The hyperbolic tangent, with a derivative that is as exact as the value.

    ::

        tanh'(z) = 4 σ(2z) σ(−2z)

    The usual form `1 − tanh²` reads 0 for a saturated unit: in float32 from `|z| = 9` on, where 6e-8 is right.

    >>> print(f"{jax.grad(tanh)(20.0):.3e}")
    1.699e-17
    """
    return _tanh(z)


@jax.custom_jvp
def _sigmoid(z: Any) -> Array:
    return jax.lax.logistic(z)


@_sigmoid.defjvp
def _sigmoid_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    value = _sigmoid(z)
    return value, dz * (value * _sigmoid(-z))


@jax.custom_jvp
def _tanh(z: Any) -> Array:
    return jnp.tanh(z)


@_tanh.defjvp
def _tanh_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    return _tanh(z), dz * (4 * (_sigmoid(2 * z) * _sigmoid(-2 * z)))


def pre_activation(
    w_x: Float[Array, "I N"],
    w_h: Float[Array, "H N"],
    b: Float[Array, " N"],
    x: Float[Array, "*B I"],
    h: Float[Array, "*B H"],
) -> Float[Array, "*B N"]:
    """What a gate sees: `z = x W_x + h W_h + b`.

    The products are taken in the dtype of the weights, whatever x and h come in; the sum in float32 at least, and z is
    returned so. Backwards that is the sum over all rows which is the bias's gradient.

    >>> w = jnp.array([[1.63]]), jnp.array([[2.70]]), jnp.array([1.62])
    >>> z = pre_activation(*w, x=jnp.array([1.0]), h=jnp.array([1.0]))  # the slides' forget gate
    >>> print(f"{z[0]:.2f}")
    5.95
    """
    products = x.astype(w_x.dtype) @ w_x, h.astype(w_h.dtype) @ w_h
    by_x, by_h = (product.astype(_wide(product.dtype)) for product in products)
    return by_x + by_h + jnp.broadcast_to(b.astype(by_h.dtype), by_h.shape)


def _wide(dtype: np.dtype) -> np.dtype:
    return np.promote_types(dtype, np.float32)


def split_gates(z: Float[Array, "*B N"], gates: int) -> tuple[Float[Array, "*B H"], ...]:
    """Cuts fused pre-activations ``[*B, gates·H]`` into one ``[*B, H]`` for each gate.

    >>> [part.shape for part in split_gates(jnp.zeros((5, 12)), gates=4)]
    [(5, 3), (5, 3), (5, 3), (5, 3)]
    """
    return tuple(jnp.split(z, gates, axis=-1))


def input_gate(z_i: Floats, activation: Activation = sigmoid) -> Floats:
    """`i = σ(z_i)`: the percentage of the candidate that enters the long-term memory.

    >>> round(float(input_gate(jnp.array(4.27))), 4)
    0.9862
    """
    return activation(z_i)


def forget_gate(z_f: Floats, activation: Activation = sigmoid) -> Floats:
    """`f = σ(z_f)`: the percentage of the long-term memory that is *kept*, whatever the name says.

    >>> round(float(forget_gate(jnp.array(5.95))), 4)
    0.9974
    """
    return activation(z_f)


def candidate(z_g: Floats, activation: Activation = tanh) -> Floats:
    """`g = tanh(z_g)`: the potential long-term memory, between −1 and 1.

    >>> round(float(candidate(jnp.array(2.03))), 4)
    0.9661
    """
    return activation(z_g)


def output_gate(z_o: Floats, activation: Activation = sigmoid) -> Floats:
    """`o = σ(z_o)`: the percentage of the potential short-term memory that leaves the unit.

    >>> round(float(output_gate(jnp.array(4.78))), 4)
    0.9917
    """
    return activation(z_o)


def update_cell_state(f: Floats, c: Floats, i: Floats, g: Floats) -> Floats:
    """`c' = f ∘ c + i ∘ g`: one multiplication and one addition, no weights. `∂c'/∂c` along this path is f.

    >>> round(float(update_cell_state(*map(jnp.array, (0.9974, 2.0, 0.9862, 0.9661)))), 3)
    2.948
    """
    return f * c + i * g


def emit_hidden_state(o: Floats, c: Floats, activation: Activation = tanh) -> Floats:
    """`h = o ∘ tanh(c)`: the new short-term memory, read off the new long-term memory.

    >>> round(float(emit_hidden_state(jnp.array(0.9917), jnp.array(2.9476))), 3)
    0.986
    """
    return o * activation(c)
