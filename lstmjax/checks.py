"""The checks that every room makes of a setting, each written once."""

import operator
from typing import Any


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The value as an ``int``, where it is a whole number that is large enough: Python's, NumPy's or a JAX scalar.

    Args:
        name: the argument's, for the error.
        value: what was given. ``True`` and ``2.0`` are no whole numbers.
        least: the smallest value allowed.

    Raises:
        ValueError: it is no whole number, or below ``least``.

    >>> import numpy as np
    >>> whole_number("steps", np.int64(3))
    3
    >>> whole_number("steps", 2.0)
    Traceback (most recent call last):
        ...
    ValueError: steps is 2.0; wanted a whole number of at least 1
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ValueError(f"{name} is {value!r}; wanted a whole number of at least {least}")
    return number
