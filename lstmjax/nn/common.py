"""What the NNX and the Linen modules share: all but the owning of parameters.

Parameters have the core's names and layout, ``w_x [I, N]``, ``w_h [H, N]``, ``b [N]`` with `N = 4H` for an LSTM, `3H`
for a GRU, H for a vanilla RNN, and for a GRU also ``b_n [H]``.
"""

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core.meta import AxisMetadata
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
from lstmjax.cells.base import wide
from lstmjax.cells.build import Parts, draw_params
from lstmjax.checks import whole_number
from lstmjax.functions import Partial
from lstmjax.stack import Merge, merged_size, unroll_stack
from lstmjax.typing import Initializer, Key, Params, Shape, State
from lstmjax.unroll import Implementation

KERNEL_INIT = jax.nn.initializers.lecun_normal()
RECURRENT_KERNEL_INIT = initializers.orthogonal()


# What docstrings of both frameworks say, in the place of a line that holds one of these names in braces.

TEXTS = {
    "cell": """
        kernel_init: draws ``[I, H]`` for each gate.
        recurrent_kernel_init: draws ``[H, H]`` for each gate.
        bias_init: draws ``[4H]``, the forget bias included; default zeros.
        dtype: of the computation, inputs and parameters cast to it; None: promoted from them.
        param_dtype: of the parameters, and of the carries that ``initialize_carry`` makes.
    """,
    "sequence": """
        num_layers: layers, one over the outputs of another.
        bidirectional: run each layer in both directions.
        merge: what becomes of the two directions' outputs: ``"concatenate"``, 2H features, forwards first; or their
            ``"sum"``, ``"mean"`` or ``"product"``, H features.
        dropout_rate: the share of each layer's outputs, the last's excepted, that is set to zero in training.
        deterministic: evaluate, without dropout or a cell's noise. The call's own, where given, comes first.
        time_major: sequences are ``[T, *B, I]``, not ``[*B, T, I]``.
        dtype: of the computation, inputs and parameters cast to it; None: promoted from them. The carry and the
            outputs keep the dtype of ``initial_carry``; by default that is float32 at least.
        param_dtype: of the parameters.
    """,
    "dense": """
        kernel_init, recurrent_kernel_init: as for :class:`LSTMCell`.
        bias_init: draws ``[4H]``, in place of ``forget_bias``.
        forget_bias: the forget gate's initial bias, default 1.0, as for :func:`lstmjax.lstm`; other biases are 0.
    """,
}


def described(cls: type) -> type:
    """Writes the shared texts into a class's docstring.

    >>> @described
    ... class Module:
    ...     '''A module.
    ...
    ...     Args:
    ...         {dense}
    ...     '''
    >>> print(Module.__doc__.splitlines()[4])
        bias_init: draws ``[4H]``, in place of ``forget_bias``.
    """
    doc = inspect.cleandoc(cls.__doc__ or "")
    for name, text in TEXTS.items():
        doc = doc.replace(f"    {{{name}}}", textwrap.indent(inspect.cleandoc(text), "    "))
    cls.__doc__ = doc
    return cls


# Cells, as Flax's arguments say them.


class Kind(NamedTuple):
    """A cell of the core, and what a module has to know of it.

    Attributes:
        build: ``(hidden_size, **activations) -> Cell``.
        params: its named tuple of parameters.
        state: its named tuple of state.
        gates: `N/H`.
    """

    build: Callable[..., Cell]
    params: Any
    state: Any
    gates: int


LSTM = Kind(lstm, LSTMParams, LSTMState, 4)
GRU = Kind(gru, GRUParams, GRUState, 3)
RNN = Kind(rnn, RNNParams, RNNState, 1)


def dense_parts(
    kind: Kind,
    hidden_features: int,
    kernel_init: Initializer,
    recurrent_kernel_init: Initializer,
    bias_init: Initializer,
) -> Parts:
    """How each parameter is drawn.

    Kernels are drawn gate by gate. A bias is drawn whole, so that :func:`lstmjax.init.forget_bias` and
    :func:`lstmjax.init.chrono` can be handed in; for Flax's own initialisers of biases it is all the same. A GRU's
    ``b_n`` is the last third of a second such draw.
    """
    width = kind.gates * hidden_features
    parts = (
        ("w_x", side_by_side(*[kernel_init] * kind.gates), (None, width)),
        ("w_h", side_by_side(*[recurrent_kernel_init] * kind.gates), (hidden_features, width)),
        ("b", bias_init, (width,)),
        ("b_n", last_gate(bias_init, kind.gates), (hidden_features,)),
    )
    return tuple(part for part in parts if part[0] in kind.params._fields)


def drawn_by(cell: Cell, kind: Kind, parts: Parts) -> Cell:
    """The cell, its parameters drawn as the parts say."""
    return cell.replace(init=Partial(draw_params, kind=kind.params, parts=parts))


def abstract(cell: Cell, in_features: int, dtype: Any) -> Params:
    """What the cell's parameters look like, none drawn."""
    return jax.eval_shape(lambda: unboxed(cell.init(jax.random.key(0), in_features, dtype)))


