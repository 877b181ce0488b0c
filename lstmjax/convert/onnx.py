"""ONNX: the operators ``LSTM``, ``GRU`` and ``RNN``, one node for each layer, of one or two directions.

    W   [D, G·H, I]    w_x transposed, of each direction
    R   [D, G·H, H]    w_h transposed
    B   [D, 2·G·H]     two biases side by side; b is their sum, but for the candidate of a GRU: b_n is in the second

An LSTM's gates are in the order i, o, f, c, where c is our g; a GRU's in the order z, r, h, where h is our n, with
``linear_before_reset=1``.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstmjax.cells.gru import GRUParams
from lstmjax.cells.lstm import LSTMParams
from lstmjax.cells.rnn import RNNParams
from lstmjax.convert.base import (
    FUSED,
    RESET_BEFORE,
    as_arrays,
    check_dtypes,
    check_shapes,
    check_stack,
    join_biases,
    kind_of,
    listed,
    reorder,
    split_biases,
)

OPERATORS: dict[str, type] = {"LSTM": LSTMParams, "GRU": GRUParams, "RNN": RNNParams}
ORDERS = {"LSTM": ("iofg", "ifgo"), "GRU": ("zrn", "rzn"), "RNN": ("n", "n")}
"""The gates as ONNX has them, and as they are here."""
ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
SHAPING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Dropout")
"""What may stand between a layer and the one above it."""
OPSET, IR_VERSION = 14, 8  # what ONNX Runtime has read since 2021


def from_onnx(model: Any, *, nodes: Sequence[str] | None = None) -> tuple:
    """The parameters of the ``LSTM``, ``GRU`` or ``RNN`` nodes of a model, one entry a layer.

    ``layout`` says how the data lie, and no more, so it may be either. ``sequence_lens`` and an initial state that is
    given to the model are for whoever calls :func:`lstmjax.unroll_stack`; what else the model does, before and after,
    is not looked at.

    Args:
        model: an ``onnx.ModelProto``, as ``onnx.load`` reads it. Weights must be stored in it, not computed.
        nodes: the names of the nodes to take, the first layer first; default all that the model has, in its order.

    Returns:
        One entry a layer, as for :func:`lstmjax.unroll_stack`: :class:`~lstmjax.LSTMParams`,
        :class:`~lstmjax.GRUParams` or :class:`~lstmjax.RNNParams`, or a pair of them, forwards first, for
        ``direction="bidirectional"``.

    Raises:
        ValueError: there is no such node; they are not of one kind or not one above another; weights are not stored, or
            do not fit; or a node computes what its weights alone cannot say: other activations than σ and tanh, a GRU
            with ``linear_before_reset=0``, peepholes, ``clip``, ``input_forget``, ``direction="reverse"``, or a stored
            initial state that is not zero.
        TypeError: model is something else; weights are not floating, or float64 while JAX's 64-bit mode is off.
        ImportError: the package onnx is missing; ``lstmjax[convert]`` brings it.

    >>> import jax, lstmjax
    >>> params = (lstmjax.gru(5).init(jax.random.key(0), 3),)
    >>> again = from_onnx(to_onnx(params))
    >>> bool((again[0].w_h == params[0].w_h).all())
    True
    """
    onnx = _package()
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model is of type {type(model).__name__}; wanted an onnx.ModelProto: onnx.load reads a file")
    graph = model.graph
    made = {name: node for node in graph.node for name in node.output}
    chosen = _chosen(graph.node, nodes)
    layers: list[Any] = []
    for depth, node in enumerate(chosen):
        name = node.name or f"{node.op_type} {depth}"
        if node.op_type != chosen[0].op_type:
            raise ValueError(f"{name} is of type {node.op_type}; wanted {chosen[0].op_type}, as in the first layer")
        if depth and _source(node.input[0], made) is not chosen[depth - 1]:
            raise ValueError(
                f"{name} does not read what {chosen[depth - 1].name or 'the layer before it'} puts out; wanted layers "
                "one above another: nodes= says which"
            )
        layers.append(_from_node(onnx, name, node, {w.name: w for w in graph.initializer}, made))
        first = layers[-1][0]
        if depth and first.w_x.shape[0] != (wanted := sum(cell.w_h.shape[0] for cell in layers[-2])):
            raise ValueError(f"{name}.W is for {first.w_x.shape[0]} inputs; wanted {wanted}, of the layer before it")
    return tuple(cells[0] if len(cells) == 1 else cells for cells in layers)


def to_onnx(params: Sequence[Any], *, lengths: bool = False, initial_state: bool = False) -> Any:
    """A model that computes what :func:`lstmjax.unroll_stack` computes with these parameters, σ and tanh.

    Its inputs and outputs are of the parameters' dtype; T, B are left open, D is the number of directions::

        xs             [T, B, I]        the sequences
        lengths        [B]              int32, at least 1; if ``lengths``
        initial_h_l0   [D, B, H]        of each layer, the state before the first step; if ``initial_state``,
        initial_c_l0   [D, B, H]        of an LSTM; without them they are zero
        ys             [T, B, D·H]      the last layer's outputs
        final_h_l0     [D, B, H]        of each layer, the state after each row's last step
        final_c_l0     [D, B, H]        of an LSTM

    Args:
        params: one entry a layer, as :func:`from_onnx` returns them: ``(params,)`` for a single layer,
            ``((forward, backward),)`` for a single bidirectional one.
        lengths: whether the model takes the rows' lengths.
        initial_state: whether it takes the states before the first step.

    Returns:
        An ``onnx.ModelProto`` of operator set 14, for ``onnx.save`` or ``model.SerializeToString()``.

    Raises:
        ValueError: there is no layer, layers do not fit one another, or are not all of one kind and number of
            directions.
        TypeError: params is no tuple, an entry is no LSTM's, GRU's or RNN's parameters, or dtypes are not the same, or
            not one of float16, float32 and float64.
        ImportError: the package onnx is missing; ``lstmjax[convert]`` brings it.

    >>> import jax, lstmjax
    >>> model = to_onnx((lstmjax.lstm(5).init(jax.random.key(0), 3),), lengths=True)
    >>> [node.op_type for node in model.graph.node], [value.name for value in model.graph.input]
    (['LSTM', 'Squeeze'], ['xs', 'lengths'])
    """
    onnx = _package()
    helper = onnx.helper
    layers = check_stack(params, *FUSED)
    op = next(name for name, kind in OPERATORS.items() if type(layers[0][0]) is kind)
    check_dtypes(
        {f"params[{n}].{f}": w for n, cells in enumerate(layers) for c in cells for f, w in c._asdict().items()}
    )
    dtype = np.dtype(layers[0][0].w_x.dtype)
    if dtype.name not in ("float16", "float32", "float64"):
        raise TypeError(f"params are of dtype {dtype}; wanted float16, float32 or float64, which the operators take")
    element = helper.np_dtype_to_tensor_dtype(dtype)

    def value(name: str, *shape: Any, of: int = element) -> Any:
        return helper.make_tensor_value_info(name, of, shape)

    inputs = [value("xs", "T", "B", layers[0][0].w_x.shape[0])]
    inputs += [value("lengths", "B", of=onnx.TensorProto.INT32)] if lengths else []
    outputs, weights, nodes, below = [], [], [], "xs"
    features = layers[0][0].w_x.shape[0]
    for depth, cells in enumerate(layers):
        hidden, ways = cells[0].w_h.shape[0], len(cells)
        for cell in cells:
            check_shapes(
                {f"params[{depth}].w_x": cell.w_x, f"params[{depth}].w_h": cell.w_h},
                {f"params[{depth}].w_x": (features, cell.w_x.shape[1]), f"params[{depth}].w_h": cells[0].w_h.shape},
            )
        parts = ("h", "c") if op == "LSTM" else ("h",)
        given = [f"initial_{part}_l{depth}" if initial_state else "" for part in parts]
        ends = [f"final_{part}_l{depth}" for part in parts]
        inputs += [value(name, ways, "B", hidden) for name in given if name]
        outputs += [value(name, ways, "B", hidden) for name in ends]
        own = {f"{name}_l{depth}": array for name, array in zip("WRB", _to_arrays(op, cells), strict=True)}
        weights += [onnx.numpy_helper.from_array(array, name) for name, array in own.items()]
        after = "ys" if depth == len(layers) - 1 else f"ys_l{depth}"
        ys = f"directions_l{depth}"
        nodes.append(
            helper.make_node(
                op, [below, *own, "lengths" if lengths else "", *given], [ys, *ends], name=f"{op}_l{depth}",
                hidden_size=hidden, direction="bidirectional" if ways == 2 else "forward",
                **({"linear_before_reset": 1} if op == "GRU" else {}),
            )
        )  # fmt: skip
        # [T, D, B, H] to [T, B, D·H]
        if ways == 1:
            weights.append(onnx.numpy_helper.from_array(np.array([1], np.int64), f"axis_l{depth}"))
            nodes.append(helper.make_node("Squeeze", [ys, f"axis_l{depth}"], [after]))
        else:
            weights.append(onnx.numpy_helper.from_array(np.array([0, 0, 2 * hidden], np.int64), f"shape_l{depth}"))
            nodes.append(helper.make_node("Transpose", [ys], [f"turned_l{depth}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"turned_l{depth}", f"shape_l{depth}"], [after]))
        below, features = after, ways * hidden
    outputs.insert(0, value("ys", "T", "B", features))
    graph = helper.make_graph(nodes, "lstmjax", inputs, outputs, weights)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="lstmjax"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _chosen(nodes: Iterable[Any], names: Sequence[str] | None) -> list[Any]:
    known = [node for node in nodes if node.op_type in OPERATORS and node.domain in ("", "ai.onnx")]
    if names is None:
        if not known:
            raise ValueError(f"model has no node of type {', '.join(OPERATORS)}")
        return known
    by_name = {node.name: node for node in known}
    for name in names:
        if name not in by_name:
            raise ValueError(f"nodes names {name!r}; the model has, of type LSTM, GRU and RNN, {listed(by_name)}")
    if not names:
        raise ValueError("nodes is empty; wanted the name of at least one")
    return [by_name[name] for name in names]


def _source(name: str, made: dict[str, Any]) -> Any:
    """The node that computes a value, beyond what only shapes it; None for an input of the model."""
    node = made.get(name)
    while node is not None and node.op_type in SHAPING:
        node = made.get(node.input[0])
    return node


def _from_node(onnx: Any, name: str, node: Any, stored: dict[str, Any], made: dict[str, Any]) -> tuple:
    """The parameters of each direction of a node."""
    op = node.op_type
    _check_attributes(onnx, name, node)
    arrays = {}
    for key, value in zip(INPUTS, node.input, strict=False):
        if not value or key in ("X", "sequence_lens"):
            continue
        array = _stored(onnx, value, stored, made)
        if key in ("W", "R", "B"):
            if array is None:
                raise ValueError(f"{name}.{key} is computed by the model; wanted it stored there, as an initializer")
            arrays[f"{name}.{key}"] = array
        elif key == "P":
            raise ValueError(f"{name} has peepholes, P; wanted none: lstmjax.peephole_lstm's weights are not converted")
        elif array is not None and array.any():
            raise ValueError(
                f"{name} has a stored {key} that is not zero; wanted it given to the model, as here to unroll"
            )
    arrays = as_arrays(arrays)
    w, r = (arrays[f"{name}.{key}"] for key in "WR")
    if r.ndim != 3:
        raise ValueError(f"{name}.R has shape {r.shape}; wanted three axes")
    ways, fused, hidden = r.shape
    kind = kind_of(f"{name}.R", hidden, fused)
    if kind is not OPERATORS[op]:
        raise ValueError(f"{name}.R has {fused} gate units for {hidden} hidden units; wanted those of an {op}")
    wanted_ways = 2 if _attributes(onnx, node).get("direction") == "bidirectional" else 1
    shapes = {"W": (wanted_ways, fused, w.shape[-1]), "R": (wanted_ways, fused, hidden), "B": (wanted_ways, 2 * fused)}
    check_shapes(arrays, {key: shapes[key[-1]] for key in arrays})
    b = arrays.get(f"{name}.B", jnp.zeros((ways, 2 * fused), w.dtype))
    given, wanted = ORDERS[op]

    def ordered(a: Any) -> Any:
        return reorder(a, given=given, wanted=wanted)

    return tuple(
        kind(
            w_x=ordered(w[n].T), w_h=ordered(r[n].T),
            **join_biases(kind, ordered(b[n, :fused]), ordered(b[n, fused:])),
        )
        for n in range(ways)
    )  # fmt: skip


def _to_arrays(op: str, cells: Sequence[Any]) -> list[np.ndarray]:
    """W, R and B of a layer."""
    wanted, given = ORDERS[op]
    rows = [
        [reorder(np.asarray(a), given=given, wanted=wanted) for a in (cell.w_x, cell.w_h, *split_biases(cell))]
        for cell in cells
    ]
    of_each = [(w_x.T, w_h.T, np.concatenate([b_x, b_h])) for w_x, w_h, b_x, b_h in rows]
    return [np.ascontiguousarray(np.stack(arrays)) for arrays in zip(*of_each, strict=True)]


def _attributes(onnx: Any, node: Any) -> dict[str, Any]:
    """A node's attributes, strings as such."""

    def text(value: Any) -> Any:
        return value.decode() if isinstance(value, bytes) else value

    found = {a.name: text(onnx.helper.get_attribute_value(a)) for a in node.attribute}
    return {k: [text(v) for v in value] if isinstance(value, list) else value for k, value in found.items()}


