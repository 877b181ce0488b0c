"""One computation written in several ways; which one runs is decided where the program is lowered.

What is fast differs by platform, and while a program is traced nobody knows its platform: it may be exported, or
compiled ahead, or run on the CPU of a machine that has a GPU. So a computation is handed to JAX as one operation, with
the program of its first way for all that is asked of it before (shapes, derivatives, batching); lowered for another
platform, it is traced again in that platform's own way. All ways return the same to rounding.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

Way = Callable[..., Sequence[Any]]
"""A computation from arrays to a list of arrays."""

Ways = Callable[[str | None], Any]
"""The :data:`Way` of a platform, or None where it has none of its own; of None the one that serves everywhere."""


Places = tuple[Any, Any]
"""Where a batch axis may be put into each operand, ``(fixed, moving)``, and each result, so that every way computes a
batch of what it computed before: a tree of axes that ends where all below is alike. Of what has no batch it is
:data:`WHOLE`.
"""

WHOLE = -1


def by_platform(
    ways: Ways, fixed: Any, moving: Any = (), places: Places | None = None, kernels: Collection[str] = ("cpu",)
) -> Any:
    """What ``ways(platform)(fixed, moving)`` returns, for the platform the program will run on.

    Args:
        ways: a platform's way to compute it, a pure function that closes over no traced value; None is asked for the
            way that serves everywhere. A platform without one of its own returns None.
        fixed: any pytree of arrays.
        moving: any pytree of arrays; where it is not empty, the computation is linear in it, and is transposed so.
        places: where a batch axis may be put: then a ``vmap`` over what has a batch is one more axis of it. Another
            ``vmap``, and by default every one, is applied to each way; where a way is a kernel, the one that serves
            everywhere is taken.
        kernels: the platforms whose way is a kernel, taken in programs for one device alone.

    >>> twice = {None: lambda x, _: x + x, "cuda": lambda x, _: 2 * x}
    >>> jax.jit(lambda x: by_platform(twice.get, x))(3.0)
    Array(6., dtype=float32, weak_type=True)
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return ways(None)(fixed, moving)
    leaves, tree = jax.tree.flatten((fixed, moving))
    made = []

    def flat(platform):
        own = ways(platform)

        def way(*leaves):
            returned, returned_tree = jax.tree.flatten(own(*tree.unflatten(leaves)))
            made.append(returned_tree)
            return returned

        return None if own is None else way

    # The precision set where the computation stands; where another way is traced, another may be set.
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    program = _program(flat, leaves)
    if places is not None:
        results = jax.tree.unflatten(made[0], [0] * made[0].num_leaves)
        places = tuple(_by_leaf(places[0], (fixed, moving))), tuple(_by_leaf(places[1], results))
    returned = _chosen.bind(
        *leaves, program=program, ways=flat, fixed=len(jax.tree.leaves(fixed)), precision=precision, places=places,
        kernels=tuple(kernels),
    )  # fmt: skip
    return jax.tree.unflatten(made[0], returned)


def _by_leaf(places: Any, tree: Any) -> list[int]:
    if isinstance(places, int):
        return [places] * len(jax.tree.leaves(tree))
    return [place for p, t in zip(places, tree, strict=True) for place in _by_leaf(p, t)]


_chosen = Primitive("by_platform")
_chosen.multiple_results = True


def _program(ways: Ways, operands: Sequence[Any]) -> ClosedJaxpr:
    return jax.make_jaxpr(ways(None))(*operands)


def _bind(ways: Ways, operands: Sequence[Any], *, places: Any = None, **how: Any) -> Sequence[Any]:
    return _chosen.bind(*operands, program=_program(ways, operands), ways=ways, places=places, **how)


def _transformed(transform: Callable[[Way], Way], program: ClosedJaxpr, ways: Ways) -> Ways:
    """Every way, transformed; of the one that serves everywhere the program is at hand."""

    def transformed(platform):
        way = jaxpr_as_fun(program) if platform is None else ways(platform)
        return None if way is None else transform(way)

    return transformed


@_chosen.def_impl
def _run(*operands: Any, **how: Any) -> Sequence[Any]:
    return jax.jit(lambda *operands: _chosen.bind(*operands, **how))(*operands)


@_chosen.def_abstract_eval
def _abstract(*operands: ShapedArray, program: ClosedJaxpr, **_: Any) -> Sequence[Any]:
    return program.out_avals


