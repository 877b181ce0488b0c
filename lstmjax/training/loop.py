"""Many steps in one dispatch: a ``lax.scan`` over steps."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lstmjax.training.sharding import mesh_of
from lstmjax.training.state import TrainState, step_keys
from lstmjax.training.step import Metrics, Step


def make_train_loop(step: Step, draw_batch: Callable[[Any], Any], steps: int = 100) -> Callable:
    """Many steps as one jitted call, every batch drawn on the device: the host is out of the loop.

    Args:
        step: as from :func:`~lstmjax.training.make_train_step`.
        draw_batch: ``key -> batch``, jittable; its key is made from ``state.key`` and ``state.step``.
        steps: how many.

    Returns:
        ``state -> (state, metrics)``, every metric ``[steps]``.

    Raises:
        ValueError: ``steps`` is below 1.

    >>> import jax.numpy as jnp, lstmjax, optax
    >>> from lstmjax import training
    >>> cell, optimizer = lstmjax.gru(8), optax.sgd(0.1)
    >>> def loss_fn(params, xs, key):
    ...     return jnp.mean((lstmjax.unroll(cell, params, xs)[1][-1, :, :2] - xs[0]) ** 2), {}
    >>> state = training.init_state(cell.init(jax.random.key(0), 2), optimizer, jax.random.key(1))
    >>> step = training.make_train_step(loss_fn, optimizer)
    >>> loop = make_train_loop(step, lambda key: jax.random.normal(key, (10, 16, 2)), steps=50)
    >>> state, metrics = loop(state)
    >>> metrics["loss"].shape, int(state.step), bool(metrics["loss"][-1] < metrics["loss"][0])
    ((50,), 50, True)
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; wanted a whole number of at least 1")
    return jax.jit(lambda state: scan_drawn(step, draw_batch, state, steps))


def scan_drawn(step: Step, draw_batch: Callable, state: TrainState, steps: int) -> tuple[TrainState, Metrics]:
    """``steps`` steps on batches that are drawn."""

    def body(state, _):
        _, key = step_keys(state)
        return step(state, draw_batch(key))

    return lax.scan(body, state, None, length=steps)


def scan_given(step: Step, state: TrainState, batches: Any) -> tuple[TrainState, Metrics]:
    """A step on each of a stack of batches, every leaf ``[steps, ...]``."""
    return lax.scan(step, state, batches)


def make_program(step: Step, draw: Callable | None, sharding: Any, state: TrainState) -> Callable:
    """``(state, number of steps or their batches) -> (state, metrics)``, compiled; the state is given up to it.

    The same step, drawn from or laid out alike, is compiled once, however many runs it makes.
    """
    placed, layout = jax.tree.flatten(sharding)
    mesh, out = mesh_of(state), None
    if mesh is not None:
        # What goes round must come back as it lay, and every process reads the metrics.
        leaves, structure = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.sharding, state))
        out = (structure, tuple(leaves), NamedSharding(mesh, P()))
    arguments = (step, draw, layout, tuple(placed), out)
    try:
        return _compiled(*arguments)
    except TypeError:  # a step or draw that cannot be hashed
        return _compiled.__wrapped__(*arguments)


@lru_cache(maxsize=32)
def _compiled(step: Step, draw: Callable | None, layout: Any, placed: tuple, out: tuple | None) -> Callable:
    options: dict[str, Any] = {"donate_argnums": 0}
    if out is not None:
        structure, leaves, everywhere = out
        options["out_shardings"] = (structure.unflatten(leaves), everywhere)
    if draw is None:
        return jax.jit(partial(scan_given, step), **options)

    def drawn(key):
        sharding = layout.unflatten(placed)
        return jax.tree.map(lambda s, part: lax.with_sharding_constraint(part, s), sharding, draw(key))

    return jax.jit(partial(scan_drawn, step, drawn if placed else draw), static_argnums=1, **options)
