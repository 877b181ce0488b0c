"""The recurrences of LSTM, GRU and vanilla RNN on CPU, in C++ behind ``jax.ffi``: forward, and their transpose.

Functions on arrays, to be traced: they have no derivative of their own. Time is the first axis, the batch is one axis,
and all floating arrays are of one dtype, float32 or float64. The library is built with the package where there is a C++
compiler, ``kernels.so`` beside this file; without it ``why_not`` says so, and nothing here may be called.

A state is the tuple of its leaves, ``(c, h)`` or ``(h,)``, each ``[B, H]``.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lstmjax.gates import split_gates

KINDS = ("lstm", "gru", "rnn", "relu")
"""The cells, with σ and tanh; ``relu`` is the vanilla RNN with another activation."""

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

        Coefficients are as :meth:`lstmjax.recurrence.parts.Parts.linearise` gives them, ``[T, B, ...]``, and 0 where a
        step is skipped. The ``h_before [T, B, H]`` beside them is what a step started from, after its reset.
    """
    steps, batch, _ = x.shape
    hidden, dtype, lstm = weights[1].shape[0], x.dtype, kind == "lstm"
    none, gates = _none(dtype), _gates(kind)

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
    emitted = (_coefficients(kind, k, k_state, k_c), h_before) if emit else None
    return final, record if states else h, emitted


def transposed(
    kind: str,
    coefficients: Any,
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
        kind: one of :data:`KINDS`.
        coefficients: of :func:`forward`.
        w_h: the recurrent weights.
        d_record: the cotangent of its record.
        d_final: the cotangent of its final state.
        valid: as it was given; and ``reset``, ``reverse`` and ``states``.
        reset: see there.
        reverse: see there.
        states: see there.

    Returns:
        dz, the cotangent of all pre-activations, ``[T, B, N]`` (the GRU's N is 4H), 0 where a step is skipped; the
        cotangent of the start; and that of the fresh state, summed over time, or None where there are no resets.
    """
    lstm = kind == "lstm"
    d_c, d_h = _pair(d_record if states else (d_record,), none := _none(w_h.dtype))
    steps, batch, hidden = d_h.shape
    dtype, empty = w_h.dtype, jax.ShapeDtypeStruct((0,), w_h.dtype)
    state = jax.ShapeDtypeStruct((batch, hidden), dtype)
    k, k_state, k_c = _leaves(kind, coefficients, none)
    c_like, fresh = state if lstm else empty, reset is not None
    dz, d_start_c, d_start_h, d_fresh_c, d_fresh_h = _call(
        "lstmjax_transposed",
        (
            jax.ShapeDtypeStruct((steps, batch, _gates(kind) * hidden), dtype),
            c_like,
            state,
            c_like if fresh else empty,
            state if fresh else empty,
        ),
        input_output_aliases={0: 0},  # dz lies where k lay, if nobody else wants that: less memory to page in
    )(
        k, k_state, k_c, w_h, d_h, d_c, *_pair(d_final, none), _flags(valid), _flags(reset),
        kind=np.int64(KINDS.index(kind)), reverse=reverse, states=states,
    )  # fmt: skip
    d_start, d_fresh = ((d_start_c, d_start_h), (d_fresh_c, d_fresh_h)) if lstm else ((d_start_h,), (d_fresh_h,))
    return dz, d_start, d_fresh if fresh else None


def weight_gradients(kind: str, x: Array, h_before: Array, dz: Array) -> tuple[Array, Array, Array]:
    """The cotangents of ``w_x``, ``w_h`` and ``b``: `xᵀ dz`, `h_beforeᵀ dz` and `Σ dz` over steps and rows.

    Args:
        kind: one of :data:`KINDS`.
        x: ``[T, B, I]``, finite where a step is skipped, since there dz is 0.
        h_before: ``[T, B, H]``, of :func:`forward`.
        dz: ``[T, B, N]``, of :func:`transposed`.

    Returns:
        ``[I, N]``, ``[H, N]`` and ``[N]``, of the GRU 3H, 3H and 4H wide.
    """
    rows, hidden = x.shape[0] * x.shape[1], h_before.shape[-1]
    width = (3 if kind == "gru" else _gates(kind)) * hidden
    shapes = [(x.shape[-1], width), (hidden, width), (dz.shape[-1],)]
    flat = [a.reshape(rows, a.shape[-1]) for a in (x, h_before, dz)]
    call = _call("lstmjax_gradient", tuple(jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes))
    return tuple(call(*flat, kind=np.int64(KINDS.index(kind))))


def functions(z: Array) -> tuple[Array, Array, Array, Array]:
    """`σ`, `σ'`, `tanh` and `tanh'` of any array, as the kernels compute them: for tests of their accuracy."""
    shape = jax.ShapeDtypeStruct(z.shape, z.dtype)
    return tuple(_call("lstmjax_functions", (shape,) * 4)(z))


def _call(name: str, shapes: tuple[jax.ShapeDtypeStruct, ...], **options: Any) -> Any:
    if (why := why_not()) is not None:
        raise RuntimeError(why)
    return jax.ffi.ffi_call(name, shapes, vmap_method="sequential", **options)


def _gates(kind: str) -> int:
    return 4 if kind in ("lstm", "gru") else 1


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


def _coefficients(kind: str, k: Array, k_state: Array, k_c: Array) -> Any:
    """As the parts of each cell's step have them: the LSTM's by hand, the others' derived.

    Taken out and put back (:func:`_leaves`) in one program, these are no copies: XLA finds the whole again.
    """
    gates = split_gates(k, _gates(kind))
    if kind == "lstm":
        return gates, k_state, k_c
    return [*gates, k_state] if kind == "gru" else list(gates)


def _leaves(kind: str, coefficients: Any, none: Array) -> tuple[Array, Array, Array]:
    gates, k_state, k_c = coefficients if kind == "lstm" else (coefficients[: _gates(kind)], none, none)
    if kind == "gru":
        k_state = coefficients[-1]
    return jnp.concatenate(gates, axis=-1), k_state, k_c
