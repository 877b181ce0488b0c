"""Many steps in one dispatch: a ``lax.scan`` over steps."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lstmjax.checks import whole_number
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
        ValueError: ``steps`` is no whole number, or below 1.

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
    steps = whole_number("steps", steps)
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


# Compiled programs, for as long as the functions live that they were made of.
_programs: dict[tuple, Callable] = {}


def make_program(step: Step, draw: Callable | None, sharding: Any, state: TrainState) -> Callable:
    """``(state, number of steps or their batches) -> (state, metrics)``, compiled; the state is given up to it.

    The same step, drawn from or laid out alike, is compiled once, however many runs it makes. The program does not
    keep the step and what it closes over: hold on to ``step`` and ``draw`` for as long as it is called.
    """
    placed, layout = jax.tree.flatten(sharding)
    mesh, out = mesh_of(state), None
    if mesh is not None:
        # What goes round must come back as it lay, and every process reads the metrics.
        leaves, structure = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.sharding, state))
        out = (structure, tuple(leaves), NamedSharding(mesh, P()))
    key = (id(step), id(draw), layout, tuple(placed), out)
    if key in _programs:
        return _programs[key]
    functions = [fn for fn in (step, draw) if fn is not None]
    try:
        references = [weakref.ref(fn) for fn in functions]
    except TypeError:  # an object with __slots__: its program is this run's alone
        return _compiled([lambda fn=fn: fn for fn in functions], layout, placed, out)
    _programs[key] = program = _compiled(references, layout, placed, out)
    for fn in functions:
        weakref.finalize(fn, _programs.pop, key, None)
    return program


def _compiled(functions: Sequence[Callable], layout: Any, placed: list, out: tuple | None) -> Callable:
    """The program of the step, and of what draws, that ``functions`` refer to."""
    step, *draw = functions
    options: dict[str, Any] = {"donate_argnums": 0}
    if out is not None:
        structure, leaves, everywhere = out
        options["out_shardings"] = (structure.unflatten(leaves), everywhere)
    if not draw:
        return jax.jit(lambda state, batches: scan_given(step(), state, batches), **options)

    def drawn(key):
        batch = draw[0]()(key)
        if not placed:
            return batch
        return jax.tree.map(lambda s, part: lax.with_sharding_constraint(part, s), layout.unflatten(placed), batch)

    return jax.jit(lambda state, steps: scan_drawn(step(), drawn, state, steps), static_argnums=1, **options)
