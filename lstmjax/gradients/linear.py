"""The linear recurrence around an unroll, from which every diagnostic here is read.

Around the states `s_0 … s_T` of an unroll, small differences obey `ds_t = J_t ds_{t−1}` with `J_t = ∂s_t/∂s_{t−1}`, and
adjoints `λ_{t−1} = J_tᵀ λ_t`. No `J_t` is ever formed: a step of the recurrence is a function of what was kept of it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array

from lstmjax.cells.base import Cell, Step
from lstmjax.recurrence.inputs import as_sequence, prepare, time_and_batch
from lstmjax.recurrence.linear import linearised_step
from lstmjax.recurrence.parts import Parts
from lstmjax.recurrence.scan import Timeline, advance, first_step, kept, over_time, restored, select
from lstmjax.typing import Params, Shape, State
from lstmjax.unroll import choose


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "weights", "x", "fresh", "states", "steps"],
    meta_fields=["step", "parts", "batch_axes"],
)
@dataclasses.dataclass(frozen=True)
class Linearised:
    """An unroll and the linear recurrence around it.

    Attributes:
        step: the cell's step.
        parts: the step taken apart, or None.
        batch_axes: how many batch axes there are.
        params: the cell's parameters.
        weights: the same, packed where there are parts.
        x: one step's input, of which the shapes matter.
        fresh: the state a reset restores, or None.
        states: `s_0 … s_T`, each leaf ``[T + 1, *B, ...]``.
        steps: what `J_t` is made of, leaves ``[T, ...]``: the step's :class:`~lstmjax.recurrence.scan.Timeline`, and
            its coefficients or, without parts, the state before it.
    """

    step: Step
    parts: Parts | None
    batch_axes: int
    params: Params
    weights: Any
    x: Any
    fresh: State | None
    states: State
    steps: tuple[Timeline, Any]

    @property
    def batch(self) -> Shape:
        """The sizes of the batch axes."""
        return jax.tree.leaves(self.states)[0].shape[1 : 1 + self.batch_axes]

    @property
    def sizes(self) -> list[int]:
        """How many numbers each leaf of one row's state holds."""
        return [math.prod(leaf.shape[1 + self.batch_axes :]) for leaf in jax.tree.leaves(self.states)]

    def push(self, at: tuple[Timeline, Any], d_state: State) -> State:
        """`J_t ds`, for one entry ``at`` of ``steps``."""
        now, made_of = at
        if self.parts is None:

            def step(state):
                return advance(self.step, self.params, self.fresh, state, now)[0]

            return jax.jvp(step, (made_of,), (d_state,))[1]
        before = restored(jax.tree.map(jnp.zeros_like, d_state), d_state, now)
        dz = self.parts.dz_by_h(self.weights, self.x, before.h)
        new = self.parts.push(self.params, made_of, dz, before)
        return kept(new, new.h, before, now)[0]

    def pull(self, at: tuple[Timeline, Any], adjoint: State) -> State:
        """`J_tᵀ λ`, for one entry ``at`` of ``steps``."""
        return jax.linear_transpose(partial(self.push, at), adjoint)(adjoint)[0]


