"""The LSTM of NVIDIA's cuDNN, through ``jax.experimental.rnn``, for requests that it serves correctly.

It knows LSTMs with σ and tanh in float32, lengths, and reverse-mode derivatives of first order; no masks, no resets,
no history of c, and under ``jax.vmap`` or ``jax.jvp`` it raises. Products are taken in TF32 unless JAX's matmul
precision is ``"highest"``.

cuDNN keeps all weights in one flat vector: for each layer and direction `W_x` and `W_h`, as ``(4H, in)``, then for each
again two biases that add. The gates are in the order i, f, g, o, as here.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array, Float

from lstmjax.cells.base import Cell
from lstmjax.cells.lstm import LSTMParams, LSTMState, recurrence
from lstmjax.recurrence.scan import select


def flatten_lstm(layers: Sequence[LSTMParams]) -> Float[Array, " N"]:
    """Puts the weights of LSTM layers into cuDNN's flat vector.

    Args:
        layers: parameters in cuDNN's order: layer by layer, of a bidirectional layer the forward cell first.

    Returns:
        All `W_x` and `W_h`, then all biases; the second bias of each pair is zero.

    >>> params = LSTMParams(jnp.arange(8.0).reshape(2, 4), jnp.full((1, 4), 9.0), jnp.ones(4))
    >>> flatten_lstm([params]).tolist()
    [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    weights = [w.T.reshape(-1) for p in layers for w in (p.w_x, p.w_h)]
    biases = [b for p in layers for b in (p.b, jnp.zeros_like(p.b))]
    return jnp.concatenate(weights + biases)


def unflatten_lstm(
    flat: Float[Array, " N"], input_size: int, hidden_size: int, *, num_layers: int = 1, bidirectional: bool = False
) -> list[LSTMParams]:
    """Takes the weights of LSTM layers out of cuDNN's flat vector, the two biases of each added.

    Args:
        flat: ``[N]``.
        input_size: I, of the first layer.
        hidden_size: H, the number of hidden units.
        num_layers: how many layers.
        bidirectional: whether each layer has a forward and a backward cell.

    Returns:
        Parameters in cuDNN's order, as :func:`flatten_lstm` takes them.

    Raises:
        ValueError: the vector is not as long as these sizes ask for.

    >>> unflatten_lstm(jnp.zeros(20), input_size=2, hidden_size=1)[0].w_x.shape
    (2, 4)
    """
    directions = 2 if bidirectional else 1
    inputs = [input_size] * directions + [directions * hidden_size] * (directions * (num_layers - 1))
    fused = 4 * hidden_size
    wanted = sum(fused * (n + hidden_size + 2) for n in inputs)
    if flat.shape != (wanted,):
        raise ValueError(
            f"flat has shape {flat.shape}; wanted {(wanted,)}, for input_size={input_size}, hidden_size={hidden_size}, "
            f"num_layers={num_layers}, bidirectional={bidirectional}"
        )
    shapes = [(fused, n) for size in inputs for n in (size, hidden_size)] + [(fused,)] * (2 * len(inputs))
    ends = np.cumsum([np.prod(shape) for shape in shapes])[:-1]
    parts = [part.reshape(shape) for part, shape in zip(jnp.split(flat, ends), shapes, strict=True)]
    weights, biases = parts[: 2 * len(inputs)], parts[2 * len(inputs) :]
    return [LSTMParams(weights[n].T, weights[n + 1].T, biases[n] + biases[n + 1]) for n in range(0, len(weights), 2)]


def check_request(cell: Cell, params: LSTMParams, xs: Array, state: LSTMState | None, **unserved: object) -> None:
    """Raises where cuDNN cannot serve a request, saying why; ``unserved`` are arguments it wants to be None.

    Which platform the program is for is known only where it is lowered, and :func:`only_for_nvidia` looks there.
    """
    why = [f"{name} is given" for name, value in unserved.items() if value is not None]
    if cell.step != recurrence():
        why.append("the cell is no LSTM with σ and tanh")
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves((params, xs, state))}
    if dtypes != {"float32"}:
        why.append(f"params, xs and state hold {', '.join(sorted(dtypes))}, not float32 alone")
    if cell.over is not None:
        why.append("the cell's units are split over devices")
    if why:
        raise ValueError(f"implementation is 'cudnn', which cannot serve this: {'; '.join(why)}")


