"""How fast a gradient decays with the lag: a straight line through the logarithms."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lstmjax.gradients import scaled


class Spread(NamedTuple):
    """The error bar of many fits, of seeds and of rows; those without a line take no part.

    Attributes:
        rate: the median rate.
        rate_least: the least, the fastest decay.
        rate_greatest: the greatest.
        half_life: that of the median rate, in steps.
        half_life_least: that of the least rate.
        half_life_greatest: that of the greatest rate; ∞ where it does not shrink.
    """

    rate: Array
    rate_least: Array
    rate_greatest: Array
    half_life: Array
    half_life_least: Array
    half_life_greatest: Array


class DecayFit(NamedTuple):
    """An exponential `‖g(lag)‖ ≈ e^{intercept + rate · lag}`, fitted in log space.

    Attributes:
        rate: change of `ln ‖g‖` a step: negative where the gradient vanishes, positive where it explodes.
        half_life: `−ln 2 / rate`, the steps in which the gradient halves; ∞ where it does not shrink.
        intercept: `ln ‖g‖` of the line at lag 0.
        r2: share of the variance that the line explains; low where the decay is not exponential.
        points: how many lags were finite and so took part.
    """

    rate: Array
    half_life: Array
    intercept: Array
    r2: Array
    points: Array

    def spread(self) -> Spread:
        """The median of all fits, and the least and the greatest of them, over every axis.

        >>> lags = jnp.arange(1.0, 50)
        >>> rows = jnp.log(jnp.array([0.5, 0.9, 0.8]))[:, None] * lags  # a row of ln ‖g‖ for each seed
        >>> bar = decay_fit(lags, rows).spread()
        >>> print(f"{bar.half_life:.2f} steps, from {bar.half_life_least:.2f} to {bar.half_life_greatest:.2f}")
        3.11 steps, from 1.00 to 6.58
        """
        with jax.debug_nans(False):  # there may be no line at all
            rates = jnp.nanmedian(self.rate), jnp.nanmin(self.rate), jnp.nanmax(self.rate)
        return Spread(*rates, *map(half_life, rates))


def decay_fit(lags: Any, log_norms: Any) -> DecayFit:
    """Fits a rate of decay by least squares to `ln ‖g‖` against the lag.

    Args:
        lags: ``[N]`` steps back from the loss.
        log_norms: ``[..., N]`` natural logarithms of gradient norms; entries that are not finite take no part.

    Returns:
        A :class:`DecayFit` with leaves ``[...]``, float32 at least. With fewer than two finite points, or all at one
        lag, there is no line and every number is NaN; a level line explains all there is to explain, so its r2 is 1.

    Raises:
        ValueError: lags are not ``[N]``, or log_norms do not end in N.

    >>> fit = decay_fit(jnp.arange(100), jnp.arange(100.0) * jnp.log(0.5))
    >>> print(f"{fit.rate:.4f} a step, half-life {fit.half_life:.3f}, r2 {fit.r2:.3f}")
    -0.6931 a step, half-life 1.000, r2 1.000
    """
    lags, y = jnp.asarray(lags), scaled.wide(jnp.asarray(log_norms))
    if lags.ndim != 1 or y.shape[-1:] != lags.shape:
        raise ValueError(f"lags have shape {lags.shape} and log_norms {y.shape}; wanted [N] and [..., N]")
    with jax.debug_nans(False):  # NaN where there is no line is what was promised
        return _fit(jnp.broadcast_to(lags.astype(y.dtype), y.shape), y)


def half_life(rate: Any) -> Array:
    """−ln 2 / rate, the steps in which `e^{rate · lag}` halves; ∞ where it does not shrink, NaN where there is no rate.

    >>> print(f"{half_life(jnp.log(0.5)):.3f}, {half_life(0.1):.3f}")
    1.000, inf
    """
    rate = jnp.asarray(rate)
    shrinks = rate < 0
    return jnp.where(shrinks, -math.log(2) / jnp.where(shrinks, rate, -1), jnp.where(jnp.isnan(rate), rate, jnp.inf))


@jax.jit
def _fit(lags: Array, y: Array) -> DecayFit:
    used = jnp.isfinite(y)
    points = used.sum(-1)
    x, y = jnp.where(used, lags, 0.0), jnp.where(used, y, 0.0)
    count = jnp.maximum(points, 1).astype(y.dtype)
    mean_x, mean_y = x.sum(-1) / count, y.sum(-1) / count
    dx = jnp.where(used, x - mean_x[..., None], 0.0)
    dy = jnp.where(used, y - mean_y[..., None], 0.0)
    xx, xy, yy = (dx * dx).sum(-1), (dx * dy).sum(-1), (dy * dy).sum(-1)
    exists = (points >= 2) & (xx > 0)
    rate = jnp.where(exists, xy / jnp.where(exists, xx, 1.0), jnp.nan)
    residual = jnp.where(used, (dy - rate[..., None] * dx) ** 2, 0.0).sum(-1)
    r2 = jnp.where(yy > 0, 1.0 - residual / jnp.where(yy > 0, yy, 1.0), 1.0)
    return DecayFit(
        rate=rate,
        half_life=jnp.where(exists, half_life(rate), jnp.nan),
        intercept=mean_y - rate * mean_x,
        r2=jnp.where(exists, r2, jnp.nan),
        points=points,
    )
