"""What the NNX and the Linen modules share: all but the owning of parameters.

Parameters have the core's names and layout, ``w_x [I, N]``, ``w_h [H, N]``, ``b [N]`` with N = 4H for an LSTM, 3H for a
GRU, H for a vanilla RNN, and for a GRU also ``b_n [H]``.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.nnx import VariableMetadata
from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells import (
    Cell,
    GRUParams,
    GRUState,
    LSTMParams,
    LSTMState,
    RNNParams,
    RNNState,
    gru,
    lstm,
    rnn,
)
from lstmjax.cells.base import forget_bias_init, wide
from lstmjax.checks import whole_number
from lstmjax.stack import unroll_stack
from lstmjax.typing import Initializer, Key, Params, Shape, State
from lstmjax.unroll import Implementation

KERNEL_INIT = jax.nn.initializers.lecun_normal()
RECURRENT_KERNEL_INIT = initializers.orthogonal()


class Kind(NamedTuple):
    """A cell of the core, and what a module has to know of it.

    Attributes:
        build: ``(hidden_size, **activations) -> Cell``.
        params: its named tuple of parameters.
        state: its named tuple of state.
        gates: N/H.
    """

    build: Callable[..., Cell]
    params: Any
    state: Any
    gates: int


LSTM = Kind(lstm, LSTMParams, LSTMState, 4)
GRU = Kind(gru, GRUParams, GRUState, 3)
RNN = Kind(rnn, RNNParams, RNNState, 1)


def blueprint(
    kind: Kind,
    in_features: int,
    hidden_features: int,
    kernel_init: Initializer,
    recurrent_kernel_init: Initializer,
    bias_init: Initializer,
) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
    """Each parameter's initialiser and shape, by name, in the order of the named tuple.

    Kernels are drawn gate by gate. A bias is drawn whole, so that :func:`lstmjax.init.forget_bias` and
    :func:`lstmjax.init.chrono` can be handed in; for Flax's own initialisers of biases it is all the same. A GRU's
    ``b_n`` is the last third of a second such draw.
    """
    width = kind.gates * hidden_features
    parts = {
        "w_x": (each_gate(kernel_init, kind.gates), (in_features, width)),
        "w_h": (each_gate(recurrent_kernel_init, kind.gates), (hidden_features, width)),
        "b": (bias_init, (width,)),
        "b_n": (last_gate(bias_init, kind.gates), (hidden_features,)),
    }
    return {name: parts[name] for name in kind.params._fields}


def abstract(kind: Kind, parts: dict[str, tuple[Initializer, tuple[int, ...]]], dtype: Any) -> Params:
    """What the parameters of a :func:`blueprint` look like, none drawn."""
    return kind.params(**{name: jax.ShapeDtypeStruct(shape, dtype) for name, (_, shape) in parts.items()})


def each_gate(initializer: Initializer, gates: int) -> Callable[..., Any]:
    """:func:`lstmjax.init.per_gate` for initialisers that may return their array in one of Flax's boxes of metadata.

    The blocks are unboxed and laid side by side, and what holds them is boxed as the first of them was.

    >>> from flax import linen
    >>> boxed = linen.with_partitioning(initializers.orthogonal(), (None, "model"))
    >>> w_h = each_gate(boxed, 4)(jax.random.key(0), (3, 12), jnp.float32)
    >>> w_h.names, w_h.value.shape
    ((None, 'model'), (3, 12))
    """

    def init(key, shape, dtype=jnp.float32):
        rebox = []

        def draw(*args):
            array, put_back = _unboxed(initializer(*args))
            rebox.append(put_back)
            return array

        array = initializers.per_gate(draw, gates)(key, shape, dtype)
        return rebox[0](array)

    return init


def last_gate(initializer: Initializer, gates: int) -> Callable[..., Any]:
    """A candidate's second bias ``[H]``: the last block of a draw of all gates', ``[gates·H]``, in the same box."""

    def init(key, shape, dtype=jnp.float32):
        array, put_back = _unboxed(initializer(key, (gates * shape[-1],), dtype))
        return put_back(array[-shape[-1] :])

    return init


def _unboxed(value: Any) -> tuple[Array, Callable[[Array], Any]]:
    """An initialiser's array, and how to put another in its box."""
    if isinstance(value, VariableMetadata):
        return value.raw_value, lambda array: dataclasses.replace(value, raw_value=array)
    # Linen's boxes are pytrees of one leaf, and a bare array is its own leaf.
    (array,), box = jax.tree.flatten(value)
    return array, lambda array: jax.tree.unflatten(box, [array])


