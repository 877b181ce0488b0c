"""What every conversion shares: the kind of cell, gate orders, the two biases, and the checks with their errors.

Errors name the key as the other library has it, what was given and what was wanted. Nothing here writes to what it
was given, and every array that leaves is a copy.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import dtypes
from jaxtyping import Array

from lstmjax.cells.gru import GRUParams
from lstmjax.cells.lstm import LSTMParams
from lstmjax.cells.projected import ProjectedLSTMParams
from lstmjax.cells.rnn import RNNParams

GATES: dict[type, int] = {LSTMParams: 4, GRUParams: 3, RNNParams: 1, ProjectedLSTMParams: 4}
"""How many gates each kind keeps side by side."""

FUSED = (LSTMParams, GRUParams, RNNParams)
"""The kinds told apart by their number of gates."""

RESET_BEFORE = (
    "its reset gate acts before the product with the recurrent weights: here that is gru_reset_before, whose weights "
    "are not converted"
)
"""Why Haiku's GRU, Keras's with ``reset_after=False`` and ONNX's with ``linear_before_reset=0`` are not taken."""


def kind_of(key: str, hidden: int, fused: int) -> type:
    """The kind of cell whose recurrent weights have ``hidden`` units on one axis and all gates on the other."""
    for kind in FUSED:
        if hidden and fused == GATES[kind] * hidden:
            return kind
    raise ValueError(
        f"{key} has {fused} gate units for {hidden} hidden units; wanted 4 (LSTM), 3 (GRU) or 1 (RNN) times as many"
    )


