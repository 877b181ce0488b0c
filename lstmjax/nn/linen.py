"""Modules for Flax Linen: cells in place of ``flax.linen``'s own, and whole recurrent layers.

Cells take the fields, carries and calls of ``linen.LSTMCell``, ``linen.OptimizedLSTMCell``, ``linen.GRUCell`` and
``linen.SimpleCell``, and compute the same values from the same weights. What differs is what is kept, and how drawn:

* Parameters are the core's, ``w_x [I, 4H]``, ``w_h [H, 4H]``, ``b [4H]``, in place of a kernel for each gate; each
  gate's block is still drawn by itself, and so orthogonal. ``params_from`` and ``variables_from`` lead to the core's
  named tuples and back.
* ``bias_init`` draws all of ``b`` at once: :func:`lstmjax.init.forget_bias` and :func:`lstmjax.init.chrono` fit.
* H is ``features``, so a carry of another size is an error; and a carry keeps its dtype.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as flax_linen
from flax.core import meta, unfreeze
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array

from lstmjax.cells import Cell
from lstmjax.checks import whole_number
from lstmjax.gates import sigmoid, tanh
from lstmjax.nn import common
from lstmjax.nn.common import KERNEL_INIT, RECURRENT_KERNEL_INIT
from lstmjax.typing import Initializer, Key, Params, Shape, State
from lstmjax.unroll import Implementation


class _WithParams:
    """The way from variables to the core's parameters and back."""

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
        return self._unnamed(common.fitting(named, self._named(self._like(named)), "variables['params']"))

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
        for path, leaf in jax.tree.leaves_with_path(given):
            if "w_x" in jax.tree_util.keystr(path[-1:]) and jnp.ndim(leaf) == 2:
                return self._abstract(leaf.shape[0])
        return self._abstract(1)

    def _abstract(self, in_features: int) -> Params:
        raise NotImplementedError

    def _named(self, params: Params) -> dict[str, Any]:
        raise NotImplementedError

    def _unnamed(self, named: dict[str, Any]) -> Params:
        raise NotImplementedError


class _Cell(_WithParams, flax_linen.RNNCellBase):
    kind: ClassVar[common.Kind]

    @flax_linen.compact
    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Array]:
        """One step.

        Args:
            carry: (c, h) for an LSTM, h for the others, each ``[*B, H]``.
            inputs: ``[*B, I]``.

        Returns:
            The new carry, of the kind and dtype it came in, and the output ``[*B, H]``, the new h.
        """
        cell = self._core()
        parts = self._parts(jnp.shape(inputs)[-1])
        params = [self.param(name, draw, shape, self.param_dtype) for name, (draw, shape) in parts.items()]
        inputs, *params = promote_dtype(inputs, *params, dtype=self.dtype)
        residual = getattr(self, "residual", False)
        return common.step(self.kind, cell, self.kind.params(*params), carry, inputs, residual)

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

    @property
    def num_feature_axes(self) -> int:
        """How many trailing axes of an input are features, which is one."""
        return 1

    @flax_linen.nowrap
    def _core(self) -> Cell:
        activations = {"activation": self.activation_fn}
        if hasattr(self, "gate_fn"):
            activations["gate_activation"] = self.gate_fn
        return self.kind.build(whole_number("features", self.features), **activations)

    @flax_linen.nowrap
    def _parts(self, in_features: int) -> dict[str, Any]:
        inits = (self.kernel_init, self.recurrent_kernel_init, self.bias_init)
        return common.blueprint(self.kind, in_features, self.features, *inits)

    @flax_linen.nowrap
    def _abstract(self, in_features: int) -> Params:
        return common.abstract(self.kind, self._parts(in_features), self.param_dtype)

    @flax_linen.nowrap
    def _named(self, params: Params) -> dict[str, Any]:
        return params._asdict()

    @flax_linen.nowrap
    def _unnamed(self, named: dict[str, Any]) -> Params:
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


