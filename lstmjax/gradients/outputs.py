"""The output of any cell where a loss finds it: in the state, under the name ``h``."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lstmjax.cells.base import Cell, InitialState, Step
from lstmjax.functions import Partial
from lstmjax.typing import Params, Shape, State


class OutputState(NamedTuple):
    """The state of a cell whose own has no ``h``.

    Attributes:
        own: the cell's own state.
        h: ``[*B, features]`` its last output, zero before the first step; nothing but a loss reads it.
    """

    own: State
    h: Array


def with_output(cell: Cell, input_size: int) -> Cell:
    """The cell itself where its state has a field ``h``; else one whose state keeps its last output under that name.

    So one loss over states, ``lambda states: loss(states.h[-1])``, serves every cell.

    Args:
        cell: any cell of inputs ``[*B, input_size]`` whose output is one array ``[*B, features]``.
        input_size: I, the number of input features.

    Returns:
        A cell with the same parameters; where the state was wrapped, it is an :class:`OutputState`.

    Raises:
        TypeError: the cell puts out something else than one array ``[*B, features]``.

    >>> leaky = Cell(
    ...     init=lambda key, input_size, dtype=jnp.float32: jnp.full((3,), 0.9, dtype),
    ...     initial_state=lambda batch_shape=(), dtype=jnp.float32: jnp.zeros((*batch_shape, 3), dtype),
    ...     step=lambda decay, state, x: (decay * state + x, jnp.tanh(decay * state + x)),
    ... )
    >>> with_output(leaky, 3).initial_state((2,)).h.shape
    (2, 3)
    """
    if hasattr(jax.eval_shape(cell.initial_state), "h"):
        return cell
    shape = getattr(made := _output(cell, input_size, (2,), jnp.float32), "shape", ())
    if len(shape) != 2 or shape[0] != 2:
        raise TypeError(f"the cell puts out {made} for 2 rows; wanted one array [*B, features]")
    initial_state = Partial(_initial_state, cell=cell, input_size=input_size)
    start = None if cell.start is None else Partial(_start, cell=cell, initial_state=initial_state)
    return cell.replace(initial_state=initial_state, step=Partial(_step, step=cell.step), start=start)


def _output(cell: Cell, input_size: int, batch_shape: Shape, dtype: Any) -> Any:
    def step():
        x = jnp.zeros((*batch_shape, input_size), dtype)
        params = cell.init(jax.random.key(0), input_size, dtype)
        return cell.step(params, cell.initial_state(batch_shape, dtype), x)[1]

    return jax.eval_shape(step)


def _initial_state(batch_shape: Shape = (), dtype: Any = jnp.float32, *, cell: Cell, input_size: int) -> OutputState:
    y = _output(cell, input_size, batch_shape, dtype)
    return OutputState(cell.initial_state(batch_shape, dtype), jnp.zeros(y.shape, y.dtype))


def _start(params: Params, *, cell: Cell, initial_state: InitialState) -> OutputState:
    assert cell.start is not None
    return OutputState(cell.start(params), initial_state().h)


def _step(params: Params, state: OutputState, x: Any, *, step: Step) -> tuple[OutputState, Any]:
    own, y = step(params, state.own, x)
    return OutputState(own, y), y