def stack_bias_init(kind: Kind, bias_init: Initializer | None, forget_bias: float | None = None) -> Initializer:
    """A sequence module's initialiser of biases: as given, else zeros, with an LSTM's forget bias of 1 unless told."""
    if kind is LSTM:
        return forget_bias_init(forget_bias, bias_init, "bias_init")
    return bias_init or initializers.zeros


def input_sizes(in_features: int, hidden_features: int, num_layers: int, bidirectional: bool) -> list[int]:
    """I of every layer of a stack."""
    layers = whole_number("num_layers", num_layers)
    return [in_features] + [(2 if bidirectional else 1) * hidden_features] * (layers - 1)


def stack_form(forward: Sequence[Any], backward: Sequence[Any]) -> tuple[Any, ...]:
    """One entry a layer; where there are backward cells, a pair."""
    return tuple(zip(forward, backward, strict=True)) if backward else tuple(forward)


def fitting(given: Any, expected: Any, name: str) -> Any:
    """``given`` as JAX arrays, where it is like ``expected`` in structure, shapes and dtypes.

    Raises:
        ValueError: structure or a shape differs.
        TypeError: a dtype differs.

    >>> fitting(RNNState(jnp.ones(2)), RNNState(jnp.zeros(3)), "state")
    Traceback (most recent call last):
        ...
    ValueError: state.h has shape (2,); wanted (3,)
    """
    structure, wanted = jax.tree.structure(given), jax.tree.structure(expected)
    if structure != wanted:
        words = _in_words(given), _in_words(expected)
        if None not in words and words[0] != words[1]:
            raise ValueError(f"{name} are {words[0]}; wanted {words[1]}")
        raise ValueError(f"{name} has structure {structure}; wanted {wanted}")
    given = jax.tree.map(jnp.asarray, given)
    for (path, leaf), like in zip(jax.tree.leaves_with_path(given), jax.tree.leaves(expected), strict=True):
        leaf_name = name + jax.tree_util.keystr(path)
        if leaf.shape != like.shape:
            raise ValueError(f"{leaf_name} has shape {leaf.shape}; wanted {like.shape}")
        if leaf.dtype != like.dtype:
            raise TypeError(f"{leaf_name} has dtype {leaf.dtype}; wanted {like.dtype}")
    return given


def _in_words(params: Any) -> str | None:
    """A cell's parameters by their type, a stack's by layers and directions, as its first layer has them.

    >>> both = RNNParams(*jnp.ones((3, 1))), RNNParams(*jnp.ones((3, 1)))
    >>> _in_words(both), _in_words((both,)), _in_words({})
    ('2 layers of RNNParams', '1 bidirectional layer of RNNParams', None)
    """
    if hasattr(params, "_fields"):
        return type(params).__name__
    if not isinstance(params, tuple) or not params:
        return None
    pair = type(params[0]) is tuple and len(params[0]) == 2
    kind = type(params[0][0] if pair else params[0]).__name__
    return f"{len(params)} {'bidirectional ' if pair else ''}layer{'s' if len(params) > 1 else ''} of {kind}"


def draw_carry(kind: Kind, initializer: Initializer, keys: Sequence[Any], shape: Shape, dtype: Any) -> Any:
    """A cell's carry, each leaf of the shape and with a key of its own."""
    return as_carry(kind.state(*(initializer(key, shape, dtype) for key in keys)))


def as_state(kind: Kind, carry: Any) -> State:
    """The core's state for a Flax carry: (c, h) for an LSTM, else h by itself. A state is taken as it is."""
    if isinstance(carry, kind.state):
        return carry
    return kind.state(*carry) if len(kind.state._fields) > 1 else kind.state(carry)


