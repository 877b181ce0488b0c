"""What a run carries from one step to the next."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from lstmjax.training.sharding import replicate_like
from lstmjax.typing import Key, Params


class TrainState(NamedTuple):
    """Everything that the next step depends on, apart from its batch: a pytree, saved and restored whole.

    Attributes:
        params: the parameters.
        opt_state: the optimiser's.
        step: how many updates were made, an int32 scalar.
        key: the run's random key. It never changes: the keys of a step are made from it and ``step``.
        carry: the recurrent state at the border of the last window, for truncated backpropagation through time;
            None elsewhere.
    """

    params: Params
    opt_state: Any
    step: Array
    key: Key
    carry: Any = None


def init_state(params: Params, optimizer: optax.GradientTransformation, key: Key, carry: Any = None) -> TrainState:
    """The state before the first step.

    Args:
        params: the parameters, as a cell's ``init`` or :func:`lstmjax.init_stack` makes them. Where they lie on a
            mesh (:func:`~lstmjax.training.shard_params`), everything else is put on the same mesh.
        optimizer: any Optax optimiser.
        key: the run's random key: same key, same run.
        carry: for truncated backpropagation through time, the state before the first window.

    Returns:
        The :class:`TrainState` at step 0.

    >>> import lstmjax
    >>> params = lstmjax.lstm(4).init(jax.random.key(0), 3)
    >>> state = init_state(params, optax.adam(1e-3), jax.random.key(1))
    >>> int(state.step), state.opt_state[0].mu.w_x.shape
    (0, (3, 16))
    """
    state = TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32), jnp.asarray(key), carry)
    return replicate_like(params, state)


def step_keys(state: TrainState) -> tuple[Key, Key]:
    """The keys of the step to come: one for the loss, one to draw the batch with."""
    loss_key, batch_key = jax.random.split(jax.random.fold_in(state.key, state.step))
    return loss_key, batch_key
