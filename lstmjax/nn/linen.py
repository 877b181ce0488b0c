"""Modules for Flax Linen: cells in place of ``flax.linen``'s own, and recurrent layers of any cell.

Cells take the fields, carries and calls of ``linen.LSTMCell``, ``linen.OptimizedLSTMCell``, ``linen.GRUCell``,
``linen.MGUCell``, ``linen.ConvLSTMCell`` and ``linen.SimpleCell``, and compute the same values from the same weights.
What differs is what is kept, and how drawn:

* Parameters are the core's, ``w_x [I, 4H]``, ``w_h [H, 4H]``, ``b [4H]``, in place of a kernel for each gate; each
  gate's block is still drawn by itself, and so orthogonal. ``params_from`` and ``variables_from`` lead to the core's
  named tuples and back.
* ``bias_init`` draws all of ``b`` at once: :func:`lstmjax.init.forget_bias` and :func:`lstmjax.init.chrono` fit.
* H is ``features``, so a carry of another size is an error; and a carry keeps its dtype.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import getitem
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as flax_linen
from flax.core import meta, unfreeze
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import unflatten_dict
from jaxtyping import Array

from lstmjax import init as initializers
from lstmjax.cells import Cell, ConvLSTMParams, GRUState, LSTMState, MGUParams, conv_lstm, mgu
from lstmjax.cells.build import GatedParams, Parts, forget_bias_init
from lstmjax.checks import whole_number
from lstmjax.gates import sigmoid, tanh
from lstmjax.nn import common
from lstmjax.nn.common import KERNEL_INIT, RECURRENT_KERNEL_INIT, described
from lstmjax.stack import Merge
from lstmjax.typing import Initializer, Key, Params, Shape


class _WithParams:
    """The way from variables to the core's parameters and back."""

    if TYPE_CHECKING:
        in_features: Any
        param_dtype: Any

    def params_from(self, variables: Any) -> Params:
        """The core's parameters out of variables.

        Args:
            variables: what ``init`` returned, or training made of it. Boxes of metadata are taken off.

        Returns:
            A cell's parameters; for a sequence module one entry a layer, a pair where bidirectional.

        Raises:
            ValueError: names or shapes are not this module's.
            TypeError: a dtype is not ``param_dtype``.
        """
        named = unfreeze(meta.unbox(variables))["params"]
        like = self._like(named)
        return self._unnamed(common.fitting(named, self._named(like), "variables['params']"), like)

    def variables_from(self, params: Params) -> dict[str, Any]:
        """Variables out of the core's parameters, such as converted weights.

        Args:
            params: a cell's parameters; for a sequence module one entry a layer, a pair where bidirectional.

        Returns:
            What ``init`` returns, without boxes of metadata.

        Raises:
            ValueError: structure or shapes are not this module's.
            TypeError: a dtype is not ``param_dtype``.
        """
        return {"params": self._named(common.fitting(params, self._like(params), "params"))}

    def _like(self, given: Any) -> Params:
        """What this module's parameters look like, for as many input features as are given: it does not know them."""
        if getattr(self, "in_features", None) is not None:
            return self._abstract(self.in_features)
        shapes = [(_names(path), jnp.shape(leaf)) for path, leaf in jax.tree.leaves_with_path(given)]
        one, two = (common.abstract(self._cell(), n, self.param_dtype) for n in (1, 2))
        for (path, of_one), of_two in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(two), strict=True):
            # The first that ends like this is of the first layer.
            shape = next((shape for names, shape in shapes if names[len(names) - len(path) :] == _names(path)), ())
            for size, n, m in zip(shape, of_one.shape, of_two.shape, strict=False):
                if n != m:
                    return self._abstract(max(1 + (size - n) // (m - n), 0))
        return self._abstract(1)

    def _cell(self) -> Cell:
        raise NotImplementedError

    def _abstract(self, in_features: int) -> Params:
        raise NotImplementedError

    def _named(self, params: Params) -> dict[str, Any]:
        raise NotImplementedError

    def _unnamed(self, named: dict[str, Any], like: Params) -> Params:
        raise NotImplementedError


class _Cell(_WithParams, common.OneStep, flax_linen.RNNCellBase):
    __call__ = flax_linen.compact(common.OneStep.__call__)

    @flax_linen.nowrap
    def initialize_carry(self, rng: Key, input_shape: Shape) -> Any:
        """The carry before the first step.

        Args:
            rng: where ``carry_init`` draws from.
            input_shape: ``(*B, I)``, the shape of one step's input.

        Returns:
            (c, h) for an LSTM, h for the others, each ``[*B, H]`` in ``param_dtype``.
        """
        leaves = len(self.kind.state._fields)
        keys = list(jax.random.split(rng, leaves)) if leaves > 1 else [rng]
        shape = (*input_shape[:-1], whole_number("features", self.features))
        return common.draw_carry(self.kind, self.carry_init, keys, shape, self.param_dtype)

    @flax_linen.nowrap
    def _operands(self, inputs: Any) -> tuple[Cell, Params, Array]:
        cell, in_features = self._cell(), jnp.shape(inputs)[-1]
        params = self._params_of(
            {
                name: self.param(name, draw, tuple(in_features if n is None else n for n in shape), self.param_dtype)
                for name, draw, shape in self._parts()
            }
        )
        inputs, *leaves = promote_dtype(inputs, *params, dtype=self.dtype)
        return cell, type(params)(*leaves), inputs

    @flax_linen.nowrap
    def _cell(self) -> Cell:
        activations = {"activation": self.activation_fn}
        if hasattr(self, "gate_fn"):
            activations["gate_activation"] = self.gate_fn
        return self.kind.build(whole_number("features", self.features), **activations)

    @flax_linen.nowrap
    def _parts(self) -> Parts:
        """How each variable is drawn."""
        inits = self.kernel_init, self.recurrent_kernel_init, self.bias_init
        return common.dense_parts(self.kind, self.features, *inits)

    @flax_linen.nowrap
    def _abstract(self, in_features: int) -> Params:
        return common.abstract(self._cell(), in_features, self.param_dtype)

    @flax_linen.nowrap
    def _named(self, params: Params) -> dict[str, Any]:
        return params._asdict()

    @flax_linen.nowrap
    def _unnamed(self, named: dict[str, Any], like: Params) -> Params:
        del like
        return self._params_of(named)

    @flax_linen.nowrap
    def _params_of(self, named: dict[str, Any]) -> Params:
        return self.kind.params(**named)


class _GatedCell(_Cell):
    features: int
    gate_fn: Callable[..., Any] = sigmoid
    activation_fn: Callable[..., Any] = tanh
    kernel_init: Initializer = KERNEL_INIT
    recurrent_kernel_init: Initializer = RECURRENT_KERNEL_INIT
    bias_init: Initializer = jax.nn.initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32
    carry_init: Initializer = jax.nn.initializers.zeros


@described
class LSTMCell(_GatedCell):
    """An LSTM cell, in place of ``linen.LSTMCell`` and ``linen.OptimizedLSTMCell``.

    Its forget bias starts at 0, as Flax's does; ``bias_init=lstmjax.init.forget_bias(1.0)`` makes that 1, where
    :class:`LSTM` and :func:`lstmjax.lstm` start.

    Args:
        features: H, the number of hidden units.
        gate_fn: elementwise, for the three gates.
        activation_fn: elementwise, for the candidate and on the way out of the cell state.
        {cell}
        carry_init: draws the leaves of a first carry.

    Raises:
        ValueError: when called: features is not a positive whole number.
        TypeError: when called: an activation cannot be called.

    >>> from flax import linen
    >>> layer = linen.RNN(LSTMCell(4))
    >>> ys, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 10, 3)))
    >>> ys.shape, variables["params"]["cell"]["w_h"].shape
    ((2, 10, 4), (4, 16))
    """

    kind = common.LSTM


OptimizedLSTMCell = LSTMCell
"""The same class: the weights of an :class:`LSTMCell` lie side by side already."""


class GRUCell(_GatedCell):
    """A GRU cell, in place of ``linen.GRUCell``.

    Args and Raises are those of :class:`LSTMCell`, ``gate_fn`` for the two gates, ``activation_fn`` for the candidate;
    ``bias_init`` draws ``b [3H]``; ``b_n [H]`` is the last third of a second such draw.

    >>> cell = GRUCell(4)
    >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
    >>> variables = cell.init(jax.random.key(1), carry, jnp.ones((2, 3)))
    >>> cell.params_from(variables).b_n.shape
    (4,)
    """

    kind = common.GRU


class SimpleCell(_Cell):
    """A vanilla RNN cell, in place of ``linen.SimpleCell``.

    Args and Raises are those of :class:`LSTMCell`, without ``gate_fn``.

    Args:
        residual: add h to its own pre-activation, `h' = φ(x W_x + h W_h + b + h)`.

    >>> cell = SimpleCell(4, residual=True)
    >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
    >>> (carry, y), variables = cell.init_with_output(jax.random.key(1), carry, jnp.ones((2, 3)))
    >>> y.shape, variables["params"]["w_h"].shape
    ((2, 4), (4, 4))
    """

    kind = common.RNN

    features: int
    activation_fn: Callable[..., Any] = tanh
    kernel_init: Initializer = KERNEL_INIT
    recurrent_kernel_init: Initializer = RECURRENT_KERNEL_INIT
    bias_init: Initializer = jax.nn.initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32
    carry_init: Initializer = jax.nn.initializers.zeros
    residual: bool = False


class MGUCell(_Cell):
    """A minimal gated unit, in place of ``linen.MGUCell``: see :func:`lstmjax.mgu`.

    Args and Raises are those of :class:`LSTMCell`, ``gate_fn`` for the one gate, ``activation_fn`` for the candidate,
    and two initialisers of biases, each ``[H]``, in place of one.

    Args:
        forget_bias_init: draws the gate's; default ones.
        activation_bias_init: draws the candidate's two; default zeros.
        reset_gate: whether the gate acts on the candidate. Without it there is no ``b_n``.

    >>> cell = MGUCell(4)
    >>> carry = cell.initialize_carry(jax.random.key(0), (2, 3))
    >>> variables = cell.init(jax.random.key(1), carry, jnp.ones((2, 3)))
    >>> cell.params_from(variables).b.tolist()
    [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """

    kind = common.Kind(mgu, MGUParams, GRUState, 2)

    features: int
    gate_fn: Callable[..., Any] = sigmoid
    activation_fn: Callable[..., Any] = tanh
    kernel_init: Initializer = KERNEL_INIT
    recurrent_kernel_init: Initializer = RECURRENT_KERNEL_INIT
    forget_bias_init: Initializer = jax.nn.initializers.ones
    activation_bias_init: Initializer = jax.nn.initializers.zeros
    dtype: Any = None
    param_dtype: Any = jnp.float32
    carry_init: Initializer = jax.nn.initializers.zeros
    reset_gate: bool = True

    @flax_linen.nowrap
    def _cell(self) -> Cell:
        size, gate = whole_number("features", self.features), self.gate_fn
        return mgu(size, reset_gate=self.reset_gate, gate_activation=gate, activation=self.activation_fn)

    @flax_linen.nowrap
    def _parts(self) -> Parts:
        biases = common.side_by_side(self.forget_bias_init, self.activation_bias_init)
        parts = common.dense_parts(self.kind, self.features, self.kernel_init, self.recurrent_kernel_init, biases)
        return parts if self.reset_gate else parts[:3]

    @flax_linen.nowrap
    def _params_of(self, named: dict[str, Any]) -> Params:
        return (MGUParams if self.reset_gate else GatedParams)(**named)


class ConvLSTMCell(_Cell):
    """A convolutional LSTM cell, in place of ``linen.ConvLSTMCell``: see :func:`lstmjax.conv_lstm`.

    Inputs are ``[*B, *S, I]`` with as many spatial axes as kernel_size has numbers; carries (c, h) are ``[*B, *S, H]``.
    The constant 1 that Flax adds to the forget gate is in ``b`` here: its forget bias starts at 1.

    Args:
        features: H, the number of features at every place.
        kernel_size: K, one to three numbers.
        strides: None, or ones: with others a state would not keep its size.
        padding: ``"SAME"`` or ``"CIRCULAR"``, which keep a state's size.
        use_bias: whether ``b`` is a variable; otherwise it stays as it starts.
        dtype: of the computation, inputs and parameters cast to it; None: promoted from them.
        param_dtype: of the parameters, and of the carries that ``initialize_carry`` makes.
        carry_init: draws the leaves of a first carry.

    Raises:
        ValueError: when called: a size is not a positive whole number, or strides or padding are others.

    >>> cell = ConvLSTMCell(4, (3, 3))
    >>> carry = cell.initialize_carry(jax.random.key(0), (2, 8, 8, 3))
    >>> (carry, y), variables = cell.init_with_output(jax.random.key(1), carry, jnp.ones((2, 8, 8, 3)))
    >>> y.shape, variables["params"]["w_h"].shape
    ((2, 8, 8, 4), (3, 3, 4, 16))
    """

    kind = common.Kind(conv_lstm, ConvLSTMParams, LSTMState, 4)

    features: int
    kernel_size: Sequence[int]
    strides: Sequence[int] | None = None
    padding: str | Sequence[tuple[int, int]] = "SAME"
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    carry_init: Initializer = jax.nn.initializers.zeros

    @property
    def num_feature_axes(self) -> int:
        """How many trailing axes of an input are features: those of space, and one."""
        return len(self.kernel_size) + 1

    @flax_linen.nowrap
    def variables_from(self, params: Params) -> dict[str, Any]:  # noqa: D102  # as above, and checks what it leaves out
        variables = super().variables_from(params)
        if not (self.use_bias or np.array_equal(params.b, self._first_bias())):
            raise ValueError(f"params.b is {params.b}; wanted {self._first_bias()}, which is fixed without use_bias")
        return variables

    @flax_linen.nowrap
    def _cell(self) -> Cell:
        if any(n != 1 for n in self.strides or ()):
            raise ValueError(f"strides are {self.strides}; wanted None, or ones, with which a state keeps its size")
        space = (1,) * len(self.kernel_size)  # of no matter to a step
        size = whole_number("features", self.features)
        return self.kind.build(size, space, kernel_size=tuple(self.kernel_size), padding=self.padding)

    @flax_linen.nowrap
    def _parts(self) -> Parts:
        width, kernel = 4 * self.features, tuple(self.kernel_size)
        parts = (
            ("w_x", KERNEL_INIT, (*kernel, None, width)),
            ("w_h", KERNEL_INIT, (*kernel, self.features, width)),
            ("b", initializers.forget_bias(1.0), (width,)),
        )
        return parts if self.use_bias else parts[:2]

    @flax_linen.nowrap
    def _named(self, params: Params) -> dict[str, Any]:
        return {name: leaf for name, leaf in params._asdict().items() if self.use_bias or name != "b"}

    @flax_linen.nowrap
    def _params_of(self, named: dict[str, Any]) -> Params:
        return self.kind.params(**({} if self.use_bias else {"b": self._first_bias()}), **named)

    @flax_linen.nowrap
    def _first_bias(self) -> Array:
        return initializers.forget_bias(1.0)(jax.random.key(0), (4 * self.features,), self.param_dtype)


class _Sequence(_WithParams, common.Layers, flax_linen.Module):
    _: dataclasses.KW_ONLY
    num_layers: int = 1
    bidirectional: bool = False
    merge: Merge = "concatenate"
    dropout_rate: float = 0.0
    deterministic: bool | None = None
    time_major: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    __call__ = flax_linen.compact(common.Layers.__call__)

    @flax_linen.nowrap
    def _params_to_begin(self, cell: Cell) -> tuple[Params, ...]:
        if cell.start is not None:
            raise ValueError(
                "the cell learns its initial state, which is among the variables; wanted no initial_carry in the call, "
                "or what cell.begin makes of params_from(variables)"
            )
        return self._each_layer(())

    @flax_linen.nowrap
    def _params(self, cell: Cell, xs: Any) -> tuple[Params, ...]:
        sizes = self._sizes(cell, self._in_features(cell, xs))
        like = common.abstract(cell, sizes[0], self.param_dtype)  # whose structure all have

        def drawn(name: str, size: int) -> Params:
            return _from_names(self.param(name, partial(_draw, cell, size, self.param_dtype)), like)

        return tuple(
            jax.tree.map(partial(drawn, size=size), names) for names, size in zip(self._names(), sizes, strict=True)
        )

    @flax_linen.nowrap
    def _in_features(self, cell: Cell, xs: Any) -> int:
        return jnp.shape(jax.tree.leaves(xs)[0])[-1]

    @flax_linen.nowrap
    def _draw_key(self) -> Key:
        return self.make_rng("dropout")

    @flax_linen.nowrap
    def _names(self) -> tuple[Any, ...]:
        """The names of each direction of each layer, in the form of the stack."""
        layers = range(whole_number("num_layers", self.num_layers))
        forward, backward = ([f"{way}_{depth}" for depth in layers] for way in ("forward", "backward"))
        return common.stack_form(forward, backward if self.bidirectional else [])

    @flax_linen.nowrap
    def _abstract(self, in_features: int) -> Params:
        cell = self._cell()
        sizes = self._sizes(cell, in_features)
        return tuple(
            jax.tree.map(lambda _, size=size: common.abstract(cell, size, self.param_dtype), names)
            for names, size in zip(self._names(), sizes, strict=True)
        )

    @flax_linen.nowrap
    def _named(self, params: Params) -> dict[str, Any]:
        names, structure = jax.tree.flatten(self._names())
        return {name: _by_name(p) for name, p in zip(names, structure.flatten_up_to(params), strict=True)}

    @flax_linen.nowrap
    def _unnamed(self, named: dict[str, Any], like: Params) -> Params:
        return jax.tree.map(lambda name, like: _from_names(named[name], like), self._names(), like)


def _draw(cell: Cell, in_features: int, dtype: Any, key: Key) -> Any:
    return _by_name(cell.init(key, in_features, dtype))


def _by_name(params: Params) -> Any:
    """A cell's parameters as dictionaries in one another; an array by itself stays one.

    >>> _by_name({"rates": (jnp.zeros(2), jnp.ones(2))})["rates"]["1"]
    Array([1., 1.], dtype=float32)
    """
    leaves = jax.tree.leaves_with_path(params, is_leaf=common.is_box)
    return unflatten_dict({("", *_names(path)): leaf for path, leaf in leaves}).get("", {})


def _from_names(named: Any, like: Params) -> Params:
    return jax.tree.map_with_path(lambda path, _: reduce(getitem, _names(path), named), like)


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)


@described
class Recurrent(_Sequence):
    """Layers of any cell over whole sequences: of the library, a wrapped one, or your own.

    The parameters are named ``params/forward_0/w_x`` and so on, after the cell's own, and ``backward_0`` where
    bidirectional. Where there is noise, of a cell such as ``lstmjax.zoneout(cell, 0.1)`` or dropout between layers, it
    is as in Flax: ``deterministic`` must be said, and the keys are those of the stream ``dropout``.

    Args:
        cell: a :class:`lstmjax.Cell`, the same in every layer and direction, each with parameters of its own; all other
            arguments go by name.
        in_features: I; default the last axis of the inputs, which those of a cell that reads symbols do not have.
        {sequence}

    Raises:
        ValueError: when called: a size is not a positive whole number.
        TypeError: when called: cell is no Cell.

    >>> import lstmjax
    >>> model = Recurrent(lstmjax.zoneout(lstmjax.learned_state(lstmjax.mgu(4)), 0.1))
    >>> variables = model.init(jax.random.key(0), jnp.ones((2, 10, 3)), deterministic=True)
    >>> key = jax.random.key(1)
    >>> (last,), ys = model.apply(variables, jnp.ones((2, 10, 3)), deterministic=False, rngs={"dropout": key})
    >>> last.h.shape, ys.shape, variables["params"]["forward_0"]["state"]["h"].shape
    ((2, 4), (2, 10, 4), (4,))
    """

    cell: Cell
    _: dataclasses.KW_ONLY
    in_features: int | None = None

    @flax_linen.nowrap
    def _cell(self) -> Cell:
        return common.checked(self.cell)

    @flax_linen.nowrap
    def _in_features(self, cell: Cell, xs: Any) -> int:
        if self.in_features is not None:
            return whole_number("in_features", self.in_features, 0)
        if not cell.num_feature_axes:
            raise ValueError("in_features is None; wanted a number, since the cell's inputs have no axis that says it")
        return super()._in_features(cell, xs)


class _Dense(_Sequence):
    kind: ClassVar[common.Kind]

    features: int
    _: dataclasses.KW_ONLY
    kernel_init: Initializer = KERNEL_INIT
    recurrent_kernel_init: Initializer = RECURRENT_KERNEL_INIT
    bias_init: Initializer | None = None

    @flax_linen.nowrap
    def _cell(self) -> Cell:
        hidden = whole_number("features", self.features)
        activations = {"activation": self.activation} if hasattr(self, "activation") else {}
        inits = self.kernel_init, self.recurrent_kernel_init, self._bias_init()
        parts = common.dense_parts(self.kind, hidden, *inits)
        return common.drawn_by(self.kind.build(hidden, **activations), self.kind, parts)

    @flax_linen.nowrap
    def _bias_init(self) -> Initializer:
        return self.bias_init or initializers.zeros


@described
class LSTM(_Dense, kw_only=True):
    """LSTM layers over whole sequences: :class:`Recurrent` of :func:`lstmjax.lstm`.

    The forget bias starts at 1, as that of :func:`lstmjax.lstm`; :class:`LSTMCell`'s starts at 0, as Flax's does.

    Args:
        features: H, the number of hidden units; all other arguments go by name.
        {dense}
        options: those of :class:`Recurrent`.

    Raises:
        ValueError: when called: a size is not a positive whole number, or both forget_bias and bias_init are given.

    >>> model = LSTM(4, num_layers=2)
    >>> variables = model.init(jax.random.key(0), jnp.ones((2, 10, 3)))
    >>> (first, last), ys = model.apply(variables, jnp.ones((2, 10, 3)), seq_lengths=jnp.array([10, 7]))
    >>> last.c.shape, ys.shape, model.params_from(variables)[1].w_x.shape
    ((2, 4), (2, 10, 4), (4, 16))
    """

    kind = common.LSTM

    forget_bias: float | None = None

    @flax_linen.nowrap
    def _bias_init(self) -> Initializer:
        return forget_bias_init(self.forget_bias, self.bias_init, "bias_init")


class GRU(_Dense, kw_only=True):
    """GRU layers over whole sequences: :class:`Recurrent` of :func:`lstmjax.gru`.

    Args and Raises are those of :class:`LSTM`, without ``forget_bias``; ``bias_init`` draws ``b [3H]``, and
    ``b_n`` as in :class:`GRUCell`; default zeros.

    >>> model = GRU(4, bidirectional=True, time_major=True)
    >>> (((forward, backward),), ys), _ = model.init_with_output(jax.random.key(0), jnp.ones((10, 2, 3)))
    >>> backward.h.shape, ys.shape
    ((2, 4), (10, 2, 8))
    """

    kind = common.GRU


class RNN(_Dense, kw_only=True):
    """Vanilla RNN layers over whole sequences; Flax's ``linen.RNN`` is a scan over any cell, as :class:`Recurrent` is.

    Args and Raises are those of :class:`LSTM`, without ``forget_bias``; ``bias_init`` draws ``b [H]``, default zeros.

    Args:
        activation: φ, an elementwise function.

    >>> (_, ys), _ = RNN(4, activation=jax.nn.relu).init_with_output(jax.random.key(0), jnp.ones((2, 10, 3)))
    >>> ys.shape
    (2, 10, 4)
    """

    kind = common.RNN

    activation: Callable[..., Any] = tanh
