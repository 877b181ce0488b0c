"""The Jacobian of the last state by every earlier one: what any loss at the end could still feel of it.

A weight gradient that is not zero does not show that long dependencies survive: the terms at short lag dominate its
sum. `∂s_T/∂s_t` does show it, and its norms bound the gradient of every loss.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell
from lstmjax.checks import whole_number
from lstmjax.gradients import scaled
from lstmjax.gradients.linear import Linearised, blank_padding, linearised
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.typing import Params, State

Method = Literal["exact", "matrix-free"] | None

# The state size up to which None means "exact": there, carrying the matrix costs no more than iterating without it.
EXACT_UP_TO = 512


class JacobianNorms(NamedTuple):
    """Natural logarithms of the norms of `P_t = ∂s_T/∂s_t` and of its blocks.

    The keys are ``"full"`` and, for parts a and b of the state, ``"ab"`` for `∂a_T/∂b_t`: of an LSTM ``"cc"``,
    ``"ch"``, ``"hc"`` and ``"hh"``.

    Attributes:
        operator: the largest singular value, the most that any direction of `s_t` is stretched, ``[times, *B]``.
        frobenius: the root of the sum of squares of all singular values, ``[times, *B]``.
    """

    operator: dict[str, Array]
    frobenius: dict[str, Array]


@at_highest_precision
def jacobian_norms(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    times: Sequence[int] | None = None,
    method: Method = None,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> JacobianNorms:
    """`ln ‖∂s_T/∂s_t‖`, operator and Frobenius norm, whole and by blocks, row by row.

    ::

        P_T = 1,   P_{t−1} = P_t J_t,   J_t = ∂s_t/∂s_{t−1}

    ``"exact"`` carries `P_t`, `n × n` for a state of n numbers, and takes singular values at the wanted times; memory
    does not grow with T beyond that of the unroll. ``"matrix-free"`` never forms it: the operator norm comes from 20
    power iterations with `PᵀP`, each a pass forwards and one backwards from every wanted time (a lower bound, within a
    few per cent), the Frobenius norm from 64 random vectors pulled back once (standard error below 9 %).

    Args:
        cell: any cell, or a bare ``step(params, state, x) -> (state, y)`` together with a ``state``.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        state: the state before the first step; the cell's initial state unless given.
        times: the t wanted, from 0 (before the first step) to T; all `T + 1` unless given.
        method: None: exact up to a state of 512 numbers, an LSTM of 256 units.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`. With lengths,
            `s_T` is each row's state after its own last step.

    Returns:
        Natural logarithms, float32 at least, −∞ where a Jacobian is exactly zero, NaN after a row's end.

    Raises:
        ValueError: a time is no whole number from 0 to T, or as :func:`~lstmjax.unroll`.
        TypeError: as :func:`~lstmjax.unroll`.
        FloatingPointError: parameters, inputs or states are not finite.

    Source: Pascanu, Mikolov & Bengio (2013), section 2; Arpit et al. (2018). For a tanh RNN the operator norm is at
    most `‖W_h‖₂^(T−t)`; the condition on `W_h`'s spectral radius that is often quoted holds for linear networks alone.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8, w_h_init=jax.nn.initializers.zeros)  # W_h = 0: the highway alone
    >>> params = cell.init(jax.random.key(0), 3)
    >>> norms = jacobian_norms(cell, params, jnp.zeros((100, 3)), times=[0, 50])
    >>> [round(float(n) / lag, 4) for n, lag in zip(norms.operator["cc"], (100, 50))]  # ln σ(1) a step
    [-0.3133, -0.3133]
    """
    params, xs, state = scaled.wide((params, xs, state))
    linear = linearised(cell, params, xs, state, lengths=lengths, mask=mask, resets=resets)
    steps = jnp.shape(xs)[0]
    chosen = tuple(range(steps + 1) if times is None else (whole_number("times", t, 0) for t in times))
    if any(t > steps for t in chosen):
        raise ValueError(f"times run from {min(chosen)} to {max(chosen)}; wanted 0 to T = {steps}")
    if method not in (None, "exact", "matrix-free"):
        raise ValueError(f"method is {method!r}; wanted None, 'exact' or 'matrix-free'")
    if method is None:
        method = "exact" if sum(linear.sizes) <= EXACT_UP_TO else "matrix-free"
    norms = (_exact if method == "exact" else _matrix_free)(linear, chosen)
    return blank_padding(norms, lengths, chosen)


def identity_rows(linear: Linearised, parts: Sequence[int] | None = None) -> State:
    """One adjoint for every number of the state, or of some of its leaves: each leaf ``[*B, n, ...]``."""
    leaves, tree = jax.tree.flatten(linear.states)
    shapes = [leaf.shape[1 + linear.batch_axes :] for leaf in leaves]
    ends = np.cumsum([0, *linear.sizes])
    parts = range(len(leaves)) if parts is None else parts
    chosen = np.concatenate([np.arange(ends[p], ends[p + 1]) for p in parts])
    eye = np.eye(ends[-1])[chosen]
    return jax.tree.unflatten(
        tree,
        [
            jnp.broadcast_to(
                jnp.asarray(eye[:, ends[p] : ends[p + 1]], leaf.dtype).reshape(len(chosen), *shapes[p]),
                (*linear.batch, len(chosen), *shapes[p]),
            )
            for p, leaf in enumerate(leaves)
        ],
    )


def pull_rows(linear: Linearised, at: Any, rows: State) -> State:
    """`Jᵀ` of many adjoints at once, leaves ``[*B, n, ...]``."""
    return jax.vmap(partial(linear.pull, at), in_axes=linear.batch_axes, out_axes=linear.batch_axes)(rows)


def part_names(state: State) -> list[str]:
    """A name for each leaf of a state: its field, or its path."""
    fields = getattr(state, "_fields", None)
    leaves = jax.tree.leaves_with_path(state)
    if fields is not None and len(fields) == len(leaves):
        return list(fields)
    return [jax.tree_util.keystr(path) or "s" for path, _ in leaves]


@partial(jax.jit, static_argnums=1)
def _exact(linear: Linearised, times: tuple[int, ...]) -> JacobianNorms:
    names = part_names(linear.states)
    ends = np.cumsum([0, *linear.sizes])

    def norms(rows, exponent):
        matrix = scaled.flat(rows, exponent.ndim + 1)
        blocks = {"full": matrix}
        for a, name_a in enumerate(names):
            for b, name_b in enumerate(names):
                blocks[name_a + name_b] = matrix[..., ends[a] : ends[a + 1], ends[b] : ends[b + 1]]
        return JacobianNorms(
            {name: _log_largest_singular_value(block, exponent) for name, block in blocks.items()},
            {name: scaled.log_norm(block, exponent) for name, block in blocks.items()},
        )

    def backward(carry, at):
        step, wanted = at
        rows, exponent = carry
        carry = scaled.normalised(pull_rows(linear, step, rows), exponent)
        return carry, lax.cond(wanted, norms, lambda *_: zeros, *carry)

    start = identity_rows(linear), jnp.zeros(linear.batch, jnp.int32)
    at_end = norms(*start)
    zeros = jax.tree.map(jnp.zeros_like, at_end)
    steps = jax.tree.leaves(linear.states)[0].shape[0] - 1
    wanted = np.isin(np.arange(steps), times)
    _, before = lax.scan(backward, start, (linear.steps, jnp.asarray(wanted)), reverse=True)
    return jax.tree.map(lambda n, end: jnp.concatenate([n, end[None]])[np.array(times, int)], before, at_end)


def _log_largest_singular_value(block: Array, exponent: Array) -> Array:
    top = lax.stop_gradient(jnp.abs(block).max((-2, -1), initial=0.0))
    nothing = top == 0
    top = jnp.where(nothing, 1.0, top)
    sigma = jnp.linalg.norm(block / top[..., None, None], ord=2, axis=(-2, -1))
    log = jnp.log(jnp.where(nothing, 1.0, sigma)) + jnp.log(top) + scaled.log_of_power(exponent, top.dtype)
    return jnp.where(nothing, -jnp.inf, log)


@partial(jax.jit, static_argnums=1)
def _matrix_free(linear: Linearised, times: tuple[int, ...], iterations: int = 20, probes: int = 64) -> JacobianNorms:
    names = part_names(linear.states)
    here = jax.tree.map(lambda leaf: leaf[0], linear.states)
    tree = jax.tree.structure(here)
    keys = jax.random.split(jax.random.key(0))
    parts = [tuple(float(n == p) for n in range(len(names))) for p in range(len(names))]
    everything = (1.0,) * len(names)
    blocks = {"full": (everything, everything)}
    blocks |= {a + b: (parts[n], parts[m]) for n, a in enumerate(names) for m, b in enumerate(names)}
    onto, out_of = (jnp.array([pair[side] for pair in blocks.values()]) for side in (0, 1))
    operator = jax.vmap(
        lambda t: jax.vmap(lambda a, b: _power_iteration(linear, t, a, b, keys[0], iterations))(onto, out_of)
    )(jnp.array(times))

    def backward(carry, step):
        rows, exponent = carry
        carry = scaled.normalised(pull_rows(linear, step, rows), exponent)
        return carry, carry

    random = _random_like(here, keys[1], (probes,), linear.batch_axes)
    groups = range(len(names))  # probes of one part alone, then of the next
    rows = [
        jnp.concatenate([leaf if n == p else jnp.zeros_like(leaf) for n in groups], axis=linear.batch_axes)
        for p, leaf in enumerate(jax.tree.leaves(random))
    ]
    rows = jax.tree.unflatten(tree, rows)
    end = scaled.normalised(rows, jnp.zeros(linear.batch, jnp.int32))
    _, before = lax.scan(backward, end, linear.steps, reverse=True)
    pulled, exponents = jax.tree.map(
        lambda n, last: jnp.concatenate([n, last[None]])[np.array(times, int)], before, end
    )
    frobenius = {}
    for n, a in enumerate(names):
        for b, leaf in zip(names, jax.tree.leaves(pulled), strict=True):
            group = lax.slice_in_dim(leaf, n * probes, (n + 1) * probes, axis=1 + linear.batch_axes)
            frobenius[a + b] = scaled.log_norm(group, exponents) - 0.5 * np.log(probes).astype(group.dtype)
    whole = 0.5 * jax.nn.logsumexp(2 * jnp.stack(list(frobenius.values())), axis=0)
    return JacobianNorms({name: operator[:, n] for n, name in enumerate(blocks)}, {"full": whole} | frobenius)


def _power_iteration(linear, start, onto, out_of, key, iterations):
    """ln of the largest singular value of a block of P_t by power iteration with its square."""
    steps = jnp.arange(jax.tree.leaves(linear.states)[0].shape[0] - 1)

    def masked(state, weights):
        leaves, tree = jax.tree.flatten(state)
        return jax.tree.unflatten(tree, [leaf * w.astype(leaf.dtype) for leaf, w in zip(leaves, weights, strict=True)])

    def through(move, state, reverse):
        def body(carry, at):
            step, index = at
            moved = scaled.normalised(move(step, carry[0]), carry[1])
            return jax.tree.map(lambda new, old: jnp.where(index >= start, new, old), moved, carry), None

        first = state, jnp.zeros(linear.batch, jnp.int32)
        return lax.scan(body, first, (linear.steps, steps), reverse=reverse)[0]

    def iterate(vector, _):
        ahead, exponent = through(linear.push, vector, False)
        ahead = masked(ahead, onto)
        size = scaled.log_norm(ahead, exponent)
        back, _ = through(linear.pull, scaled.normalised(ahead, jnp.zeros_like(exponent))[0], True)
        return _unit(masked(back, out_of), linear.batch), size

    here = jax.tree.map(lambda leaf: leaf[0], linear.states)
    vector = _unit(masked(_random_like(here, key, (), linear.batch_axes), out_of), linear.batch)
    return lax.scan(iterate, vector, None, length=iterations)[1].max(0)


def _unit(vector: State, batch: tuple) -> State:
    vector, _ = scaled.normalised(vector, jnp.zeros(batch, jnp.int32))
    squares = (scaled.flat(vector, len(batch)) ** 2).sum(-1)
    norm = jnp.sqrt(jnp.where(squares == 0, 1.0, squares))
    return jax.tree.map(lambda leaf: leaf / norm.reshape(norm.shape + (1,) * (leaf.ndim - norm.ndim)), vector)


def _random_like(state: State, key: Array, sizes: tuple[int, ...], at: int) -> State:
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(key, len(leaves))
    shapes = [(*leaf.shape[:at], *sizes, *leaf.shape[at:]) for leaf in leaves]
    return jax.tree.unflatten(
        tree, [jax.random.normal(k, s, leaf.dtype) for k, s, leaf in zip(keys, shapes, leaves, strict=True)]
    )
