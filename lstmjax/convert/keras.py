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
    as_arrays,
    cells_of,
    check_defaults,
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


def from_keras(layer_or_weights: Any) -> Any:
    """The parameters of a ``keras.layers.LSTM``, ``GRU``, ``SimpleRNN`` or ``Bidirectional`` of one of them.

    Given a layer, what its weights do not tell is checked too; given weights, a GRU without biases is taken to have
    ``reset_after=True``, and every activation to be the default one.

    Args:
        layer_or_weights: a built layer, or what its ``get_weights()`` returns: kernel, recurrent kernel and, unless
            it has none, bias; those of both directions, forwards first, for a bidirectional layer.

    Returns:
        :class:`~lstmjax.LSTMParams`, :class:`~lstmjax.GRUParams` or :class:`~lstmjax.RNNParams`, or a pair of them.
        Without biases b is zero.

    Raises:
        ValueError: the number of weights or a shape is none of these; or the layer computes what its weights alone
            cannot say: a GRU with ``reset_after=False``, ``go_backwards``, other activations than σ and tanh, a
            ``merge_mode`` that is not concat. For the two in the middle, convert the weights, and say
            ``reverse=True`` or ``activation=`` here.
        TypeError: a weight is no array, not floating, float64 while JAX's 64-bit mode is off, or of another dtype than
            the others.

    >>> zeros = lambda *shape: np.zeros(shape, np.float32)
    >>> params = from_keras([zeros(3, 15), zeros(5, 15), zeros(2, 15)])
    >>> type(params).__name__, params.w_x.shape, params.b.shape, params.b_n.shape
    ('GRUParams', (3, 15), (15,), (5,))
    """
    weights, counts = layer_or_weights, (2, 3, 4, 6)
    if callable(getattr(layer_or_weights, "get_weights", None)):
        counts = (4, 6) if _check_layer(layer_or_weights) else (2, 3)
        weights = layer_or_weights.get_weights()
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
    for cell in cells_of(params):
        check_params("params", cell, *FUSED)
        if not bias:
            check_no_bias("params", cell, ("b", "b_n"), "bias is False")
        weights += _to_cell(cell)[: 3 if bias else 2]
    return list(own({str(n): w for n, w in enumerate(weights)}).values())


def _check_layer(layer: Any) -> bool:
    """Whether a layer is bidirectional; raises where it computes what its weights do not tell."""
    check_defaults(layer, merge_mode="concat")
    both = hasattr(layer, "forward_layer")
    for inner, backwards in [(layer.forward_layer, False), (layer.backward_layer, True)] if both else [(layer, False)]:
        check_defaults(inner, go_backwards=backwards)
        cell = getattr(inner, "cell", inner)
        check_defaults(cell, activation="tanh", recurrent_activation="sigmoid", reset_after=True)
    return both


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
                f"{key} has shape {b.shape}: a GRU with reset_after=False, where the reset gate acts before the "
                f"product; wanted {(2, fused)}, a GRU with reset_after=True"
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
