"""Flax: parameters of the recurrent cells of Linen and of NNX.

Both are described by the same table: for each of our fields, the leaves of theirs that stand side by side in it. Layout
and gate order are ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lstmjax.cells.gru import GRUParams
from lstmjax.cells.lstm import LSTMParams
from lstmjax.cells.rnn import RNNParams
from lstmjax.convert.base import (
    FUSED,
    GATES,
    as_arrays,
    check_defaults,
    check_keys,
    check_mapping,
    check_no_bias,
    check_params,
    check_shapes,
    listed,
    matrix,
    own,
)


class Layout(NamedTuple):
    """Where a foreign cell keeps what we keep.

    Attributes:
        kind: the type of our parameters.
        leaves: for each of our fields, the paths of the leaves that make it up, in the order of the gates.
    """

    kind: type
    leaves: dict[str, list[str]]

    @property
    def paths(self) -> list[str]:
        """All paths."""
        return [path for paths in self.leaves.values() for path in paths]


def _layout(kind: type, w_x: str, w_h: str, b: str, b_n: str = "") -> Layout:
    """A layout from the names of the dense layers: those with the kernels, and those with the biases."""
    kernels = {field: [f"{name}/kernel" for name in names.split()] for field, names in (("w_x", w_x), ("w_h", w_h))}
    biases = {field: [f"{name}/bias" for name in names.split()] for field, names in (("b", b), ("b_n", b_n)) if names}
    return Layout(kind, kernels | biases)


NNX_CELLS = ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")
LINEN = (
    _layout(LSTMParams, w_x="ii if ig io", w_h="hi hf hg ho", b="hi hf hg ho"),  # LSTMCell and OptimizedLSTMCell
    _layout(GRUParams, w_x="ir iz in", w_h="hr hz hn", b="ir iz in", b_n="hn"),
    _layout(RNNParams, w_x="i", w_h="h", b="i"),
)
NNX = (
    _layout(LSTMParams, w_x="ii if_ ig io", w_h="hi hf hg ho", b="hi hf hg ho"),
    _layout(LSTMParams, w_x="dense_i", w_h="dense_h", b="dense_h"),  # OptimizedLSTMCell
    _layout(GRUParams, w_x="dense_i", w_h="dense_h", b="dense_i"),  # without b_n, which Linen's GRUCell has
    _layout(RNNParams, w_x="dense_i", w_h="dense_h", b="dense_i"),
)


def from_linen(params: Mapping[str, Any]) -> Any:
    """The parameters of a Flax Linen ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` or ``SimpleCell``.

    Args:
        params: the cell's own dict: ``variables["params"]``, or ``variables["params"]["cell"]`` of an ``nn.RNN``. It
            does not tell other activations than σ and tanh, nor ``residual=True``.

    Returns:
        :class:`~lstmjax.LSTMParams`, :class:`~lstmjax.GRUParams` or :class:`~lstmjax.RNNParams`.

    Raises:
        ValueError: a key is unknown or missing, or a shape does not fit the others.
        TypeError: params is no dict; a leaf is no array, not floating, float64 while JAX's 64-bit mode is off, or of
            another dtype than the others.

    >>> zeros = lambda *shape: np.zeros(shape, np.float32)
    >>> params = from_linen({"i": {"kernel": zeros(3, 5), "bias": zeros(5)}, "h": {"kernel": zeros(5, 5)}})
    >>> type(params).__name__, params.w_x.shape
    ('RNNParams', (3, 5))
    """
    check_mapping("params", params, 'a dict, variables["params"]')
    return _read("params", dict(_flat(params)), LINEN)


def to_linen(params: Any) -> dict[str, dict[str, np.ndarray]]:
    """The parameters of the Flax Linen ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` or ``SimpleCell`` with these.

    Args:
        params: a cell's.

    Returns:
        The cell's own dict, for ``cell.apply({"params": …}, carry, x)``.

    Raises:
        ValueError: parameters do not fit one another.
        TypeError: the parameters are of no cell that Linen knows, or dtypes are not floating or not the same.

    >>> import jax, lstmjax
    >>> theirs = to_linen(lstmjax.lstm(5).init(jax.random.key(0), 3))
    >>> sorted(theirs), theirs["hf"]["bias"].tolist()
    (['hf', 'hg', 'hi', 'ho', 'if', 'ig', 'ii', 'io'], [1.0, 1.0, 1.0, 1.0, 1.0])
    """
    check_params("params", params, *FUSED)
    layout = next(layout for layout in LINEN if layout.kind is type(params))
    tree: dict[str, dict[str, np.ndarray]] = {}
    for path, leaf in own(_write(params, layout)).items():
        dense, name = path.split("/")
        tree.setdefault(dense, {})[name] = leaf
    return tree


def from_nnx(cell_or_state: Any) -> Any:
    """The parameters of a Flax NNX ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` or ``SimpleCell``.

    Args:
        cell_or_state: the cell, its ``nnx.state``, or that as a plain nested dict. Given the cell, its class and
            activations are checked too.

    Returns:
        :class:`~lstmjax.LSTMParams`, :class:`~lstmjax.GRUParams` or :class:`~lstmjax.RNNParams`. NNX's GRUCell has no
        recurrent bias, unlike Linen's: `b_n` is zero.

    Raises:
        ValueError: a key is unknown or missing, a shape does not fit the others, or the cell has other activations
            than σ and tanh, or ``residual=True``, which weights alone cannot say.
        TypeError: the module is none of these cells; a leaf is no array, not floating, float64 while JAX's 64-bit mode
            is off, or of another dtype than the others.

    >>> from flax import nnx
    >>> cell = nnx.OptimizedLSTMCell(3, 5, rngs=nnx.Rngs(0))
    >>> bool((from_nnx(cell).w_h == cell.dense_h.kernel[...]).all())
    True
    """
    if not isinstance(cell_or_state, Mapping):
        _check_nnx_cell(cell_or_state)
    return _read("state", _nnx_leaves(cell_or_state), NNX)


def to_nnx(params: Any, cell: Any) -> Any:
    """A new Flax NNX cell, like the one given and with these weights.

    Args:
        params: weights of an LSTM, a GRU or a vanilla RNN.
        cell: an NNX ``LSTMCell``, ``OptimizedLSTMCell``, ``GRUCell`` or ``SimpleCell`` of their sizes; its own weights
            do not matter.

    Returns:
        The new cell. The one given is as it was.

    Raises:
        ValueError: the cell is of another kind or size, or it is a GRU and `b_n`, for which NNX has no place, is not
            zero.
        TypeError: the parameters are of no cell that NNX knows, the cell is no NNX module, or dtypes are not floating
            or not the same.

    >>> import jax, lstmjax
    >>> from flax import nnx
    >>> params = lstmjax.lstm(5).init(jax.random.key(0), 3)
    >>> cell = to_nnx(params, nnx.LSTMCell(3, 5, rngs=nnx.Rngs(0)))
    >>> cell.hf.bias[...].tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    check_params("params", params, *FUSED)
    from flax import nnx

    what = type(cell).__name__
    if not isinstance(cell, nnx.Module):
        raise TypeError(f"cell is a {what}; wanted an NNX cell")
    given = _nnx_leaves(cell)
    fitting = [layout for layout in NNX if layout.kind is type(params) and set(layout.paths) == set(given)]
    if not fitting:
        hint = _inside(given, NNX)
        raise ValueError(f"{what} has {listed(given)}, which is no cell for {type(params).__name__}{hint}")
    layout = fitting[0]
    if "b_n" not in layout.leaves:
        check_no_bias("params", params, ("b_n",), f"Flax NNX's {what} has no recurrent bias")
    new = _write(params, layout)
    check_shapes(new, {path: tuple(leaf.shape) for path, leaf in given.items()})
    # A clone, so that nothing mutable, such as a stream of random keys, is in both.
    graph, weights, rest = nnx.split(nnx.clone(cell), nnx.Param, ...)
    leaves = [
        (path, leaf.replace(jnp.array(new["/".join(map(str, path))]))) for path, leaf in nnx.to_flat_state(weights)
    ]
    return nnx.merge(graph, nnx.from_flat_state(leaves), rest)


def _check_nnx_cell(cell: Any) -> None:
    """Raises where a module is no cell of NNX's own, or computes what its weights do not tell."""
    from flax import nnx

    if type(cell).__name__ not in NNX_CELLS:
        hint = _inside(_nnx_leaves(cell), NNX) if isinstance(cell, nnx.Module) else ""
        wanted = f"{', '.join(NNX_CELLS[:-1])} or {NNX_CELLS[-1]}"
        raise TypeError(f"cell_or_state is a {type(cell).__name__}; wanted an {wanted}, or a state{hint}")
    check_defaults(cell, gate_fn="sigmoid", activation_fn="tanh", residual=False)


def _nnx_leaves(cell_or_state: Any) -> dict[str, Any]:
    """The arrays of an NNX cell by path, without the random state that it may keep."""
    from flax import nnx

    state: Any = cell_or_state if isinstance(cell_or_state, Mapping) else nnx.state(cell_or_state)
    tree = nnx.to_pure_dict(state) if isinstance(state, nnx.State) else state
    return {path: leaf for path, leaf in _flat(tree) if not path.startswith("rngs/")}


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, by path."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", value


def _inside(leaves: Mapping[str, Any], layouts: Sequence[Layout]) -> str:
    """How a message ends where a wrapper was given: the names under which it has a cell's parameters."""
    ends = [f"/{path}" for layout in layouts for path in layout.paths]
    above = dict.fromkeys(path.removesuffix(end) for path in leaves for end in ends if path.endswith(end))
    return f"; a cell's parameters are under {listed(above)}: convert those" if above else ""


def _read(what: str, leaves: Mapping[str, Any], layouts: Sequence[Layout]) -> Any:
    """Our parameters from leaves laid out in one of these ways."""
    nearest = max(len(set(leaves) & set(layout.paths)) for layout in layouts)
    alike = [layout for layout in layouts if len(set(leaves) & set(layout.paths)) == nearest]
    if not nearest:
        raise ValueError(
            f"{what} holds no cell's parameters: given {listed(leaves)}; wanted such as {listed(alike[0].paths)}"
            f"{_inside(leaves, layouts)}"
        )
    check_keys(what, leaves, min((layout.paths for layout in alike), key=len))
    arrays = as_arrays(leaves)
    # Layouts with the same names are told apart by their number of gates.
    key = alike[0].leaves["w_h"][0]
    hidden, width = matrix(key, arrays[key])
    fits = [layout for layout in alike if width * len(layout.leaves["w_h"]) == GATES[layout.kind] * hidden]
    layout = (fits or alike)[0]

    width = GATES[layout.kind] * hidden // len(layout.leaves["w_h"])
    key = layout.leaves["w_x"][0]
    shapes = {"w_x": (matrix(key, arrays[key])[0], width), "w_h": (hidden, width), "b": (width,), "b_n": (hidden,)}
    check_shapes(arrays, {path: shapes[field] for field, paths in layout.leaves.items() for path in paths})
    fields = {
        field: jnp.concatenate([arrays[path] for path in paths], axis=-1) for field, paths in layout.leaves.items()
    }
    missing = {field: jnp.zeros(shapes[field], fields["w_h"].dtype) for field in layout.kind._fields}
    return layout.kind(**missing | fields)


def _write(params: Any, layout: Layout) -> dict[str, Any]:
    """Leaves laid out in this way from our parameters."""
    leaves = {}
    for field, paths in layout.leaves.items():
        whole = getattr(params, field)
        width = whole.shape[-1] // len(paths)
        leaves |= {path: whole[..., n * width : (n + 1) * width] for n, path in enumerate(paths)}
    return leaves
