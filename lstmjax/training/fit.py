"""Training from the first step to the last, however often it is cut off in between."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from lstmjax.checks import whole_number
from lstmjax.training.batches import check_batches
from lstmjax.training.callbacks import EarlyStopping
from lstmjax.training.checkpoints import Checkpoints, checked
from lstmjax.training.metrics import JSONLines, MetricWriter
from lstmjax.training.run import FitResult, Run
from lstmjax.training.state import TrainState
from lstmjax.training.step import Step


def fit(
    state: TrainState,
    step: Step,
    batches: Any,
    *,
    steps: int,
    steps_per_call: int = 1,
    batch_sharding: Any = None,
    evaluate: Callable | None = None,
    evaluate_every: int | None = None,
    early_stopping: EarlyStopping | None = None,
    checkpoints: Checkpoints | str | os.PathLike | None = None,
    metrics: Any = None,
    log_every: int = 1,
    callbacks: Sequence[Callable] = (),
    progress: bool | None = None,
) -> FitResult:
    """Trains until ``state.step`` is ``steps``; with checkpoints, from the newest one on.

    The same command again goes on where the last one was cut off, by whatever means, and ends in the same bits: with
    the state, a checkpoint holds the position in ``batches`` and where early stopping stands, and calls end at the
    same steps however often the run began. Of a run that has ended it says so on standard error, and returns the state
    with a history of length 0. The host waits for metrics once a call, and then for those of the call before, so that
    the device is never idle for it.

    Args:
        state: from :func:`~lstmjax.training.init_state`; it is copied, and stays usable.
        step: from :func:`~lstmjax.training.make_train_step` or :func:`~lstmjax.training.make_tbptt_step`, not jitted.
        batches: a Grain dataset or iterator, whose own position is saved; any iterable of batches, which after a
            restart is gone through again up to where it was, and begun again where it ends; or a function
            ``key -> batch``, which runs on the device.
        steps: how many updates in all, those before a restart included.
        steps_per_call: how many make one dispatch. Where something is due in between, a call ends there; one program
            is compiled for each length of call, so let the periods be multiples.
        batch_sharding: how a batch lies over the devices, from :func:`~lstmjax.training.batch_sharding`; a sharding,
            or a pytree of them that begins as the batch's does.
        evaluate: ``params -> dict``, recorded as ``eval/...``; see :func:`~lstmjax.training.make_evaluate`.
        evaluate_every: how many steps apart; besides, at the end.
        early_stopping: when to stop by what is evaluated.
        checkpoints: a directory, or :class:`~lstmjax.training.Checkpoints` to say more. A directory is saved to every
            1000 steps and at the end, and keeps the two newest.
        metrics: where records go: the path of a file of JSON lines, a :class:`~lstmjax.training.MetricWriter`, or a
            sequence of these. The first process writes.
        log_every: the step's metrics are written at steps that this divides.
        callbacks: each a ``(step, state) -> dict or None``, whose dict is recorded. It is called after every
            ``callback.every`` steps, or, where it has no such attribute, after every call.
        progress: whether to show a bar on standard error; None: where ``tqdm`` is installed.

    Returns:
        The :class:`FitResult`.

    Raises:
        TypeError: ``batches`` is neither iterable nor a function, or is one batch: an array, a dict, a named tuple or a
            tuple of arrays; ``metrics`` holds something that is no :class:`~lstmjax.training.MetricWriter`.
        ValueError: an argument is out of range; batches end or do not stack; ``evaluate`` or a callback does not return
            a dict.
        CheckpointMismatchError: a ``ValueError``: the checkpoint is of another model or optimiser.
        FloatingPointError: loss, gradient or update are not finite. What is saved is from before.
        CheckpointError: the directory of the checkpoints cannot be written to; a checkpoint could not be written, or
            none of those there are could be read.
        OSError: metrics could not be written.
        KeyboardInterrupt: Ctrl-C, after the call under way was finished and saved. The second one interrupts at once.
        SystemExit: SIGTERM, likewise.
        RuntimeError: another process of this run is gone.

    >>> import tempfile, jax.numpy as jnp, lstmjax, optax
    >>> from lstmjax import training
    >>> cell, optimizer = lstmjax.lstm(8), optax.adam(1e-2)
    >>> def loss_fn(params, xs, key):  # the first input, remembered over ten steps
    ...     return jnp.mean((lstmjax.unroll(cell, params, xs)[1][-1, :, :2] - jnp.tanh(xs[0])) ** 2), {}
    >>> step = training.make_train_step(loss_fn, optimizer, clip_norm=1.0)
    >>> state = training.init_state(cell.init(jax.random.key(0), 2), optimizer, jax.random.key(1))
    >>> directory = tempfile.mkdtemp()
    >>> result = fit(
    ...     state, step, lambda key: jax.random.normal(key, (10, 16, 2)), steps=200, steps_per_call=50,
    ...     checkpoints=directory, metrics=f"{directory}/metrics.jsonl", progress=False,
    ... )
    >>> bool(result.history["loss"][-1] < result.history["loss"][0])
    True
    >>> lines = training.read_jsonl(f"{directory}/metrics.jsonl")
    >>> len(lines), lines[-1]["step"], sorted(lines[-1])
    (200, 200, ['clipped_grad_norm', 'grad_norm', 'loss', 'step', 'time', 'update_norm'])
    """
    steps = whole_number("steps", steps, 0)
    steps_per_call, log_every = whole_number("steps_per_call", steps_per_call), whole_number("log_every", log_every)
    if evaluate_every is not None:
        evaluate_every = whole_number("evaluate_every", evaluate_every)
        if evaluate is None:
            raise ValueError(
                f"evaluate_every is {evaluate_every} and evaluate is None; wanted both, or evaluate alone for the end"
            )
    if early_stopping is not None:
        early_stopping = _checked(early_stopping, evaluate_every)
    if checkpoints is not None:
        checkpoints = checked(checkpoints if isinstance(checkpoints, Checkpoints) else Checkpoints(checkpoints))
        if checkpoints.keep_best > 0 and evaluate is None:
            raise ValueError(
                f"checkpoints.keep_best is {checkpoints.keep_best} and evaluate is None; wanted evaluate and "
                "evaluate_every, or keep_best=0"
            )
    for callback in callbacks:
        whole_number("callback.every", getattr(callback, "every", 1))
    check_batches(batches)
    run = Run(
        step, batches, steps=steps, steps_per_call=steps_per_call, sharding=batch_sharding, evaluate=evaluate,
        evaluate_every=evaluate_every, early_stopping=early_stopping, checkpoints=checkpoints,
        writers=_writers(metrics), log_every=log_every, callbacks=tuple(callbacks),
    )  # fmt: skip
    return run(state, progress)


def _writers(metrics: Any) -> list[MetricWriter]:
    given = [] if metrics is None else list(metrics) if isinstance(metrics, list | tuple) else [metrics]
    writers: list[Any] = [JSONLines(writer) if isinstance(writer, str | os.PathLike) else writer for writer in given]
    for writer in writers:
        if not isinstance(writer, MetricWriter):
            raise TypeError(
                f"metrics holds {writer!r}; wanted the path of a file, a MetricWriter, or a sequence of these"
            )
    return writers if jax.process_index() == 0 else []


def _checked(early_stopping: EarlyStopping, evaluate_every: int | None) -> EarlyStopping:
    if evaluate_every is None:
        raise ValueError("early_stopping wants evaluate and evaluate_every, and was given none")
    if early_stopping.mode not in ("min", "max"):
        raise ValueError(f"early_stopping.mode is {early_stopping.mode!r}; wanted 'min' or 'max'")
    patience = whole_number("early_stopping.patience", early_stopping.patience)
    return early_stopping._replace(patience=patience, min_delta=float(early_stopping.min_delta))
