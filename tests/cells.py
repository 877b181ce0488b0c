"""The cells every general test runs over, and the drawing of a problem for them."""

import jax
import jax.numpy as jnp

import lstmjax

HIDDEN = 5
CELLS = {
    "lstm": lstmjax.lstm(HIDDEN),
    "gru": lstmjax.gru(HIDDEN),
    "rnn": lstmjax.rnn(HIDDEN),
    "linear": lstmjax.rnn(HIDDEN, activation=lambda z: z),
}


def problem(cell, shape, seed=0, dtype=jnp.float64):
    """Parameters, inputs of the shape and a state that is not zero, all of one dtype."""
    k_params, k_xs, k_state = jax.random.split(jax.random.key(seed), 3)
    params = cell.init(k_params, shape[-1], dtype)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(k_params, len(leaves))
    # Biases that are not zero, so that a bias left out or put elsewhere shows.
    leaves = [p + 0.1 * jax.random.normal(k, p.shape, dtype) for p, k in zip(leaves, keys, strict=True)]
    empty = cell.initial_state(shape[1:-1], dtype)
    state = jax.tree.map(lambda s: 0.5 * jax.random.normal(k_state, s.shape, dtype), empty)
    return jax.tree.unflatten(tree, leaves), jax.random.normal(k_xs, shape, dtype), state