def only_for_nvidia(lengths: Array) -> Array:
    """The same lengths, in a program for an NVIDIA GPU; lowered for another platform it raises."""
    return _only_for_nvidia.bind(lengths)


_only_for_nvidia = Primitive("only_for_nvidia")
_only_for_nvidia.def_impl(jax.jit(only_for_nvidia))
_only_for_nvidia.def_abstract_eval(lambda lengths: lengths)
mlir.register_lowering(_only_for_nvidia, lambda ctx, lengths: [lengths], platform="cuda")


@partial(mlir.register_lowering, _only_for_nvidia)
def _refuse(ctx: Any, _: Any) -> Any:
    platforms = ", ".join(ctx.platforms or ctx.module_context.platforms)
    raise ValueError(
        f"implementation is 'cudnn', and the program is lowered for {platforms}; wanted it for an NVIDIA GPU, cuda"
    )


def cudnn_scan(
    params: LSTMParams, start: LSTMState, xs: Float[Array, "T *B I"], lengths: Array | None, reverse: bool
) -> tuple[LSTMState, Float[Array, "T *B H"]]:
    """What ``lax.scan`` over the LSTM's step returns, from cuDNN.

    Args:
        params: weights.
        start: the state before the first step.
        xs: inputs.
        lengths: ``[*B]``, from 0 to T, or None.
        reverse: whether each row runs from its own last step to its first.

    Returns:
        The final state and the outputs, zero where a row has ended.
    """
    from jax.experimental import rnn

    steps, *batch, inputs = xs.shape
    hidden = params.w_h.shape[0]
    if 0 in (steps, *batch):  # nothing to run, and cuDNN refuses that
        return start, jnp.zeros((steps, *batch, hidden), xs.dtype)
    rows = xs.reshape(steps, -1, inputs)
    lengths = jnp.full(rows.shape[1], steps) if lengths is None else lengths.reshape(-1)
    lengths = only_for_nvidia(jnp.clip(lengths, 0, steps).astype(jnp.int32))
    # In each row, where the n-th step it takes stands; and, since that is its own inverse, which step stands there.
    times = jnp.arange(steps, dtype=jnp.int32)[:, None]
    order = jnp.where(times < lengths, lengths - 1 - times, times)[..., None] if reverse else None

    if order is not None:
        rows = jnp.take_along_axis(rows, order, axis=0)
    h, c = (leaf.reshape(1, -1, hidden) for leaf in (start.h, start.c))
    run: Any = rnn.lstm
    arrays = (
        rows.swapaxes(0, 1), h, c, flatten_lstm([params]),
        jnp.maximum(lengths, 1),  # a row of no steps is refused: it takes one, undone below
    )  # fmt: skip
    try:
        ys, h, c = run(*arrays, inputs, hidden, 1, 0.0, False)
    except (AttributeError, RuntimeError) as error:
        raise ValueError(
            "implementation is 'cudnn', and JAX, which asks cuDNN for sizes where it traces, finds none here; wanted "
            f"a machine that has it, with an NVIDIA GPU: {error}"
        ) from error
    ys = ys.swapaxes(0, 1)
    if order is not None:
        ys = jnp.take_along_axis(ys, order, axis=0)
    ys = jnp.where((times < lengths)[..., None], ys, 0)
    final = LSTMState(c.reshape(start.c.shape), h.reshape(start.h.shape))
    return select(lengths.reshape(batch) > 0, final, start), ys.reshape(steps, *batch, hidden)
