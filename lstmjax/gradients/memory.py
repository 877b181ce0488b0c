"""Linear memory capacity: how much of an input signal, and how far back, can be read off the state by a line."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from lstmjax.cells.base import Cell
from lstmjax.checks import whole_number
from lstmjax.gradients import scaled
from lstmjax.gradients.linear import as_cell
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.typing import Params, State
from lstmjax.unroll import state_history


class MemoryCapacity(NamedTuple):
    """How much of a signal is still in the state.

    Attributes:
        by_delay: ``[delays + 1]`` the share of the variance of `u_{t−k}` that a line through the state at t explains, k
            from 0 on: 1 is all of it. An estimate scatters around 0 where nothing is left.
        total: their sum. No more than the number of independent directions in the state.
        error: the standard deviation of ``total`` over signals, as theory has it for so many samples and a state of
            independent draws; 0 of an exact one.
        rank: how many directions of the state stand above its rounding.
    """

    by_delay: NDArray
    total: float
    error: float
    rank: int


@at_highest_precision
def memory_capacity(
    cell: Cell | Callable,
    params: Params,
    signal: Any,
    delays: int,
    state: State | None = None,
    *,
    into: Any = (1.0,),
    washout: int = 100,
) -> MemoryCapacity:
    """The linear memory capacity of a network, and its curve by delay, estimated from a run on a random signal.

    ::

        MC_k = max_w corr²(w · s_t, u_{t−k}),     MC = Σ_k MC_k ≤ rank

    The naive estimate, a regression and its `R²` for each delay, is too large: n numbers explain n of N samples of
    anything, so each delay adds `n/N` that is no memory, and the sum passes its bound. Here the states are made
    orthonormal (directions below their rounding are left out), so are the delayed signals, each against the more recent
    ones, and from each `R²` the share is taken that a signal without any memory has on average::

        MC_k = (R²_k − m_k) / (1 − m_k),     m_k = (rank − Σ_{j<k} R²_j) / (N − 1 − k)

    A direction that rounding hides from this estimate is missing in it, and of a linear network many are: for that one
    :func:`linear_memory` has the exact capacity.

    Args:
        cell: any cell, or a bare ``step(params, state, x) -> (state, y)`` together with a ``state``.
        params: its parameters.
        signal: ``[T, *B]`` independent draws from one distribution: the scale of it is part of the question, as the
            capacity of a network that is not linear depends on it. Rows are pooled.
        delays: K, the longest delay; well beyond where memory ends, or ``total`` lacks what is there.
        state: the state before the first step; the cell's initial state unless given.
        into: ``[I]`` how the signal comes in: `x_t = u_t · into`.
        washout: steps at the start of each row that are not counted, besides the K that have no `u_{t−K}`.

    Returns:
        A :class:`MemoryCapacity`, computed from the states in float64.

    Raises:
        ValueError: signal has no axis, or leaves too few samples for the state and the delays; delays is no whole
            number of at least 1, washout none of at least 0.
        FloatingPointError: a state is not finite.

    Source: Jaeger (2001); on what goes wrong in computing it, Ballarin, Grigoryeva & Ortega (2024).

    >>> def shift(params, state, x):  # a delay line of five units
    ...     return jnp.concatenate([x, state[:-1]]), x
    >>> found = memory_capacity(shift, None, jax.random.normal(jax.random.key(0), (2000,)), 20, jnp.zeros(5))
    >>> print(f"{found.total:.1f}", found.rank, found.by_delay.round(1)[:7])
    5.0 5 [1. 1. 1. 1. 1. 0. 0.]
    """
    delays, washout = whole_number("delays", delays), whole_number("washout", washout, 0)
    signal = scaled.wide(jnp.asarray(signal))
    if signal.ndim == 0:
        raise ValueError("signal is one number; wanted [T, *B]")
    into = jnp.asarray(into, signal.dtype)
    params, state = scaled.wide((params, state))
    states = state_history(as_cell(cell, state), params, jnp.multiply.outer(signal, into), state)
    first, rows = delays + washout, math.prod(signal.shape[1:])
    of_state = [np.asarray(leaf, np.float64)[first:] for leaf in jax.tree.leaves(states)]
    samples = max(len(signal) - first, 0) * rows
    seen = np.concatenate([leaf.reshape(samples, -1) for leaf in of_state], axis=1) if samples else np.zeros((0, 1))
    if samples <= seen.shape[1] + delays + 2:
        raise ValueError(
            f"signal leaves {samples} samples after {washout} steps of washout and {delays} delays; wanted more than "
            "the numbers in the state and the delays together, and many times more for a small error"
        )
    if not np.isfinite(seen).all():
        raise FloatingPointError("states hold a NaN or an infinity")
    u = np.asarray(signal, np.float64)
    past = np.stack([u[first - k : len(u) - k].reshape(-1) for k in range(delays + 1)], axis=1)
    directions, sizes, _ = np.linalg.svd(seen - seen.mean(0), full_matrices=False)
    rounding = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(states))
    directions = directions[:, sizes > 10 * rounding * sizes[:1]]
    orthonormal, _ = np.linalg.qr(past - past.mean(0))
    explained = ((directions.T @ orthonormal) ** 2).sum(0)
    rank, count = directions.shape[1], samples - 1 - np.arange(delays + 1)
    # What is left for a delay to explain by chance; each is orthogonal to the more recent ones.
    left = np.maximum(rank - np.cumsum(explained) + explained, 0)
    by_delay = (explained - left / count) / (1 - left / count)
    known = np.clip(by_delay, 0, 1)
    variance = 2 * left / count**2 + 4 * known * (1 - known) ** 2 / count
    return MemoryCapacity(by_delay, float(by_delay.sum()), float(np.sqrt(variance.sum())), rank)


def linear_memory(w_h: Any, delays: int) -> MemoryCapacity:
    """The exact linear memory capacity of a linear network `h_t = h_{t−1} W + u_t w` that its input reaches in full.

    It depends on the eigenvalues `λ_1 … λ_n` of W alone, whatever w is, as long as no direction of the state is out of
    the input's reach; a w drawn at random reaches all. The responses of the state to one pulse span the space of those
    of a chain of all-pass filters, which are orthonormal (Takenaka and Malmquist's functions), so that::

        MC_k = Σ_j |φ_j(k)|²,     φ_j(z) = √(1 − |λ_j|²) / (1 − λ_j z⁻¹)  Π_{i<j} (z⁻¹ − λ̄_i) / (1 − λ_i z⁻¹)

    and the sum over all k is n, exactly. No covariance matrix is inverted: of a random W of 30 units it has a
    condition number of 1e17, and estimates by it fall short of n.

    Args:
        w_h: ``[n, n]`` W, all its eigenvalues below 1 in size.
        delays: the longest delay.

    Returns:
        A :class:`MemoryCapacity` with ``delays + 1`` delays; ``total`` is n, over all delays, however few are told.

    Raises:
        ValueError: W is not square, holds what is not finite, or an eigenvalue is not below 1 in size; delays is no
            whole number of at least 1.

    Source: Jaeger (2001) for the total; Ballarin, Grigoryeva & Ortega (2024), who show that w does not matter;
    Heuberger, Van den Hof & Wahlberg (2005) for the functions.

    >>> found = linear_memory(np.diag([0.9, 0.5]), 200)
    >>> round(float(found.by_delay.sum()), 6), found.total
    (2.0, 2.0)
    """
    from scipy.signal import lfilter  # slow to import, and wanted here alone

    w_h, delays = np.asarray(w_h, np.float64), whole_number("delays", delays)
    if w_h.ndim != 2 or w_h.shape[0] != w_h.shape[1] or not np.isfinite(w_h).all():
        raise ValueError(f"w_h has shape {w_h.shape}; wanted [n, n], all of it finite")
    eigenvalues = np.linalg.eigvals(w_h)
    if (largest := np.abs(eigenvalues).max(initial=0.0)) >= 1:
        raise ValueError(f"w_h has an eigenvalue of size {largest:.6g}; wanted all below 1: else no memory ends")
    pulse = np.zeros(delays + 1, complex)
    pulse[0] = 1.0
    by_delay = np.zeros(delays + 1)
    for value in eigenvalues:
        decay = lfilter([1.0], [1.0, -value], pulse)
        by_delay += (1 - abs(value) ** 2) * np.abs(decay) ** 2
        pulse = lfilter([-np.conj(value), 1.0], [1.0, -value], pulse)
    return MemoryCapacity(by_delay, float(len(w_h)), 0.0, len(w_h))
