"""The highway of the cell state: what of `∂c_T/∂c_t` travels along c alone, and what through the gates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell
from lstmjax.gradients import scaled
from lstmjax.gradients.jacobian import identity_rows, part_names, pull_rows
from lstmjax.gradients.linear import Linearised, blank_padding, linearised
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.typing import Params, State


class CellHighway(NamedTuple):
    """Natural logarithms for every t from 0 to T; the norms are Frobenius norms of ``[H, H]`` Jacobians.

    Attributes:
        log_forget: ``[T + 1, *B, H]`` `Σ ln |f_k|` over `k = t+1 … T`, unit by unit: the highway itself, `∏ f`.
        highway: ``[T + 1, *B]`` `ln ‖diag ∏ f‖`, which is `∂c_T/∂c_t` with the gradient stopped at h.
        gates: ``[T + 1, *B]`` `ln ‖∂c_T/∂c_t − diag ∏ f‖`: every way that leaves c for h at least once.
        full: ``[T + 1, *B]`` `ln ‖∂c_T/∂c_t‖`.
        share: ``[T + 1, *B]`` the gates' share, `‖gates‖ / (‖gates‖ + ‖highway‖)`, from 0 to 1.
    """

    log_forget: Array
    highway: Array
    gates: Array
    full: Array
    share: Array


@at_highest_precision
def cell_highway(
    cell: Cell,
    params: Params,
    xs: Any,
    state: State | None = None,
    *,
    lengths: Any = None,
    mask: Any = None,
    resets: Any = None,
) -> CellHighway:
    """Splits `∂c_T/∂c_t` into the path without weights and all the others.

    ::

        ∂c_T/∂c_t = diag ∏_{k=t+1}^{T} f_k + G_t      G: every path that leaves c for h and the gates at least once

    Stopping the gradient at h, `c' = f(sg h) ∘ c + i(sg h) ∘ g(sg h)`, leaves the first term alone; the second is
    summed by a recurrence of its own rather than as a difference, so it keeps its digits where it is small.

    Args:
        cell: an LSTM, or any cell whose state has fields ``c`` and ``h`` and whose new c depends on the old one
            elementwise.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs.
        state: the state before the first step; the cell's initial state unless given.
        lengths, mask, resets: as for :func:`~lstmjax.unroll`.

    Returns:
        A :class:`CellHighway`, float32 at least; −∞ for what is exactly zero, NaN after a row's end.

    Raises:
        ValueError: the state has no fields c and h; or as :func:`~lstmjax.unroll`.
        TypeError: as :func:`~lstmjax.unroll`.
        FloatingPointError: parameters, inputs or states are not finite.

    Source: Hochreiter & Schmidhuber (1997); Gers, Schmidhuber & Cummins (2000); the ablation is that of
    Arpit et al. (2018), h-detach.

    >>> import lstmjax
    >>> cell = lstmjax.lstm(hidden_size=8)
    >>> parts = cell_highway(cell, cell.init(jax.random.key(0), 3), jnp.zeros((100, 3)))
    >>> for lag in (2, 10, 100):
    ...     print(f"lag {lag}: ln ‖∏ f‖ = {parts.highway[-1 - lag]:.1f}, gates {parts.share[-1 - lag]:.0%}")
    lag 2: ln ‖∏ f‖ = 0.4, gates 25%
    lag 10: ln ‖∏ f‖ = -2.1, gates 89%
    lag 100: ln ‖∏ f‖ = -30.3, gates 100%
    """
    params, xs, state = scaled.wide((params, xs, state))
    linear = linearised(cell, params, xs, state, lengths=lengths, mask=mask, resets=resets)
    if set(part_names(linear.states)) != {"c", "h"}:
        raise ValueError(f"the cell's state has parts {part_names(linear.states)}; wanted c and h, as an LSTM has")
    return blank_padding(_cell_highway(linear), lengths)


@jax.jit
def _cell_highway(linear: Linearised) -> CellHighway:
    one = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), linear.states)
    one = one._replace(c=jnp.ones_like(one.c))
    forget = jax.vmap(lambda at: linear.push(at, one).c)(linear.steps)
    names = part_names(linear.states)
    units = identity_rows(linear, [names.index("c")])

    def along(pair):
        """The highway's own rows: ∏ f on the diagonal of c, nothing in h."""
        product, exponent = pair
        return units._replace(c=units.c * jnp.expand_dims(product, linear.batch_axes)), exponent

    def measure(product, rest):
        whole = scaled.add(along(product), rest)
        return scaled.log_norm(product[0], product[1]), _log_norm_c(rest), _log_norm_c(whole)

    def backward(carry, at):
        product, rest = carry
        step, forget = at
        highway, exponent = along(product)
        left = pull_rows(linear, step, highway)  # in c this is the highway again: what left it is in h
        left = left._replace(c=jnp.zeros_like(left.c)), exponent
        rest = scaled.add((pull_rows(linear, step, rest[0]), rest[1]), left)
        product = scaled.normalised(product[0] * forget, product[1])
        return (product, rest), measure(product, rest)

    nothing = jnp.zeros(linear.batch, jnp.int32)
    start = (jnp.ones_like(one.c), nothing), (jax.tree.map(jnp.zeros_like, units), nothing)
    _, before = lax.scan(backward, start, (linear.steps, forget), reverse=True)
    highway, gates, full = jax.tree.map(lambda n, end: jnp.concatenate([n, end[None]]), before, measure(*start))
    shut = forget == 0
    logs = jnp.where(shut, -jnp.inf, jnp.log(jnp.abs(jnp.where(shut, 1.0, forget))))
    log_forget = jnp.concatenate([lax.cumsum(logs, reverse=True), jnp.zeros_like(one.c)[None]])
    # Where both are exactly zero, before a reset, nothing is left to share.
    none = jnp.isneginf(gates)
    share = jnp.where(none, 0.0, jax.nn.sigmoid(jnp.where(none, 0.0, gates) - jnp.where(none, 0.0, highway)))
    return CellHighway(log_forget, highway, gates, full, share)


def _log_norm_c(pair: tuple[State, Array]) -> Array:
    rows, exponent = pair
    return scaled.log_norm(rows.c, exponent)