def side_by_side(*inits: Initializer) -> Initializer:
    """An initialiser that draws a block for each gate; each may return its array in one of Flax's boxes of metadata.

    What holds all blocks is boxed as the first of them was.

    >>> from flax import linen
    >>> boxed = linen.with_partitioning(initializers.orthogonal(), (None, "model"))
    >>> w_h = side_by_side(*[boxed] * 4)(jax.random.key(0), (3, 12), jnp.float32)
    >>> w_h.names, w_h.value.shape
    ((None, 'model'), (3, 12))
    """

    def init(key, shape, dtype=jnp.float32):
        block, keys = (*shape[:-1], shape[-1] // len(inits)), jax.random.split(key, len(inits))
        drawn = [_unboxed(draw(k, block, dtype)) for k, draw in zip(keys, inits, strict=True)]
        return drawn[0][1](jnp.concatenate([array for array, _ in drawn], axis=-1))

    return init


def last_gate(initializer: Initializer, gates: int) -> Initializer:
    """A candidate's second bias ``[H]``: the last block of a draw of all gates', ``[gates·H]``, in the same box."""

    def init(key, shape, dtype=jnp.float32):
        array, put_back = _unboxed(initializer(key, (gates * shape[-1],), dtype))
        return put_back(array[-shape[-1] :])

    return init


def is_box(value: Any) -> bool:
    """Whether a value is an array with Flax's metadata about it."""
    return isinstance(value, AxisMetadata | VariableMetadata)


def unboxed(tree: Any) -> Any:
    """The tree with its arrays taken out of their boxes."""
    return jax.tree.map(lambda value: _unboxed(value)[0], tree, is_leaf=is_box)


def _unboxed(value: Any) -> tuple[Any, Callable[[Array], Any]]:
    """An initialiser's array, and how to put another in its box."""
    if isinstance(value, VariableMetadata):
        return value.raw_value, lambda array: dataclasses.replace(value, raw_value=array)
    # Linen's boxes are pytrees of one leaf, and a bare array is its own leaf.
    (array,), box = jax.tree.flatten(value)
    return array, lambda array: jax.tree.unflatten(box, [array])


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


class OneStep:
    """What a cell is in both frameworks, but for its parameters."""

    kind: ClassVar[Kind]

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Array]:
        """One step.

        Args:
            carry: (c, h) for an LSTM, h for the others, each ``[*B, H]``.
            inputs: ``[*B, I]``.

        Returns:
            The new carry, of the kind and dtype it came in, and the output ``[*B, H]``, the new h.
        """
        cell, params, inputs = self._operands(inputs)
        if getattr(self, "residual", False):  # h joins its own pre-activation: hW_h + h = h(W_h + 1)
            params = params._replace(w_h=params.w_h + jnp.eye(params.w_h.shape[0], dtype=params.w_h.dtype))
        state, y = cell.step(params, as_state(self.kind, carry), inputs)
        return (state if isinstance(carry, self.kind.state) else as_carry(state)), y

    def _operands(self, inputs: Any) -> tuple[Cell, Params, Array]:
        """The core's cell, and its parameters and the inputs in the dtype of the computation."""
        raise NotImplementedError

    @property
    def num_feature_axes(self) -> int:
        """How many trailing axes of an input are features."""
        return 1


# Sequences.


