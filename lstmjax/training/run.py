"""One run of :func:`~lstmjax.training.fit`: calls, what happens between them, and what is said when it ends."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from signal import SIGINT, Signals
from typing import Any, NamedTuple

import jax
import numpy as np

from lstmjax.training.batches import Batches, everyones
from lstmjax.training.callbacks import EarlyStopping, Patience, better, wait
from lstmjax.training.checkpoints import CheckpointError, Checkpoints, Store
from lstmjax.training.interrupts import Interrupts
from lstmjax.training.loop import make_program
from lstmjax.training.metrics import JSONLines, MetricWriter, Record, first_not_finite, mapping, records
from lstmjax.training.progress import Progress
from lstmjax.training.sharding import shard_batch, stacked
from lstmjax.training.state import TrainState
from lstmjax.training.step import OWN_METRICS, Step


class FitResult(NamedTuple):
    """What training leaves.

    Attributes:
        state: after the last step.
        history: the step's metrics, ``[n]`` each, with ``step``; of the steps that this process made. Where the run had
            ended before, of length 0, and without what the loss adds. The whole curve, over all restarts, is in the
            file given as ``metrics``: :func:`~lstmjax.training.read_jsonl`.
        records: what evaluation and callbacks recorded, in order; of this process.
        stopped_early: whether early stopping ended it.
    """

    state: TrainState
    history: dict[str, np.ndarray]
    records: list[Record]
    stopped_early: bool


class _Call(NamedTuple):
    """A call under way: what it measures is on its way."""

    first: int
    steps: int
    metrics: dict[str, Any]
    ballot: Any


class Run:
    """One call of :func:`fit`: its settings, and what it knows by now."""

    def __init__(
        self, step: Step, batches: Any, *, steps: int, steps_per_call: int, sharding: Any, evaluate: Callable | None,
        evaluate_every: int | None, early_stopping: EarlyStopping | None, checkpoints: Checkpoints | None,
        writers: Sequence[MetricWriter], log_every: int, callbacks: Sequence[Callable],
    ) -> None:  # fmt: skip
        self.step, self.steps, self.sharding = step, steps, sharding
        self.evaluate, self.evaluate_every, self.early_stopping = evaluate, evaluate_every, early_stopping
        self.checkpoints, self.writers, self.log_every, self.callbacks = checkpoints, writers, log_every, callbacks
        self.draw: Callable | None = None if hasattr(batches, "__iter__") else batches
        self.batches: Batches | None = Batches(batches) if self.draw is None else None
        self.store: Store | None = None
        self.patience, self.best, self.stopped = Patience(), None, False
        self.recorded = 0
        self.history: list[dict[str, np.ndarray]] = []
        self.records: list[Record] = []
        periods = [steps_per_call, evaluate_every, *(getattr(c, "every", None) for c in callbacks)]
        self.periods = [p for p in [*periods, checkpoints and checkpoints.every] if p]

    def __call__(self, state: TrainState, progress: bool | None) -> FitResult:
        """Trains, and leaves everything in order however it ends."""
        with ExitStack() as stack:
            if self.checkpoints is not None:
                self.store = Store(self.checkpoints)
                stack.callback(self.store.close)
            state = self._restored(state)
            done = self.recorded = int(state.step)
            for writer in self.writers:
                stack.callback(writer.close)
                writer.open(done)
            self.bar = Progress(done, self.steps, progress if jax.process_index() == 0 else False)
            stack.callback(self.bar.close)
            interrupts = stack.enter_context(Interrupts())
            try:
                state = self._train(state, done, interrupts)
                if self.store is not None:
                    self.store.wait()
            except Exception as error:
                self._settle()
                cause = error.__cause__ if isinstance(error, CheckpointError) else error
                if jax.process_count() > 1 and isinstance(cause, jax.errors.JaxRuntimeError | TimeoutError):
                    # Said at once: where the process that led is gone, JAX may end this one any moment.
                    what = f"another process of this run is gone or out of reach ({type(error).__name__})"
                    self._say(f"{what}; start all processes again to go on", everywhere=True)
                    raise RuntimeError(f"{what}; {self._standing()}") from error
                self._say(f"stopped by {type(error).__name__}", everywhere=True)
                error.add_note(f"lstmjax: {self._standing()}")
                raise
        return FitResult(state, self._history(), self.records, self.stopped)

    def _train(self, state: TrainState, done: int, interrupts: Interrupts) -> TrainState:
        program = make_program(self.step, self.draw, self.sharding, state)
        under_way: _Call | None = None
        while done < self.steps and not self.stopped:
            count = min(self.steps, *((done // p + 1) * p for p in self.periods)) - done
            ballot = interrupts.ballot()
            state, measured = program(state, self._take(count))
            before, under_way = under_way, _Call(done, count, measured, ballot)
            done += count
            noted = self._record(before, interrupts)
            if noted or self._due(done):
                # Also of the call under way: what is saved or evaluated must be known to be finite.
                noted = self._record(under_way, interrupts) or noted
                under_way = None
                self._pause(state, done, interrupted=noted is not None)
            if noted:
                self._interrupted(noted, done)
        if interrupts.noted:  # too late to be agreed on, and all is saved
            self._interrupted(interrupts.noted, done)
        return state

    def _restored(self, state: TrainState) -> TrainState:
        """The state to begin with, and a copy of it: its arrays are given up to the first call."""
        restored = self.store.restore(state) if self.store is not None else None
        if self.store is None or restored is None:
            return jax.tree.map(lambda leaf: jax.numpy.asarray(leaf).copy(), state)
        extra = restored.extra
        best, waited = extra["patience"]
        self.patience, self.best, self.stopped = Patience(best, waited), extra["best"], extra["stopped"]
        positions = extra["positions"]
        if self.batches is not None:
            if len(positions) != jax.process_count():
                raise ValueError(
                    f"the checkpoint holds positions in the batches of {len(positions)} processes, and there are "
                    f"{jax.process_count()}; wanted as many as it was saved by, each with batches of its own"
                )
            self.batches.go_to(positions[jax.process_index()])
        if jax.process_index() == 0:
            at = f"step {restored.step} in {self.store.directory}"
            ended = "stopped early" if self.stopped else "already" if restored.step >= self.steps else None
            said = f"{ended} at {at}; nothing to do" if ended else f"going on from {at}"
            print(f"lstmjax: {said}", file=sys.stderr, flush=True)
        return restored.state

    def _take(self, count: int) -> Any:
        """What a program takes: batches, or, where it draws them itself, how many."""
        if self.batches is None:
            return count
        taken = self.batches.take(count)
        return taken if self.sharding is None else shard_batch(taken, stacked(self.sharding))

    def _record(self, call: _Call | None, interrupts: Interrupts) -> Signals | None:
        """Waits for a call and writes what it measured; says whether the run was asked to stop before it."""
        if call is None:
            return None
        measured = {name: np.asarray(value) for name, value in jax.device_get(call.metrics).items()}
        bad = first_not_finite(measured)
        count = call.steps if bad is None else bad[0] + 1
        measured = {name: value[:count] for name, value in measured.items()}
        for record in records(call.first, measured, self.log_every if bad is None else 1):
            self._write(record)
        self.recorded = call.first + count
        if bad is not None:
            self._settle()
            raise FloatingPointError(f"{bad[1]} is {bad[2]} at step {self.recorded}; {self._standing()}")
        self.history.append({"step": np.arange(call.first + 1, self.recorded + 1), **measured})
        self.bar.advance(count, measured["loss"][-1] if "loss" in measured else None)
        if self.store is not None:
            self.store.poll()
        return interrupts.count(call.ballot)

    def _due(self, done: int) -> bool:
        every = [self.evaluate_every, self.checkpoints and self.checkpoints.every]
        every += [getattr(callback, "every", 1) for callback in self.callbacks]
        return done == self.steps or any(p and done % p == 0 for p in every)

    def _pause(self, state: TrainState, done: int, interrupted: bool) -> None:
        """What happens between two calls: evaluation, callbacks, a checkpoint; in this order."""
        evaluated, improved = {}, False
        last = done == self.steps
        if self.evaluate is not None and (last or (self.evaluate_every and done % self.evaluate_every == 0)):
            found = mapping("evaluate", self.evaluate(state.params))
            evaluated = {f"eval/{name}": value for name, value in found.items()}
            self._note({"step": done, **evaluated})
            improved = self._judge(evaluated)
        for callback in self.callbacks:
            if done % getattr(callback, "every", 1) == 0 and (more := callback(done, state)) is not None:
                self._note({"step": done, **mapping("a callback", more)})
        if self.checkpoints is None or self.store is None:
            return
        if interrupted or last or self.stopped or improved or done % self.checkpoints.every == 0:
            self._save(self.store, state, done, evaluated.get(self.checkpoints.metric))
            if interrupted:
                self.store.wait()

    def _judge(self, evaluated: Record) -> bool:
        """Early stopping's view, and whether this is the best so far and to be kept."""
        if self.early_stopping is not None:
            value = _found(evaluated, self.early_stopping.metric, "early_stopping")
            self.patience = wait(self.early_stopping, self.patience, value)
            self.stopped = self.patience.waited >= self.early_stopping.patience
        if self.checkpoints is None or not self.checkpoints.keep_best:
            return False
        value = _found(evaluated, self.checkpoints.metric, "checkpoints")
        if not better(value, self.best, self.checkpoints.mode):
            return False
        self.best = value
        return True

    def _save(self, store: Store, state: TrainState, done: int, value: Any) -> None:
        for writer in self.writers:
            writer.sync()
        position = None if self.batches is None else self.batches.position()
        extra = {
            "positions": everyones(position),
            "patience": list(self.patience),
            "best": self.best,
            "stopped": self.stopped,
        }
        store.save(done, state, extra, None if value is None else float(value))

    def _note(self, record: Record) -> None:
        self.records.append(record)
        self._write(record)

    def _write(self, record: Record) -> None:
        for writer in self.writers:
            writer.write(record)

    def _interrupted(self, number: Signals, done: int) -> None:
        for writer in self.writers:
            writer.sync()
        self._say(f"{number.name}: stopped after step {done}")
        if number == SIGINT:
            raise KeyboardInterrupt(f"stopped after step {done}; {self._standing()}")
        raise SystemExit(128 + number)

    def _settle(self) -> None:
        """Lets a checkpoint on its way arrive, before it is said which is the last."""
        if self.store is not None and jax.process_count() == 1:  # another process may be the one that is gone
            with contextlib.suppress(CheckpointError):
                self.store.wait()

    def _standing(self) -> str:
        where = [str(writer.path) for writer in self.writers if isinstance(writer, JSONLines)]
        written = f"metrics up to step {self.recorded} are in {', '.join(where)}" if where else "no metrics file"
        return f"{self.store.last() if self.store is not None else 'no checkpoints were asked for'}; {written}"

    def _say(self, what: str, everywhere: bool = False) -> None:
        if jax.process_index() == 0 or everywhere:
            print(f"lstmjax: {what}; {self._standing()}", file=sys.stderr, flush=True)

    def _history(self) -> dict[str, np.ndarray]:
        if not self.history:
            return {"step": np.empty(0, int), **{name: np.empty(0, np.float32) for name in OWN_METRICS}}
        return {name: np.concatenate([part[name] for part in self.history]) for name in self.history[0]}


def _found(evaluated: Record, metric: str, who: str) -> float:
    if metric not in evaluated:
        raise ValueError(f"{who} goes by {metric!r}, and evaluate returned {sorted(evaluated)}; wanted one of these")
    return float(evaluated[metric])
