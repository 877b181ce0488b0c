"""The arguments of an unroll, checked and made into what a scan consumes."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array

from lstmjax.cells.base import Cell, Recurrence, cast_like, working_dtype
from lstmjax.recurrence.scan import Timeline, first_step, select
from lstmjax.typing import Params, Shape, State


class Sequence(NamedTuple):
    """The data of an unroll, as the user gives them: see :func:`lstmjax.unroll`."""

    xs: Any
    state: State | None
    lengths: Any
    mask: Any
    resets: Any


class Prepared(NamedTuple):
    """What a scan consumes.

    Attributes:
        start: the state before the first step.
        fresh: the state that a reset restores; None where there are no resets.
        timeline: inputs, validity and resets.
    """

    start: State
    fresh: State | None
    timeline: Timeline


def as_sequence(cell: Cell, xs: Any, state: State | None, lengths: Any, mask: Any, resets: Any) -> Sequence:
    """The data of an unroll as arrays, with the checks that need their values and not only their shapes.

    Raises:
        ValueError: xs has too few axes; lengths run beyond T where they are known.
        TypeError: lengths are not whole numbers.
    """
    if any(not hasattr(leaf, "shape") for leaf in jax.tree.leaves(xs)):
        xs = np.asarray(xs)
    steps, batch = time_and_batch(cell, xs)
    if lengths is not None:
        lengths = lengths if hasattr(lengths, "dtype") else np.asarray(lengths)
        if not jnp.issubdtype(lengths.dtype, jnp.integer):
            raise TypeError(f"lengths has dtype {lengths.dtype}; wanted whole numbers")
        if lengths.shape != batch:
            raise ValueError(f"lengths has shape {lengths.shape}; wanted [*B], which for these xs is {batch}")
        if not isinstance(lengths, Tracer):
            known = np.asarray(lengths)
            if known.size and not (known.min() >= 0 and known.max() <= steps):
                raise ValueError(f"lengths run from {known.min()} to {known.max()}; wanted 0 to T = {steps}")
    flags = [_flags(name, given, (steps, *batch)) for name, given in (("mask", mask), ("resets", resets))]
    return Sequence(xs, state, lengths, *flags)


def time_and_batch(cell: Cell, xs: Any) -> tuple[Any, Shape]:
    """T and the batch axes ``*B`` of inputs: of each leaf all axes but the first and the features.

    Raises:
        ValueError: there are too few axes, or leaves differ.
    """
    features = cell.num_feature_axes
    leaves = jax.tree.leaves_with_path(xs)
    if not leaves:
        raise ValueError("xs holds no array; wanted [T, *B, ...]")
    found = None
    for path, leaf in leaves:
        shape, name = jnp.shape(leaf), f"xs{jax.tree_util.keystr(path)}"
        if len(shape) < 1 + features:
            wanted = "[T, *B, I]: time, any batch axes, features"
            if features != 1:
                wanted = f"time, any batch axes and {features} axes of features, as the cell's num_feature_axes says"
            raise ValueError(f"{name} has shape {shape}; wanted {wanted}")
        axes = shape[0], shape[1 : len(shape) - features]
        if found is not None and axes != found:
            raise ValueError(f"{name} has time and batch axes {axes}, and another array of xs {found}; wanted the same")
        found = axes
    assert found is not None
    return found


def prepare(cell: Cell, params: Params, sequence: Sequence, *, reverse: bool = False) -> Prepared:
    """Turns the data of an unroll into what its scan consumes; to be traced.

    Raises:
        ValueError: the state, or what the step makes of it, does not fit.
    """
    xs, state, lengths, valid, reset = sequence
    steps, batch = time_and_batch(cell, xs)
    dtype = working_dtype(params if jax.tree.leaves(params) else xs)

    def make() -> State:
        first = jax.typeof(jax.tree.leaves(xs)[0])
        return jax.tree.map(lambda leaf: _beside(leaf, first, cell.num_feature_axes), cell.begin(params, batch, dtype))

    start = make() if state is None else _check_state(state, jax.eval_shape(make), batch)
    start = _as_handed_on(cell, params, start, first_step(xs))
    fresh = None if reset is None else jax.tree.map(lambda f, s: _placed_like(f, jax.typeof(s)), make(), start)
    fresh = cast_like(fresh, start) if fresh is not None else None

    if lengths is not None:
        within = steps_within(lengths, steps)
        valid = within if valid is None else valid & within
        reset = None if reset is None else reset & within
    if reset is not None and reverse:
        # Backwards, the border before x_t is crossed on the way to x_{t−1}; and no border follows the last step.
        reset = jnp.concatenate([reset[1:], jnp.zeros_like(reset[:1])])
    if valid is not None:
        # The products of a step that can be taken apart, and its activations, have a derivative at zero. Of another
        # nothing is known but that it can be taken at an input of its own row.
        harmless = jnp.zeros_like if isinstance(cell.step, Recurrence) else lambda a: _taken_elsewhere(a, valid)
        xs = jax.tree.map(lambda a: select(valid, a, harmless(a)), xs)
    return Prepared(start, fresh, Timeline(xs, valid, reset))


def steps_within(lengths: Any, steps: Any) -> Array:
    """``[T, *B]`` which steps a row takes, for lengths of any integer dtype.

    >>> steps_within(jnp.array([2, 0], jnp.int8), 3).tolist()
    [[True, False], [True, False], [False, False]]
    """
    lengths = jnp.asarray(lengths)
    if lengths.dtype.itemsize >= 4:  # a longer one counts as T; a narrower dtype may not hold T
        lengths = jnp.minimum(lengths, jnp.asarray(steps, lengths.dtype))
    times = lax.expand_dims(jnp.arange(steps, dtype=jnp.int32), range(1, 1 + lengths.ndim))
    return times < lengths.astype(jnp.int32)[None]


def _flags(name: str, flags: Any, shape: Shape) -> Any:
    if flags is None:
        return None
    flags = flags if hasattr(flags, "dtype") else np.asarray(flags)
    if flags.dtype != jnp.bool_:
        raise TypeError(f"{name} has dtype {flags.dtype}; wanted bool")
    if flags.shape != shape:
        raise ValueError(f"{name} has shape {flags.shape}; wanted [T, *B], which for these xs is {shape}")
    return flags


def _check_state(state: State, expected: State, batch: Shape) -> State:
    given, wanted = jax.tree.structure(state), jax.tree.structure(expected)
    if given != wanted:
        raise ValueError(f"state has structure {given}; wanted this cell's own, {wanted}")
    for (path, leaf), like in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        name = f"state{jax.tree_util.keystr(path)}"
        if leaf.shape != like.shape:
            raise ValueError(f"{name} has shape {leaf.shape}; wanted {like.shape}, where xs has batch axes {batch}")
        if jnp.issubdtype(leaf.dtype, jnp.floating) != jnp.issubdtype(like.dtype, jnp.floating):
            raise TypeError(f"{name} has dtype {leaf.dtype}; wanted {_kind(like.dtype)}")
    return state


def _kind(dtype: Any) -> str:
    return "a floating dtype" if jnp.issubdtype(dtype, jnp.floating) else str(dtype)


def _as_handed_on(cell: Cell, params: Params, start: State, x: Any) -> State:
    """The state, lying over devices as the step will hand it on.

    Raises:
        ValueError: the step hands on another shape or dtype; a scan's own complaint would name neither cell nor cause.
    """
    new, _ = jax.eval_shape(cell.step, params, start, x)
    given, made = (jax.tree.map(lambda a: (a.shape, str(a.dtype)), s) for s in (start, new))
    if given != made:
        raise ValueError(f"the cell's step was given state {given} and returned {made}; wanted the same back")
    return jax.tree.map(_placed_like, start, new)


def _placed_like(leaf: Array, like: Any) -> Array:
    """A leaf that varies over manual mesh axes, and is split over explicit ones, as another array does."""
    missing = _varying(like) - _varying(jax.typeof(leaf))
    if missing:
        leaf = lax.pcast(leaf, tuple(missing), to="varying")
    if _is_split(like) and jax.typeof(leaf).sharding != like.sharding:
        leaf = jax.sharding.reshard(leaf, like.sharding)
    return leaf


def _beside(leaf: Array, x: Any, features: int) -> Array:
    """A leaf ``[*B, ...]`` made out of nothing, its batch axes split as those of an input ``[T, *B, ...]`` are."""
    if not _is_split(x):
        return leaf
    batch = tuple(x.sharding.spec)[1 : x.ndim - features]
    spec = PartitionSpec(*batch, *(None,) * (leaf.ndim - len(batch)))
    return jax.sharding.reshard(leaf, x.sharding.update(spec=spec))


def _varying(kind: Any) -> frozenset:
    """The manual axes of a mesh over which values differ, inside ``shard_map``."""
    manual = getattr(kind, "manual_axis_type", None)
    return getattr(kind, "vma", frozenset()) if manual is None else manual.varying


def _is_split(kind: Any) -> bool:
    """Whether an array's sharding is explicit, a part of its type."""
    sharding = getattr(kind, "sharding", None)
    return isinstance(sharding, NamedSharding) and AxisType.Explicit in sharding.mesh.axis_types


def _taken_elsewhere(xs: Array, valid: Array) -> Array:
    """For every row an input that it takes anyway, its first; for a row that takes none the one of another row."""
    if 0 in valid.shape:
        return xs
    rows = lax.broadcasted_iota(jnp.int32, (math.prod(valid.shape[1:]),), 0).reshape(valid.shape[1:])
    first = lax.broadcasted_iota(jnp.int32, valid.shape, 0) == jnp.argmax(valid, axis=0)[None].astype(jnp.int32)
    first, some = first & valid, valid.any(axis=0)
    giver = rows == jnp.argmax(some.reshape(-1)).astype(jnp.int32)

    def only(flags: Array, over: int) -> Array:
        # A sum of one and of zeros, which unlike indexing leaves rows where they lie.
        return select(flags, xs, jnp.zeros_like(xs)).sum(range(over), keepdims=True, dtype=xs.dtype)

    harmless = select(some[None], only(first, 1), jnp.broadcast_to(only(first & giver[None], valid.ndim), xs[:1].shape))
    return lax.stop_gradient(jnp.broadcast_to(harmless, xs.shape))