def _check_attributes(onnx: Any, name: str, node: Any) -> None:
    """Raises where a node computes something that its weights do not tell."""
    op, given = node.op_type, _attributes(onnx, node)
    ways = 2 if given.get("direction") == "bidirectional" else 1
    activations = [a.capitalize() for a in given.pop("activations", ACTIVATIONS[op] * ways)]
    if activations != [*ACTIVATIONS[op]] * ways:
        raise ValueError(f"{name} has activations = {activations}; wanted {[*ACTIVATIONS[op]] * ways}: weights cannot "
                         "say otherwise")  # fmt: skip
    if given.get("direction") == "reverse":
        raise ValueError(
            f"{name} has direction = 'reverse'; wanted 'forward' or 'bidirectional': weights cannot say so"
        )
    if op == "GRU" and not given.get("linear_before_reset", 0):
        raise ValueError(f"{name} has linear_before_reset = 0; wanted 1: {RESET_BEFORE}")
    known = {"hidden_size", "direction", "layout", "linear_before_reset", "input_forget"}
    for key, value in given.items():
        if key not in known or (key == "input_forget" and value):
            raise ValueError(f"{name} has {key} = {value!r}; wanted none: weights cannot say so")


def _stored(onnx: Any, name: str, stored: dict[str, Any], made: dict[str, Any]) -> np.ndarray | None:
    """An array of the model; None where it is an input, or computed."""
    while name in made and made[name].op_type == "Identity":
        name = made[name].input[0]
    if name in stored:
        return onnx.numpy_helper.to_array(stored[name])
    node = made.get(name)
    if node is not None and node.op_type == "Constant" and "value" in (found := _attributes(onnx, node)):
        return onnx.numpy_helper.to_array(found["value"])
    return None


def _package() -> Any:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError as error:
        raise ImportError("ONNX models want the package onnx: pip install 'lstmjax[convert]'") from error
    return onnx
