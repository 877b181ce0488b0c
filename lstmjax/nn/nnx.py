"""Modules for Flax NNX: cells in place of ``flax.nnx``'s own, and whole recurrent layers.

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
from lstmjax.checks import whole_number
from lstmjax.gates import sigmoid, tanh
from lstmjax.nn import common
from lstmjax.nn.common import KERNEL_INIT, RECURRENT_KERNEL_INIT
from lstmjax.typing import Initializer, Key, Params, Shape, State
from lstmjax.unroll import Implementation

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
            parameters = {p.name: p for p in own if p.kind is not p.VAR_KEYWORD} | parameters
            if all(p.kind is not p.VAR_KEYWORD for p in own):
                break
    return inspect.Signature(sorted(parameters.values(), key=lambda p: p.kind))


class _Cell(_Module, flax_nnx.RNNCellBase):
    kind: ClassVar[common.Kind]
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
        _ = self.cell  # the core checks activations

        metadata = {"w_x": kernel_metadata, "w_h": recurrent_kernel_metadata}
        sizes = self.in_features, self.hidden_features
        parts = common.blueprint(self.kind, *sizes, kernel_init, recurrent_kernel_init, bias_init)
        for name, (draw, shape) in parts.items():
            drawn = draw(rngs.params(), shape, param_dtype)
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

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Array]:
        """One step.

        Args:
            carry: (c, h) for an LSTM, h for the others, each ``[*B, H]``.
            inputs: ``[*B, I]``.

        Returns:
            The new carry, of the kind and dtype it came in, and the output ``[*B, H]``, the new h.
        """
        inputs, *leaves = self.promote_dtype((inputs, *self.params), dtype=self.dtype)
        return common.step(self.kind, self.cell, self.kind.params(*leaves), carry, inputs, self.residual)

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

    @property
    def num_feature_axes(self) -> int:
        """How many trailing axes of an input are features, which is one."""
        return 1


class LSTMCell(_Cell):
    """An LSTM cell, in place of ``nnx.LSTMCell`` and ``nnx.OptimizedLSTMCell``.

    Its forget bias starts at 0, as Flax's does; ``bias_init=lstmjax.init.forget_bias(1.0)`` makes that 1, where
    :class:`LSTM` and :func:`lstmjax.lstm` start.

    Args:
        in_features: I, the number of input features.
        hidden_features: H, the number of hidden units.
        gate_fn: elementwise, for the three gates.
        activation_fn: elementwise, for the candidate and on the way out of the cell state.
        kernel_init: draws ``[I, H]`` for each gate.
        recurrent_kernel_init: draws ``[H, H]`` for each gate.
        bias_init: draws ``[4H]``; zeros, the forget bias included, unless told.
        dtype: of the computation, inputs and parameters cast to it; None: promoted from them.
        param_dtype: of the parameters, and of the carries that ``initialize_carry`` makes.
        carry_init: draws the leaves of a first carry; zero unless given.
        promote_dtype: ``(arrays, dtype=) -> arrays``, Flax's own unless told.
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

    Args and Raises are those of :class:`LSTMCell`, without ``gate_fn``; ``dtype`` is float32 unless told, as in Flax.

    Args:
        residual: add h to its own pre-activation, h' = φ(x W_x + h W_h + b + h).

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


class _Sequence(_Module, flax_nnx.Module):
    cell_type: ClassVar[type[_Cell]]

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout_rate: float = 0.0,
        time_major: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Initializer = KERNEL_INIT,
        recurrent_kernel_init: Initializer = RECURRENT_KERNEL_INIT,
        bias_init: Initializer | None = None,
        rngs: flax_nnx.Rngs,
    ):
        self.in_features = whole_number("in_features", in_features, 0)
        self.hidden_features = whole_number("hidden_features", hidden_features)
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout_rate = dropout_rate
        self.time_major = time_major
        self.dtype = dtype
        self.param_dtype = param_dtype
        sizes = common.input_sizes(self.in_features, self.hidden_features, num_layers, bidirectional)
        activations = {"activation_fn": vars(self)["activation"]} if "activation" in vars(self) else {}

        def cells(sizes: list[int]) -> list[_Cell]:
            return [
                self.cell_type(
                    size, self.hidden_features, dtype=dtype, param_dtype=param_dtype, kernel_init=kernel_init,
                    recurrent_kernel_init=recurrent_kernel_init, rngs=rngs,
                    bias_init=common.stack_bias_init(self.cell_type.kind, bias_init), **activations,
                )
                for size in sizes
            ]  # fmt: skip

        self.forward = flax_nnx.List(cells(sizes))
        self.backward = flax_nnx.List(cells(sizes if bidirectional else []))

    @property
    def params(self) -> tuple[Params, ...]:
        """The parameters as :func:`lstmjax.unroll_stack` takes them, one entry a layer, a pair where bidirectional.

        Assigned to, they are checked first, and then all replaced.
        """
        return common.stack_form(*([cell.params for cell in cells] for cells in (self.forward, self.backward)))

    @params.setter
    def params(self, params: tuple[Params, ...]) -> None:
        fitted = common.fitting(params, self.params, "params")
        cells = common.stack_form(self.forward, self.backward)
        jax.tree.map(lambda cell, p: setattr(cell, "params", p), cells, fitted, is_leaf=lambda c: isinstance(c, _Cell))

    def initialize_carry(self, batch_shape: Shape = ()) -> tuple[State, ...]:
        """The carry before the first step, all zero.

        Args:
            batch_shape: the batch axes ``*B``.

        Returns:
            One state a layer, a pair where bidirectional, each leaf ``[*B, H]``, in ``param_dtype`` or float32,
            whichever is wider.
        """
        return self._stack().initialize_carry(batch_shape)

    def __call__(
        self,
        xs: Any,
        *,
        lengths: Any = None,
        mask: Any = None,
        resets: Any = None,
        initial_carry: Any = None,
        dropout_key: Key | None = None,
        remat_block: int | None = None,
        scan_unroll: int | None = None,
        implementation: Implementation = None,
    ) -> tuple[tuple[State, ...], Array]:
        """Runs a sequence.

        Args:
            xs: ``[*B, T, I]``, or ``[T, *B, I]`` where time-major; any number of batch axes, floating.
            lengths: ``[*B]`` whole numbers from 0 to T: how many steps each row takes.
            mask: booleans of the axes of xs but the last. Where False, the step is skipped.
            resets: likewise. Where True, the state is zero again before the step.
            initial_carry: as ``initialize_carry`` makes it, or a call returned it; zero unless given. Its dtypes are
                kept throughout.
            dropout_key: drops between layers, at ``dropout_rate``. Without it there is no dropout.
            remat_block: as for :func:`lstmjax.unroll`.
            scan_unroll: as for :func:`lstmjax.unroll`.
            implementation: as for :func:`lstmjax.unroll`.

        Returns:
            The carry after each row's last step, one state a layer, a pair where bidirectional; and the outputs of the
            last layer, ``[*B, T, H]`` or ``[T, *B, H]``, 2H where bidirectional, zero where a step was skipped.

        Raises:
            ValueError: an argument has the wrong shape, structure or value; or a key is given and the rate is 0.
            TypeError: an argument has the wrong dtype.
        """
        return self._stack()(
            self.params, xs, initial_carry=initial_carry, lengths=lengths, mask=mask, resets=resets,
            dropout_key=dropout_key, remat_block=remat_block, scan_unroll=scan_unroll, implementation=implementation,
        )  # fmt: skip

    def _stack(self) -> common.Stack:
        return common.Stack(
            self.forward[0].cell, self.num_layers, self.bidirectional, self.dropout_rate, self.time_major, self.dtype,
            self.param_dtype,
        )  # fmt: skip


