"""The two companies, trained as published: the same predictions before the first epoch and after five thousand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lstmjax
from lstmjax import training
from lstmjax.tasks import COMPANIES, INITIAL_WEIGHTS, company_values, slide_unit
from tests.test_unit import UNIT

PROTOCOL = UNIT["training_protocol"]
CELL = lstmjax.lstm(1)


def predict(params, xs):
    return lstmjax.unroll(CELL, params, xs)[0].h[0]


def loss_fn(params, batch, key):
    xs, target = batch
    return (predict(params, xs) - target) ** 2, {}


def test_training_ends_where_it_was_published_to_end():
    params = slide_unit(INITIAL_WEIGHTS)
    companies = [(company_values(name), jnp.float32(COMPANIES[name].target)) for name in ("A", "B")]
    in_order = jax.tree.map(lambda *leaves: jnp.stack(leaves), *companies)
    optimizer = optax.adam(1e-3)
    step = training.make_train_step(loss_fn, optimizer)

    @jax.jit
    def train(state):
        def epoch(state, _):
            return jax.lax.scan(step, state, in_order)[0], None

        return jax.lax.scan(epoch, state, None, length=5000)[0]

    state = training.init_state(params, optimizer, jax.random.key(0))
    for when, at in (("epoch_0", state), ("epoch_5000", train(state))):
        got = [float(predict(at.params, xs)) for xs, _ in companies]
        np.testing.assert_allclose(got, [PROTOCOL["predictions"][when][name] for name in "AB"], atol=1e-4)