def as_carry(state: State) -> Any:
    """The Flax carry for a state of the core."""
    return tuple(state) if len(state) > 1 else state[0]


def step(kind: Kind, cell: Cell, params: Params, carry: Any, x: Array, residual: bool = False) -> tuple[Any, Array]:
    """One step of a module, in Flax's order: (carry, x) -> (carry, y). The carry comes back as it was handed in."""
    if residual:  # h joins its own pre-activation: hW_h + h = h(W_h + 1)
        params = params._replace(w_h=params.w_h + jnp.eye(params.w_h.shape[0], dtype=params.w_h.dtype))
    state, y = cell.step(params, as_state(kind, carry), x)
    return (state if isinstance(carry, kind.state) else as_carry(state)), y


class Stack(NamedTuple):
    """A sequence module but for its parameters.

    Attributes:
        cell: the core's cell, the same in every layer and direction.
        num_layers: layers.
        bidirectional: whether each is a pair of directions.
        dropout_rate: the share of each layer's outputs, the last's excepted, that a dropout key sets to zero.
        time_major: whether sequences are ``[T, *B, ...]``, or ``[*B, T, ...]``.
        dtype: of the computation, or None: promoted from inputs and parameters.
        param_dtype: of the parameters.
    """

    cell: Cell
    num_layers: int
    bidirectional: bool
    dropout_rate: float
    time_major: bool
    dtype: Any
    param_dtype: Any

    def initialize_carry(self, batch_shape: Shape = ()) -> tuple[State, ...]:
        """Zero states, one entry a layer, each leaf ``[*B, H]``, in float32 at least."""
        state = self.cell.initial_state(tuple(batch_shape), wide(self.param_dtype))
        return self._each_layer(state)

    def __call__(
        self,
        params: Params,
        xs: Any,
        *,
        initial_carry: Any,
        lengths: Any,
        mask: Any,
        resets: Any,
        dropout_key: Key | None,
        remat_block: int | None,
        scan_unroll: int | None,
        implementation: Implementation,
    ) -> tuple[tuple[State, ...], Array]:
        """Runs the stack: see ``LSTM.__call__`` of either framework."""
        xs = jnp.asarray(xs)
        mask, resets = self._flags("mask", mask, xs), self._flags("resets", resets, xs)
        if jnp.issubdtype(xs.dtype, jnp.floating):  # others are an error, which the core raises
            leaves, structure = jax.tree.flatten(params)
            xs, *leaves = promote_dtype(xs, *leaves, dtype=self.dtype)
            params = jax.tree.unflatten(structure, leaves)
        xs = self._turned(xs, -2, 0)
        carry, ys = unroll_stack(
            self._each_layer(self.cell), params, xs, initial_carry,
            dropout_rate=self.dropout_rate if dropout_key is not None else 0.0, dropout_key=dropout_key,
            lengths=lengths, mask=mask, resets=resets,
            remat_block=remat_block, scan_unroll=scan_unroll, implementation=implementation,
        )  # fmt: skip
        return carry, self._turned(ys, 0, -2)

    def _each_layer(self, entry: Any) -> tuple[Any, ...]:
        return ((entry, entry) if self.bidirectional else entry,) * self.num_layers

    def _turned(self, sequence: Array, source: int, destination: int) -> Array:
        """A sequence with its time axis moved, between the module's layout and the core's."""
        if self.time_major or sequence.ndim < 2:  # too few axes are an error, which the core raises
            return sequence
        return jnp.moveaxis(sequence, source, destination)

    def _flags(self, name: str, flags: Any, xs: Array) -> Array | None:
        if flags is None:
            return None
        flags = jnp.asarray(flags)
        if flags.shape != xs.shape[:-1]:
            raise ValueError(f"{name} has shape {flags.shape}; wanted {xs.shape[:-1]}, the axes of xs but the last")
        return self._turned(flags[..., None], -2, 0)[..., 0]