class LSTM(_Sequence):
    """LSTM layers over whole sequences.

    The forget bias starts at 1, as that of :func:`lstmjax.lstm`; :class:`LSTMCell`'s starts at 0, as Flax's does. No
    random state is kept: dropout acts only where the call is given a ``dropout_key``. The parameters sit in cells,
    ``forward[layer]`` and, where bidirectional, ``backward[layer]``.

    Args:
        in_features: I, the number of input features.
        hidden_features: H, the number of hidden units.
        num_layers: layers, one over the outputs of another.
        bidirectional: run each layer in both directions, and hand on 2H outputs.
        dropout_rate: the share of each layer's outputs, the last's excepted, that is set to zero where the call is
            given a ``dropout_key``; without one there is no dropout.
        time_major: sequences are ``[T, *B, I]``, not ``[*B, T, I]``.
        dtype: of the computation, inputs and parameters cast to it; None: promoted from them. The carry and the
            outputs keep the dtype of ``initial_carry``; by default that is float32 at least.
        param_dtype: of the parameters.
        kernel_init: draws ``[I, H]`` for each gate.
        recurrent_kernel_init: draws ``[H, H]`` for each gate.
        bias_init: draws ``[4H]``, in place of ``forget_bias``.
        forget_bias: the forget gate's initial bias, 1.0 unless told, as for :func:`lstmjax.lstm`; other biases are 0.
        rngs: where parameters are drawn from, the stream ``params``; not kept.

    Raises:
        ValueError: a size is not a positive whole number, or both forget_bias and bias_init are given.
        TypeError: an argument is unknown or missing.

    >>> from flax import nnx
    >>> model = LSTM(3, 4, num_layers=2, rngs=nnx.Rngs(0))
    >>> (first, last), ys = model(jnp.ones((2, 10, 3)), lengths=jnp.array([10, 7]))
    >>> last.c.shape, ys.shape
    ((2, 4), (2, 10, 4))
    """

    cell_type = LSTMCell

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        forget_bias: float | None = None,
        bias_init: Initializer | None = None,
        **options: Any,
    ):
        bias_init = common.stack_bias_init(common.LSTM, bias_init, forget_bias)
        super().__init__(in_features, hidden_features, bias_init=bias_init, **options)


class GRU(_Sequence):
    """GRU layers over whole sequences.

    Args and Raises are those of :class:`LSTM`, without ``forget_bias``; ``bias_init`` draws ``b [3H]``, and
    ``b_n`` as in :class:`GRUCell`; default zeros.

    >>> from flax import nnx
    >>> model = GRU(3, 4, bidirectional=True, time_major=True, rngs=nnx.Rngs(0))
    >>> ((forward, backward),), ys = model(jnp.ones((10, 2, 3)))
    >>> backward.h.shape, ys.shape
    ((2, 4), (10, 2, 8))
    """

    cell_type = GRUCell


class RNN(_Sequence):
    """Vanilla RNN layers over whole sequences; Flax's ``nnx.RNN`` is a scan over any cell.

    Args and Raises are those of :class:`LSTM`, without ``forget_bias``; ``bias_init`` draws ``b [H]``, zeros unless
    told.

    Args:
        activation: φ, an elementwise function.

    >>> from flax import nnx
    >>> model = RNN(3, 4, activation=jax.nn.relu, rngs=nnx.Rngs(0))
    >>> model(jnp.ones((2, 10, 3)))[1].shape
    (2, 10, 4)
    """

    cell_type = SimpleCell

    def __init__(
        self, in_features: int, hidden_features: int, *, activation: Callable[..., Any] = tanh, **options: Any
    ):
        self.activation = activation
        super().__init__(in_features, hidden_features, **options)
