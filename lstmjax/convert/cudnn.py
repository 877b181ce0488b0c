"""cuDNN: the flat vector of ``jax.experimental.rnn``, whose layout :mod:`lstmjax.recurrence.cudnn` describes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lstmjax.cells.lstm import LSTMParams
from lstmjax.checks import whole_number
from lstmjax.convert.base import as_arrays, check_dtypes, check_shapes, check_stack
from lstmjax.recurrence.cudnn import flatten_lstm, unflatten_lstm


def from_cudnn(
    flat: Any, *, input_size: int, hidden_size: int, num_layers: int = 1, bidirectional: bool = False
) -> tuple:
    """The parameters of the LSTM layers in cuDNN's flat vector.

    Args:
        flat: ``[N]``, as ``jax.experimental.rnn.init_lstm_weight`` makes it.
        input_size: I, of the first layer.
        hidden_size: H, the number of hidden units.
        num_layers: how many layers.
        bidirectional: whether each layer has a forward and a backward cell.

    Returns:
        One entry a layer, as for :func:`lstmjax.unroll_stack`: :class:`~lstmjax.LSTMParams`, or a pair of them.

    Raises:
        ValueError: the vector is not as long as these sizes ask for, or a size is no whole number, of at least 1 but
            for input_size, which may be 0.
        TypeError: it is no array, not floating, or float64 while JAX's 64-bit mode is off.

    >>> (params,) = from_cudnn(np.arange(20, dtype=np.float32), input_size=2, hidden_size=1)
    >>> params.w_x.tolist(), params.b.tolist()  # two biases a gate, which add
    ([[0.0, 2.0, 4.0, 6.0], [1.0, 3.0, 5.0, 7.0]], [28.0, 30.0, 32.0, 34.0])
    """
    flat = as_arrays({"flat": flat})["flat"]
    input_size, hidden_size = whole_number("input_size", input_size, 0), whole_number("hidden_size", hidden_size)
    num_layers = whole_number("num_layers", num_layers)
    cells = unflatten_lstm(flat, input_size, hidden_size, num_layers=num_layers, bidirectional=bidirectional)
    return tuple(zip(cells[::2], cells[1::2], strict=True)) if bidirectional else tuple(cells)


def to_cudnn(params: Sequence[Any]) -> np.ndarray:
    """cuDNN's flat vector of LSTM layers; of the two biases that add, the second is zero.

    Args:
        params: one entry a layer, as :func:`from_cudnn` returns them.

    Returns:
        ``[N]``.

    Raises:
        ValueError: there is no layer, or the layers are not all of one size and number of directions.
        TypeError: params is no tuple, an entry is no LSTM's parameters, or dtypes are not floating or not the same.

    >>> import jax, lstmjax
    >>> to_cudnn((lstmjax.lstm(5).init(jax.random.key(0), 3),)).shape  # 4H (I + H + 2)
    (200,)
    """
    layers = check_stack(params, LSTMParams)
    hidden, directions = layers[0][0].w_h.shape[0], len(layers[0])
    kernels = {}
    for depth, cells in enumerate(layers):
        inputs = directions * hidden if depth else layers[0][0].w_x.shape[0]
        for way, cell in enumerate(cells):
            key = f"params[{depth}]{f'[{way}]' if directions > 1 else ''}.w_x"
            kernels[key] = cell.w_x
            check_shapes(kernels, {key: (inputs, 4 * hidden)})
    check_dtypes(kernels)
    return np.array(flatten_lstm([cell for cells in layers for cell in cells]))
