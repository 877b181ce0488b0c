"""What a cell is, how its step is made of two parts, and the products that most cells share."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from lstmjax.functions import Comparable
from lstmjax.gates import split_gates
from lstmjax.typing import Key, Params, Shape, State

Gates = tuple[Array, ...]
"""Pre-activations, one array of the state's shape for each gate."""


@runtime_checkable
class Init(Protocol):
    """Draws a cell's parameters."""

    def __call__(self, key: Key, input_size: int, dtype: Any = jnp.float32) -> Params:
        """Parameters for inputs of ``input_size`` features, in ``dtype``."""
        ...


@runtime_checkable
class InitialState(Protocol):
    """Makes the state before the first step."""

    def __call__(self, batch_shape: Shape = (), dtype: Any = jnp.float32) -> State:
        """A state whose leaves are ``[*B, ...]``; what of it is floating, in ``dtype``."""
        ...


@runtime_checkable
class Step(Protocol):
    """One step of time, in the order that ``lax.scan`` wants."""

    def __call__(self, params: Params, state: State, x: Any) -> tuple[State, Any]:
        """``(params, state [*B, ...], x [*B, I]) -> (state, y [*B, ...])``; the state of the kind and dtypes it had."""
        ...


class Products(NamedTuple):
    """All the products of a step, `z = pre(weights, x, h)`, with what makes them fast.

    Attributes:
        pre: ``(weights, x, h) -> z``, affine in x and in h.
        pack: ``params -> weights``: what the products want, made once outside the loop.
        from_x: ``(weights, dx) -> dz``, the part that is linear in x.
        from_h: ``(weights, dh) -> dz``, the part that is linear in h.
    """

    pre: Callable[[Any, Any, Array], Any]
    pack: Callable[[Params], Any]
    from_x: Callable[[Any, Any], Any]
    from_h: Callable[[Any, Array], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Gated(Comparable):
    """An ``activate`` in two parts, for a cell that has gates: their values, and what these make of the state.

    With it a :class:`Recurrence` knows its gates by name, and :func:`~lstmjax.candidate_dropout` its candidate.

    Attributes:
        values: ``(z, state) -> {name: value}`` of every gate; the proposed new content has the name ``candidate``.
        update: ``(values, z, state) -> state``, linear in the candidate but for what is read off the new state.

    >>> activate = Gated(lambda z, h: {"candidate": jnp.tanh(z[0])}, lambda values, z, h: h + values["candidate"])
    >>> float(activate((jnp.zeros(()),), jnp.ones(())))
    1.0
    """

    values: Callable[[Gates, State], dict[str, Array]]
    update: Callable[[dict[str, Array], Gates, State], State]

    def __call__(self, z: Gates, state: State) -> State:
        """``(z, state) -> state``."""
        return self.update(self.values(z, state), z, state)


@dataclasses.dataclass(frozen=True, eq=False)
class Recurrence(Comparable):
    """A step made of two parts: first all the products, then all the non-linearities.

    ::

        z  = pre(params, x, h)       affine in h, by weights alone: every product of the step
        s' = activate(z, s)          elementwise: every non-linearity
        h' = project(params, h')     where there is a projection: linear

    From these two come the step itself (call this object as one), its linearisation, with which :func:`~lstmjax.unroll`
    trains faster and more exactly than a plain scan, and every diagnostic of :mod:`lstmjax.gradients`.

    ``pre`` returns an array ``[*B, k·H]``, k gates side by side, or a pytree of such arrays. One that lacks batch axes
    is spread over them, so a weight that works elementwise, as a peephole does, is handed on as one more gate.
    ``activate`` is given the gates one by one, a flat tuple of arrays ``[*B, H]``, and the state, all of one dtype,
    float32 at least. It returns a state of the same kind, whose field ``h`` is also the output of the step.

    Attributes:
        pre: ``(params, x, h) -> z``, or :class:`Products`, which has that and what makes it fast. x and h come in the
            dtype of the parameters.
        activate: ``(z, state) -> state``. Where it turns out not to be elementwise, or ``pre`` not to be affine, or
            either closes over values that are traced, the step is still right, and is unrolled as any function is.
        project: ``(params, h) -> h``, linear in h. The state's h then has the projection's size, and the one that
            ``activate`` sees is None.
        gates: ``(z, state) -> {name: value}``, what :func:`~lstmjax.gradients.gate_values` reads; default the values
            of an ``activate`` that is :class:`Gated`.
        keeps: the name of the gate that says how much of the state is kept.
        check: ``(params, state, x) -> None``, raises where they do not fit one another.

    >>> from lstmjax.gates import sigmoid
    >>> class Minimal(NamedTuple):
    ...     h: Array
    >>> step = Recurrence(
    ...     pre=lambda params, x, h: x @ params["w_x"] + h @ params["w_h"],
    ...     activate=lambda z, state: Minimal(sigmoid(z[0]) * state.h + sigmoid(-z[0]) * jnp.tanh(z[1])),
    ... )
    >>> params = {"w_x": jnp.ones((3, 4)), "w_h": jnp.ones((2, 4))}
    >>> step(params, Minimal(jnp.zeros(2)), jnp.ones(3))[1].shape
    (2,)
    """

    pre: Callable[[Any, Any, Array], Any] | Products
    activate: Callable[[Gates, State], State]
    _: dataclasses.KW_ONLY
    project: Callable[[Params, Array], Array] | None = None
    gates: Callable[[Gates, State], dict[str, Array]] | None = None
    keeps: str | None = None
    check: Callable[[Params, State, Any], None] | None = None

    def __post_init__(self):
        """Takes the gates from where they are computed."""
        if self.gates is None and isinstance(self.activate, Gated):
            object.__setattr__(self, "gates", self.activate.values)

    def __call__(self, params: Params, state: State, x: Any) -> tuple[State, Array]:
        """The step: ``(params, state, x) -> (state, h)``."""
        if self.check is not None:
            self.check(params, state, x)
        z = self.split(self.z(self.pack(params), x, state.h), state)
        return self.finish(params, self.activate(z, self.working(state)), state)

    def pack(self, params: Params) -> Any:
        """The parameters as :meth:`z` takes them, made once outside the loop."""
        return self.pre.pack(params) if isinstance(self.pre, Products) else params

    def z(self, weights: Any, x: Any, h: Array) -> Array:
        """All pre-activations side by side, ``[*B, N]``, in float32 at least; x and h in the dtype of the weights."""
        pre = self.pre.pre if isinstance(self.pre, Products) else self.pre
        return self.join(pre(weights, *cast_floating((x, h), dtype_of(weights))), h)

    def join(self, z: Any, h: Array) -> Array:
        """What ``pre`` returned as one array, with the batch axes of h and as wide as it."""
        dtype = np.result_type(working_dtype(z), working_dtype(h))
        leaves = [jnp.broadcast_to(z.astype(dtype), (*h.shape[:-1], z.shape[-1])) for z in jax.tree.leaves(z)]
        return leaves[0] if len(leaves) == 1 else jnp.concatenate(leaves, axis=-1)

    def split(self, z: Array, state: State) -> Gates:
        """The gates in z, each of the state's shape, ``[*B, H]``."""
        size = jax.tree.leaves(state)[0].shape[-1]
        if z.shape[-1] % size or not z.shape[-1]:
            raise ValueError(
                f"pre returned {z.shape[-1]} numbers a row; wanted k·H, k gates side by side, with H = {size}, the "
                "last axis of the state's first array"
            )
        return split_gates(z, z.shape[-1] // size)

    def working(self, state: State) -> State:
        """The state as ``activate`` takes it: in the working dtype, and without an h that is a projection."""
        state = cast_floating(state, working_dtype(state))
        return state if self.project is None else state._replace(h=None)

    def finish(self, params: Params, new: State, old: State) -> tuple[State, Array]:
        """The new state after ``activate``, projected, in the dtypes of the old one; and the output."""
        if self.project is not None:
            new = new._replace(h=self.project(params, new.h.astype(dtype_of(params))))
        new = cast_like(new, old)
        return new, new.h


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Cell(Comparable):
    """A recurrent cell: three pure functions, hyper-parameters closed over, parameters and state explicit.

    Anything of this shape can be unrolled, stacked and measured; ``lstm``, ``gru`` and ``rnn`` build three. Cells that
    were built alike are equal. To ``jit`` a cell is static: it may be an argument, and equal cells share a program.

    Attributes:
        init: ``(key, input_size, dtype=float32) -> params``.
        initial_state: ``(batch_shape=(), dtype=float32) -> state``, each leaf ``[*B, ...]``.
        step: ``(params, state [*B, ...], x [*B, I]) -> (state, y [*B, ...])``, in the order ``lax.scan`` wants: any
            function, or a :class:`Recurrence`, a step in two parts, which is unrolled faster.
        num_feature_axes: how many axes of an input are its features: 1 for vectors, 0 for symbols, 3 for images.
        start: ``params -> state`` without batch axes, the one before the first step, in place of ``initial_state``,
            where it is learned: :func:`~lstmjax.learned_state`.
        noise: ``(key, params, xs) -> (cell, params, xs)``, what :func:`~lstmjax.draw_masks` calls.
        over: a mesh, and its axes over which an unroll splits the units and the batch: :func:`~lstmjax.split_units`.

    Parameters, states and inputs may be any pytrees of arrays. A step returns the state in the dtypes the state came
    in, so that a float32 state may be carried through bfloat16 weights and a scan never changes its carry.

    >>> leaky = Cell(
    ...     init=lambda key, input_size, dtype=jnp.float32: jnp.full((input_size,), 0.9, dtype),
    ...     initial_state=lambda batch_shape=(), dtype=jnp.float32: jnp.zeros((*batch_shape, 2), dtype),
    ...     step=lambda decay, state, x: (decay * state + x, decay * state + x),
    ... )
    >>> leaky.step(leaky.init(jax.random.key(0), 2), leaky.initial_state(), jnp.ones(2))[1]
    Array([1., 1.], dtype=float32)
    """

    init: Init
    initial_state: InitialState
    step: Step
    num_feature_axes: int = 1
    start: Callable[[Params], State] | None = None
    noise: Callable[[Key, Params, Any], tuple["Cell", Params, Any]] | None = None
    over: tuple[Mesh, str, str | None] | None = None

    def begin(self, params: Params, batch_shape: Shape = (), dtype: Any = jnp.float32) -> State:
        """The state before the first step: ``initial_state``, or what is learned, the same in every row."""
        state = self.initial_state(batch_shape, dtype)
        if self.start is None:
            return state
        return jax.tree.map(lambda a, s: jnp.broadcast_to(a.astype(s.dtype), s.shape), self.start(params), state)

    def replace(self, **changes: Any) -> "Cell":
        """The cell with some of its functions replaced."""
        return dataclasses.replace(self, **changes)


class Weights(NamedTuple):
    """Weights packed for one product a step, `z = [x, h] W + b`, as the LSTM and the vanilla RNN take it.

    Attributes:
        w: ``[I + H, N]``, input weights above recurrent weights.
        b: ``[N]``.
        w_x: ``[I, N]``.
        w_h_t: ``[N, H]``, the recurrent weights transposed, for the way back.
    """

    w: Array
    b: Array
    w_x: Array
    w_h_t: Array


def _pack(params: Any) -> Weights:
    return Weights(jnp.concatenate([params.w_x, params.w_h]), params.b, params.w_x, params.w_h.T)


def _pre(weights: Weights, x: Float[Array, "*B I"], h: Float[Array, "*B H"]) -> Float[Array, "*B N"]:
    return add_bias(jnp.concatenate([x, h], axis=-1) @ weights.w, weights.b)


def from_x(weights: Any, dx: Float[Array, "*B I"]) -> Float[Array, "*B N"]:
    """`dx W_x`."""
    return dx @ weights.w_x


def from_h(weights: Any, dh: Float[Array, "*B H"]) -> Float[Array, "*B N"]:
    """`dh W_h`.

    Written with the transposed weights, so that the product of the backward pass, `dz W_hᵀ`, which is the transpose of
    this one, meets them row by row: on CPU that is faster by up to a third where the batch is small.
    """
    return lax.dot_general(dh, weights.w_h_t, (((dh.ndim - 1,), (1,)), ((), ())))


DENSE = Products(_pre, _pack, from_x, from_h)
"""`z = [x, h] W + b` in one product, for parameters ``w_x [I, N]``, ``w_h [H, N]`` and ``b [N]``."""


def add_bias(z: Float[Array, "*B N"], b: Float[Array, " N"]) -> Float[Array, "*B N"]:
    """`z + b` in float32 at least: backwards that is the sum over all rows which is the bias's gradient."""
    z, b = (a.astype(wide(a.dtype)) for a in (z, b))
    return z + jnp.broadcast_to(b, z.shape)


def wide(dtype: Any) -> np.dtype:
    """The dtype, or float32 where it is narrower."""
    return np.promote_types(dtype, np.float32)


def dtype_of(tree: Any) -> np.dtype:
    """The dtype that parameters are computed with: that of their floating leaves, or the wider where they differ."""
    dtypes = {leaf.dtype for leaf in floating(tree)}
    return dtypes.pop() if len(dtypes) == 1 else working_dtype(tree)


def working_dtype(tree: Any) -> np.dtype:
    """The dtype of everything elementwise: float64 where a leaf is, else float32."""
    return np.dtype(np.float64 if any(leaf.dtype == np.float64 for leaf in floating(tree)) else np.float32)


def floating(tree: Any) -> Iterator[Any]:
    """The leaves that are floating."""
    return (leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating))


def cast_floating(tree: Any, dtype: Any) -> Any:
    """The tree with its floating leaves in a dtype."""

    def cast(leaf):
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def cast_like(tree: Any, other: Any) -> Any:
    """The tree with each leaf in the dtype of its counterpart."""
    return jax.tree.map(lambda new, old: new if new.dtype == old.dtype else new.astype(old.dtype), tree, other)
