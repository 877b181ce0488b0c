"""Equinox: ``eqx.nn.LSTMCell`` and ``eqx.nn.GRUCell``.

    weight_ih   [G·H, I]   w_x transposed
    weight_hh   [G·H, H]   w_h transposed
    bias        [G·H]      b, or None
    bias_n      [H]        b_n of a GRU, or None

Gates are in our order, and its GRU, `n + z ∘ (h − n)`, is ours.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lstmjax.cells.gru import GRUParams
from lstmjax.cells.lstm import LSTMParams
from lstmjax.convert.base import (
    as_arrays,
    check_keys,
    check_no_bias,
    check_params,
    check_shapes,
    kind_of,
    matrix,
)

FIELDS = {"w_x": "weight_ih", "w_h": "weight_hh", "b": "bias", "b_n": "bias_n"}


def from_equinox(cell: Any) -> LSTMParams | GRUParams:
    """The parameters of an ``eqx.nn.LSTMCell`` or ``eqx.nn.GRUCell``.

    Args:
        cell: the cell, or anything with its attributes.

    Returns:
        :class:`~lstmjax.LSTMParams` or :class:`~lstmjax.GRUParams`. Without biases b is zero.

    Raises:
        ValueError: an attribute is missing, or a shape does not fit the others.
        TypeError: an attribute is no array, not floating, float64 while JAX's 64-bit mode is off, or of another dtype
            than the others.

    >>> from types import SimpleNamespace
    >>> cell = SimpleNamespace(weight_ih=jnp.zeros((20, 3)), weight_hh=jnp.zeros((20, 5)), bias=None)
    >>> params = from_equinox(cell)
    >>> type(params).__name__, params.w_x.shape, params.b.shape
    ('LSTMParams', (3, 20), (20,))
    """
    leaves = _leaves(cell)
    arrays = as_arrays(leaves)
    fused, hidden = matrix("weight_hh", arrays["weight_hh"])
    kind = kind_of("weight_hh", hidden, fused)
    if kind not in (LSTMParams, GRUParams):
        raise ValueError(f"weight_hh has shape {(fused, hidden)}; wanted [4H, H] or [3H, H]")
    shapes = {
        "weight_ih": (fused, matrix("weight_ih", arrays["weight_ih"])[1]),
        "weight_hh": (fused, hidden),
        "bias": (fused,),
        "bias_n": (hidden,),
    }
    names = {field: FIELDS[field] for field in kind._fields}
    biased = bool({"bias", "bias_n"} & set(arrays))
    check_keys(type(cell).__name__, arrays, [n for n in names.values() if biased or n.startswith("weight")])
    check_shapes(arrays, {name: shapes[name] for name in arrays})
    zeros = {name: jnp.zeros(shapes[name], arrays["weight_hh"].dtype) for name in names.values()}
    return kind(**{field: (zeros | arrays)[name].T for field, name in names.items()})


def to_equinox(params: LSTMParams | GRUParams, cell: Any) -> Any:
    """A new Equinox cell, like the one given and with these weights.

    Args:
        params: weights of an LSTM or a GRU.
        cell: an ``eqx.nn.LSTMCell`` or ``eqx.nn.GRUCell`` of their sizes; its own weights do not matter.

    Returns:
        The new cell. The one given is as it was.

    Raises:
        ValueError: the cell is of another kind or size, or has ``use_bias=False`` where a bias is not zero.
        TypeError: the parameters are neither an LSTM's nor a GRU's, or dtypes are not floating or not the same.

    >>> import lstmjax
    >>> from dataclasses import dataclass
    >>> @jax.tree_util.register_dataclass
    ... @dataclass
    ... class Cell:  # as an eqx.nn.LSTMCell
    ...     weight_ih: jax.Array
    ...     weight_hh: jax.Array
    ...     bias: jax.Array
    >>> cell = Cell(jnp.zeros((20, 3)), jnp.zeros((20, 5)), jnp.zeros(20))
    >>> to_equinox(lstmjax.lstm(5).init(jax.random.key(0), 3), cell).bias[5:10].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    check_params("params", params, LSTMParams, GRUParams)
    leaves = _leaves(cell)
    if "bias" not in leaves:
        check_no_bias("params", params, ("b", "b_n"), f"the {type(cell).__name__} has use_bias=False")
    new = {FIELDS[field]: jnp.array(value).T for field, value in params._asdict().items()}
    names = [name for name in new if name.startswith("weight") or "bias" in leaves]
    check_keys(type(cell).__name__, leaves, names)
    check_shapes(new, {name: tuple(leaves[name].shape) for name in names})
    # A module of Equinox is a pytree whose leaves are named by its fields.
    return jax.tree_util.tree_map_with_path(lambda path, leaf: new.get(path[0].name, leaf), cell)


def _leaves(cell: Any) -> dict[str, Any]:
    """The arrays that a cell has."""
    leaves = {name: getattr(cell, name, None) for name in FIELDS.values()}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf is not None}
    if not {"weight_ih", "weight_hh"} <= set(leaves):
        raise ValueError(f"{type(cell).__name__} lacks weight_ih or weight_hh; wanted an LSTMCell or a GRUCell")
    return leaves
