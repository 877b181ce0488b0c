"""Modules for Flax NNX: cells in place of ``flax.nnx``'s own, and whole recurrent layers of any cell.

Cells take the constructor arguments, carries and calls of ``nnx.LSTMCell``, ``nnx.OptimizedLSTMCell``, ``nnx.GRUCell``
and ``nnx.SimpleCell``, and compute the same values from the same weights. What differs is what is kept, and how drawn:

* Parameters are the core's: ``w_x [I, 4H]``, ``w_h [H, 4H]``, ``b [4H]``.
* Kernels are drawn for each gate by itself, so that every gate's recurrent block is orthogonal.
  ``nnx.OptimizedLSTMCell`` and ``nnx.GRUCell`` draw one matrix over all gates, whose blocks have smaller singular
  values, and gradients that decay faster.
* ``bias_init`` draws all of ``b`` at once: :func:`lstmjax.init.forget_bias` and :func:`lstmjax.init.chrono` fit.
* ``GRUCell`` has the candidate's recurrent bias ``b_n``, which is in ``nnx.GRUCell``'s equations and not in its code.
* ``initialize_carry`` wants random keys only where a ``carry_init`` is given; and a carry keeps its dtype.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx as flax_nnx
from flax.nnx.nn.dtypes import promote_dtype as flax_promote_dtype
from jaxtyping import Array

from lstmjax.cells import Cell
from lstmjax.cells.build import forget_bias_init
from lstmjax.checks import whole_number
from lstmjax.gates import sigmoid, tanh
from lstmjax.init import zeros
from lstmjax.nn import common
from lstmjax.nn.common import KERNEL_INIT, RECURRENT_KERNEL_INIT, described
from lstmjax.stack import Merge
from lstmjax.typing import Initializer, Key, Params, Shape

NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class _Module:
    """What cells and sequences share: errors of construction that name the class, and the property ``params``."""

    def __new__(cls, *args: Any, **options: Any):
        """Refuses unknown and missing arguments by the name of the class that was called, which Python would not."""
        if args or options:  # neither where a module is copied
            try:
                _signature(cls).bind(*args, **options)
            except TypeError as error:
                raise TypeError(f"{cls.__name__}: {error}; wanted {', '.join(_signature(cls).parameters)}") from None
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        """Assignment to ``params`` goes to the property; NNX would take it for a new attribute."""
        if name == "params":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def _signature(cls: type) -> inspect.Signature:
    """The arguments of a class: those of its ``__init__``, and of the one above to which that hands ``**options``."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base):
            _, *own = inspect.signature(vars(base)["__init__"]).parameters.values()
            if parameters:  # ``**options`` hand on what goes by name
                own = [p for p in own if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
            parameters = {p.name: p for p in own if p.kind is not p.VAR_KEYWORD} | parameters
            if all(p.kind is not p.VAR_KEYWORD for p in own):
                break
    return inspect.Signature(sorted(parameters.values(), key=lambda p: p.kind))


class _Cell(_Module, common.OneStep, flax_nnx.RNNCellBase):
    residual = False

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        gate_fn: Callable[..., Any] | None = sigmoid,
        activation_fn: Callable[..., Any] = tanh,
        kernel_init: Initializer = KERNEL_INIT,
        recurrent_kernel_init: Initializer = RECURRENT_KERNEL_INIT,
        bias_init: Initializer = jax.nn.initializers.zeros,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        carry_init: Initializer | None = None,
        promote_dtype: Callable[..., Any] = flax_promote_dtype,
        keep_rngs: bool = False,
        rngs: flax_nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        self.in_features = whole_number("in_features", in_features, 0)
        self.hidden_features = whole_number("hidden_features", hidden_features)
        self.gate_fn = gate_fn
        self.activation_fn = activation_fn
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.carry_init = carry_init
        self.promote_dtype = promote_dtype
        self.rngs = rngs.carry.fork() if keep_rngs else flax_nnx.data(None)

        inits = kernel_init, recurrent_kernel_init, bias_init
        cell = common.drawn_by(self.cell, self.kind, common.dense_parts(self.kind, self.hidden_features, *inits))
        metadata = {"w_x": kernel_metadata, "w_h": recurrent_kernel_metadata}
        for name, drawn in cell.init(rngs.params(), self.in_features, param_dtype)._asdict().items():
            setattr(self, name, flax_nnx.Param(drawn, **metadata.get(name, bias_metadata)))

    @property
    def cell(self) -> Cell:
        """The core's cell, whose step this module takes."""
        gate = {} if self.gate_fn is None else {"gate_activation": self.gate_fn}
        return self.kind.build(self.hidden_features, activation=self.activation_fn, **gate)

    @property
    def params(self) -> Params:
        """The parameters as the core has them. Assigned to, they are checked first, and then all replaced."""
        return self.kind.params(*(getattr(self, name)[...] for name in self.kind.params._fields))

    @params.setter
    def params(self, params: Params) -> None:
        for name, value in common.fitting(params, self.params, "params")._asdict().items():
            getattr(self, name).set_value(value)

    def _operands(self, inputs: Any) -> tuple[Cell, Params, Array]:
        inputs, *leaves = self.promote_dtype((inputs, *self.params), dtype=self.dtype)
        return self.cell, self.kind.params(*leaves), inputs

    def initialize_carry(
        self,
        input_shape: Shape,
        rngs: flax_nnx.Rngs | flax_nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Any:
        """The carry before the first step.

        Args:
            input_shape: ``(*B, I)``, the shape of one step's input.
            rngs: where ``carry_init`` draws from, the stream ``carry``.
            carry_init: in place of the constructor's; without either the carry is zero.

        Returns:
            (c, h) for an LSTM, h for the others, each ``[*B, H]`` in ``param_dtype``.

        Raises:
            ValueError: there is a carry_init and nothing for it to draw from.
        """
        carry_init = carry_init or self.carry_init
        shape = (*input_shape[:-1], self.hidden_features)
        leaves = len(self.kind.state._fields)
        if carry_init is None:
            return common.draw_carry(self.kind, jax.nn.initializers.zeros, [None] * leaves, shape, self.param_dtype)
        stream = self.rngs if rngs is None else rngs
        if stream is None:
            raise ValueError("initialize_carry was given no rngs, and carry_init wants a key")
        if isinstance(stream, flax_nnx.Rngs):
            stream = stream.carry
        return common.draw_carry(self.kind, carry_init, [stream() for _ in range(leaves)], shape, self.param_dtype)


@described
class LSTMCell(_Cell):
    """An LSTM cell, in place of ``nnx.LSTMCell`` and ``nnx.OptimizedLSTMCell``.

    Its forget bias starts at 0, as Flax's does; ``bias_init=lstmjax.init.forget_bias(1.0)`` makes that 1, where
    :class:`LSTM` and :func:`lstmjax.lstm` start.

    Args:
        in_features: I, the number of input features.
        hidden_features: H, the number of hidden units.
        gate_fn: elementwise, for the three gates.
        activation_fn: elementwise, for the candidate and on the way out of the cell state.
        {cell}
        carry_init: draws the leaves of a first carry; default zero.
        promote_dtype: ``(arrays, dtype=) -> arrays``, default Flax's own.
        keep_rngs: keep a stream in the module for ``carry_init`` to draw from; deprecated in Flax, and here too.
        rngs: where parameters are drawn from, the stream ``params``; not kept.
        kernel_metadata: for the variable of ``w_x``, as ``nnx.Param`` takes it.
        recurrent_kernel_metadata: for ``w_h``.
        bias_metadata: for ``b``.

    Raises:
        ValueError: hidden_features is not a positive whole number.
        TypeError: an activation cannot be called, or an argument is unknown or missing.

    >>> from flax import nnx
    >>> layer = nnx.RNN(LSTMCell(3, 4, rngs=nnx.Rngs(0)))
    >>> layer(jnp.ones((2, 10, 3))).shape
    (2, 10, 4)
    >>> layer.cell.params.w_h.shape
    (4, 16)
    """

    kind = common.LSTM


OptimizedLSTMCell = LSTMCell
"""The same class: the weights of an :class:`LSTMCell` lie side by side already."""


class GRUCell(_Cell):
    """A GRU cell, in place of ``nnx.GRUCell``.

    Args and Raises are those of :class:`LSTMCell`, ``gate_fn`` for the two gates, ``activation_fn`` for the candidate;
    ``bias_init`` draws ``b [3H]``; ``b_n [H]`` is the last third of a second such draw.

    >>> from flax import nnx
    >>> cell = GRUCell(3, 4, rngs=nnx.Rngs(0))
    >>> carry, y = cell(cell.initialize_carry((2, 3)), jnp.ones((2, 3)))
    >>> carry.shape, y.shape
    ((2, 4), (2, 4))
    """

    kind = common.GRU


class SimpleCell(_Cell):
    """A vanilla RNN cell, in place of ``nnx.SimpleCell``.

    Args and Raises are those of :class:`LSTMCell`, without ``gate_fn``; ``dtype`` is by default float32, as in Flax.

    Args:
        residual: add h to its own pre-activation, `h' = φ(x W_x + h W_h + b + h)`.

    >>> from flax import nnx
    >>> cell = SimpleCell(3, 4, residual=True, rngs=nnx.Rngs(0))
    >>> cell(cell.initialize_carry((2, 3)), jnp.ones((2, 3)))[1].shape
    (2, 4)
    """

    kind = common.RNN

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        carry_init: Initializer | None = None,
        residual: bool = False,
        activation_fn: Callable[..., Any] = tanh,
        kernel_init: Initializer = KERNEL_INIT,
        recurrent_kernel_init: Initializer = RECURRENT_KERNEL_INIT,
        bias_init: Initializer = jax.nn.initializers.zeros,
        promote_dtype: Callable[..., Any] = flax_promote_dtype,
        keep_rngs: bool = False,
        rngs: flax_nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = NO_METADATA,
        recurrent_kernel_metadata: Mapping[str, Any] = NO_METADATA,
        bias_metadata: Mapping[str, Any] = NO_METADATA,
    ):
        self.residual = residual
        super().__init__(
            in_features, hidden_features, gate_fn=None, activation_fn=activation_fn, kernel_init=kernel_init,
            recurrent_kernel_init=recurrent_kernel_init, bias_init=bias_init, dtype=dtype, param_dtype=param_dtype,
            carry_init=carry_init, promote_dtype=promote_dtype, keep_rngs=keep_rngs, rngs=rngs,
            kernel_metadata=kernel_metadata, recurrent_kernel_metadata=recurrent_kernel_metadata,
            bias_metadata=bias_metadata,
        )  # fmt: skip


@described
class Recurrent(_Module, common.Layers, flax_nnx.Module):
    """Layers of any cell over whole sequences: of the library, a wrapped one, or your own.

    The parameters sit in the cell's own structure, ``forward[layer]`` and, where bidirectional, ``backward[layer]``,
    an ``nnx.Param`` for each array. Where there is noise, of a cell such as ``lstmjax.zoneout(cell, 0.1)`` or dropout
    between layers, the module keeps a stream of random keys; ``model.eval()`` turns noise off and ``model.train()`` on,
    as they do in Flax.

    Args:
        cell: a :class:`lstmjax.Cell`, the same in every layer and direction, each with parameters of its own.
        in_features: I, the number of input features.
        {sequence}
        rngs: where parameters are drawn from, the stream ``params``, which is not kept; and, only where there is noise,
            its keys: a fork of the stream ``dropout``.

    Raises:
        ValueError: a size is not a positive whole number.
        TypeError: cell is no Cell, or an argument is unknown or missing.

    >>> import lstmjax
    >>> from flax import nnx
    >>> cell = lstmjax.zoneout(lstmjax.learned_state(lstmjax.mgu(4)), 0.1)
    >>> model = Recurrent(cell, 3, num_layers=2, rngs=nnx.Rngs(0))
    >>> (first, last), ys = model(jnp.ones((2, 10, 3)))
    >>> last.h.shape, ys.shape, model.forward[0].state.h.shape
    ((2, 4), (2, 10, 4), (4,))
    >>> bool((model(jnp.ones((2, 10, 3)))[1] == ys).all())
    False
    """

    def __init__(
        self,
        cell: Cell,
        in_features: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        merge: Merge = "concatenate",
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        time_major: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: flax_nnx.Rngs,
    ):
        self.cell = common.checked(cell)
        self.in_features = whole_number("in_features", in_features, 0)
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.merge: Merge = merge
        self.dropout_rate = dropout_rate
        self.deterministic = deterministic
        self.time_major = time_major
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.rngs = rngs.dropout.fork() if self._has_noise(cell) else flax_nnx.data(None)

        def variables(sizes: list[int]) -> Any:
            drawn = [cell.init(rngs.params(), size, param_dtype) for size in sizes]
            return flax_nnx.data(jax.tree.map(flax_nnx.Param, drawn, is_leaf=common.is_box))

        sizes = self._sizes(cell, self.in_features)
        self.forward = variables(sizes)
        self.backward = variables(sizes if bidirectional else [])

    @property
    def params(self) -> tuple[Params, ...]:
        """The parameters as :func:`lstmjax.unroll_stack` takes them, one entry a layer, a pair where bidirectional.

        Assigned to, they are checked first, and then all replaced.
        """
        return jax.tree.map(lambda variable: variable[...], self._variables(), is_leaf=_is_variable)

    @params.setter
    def params(self, params: tuple[Params, ...]) -> None:
        fitted = common.fitting(params, self.params, "params")
        jax.tree.map(lambda variable, p: variable.set_value(p), self._variables(), fitted, is_leaf=_is_variable)

    def _cell(self) -> Cell:
        return self.cell

    def _params(self, cell: Cell, xs: Any) -> tuple[Params, ...]:
        return self.params

    def _params_to_begin(self, cell: Cell) -> tuple[Params, ...]:
        return self.params

    def _draw_key(self) -> Key:
        assert self.rngs is not None
        return self.rngs()

    def _variables(self) -> tuple[Any, ...]:
        return common.stack_form(self.forward, self.backward)


def _is_variable(value: Any) -> bool:
    return isinstance(value, flax_nnx.Variable)


class _Dense(Recurrent):
    kind: ClassVar[common.Kind]

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        activations: dict[str, Callable[..., Any]],
        *,
        kernel_init: Initializer = KERNEL_INIT,
        recurrent_kernel_init: Initializer = RECURRENT_KERNEL_INIT,
        bias_init: Initializer | None = None,
        **options: Any,
    ):
        hidden = whole_number("hidden_features", hidden_features)
        cell = self.kind.build(hidden, **activations)
        parts = common.dense_parts(self.kind, hidden, kernel_init, recurrent_kernel_init, bias_init or zeros)
        super().__init__(common.drawn_by(cell, self.kind, parts), in_features, **options)
        self.cell = cell  # which is the same, and can be pickled, whatever drew the parameters