def _batch(operands, axes, *, program: ClosedJaxpr, ways: Ways, places: Any, kernels: Collection[str], **how: Any):
    if places is not None and all(axis is None or place != WHOLE for axis, place in zip(axes, places[0], strict=True)):
        size = next(a.shape[axis] for a, axis in zip(operands, axes, strict=True) if axis is not None)
        moved = [_with_axis(*each, size) for each in zip(operands, axes, places[0], strict=True)]
        return _bind(ways, moved, places=places, kernels=kernels, **how), list(places[1])
    others = _transformed(lambda way: jax.vmap(way, in_axes=tuple(axes)), program, ways)

    def batched(platform):
        return None if platform in kernels else others(platform)

    returned = _bind(batched, operands, kernels=kernels, **how)
    return returned, [0] * len(returned)


def _with_axis(operand: Any, axis: Any, place: int, size: Any) -> Any:
    """An operand with its batch axis at the place; one that has none yet gets it."""
    if place == WHOLE:
        return operand
    if axis is not None:
        return jnp.moveaxis(operand, axis, place)
    operand = jnp.expand_dims(operand, place)
    return jnp.broadcast_to(operand, (*operand.shape[:place], size, *operand.shape[place + 1 :]))


batching.primitive_batchers[_chosen] = _batch


def _jvp(primals, tangents, *, program: ClosedJaxpr, fixed: int, **how: Any):
    still = [isinstance(t, ad.Zero) for t in tangents]
    if all(still[:fixed]):
        # Linear in all that moves: its own derivative, in every way.
        returned = _chosen.bind(*primals, program=program, fixed=fixed, **how)
        along = [*primals[:fixed], *map(ad.instantiate_zeros, tangents[fixed:])]
        return returned, _chosen.bind(*along, program=program, fixed=fixed, **how)
    at = [n for n, zero in enumerate(still) if not zero]

    def of(*moved):
        given = dict(zip(at, moved, strict=True))
        return jaxpr_as_fun(program)(*(given.get(n, p) for n, p in enumerate(primals)))

    return jax.jvp(of, [primals[n] for n in at], [tangents[n] for n in at])


ad.primitive_jvps[_chosen] = _jvp


def _transpose(
    cotangents, *operands, program: ClosedJaxpr, ways: Ways, fixed: int, places: Any, **how: Any
) -> list[Any]:
    del fixed, places
    at = [n for n, operand in enumerate(operands) if ad.is_undefined_primal(operand)]
    kinds = [operands[n].aval for n in at]
    known = [n for n in range(len(operands)) if n not in at]
    wanted = [n for n, ct in enumerate(cotangents) if not isinstance(ct, ad.Zero)]

    def transpose(way: Way) -> Way:
        def transposed(*arrays):
            given = dict(zip(known, arrays[: len(known)], strict=True))

            def of(*moving):
                full = given | dict(zip(at, moving, strict=True))
                returned = way(*(full[n] for n in range(len(operands))))
                return [returned[n] for n in wanted]

            return jax.linear_transpose(of, *kinds)(list(arrays[len(known) :]))

        return transposed

    given = [*(operands[n] for n in known), *(cotangents[n] for n in wanted)]
    # Cotangents of what has no batch are sums over it: a further axis is no longer one of the batch.
    returned = _bind(_transformed(transpose, program, ways), given, fixed=len(known), **how)
    by_operand = dict(zip(at, returned, strict=True))
    return [by_operand.get(n) for n in range(len(operands))]


ad.primitive_transposes[_chosen] = _transpose


@partial(mlir.lower_fun, multiple_results=True)
def _as_traced(*operands: Any, program: ClosedJaxpr, **_: Any) -> Sequence[Any]:
    return jaxpr_as_fun(program)(*operands)


def _lower(
    platform: str, ctx: Any, *operands: Any, ways: Ways, precision: Any, kernels: Collection[str], **how: Any
) -> Any:
    way = None if platform in kernels and not _for_one_device(ctx.module_context) else ways(platform)
    if way is None:
        return _as_traced(ctx, *operands, **how)

    def lowered(*operands):
        with jax.default_matmul_precision(precision):
            return way(*operands)

    return mlir.lower_fun(lowered, multiple_results=True)(ctx, *operands)


def _for_one_device(context: Any) -> bool:
    """Whether a program is for one device of this process.

    A kernel cannot be split over devices by XLA, nor put into a program that is to be read elsewhere; and its
    hand-written transpose does not sum, over the devices of a ``shard_map``, the cotangents of what all of them share.
    """
    return getattr(context.axis_context, "num_devices", None) == 1 and not context.lowering_parameters.for_export


mlir.register_lowering(_chosen, _as_traced)
for _platform in ("cpu", "cuda", "rocm", "tpu"):
    mlir.register_lowering(_chosen, partial(_lower, _platform), platform=_platform)
