"""The cells every general test runs over, the drawing of a problem for them, and how two ways are compared.

A test's time is what it compiles. So weights are drawn by NumPy, and a test is one jitted program that goes both ways
and hands back both answers: :func:`compiled`.
"""

import contextlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lstmjax
from lstmjax.recurrence import linear
from lstmjax.unroll import run

HIDDEN = 5
CELLS = {
    "lstm": lstmjax.lstm(HIDDEN),
    "gru": lstmjax.gru(HIDDEN),
    "rnn": lstmjax.rnn(HIDDEN),
    "linear": lstmjax.rnn(HIDDEN, activation=lambda z: z),
}


def cases(every, slow):
    """For ``parametrize``: every case, of which those named in ``slow`` run with the slow tests alone."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in every]


# What is not about one cell is quickly said of one.
EVERY_CELL = cases(CELLS, slow=[name for name in CELLS if name != "lstm"])


def problem(cell, shape, seed=0, dtype=jnp.float64):
    """Parameters, inputs of the shape and a state that is not zero, all of one dtype; drawn without a compiler.

    A matrix keeps a vector about as long as it was. Biases are not zero, so that one left out or put elsewhere shows.
    """
    rng = np.random.default_rng(seed)

    def drawn(like, scale):
        return jnp.asarray((scale * rng.normal(size=like.shape)).astype(like.dtype))

    params = jax.eval_shape(lambda key: cell.init(key, shape[-1], dtype), jax.random.key(0))
    state = jax.eval_shape(lambda: cell.initial_state(shape[1 : len(shape) - cell.num_feature_axes], dtype))
    params = jax.tree.map(lambda p: drawn(p, max(len(p), 1) ** -0.5 if p.ndim == 2 else 0.1), params)
    return params, drawn(jax.ShapeDtypeStruct(shape, dtype), 1.0), jax.tree.map(lambda s: drawn(s, 0.5), state)


def compiled(function, *args):
    """What the function returns, as one program, in NumPy's arrays."""
    return jax.tree.map(np.asarray, jax.jit(function)(*args))


def same(a, b, tolerance=1e-12):
    """Two trees are equal to the tolerance, absolute and relative; the default is float64's."""
    chex.assert_trees_all_close(a, b, atol=tolerance, rtol=tolerance)


def inner(a, b):
    """The inner product of two trees."""
    return sum((x * y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def loss_of(way):
    """A scalar of all that an unroll returns, no derivative of which is constant."""

    def loss(*args):
        final, ys = way(*args)
        return jnp.sin(ys).sum() + sum((s**2).sum() for s in jax.tree.leaves(final))

    return loss


@contextlib.contextmanager
def block_elements(count):
    """The fused unroll's blocks at another size; nothing compiled at one size is used at another."""
    before, linear.BLOCK_ELEMENTS = linear.BLOCK_ELEMENTS, count
    run.clear_cache()
    try:
        yield
    finally:
        linear.BLOCK_ELEMENTS = before
        run.clear_cache()