class Layers:
    """What a sequence module is in both frameworks, but for its parameters and its random keys."""

    if TYPE_CHECKING:
        num_layers: int
        bidirectional: bool
        merge: Merge
        dropout_rate: float
        deterministic: bool | None
        time_major: bool
        dtype: Any
        param_dtype: Any

    def __call__(
        self,
        xs: Any,
        *,
        seq_lengths: Any = None,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Any = None,
        deterministic: bool | None = None,
        remat_block: int | None = None,
        scan_unroll: int | None = None,
        implementation: Implementation = None,
    ) -> tuple[tuple[State, ...], Any]:
        """Runs a sequence.

        Args:
            xs: ``[*B, T, I]``, or ``[T, *B, I]`` where time-major; any number of batch axes, floating. For a cell
                whose inputs are others, such as images ``[*S, I]``, these in place of ``[I]``.
            seq_lengths: ``[*B]`` whole numbers from 0 to T: how many steps each row takes.
            mask: booleans, ``[*B, T]`` or ``[T, *B]``. Where False, the step is skipped.
            resets: likewise. Where True, the state is the initial one again before the step.
            initial_carry: as ``initialize_carry`` makes it, or a call returned it; default the cell's initial state,
                zero or learned. Its dtypes are kept throughout.
            deterministic: evaluate, without dropout or a cell's noise; default the module's own. It matters only where
                there is either.
            remat_block, scan_unroll, implementation: as for :func:`lstmjax.unroll`.

        Returns:
            The carry after each row's last step, one state a layer, a pair where bidirectional; and the outputs of the
            last layer, ``[*B, T, H]`` or ``[T, *B, H]``, zero where a step was skipped; 2H where two directions stand
            side by side.

        Raises:
            ValueError: an argument has the wrong shape, structure or value; or there is noise, and ``deterministic``
                is given neither here nor to the module.
            TypeError: an argument has the wrong dtype.
        """
        cell = self._cell()
        if any(not hasattr(leaf, "shape") for leaf in jax.tree.leaves(xs)):
            xs = np.asarray(xs)
        key = self._key(cell, deterministic)
        params, xs = _promoted((self._params(cell, xs), jax.tree.map(jnp.asarray, xs)), self.dtype)
        shape = jnp.shape(jax.tree.leaves(xs)[0])
        # Too few axes are an error, which the core raises.
        time = 0 if self.time_major else max(len(shape) - cell.num_feature_axes - 1, 0)
        steps_and_batch = shape[: len(shape) - cell.num_feature_axes]
        carry, ys = unroll_stack(
            self._each_layer(cell), params, _moved(xs, time, 0), initial_carry, merge=self.merge,
            dropout_rate=self.dropout_rate if key is not None else 0.0, dropout_key=key, lengths=seq_lengths,
            mask=_flags("mask", mask, steps_and_batch, time), resets=_flags("resets", resets, steps_and_batch, time),
            remat_block=remat_block, scan_unroll=scan_unroll, implementation=implementation,
        )  # fmt: skip
        return carry, _moved(ys, 0, time)

    def initialize_carry(self, batch_shape: Shape = ()) -> tuple[State, ...]:
        """The carry before the first step, zero or, in NNX, learned.

        Args:
            batch_shape: the batch axes ``*B``.

        Returns:
            One state a layer, a pair where bidirectional, each leaf ``[*B, H]``, in ``param_dtype`` or float32,
            whichever is wider.

        Raises:
            ValueError: the cell learns its initial state, which a Linen module has not without variables.
        """
        cell = self._cell()

        def begin(cell: Cell, params: Params) -> State:
            return cell.begin(params, tuple(batch_shape), wide(self.param_dtype))

        params = self._params_to_begin(cell)
        return jax.tree.map(begin, self._each_layer(cell), params, is_leaf=lambda entry: entry is cell)

    def _cell(self) -> Cell:
        """The core's cell, the same in every layer and direction."""
        raise NotImplementedError

    def _params(self, cell: Cell, xs: Any) -> tuple[Params, ...]:
        """The parameters, one entry a layer, a pair where bidirectional."""
        raise NotImplementedError

    def _params_to_begin(self, cell: Cell) -> tuple[Params, ...]:
        """The parameters that say where a cell begins."""
        raise NotImplementedError

    def _draw_key(self) -> Key:
        """A new key for dropout and noise."""
        raise NotImplementedError

    def _has_noise(self, cell: Cell) -> bool:
        return self.dropout_rate != 0 or cell.noise is not None

    def _key(self, cell: Cell, deterministic: bool | None) -> Key | None:
        if not self._has_noise(cell):
            return None
        deterministic = self.deterministic if deterministic is None else deterministic
        if deterministic is None:
            raise ValueError("deterministic is None; wanted True, to evaluate, or False, to train with noise")
        return None if deterministic else self._draw_key()

    def _sizes(self, cell: Cell, in_features: int) -> list[int]:
        """I of every layer."""
        layers = whole_number("num_layers", self.num_layers)
        if layers == 1:
            return [in_features]
        layer, params = cell, abstract(cell, in_features, self.param_dtype)
        if self.bidirectional:
            layer, params = (cell, cell), (params, params)
        above = merged_size(layer, params, in_features, self.merge)
        return [in_features] + [above] * (layers - 1)

    def _each_layer(self, entry: Any) -> tuple[Any, ...]:
        return ((entry, entry) if self.bidirectional else entry,) * whole_number("num_layers", self.num_layers)


def checked(cell: Any) -> Cell:
    """The cell, which a module was given.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"cell is a {type(cell).__name__}; wanted a Cell, such as lstmjax.lstm(64)")
    return cell


def stack_form(forward: Sequence[Any], backward: Sequence[Any]) -> tuple[Any, ...]:
    """One entry a layer; where there are backward cells, a pair."""
    return tuple(zip(forward, backward, strict=True)) if backward else tuple(forward)


def _promoted(tree: Any, dtype: Any) -> Any:
    """The tree with its floating leaves in one dtype: that which is given, or the one they promote to."""
    leaves, structure = jax.tree.flatten(tree)
    floating = [n for n, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    promoted = promote_dtype(*(leaves[n] for n in floating), dtype=dtype)
    for n, leaf in zip(floating, promoted, strict=True):
        leaves[n] = leaf
    return jax.tree.unflatten(structure, leaves)


def _moved(sequence: Any, source: int, destination: int) -> Any:
    """Arrays with their time axis moved, between the module's layout and the core's."""
    return jax.tree.map(partial(jnp.moveaxis, source=source, destination=destination), sequence)


def _flags(name: str, flags: Any, shape: Shape, time: int) -> Array | None:
    if flags is None:
        return None
    flags = jnp.asarray(flags)
    if flags.shape != shape:
        raise ValueError(f"{name} has shape {flags.shape}; wanted {shape}, the axes of xs but the features")
    return jnp.moveaxis(flags, time, 0)


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