def linearised(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> Linearised:
    """Unrolls a cell and keeps what its linear recurrence is made of.

    Args:
        cell: any cell; or a bare ``step(params, state, x) -> (state, y)``, and then ``state`` is wanted.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        state: the state before the first step.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`.

    Raises:
        ValueError: as :func:`~lstmjax.unroll`; or a bare step comes without a state.
        TypeError: as :func:`~lstmjax.unroll`.
        FloatingPointError: parameters, inputs or states are not finite; says which, and at which step and row. Not
            under ``jit``, where values are not known.
    """
    cell = as_cell(cell, state)
    sequence = as_sequence(cell, xs, state, lengths, mask, resets)
    linear, inputs = _linearised(cell, params, sequence)
    _check_finite(params, inputs, linear)
    return linear


def as_cell(cell: Cell | Callable, state: State | None) -> Cell:
    """A cell as it is; of a bare ``step(params, state, x) -> (state, y)`` one that begins at a state.

    Raises:
        ValueError: a bare step comes without a state.
    """
    if isinstance(cell, Cell):
        return cell
    if state is None:
        raise ValueError("cell is a bare step, and no state is given; wanted the state before the first step")
    start = jax.tree.map(jnp.asarray, state)
    return Cell(init=_no_init, initial_state=lambda batch_shape=(), dtype=jnp.float32: start, step=cell)


def blank_padding(values: Any, lengths: Any, times: Sequence[int] | None = None) -> Any:
    """Puts NaN after each row's end, in leaves ``[T + 1, *B, ...]``, or ``[times, *B, ...]`` for some times alone."""
    if lengths is None:
        return values
    lengths = jnp.asarray(lengths)
    times = range(jax.tree.leaves(values)[0].shape[0]) if times is None else times
    # Lengths may be of a type that ends before T, and one compared with it wraps: no length is beyond the last time.
    last = min(max(times, default=0), np.iinfo(lengths.dtype).max)
    ends = jnp.minimum(lengths, np.asarray(last, lengths.dtype)).astype(jnp.int32)
    at = jnp.array(times, jnp.int32)
    return blanked(at.reshape(at.shape + (1,) * ends.ndim) <= ends[None], values)


def blanked(there: Array, values: Any) -> Any:
    """NaN where there is nothing to tell; ``there`` is spread over each leaf's trailing axes.

    These NaNs are meant, so ``jax_debug_nans`` does not look at them. Under a ``jit`` of the caller's it looks at what
    the whole program returns, and finds them.
    """
    with jax.debug_nans(False):
        return jax.tree.map(lambda leaf: select(there, leaf, jnp.full_like(leaf, jnp.nan)), values)


@partial(jax.jit, static_argnums=0)
def _linearised(cell: Cell, params: Params, sequence: Any) -> tuple[Linearised, Any]:
    start, fresh, timeline = prepare(cell, params, sequence)
    parts = choose(cell, None, params, start, timeline.x)
    weights = None if parts is None else parts.step.pack(params)

    def body(state, now):
        if parts is None:
            new, _ = advance(cell.step, params, fresh, state, now)
            return new, (new, (now, state))
        new, (_, coefficients, _, _) = linearised_step(parts, weights, params, fresh, state, now)
        return new, (new, (now._replace(x=None), coefficients))

    _, (after, steps) = lax.scan(body, start, timeline)
    axes = len(time_and_batch(cell, timeline.x)[1])
    states, x = over_time(start, after), first_step(timeline.x)
    return Linearised(cell.step, parts, axes, params, weights, x, fresh, states, steps), timeline.x


def _no_init(*_: Any, **__: Any) -> Params:
    raise TypeError("this cell was made of a bare step and draws no parameters")


def _check_finite(params: Params, xs: Any, linear: Linearised) -> None:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((xs, linear.states))):
        return
    for path, leaf in jax.tree.leaves_with_path(params):
        if _is_floating(leaf) and not np.isfinite(np.asarray(leaf, np.float64)).all():
            raise FloatingPointError(f"params{jax.tree_util.keystr(path)} holds a NaN or an infinity")
    for path, leaf in jax.tree.leaves_with_path(xs):
        _check_finite_over_time(f"xs{jax.tree_util.keystr(path)} at step", leaf, linear.batch_axes)
    for path, leaf in jax.tree.leaves_with_path(linear.states):
        _check_finite_over_time(f"state{jax.tree_util.keystr(path)} after so many steps:", leaf, linear.batch_axes)


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _check_finite_over_time(name: str, values: Array, batch_axes: int) -> None:
    if not _is_floating(values) or bool(jnp.isfinite(values).all()):
        return
    bad = ~np.isfinite(np.asarray(values, np.float64))
    step, *where = np.argwhere(bad)[0].tolist()
    row = f", row {tuple(where[:batch_axes])}" if batch_axes else ""
    raise FloatingPointError(f"{name} {step}{row} holds {float(values[(step, *where)])}, the first that is not finite")
