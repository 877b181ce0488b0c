"""Checkpoints by Orbax, and what is put around it: is it the same model, is it whole, is it worth keeping.

Orbax writes into a temporary directory in the background and renames it when all is there, so a checkpoint is whole
or absent whenever a process dies. What it does not know is whether the bytes it reads are the bytes it wrote; hence a
fingerprint of every array next to the arrays. A checkpoint that cannot be read, or reads differently, is reported, put
aside under ``damaged/``, and the one before it used.
"""

import json
import math
import os
import sys
import threading
import uuid
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lstmjax.checks import whole_number
from lstmjax.training.fingerprints import fingerprints, words
from lstmjax.training.state import TrainState

# Not damage: the same checkpoint may be read tomorrow.
_NOT_DAMAGE = (PermissionError, MemoryError, jax.errors.JaxRuntimeError)

# Orbax numbers its saves by one counter of the process and looks at it throughout a save. Where two threads saved at
# once, the one would wait for directories that the other was to make.
_ONE_SAVE_AT_A_TIME = threading.Lock()


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read; the message says which is the last whole one."""


class CheckpointMismatchError(ValueError):
    """The checkpoint is whole, and of another model or optimiser."""


class Checkpoints(NamedTuple):
    """Where and when to save, and what to keep.

    Attributes:
        directory: of this run alone; made if need be, and seen by all processes. ``gs://bucket/run`` and
            ``s3://bucket/run`` are written to by Orbax, and want the package gcsfs or s3fs besides.
        every: how many steps apart, 1000 unless given. A run that ends, is interrupted or stops early saves as well.
        keep_last: how many of the newest are kept.
        keep_best: how many of the best are kept besides. Above 0, every evaluation that betters the best so far is
            saved as well, and ``fit`` wants ``evaluate``.
        metric: what *best* means: its name in the records, ``"eval/..."`` for what ``evaluate`` returns. A NaN is
            never the best.
        mode: ``"min"`` where smaller is better, ``"max"`` where larger is.
        asynchronous: write in the background while training goes on.
    """

    directory: str | os.PathLike
    every: int = 1000
    keep_last: int = 2
    keep_best: int = 0
    metric: str = "eval/loss"
    mode: str = "min"
    asynchronous: bool = True


class Restored(NamedTuple):
    """What was read.

    Attributes:
        step: the checkpoint's.
        state: as it was saved, laid out as the template is.
        extra: what else was saved, as JSON has it.
    """

    step: int
    state: TrainState
    extra: dict[str, Any]


class Store:
    """An open directory of checkpoints.

    Args:
        config: where and what to keep.
        read_only: leave everything as it is: a run may be saving there.

    >>> import tempfile, lstmjax, optax
    >>> from lstmjax import training
    >>> state = training.init_state(lstmjax.lstm(4).init(jax.random.key(0), 3), optax.sgd(1.0), jax.random.key(1))
    >>> store = Store(Checkpoints(tempfile.mkdtemp()))
    >>> store.save(10, state, {"position": 7})
    >>> store.wait()
    >>> restored = store.restore(state)
    >>> restored.step, restored.extra, bool((restored.state.params.w_x == state.params.w_x).all())
    (10, {'position': 7}, True)
    >>> store.close()
    """

    def __init__(self, config: Checkpoints, *, read_only: bool = False) -> None:
        config = checked(config)
        try:
            import orbax.checkpoint as ocp
        except ImportError:
            raise ImportError("checkpoints want orbax-checkpoint: pip install 'lstmjax[training]'") from None
        self.config = config
        self.directory = _place(config.directory)
        if not read_only:
            _make(self.directory)
        self._ocp, self._read_only = ocp, read_only
        policies = ocp.checkpoint_managers
        keep: list[Any] = [policies.LatestN(config.keep_last)]
        if config.keep_best:
            keep.append(policies.BestN(get_metric_fn=_cost, reverse=True, n=config.keep_best))
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                best_fn=_cost,  # without one, Orbax does not write what was measured
                enable_async_checkpointing=config.asynchronous,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
            ),
        )
        self._saving: int | None = None

    def save(self, step: int, state: TrainState, extra: dict[str, Any], value: float | None = None) -> None:
        """Saves; in the background, after the arrays were copied off the device.

        Args:
            step: the number of updates made.
            state: the state after them.
            extra: anything that JSON can hold.
            value: of the metric that *best* is measured by, where it was measured at this step; NaN is none.

        Raises:
            FloatingPointError: parameters or carry are not finite; nothing is saved.
            CheckpointError: this or the checkpoint before it could not be written.
        """
        if bad := not_finite({"params": state.params, "carry": state.carry}):
            raise FloatingPointError(f"{bad} is not finite at step {step}, which is not saved; {self.last()}")
        if value is not None and math.isnan(value):
            value = None
        content = {"step": step, "shapes": shapes(state), "fingerprints": fingerprints(state), "extra": extra}
        args = self._ocp.args
        self.wait()
        self._saving = step
        try:
            with _ONE_SAVE_AT_A_TIME:
                self._manager.save(
                    step,
                    args=args.Composite(
                        state=args.StandardSave(state), about=args.JsonSave(content | {"checksum": checksum(content)})
                    ),
                    metrics={"cost": value if value is None or self.config.mode == "min" else -value},
                    force=True,
                )
        except Exception as error:
            raise self._failed(error) from error
        if not self.config.asynchronous:
            self._saving = None

    def wait(self) -> None:
        """Waits until what is being saved is saved.

        Raises:
            CheckpointError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error
        self._saving = None

    def poll(self) -> None:
        """Raises, without waiting, where a save in the background has failed."""
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, template: TrainState, step: int | str | None = None) -> Restored | None:
        """Reads the newest checkpoint that is whole, or the one asked for.

        Args:
            template: a state of the same structure, shapes and dtypes; what is read is laid out as it is.
            step: a step, ``"best"``, or None: the newest. Of a damaged one that was asked for there is no other.

        Returns:
            What was read; None where there is no checkpoint at all.

        Raises:
            CheckpointMismatchError: a ``ValueError``: the checkpoint is of another model or optimiser.
            CheckpointError: there is no such checkpoint, none has the evaluation that *best* asks for, or all there
                are, are damaged.
        """
        self._manager.reload()
        found = sorted(self._manager.all_steps(), reverse=True)
        if not found and step is None:
            return None
        if step == "best":
            measured = [s for s in found if _was_measured(self._manager.metrics(s))]
            if not measured:
                raise CheckpointError(
                    f"no checkpoint in {self.directory} has an evaluation; wanted one kept with keep_best and evaluate"
                )
            step = min(measured, key=lambda s: _cost(self._manager.metrics(s)))
        steps = found if step is None else [s for s in found if s == step]
        if not steps:
            raise CheckpointError(f"no checkpoint of step {step!r} in {self.directory}; there are {sorted(found)}")
        for candidate in steps:
            restored, damage = self._try(candidate, template)
            if restored is not None:
                return restored
            self._put_aside(candidate, damage)
        rest = "" if self._read_only else " and were put aside; the same command again begins at step 0"
        raise CheckpointError(f"no checkpoint in {self.directory} could be read: steps {steps} are damaged{rest}")

    def last(self) -> str:
        """Which is the last whole checkpoint, in words."""
        steps = self._ocp.utils.checkpoint_steps(self.directory)
        return f"the last checkpoint is step {max(steps)} in {self.directory}" if steps else (
            f"there is no checkpoint in {self.directory}"
        )  # fmt: skip

    def close(self) -> None:
        """Waits, and lets go of the directory.

        Raises:
            CheckpointError: what was being saved could not be written.
        """
        try:
            self.wait()
        finally:
            try:
                self._manager.close()
            except Exception as error:  # the error that wait has raised, again
                if sys.exc_info()[0] is None:
                    raise self._failed(error) from error

    def _try(self, step: int, template: TrainState) -> tuple[Restored | None, str]:
        """A checkpoint, or, where it is damaged on any process, in which way."""
        try:
            restored, damage = self._read(step, template), ""
        except (CheckpointMismatchError, *_NOT_DAMAGE):
            raise
        except Exception as error:
            restored, damage = None, f"{type(error).__name__}: {error}"
        if jax.process_count() > 1 and not all_processes_agree(restored is not None):
            return None, damage or "another process could not read it"
        return restored, damage

    def _read(self, step: int, template: TrainState) -> Restored:
        args = self._ocp.args
        about = self._manager.restore(step, args=args.Composite(about=args.JsonRestore()))["about"]
        written = about.pop("checksum")
        if checksum(about) != written:
            raise ValueError("its description does not have the checksum that was written with it")
        _check_same(step, about["shapes"], shapes(template))
        abstract = jax.tree.map(_abstract, template)
        state = self._manager.restore(step, args=args.Composite(state=args.StandardRestore(abstract)))["state"]
        now = fingerprints(state)
        if changed := [path for path, value in about["fingerprints"].items() if now.get(path) != value]:
            raise ValueError(f"{', '.join(changed)} is not what was written")
        return Restored(about["step"], state, about["extra"])

    def _put_aside(self, step: int, damage: str) -> None:
        aside = self.directory / "damaged"
        if jax.process_index() == 0:
            cause = damage.splitlines()[0][:300]
            where = "left there" if self._read_only else f"put aside in {aside}"
            print(f"lstmjax: checkpoint {self.directory / str(step)} is damaged ({cause}); {where}", file=sys.stderr)
        if jax.process_index() == 0 and not self._read_only:
            aside.mkdir(exist_ok=True)
            target, number = aside / str(step), 1
            while target.exists():
                target, number = aside / f"{step}-{number}", number + 1
            (self.directory / str(step)).rename(target)
        if jax.process_count() > 1:
            all_processes_agree(True)  # nobody looks again before it is moved
        self._manager.reload()

    def _failed(self, error: Exception) -> CheckpointError:
        step, self._saving = self._saving, None
        which = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        cause = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        return CheckpointError(f"{which} could not be written ({cause}); {self.last()}")


