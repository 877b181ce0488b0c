"""What a loss owes to each input: the gradient by step and feature, and attributions that sum to its value."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell
from lstmjax.checks import whole_number
from lstmjax.gradients import scaled
from lstmjax.gradients.adjoint import adjoints
from lstmjax.gradients.linear import Linearised, as_cell, linearised
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.recurrence.inputs import as_sequence, prepare
from lstmjax.recurrence.scan import advance
from lstmjax.typing import Params, State
from lstmjax.unroll import state_history


class InputNorms(NamedTuple):
    """Natural logarithms of `∂L/∂x_t`; −∞ where it is exactly zero, as at steps that are not taken.

    Attributes:
        step: ``[T, *B]`` `ln ‖∂L/∂x_t‖₂` over all that the step reads.
        feature: ``[T, *B, I]`` `ln |∂L/∂x_ti|`, in the form of the inputs.
    """

    step: Array
    feature: Any


@at_highest_precision
def input_norms(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    loss_fn: Callable[[State], Array],
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> InputNorms:
    """`ln ‖∂L/∂x_t‖` for every input `x_1 … x_T`: which steps, and which features of them, the loss still feels.

    ::

        ∂L/∂x_t = (∂s_t/∂x_t)ᵀ λ_t,

    with `λ_t` the adjoint of :func:`~lstmjax.gradients.adjoint_norms`, and its exponent: no gradient is too small. Row
    t of the arrays, counted from 0, is the input of step `t + 1`; in a row that takes n steps it lags `n − 1 − t`
    behind the last.

    Args:
        cell: any cell, or a bare ``step(params, state, x) -> (state, y)`` together with a ``state``.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs of a floating dtype; of symbols give the one-hot vectors.
        loss_fn: ``states -> scalar`` over the history with the initial state in front, as for
            :func:`~lstmjax.gradients.adjoint_norms`. Sum over rows.
        state: the state before the first step; the cell's initial state unless given.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`.

    Returns:
        An :class:`InputNorms`, float32 at least.

    Raises:
        ValueError: as :func:`~lstmjax.unroll`.
        TypeError: inputs are not floating, or the loss is no scalar; or as :func:`~lstmjax.unroll`.
        FloatingPointError: parameters, inputs or states are not finite; says which, and from which step on.

    Source: Simonyan, Vedaldi & Zisserman (2014), there of pictures.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8, w_h_init=jax.nn.initializers.zeros)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> norms = input_norms(cell, params, jnp.zeros((1000, 3)), lambda states: states.h[-1].sum())
    >>> norms.feature.shape, f"{(norms.step[0] - norms.step[998]) / 998:.4f} a step"  # ln σ(1)
    ((1000, 3), '-0.3133 a step')
    """
    params, xs, state = scaled.wide((params, xs, state))
    _check_floating(xs)
    cell = as_cell(cell, state)
    options = {"lengths": lengths, "mask": mask, "resets": resets}
    linear = linearised(cell, params, xs, state, **options)
    sequence = as_sequence(cell, xs, state, lengths, mask, resets)
    return _by_input(cell, params, sequence, linear, jax.grad(loss_fn)(linear.states))


@partial(jax.jit, static_argnums=0)
def _by_input(cell: Cell, params: Params, sequence: Any, linear: Linearised, direct: State) -> InputNorms:
    _, fresh, timeline = prepare(cell, params, sequence)
    vectors, exponents = adjoints(linear, direct)
    before = jax.tree.map(lambda leaf: leaf[:-1], linear.states)
    after, exponents = jax.tree.map(lambda leaf: leaf[1:], (vectors, exponents))

    def pull(before, now, vector):
        def step(x):
            return advance(cell.step, params, fresh, before, now._replace(x=x))[0]

        return jax.vjp(step, now.x)[1](vector)[0]

    by_x = jax.vmap(pull)(before, timeline, after)
    return InputNorms(
        scaled.log_norm(by_x, exponents), jax.tree.map(lambda leaf: scaled.log_size(leaf, exponents), by_x)
    )


class IntegratedGradients(NamedTuple):
    """What each input adds to the loss, counted from a baseline.

    Attributes:
        by_input: ``[T, *B, I]`` attributions, in the form of the inputs; 0 at steps that are not taken.
        change: `L(x) − L(baseline)`.
        gap: `Σ by_input − change`, what the numerical integral is off by: more ``points`` make it smaller.
    """

    by_input: Any
    change: Array
    gap: Array


@at_highest_precision
def integrated_gradients(
    cell: Cell | Callable,
    params: Params,
    xs: Any,
    loss_fn: Callable[[State], Array],
    state: State | None = None,
    *,
    baseline: Any = None,
    points: int = 64,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> IntegratedGradients:
    """Attributions of a loss to its inputs that sum to its change from a baseline.

    ::

        a_ti = (x_ti − x̄_ti) ∫₀¹ ∂L/∂x_ti (x̄ + α (x − x̄)) dα,     Σ a_ti = L(x) − L(x̄)

    A gradient says what a small change of an input would do, and is near 0 where a gate is saturated; an attribution
    says what the input has done. The sum over features, ``by_input.sum(-1)``, is the share of each step.

    Args:
        cell: as for :func:`input_norms`, and so are the arguments that are not named here.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs of a floating dtype.
        loss_fn: ``states -> scalar``.
        state: the state before the first step.
        baseline: `x̄`, inputs of the form of ``xs``, or what spreads to them; zeros unless given.
        points: of the Gauss–Legendre quadrature, each the cost of a gradient. A trained network can want a hundred:
            ``gap`` tells.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`.

    Returns:
        An :class:`IntegratedGradients`, float32 at least.

    Raises:
        ValueError: points is no whole number of at least 1; the baseline does not fit; or as :func:`~lstmjax.unroll`.
        TypeError: inputs are not floating, or the loss is no scalar; or as :func:`~lstmjax.unroll`.

    Source: Sundararajan, Taly & Yan (2017).

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> xs = jax.random.normal(jax.random.key(1), (20, 3))
    >>> found = integrated_gradients(cell, params, xs, lambda states: states.h[-1].sum())
    >>> found.by_input.shape, bool(abs(found.gap) < 1e-5 * abs(found.change))
    ((20, 3), True)
    """
    params, xs, state, baseline = scaled.wide((params, jax.tree.map(jnp.asarray, xs), state, baseline))
    _check_floating(xs)
    cell = as_cell(cell, state)
    start = jax.tree.map(jnp.zeros_like, xs) if baseline is None else _spread(baseline, xs)
    difference = jax.tree.map(jnp.subtract, xs, start)

    def of_inputs(inputs):
        states = state_history(
            cell, params, inputs, state, include_initial=True, lengths=lengths, mask=mask, resets=resets
        )
        return loss_fn(states)

    def add(sums, at):
        alpha, weight = at
        inputs = jax.tree.map(lambda b, d: b + alpha.astype(d.dtype) * d, start, difference)
        return jax.tree.map(lambda s, g: s + weight.astype(g.dtype) * g, sums, jax.grad(of_inputs)(inputs)), None

    nodes, weights = np.polynomial.legendre.leggauss(whole_number("points", points))
    sums, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, xs), (jnp.asarray((nodes + 1) / 2), jnp.asarray(weights / 2)))
    # Where nothing depends on an input, padding, it may hold anything.
    by_input = jax.tree.map(lambda s, d: s * jnp.where(s == 0, jnp.zeros_like(d), d), sums, difference)
    change = of_inputs(xs) - of_inputs(start)
    return IntegratedGradients(by_input, change, sum(leaf.sum() for leaf in jax.tree.leaves(by_input)) - change)


def _check_floating(xs: Any) -> None:
    for path, leaf in jax.tree.leaves_with_path(xs):
        if not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"xs{jax.tree_util.keystr(path)} has dtype {dtype}, which has no derivative; wanted a floating dtype: "
                "of symbols their one-hot vectors"
            )


def _spread(baseline: Any, xs: Any) -> Any:
    try:
        return jax.tree.map(lambda b, x: jnp.broadcast_to(b, x.shape).astype(x.dtype), baseline, xs)
    except ValueError:
        shapes = [jax.tree.map(jnp.shape, tree) for tree in (baseline, xs)]
        raise ValueError(
            f"baseline has shape {shapes[0]}; wanted that of xs, {shapes[1]}, or what spreads to it"
        ) from None
