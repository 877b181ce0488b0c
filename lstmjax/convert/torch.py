"""PyTorch: state dicts of ``torch.nn.LSTM``, ``GRU`` and ``RNN``.

    weight_ih_l{k}{_reverse}   [G·H, I]   w_x transposed; I of every layer but the first is what the one before puts out
    weight_hh_l{k}{_reverse}   [G·H, H]   w_h transposed; [4H, P] where there is a projection
    bias_ih_l{k}{_reverse}     [G·H]      b is the sum of the two,
    bias_hh_l{k}{_reverse}     [G·H]      but for the candidate of a GRU, whose b_n is here
    weight_hr_l{k}{_reverse}   [P, H]     w_p transposed, with ``proj_size`` only

Gates are in our order.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lstmjax.cells.projected import ProjectedLSTMParams
from lstmjax.convert.base import (
    GATES,
    as_arrays,
    cells_of,
    check_dtypes,
    check_keys,
    check_no_bias,
    check_params,
    check_shapes,
    join_biases,
    kind_of,
    listed,
    matrix,
    own,
    split_biases,
)

NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)_l(0|[1-9][0-9]*)(_reverse)?")
BIASES = ("bias_ih", "bias_hh")
ENDINGS = ("", "_reverse")
INNER = re.compile(rf"(.*\.){NAME.pattern}")
"""A parameter of a module inside another."""


class Module(NamedTuple):
    """What the names in a state dict say of their module.

    Attributes:
        prefix: what stands before every name.
        names: the parameters of a layer.
        layers: how many.
        endings: one for each direction.
    """

    prefix: str
    names: tuple[str, ...]
    layers: int
    endings: tuple[str, ...]

    def key(self, name: str, layer: int, ending: str) -> str:
        """The key of one parameter."""
        return f"{self.prefix}{name}_l{layer}{ending}"

    def cell(self, layer: int, ending: str) -> dict[str, str]:
        """The keys of one cell, by name."""
        return {name: self.key(name, layer, ending) for name in self.names}


def from_torch(state_dict: Mapping[str, Any], *, prefix: str = "") -> tuple:
    """The parameters of a ``torch.nn.LSTM``, ``GRU`` or ``RNN``, from its state dict.

    Layers, directions, biases and projection are read off the names, the kind of cell off the shapes: ``weight_hh``
    has 4, 3 or 1 times as many rows as columns. An RNN's state dict does not tell tanh from ReLU, nor any state dict
    ``batch_first`` or the dropout between layers: those are for :func:`lstmjax.rnn` and
    :func:`lstmjax.unroll_stack`.

    Args:
        state_dict: ``module.state_dict()``, or any mapping with its keys; tensors on any device, or arrays.
        prefix: take the keys that begin so, and leave the others alone: ``"encoder."`` for a module's attribute
            ``encoder``.

    Returns:
        One entry a layer, as for :func:`lstmjax.unroll_stack`: :class:`~lstmjax.LSTMParams`,
        :class:`~lstmjax.GRUParams`, :class:`~lstmjax.RNNParams` or ``ProjectedLSTMParams``, or, of a bidirectional
        module, a pair of them. Without biases b is zero.

    Raises:
        ValueError: no key has the prefix, a key is unknown or missing, or a shape does not fit the others.
        TypeError: state_dict is the module itself or a path; a value is no array, not floating, float64 while JAX's
            64-bit mode is off, or of another dtype than the others.

    >>> zeros = lambda *shape: np.zeros(shape, np.float32)
    >>> layers = from_torch({
    ...     "lstm.weight_ih_l0": zeros(20, 3), "lstm.weight_hh_l0": zeros(20, 5),
    ...     "lstm.bias_ih_l0": zeros(20), "lstm.bias_hh_l0": zeros(20), "head.weight": zeros(2, 5),
    ... }, prefix="lstm.")
    >>> type(layers[0]).__name__, layers[0].w_x.shape, layers[0].b.shape
    ('LSTMParams', (3, 20), (20,))
    """
    if callable(getattr(state_dict, "state_dict", None)):
        raise TypeError(f"state_dict is a torch {type(state_dict).__name__} module; wanted its state_dict()")
    if isinstance(state_dict, str | os.PathLike):
        raise TypeError("state_dict is a path; torch.load it first, or load_safetensors")
    taken = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    if not taken:
        raise ValueError(f"state_dict has no key that begins with {prefix!r}; given {listed(state_dict)}")
    module = _read_names(taken, prefix)
    arrays = as_arrays(taken)
    kind = _check_module(arrays, module)
    layers = []
    for layer in range(module.layers):
        cells = [
            _from_cell(kind, {name: arrays[key] for name, key in module.cell(layer, ending).items()})
            for ending in module.endings
        ]
        layers.append(cells[0] if len(cells) == 1 else tuple(cells))
    return tuple(layers)


def to_torch(params: Sequence[Any], *, bias: bool = True) -> dict[str, np.ndarray]:
    """A state dict for the ``torch.nn.LSTM``, ``GRU`` or ``RNN`` with these parameters.

    PyTorch keeps two biases that add, and how ours is split between them is not unique: here ``bias_ih`` holds b, and
    ``bias_hh`` zeros, save for the candidate of a GRU, where it holds b_n. So ours come back bit for bit from
    :func:`from_torch`, while PyTorch's own come back with the same sum.

    Args:
        params: one entry a layer, as :func:`from_torch` returns them: ``(params,)`` for a single layer,
            ``((forward, backward),)`` for a single bidirectional one.
        bias: False for a module built with ``bias=False``.

    Returns:
        Names and arrays in the module's own order, for
        ``module.load_state_dict({k: torch.tensor(v) for k, v in ….items()})``. PyTorch takes no bfloat16 from NumPy:
        go through ``torch.tensor(v.astype("float32"))``.

    Raises:
        ValueError: there is no layer, the layers are not all of one size, kind and number of directions, or a bias is
            not zero where ``bias`` is False.
        TypeError: an entry is no cell's parameters that PyTorch knows, or dtypes are not floating or not the same.

    >>> import jax, lstmjax
    >>> params = lstmjax.gru(5).init(jax.random.key(0), 3)
    >>> {name: a.shape for name, a in to_torch((params,)).items()}
    {'weight_ih_l0': (15, 3), 'weight_hh_l0': (15, 5), 'bias_ih_l0': (15,), 'bias_hh_l0': (15,)}
    """
    layers = _check_stack(params, bias)
    names = tuple(_to_cell(layers[0][0], bias))
    module = Module("", names, len(layers), ENDINGS[: len(layers[0])])
    arrays: dict[str, np.ndarray] = {}
    for depth, cells in enumerate(layers):
        for ending, cell in zip(module.endings, cells, strict=True):
            arrays |= {module.key(name, depth, ending): w for name, w in _to_cell(cell, bias).items()}
    check_dtypes(arrays)
    _check_module(arrays, module)
    return own(arrays)


def _check_stack(params: Sequence[Any], bias: bool) -> list[tuple]:
    """The cells of every layer, all of one kind."""
    if hasattr(params, "_fields") or not isinstance(params, tuple | list) or not params:
        given = "empty" if isinstance(params, tuple | list) and not params else f"of type {type(params).__name__}"
        raise ValueError(f"params is {given}; wanted a tuple with one entry a layer, such as (params,)")
    layers = [cells_of(layer) for layer in params]
    first = layers[0]
    for depth, cells in enumerate(layers):
        name = f"params[{depth}]"
        for cell in cells:
            check_params(name, cell, *GATES)
            if not bias:
                check_no_bias(name, cell, ("b", "b_n"), "bias is False")
        given, wanted = ([type(cell).__name__ for cell in cells] for cells in (cells, first[:1] * len(first)))
        if given != wanted:
            raise ValueError(
                f"{name} holds {' and '.join(given)}; wanted {' and '.join(wanted)}, as in the first layer"
            )
    return layers


def _read_names(keys: Iterable[str], prefix: str) -> Module:
    """The module with these keys, all of which it must have, and no other."""
    found = {key: NAME.fullmatch(key[len(prefix) :]) for key in keys}
    known = {key: match.groups() for key, match in found.items() if match}
    deepest = max((int(layer) for _, layer, _ in known.values()), default=0)
    # No deeper than there are keys, lest one absurd number ask for as many more.
    layers = min(deepest, len(known)) + 1
    names = {name for name, _, _ in known.values()}
    module = Module(
        prefix,
        ("weight_ih", "weight_hh", *(BIASES if names & set(BIASES) else ()), *sorted(names & {"weight_hr"})),
        layers,
        ENDINGS[: 2 if any(ending for _, _, ending in known.values()) else 1],
    )
    hint = ""
    if not known and (inner := next(filter(None, map(INNER.fullmatch, found)), None)):
        hint = f"; prefix={inner[1]!r} takes those that begin so"
    wanted = (module.key(*p) for p in product(module.names, range(layers), module.endings))
    check_keys("state_dict", found, wanted, hint)
    return module


def _check_module(arrays: Mapping[str, Any], module: Module) -> type:
    """The kind of the module's cells, once every shape is known to follow from those of the first."""
    first = module.cell(0, "")
    _, inputs = matrix(first["weight_ih"], arrays[first["weight_ih"]])
    rows, outputs = matrix(first["weight_hh"], arrays[first["weight_hh"]])
    if "weight_hr" in first:
        _, hidden = matrix(first["weight_hr"], arrays[first["weight_hr"]])
        kind, rows = ProjectedLSTMParams, 4 * hidden
    else:
        hidden = outputs
        kind = kind_of(first["weight_hh"], hidden, rows)
    shapes = {
        "weight_hh": (rows, outputs),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
        "weight_hr": (outputs, hidden),
    }
    for layer, ending in product(range(module.layers), module.endings):
        shapes["weight_ih"] = (rows, len(module.endings) * outputs if layer else inputs)
        check_shapes(arrays, {key: shapes[name] for name, key in module.cell(layer, ending).items()})
    if kind is ProjectedLSTMParams and not 0 < outputs < hidden:
        raise ValueError(f"{first['weight_hr']} has shape {(outputs, hidden)}; PyTorch projects H to fewer, 0 < P < H")
    return kind


def _from_cell(kind: type, arrays: Mapping[str, Array]) -> Any:
    w_h = arrays["weight_hh"].T
    zeros = jnp.zeros(w_h.shape[1], w_h.dtype)
    projection = {"w_p": arrays["weight_hr"].T} if "weight_hr" in arrays else {}
    biases = join_biases(kind, *(arrays.get(name, zeros) for name in BIASES))
    return kind(w_x=arrays["weight_ih"].T, w_h=w_h, **biases, **projection)


def _to_cell(params: Any, bias: bool) -> dict[str, np.ndarray]:
    weights = {"weight_ih": np.asarray(params.w_x).T, "weight_hh": np.asarray(params.w_h).T}
    biases = dict(zip(BIASES, split_biases(params), strict=True)) if bias else {}
    projection = {"weight_hr": np.asarray(params.w_p).T} if isinstance(params, ProjectedLSTMParams) else {}
    return weights | biases | projection
