"""PyTorch: state dicts of ``torch.nn.LSTM``, ``GRU`` and ``RNN``, and of ``LSTMCell``, ``GRUCell`` and ``RNNCell``.

    weight_ih_l{k}{_reverse}   [G·H, I]   w_x transposed; I of every layer but the first is what the one before puts out
    weight_hh_l{k}{_reverse}   [G·H, H]   w_h transposed; [4H, P] where there is a projection
    bias_ih_l{k}{_reverse}     [G·H]      b is the sum of the two,
    bias_hh_l{k}{_reverse}     [G·H]      but for the candidate of a GRU, whose b_n is here
    weight_hr_l{k}{_reverse}   [P, H]     w_p transposed, with ``proj_size`` only

Gates are in our order. The names of a cell end before ``_l``.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lstmjax.cells.projected import ProjectedLSTMParams
from lstmjax.convert.base import (
    GATES,
    as_arrays,
    check_dtypes,
    check_keys,
    check_mapping,
    check_no_bias,
    check_shapes,
    check_stack,
    join_biases,
    kind_of,
    listed,
    matrix,
    own,
    split_biases,
)

NAME = re.compile(r"(weight_ih|weight_hh|bias_ih|bias_hh|weight_hr)(?:_l(0|[1-9][0-9]*)(_reverse)?)?")
BIASES = ("bias_ih", "bias_hh")
INNER = re.compile(rf"(.*\.){NAME.pattern}")
"""A parameter of a module inside another."""


class Module(NamedTuple):
    """What the names in a state dict say of their module.

    Attributes:
        prefix: what stands before every name.
        names: the parameters of a cell.
        layers: what ends the names of each layer, once for each direction: ``("_l0", "_l0_reverse")``.
    """

    prefix: str
    names: tuple[str, ...]
    layers: tuple[tuple[str, ...], ...]

    def cell(self, ending: str) -> dict[str, str]:
        """The keys of one cell, by name."""
        return {name: f"{self.prefix}{name}{ending}" for name in self.names}


def endings(layers: int, directions: int) -> tuple[tuple[str, ...], ...]:
    """What ends the names of each layer.

    >>> endings(1, 2)
    (('_l0', '_l0_reverse'),)
    """
    return tuple((f"_l{layer}", f"_l{layer}_reverse")[:directions] for layer in range(layers))


def from_torch(state_dict: Mapping[str, Any], *, prefix: str = "") -> tuple:
    """The parameters of a ``torch.nn.LSTM``, ``GRU`` or ``RNN``, or a cell of these, from its state dict.

    Layers, directions, biases and projection are read off the names, the kind of cell off the shapes: ``weight_hh``
    has 4, 3 or 1 times as many rows as columns. An RNN's state dict does not tell tanh from ReLU, nor any state dict
    ``batch_first`` or the dropout between layers: those are for :func:`lstmjax.rnn` and
    :func:`lstmjax.unroll_stack`.

    Args:
        state_dict: ``module.state_dict()``, or any mapping with its keys; tensors on any device, or arrays.
        prefix: take the keys that begin so, and leave the others alone: ``"encoder."`` for a module's attribute
            ``encoder``.

    Returns:
        One entry a layer, of a cell one entry, as for :func:`lstmjax.unroll_stack`: :class:`~lstmjax.LSTMParams`,
        :class:`~lstmjax.GRUParams`, :class:`~lstmjax.RNNParams` or ``ProjectedLSTMParams``, or, of a bidirectional
        module, a pair of them. Without biases b is zero.

    Raises:
        ValueError: no key has the prefix, a key is unknown or missing, or a shape does not fit the others.
        TypeError: state_dict is the module itself, a path or no dict; a value is no array, not floating, float64 while
            JAX's 64-bit mode is off, or of another dtype than the others.

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
    check_mapping("state_dict", state_dict, "a dict of names and arrays")
    taken = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    if not taken:
        raise ValueError(f"state_dict has no key that begins with {prefix!r}; given {listed(state_dict)}")
    module = _read_names(taken, prefix)
    arrays = as_arrays(taken)
    kind = _check_module(arrays, module)
    layers = []
    for layer in module.layers:
        cells = [_from_cell(kind, {name: arrays[key] for name, key in module.cell(ending).items()}) for ending in layer]
        layers.append(cells[0] if len(cells) == 1 else tuple(cells))
    return tuple(layers)