def load_state(directory: str | os.PathLike, template: TrainState, step: int | str | None = None) -> TrainState:
    """Reads the state of a run, to evaluate it or to begin another with it.

    Args:
        directory: the run's checkpoints.
        template: a state of the same structure, as :func:`~lstmjax.training.init_state` makes it; what is read is
            laid out as it is, on any number of devices.
        step: a step, ``"best"``, or None: the newest.

    Returns:
        The state.

    Raises:
        CheckpointMismatchError: a ``ValueError``: the checkpoint is of another model or optimiser.
        CheckpointError: there is no such checkpoint, none has the evaluation that *best* asks for, or all there
            are, are damaged.

    >>> import tempfile, lstmjax, optax
    >>> from lstmjax import training
    >>> optimizer, directory = optax.sgd(0.1), tempfile.mkdtemp()
    >>> step = training.make_train_step(lambda w, x, key: ((w * x - 1) ** 2, {}), optimizer)
    >>> state = training.init_state(jnp.float32(0), optimizer, jax.random.key(0))
    >>> done = training.fit(state, step, [jnp.float32(1)], steps=5, checkpoints=directory, progress=False)
    >>> loaded = load_state(directory, state)
    >>> int(loaded.step), float(loaded.params) == float(done.state.params)
    (5, True)
    """
    store = Store(Checkpoints(directory), read_only=True)
    try:
        restored = store.restore(template, step)
    finally:
        store.close()
    if restored is None:
        raise CheckpointError(f"there is no checkpoint in {store.directory}")
    return restored.state


