"""The recurrence on an NVIDIA GPU, one kernel for the whole sequence, written in Pallas for its Triton compiler.

A loop of XLA's launches two or three kernels a step; here a sequence is one launch forward and one backward, and what
x and the weights put in or take out stays outside, as large products of XLA's. Rows of a batch never meet, so each
program of a kernel takes some rows and walks with them through all steps::

    z = (x W_x + b)_t + h_{t−1} W_h     tile by tile; sums in float32 at least
    s_t = activate(z, s_{t−1})          with its coefficients where it is differentiated; then the program's barrier

Backwards the linear recurrence is transposed by hand, `dz_t` from the coefficients and then `dh_{t−1} = dz_t W_hᵀ`.
Forward mode is XLA's, and so is all of second order.

Of a cell two things are wanted, its ``activate`` and the matrix by which h reaches z. The first is traced into the
kernel, whatever it is made of; the second is read off its products. On a CPU Pallas interprets the same kernels, which
is slow and there to check their numbers. Nobody has run them on a device yet.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import linear_call
from jaxtyping import Array

from lstmjax.cells.base import Gates, Products, cast_floating, cast_like, dtype_of, from_h, working_dtype
from lstmjax.cells.build import FIRST_BY_H
from lstmjax.cells.gru import PRODUCTS
from lstmjax.recurrence import elementwise
from lstmjax.recurrence.parts import Parts, Plan, of_what_moves, why_no_kernel, zero_like
from lstmjax.recurrence.scan import Timeline, all_axes, kept, one_axis, restored
from lstmjax.typing import Params, Shape, State

# A tensor core multiplies sixteen rows at least; more of them in a program would leave more of the GPU idle.
ROWS = 16

# Shared memory of an H100, less what else lies there: W_h where it fits, which is then read once for all steps; else of
# its tiles, of all gates together, as many as are on their way at a time.
HELD_BYTES = 2**17
TILE_BYTES, STAGES = 2**16, 3


def may_serve(plan: Plan) -> bool:
    """Whether the kernels are asked for; of another cell's products it is not known where a batch axis may stand."""
    return plan.implementation == "pallas" and isinstance(plan.parts.step.pre, Products)


def why_not(plan: Plan, arguments: Any) -> str | None:
    """Why the kernels do not serve a request, or None where they do."""
    params, start, _, timeline = arguments
    step, leaves = plan.parts.step, jax.tree.leaves(start)
    if step.project is not None:
        return "its hidden state is a projection"
    if (why := why_no_kernel(plan)) is not None:
        return why
    if not all(isinstance(n, int) for leaf in (*leaves, *jax.tree.leaves(timeline.x)) for n in leaf.shape):
        return "a size is left open"
    weights = jax.eval_shape(step.pack, params)
    batch = start.h.shape[:-1]
    try:
        # Of every axis of the batch one row more: weights of the rows, such as masks, do not fit it.
        _by_h(plan.parts, weights, timeline.x, start.h, tuple(n + 1 for n in batch))
        width = _by_h(plan.parts, weights, timeline.x, start.h, batch).shape[-1]
    except (TypeError, ValueError):
        return "its products differ between the rows of the batch"
    if any(leaf.shape != start.h.shape for leaf in leaves) or width % start.h.shape[-1]:
        return "the fields of its state are not all [*B, H], and z [*B, k·H]"
    one = jax.ShapeDtypeStruct(start.h.shape, working_dtype(start))
    inputs = (one,) * (width // start.h.shape[-1]), jax.tree.map(lambda _: one, start)
    shapes = {leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(step.activate, *inputs))}
    if shapes != {one.shape} or not elementwise.is_the_same_everywhere(step.activate, *inputs):
        return "its activation is not the same for every unit and row, and the kernels take some at a time"
    return None


def forward(plan: Plan, otherwise: Callable, *, interpret: bool) -> Callable:
    """As :func:`lstmjax.recurrence.linear.forward`, which is ``otherwise``."""

    def run(arguments: Any, _: Any) -> tuple[State, Any]:
        if _is_empty(arguments):
            return otherwise(arguments, _)
        final, recorded, _ = _run(plan, arguments, (*jax.eval_shape(otherwise, arguments, _), None), interpret)
        return final, recorded

    return run


