"""What happens between the steps: evaluation, stopping early, probes."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lstmjax.checks import whole_number
from lstmjax.training.batches import check_batches
from lstmjax.training.metrics import as_mapping, mapping
from lstmjax.training.state import TrainState

Callback = Callable[[int, TrainState], Mapping[str, Any] | None]
"""``(step, state) -> record or None``, called after every ``callback.every`` steps, or, without one, after every call.

What it returns is recorded with the metrics. It must not keep the state, whose arrays are given up to the next call;
with several processes it runs on all of them.
"""


class Probe:
    """A callback that records what a function makes of the parameters."""

    def __init__(self, fn: Callable[[Any], Any], every: int, name: str = "probe") -> None:
        self.fn, self.every, self.name = fn, every, name

    def __call__(self, step: int, state: TrainState) -> dict[str, Any]:
        """The record at this step."""
        value = jax.device_get(self.fn(state.params))
        value = as_mapping(value)
        if isinstance(value, Mapping):
            return {f"{self.name}/{key}": v for key, v in value.items()}
        return {self.name: value}


def probe(fn: Callable[[Any], Any], every: int, *, name: str = "probe") -> Probe:
    """A callback that records ``fn(params)`` every so many steps: how the gradient's decay changes as a model learns.

    Args:
        fn: ``params ->`` an array, or a dict or named tuple of them. Jit it; it runs between steps.
        every: how many steps apart.
        name: what it is recorded under, a dict's entries as ``name/entry``.

    Returns:
        A callback for :func:`~lstmjax.training.fit`.

    Raises:
        ValueError: ``every`` is no whole number, or below 1.

    >>> import jax.numpy as jnp, lstmjax, optax
    >>> from lstmjax import training
    >>> from lstmjax.gradients import adjoint_norms
    >>> cell, optimizer = lstmjax.lstm(8), optax.sgd(0.1)
    >>> xs = jax.random.normal(jax.random.key(0), (20, 4, 3))
    >>> def decay(params):
    ...     norms = adjoint_norms(cell, params, xs, lambda ys: jnp.sum(ys[-1]))
    ...     return {"h": norms.h.mean(axis=1)}  # one curve over 20 steps back
    >>> def loss_fn(params, batch, key):
    ...     return jnp.mean(lstmjax.unroll(cell, params, batch)[1] ** 2), {}
    >>> state = training.init_state(cell.init(jax.random.key(1), 3), optimizer, jax.random.key(2))
    >>> step = training.make_train_step(loss_fn, optimizer)
    >>> watch = probe(jax.jit(decay), every=5, name="adjoint")
    >>> result = training.fit(state, step, [xs], steps=10, callbacks=[watch], progress=False)
    >>> [(record["step"], record["adjoint/h"].shape) for record in result.records]
    [(5, (21,)), (10, (21,))]
    """
    return Probe(fn, whole_number("every", every), name)


def make_evaluate(
    metric_fn: Callable[[Any, Any], Mapping[str, Any]],
    batches: Iterable[Any],
    *,
    weight_fn: Callable[[Any], Any] = lambda batch: 1,
) -> Callable:
    """Evaluation over a set of batches: of every metric m the mean `Σ w·m / Σ w` over batches, taken in float64.

    Args:
        metric_fn: ``(params, batch) -> dict of scalars``, jittable.
        batches: begun again at every evaluation, so no iterator.
        weight_fn: ``batch ->`` its weight w, such as its number of rows where the last batch is smaller than the
            others. A batch of weight 0 does not count. Default: every batch weighs the same.

    Returns:
        ``params -> dict of floats``, the means, for :func:`~lstmjax.training.fit`.

    Raises:
        TypeError: ``batches`` is no iterable of batches, or is one batch.
        ValueError: ``batches`` is an iterator; at the evaluation: there is no batch, no batch has a positive weight, a
            weight is negative or not finite, or ``metric_fn`` does not return a dict of scalars.

    >>> import jax.numpy as jnp
    >>> evaluate = make_evaluate(lambda w, x: {"error": jnp.mean((w * x - 1) ** 2)}, [jnp.ones(3), jnp.zeros(3)])
    >>> evaluate(jnp.float32(1))
    {'error': 0.5}

    The mean over all rows, of batches of two and of one:

    >>> batches = [jnp.array([1.0, 2.0]), jnp.array([6.0])]
    >>> evaluate = make_evaluate(lambda w, x: {"x": jnp.mean(w * x)}, batches, weight_fn=len)
    >>> evaluate(jnp.float32(1))
    {'x': 3.0}
    """
    check_batches(batches)
    if not hasattr(batches, "__iter__"):
        raise TypeError("batches is a function; wanted a list of batches, or a dataset")
    if iter(batches) is batches:
        raise ValueError("batches is an iterator, which can be gone through once; wanted a list, or a dataset")
    compiled = jax.jit(metric_fn)

    def evaluate(params: Any) -> dict[str, float]:
        # Dispatched all at once, fetched at the end.
        found = jax.device_get([(compiled(params, batch), weight_fn(batch)) for batch in batches])
        if not found:
            raise ValueError("batches is empty; wanted at least one batch to evaluate on")
        weights = np.array([float(weight) for _, weight in found])
        if not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
            wanted = "finite weights of at least 0, and one above 0"
            raise ValueError(f"weight_fn returned {weights.tolist()}; wanted {wanted}")
        # A batch without a row has no mean: it is left out, and not multiplied by 0.
        measured = [scalars("metric_fn", found[i][0]) for i in np.flatnonzero(weights)]
        weights = weights[weights > 0]
        return {name: float(np.average([m[name] for m in measured], weights=weights)) for name in measured[0]}

    return evaluate


def scalars(who: str, metrics: Any) -> dict[str, float]:
    """What somebody's function returned, where it is a dict of scalars, as Python's floats.

    Raises:
        ValueError: it is something else.

    >>> scalars("evaluate", {"loss": np.float16(0.5)})
    {'loss': 0.5}
    """
    metrics = mapping(who, metrics)
    for name, value in metrics.items():
        if np.shape(value) != ():
            raise ValueError(f"{who} returned {name!r} of shape {np.shape(value)}; wanted a scalar")
    return {name: float(value) for name, value in metrics.items()}


class EarlyStopping(NamedTuple):
    """Stop when an evaluation has not become better for a while.

    Attributes:
        metric: its name in the records, ``"eval/..."`` for what ``evaluate`` returns.
        patience: how many evaluations in a row may fail to better the best.
        min_delta: by how much a better one must be better.
        mode: ``"min"`` where smaller is better, ``"max"`` where larger is.
    """

    metric: str = "eval/loss"
    patience: int = 5
    min_delta: float = 0.0
    mode: str = "min"


class Patience(NamedTuple):
    """Where early stopping stands: the best so far, and how many evaluations ago that was."""

    best: float | None = None
    waited: int = 0


def better(value: float, best: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether a value betters the best so far.

    >>> better(0.5, None, "min"), better(0.5, 0.5, "min"), better(0.6, 0.5, "max"), better(float("nan"), None, "min")
    (True, False, True, False)
    """
    if value != value:
        return False
    if best is None:
        return True
    return value < best - min_delta if mode == "min" else value > best + min_delta


def wait(config: EarlyStopping, patience: Patience, value: float) -> Patience:
    """Patience after one more evaluation.

    >>> wait(EarlyStopping(), Patience(0.5, 2), 0.6)
    Patience(best=0.5, waited=3)
    """
    if better(value, patience.best, config.mode, config.min_delta):
        return Patience(value, 0)
    return patience._replace(waited=patience.waited + 1)