def shapes(state: Any) -> dict[str, list]:
    """What tells one model from another: path, shape and dtype of every leaf."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        data = jax.eval_shape(words, leaf)
        found[jax.tree_util.keystr(path)] = [list(data.shape), str(data.dtype)]
    return found


def not_finite(tree: Any) -> str:
    """The paths of the leaves that hold something that is not finite, or nothing.

    >>> not_finite({"w": jnp.array([1.0, jnp.nan]), "n": jnp.int32(3)})
    "['w']"
    """
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    return ", ".join(path for path, finite in jax.device_get(_finite(leaves)).items() if not finite)


def checksum(content: Any) -> int:
    """CRC-32 of a JSON value."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


@jax.jit
def _finite(leaves: dict[str, Any]) -> dict[str, Any]:
    return {path: jnp.isfinite(leaf).all() for path, leaf in leaves.items()}


def _was_measured(metrics: Any) -> bool:
    return (metrics or {}).get("cost") is not None


def _cost(metrics: Any) -> Any:
    """What the best has least of; what was not measured has more of it than what was found to be infinite."""
    return (0, metrics["cost"]) if _was_measured(metrics) else (1, 0.0)


def _place(directory: str | os.PathLike) -> Any:
    """The directory as a path, on this machine or in a store."""
    from etils import epath  # comes with Orbax

    scheme, mark, _ = os.fspath(directory).partition("://")
    if not mark:
        return epath.Path(directory).absolute()
    if scheme not in ("gs", "s3"):
        raise ValueError(
            f"checkpoints.directory is {directory!r}; wanted a directory of this machine, or gs://... or s3://..."
        )
    return epath.Path(directory)


def _make(directory: Any) -> None:
    """Makes the directory and tries to write there: what cannot be had is found now, and not at the first save."""
    trial = directory / f".{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        trial.write_text("")
        trial.unlink()
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"checkpoints.directory is {str(directory)!r}, which cannot be written to ({cause}); wanted a directory"
        ) from error


def _abstract(leaf: Any) -> Any:
    leaf = jnp.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _check_same(step: int, saved: dict[str, list], wanted: dict[str, list]) -> None:
    for path in sorted(saved.keys() | wanted.keys()):
        if saved.get(path) != wanted.get(path):
            was, now = (f"{s[path][1]}{s[path][0]}" if path in s else "nothing" for s in (saved, wanted))
            raise CheckpointMismatchError(
                f"the checkpoint of step {step} has {was} at state{path}, and this run has {now} there; wanted the "
                "model and optimiser that it was saved with, or another directory"
            )


def all_processes_agree(yes: bool) -> bool:
    """Whether every process says yes; each waits for the others."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.int32(yes)).all())


def checked(config: Checkpoints) -> Checkpoints:
    """The settings, with their numbers as Python's.

    Raises:
        ValueError: a setting is out of range.
    """
    if config.mode not in ("min", "max"):
        raise ValueError(f"checkpoints.mode is {config.mode!r}; wanted 'min' or 'max'")
    numbers = {"every": 1, "keep_last": 1, "keep_best": 0}
    return config._replace(**{n: whole_number(f"checkpoints.{n}", getattr(config, n), k) for n, k in numbers.items()})
