"""Functions as values: when two of them are the same, so that equal cells share a compiled program and can be pickled.

JAX looks a compiled program up by its static arguments, functions among them, and Python compares functions by
identity: the same lambda, written once and evaluated twice, would be compiled twice.
"""

import functools
import types
from typing import Any


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same for a compiled program.

    Python functions are, where they have the same code and see the same values: defaults, globals and closures.
    Anything that cannot be hashed (an array, a tracer, a module with parameters) is the same as itself alone.

    >>> def times(n):
    ...     return lambda z: n * z
    >>> same(times(2), times(2)), same(times(2), times(3))
    (True, False)
    """
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, types.FunctionType):
        return a.__code__ == b.__code__ and a.__globals__ is b.__globals__ and _all_same(_seen(a), _seen(b))
    if isinstance(a, tuple):
        return _all_same(a, b)
    if isinstance(a, functools.partial):
        return _all_same(_parts(a), _parts(b))
    try:
        return hash(a) == hash(b) and bool(a == b)
    except Exception:  # whatever a stranger's comparison raises
        return False


def hash_of(value: Any) -> int:
    """A hash that values share which are :func:`same`."""
    if isinstance(value, types.FunctionType):
        return hash(value.__code__)
    if isinstance(value, tuple):
        return hash(tuple(map(hash_of, value)))
    if isinstance(value, functools.partial):
        return hash_of(_parts(value))
    try:
        return hash(value)
    except TypeError:
        return id(value)


class Comparable:
    """Equality and a hash by :func:`same`, for a frozen dataclass of functions and settings."""

    __slots__ = ("_hash",)  # kept, since every call of a compiled program wants it; no field, and not pickled

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return _all_same(tuple(vars(self).values()), tuple(vars(other).values()))

    def __hash__(self) -> int:
        if not hasattr(self, "_hash"):
            object.__setattr__(self, "_hash", hash_of((type(self).__name__, *vars(self).values())))
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)


class Partial(functools.partial):
    """``functools.partial`` that equals another of the same function and arguments.

    >>> Partial(max, default=0) == Partial(max, default=0), Partial(max, default=0) == Partial(max, default=1)
    (True, False)
    """

    def __eq__(self, other: object) -> bool:
        return same(self, other)

    def __hash__(self) -> int:
        return hash_of(self)


def _seen(function: types.FunctionType) -> tuple[Any, ...]:
    keywords = function.__kwdefaults__ or {}
    return (
        *(function.__defaults__ or ()), *(item for pair in sorted(keywords.items()) for item in pair),
        *(_content(cell) for cell in function.__closure__ or ()),
    )  # fmt: skip


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that was not given a value yet
        return None


def _parts(partial: functools.partial) -> tuple[Any, ...]:
    return (partial.func, *partial.args, *(item for pair in sorted(partial.keywords.items()) for item in pair))


def _all_same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(map(same, a, b))
