"""Layers and directions: cells unrolled one after another, each over the outputs of the one before.

A stack is a sequence of layers. A layer is a cell, run forwards, or a pair of cells, run forwards and backwards
with their outputs merged, side by side by default. Parameters and states have the same form: a tuple with one entry a
layer, which for a pair is itself a pair.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lstmjax.cells.base import Cell, Recurrence, dtype_of
from lstmjax.cells.wrappers import draw_masks
from lstmjax.typing import Key, Params, State
from lstmjax.unroll import unroll

Layer = Cell | tuple[Cell, Cell]
Merge = Literal["concatenate", "sum", "mean", "product"]


def init_stack(
    layers: Sequence[Layer], key: Key, input_size: int, dtype=jnp.float32, *, merge: Merge = "concatenate"
) -> tuple[Params, ...]:
    """Draws the parameters of every layer, each sized to the outputs of the one before.

    Args:
        layers: the stack.
        key: random key; every cell gets one of its own.
        input_size: I, the features of the first layer's input.
        dtype: of the parameters.
        merge: as for :func:`unroll_stack`.

    Returns:
        One entry a layer, a cell's parameters or a pair of them.

    Raises:
        ValueError: there is no layer, or merge is none of the four.
        TypeError: layers is a single cell, or a layer is neither a cell nor a pair of cells.

    >>> import lstmjax
    >>> layers = [(lstmjax.lstm(4), lstmjax.lstm(4)), lstmjax.gru(6)]
    >>> both, gru = init_stack(layers, jax.random.key(0), 3)
    >>> both[0].w_x.shape, gru.w_x.shape
    ((3, 16), (8, 18))
    """
    _check_layers(layers)
    _check_merge(merge)
    params = []
    for layer, layer_key in zip(layers, jax.random.split(key, len(layers)), strict=True):
        if params:
            input_size = merged_size(layers[len(params) - 1], params[-1], input_size, merge)
        if isinstance(layer, Cell):
            drawn = layer.init(layer_key, input_size, dtype)
        else:
            keys = jax.random.split(layer_key)
            drawn = tuple(c.init(k, input_size, dtype) for c, k in zip(layer, keys, strict=True))
        params.append(drawn)
    return tuple(params)


def unroll_stack(
    layers: Sequence[Layer],
    params: Sequence[Params],
    xs: Any,
    state: Sequence[State | None] | None = None,
    *,
    merge: Merge = "concatenate",
    dropout_rate: float = 0.0,
    dropout_key: Key | None = None,
    **options: Any,
) -> tuple[tuple[State, ...], Array]:
    """Unrolls a stack of layers.

    Args:
        layers: the stack.
        params: one entry a layer, as from :func:`init_stack`.
        xs: ``[T, *B, I]`` inputs.
        state: one entry a layer, the state before its first step (for a backward cell: before the row's last);
            the cells' own initial states unless given.
        merge: what becomes of a pair's two outputs: ``"concatenate"``, side by side, forwards first; or their
            ``"sum"``, ``"mean"`` or ``"product"``.
        dropout_rate: the share of each layer's outputs, the last layer's excepted, that is set to zero, the rest
            being scaled by `1/(1 − rate)`. One mask ``[T, *B, H]`` a layer, drawn outside the scan.
        dropout_key: random key for the masks, those of cells with noise (:func:`~lstmjax.draw_masks`) included. It is
            wanted where the rate is above 0, and allowed where a cell has noise. To evaluate, leave both out.
        **options: ``lengths``, ``mask``, ``resets``, ``remat_block`` and ``scan_unroll``, as for
            :func:`~lstmjax.unroll`, for every layer.

    Returns:
        The final states, one entry a layer, and the last layer's outputs, ``[T, *B, H]``, or ``[T, *B, 2H]`` for a
        pair side by side.

    Raises:
        ValueError: the number of params or states is not that of the layers, or of a layer's cells; the rate is outside
            [0, 1); rate and key do not go together; merge is none of the four, or the two outputs of a pair differ in
            shape and are not put side by side; and whatever :func:`~lstmjax.unroll` raises, with the layer named.
        TypeError: layers is a single cell, a layer is neither a cell nor a pair of cells, or an option is unknown; and
            whatever :func:`~lstmjax.unroll` raises.

    >>> import lstmjax
    >>> layers = [(lstmjax.lstm(4), lstmjax.lstm(4)), lstmjax.gru(6)]
    >>> params = init_stack(layers, jax.random.key(0), 3)
    >>> (both, gru), ys = unroll_stack(layers, params, jnp.ones((10, 2, 3)))
    >>> both[1].c.shape, gru.h.shape, ys.shape
    ((2, 4), (2, 6), (10, 2, 6))
    """
    _check_layers(layers)
    _check_merge(merge)
    state = (None,) * len(layers) if state is None else state
    for name, given in (("params", params), ("state", state)):
        if len(given) != len(layers):
            raise ValueError(f"{name} has {len(given)} entries; wanted one for each of the {len(layers)} layers")
    noisy = any(cell.noise is not None for cell in jax.tree.leaves(list(layers), is_leaf=lambda c: isinstance(c, Cell)))
    _check_dropout(dropout_rate, dropout_key, noisy)

    finals, ys = [], xs
    for depth, (layer, p, s) in enumerate(zip(layers, params, state, strict=True)):
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, depth)
        if depth and key is not None and dropout_rate:
            ys = _dropout(key, ys, dropout_rate)
        try:
            final, ys = _unroll_layer(layer, p, ys, s, key, merge, options)
        except (ValueError, TypeError) as error:
            error.args = (f"layer {depth}: {error}",)
            raise
        finals.append(final)
    return tuple(finals), ys


def _unroll_layer(
    layer: Layer, params: Params, xs: Any, state: Any, key: Key | None, merge: Merge, options: dict[str, Any]
) -> tuple[State, Array]:
    def run(direction, cell, params, state, **reverse):
        drawn = cell, params, xs
        if key is not None and cell.noise is not None:
            # Folded in after the layer's own: neither is the key of the dropout between layers.
            drawn = draw_masks(jax.random.fold_in(key, direction), *drawn)
        return unroll(*drawn, state, **reverse, **options)

    if isinstance(layer, Cell):
        return run(0, layer, params, state)
    state = (None, None) if state is None else state
    for name, given in (("params", params), ("state", state)):
        if type(given) not in (tuple, list):
            raise TypeError(f"{name} is {_named(given)}; wanted a pair, for the two cells of a bidirectional layer")
        if len(given) != 2:
            raise ValueError(f"{name} has {len(given)} entries; wanted 2, for the two cells of a bidirectional layer")
    ahead, ys_ahead = run(0, layer[0], params[0], state[0])
    back, ys_back = run(1, layer[1], params[1], state[1], reverse=True)
    return (ahead, back), _merged(ys_ahead, ys_back, merge)


def _merged(ahead: Array, back: Array, merge: Merge) -> Array:
    if merge == "concatenate":
        return jnp.concatenate([ahead, back], axis=-1)
    if ahead.shape != back.shape:  # which sum and product would spread over one another
        raise ValueError(
            f"merge is {merge!r}, and the outputs have shapes {ahead.shape} and {back.shape}; wanted the same"
        )
    return ahead * back if merge == "product" else (ahead + back) / (2 if merge == "mean" else 1)


def _named(given: Any) -> str:
    shape = getattr(given, "shape", None)  # under a trace the type would be that of a tracer
    return f"a {type(given).__name__}" if shape is None else f"an array of shape {shape}"


def _dropout(key: Key, ys: Array, rate: float) -> Array:
    kept = jax.random.bernoulli(key, 1 - rate, ys.shape)
    return jnp.where(kept, ys / (1 - rate), 0)


def merged_size(layer: Layer, params: Params, input_size: int, merge: Merge) -> int:
    """How many features a layer hands on; of its parameters, shapes and dtypes will do."""
    if isinstance(layer, Cell):
        return _output_size(layer, params, input_size)
    sizes = [_output_size(cell, p, input_size) for cell, p in zip(layer, params, strict=True)]
    return sum(sizes) if merge == "concatenate" else sizes[0]


def _output_size(cell: Cell, params: Params, input_size: int) -> int:
    if isinstance(cell.step, Recurrence):  # whose output is h, whatever its inputs look like
        return jax.eval_shape(cell.initial_state).h.shape[-1]
    dtype = dtype_of(params)
    x = jax.ShapeDtypeStruct((input_size,), dtype)
    _, y = jax.eval_shape(lambda params, x: cell.step(params, cell.begin(params, (), dtype), x), params, x)
    return y.shape[-1]


def _check_layers(layers: Sequence[Layer]) -> None:
    if isinstance(layers, Cell):
        raise TypeError("layers is a Cell; wanted a sequence, [cell]")
    if not len(layers):
        raise ValueError(f"layers is {layers!r}; wanted a sequence of at least one layer")
    for depth, layer in enumerate(layers):
        pair = isinstance(layer, tuple) and len(layer) == 2 and all(isinstance(c, Cell) for c in layer)
        if not (isinstance(layer, Cell) or pair):
            given = type(layer).__name__ + (f" of {len(layer)}" if isinstance(layer, tuple | list) else "")
            raise TypeError(f"layer {depth} is a {given}; wanted a Cell, or a tuple of two, forwards and backwards")


def _check_merge(merge: Any) -> None:
    if merge not in get_args(Merge):
        raise ValueError(f"merge is {merge!r}; wanted {', '.join(map(repr, get_args(Merge)))}")


def _check_dropout(rate: float, key: Key | None, noisy: bool) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"dropout_rate is {rate}; wanted 0 ≤ rate < 1")
    if (rate > 0) != (key is not None) and not (noisy and rate == 0):
        given = "no dropout_key" if key is None else "a dropout_key"
        raise ValueError(f"dropout_rate is {rate} with {given}; wanted both, or, to evaluate, neither")