class LSTMCell(_GatedCell):
    """An LSTM cell, in place of ``linen.LSTMCell`` and ``linen.OptimizedLSTMCell``.

    Its forget bias starts at 0, as Flax's does; ``bias_init=lstmjax.init.forget_bias(1.0)`` makes that 1, where
    :class:`LSTM` and :func:`lstmjax.lstm` start.

    Args:
        features: H, the number of hidden units.
        gate_fn: elementwise, for the three gates.
        activation_fn: elementwise, for the candidate and on the way out of the cell state.
        kernel_init: draws ``[I, H]`` for each gate.
        recurrent_kernel_init: draws ``[H, H]`` for each gate.
        bias_init: draws ``[4H]``; zeros, the forget bias included, unless told.
        dtype: of the computation, inputs and parameters cast to it; None: promoted from them.
        param_dtype: of the parameters, and of the carries that ``initialize_carry`` makes.
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
        residual: add h to its own pre-activation, h' = φ(x W_x + h W_h + b + h).

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


class _Sequence(_WithParams, flax_linen.Module):
    kind: ClassVar[common.Kind]

    features: int
    _: dataclasses.KW_ONLY
    num_layers: int = 1
    bidirectional: bool = False
    dropout_rate: float = 0.0
    time_major: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer = KERNEL_INIT
    recurrent_kernel_init: Initializer = RECURRENT_KERNEL_INIT
    bias_init: Initializer | None = None

    @flax_linen.compact
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
        stack = self._stack()
        parts = self._parts(jnp.shape(xs)[-1])
        named = {name: self.param(name, self._draw(parts_of_one)) for name, parts_of_one in parts.items()}
        return stack(
            self._unnamed(named), xs, initial_carry=initial_carry, lengths=lengths, mask=mask, resets=resets,
            dropout_key=dropout_key, remat_block=remat_block, scan_unroll=scan_unroll, implementation=implementation,
        )  # fmt: skip

    @flax_linen.nowrap
    def initialize_carry(self, batch_shape: Shape = ()) -> tuple[State, ...]:
        """The carry before the first step, all zero.

        Args:
            batch_shape: the batch axes ``*B``.

        Returns:
            One state a layer, a pair where bidirectional, each leaf ``[*B, H]``, in ``param_dtype`` or float32,
            whichever is wider.
        """
        return self._stack().initialize_carry(batch_shape)

    @flax_linen.nowrap
    def _stack(self) -> common.Stack:
        activations = {"activation": self.activation} if hasattr(self, "activation") else {}
        cell = self.kind.build(whole_number("features", self.features), **activations)
        return common.Stack(
            cell, self.num_layers, self.bidirectional, self.dropout_rate,
            self.time_major, self.dtype, self.param_dtype,
        )  # fmt: skip

    @flax_linen.nowrap
    def _names(self) -> tuple[Any, ...]:
        """The parameters' names, in the form of the stack."""
        forward, backward = ([f"{way}_{depth}" for depth in range(self.num_layers)] for way in ("forward", "backward"))
        return common.stack_form(forward, backward if self.bidirectional else [])

    @flax_linen.nowrap
    def _parts(self, in_features: int) -> dict[str, Any]:
        """What each direction of each layer is drawn from, by name."""
        sizes = common.input_sizes(in_features, self.features, self.num_layers, self.bidirectional)
        bias_init = common.stack_bias_init(self.kind, self.bias_init, getattr(self, "forget_bias", None))
        inits = (self.kernel_init, self.recurrent_kernel_init, bias_init)
        return {
            name: common.blueprint(self.kind, size, self.features, *inits)
            for names, size in zip(self._names(), sizes, strict=True)
            for name in jax.tree.leaves(names)
        }

    @flax_linen.nowrap
    def _draw(self, parts: dict[str, Any]) -> Callable[[Key], dict[str, Any]]:
        def init(key: Key) -> dict[str, Any]:
            keys = jax.random.split(key, len(parts))
            drawn = zip(parts.items(), keys, strict=True)
            return {name: draw(k, shape, self.param_dtype) for (name, (draw, shape)), k in drawn}

        return init

    @flax_linen.nowrap
    def _abstract(self, in_features: int) -> Params:
        parts = self._parts(in_features)
        return jax.tree.map(lambda name: common.abstract(self.kind, parts[name], self.param_dtype), self._names())

    @flax_linen.nowrap
    def _named(self, params: Params) -> dict[str, Any]:
        cells = jax.tree.leaves(params, is_leaf=lambda p: isinstance(p, self.kind.params))
        return {name: p._asdict() for name, p in zip(jax.tree.leaves(self._names()), cells, strict=True)}

    @flax_linen.nowrap
    def _unnamed(self, named: dict[str, Any]) -> Params:
        return jax.tree.map(lambda name: self.kind.params(**named[name]), self._names())


class LSTM(_Sequence, kw_only=True):
    """LSTM layers over whole sequences.

    The forget bias starts at 1, as that of :func:`lstmjax.lstm`; :class:`LSTMCell`'s starts at 0, as Flax's does.
    Dropout takes a key as an argument, not from the collections of Linen: it acts only where the call is given a
    ``dropout_key``. The parameters are named ``params/forward_0/w_x`` and so on, and ``backward_0`` where
    bidirectional.

    Args:
        features: H, the number of hidden units; all other arguments go by name.
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

    Raises:
        ValueError: when called: a size is not a positive whole number, or both forget_bias and bias_init are given.

    >>> model = LSTM(4, num_layers=2)
    >>> variables = model.init(jax.random.key(0), jnp.ones((2, 10, 3)))
    >>> (first, last), ys = model.apply(variables, jnp.ones((2, 10, 3)), lengths=jnp.array([10, 7]))
    >>> last.c.shape, ys.shape, model.params_from(variables)[1].w_x.shape
    ((2, 4), (2, 10, 4), (4, 16))
    """

    kind = common.LSTM

    forget_bias: float | None = None


class GRU(_Sequence, kw_only=True):
    """GRU layers over whole sequences.

    Args and Raises are those of :class:`LSTM`, without ``forget_bias``; ``bias_init`` draws ``b [3H]``, and
    ``b_n`` as in :class:`GRUCell`; default zeros.

    >>> model = GRU(4, bidirectional=True, time_major=True)
    >>> (((forward, backward),), ys), _ = model.init_with_output(jax.random.key(0), jnp.ones((10, 2, 3)))
    >>> backward.h.shape, ys.shape
    ((2, 4), (10, 2, 8))
    """

    kind = common.GRU


class RNN(_Sequence, kw_only=True):
    """Vanilla RNN layers over whole sequences; Flax's ``linen.RNN`` is a scan over any cell.

    Args and Raises are those of :class:`LSTM`, without ``forget_bias``; ``bias_init`` draws ``b [H]``, zeros unless
    told.

    Args:
        activation: φ, an elementwise function.

    >>> (_, ys), _ = RNN(4, activation=jax.nn.relu).init_with_output(jax.random.key(0), jnp.ones((2, 10, 3)))
    >>> ys.shape
    (2, 10, 4)
    """

    kind = common.RNN

    activation: Callable[..., Any] = tanh
