"""Where metrics go: lines of JSON, TensorBoard, or a writer of your own.

A record is a dict with ``step``, the number of updates made so far, and what was measured there.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lstmjax.files import replacing

Record = dict[str, Any]


@runtime_checkable
class MetricWriter(Protocol):
    """What :func:`~lstmjax.training.fit` writes records to."""

    def open(self, step: int) -> None:
        """Begins, or goes on after ``step``: records beyond it are of a run that was cut off, and are dropped."""

    def write(self, record: Record) -> None:
        """Takes one record."""

    def sync(self) -> None:
        """Everything written so far must survive."""

    def close(self) -> None:
        """No more records."""


class JSONLines:
    r"""A file of one JSON record a line, readable at any moment.

    Each line is flushed as it is written, and says by ``time`` when that was, in seconds since 1970 UTC; a record's
    own ``time`` goes before that. A run that goes on from a checkpoint drops the lines beyond it, so that the file
    reads as one uninterrupted run; one that begins anew puts an old file aside under a number. Apart from ``time``,
    a run that was cut off and one that was not write the same bytes. What is not finite is written as null, for JSON
    has no word for it.

    Args:
        path: the file, on this machine; its directory is made. A symbolic link stays one.

    Raises:
        ValueError: the path is that of an object store, to which nothing can be appended.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
    >>> lines = JSONLines(path)
    >>> lines.open(0)
    >>> lines.write({"step": 1, "loss": 0.5, "curve": np.array([1.0, np.inf])})
    >>> lines.close()
    >>> [record] = read_jsonl(path)
    >>> record.pop("time") > 1.7e9, record
    (True, {'step': 1, 'loss': 0.5, 'curve': [1.0, None]})
    """

    def __init__(self, path: str | os.PathLike) -> None:
        if "://" in os.fspath(path):
            raise ValueError(f"metrics is {path!r}; wanted a path on this machine: lines are appended one by one")
        self.path = Path(path)
        self._file = None

    def open(self, step: int) -> None:
        """Opens the file for what follows ``step``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._put_aside() if step == 0 else self._drop_beyond(step)
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def write(self, record: Record) -> None:
        """Appends a line, whole or not at all."""
        file = self._opened()
        timed = {"step": record["step"], "time": round(time.time(), 3), **record}
        line = (json.dumps(plain(timed), allow_nan=False) + "\n").encode()
        end = file.seek(0, os.SEEK_END)
        try:
            with memoryview(line) as rest:
                written = 0
                while written < len(line):
                    written += file.write(rest[written:]) or 0
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise OSError(
                error.errno, f"could not write metrics of step {record['step']}: {error.strerror}", str(self.path)
            ) from error

    def sync(self) -> None:
        """Waits until the disk has it."""
        with contextlib.suppress(OSError):  # a pipe, or a file system that cannot: it has what it was given
            os.fsync(self._opened().fileno())

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self):
        if self._file is None:
            raise ValueError(f"{self.path} is not open; wanted open(step) first")
        return self._file

    def _put_aside(self) -> None:
        if not self.path.stat().st_size:
            return
        place, number = self.path.resolve(), 1
        while (aside := place.with_name(f"{place.name}.{number}")).exists():
            number += 1
        place.rename(aside)

    def _drop_beyond(self, step: int) -> None:
        """Replaces the file by its whole lines up to ``step``, at once."""
        data = self.path.read_bytes()
        kept = b"".join(line for line in data.splitlines(keepends=True) if _belongs(line, step))
        if kept == data:
            return
        with replacing(self.path) as part:
            part.write_bytes(kept)


class TensorBoard:
    """Event files for TensorBoard, by ``tensorboardX`` (extra ``tensorboard``); scalars only.

    Args:
        directory: the log directory, or what else ``tensorboardX`` writes to, such as ``gs://bucket/run``.

    >>> TensorBoard("runs/lstm").directory
    'runs/lstm'
    """

    def __init__(self, directory: str | os.PathLike) -> None:
        self.directory = os.fspath(directory)
        self._writer: Any = None

    def open(self, step: int) -> None:
        """Opens a new event file, which says that steps beyond ``step`` in older ones do not count."""
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

        self._writer = SummaryWriter(self.directory, purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Adds the record's numbers."""
        for name, value in record.items():
            if name != "step" and np.ndim(value) == 0 and not isinstance(value, str | None):
                self._writer.add_scalar(name, float(value), record["step"])

    def sync(self) -> None:
        """Flushes the event file."""
        self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def read_jsonl(path: str | os.PathLike) -> list[Record]:
    r"""The records of a file of JSON lines; a last line that was cut off is left out.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
    >>> _ = path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    >>> read_jsonl(path)
    [{'step': 1, 'loss': 0.5}]
    """
    lines = Path(path).read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def records(first: int, metrics: Mapping[str, Any], every: int) -> Iterator[Record]:
    """Stacked metrics ``[n]``, of the steps after ``first``, as a record for each step that ``every`` divides."""
    count = len(next(iter(metrics.values()), ()))
    for i in range(count):
        if (first + i + 1) % every == 0:
            yield {"step": first + i + 1, **{name: value[i] for name, value in sorted(metrics.items())}}


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays as lists, what is not finite as None.

    >>> plain({"norms": np.array([1.0, np.nan], np.float32), "count": np.int32(3)})
    {'norms': [1.0, None], 'count': 3}
    """
    value = as_mapping(value)
    if isinstance(value, Mapping):
        return {str(name): plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    array = np.asarray(value)
    if array.dtype.kind in "biu":
        return array.tolist()
    return plain(array.astype(np.float64).tolist())


def first_not_finite(measured: dict[str, np.ndarray]) -> tuple[int, str, float] | None:
    """The index of the first step that went wrong, with what went wrong and how."""
    watched = [name for name in ("loss", "grad_norm", "update_norm") if name in measured]
    bad = [(int(np.argmin(np.isfinite(measured[n]))), n) for n in watched if not np.isfinite(measured[n]).all()]
    if not bad:
        return None
    index, name = min(bad, key=lambda found: found[0])
    return index, name, float(measured[name][index])


def as_mapping(value: Any) -> Any:
    """A named tuple as the dict of its fields; anything else as it is."""
    fields = getattr(value, "_fields", None)
    return dict(zip(fields, value, strict=True)) if fields else value


def mapping(who: str, value: Any) -> Mapping[str, Any]:
    """What somebody's function returned, where it is a dict or a named tuple.

    Raises:
        ValueError: it is something else.

    >>> mapping("evaluate", 0.5)
    Traceback (most recent call last):
        ...
    ValueError: evaluate returned 0.5; wanted a dict
    """
    found = as_mapping(value)
    if not isinstance(found, Mapping):
        raise ValueError(f"{who} returned {value!r}; wanted a dict")
    return found


def _belongs(line: bytes, step: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