@described
class LSTM(_Dense):
    """LSTM layers over whole sequences: :class:`Recurrent` of :func:`lstmjax.lstm`.

    The forget bias starts at 1, as that of :func:`lstmjax.lstm`; :class:`LSTMCell`'s starts at 0, as Flax's does.

    Args:
        in_features: I, the number of input features.
        hidden_features: H, the number of hidden units.
        {dense}
        options: those of :class:`Recurrent`.

    Raises:
        ValueError: a size is not a positive whole number, or both forget_bias and bias_init are given.
        TypeError: an argument is unknown or missing.

    >>> from flax import nnx
    >>> model = LSTM(3, 4, num_layers=2, rngs=nnx.Rngs(0))
    >>> (first, last), ys = model(jnp.ones((2, 10, 3)), seq_lengths=jnp.array([10, 7]))
    >>> last.c.shape, ys.shape
    ((2, 4), (2, 10, 4))
    """

    kind = common.LSTM

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        forget_bias: float | None = None,
        bias_init: Initializer | None = None,
        **options: Any,
    ):
        bias_init = forget_bias_init(forget_bias, bias_init, "bias_init")
        super().__init__(in_features, hidden_features, {}, bias_init=bias_init, **options)


class GRU(_Dense):
    """GRU layers over whole sequences: :class:`Recurrent` of :func:`lstmjax.gru`.

    Args and Raises are those of :class:`LSTM`, without ``forget_bias``; ``bias_init`` draws ``b [3H]``, and
    ``b_n`` as in :class:`GRUCell`; default zeros.

    >>> from flax import nnx
    >>> model = GRU(3, 4, bidirectional=True, time_major=True, rngs=nnx.Rngs(0))
    >>> ((forward, backward),), ys = model(jnp.ones((10, 2, 3)))
    >>> backward.h.shape, ys.shape
    ((2, 4), (10, 2, 8))
    """

    kind = common.GRU

    def __init__(self, in_features: int, hidden_features: int, **options: Any):
        super().__init__(in_features, hidden_features, {}, **options)


class RNN(_Dense):
    """Vanilla RNN layers over whole sequences; Flax's ``nnx.RNN`` is a scan over any cell, as :class:`Recurrent` is.

    Args and Raises are those of :class:`LSTM`, without ``forget_bias``; ``bias_init`` draws ``b [H]``, default zeros.

    Args:
        activation: φ, an elementwise function.

    >>> from flax import nnx
    >>> model = RNN(3, 4, activation=jax.nn.relu, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 10, 3)))[1].shape
    (2, 10, 4)
    """

    kind = common.RNN

    def __init__(
        self, in_features: int, hidden_features: int, *, activation: Callable[..., Any] = tanh, **options: Any
    ):
        super().__init__(in_features, hidden_features, {"activation": activation}, **options)