def to_torch(params: Sequence[Any], *, bias: bool = True) -> dict[str, np.ndarray]:
    """A state dict for the ``torch.nn.LSTM``, ``GRU`` or ``RNN`` with these parameters.

    PyTorch keeps two biases that add, and how ours is split between them is not unique: here ``bias_ih`` holds b, and
    ``bias_hh`` zeros, save for the candidate of a GRU, where it holds `b_n`. So ours come back bit for bit from
    :func:`from_torch`, while PyTorch's own come back with the same sum.

    Args:
        params: one entry a layer, as :func:`from_torch` returns them: ``(params,)`` for a single layer,
            ``((forward, backward),)`` for a single bidirectional one.
        bias: False for a module built with ``bias=False``.

    Returns:
        Names and arrays in the module's own order, for
        ``module.load_state_dict({k: torch.tensor(v) for k, v in ….items()})``. PyTorch takes no bfloat16 from NumPy:
        go through ``torch.tensor(v.astype("float32"))``. For a cell, ``k.removesuffix("_l0")``.

    Raises:
        ValueError: there is no layer, the layers are not all of one size, kind and number of directions, or a bias is
            not zero where ``bias`` is False.
        TypeError: params is no tuple, an entry is no cell's parameters that PyTorch knows, or dtypes are not floating
            or not the same.

    >>> import jax, lstmjax
    >>> params = lstmjax.gru(5).init(jax.random.key(0), 3)
    >>> {name: a.shape for name, a in to_torch((params,)).items()}
    {'weight_ih_l0': (15, 3), 'weight_hh_l0': (15, 5), 'bias_ih_l0': (15,), 'bias_hh_l0': (15,)}
    """
    layers = check_stack(params, *GATES)
    names = tuple(_to_cell(layers[0][0], bias))
    module = Module("", names, endings(len(layers), len(layers[0])))
    arrays: dict[str, np.ndarray] = {}
    for depth, (cells, layer) in enumerate(zip(layers, module.layers, strict=True)):
        for cell, ending in zip(cells, layer, strict=True):
            if not bias:
                check_no_bias(f"params[{depth}]", cell, ("b", "b_n"), "bias is False")
            own_names = module.cell(ending)
            arrays |= {own_names[name]: w for name, w in _to_cell(cell, bias).items()}
    check_dtypes(arrays)
    _check_module(arrays, module)
    return own(arrays)


def _read_names(keys: Iterable[str], prefix: str) -> Module:
    """The module with these keys, all of which it must have, and no other."""
    found = {key: NAME.fullmatch(key[len(prefix) :]) for key in keys}
    known = {key: match.groups() for key, match in found.items() if match}
    names = {name for name, _, _ in known.values()}
    if known and all(layer is None for _, layer, _ in known.values()):
        layers = (("",),)
    else:
        deepest = max((int(layer or 0) for _, layer, _ in known.values()), default=0)
        # No deeper than there are keys, lest one absurd number ask for as many more.
        layers = endings(min(deepest, len(known)) + 1, 2 if any(way for _, _, way in known.values()) else 1)
    module = Module(
        prefix,
        ("weight_ih", "weight_hh", *(BIASES if names & set(BIASES) else ()), *sorted(names & {"weight_hr"})),
        layers,
    )
    hint = ""
    if not known and (inner := next(filter(None, map(INNER.fullmatch, found)), None)):
        hint = f"; prefix={inner[1]!r} takes those that begin so"
    cells = [module.cell(ending) for layer in layers for ending in layer]
    wanted = [cell[name] for name in module.names for cell in cells]
    check_keys("state_dict", found, wanted, hint)
    return module


def _check_module(arrays: Mapping[str, Any], module: Module) -> type:
    """The kind of the module's cells, once every shape is known to follow from those of the first."""
    first = module.cell(module.layers[0][0])
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
    for depth, layer in enumerate(module.layers):
        shapes["weight_ih"] = (rows, len(layer) * outputs if depth else inputs)
        for ending in layer:
            check_shapes(arrays, {key: shapes[name] for name, key in module.cell(ending).items()})
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