def linearised_forward(plan: Plan, otherwise: Callable, *, interpret: bool) -> Callable:
    """As :func:`lstmjax.recurrence.linear.linearised_forward`, which is ``otherwise``."""

    def run(arguments: Any, _: Any) -> tuple[State, Any, Any]:
        if _is_empty(arguments):
            return otherwise(arguments, _)
        return _run(plan, arguments, jax.eval_shape(otherwise, arguments, _), interpret)

    return run


def linear(plan: Plan, otherwise: Callable, *, interpret: bool) -> Callable:
    """As :func:`lstmjax.recurrence.linear.linear`, which is ``otherwise``; its transpose is the kernel's."""

    def run(given: Any, moving: Any) -> tuple[State, Any]:
        if _is_empty(given[0]):
            return otherwise(given, moving)
        return linear_call(
            otherwise, lambda given, out: _transposed(plan, given, out, moving, interpret), given, moving
        )

    return run


class Problem(NamedTuple):
    """What both kernels are made for.

    Attributes:
        steps: T.
        rows: R, all rows of the batch.
        units: H.
        gates: k.
        reading: the gates that read h, in the order of the weights' columns.
        dtype: in which z, and cotangents, are summed.
        tile: units in a tile, and rows of `W_h`.
    """

    steps: int
    rows: int
    units: int
    gates: int
    reading: tuple[int, ...]
    dtype: Any
    tile: int


class Span(NamedTuple):
    """Some of an axis of an array: ``size`` indices from ``start`` on, of which those below ``limit`` are there."""

    start: Any
    size: int
    limit: int

    def inside(self) -> Array | None:
        """Which of them are there; None: all."""
        if self.limit % self.size == 0:
            return None
        return self.start + lax.iota(jnp.int32, self.size) < self.limit


