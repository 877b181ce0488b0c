"""The linear recurrence around an unroll, from which every diagnostic here is read.

Around the states s_0 … s_T of an unroll, small differences obey ds_t = J_t ds_{t−1} with J_t = ∂s_t/∂s_{t−1}, and
adjoints λ_{t−1} = J_tᵀ λ_t. No J_t is ever formed: a step of the recurrence is a function of what was kept of it.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lstmjax.cells.base import Cell, Recurrence
from lstmjax.fused import loop_unroll, pre_shape
from lstmjax.scan import Timeline, advance, kept, restored
from lstmjax.typing import Params, State
from lstmjax.unroll import choose, prepare


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["weights", "fresh", "states", "steps"],
    meta_fields=["step", "recurrence", "unroll"],
)
@dataclasses.dataclass(frozen=True)
class Linearised:
    """An unroll and the linear recurrence around it.

    Attributes:
        step: the cell's step.
        recurrence: the step in parts, or None.
        unroll: how many steps the body of a loop over ``steps`` should hold.
        weights: the cell's parameters, packed where there is a recurrence.
        fresh: the state a reset restores, or None.
        states: s_0 … s_T, each leaf ``[T + 1, *B, ...]``.
        steps: what J_t is made of, leaves ``[T, ...]``: the step's :class:`~lstmjax.scan.Timeline`, and its
            coefficients or, without a recurrence, the state before it.
    """

    step: Callable
    recurrence: Recurrence | None
    unroll: int
    weights: Any
    fresh: State | None
    states: State
    steps: tuple[Timeline, Any]

    def push(self, at: tuple[Timeline, Any], d_state: State) -> State:
        """J_t ds, for one entry ``at`` of ``steps``."""
        now, made_of = at
        if self.recurrence is None:

            def step(state):
                return advance(self.step, self.weights, self.fresh, state, now)[0]

            return jax.jvp(step, (made_of,), (d_state,))[1]
        before = restored(jax.tree.map(jnp.zeros_like, d_state), d_state, now)
        dz = self.recurrence.from_h(self.weights, before.h)
        new = self.recurrence.tangent(made_of, dz, before)
        return kept(new, new.h, before, now)[0]

    def pull(self, at: tuple[Timeline, Any], adjoint: State) -> State:
        """J_tᵀ λ, for one entry ``at`` of ``steps``."""
        return jax.linear_transpose(partial(self.push, at), adjoint)(adjoint)[0]


def linearised(
    cell: Cell,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> Linearised:
    """Unrolls a cell and keeps what its linear recurrence is made of; arguments as for :func:`~lstmjax.unroll`."""
    start, fresh, timeline = prepare(cell, params, xs, state, lengths=lengths, mask=mask, resets=resets)
    return _linearised(cell.step, choose(cell, None), params, start, fresh, timeline)


@partial(jax.jit, static_argnums=(0, 1))
def _linearised(step, recurrence, params, start, fresh, timeline):
    if recurrence is None:
        weights, loops = params, 1

        def body(state, now):
            new, _ = advance(step, params, fresh, state, now)
            return new, (new, (now, state))

    else:
        weights = recurrence.pack(params)
        loops = loop_unroll(pre_shape(recurrence, weights, timeline.x, start.h))

        def body(state, now):
            before = restored(fresh, state, now)
            new, coefficients = recurrence.linearise(recurrence.pre(weights, now.x, before.h), before)
            new, _ = kept(new, new.h, before, now)
            return new, (new, (now._replace(x=None), coefficients))

    _, (after, steps) = lax.scan(body, start, timeline, unroll=loops)
    states = jax.tree.map(lambda s, rest: jnp.concatenate([s[None], rest]), start, after)
    return Linearised(step, recurrence, loops, weights, fresh, states, steps)
