"""The linearisation of an elementwise function, derived: the diagonals of its Jacobian that are not zero everywhere.

Of an elementwise function each number of an output depends on the same number of every input alone, so that its
Jacobian is one diagonal for each pair of output and input, and one tangent of all ones gives it. What is elementwise is
not believed but read off the program that JAX makes of the function and of its derivative.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun
from jaxtyping import Array

Function = Callable[[list[Array]], list[Array]]
"""From a list of arrays of one shape to a list of such."""

_NAMES = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
    convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow
    is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not one_minus_square optimization_barrier or
    pow pvary real
    reduce_precision rem round rsqrt select_n sign sin sinh sqrt square stop_gradient sub tan tanh xor
"""
ELEMENTWISE = frozenset(_NAMES.split())
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "checkpoint": "jaxpr",
         "remat2": "jaxpr", "custom_jvp_call": "call_jaxpr"}  # fmt: skip


class NotElementwiseError(Exception):
    """Why a function has no diagonals to be derived."""


Pairs = tuple[tuple[int, int], ...]
"""An output and an input, by their numbers, for every diagonal."""


def diagonals(function: Function, inputs: list[Any]) -> Pairs:
    """The pairs of output and input whose diagonal is not zero everywhere.

    Args:
        function: from a list of arrays of one shape to a list of such.
        inputs: arrays, or what has their shape and dtype.

    Raises:
        NotElementwiseError: it mixes numbers, closes over values that are being traced, or has no forward derivative.

    >>> x = jax.ShapeDtypeStruct((3,), jnp.float32)
    >>> diagonals(lambda v: [v[0] * v[1], v[1] + 1], [x, x])
    ((0, 0), (0, 1), (1, 1))
    >>> diagonals(lambda v: [jax.nn.softmax(v[0])], [x])
    Traceback (most recent call last):
        ...
    lstmjax.recurrence.elementwise.NotElementwiseError: it is not elementwise: reduce_max
    """
    count = len(inputs)

    def derivative(primals, tangents):
        return jax.jvp(lambda *v: function(list(v)), tuple(primals), tuple(tangents))

    try:
        closed = jax.make_jaxpr(derivative)(inputs, inputs)
    except TypeError as error:
        raise NotElementwiseError(f"it has no forward derivative: {str(error).splitlines()[0]}") from error
    if closes_over_tracers(closed):
        raise NotElementwiseError("it closes over values that are being traced")
    outputs = _reach(closed.jaxpr, [frozenset([n]) for n in range(2 * count)])
    tangents = outputs[len(outputs) // 2 :]
    found = [(o, n - count) for o, of in enumerate(tangents) for n in of if n >= count]
    return tuple(sorted(found, key=lambda pair: pair[::-1]))


def in_order(function: Function, inputs: list[Any], outputs: list[Any]) -> Function:
    """The function of its inputs and of its own outputs: each output reads those before it, where it is made of them.

    An LSTM's h' is made of c' and o. So read it has two diagonals, and else one for each input of c', too.

    Args:
        function: from a list of arrays to a list of arrays.
        inputs: arrays, or what has their shape and dtype.
        outputs: the same.

    Returns:
        ``[*inputs, *outputs] -> outputs``.

    >>> x = jax.ShapeDtypeStruct((3,), jnp.float32)
    >>> def unit(v):
    ...     c = v[0] * v[1]
    ...     return [c, v[2] * jnp.tanh(c)]
    >>> diagonals(unit, [x, x, x])
    ((0, 0), (1, 0), (0, 1), (1, 1), (1, 2))
    >>> diagonals(in_order(unit, [x, x, x], [x, x]), [x, x, x, x, x])  # c' is number 3
    ((0, 0), (0, 1), (1, 2), (1, 3))
    """
    closed = jax.make_jaxpr(lambda inputs, outputs: function(inputs))(inputs, outputs)
    jaxpr = closed.jaxpr
    made_at = {v: at for at, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    given, latest = {}, -1
    for made, read in zip(jaxpr.outvars, jaxpr.invars[len(inputs) :], strict=True):
        at = -1 if isinstance(made, Literal) else made_at.get(made, -1)
        if at > latest:  # no output before it is made of it
            given[made], latest = read, at
    eqns = [
        eqn.replace(invars=[atom if isinstance(atom, Literal) else given.get(atom, atom) for atom in eqn.invars])
        for eqn in jaxpr.eqns
    ]
    ordered = jaxpr_as_fun(ClosedJaxpr(jaxpr.replace(eqns=eqns), closed.consts))
    return lambda arrays: ordered(*arrays)


def is_affine(function: Callable, moving: Any, fixed: Any, weights: Any) -> bool:
    """Whether the derivative of ``function(moving, fixed, weights)`` by the first depends on the weights alone.

    >>> x = jnp.ones(3)
    >>> is_affine(lambda h, x, w: w * h + x, x, x, x), is_affine(lambda h, x, w: h * x, x, x, x)
    (True, False)
    """

    def slope(moving, fixed, tangents, weights):
        return jax.jvp(lambda m: function(m, fixed, weights), (moving,), (tangents,))[1]

    try:
        jaxpr = jax.make_jaxpr(slope)(moving, fixed, moving, weights).jaxpr
    except TypeError:  # it has no forward derivative
        return False
    count = len(jax.tree.leaves((moving, fixed)))
    sources = [frozenset([0]) if n < count else frozenset() for n in range(len(jaxpr.invars))]
    return not any(_reach(jaxpr, sources, elementwise=False))


def is_the_same_everywhere(function: Callable, *args: Any) -> bool:
    """Whether an elementwise function does with one number what it does with every other.

    One that holds an array, or counts along an axis, does not.

    >>> x = jnp.ones(3)
    >>> is_the_same_everywhere(lambda v: 2 * v, x), is_the_same_everywhere(lambda v: v + jnp.arange(3.0), x)
    (True, False)
    """
    closed = jax.make_jaxpr(function)(*args)
    return not closed.consts and _is_the_same_everywhere(closed.jaxpr)


def _is_the_same_everywhere(jaxpr: Any) -> bool:
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in CALLS:
            inner = eqn.params[CALLS[name]]
            if getattr(inner, "consts", ()) or not _is_the_same_everywhere(getattr(inner, "jaxpr", inner)):
                return False
        elif name == "broadcast_in_dim" and math.prod(eqn.invars[0].aval.shape) == 1:
            continue  # one number, everywhere
        elif name not in ELEMENTWISE and not _moves_nothing(eqn):
            return False
    return True


def closes_over_tracers(closed: Any) -> bool:
    """Whether a program holds values of a trace that goes on around it."""
    return any(isinstance(const, Tracer) for const in closed.consts)


def linearise(function: Function, pairs: Pairs, inputs: list[Array]) -> tuple[list[Array], list[Array]]:
    """The outputs, and the diagonals of :func:`in_order`'s function in the order of their pairs."""
    outputs = function(inputs)
    ordered, arrays = in_order(function, inputs, outputs), [*inputs, *outputs]
    columns = {}
    for n in sorted({i for _, i in pairs}):
        # The others stand still, and nothing is computed of them: a tangent of zeros would be multiplied through.
        columns[n] = jax.jvp(
            lambda v, n=n: ordered([*arrays[:n], v, *arrays[n + 1 :]]), (arrays[n],), (jnp.ones_like(arrays[n]),)
        )[1]
    return outputs, [columns[i][o] for o, i in pairs]


def _reach(jaxpr: Any, sources: list[frozenset[int]], *, elementwise: bool = True) -> list[frozenset[int]]:
    """The inputs that each output of a program depends on, given what its own inputs depend on.

    Raises:
        NotElementwiseError: on the way there is an operation that is not elementwise, and all must be.
    """
    nothing: frozenset[int] = frozenset()
    known = dict(zip(jaxpr.invars, sources, strict=True))

    def of(atom):
        return nothing if isinstance(atom, Literal) else known.get(atom, nothing)

    for eqn in jaxpr.eqns:
        reached = [of(atom) for atom in eqn.invars]
        everything = frozenset().union(*reached)
        name = eqn.primitive.name
        if not everything:
            results = [nothing] * len(eqn.outvars)
        elif name in CALLS:
            inner = eqn.params[CALLS[name]]
            results = _reach(getattr(inner, "jaxpr", inner), reached, elementwise=elementwise)
        elif not elementwise or name in ELEMENTWISE or _moves_nothing(eqn):
            results = [everything] * len(eqn.outvars)
        else:
            raise NotElementwiseError(f"it is not elementwise: {name}")
        known.update(zip(eqn.outvars, results, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _moves_nothing(eqn: Any) -> bool:
    """Whether an operation on shapes leaves its one array as it is."""
    same = eqn.primitive.name in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "split", "slice")
    return same and len(eqn.outvars) == 1 and eqn.invars[0].aval.shape == eqn.outvars[0].aval.shape
