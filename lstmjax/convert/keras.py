"""Keras 3: weights of ``keras.layers.LSTM``, ``GRU``, ``SimpleRNN``, and of ``Bidirectional`` around them.

    kernel             [I, G·H]   w_x
    recurrent_kernel   [H, G·H]   w_h
    bias               [G·H]      b; for a GRU [2, 3H], the input's bias over the recurrent one, whose last third is b_n

An LSTM's gates are in our order, a GRU's in the order z, r, h, where h is our n.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lstmjax.cells.gru import GRUParams
from lstmjax.convert.base import (
    FUSED,
    RESET_BEFORE,
    as_arrays,
    cells_of,
    check_defaults,
    check_dtypes,
    check_no_bias,
    check_params,
    check_shapes,
    join_biases,
    kind_of,
    matrix,
    own,
    reorder,
    split_biases,
)

NAMES = ("kernel", "recurrent_kernel", "bias")
LAYERS = ("LSTM", "GRU", "SimpleRNN", "RNN")
CELLS = ("LSTMCell", "GRUCell", "SimpleRNNCell")


def from_keras(layer_or_weights: Any) -> Any:
    """The parameters of a ``keras.layers.LSTM``, ``GRU``, ``SimpleRNN`` or ``Bidirectional`` of one of them.

    Given a layer, what its weights do not tell is checked too; given weights, a GRU without biases is taken to have
    ``reset_after=True``, and every activation to be the default one. Dropout, ``stateful`` and masks are no parameters:
    they are for whoever calls :func:`lstmjax.unroll`.

    Args:
        layer_or_weights: a built layer, one of Keras's own cells or an ``RNN`` around one, or what its
            ``get_weights()`` returns: kernel, recurrent kernel and, unless
            it has none, bias; those of both directions, forwards first, for a bidirectional layer.

    Returns:
        :class:`~lstmjax.LSTMParams`, :class:`~lstmjax.GRUParams` or :class:`~lstmjax.RNNParams`, or a pair of them.
        Without biases b is zero.

    Raises:
        ValueError: the number of weights or a shape is none of these; or the layer computes what its weights alone
            cannot say: a GRU with ``reset_after=False``, ``go_backwards``, other activations than σ and tanh, a
            ``merge_mode`` that is not concat. For the two in the middle, convert the weights, and say
            ``reverse=True`` or ``activation=`` here.
        TypeError: it is another layer, such as a model around one of these or a class of your own, for which its
            weights are wanted; a weight is no array, not floating, float64 while JAX's 64-bit mode is off, or of
            another dtype than the others.

    >>> zeros = lambda *shape: np.zeros(shape, np.float32)
    >>> params = from_keras([zeros(3, 15), zeros(5, 15), zeros(2, 15)])
    >>> type(params).__name__, params.w_x.shape, params.b.shape, params.b_n.shape
    ('GRUParams', (3, 15), (15,), (5,))
    """
    weights, counts = layer_or_weights, (2, 3, 4, 6)
    if callable(getattr(layer_or_weights, "get_weights", None)):
        counts = (4, 6) if _check_layer(layer_or_weights) else (2, 3)
        weights = layer_or_weights.get_weights()
    elif not isinstance(weights, tuple | list):
        raise _unknown(weights)
    if len(weights) not in counts:
        raise ValueError(
            f"{len(weights)} weights given; wanted {' or '.join(map(str, counts))}: of each direction kernel, "
            "recurrent kernel and, unless there is none, bias (a layer has no weights before it is built)"
        )
    arrays = list(as_arrays({f"weights[{n}]": w for n, w in enumerate(weights)}).items())
    if len(arrays) < 4:
        return _from_cell(arrays, None)
    half = len(arrays) // 2
    forward = _from_cell(arrays[:half], None)
    return forward, _from_cell(arrays[half:], forward.w_x.shape[0])


def to_keras(params: Any, *, bias: bool = True) -> list[np.ndarray]:
    """Weights for ``layer.set_weights`` of the Keras layer with these parameters.

    Args:
        params: a cell's, or a pair of them for a ``Bidirectional``.
        bias: False for a layer built with ``use_bias=False``.

    Returns:
        Kernel, recurrent kernel and bias; for a pair the forward cell's, then the backward cell's. A GRU's bias row for
        the hidden state is zero but for the candidate.

    Raises:
        ValueError: parameters do not fit one another, or a bias is not zero where ``bias`` is False.
        TypeError: the parameters are of no cell that Keras knows, or dtypes are not floating or not the same.

    >>> import jax, lstmjax
    >>> [w.shape for w in to_keras(lstmjax.gru(5).init(jax.random.key(0), 3))]
    [(3, 15), (5, 15), (2, 15)]
    """
    weights: list[Any] = []
    cells = list(cells_of(params))
    for n, cell in enumerate(cells):
        name = f"params[{n}]" if len(cells) > 1 else "params"
        check_params(name, cell, *FUSED)
        check_shapes({f"{name}.w_x": cell.w_x}, {f"{name}.w_x": (cells[0].w_x.shape[0], cell.w_x.shape[1])})
        if not bias:
            check_no_bias(name, cell, ("b", "b_n"), "bias is False")
        weights += _to_cell(cell)[: 3 if bias else 2]
    arrays = {f"weights[{n}]": w for n, w in enumerate(weights)}
    check_dtypes(arrays)
    return list(own(arrays).values())


def _check_layer(layer: Any) -> bool:
    """Whether a layer is bidirectional; raises where it computes what its weights do not tell."""
    both = type(layer).__name__ == "Bidirectional"
    if both:
        check_defaults(layer, merge_mode="concat")
    for inner, backwards in [(layer.forward_layer, False), (layer.backward_layer, True)] if both else [(layer, False)]:
        cell = inner.cell if type(inner).__name__ in LAYERS else inner
        if type(cell).__name__ not in CELLS:  # a subclass, or a layer around one, computes who knows what
            raise _unknown(cell)
        check_defaults(inner, go_backwards=backwards)
        check_defaults(cell, activation="tanh", recurrent_activation="sigmoid")
        check_defaults(cell, why=RESET_BEFORE, reset_after=True)
    return both


def _unknown(given: Any) -> TypeError:
    return TypeError(
        f"layer_or_weights is a {type(given).__name__}; wanted an LSTM, GRU, SimpleRNN, Bidirectional or RNN of "
        "Keras's own, one of its cells, or a list of weights: of a model, one of model.layers"
    )


def _from_cell(weights: Sequence[tuple[str, Array]], inputs: int | None) -> Any:
    """One direction's parameters; ``inputs`` is the number of features where the other direction has set it."""
    arrays = {f"{key} ({name})": w for name, (key, w) in zip(NAMES, weights, strict=False)}
    (x_key, w_x), (h_key, w_h), *rest = arrays.items()
    hidden, fused = matrix(h_key, w_h)
    kind = kind_of(h_key, hidden, fused)
    two = kind is GRUParams
    for key, b in rest:
        if two and b.ndim == 1:
            raise ValueError(
                f"{key} has shape {b.shape}, a GRU's with reset_after=False; wanted {(2, fused)}: {RESET_BEFORE}"
            )
    shapes = ((inputs or matrix(x_key, w_x)[0], fused), (hidden, fused), (2, fused) if two else (fused,))
    check_shapes(arrays, dict(zip(arrays, shapes, strict=False)))

    b_x = rest[0][1] if rest else jnp.zeros(shapes[2], w_h.dtype)
    b_h = jnp.zeros(fused, w_h.dtype)
    if two:
        w_x, w_h, b_x, b_h = (reorder(a, given="zrn", wanted="rzn") for a in (w_x, w_h, *b_x))
    return kind(w_x=w_x, w_h=w_h, **join_biases(kind, b_x, b_h))


def _to_cell(params: Any) -> list[np.ndarray]:
    if not isinstance(params, GRUParams):
        return [np.asarray(a) for a in params]
    arrays = (params.w_x, params.w_h, np.stack(split_biases(params)))
    return [reorder(np.asarray(a), given="rzn", wanted="zrn") for a in arrays]
