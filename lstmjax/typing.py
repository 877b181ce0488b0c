"""The axis legend of the whole library, and the few types that everything shares.

Axes::

    T   time steps
    *B  any number of batch axes, none included
    I   input features
    H   hidden units

The core is time-major: a sequence is ``[T, *B, I]``, a state leaf is ``[*B, H]``. In the field's words
``h`` is the hidden state (the slides' short-term memory) and ``c`` the cell state (the long-term memory).
A *carry* is what a scan hands from one step to the next; here the carry is the cell's state.
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, PRNGKeyArray

Params = Any
"""A cell's parameters, any pytree of arrays."""

State = Any
"""A cell's state, any pytree of arrays, each ``[*B, ...]``."""

Key = PRNGKeyArray | Array
"""A random key of either kind, ``jax.random.key`` or ``jax.random.PRNGKey``."""

Initializer = Callable[..., Array]
"""``(key, shape, dtype) -> array``, as in ``jax.nn.initializers``."""

Shape = tuple[Any, ...]
"""Sizes, whole numbers or, where a program is exported for any batch size, symbolic dimensions."""
