"""A step taken apart: the coefficients of its linear recurrence, and what drives that.

The tangent of a :class:`~lstmjax.cells.base.Recurrence` is::

    dz  = (∂z/∂weights) dweights + (∂z/∂x) dx + (∂z/∂h) dh
    ds' = Σ diagonal ∘ (dz, ds),   then projected

with the diagonals of ``activate`` as its only coefficients. Every way to run a recurrence, and every diagnostic, takes
them from here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lstmjax.cells.base import Gates, Products, Recurrence, cast_floating, dtype_of, working_dtype
from lstmjax.functions import Comparable
from lstmjax.recurrence import elementwise
from lstmjax.recurrence.scan import record_output, record_state, record_states
from lstmjax.typing import Params, State


@dataclasses.dataclass(frozen=True, eq=False)
class Parts(Comparable):
    """A step, and which diagonals its ``activate`` has.

    Attributes:
        step: the step.
        pairs: ``(output, input)`` of every diagonal. Inputs are the gates, the arrays of the state that ``activate`` is
            given, and those of the new state, each of which those after it read: see ``elementwise.in_order``.
    """

    step: Recurrence
    pairs: elementwise.Pairs

    def linearise(self, z: Array, state: State) -> tuple[State, list[Array]]:
        """The new state, not yet projected, and the coefficients of :meth:`tangent`."""
        return self.linearise_gates(self.step.split(z, state), state)

    def linearise_gates(self, gates: Gates, state: State) -> tuple[State, Any]:
        """The same, of z as one array for each gate."""
        leaves, tree = jax.tree.flatten(self.step.working(state))
        function = _flat(self.step, tree, len(gates))
        new, diagonals = elementwise.linearise(function, self.pairs, [*gates, *leaves])
        # An array for each: joined, they would be computed number by number, each asking which diagonal it is of.
        return jax.tree.unflatten(jax.tree.structure(state), new), diagonals

    def tangent(self, coefficients: Any, dz: Array, d_state: State) -> State:
        """The tangent of the new state, not yet projected: linear in dz and in the tangent of the old one."""
        return self.tangent_of_gates(coefficients, self.step.split(dz, d_state), d_state)

    def tangent_of_gates(self, coefficients: Any, dz: Gates, d_state: State) -> State:
        """The same, of dz as one array for each gate."""
        inputs = [*dz, *jax.tree.leaves(self.step.working(d_state))]
        leaves, tree = jax.tree.flatten(d_state)
        new = []
        for output in range(len(leaves)):
            terms = [
                diagonal * [*inputs, *new][i]
                for (o, i), diagonal in zip(self.pairs, coefficients, strict=True)
                if o == output
            ]
            # A field that nothing reaches stays what it was made of: zero, as wide as the others.
            new.append(sum(terms[1:], terms[0]) if terms else jnp.zeros_like(inputs[0]))
        return tree.unflatten(new)

    def z_by_x(self, weights: Any, xs: Any, h: Array) -> Array:
        """z without what h puts in, for all inputs ``[T, *B, I]`` at once; of h ``[*B, H]`` the shape matters."""
        steps = jax.tree.leaves(xs)[0].shape[0]
        h = jnp.zeros((steps, *h.shape), h.dtype)
        if not isinstance(self.step.pre, Products):
            return self.step.z(weights, xs, h)
        # The biases alone are z where x and h are zero.
        one = jax.tree.map(lambda a: jnp.zeros(a.shape[a.ndim - 1 :], a.dtype), (xs, h))
        dx = [x.astype(dtype_of(weights)) for x in jax.tree.leaves(xs)]
        return self.dz_by_x(weights, xs, dx, h) + self.step.z(weights, *one)

    def dz_by_weights(self, weights: Any, d_weights: Any, x: Any, h: Array) -> Array:
        """The tangent of z for tangents of the weights, in float32 at least, whatever they are computed in.

        Backwards these are sums over all rows and steps: in bfloat16 they would lose a tenth of what they sum.
        """
        weights, d_weights, x, h = (cast_floating(a, working_dtype((weights, h))) for a in (weights, d_weights, x, h))
        return jax.jvp(lambda w: self.step.z(w, x, h), (weights,), (d_weights,))[1]

    def dz_by_x(self, weights: Any, x: Any, dx: list[Any], h: Array) -> Array:
        """The tangent of z for tangents of the leaves of x, None for those that have none."""
        leaves, tree = jax.tree.flatten(x)
        if isinstance(self.step.pre, Products):
            return self.step.join(
                self.step.pre.from_x(weights, cast_floating(tree.unflatten(dx), dtype_of(weights))), h
            )
        moving = [n for n, t in enumerate(dx) if t is not None]

        def z(*moved):
            given = dict(zip(moving, moved, strict=True))
            return self.step.z(weights, tree.unflatten([given.get(n, leaf) for n, leaf in enumerate(leaves)]), h)

        return jax.jvp(z, tuple(leaves[n] for n in moving), tuple(dx[n] for n in moving))[1]

    def dz_by_h(self, weights: Any, x: Any, dh: Array) -> Array:
        """The tangent of z for a tangent of h; of x the shapes alone matter."""
        if isinstance(self.step.pre, Products):
            return self.step.join(self.step.pre.from_h(weights, dh.astype(dtype_of(weights))), dh)
        return jax.jvp(lambda h: self.step.z(weights, x, h), (jnp.zeros_like(dh),), (dh,))[1]

    def dh_by_params(self, params: Params, d_params: Params, unprojected: Array | None) -> Array | None:
        """The tangent of the projected h for tangents of the parameters, in float32 at least; None: no projection."""
        project = self.step.project
        if project is None or unprojected is None:
            return None
        params, d_params, h = (cast_floating(a, working_dtype((params, unprojected))) for a in
                               (params, d_params, unprojected))  # fmt: skip
        return jax.jvp(lambda p: project(p, h), (params,), (d_params,))[1]

    def push(self, params: Params, coefficients: Any, dz: Array, d_state: State, d_h: Array | None = None) -> State:
        """The tangent of the new state by those of z and of the old state; ``d_h`` is added to that of h."""
        new, _ = self.step.finish(params, self.tangent(coefficients, dz, d_state), d_state)
        return new if d_h is None else new._replace(h=new.h + d_h.astype(new.h.dtype))


class Plan(NamedTuple):
    """What an unroll is to do: all of it but the arrays.

    Attributes:
        parts: the step, taken apart.
        record: ``(state, y) -> what is kept of the step``, linear.
        reverse: whether to run from the last step to the first.
        scan_unroll: as in ``lax.scan``; None: each way to run it decides.
        implementation: ``"fused"``, ``"native"``, ``"pallas"`` or None, as for :func:`lstmjax.unroll`.
    """

    parts: Parts
    record: Callable[[State, Any], Any]
    reverse: bool
    scan_unroll: int | None
    implementation: str | None = None


def take_apart(step: Any, params: Params, state: State, x: Any) -> Parts | str:
    """The parts of a step at these shapes, or why there are none, so that a plain scan must take it whole.

    Args:
        step: any step.
        params: the parameters.
        state: the state before a step.
        x: one step's input.
    """
    if not isinstance(step, Recurrence):
        return "its step is not made of two parts"
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(state)):
        return "its state is not all floating"
    if elementwise.closes_over_tracers(jax.make_jaxpr(step)(params, state, x)):
        return "it closes over values that are being traced"
    weights = _shapes(step.pack, params)
    if not elementwise.is_affine(lambda h, x, weights: step.z(weights, x, h), state.h, x, weights):
        return "its products are not affine in h"
    if isinstance(step.pre, Products) and not elementwise.is_affine(
        lambda x, h, weights: step.z(weights, x, h), x, state.h, weights
    ):
        return "its products are not affine in x"
    z = _shapes(lambda p, s, x: step.split(step.z(step.pack(p), x, s.h), s), params, state, x)
    working = _shapes(step.working, state)
    leaves, tree = jax.tree.flatten(working)
    function = _flat(step, tree, len(z))
    try:
        inputs = [*z, *leaves]
        elementwise.diagonals(function, inputs)  # is it elementwise at all?
        outputs = _shapes(function, inputs)
        pairs = elementwise.diagonals(elementwise.in_order(function, inputs, outputs), [*inputs, *outputs])
    except elementwise.NotElementwiseError as error:
        return f"its activation has no derivative by diagonals: {error}"
    return Parts(step, pairs)


def _shapes(function: Callable, *args: Any) -> Any:
    """``jax.eval_shape`` without the axes of a ``shard_map``, which ``jax.make_jaxpr`` does not take back."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), jax.eval_shape(function, *args)
    )


def _flat(step: Recurrence, tree: Any, gates: int) -> elementwise.Function:
    """``activate`` from a list of arrays to a list of arrays."""
    return lambda inputs: jax.tree.leaves(step.activate(tuple(inputs[:gates]), tree.unflatten(inputs[gates:])))


def zero_like(p: Array) -> Any:
    """The tangent of what does not move."""
    return jnp.zeros_like(p) if jnp.issubdtype(p.dtype, jnp.inexact) else np.zeros(p.shape, jax.dtypes.float0)


def of_what_moves(moving: Any, found: Any) -> Any:
    """The cotangents found, and None where ``moving`` is."""
    return jax.tree.map(lambda m, f: None if m is None else f, moving, found, is_leaf=lambda m: m is None)


def why_no_kernel(plan: Plan) -> str | None:
    """Why no kernel that has the loop in it serves a plan, whatever its cell; None where one may."""
    if plan.record not in (record_output, record_state, record_states):
        return "the kernels keep outputs or states of each step"
    if plan.scan_unroll is not None:
        return "scan_unroll is given, and the kernels have no loop of XLA's"
    return None
