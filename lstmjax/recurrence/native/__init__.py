"""Recurrences on CPU, in C++ behind ``jax.ffi``: forward, of LSTM, GRU and vanilla RNN; and the transpose, of any cell.

Functions on arrays, to be traced: they have no derivative of their own. Time is the first axis, the batch is one axis,
and all floating arrays are of one dtype, float32 or float64. The library is built with the package where there is a C++
compiler, ``kernels.so`` beside this file; without it ``why_not`` says so, and nothing here may be called.

A state is the tuple of its leaves, ``(c, h)`` or ``(h,)``, each ``[B, H]``.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

KINDS = ("lstm", "gru", "rnn", "relu")
"""The cells, with σ and tanh; ``relu`` is the vanilla RNN with another activation."""


class Form(NamedTuple):
    """A step as its transpose sees it.

    Attributes:
        gates: how many pre-activations a unit has.
        by_x: how many of them read x, from the first on.
        head: how many read h, from the first on.
        tail: how many more do, the last ones.
        pairs: the output and the input of each diagonal of its Jacobian, in the order of the inputs: the gates, then
            the arrays of the state, then the new c, which the new h may read.
    """

    gates: int
    by_x: int
    head: int
    tail: int
    pairs: tuple[tuple[int, int], ...]


LSTM = Form(4, 4, 4, 0, ((0, 0), (0, 1), (0, 2), (1, 3), (0, 4), (1, 6)))
GRU = Form(4, 3, 2, 1, ((0, 0), (0, 1), (0, 2), (0, 3), (0, 4)))
RNN = Form(1, 1, 1, 0, ((0, 0),))
FORMS = {"lstm": LSTM, "gru": GRU, "rnn": RNN, "relu": RNN}

MOST_PAIRS = 32
"""Of how many diagonals :func:`transposed` knows what to do."""

_TARGETS = ("lstmjax_forward", "lstmjax_transposed", "lstmjax_gradient", "lstmjax_functions")


@functools.cache
def why_not() -> str | None:
    """Why the kernels cannot be called, or None where they can. The first call loads the library.

    >>> why_not() is None or "CPU" in why_not()
    True
    """
    folder = Path(__file__).parent
    if not (folder / "kernels.so").exists():
        said = folder / "why_not.txt"  # by the build
        return "the kernels for CPU were not built" + (f": {said.read_text()}" if said.exists() else "")
    try:
        library = ctypes.CDLL(str(folder / "kernels.so"))
        for name in _TARGETS:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    except Exception as error:  # one built for another system, or for a JAX that this one does not know
        return f"the kernels for CPU cannot be loaded: {error}"
    return None


def available() -> bool:
    """Whether the kernels can be called."""
    return why_not() is None


def forward(
    kind: str,
    x: Array,
    weights: tuple[Array, Array, Array],
    start: tuple[Array, ...],
    *,
    fresh: tuple[Array, ...] | None = None,
    valid: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
    states: bool = False,
    emit: bool = False,
) -> tuple[tuple[Array, ...], Any, Any]:
    """The recurrence: what ``lax.scan`` over the cell's step returns, and on request its linearisation.

    Args:
        kind: one of :data:`KINDS`.
        x: ``[T, B, I]``.
        weights: ``w_x [I, N]``, ``w_h [H, N]`` and ``b [N]`` as the cell has them; the GRU's b is ``[4H]``, its ``b``
            and then its ``b_n``.
        start: the state before the first step.
        fresh: the state that a reset restores; wanted where ``reset`` is given.
        valid: ``[T, B]`` bool, whether a step is taken; None: every step is.
        reset: ``[T, B]`` bool, whether ``fresh`` is restored before the step, be it taken or not; None: never.
        reverse: whether to run from `T − 1` to 0.
        states: whether the states are recorded and not the outputs.
        emit: whether the coefficients of the linear recurrence are put out.

    Returns:
        The final state; the record; and the coefficients with h before each step, or None.

        The record is of outputs, ``h [T, B, H]``, which are 0 where a step is skipped; or of states, each leaf
        ``[T, B, H]``, where a skipped step repeats the state that it left as it was.

        Coefficients are the diagonals of the cell's :class:`Form`, in its order: those by its gates side by side,
        ``[T, B, gates·H]``, then each of the others, ``[T, B, H]``; 0 where a step is skipped. The ``h_before
        [T, B, H]`` beside them is what a step started from, after its reset.
    """
    steps, batch, _ = x.shape
    hidden, dtype, lstm = weights[1].shape[0], x.dtype, kind == "lstm"
    none, gates = _none(dtype), FORMS[kind].gates

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    state, history, empty = array(batch, hidden), array(steps, batch, hidden), array(0)
    shapes = (
        state if lstm else empty,
        state,
        history,
        history if lstm and states else empty,
        array(steps, batch, gates * hidden) if emit else empty,
        history if emit and gates == 4 else empty,
        history if emit and lstm else empty,
        history if emit else empty,
    )
    final_c, final_h, h, c, k, k_state, k_c, h_before = _call("lstmjax_forward", shapes)(
        x, *weights, *_pair(start, none), *_pair(fresh, none), _flags(valid), _flags(reset),
        kind=np.int64(KINDS.index(kind)), reverse=reverse, states=states,
    )  # fmt: skip
    final, record = ((final_c, final_h), (c, h)) if lstm else ((final_h,), (h,))
    emitted = ((k, k_state, k_c)[: 1 + (gates == 4) + lstm], h_before) if emit else None
    return final, record if states else h, emitted


def transposed(
    form: Form,
    coefficients: Sequence[Array],
    w_h: Array,
    d_record: Any,
    d_final: tuple[Array, ...],
    *,
    valid: Array | None = None,
    reset: Array | None = None,
    reverse: bool = False,
    states: bool = False,
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...] | None]:
    """The transpose of the linear recurrence, whose products for the weights and for x are left to do.

    Args:
        form: the form of the step.
        coefficients: of :func:`forward`; of another cell its diagonals, each ``[T, B, H]``, or some side by side.
        w_h: the recurrent weights, ``[H, (head + tail)·H]``.
        d_record: the cotangent of what was recorded.
        d_final: the cotangent of the final state.
        valid: as it was given; and ``reset``, ``reverse`` and ``states``.
        reset: see there.
        reverse: see there.
        states: see there.

    Returns:
        dz, the cotangent of all pre-activations, ``[T, B, gates·H]``, 0 where a step is skipped; the cotangent of the
        start; and that of the fresh state, summed over time, or None where there are no resets.
    """
    two = len(d_final) == 2
    d_c, d_h = _pair(d_record if states else (d_record,), none := _none(w_h.dtype))
    steps, batch, hidden = d_h.shape
    dtype, empty = w_h.dtype, jax.ShapeDtypeStruct((0,), w_h.dtype)
    state = jax.ShapeDtypeStruct((batch, hidden), dtype)
    c_like, fresh = state if two else empty, reset is not None
    dz = jax.ShapeDtypeStruct((steps, batch, form.gates * hidden), dtype)
    arrays = w_h, d_h, d_c, *_pair(d_final, none), _flags(valid), _flags(reset)
    # dz lies where the coefficients of all gates lay, if nobody else wants these: less memory to page in.
    over = {len(arrays): 0} if coefficients[0].shape == dz.shape else {}
    dz, d_start_c, d_start_h, d_fresh_c, d_fresh_h = _call(
        "lstmjax_transposed",
        (dz, c_like, state, c_like if fresh else empty, state if fresh else empty),
        input_output_aliases=over,
    )(
        *arrays, *coefficients, gates=np.int64(form.gates), head=np.int64(form.head), tail=np.int64(form.tail),
        pairs=np.array(form.pairs, np.int64).ravel(), reverse=reverse, states=states, two=two,
    )  # fmt: skip
    d_start, d_fresh = ((d_start_c, d_start_h), (d_fresh_c, d_fresh_h)) if two else ((d_start_h,), (d_fresh_h,))
    return dz, d_start, d_fresh if fresh else None


def weight_gradients(form: Form, x: Array, h_before: Array, dz: Array) -> tuple[Array, Array, Array]:
    """The cotangents of ``w_x``, ``w_h`` and ``b``: `xᵀ dz`, `h_beforeᵀ dz` and `Σ dz` over steps and rows.

    Args:
        form: the form of the step.
        x: ``[T, B, I]``, finite where a step is skipped, since there dz is 0.
        h_before: ``[T, B, H]``, what each step started from.
        dz: ``[T, B, gates·H]``, of :func:`transposed`.

    Returns:
        ``[I, by_x·H]``, ``[H, (head + tail)·H]`` and ``[gates·H]``.
    """
    rows, hidden = x.shape[0] * x.shape[1], h_before.shape[-1]
    shapes = [(x.shape[-1], form.by_x * hidden), (hidden, (form.head + form.tail) * hidden), (dz.shape[-1],)]
    flat = [a.reshape(rows, a.shape[-1]) for a in (x, h_before, dz)]
    call = _call("lstmjax_gradient", tuple(jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes))
    return tuple(call(*flat, by_x=np.int64(form.by_x), head=np.int64(form.head), tail=np.int64(form.tail)))


def functions(z: Array) -> tuple[Array, Array, Array, Array]:
    """`σ`, `σ'`, `tanh` and `tanh'` of any array, as the kernels compute them: for tests of their accuracy."""
    shape = jax.ShapeDtypeStruct(z.shape, z.dtype)
    return tuple(_call("lstmjax_functions", (shape,) * 4)(z))


def _call(name: str, shapes: tuple[jax.ShapeDtypeStruct, ...], **options: Any) -> Any:
    if (why := why_not()) is not None:
        raise RuntimeError(why)
    return jax.ffi.ffi_call(name, shapes, vmap_method="sequential", **options)


def _none(dtype: Any) -> Array:
    """What the library takes for an array that is left out."""
    return jnp.zeros(0, dtype)


def _flags(flags: Array | None) -> Array:
    return _none(np.dtype(bool)) if flags is None else flags


def _pair(state: tuple[Array, ...] | None, none: Array) -> tuple[Array, Array]:
    """c and h of a state, either of which may be missing."""
    if state is None:
        return none, none
    return (none, state[0]) if len(state) == 1 else (state[0], state[1])
