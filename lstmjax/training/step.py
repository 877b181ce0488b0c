"""One step of training, pure: gradient, clipping, update, and what is measured on the way."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import cast_floating
from lstmjax.training.norms import clip_by_norm, global_norm
from lstmjax.training.state import TrainState, step_keys

Metrics = dict[str, Array]
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]

OWN_METRICS = ("loss", "grad_norm", "clipped_grad_norm", "update_norm")


def make_train_step(
    loss_fn: Callable, optimizer: optax.GradientTransformation, *, clip_norm: float | None = None,
    compute_dtype: Any = None,
) -> Step:  # fmt: skip
    """A training step on a loss.

    Args:
        loss_fn: ``(params, batch, key) -> (loss, metrics)``: a scalar, and a dict of scalars, which may be empty.
        optimizer: any Optax optimiser. One that asks for them is given the loss (``value``), its gradient before
            clipping (``grad``), and, of the parameters on this batch and with this key, the loss (``value_fn``,
            ``obj_fn``) and its gradient (``grad_fn``): ``optax.lbfgs``, Sophia, SAM. ``optax.contrib.sam`` has to be
            the outermost: an ``optax.chain`` around it hands it arguments that it refuses.
        clip_norm: the norm that the gradient is scaled down to where it is larger; None: never.
        compute_dtype: the floating dtype that ``loss_fn`` sees the parameters in, such as ``jnp.bfloat16``: a cell
            computes in the dtype of its parameters. The parameters that are kept and updated, their gradient and
            the optimiser's state stay as they are; the batch is not touched. There is no loss scaling, which
            bfloat16 does not need and float16 does.

    Returns:
        ``(state, batch) -> (state, metrics)``, pure, to be jitted, scanned or given to
        :func:`~lstmjax.training.fit`. Metrics are the loss's own and ``loss``, ``grad_norm`` (before clipping),
        ``clipped_grad_norm`` (after) and ``update_norm``.

    Raises:
        ValueError: ``clip_norm`` is not positive; at trace time, ``loss_fn`` returns something else.
        TypeError: ``compute_dtype`` is not floating, or ``loss_fn`` takes other arguments.

    >>> import lstmjax
    >>> from lstmjax import training
    >>> cell = lstmjax.lstm(8)
    >>> def loss_fn(params, xs, key):
    ...     _, ys = lstmjax.unroll(cell, params, xs)
    ...     return jnp.mean((ys[1:, :, :3] - xs[:-1]) ** 2), {"largest": jnp.abs(ys).max()}
    >>> optimizer = optax.adam(1e-2)
    >>> state = training.init_state(cell.init(jax.random.key(0), 3), optimizer, jax.random.key(1))
    >>> step = jax.jit(make_train_step(loss_fn, optimizer, clip_norm=0.01))
    >>> state, metrics = step(state, jnp.ones((10, 4, 3)))
    >>> sorted(metrics), int(state.step)
    (['clipped_grad_norm', 'grad_norm', 'largest', 'loss', 'update_norm'], 1)
    >>> float(metrics["grad_norm"]) > 0.01, round(float(metrics["clipped_grad_norm"]), 5)
    (True, 0.01)
    """
    _check_arguments(loss_fn, "params, batch, key")

    def carried(params, carry, batch, key):
        loss, metrics = _pair("loss_fn", loss_fn(params, batch, key), "(loss, metrics)")
        return loss, (carry, metrics)

    return make_tbptt_step(carried, optimizer, clip_norm=clip_norm, compute_dtype=compute_dtype)


def make_tbptt_step(
    loss_fn: Callable, optimizer: optax.GradientTransformation, *, clip_norm: float | None = None,
    compute_dtype: Any = None,
) -> Step:  # fmt: skip
    """A training step of truncated backpropagation through time: the state crosses the border, the gradient does not.

    A batch is one window of longer sequences; ``state.carry`` holds the recurrent state at its beginning, and, after
    the step, at its end. Where a new sequence begins inside a window, say so to the unroll by its ``resets``. When
    the batches have ended and are begun again, the carry of their end goes on into their beginning, unless ``resets``
    at the first step of the first window, or the loss, sets it to zero.

    Args:
        loss_fn: ``(params, carry, batch, key) -> (loss, (carry, metrics))``.
        optimizer: as for :func:`make_train_step`.
        clip_norm: as for :func:`make_train_step`.
        compute_dtype: as for :func:`make_train_step`; the carry keeps its own dtype.

    Returns:
        ``(state, batch) -> (state, metrics)``, as for :func:`make_train_step`.

    Raises:
        ValueError: as :func:`make_train_step`.
        TypeError: as :func:`make_train_step`.

    >>> import lstmjax
    >>> from lstmjax import training
    >>> cell = lstmjax.lstm(8)
    >>> def loss_fn(params, carry, batch, key):
    ...     carry, ys = lstmjax.unroll(cell, params, batch["xs"], carry, resets=batch["resets"])
    ...     return jnp.mean(ys**2), (carry, {})
    >>> optimizer, key = optax.sgd(0.1), jax.random.key(0)
    >>> state = training.init_state(cell.init(key, 3), optimizer, key, carry=cell.initial_state((2,)))
    >>> step = jax.jit(make_tbptt_step(loss_fn, optimizer))
    >>> window = {"xs": jnp.ones((5, 2, 3)), "resets": jnp.zeros((5, 2), bool)}
    >>> for _ in range(3):
    ...     state, metrics = step(state, window)
    >>> state.carry.c.shape
    (2, 8)
    """
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm is {clip_norm}; wanted a positive number, or None")
    if compute_dtype is not None and not jnp.issubdtype(compute_dtype, jnp.floating):
        raise TypeError(f"compute_dtype is {compute_dtype}; wanted a floating dtype, such as jnp.bfloat16, or None")
    _check_arguments(loss_fn, "params, carry, batch, key")
    update = _given_what_it_takes(optimizer)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key, _ = step_keys(state)
        border = lax.stop_gradient(state.carry)

        def loss_of(params):
            seen = params if compute_dtype is None else cast_floating(params, compute_dtype)
            result = loss_fn(seen, border, batch, key)
            return _checked(result, border)

        (loss, (carry, own)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)

        def value_fn(params, obj_fn=None, grad_fn=None):
            """The loss; a line search refuses arguments that neither it nor this function takes."""
            del obj_fn, grad_fn
            return loss_of(params)[0]

        extra = {
            "value": loss,
            "grad": grads,
            "value_fn": value_fn,
            "obj_fn": value_fn,
            "grad_fn": lambda params, _: jax.grad(value_fn)(params),
        }
        norm = clipped_norm = global_norm(grads)
        if clip_norm is not None:
            grads = clip_by_norm(grads, norm, clip_norm)
            clipped_norm = global_norm(grads)
        with jax.numpy_dtype_promotion("standard"):  # Optax multiplies counts by floats
            updates, opt_state = update(grads, state.opt_state, state.params, extra)
            params = optax.apply_updates(state.params, updates)
        metrics = dict(zip(OWN_METRICS, (loss, norm, clipped_norm, global_norm(updates)), strict=True))
        new = TrainState(params, opt_state, state.step + 1, state.key, carry)
        return new, metrics | own

    return step


def _given_what_it_takes(optimizer: optax.GradientTransformation) -> Callable:
    """``(grads, opt_state, params, extra) -> (updates, opt_state)``, with those extra arguments that it can take."""
    update = optax.with_extra_args_support(optimizer).update
    parameters = inspect.signature(update).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def given(grads, opt_state, params, extra):
        taken = {name: value for name, value in extra.items() if takes_any or name in parameters}
        return update(grads, opt_state, params, **taken)

    return given


def _checked(result: Any, carry: Any) -> tuple[Array, tuple[Any, Metrics]]:
    loss, rest = _pair("loss_fn", result, "(loss, (carry, metrics))")
    new_carry, metrics = _pair("loss_fn, next to the loss,", rest, "(carry, metrics)")
    if jnp.shape(loss) != ():
        raise ValueError(f"loss_fn returned a loss of shape {jnp.shape(loss)}; wanted a scalar, such as its mean")
    if not isinstance(metrics, Mapping):
        raise ValueError(f"loss_fn returned metrics {metrics!r}; wanted a dict of scalars, {{}} for none")
    for name, value in metrics.items():
        if name in OWN_METRICS:
            raise ValueError(f"loss_fn returned a metric {name!r}, which is one of the step's own; wanted another name")
        if jnp.shape(value) != ():
            raise ValueError(f"loss_fn returned metric {name!r} of shape {jnp.shape(value)}; wanted a scalar")
    given, made = (jax.tree.map(lambda a: (jnp.shape(a), str(jnp.result_type(a))), c) for c in (carry, new_carry))
    if given != made:
        raise ValueError(f"loss_fn was given carry {given} and returned {made}; wanted the same back")
    return _widened(loss), (new_carry, {name: _widened(value) for name, value in metrics.items()})


def _widened(value: Any) -> Array:
    """A scalar in float32 at least where it is a float: sums and means of many are taken in its dtype."""
    value = jnp.asarray(value)
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return value.astype(np.promote_types(value.dtype, np.float32)) if floating else value


def _pair(who: str, result: Any, wanted: str) -> Any:
    if not (isinstance(result, tuple) and len(result) == 2):
        what = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        what = "one value" if isinstance(result, jax.Array) else what  # a tracer's own name says nothing
        raise ValueError(f"{who} returned {what}; wanted a pair, {wanted}, metrics {{}} where there are none")
    return result


def _check_arguments(loss_fn: Callable, wanted: str) -> None:
    try:
        # Of a wrapper its own: what it wraps may take other arguments than it is given.
        signature = inspect.signature(loss_fn, follow_wrapped=False)
    except (TypeError, ValueError):
        return  # it cannot be told
    try:
        signature.bind(*wanted.split(", "))
    except TypeError:
        raise TypeError(f"loss_fn takes {signature}; wanted loss_fn({wanted})") from None