def reorder(a: Any, given: str, wanted: str) -> Any:
    """The gates of ``[..., G·H]`` in another order, each gate a letter.

    >>> reorder(np.array([1, 2, 3, 4]), given="igfo", wanted="ifgo").tolist()
    [1, 3, 2, 4]
    """
    blocks = a.reshape(*a.shape[:-1], len(given), a.shape[-1] // len(given))
    return blocks[..., np.array([given.index(gate) for gate in wanted]), :].reshape(a.shape)


def join_biases(kind: type, b_x: Array, b_h: Array) -> dict[str, Array]:
    """Our biases from one on the input's side and one on the hidden state's, ``[G·H]`` each: their sum.

    The candidate's recurrent bias of a GRU stays apart, since the reset gate multiplies it.
    """
    if kind is not GRUParams:
        return {"b": b_x + b_h}
    added = 2 * b_h.shape[0] // 3
    return {"b": b_x + jnp.pad(b_h[:added], (0, b_h.shape[0] - added)), "b_n": b_h[added:]}


def split_biases(params: Any) -> tuple[np.ndarray, np.ndarray]:
    """One bias on each side, the recurrent one zero but for a GRU's candidate; :func:`join_biases` undoes it."""
    b_x = np.asarray(params.b)
    b_h = np.zeros_like(b_x)
    if isinstance(params, GRUParams):
        b_h[-params.b_n.shape[0] :] = params.b_n
    return b_x, b_h


def as_arrays(leaves: Mapping[str, Any]) -> dict[str, Array]:
    """Every leaf as a jax array of its own.

    Raises:
        TypeError: a leaf is no array, is not floating, is float64 while JAX would make it float32, or the leaves are
            of more than one dtype.
    """
    leaves = {key: _without_torch(leaf) for key, leaf in leaves.items()}
    check_dtypes(leaves)
    # jnp.array copies, where jnp.asarray may look into memory that its owner goes on to change.
    return {key: jnp.array(leaf) for key, leaf in leaves.items()}


def own(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Every leaf as a NumPy array of its own: contiguous, and writeable, as PyTorch wants it."""
    return {key: np.array(leaf, order="C") for key, leaf in leaves.items()}


def _without_torch(leaf: Any) -> Any:
    """A tensor of PyTorch, known by its ``detach``, as a NumPy array; anything else as it is."""
    if not callable(getattr(leaf, "detach", None)):
        return leaf
    leaf = leaf.detach().cpu()
    if str(leaf.dtype) == "torch.bfloat16":  # which NumPy has from ml_dtypes and PyTorch does not know of
        return leaf.float().numpy().astype(jnp.bfloat16)
    return leaf.numpy()


def check_dtypes(leaves: Mapping[str, Any]) -> None:
    """Raises where leaves are not arrays of one floating dtype that JAX keeps."""
    first = next(iter(leaves))
    for key, leaf in leaves.items():
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not hasattr(leaf, "shape"):
            raise TypeError(f"{key} is of type {type(leaf).__name__}; wanted an array")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{key} has dtype {dtype}; wanted a floating dtype")
        if dtypes.canonicalize_dtype(dtype) != dtype:
            raise TypeError(
                f"{key} has dtype {dtype}, which JAX would make {dtypes.canonicalize_dtype(dtype)}: cast it, or set "
                "jax_enable_x64"
            )
        if dtype != leaves[first].dtype:
            raise TypeError(f"{key} has dtype {dtype} and {first} {leaves[first].dtype}; wanted one dtype for all")


def check_keys(what: str, given: Iterable[str], wanted: Iterable[str], hint: str = "") -> None:
    """Raises where a key is unknown or missing; ``hint`` ends the message."""
    given, wanted = list(given), list(wanted)
    unknown, missing = sorted(set(given) - set(wanted)), sorted(set(wanted) - set(given))
    if len(missing) == 1 and not unknown:
        raise ValueError(f"{what} lacks {missing[0]!r}; the other {len(given)} that are wanted are there")
    if unknown or missing:
        problem = f"holds the unknown {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        raise ValueError(f"{what} {problem}; given {listed(given)}; wanted {listed(wanted)}{hint}")


def listed(names: Iterable[str]) -> str:
    """Names for a message, the first dozen of them.

    >>> listed("abc"), listed(str(n) for n in range(14))
    ("'a', 'b', 'c'", "'0', '1', '2', '3', '4', '5', '6', '7', '8', '9', '10', '11' and 2 more")
    """
    names = list(names)
    rest = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return (", ".join(map(repr, names[:12])) or "nothing") + rest


def matrix(key: str, array: Any) -> tuple[int, int]:
    """The shape of an array that must have two axes."""
    if len(array.shape) != 2:
        raise ValueError(f"{key} has shape {tuple(array.shape)}; wanted two axes")
    return array.shape


def check_shapes(arrays: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises where an array has another shape than the one wanted under its key."""
    for key, shape in wanted.items():
        if tuple(arrays[key].shape) != shape:
            raise ValueError(f"{key} has shape {tuple(arrays[key].shape)}; wanted {shape}")


def check_params(name: str, params: Any, *kinds: type) -> None:
    """Raises where our own parameters are of none of these kinds, or not of one size and dtype."""
    if type(params) not in kinds:
        raise TypeError(f"{name} is of type {type(params).__name__}; wanted {' or '.join(k.__name__ for k in kinds)}")
    leaves = {f"{name}.{field}": leaf for field, leaf in params._asdict().items()}
    check_dtypes(leaves)
    inputs, _ = matrix(f"{name}.w_x", params.w_x)
    outputs, _ = matrix(f"{name}.w_h", params.w_h)
    projected = isinstance(params, ProjectedLSTMParams)
    hidden = matrix(f"{name}.w_p", params.w_p)[0] if projected else outputs
    fused = GATES[type(params)] * hidden
    fields = {
        "w_x": (inputs, fused),
        "w_h": (outputs, fused),
        "b": (fused,),
        "b_n": (hidden,),
        "w_p": (hidden, outputs),
    }
    check_shapes(leaves, {f"{name}.{field}": fields[field] for field in params._fields})


def check_no_bias(name: str, params: Any, fields: Iterable[str], why: str) -> None:
    """Raises where a bias that the other side has no place for is not all zero."""
    for field in fields:
        if field in params._fields and bool(jnp.any(getattr(params, field) != 0)):
            raise ValueError(f"{name}.{field} is not all zero; wanted zeros, since {why}")


def check_defaults(layer: Any, why: str = "weights cannot say otherwise", **wanted: Any) -> None:
    """Raises where an attribute of a foreign layer makes it compute something that its weights do not tell."""
    for name, value in wanted.items():
        given = getattr(layer, name, value)
        given = getattr(given, "__name__", given)
        if given != value:
            raise ValueError(f"{type(layer).__name__} has {name} = {given!r}; wanted {value!r}: {why}")


def check_mapping(name: str, given: Any, wanted: str) -> None:
    """Raises where something is no mapping of names."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} is of type {type(given).__name__}; wanted {wanted}")


def check_stack(params: Any, *kinds: type) -> list[tuple]:
    """The cells of every layer of a stack, all of one of these kinds and each layer with as many directions."""
    if hasattr(params, "_fields") or not isinstance(params, tuple | list):
        raise TypeError(
            f"params is of type {type(params).__name__}; wanted a tuple with one entry a layer, such as (params,)"
        )
    if not params:
        raise ValueError("params is empty; wanted a tuple with one entry a layer, such as (params,)")
    layers: list[tuple] = []
    for depth, layer in enumerate(params):
        layers.append(cells_of(layer))
        for cell in layers[-1]:
            check_params(f"params[{depth}]", cell, *kinds)
        first = layers[0]
        given, wanted = ([type(cell).__name__ for cell in cells] for cells in (layers[-1], first[:1] * len(first)))
        if given != wanted:
            raise ValueError(
                f"params[{depth}] holds {' and '.join(given)}; wanted {' and '.join(wanted)}, as in the first layer"
            )
    return layers


def cells_of(layer: Any) -> tuple:
    """The cells' parameters of one layer of a stack: of a pair both, else the one.

    >>> len(cells_of(("forwards", "backwards"))), len(cells_of(RNNParams(*jnp.ones((3, 1)))))
    (2, 1)
    """
    pair = isinstance(layer, tuple | list) and not hasattr(layer, "_fields")
    if pair and len(layer) != 2:
        raise TypeError(f"a layer is a sequence of {len(layer)}; wanted a cell's parameters, or a pair of them")
    return tuple(layer) if pair else (layer,)