def _run(plan: Plan, arguments: Any, results: Any, interpret: bool) -> Any:
    """Final state, what is recorded and what is kept, of the shapes in ``results``."""
    from jax.experimental import pallas as pl

    params, start, fresh, timeline = arguments
    step, axes = plan.parts.step, start.h.shape[:-1]
    weights = step.pack(params)
    from_x = plan.parts.z_by_x(weights, timeline.x, start.h)
    problem, matrix = _problem(plan.parts, weights, timeline.x, start, from_x.dtype)
    from_x = from_x.reshape(problem.steps, problem.rows, problem.gates, problem.units)
    final, recorded, kept_of_steps = results
    # No place is read and written between two barriers, so the state has two.
    places = jax.tree.map(lambda s: jax.ShapeDtypeStruct((2, problem.rows, problem.units), s.dtype), final)
    of_steps = recorded, None if kept_of_steps is None else kept_of_steps[:2]
    out = places, *jax.eval_shape(lambda of_steps: one_axis(of_steps, axes, 1), of_steps)

    def whole_sequence(given: Any, *out: Any) -> None:
        _forward_kernel(plan, problem, given, out, pl.program_id(0), _barrier(interpret))

    places, recorded, kept_of_steps = pl.pallas_call(
        whole_sequence, out_shape=out, grid=(-(-problem.rows // ROWS),), interpret=interpret,
        compiler_params=_compiler_params(problem),
    )((matrix, from_x, *one_axis((start, fresh), axes, 0), *_flags(timeline, axes)))  # fmt: skip
    final = jax.tree.map(lambda s: s[problem.steps % 2], places)
    recorded, kept_of_steps = all_axes((recorded, kept_of_steps), axes, 1)
    return all_axes(final, axes, 0), recorded, None if kept_of_steps is None else (*kept_of_steps, None)


def _forward_kernel(plan: Plan, problem: Problem, given: Any, out: Any, program: Any, barrier: Callable) -> None:
    matrix, from_x, start, fresh, valid, reset = given
    places, recorded, kept_of_steps = out
    step = plan.parts.step
    rows = Span(program * ROWS, ROWS, problem.rows)
    weights_of = _held(
        problem, program, lambda *at: [_load(matrix, at[0], n, at[1]) for n in range(len(problem.reading))]
    )

    def begin(units: Span, _: None) -> None:
        _store(places, _load(start, rows, units), 0, rows, units)

    def one(n: Any, _: None) -> None:
        t = problem.steps - 1 - n if plan.reverse else n
        old = n & 1
        now = _now(valid, reset, t, rows)

        def of_units(units: Span, _: None) -> None:
            def by_h(depth: Span, z: Gates) -> Gates:
                h = restored(_load(fresh and fresh.h, rows, depth), _load(places.h, old, rows, depth), now)
                tiles = dict(zip(problem.reading, weights_of(depth, units), strict=True))
                h = h.astype(matrix.dtype)
                return tuple(a + _dot(h, tiles[n], problem.dtype) if n in tiles else a for n, a in enumerate(z))

            z = tuple(_load(from_x, t, rows, gate, units) for gate in range(problem.gates))
            z = _over(problem, by_h, z)
            before = restored(_load(fresh, rows, units), _load(places, old, rows, units), now)
            if kept_of_steps is None:
                new = step.activate(z, step.working(before))
            else:
                new, coefficients = plan.parts.linearise_gates(z, before)
                _store(kept_of_steps, (coefficients, before.h), t, rows, units)
            new = cast_like(new, before)
            new, y = kept(new, new.h, before, now)
            _store(places, new, 1 - old, rows, units)
            _store(recorded, plan.record(new, y), t, rows, units)

        _over(problem, of_units, None)
        barrier()

    _over(problem, begin, None)
    barrier()
    lax.fori_loop(np.int32(0), np.int32(problem.steps), one, None)


def _transposed(plan: Plan, given: Any, out: Any, moving: Any, interpret: bool) -> Any:
    """The cotangents of what moves; None for what does not."""
    from jax.experimental import pallas as pl

    (params, start, fresh, timeline), (coefficients, h_before, _) = given
    parts, axes = plan.parts, start.h.shape[:-1]
    weights = parts.step.pack(params)
    dtype = working_dtype((weights, start))
    problem, matrix = _problem(parts, weights, timeline.x, start, dtype)
    d_final, d_recorded = out

    def whole_sequence_transposed(given: Any, *out: Any) -> None:
        _transposed_kernel(plan, problem, given, out, pl.program_id(0), _barrier(interpret))

    state = jax.tree.map(lambda s: jax.ShapeDtypeStruct((2, problem.rows, problem.units), dtype), start)
    dz = jax.ShapeDtypeStruct((problem.steps, problem.rows, problem.gates, problem.units), dtype)
    dz, d_start, d_fresh = pl.pallas_call(
        whole_sequence_transposed, out_shape=(dz, state, None if fresh is None else state),
        grid=(-(-problem.rows // ROWS),), interpret=interpret, compiler_params=_compiler_params(problem),
    )((matrix, *one_axis((coefficients, d_recorded), axes, 1), one_axis(d_final, axes, 0),
       *_flags(timeline, axes)))  # fmt: skip
    dz = dz.reshape(problem.steps, *axes, -1)
    d_start = jax.tree.map(lambda d: d[0], d_start)
    d_fresh = jax.tree.map(lambda d: d[problem.steps % 2], d_fresh)
    d_start, d_fresh = (None if d is None else cast_like(all_axes(d, axes, 0), start) for d in (d_start, d_fresh))

    moved_params, moved_start, moved_fresh, moved_x = moving

    def drive(moved: tuple[Params, Any]) -> Array:
        moved_params, moved_x = moved
        terms = []
        if jax.tree.leaves(moved_params):
            d_params = jax.tree.map(lambda p, t: zero_like(p) if t is None else t, params, moved_params)
            d_weights = jax.jvp(parts.step.pack, (params,), (d_params,))[1]
            terms.append(parts.dz_by_weights(weights, d_weights, timeline.x, h_before))
        if jax.tree.leaves(moved_x):
            d_x = jax.tree.leaves(moved_x, is_leaf=lambda t: t is None)
            terms.append(parts.dz_by_x(weights, timeline.x, d_x, h_before).astype(dz.dtype))
        return sum(terms[1:], terms[0])

    driven = moved_params, moved_x
    if jax.tree.leaves(driven):
        (driven,) = jax.linear_transpose(drive, driven)(dz)
    return driven[0], of_what_moves(moved_start, d_start), of_what_moves(moved_fresh, d_fresh), driven[1]


def _transposed_kernel(plan: Plan, problem: Problem, given: Any, out: Any, program: Any, barrier: Callable) -> None:
    matrix, coefficients, d_recorded, d_final, valid, reset = given
    dz, d_state, d_fresh = out
    rows = Span(program * ROWS, ROWS, problem.rows)
    tile = jax.ShapeDtypeStruct((ROWS, problem.tile), problem.dtype)
    gates, state = (tile,) * problem.gates, jax.tree.map(lambda _: tile, d_state)
    weights_of = _held(
        problem, program, lambda *at: [_load(matrix, at[0], n, at[1]).T for n in range(len(problem.reading))]
    )

    def begin(units: Span, _: None) -> None:
        _store(d_state, _load(d_final, rows, units), 0, rows, units)
        if d_fresh is not None:
            _store(d_fresh, jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), state), 0, rows, units)

    def one(n: Any, _: None) -> None:
        t = n if plan.reverse else problem.steps - 1 - n
        now = _now(valid, reset, t, rows)

        def of_units(units: Span, _: None) -> None:
            at = _load(coefficients, t, rows, units)

            def tangent(dz: Gates, d_before: State) -> tuple[State, Any]:
                new = plan.parts.tangent_of_gates(at, dz, d_before)
                new, y = kept(new, new.h, d_before, now)
                return new, plan.record(new, y)

            d_new = _load(d_state, 0, rows, units)
            d_new = d_new, cast_floating(_load(d_recorded, t, rows, units), problem.dtype)
            d_gates, d_before = jax.linear_transpose(tangent, gates, state)(d_new)
            for gate, d_gate in enumerate(d_gates):
                _store(dz, d_gate, t, rows, gate, units)
            _store(d_state, d_before, 1, rows, units)

        def through_h(units: Span, _: None) -> None:
            def by_h(depth: Span, dh: Array) -> Array:
                for gate, weights in zip(problem.reading, weights_of(units, depth), strict=True):
                    dh += _dot(_load(dz, t, rows, gate, depth).astype(matrix.dtype), weights, problem.dtype)
                return dh

            d_before = _load(d_state, 1, rows, units)
            d_h = _over(problem, by_h, d_before.h)
            d_before = jax.tree.map(lambda ref, d: d_h if ref is d_state.h else d, d_state, d_before)
            if d_fresh is not None:
                nothing = jax.tree.map(jnp.zeros_like, d_before)
                more = restored(d_before, nothing, now)
                so_far = _load(d_fresh, n & 1, rows, units)
                _store(d_fresh, jax.tree.map(jnp.add, so_far, more), 1 - (n & 1), rows, units)
                d_before = restored(nothing, d_before, now)
            _store(d_state, d_before, 0, rows, units)

        _over(problem, of_units, None)
        barrier()
        _over(problem, through_h, None)
        barrier()

    _over(problem, begin, None)
    barrier()
    lax.fori_loop(np.int32(0), np.int32(problem.steps), one, None)


# What both kernels are made of. --------------------------------------------------------------------------------------


def _problem(parts: Parts, weights: Any, xs: Any, start: State, dtype: Any) -> tuple[Problem, Array]:
    """The sizes, and the matrix by which h reaches the gates that read it, ``[H, gates, H]``."""
    units, batch = start.h.shape[-1], start.h.shape[:-1]
    gates = _by_h(parts, weights, xs, start.h, batch).shape[-1] // units
    reading, matrix = _matrix(parts, weights, xs, start.h, gates)
    bytes_of_one = len(reading) * matrix.dtype.itemsize
    tile = max(16, 2 ** (units - 1).bit_length())  # Triton's tiles are powers of two
    if tile > 128 or tile**2 * bytes_of_one > HELD_BYTES:
        tile = max(n for n in (16, 32, 64) if n == 16 or n**2 * bytes_of_one <= TILE_BYTES)
    sizes = Problem(jax.tree.leaves(xs)[0].shape[0], math.prod(batch), units, gates, reading, dtype, tile)
    return sizes, matrix


def _matrix(parts: Parts, weights: Any, xs: Any, h: Array, gates: int) -> tuple[tuple[int, ...], Array]:
    """The gates that read h, and their matrix; of products that are not known here, what they make of each unit."""
    units, pre = h.shape[-1], parts.step.pre
    by_h = pre.from_h if isinstance(pre, Products) else None
    if by_h in (from_h, FIRST_BY_H.from_h, PRODUCTS.from_h):
        matrix = weights.w_h_t.T.reshape(units, -1, units)
        # Of a candidate in two parts the one of x stands before the one of h.
        candidate = (*range(gates - 2), gates - 1)
        return candidate if by_h is PRODUCTS.from_h else tuple(range(matrix.shape[1])), matrix
    rows = (units, *(1 for _ in h.shape[1:-1]))
    with jax.default_matmul_precision("highest"):  # a product with ones and zeros, to be exact
        matrix = _by_h(parts, weights, xs, h, rows, jnp.eye(units, dtype=h.dtype).reshape(*rows, units))
    return tuple(range(gates)), matrix.reshape(units, gates, units).astype(dtype_of(weights))


def _by_h(parts: Parts, weights: Any, xs: Any, h: Array, rows: Shape, dh: Array | None = None) -> Any:
    """What ``dh``, ``[*rows, H]``, puts into z, ``[*rows, N]``; of None the shape."""
    axes = 1 + len(rows)
    x = jax.tree.map(lambda a: jnp.zeros((*rows, *a.shape[axes:]), a.dtype), xs)
    if dh is None:
        like = jax.ShapeDtypeStruct((*rows, h.shape[-1]), h.dtype)
        return jax.eval_shape(parts.dz_by_h, weights, x, like)
    return parts.dz_by_h(weights, x, dh)


def _over(problem: Problem, body: Callable, carried: Any) -> Any:
    """A loop over all tiles of units."""
    size = problem.tile

    def one(n: Any, carried: Any) -> Any:
        return body(Span(jnp.int32(n * size), size, problem.units), carried)

    return lax.fori_loop(np.int32(0), np.int32(-(-problem.units // size)), one, carried)


def _held(problem: Problem, program: Any, load: Callable) -> Callable:
    """The weights' tiles of two spans of units; where there is one tile, it is loaded once for all steps."""
    if problem.tile < problem.units:
        return load
    # A zero that is traced: JAX holds one that is known to the array's bounds, whatever the mask.
    whole = Span(program * 0, problem.tile, problem.units)
    held = load(whole, whole)
    return lambda *_: held


def _dot(a: Array, b: Array, dtype: Any) -> Array:
    return jnp.dot(a, b, preferred_element_type=dtype)


def _view(ref: Any, index: tuple) -> tuple[Any, Array | None]:
    """A part of an array, and which of it is there; None: all. What is not there is not read or written."""
    from jax.experimental import pallas as pl

    spans = [n for n in index if isinstance(n, Span)]
    mask = None
    for axis, span in enumerate(spans):
        inside = span.inside()
        if inside is not None:
            inside = lax.expand_dims(inside, [n for n in range(len(spans)) if n != axis])
            mask = inside if mask is None else mask & inside
    if mask is not None:
        mask = jnp.broadcast_to(mask, tuple(span.size for span in spans))
    return ref.at[tuple(pl.ds(n.start, n.size) if isinstance(n, Span) else jnp.int32(n) for n in index)], mask


def _load(refs: Any, *index: Any) -> Any:
    """The same part of every array."""
    from jax.experimental.pallas import triton

    def load(ref: Any) -> Array:
        part, mask = _view(ref, index)
        return triton.load(part) if mask is None else triton.load(part, mask=mask, other=np.zeros((), ref.dtype))

    return jax.tree.map(load, refs)


def _store(refs: Any, values: Any, *index: Any) -> None:
    """Values into the same part of every array."""
    from jax.experimental.pallas import triton

    def store(ref: Any, value: Array) -> None:
        part, mask = _view(ref, index)
        triton.store(part, value.astype(ref.dtype), mask=mask)

    jax.tree.map(store, refs, values)


def _now(valid: Any, reset: Any, t: Any, rows: Span) -> Timeline:
    return Timeline(None, *(None if flags is None else _load(flags, t, rows) != 0 for flags in (valid, reset)))


def _flags(timeline: Timeline, axes: Shape) -> Any:
    """Flags as bytes, which are what a kernel can load."""
    flags = one_axis((timeline.valid, timeline.reset), axes, 1)
    return jax.tree.map(lambda a: a.astype(jnp.int8), flags)


def _barrier(interpret: bool) -> Callable[[], Any]:
    """What a program's threads wait at for one another; interpreted, a program has one."""
    from jax.experimental.pallas import triton

    return (lambda: None) if interpret else triton.debug_barrier


def _compiler_params(problem: Problem) -> Any:
    from jax.experimental.pallas import triton

    # Triton sends a product's loads ahead by some rounds of the innermost loop. That is over tiles, and what it reads
    # is at rest; but where there is one tile, it is the loop over steps, and would read the state of an earlier one.
    return triton.CompilerParams(
        num_warps=8 if problem.tile >= 64 else 4, num_stages=STAGES if problem.tile < problem.units else 1
    )


def _is_empty(arguments: Any) -> bool:
    _, start, _, timeline = arguments
    return 0 in (*start.h.shape, *jax.tree.leaves(timeline.x)[0].shape[:1])
