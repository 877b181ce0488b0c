"""What a command measures on: a file of one's own, or one of three inputs that come with the library."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lstmjax.tasks.sources import code_points, english_text, seattle_temperatures

InputName = Literal["characters", "temperature", "white noise"]
Scaling = Literal["standard", "range", "none"]
KINDS = (".csv", ".tsv", ".txt", ".npy", ".parquet")


class Series(NamedTuple):
    """A sequence, of which windows are drawn.

    Attributes:
        name: what it is called.
        about: what it is, in a sentence.
        inputs: ``[N, I]`` float32, what a cell reads at each step; or ``[N]``, symbols to be read one-hot.
        targets: ``[N, O]`` float32, or ``[N]`` symbols: what is predicted, one step ahead.
        symbols: how many distinct symbols; 0 for numbers.
        noise: channels of white noise, drawn anew for every window, in place of the arrays.
    """

    name: str
    about: str
    inputs: NDArray
    targets: NDArray
    symbols: int = 0
    noise: int = 0

    @property
    def features(self) -> int:
        """I, how many numbers a cell reads at each step."""
        return self.noise or self.symbols or self.inputs.shape[1]

    @property
    def longest(self) -> int | float:
        """The most steps a window can have, one step ahead of it being known."""
        return math.inf if self.noise else len(self.inputs) - 1

    def window(self, rng: np.random.Generator, steps: int) -> tuple[NDArray, NDArray]:
        """Inputs ``[steps, I]`` and targets ``[steps, O]`` of one window, from a place that is drawn."""
        if self.noise:
            drawn = rng.standard_normal((steps, self.noise), np.float32)
            return drawn, drawn
        start = rng.integers(len(self.inputs) - steps + 1)
        return self.read(self.inputs[start : start + steps]), self.read(self.targets[start : start + steps])

    def read(self, values: NDArray) -> NDArray:
        """Values as a cell reads them: numbers as they are, symbols one-hot."""
        return np.eye(self.symbols, dtype=np.float32)[values] if self.symbols else values


def shipped(name: InputName) -> Series:
    """One of the three inputs that come with the library.

    >>> shipped("characters").features, shipped("temperature").inputs.shape, shipped("white noise").features
    (103, (8759, 1), 16)
    """
    if name == "characters":
        return _symbols(name, "characters of English text, one-hot", english_text())
    if name == "temperature":
        degrees = seattle_temperatures()
        return Series(name, "hourly temperatures at Seattle, standardised", degrees, degrees)
    nothing = np.zeros((0, 16), np.float32)
    return Series(name, "Gaussian white noise in 16 channels", nothing, nothing, noise=16)


def read_file(
    path: Path,
    columns: Sequence[str] | None = None,
    target: Sequence[str] | None = None,
    scaling: Scaling = "standard",
) -> Series:
    r"""A file as a series: a text, or a table with a row for each step.

    Args:
        path: ``.csv`` or ``.tsv``, with or without a line of names; ``.npy``, ``[N]`` or ``[N, columns]``;
            ``.parquet``; or ``.txt``, a text in UTF-8 that is read character by character.
        columns: the names of those that a cell reads, or their numbers from 0 where they have no names; default every
            one that has a name and holds numbers.
        target: the columns to predict, one step ahead; default those that are read.
        scaling: ``"standard"``, to mean 0 and variance 1 in each column; ``"range"``, to 0 … 1; or ``"none"``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, holds no steps, a value that is no finite number, a column that does not
            vary, or not the columns named.
        ImportError: the package pyarrow is missing, which reads ``.parquet``.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "series.csv"
    >>> _ = path.write_text("day,a,b\nmonday,1,2\ntuesday,3,5\n")
    >>> read_file(path, target=["b"]).inputs.tolist(), read_file(path, target=["b"]).targets.tolist()
    ([[-1.0, -1.0], [1.0, 1.0]], [[-1.0], [1.0]])
    """
    if not path.is_file():
        raise FileNotFoundError(f"data is {path}, which is no file")
    kind = path.suffix.lower()
    if kind not in KINDS:
        raise ValueError(f"data is {path}; wanted a name that ends in {', '.join(KINDS)}")
    if kind == ".txt":
        if columns or target:
            raise ValueError(f"{path} is a text, which has no columns; wanted neither --columns nor --target")
        return _text(path)
    table = {".npy": _npy, ".parquet": _parquet}.get(kind, _csv)(path)
    picked = (
        _pick(path, table, "columns", columns) if columns else {n: c for n, c in table.items() if n and _numeric(c)}
    )
    if not picked:
        raise ValueError(f"{path} holds no column of numbers")
    wanted = _pick(path, table, "target", target) if target else picked
    inputs, targets = (_scaled(path, part, scaling) for part in (picked, wanted))
    if len(inputs) < 2:
        raise ValueError(f"{path} holds {len(inputs)} steps; wanted at least 2: one to read and one to predict")
    scaled = {"standard": "standardised", "range": "scaled to 0 … 1", "none": "as they are"}[scaling]
    about = f"{len(inputs)} steps of {_listed(picked)}, {scaled}; predicted: {_listed(wanted)}"
    return Series(path.name, about, inputs, targets)


def _text(path: Path) -> Series:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: byte {error.start}") from None
    if len(set(text)) < 2:
        raise ValueError(f"{path} holds {len(text)} characters, {len(set(text))} of them distinct; wanted 2 at least")
    return _symbols(path.name, f"{len(text):,} characters of {path.name}, one-hot", text)


def _symbols(name: str, about: str, text: str) -> Series:
    symbols, index = np.unique(code_points(text), return_inverse=True)
    return Series(name, about, index, index, symbols=len(symbols))


Column = list[str] | NDArray
"""The entries of a column; of a ``.csv`` as they stand there."""


def _csv(path: Path) -> dict[str, Column]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        file.seek(0)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
        try:
            rows = [row for row in csv.reader(file, delimiter=delimiter) if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
    if not rows:
        raise ValueError(f"{path} is empty; wanted a row for each step")
    # A line of names has one that is no number, above an entry that is.
    named = len(rows) > 1 and any(_is_number(b) and not _is_number(a) for a, b in zip(*rows[:2], strict=False))
    names = [name.strip() for name in rows[0]] if named else [str(n) for n in range(len(rows[0]))]
    if len(set(names)) < len(names):
        raise ValueError(f"{path} has two columns of one name: {', '.join(names)}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise ValueError(f"{path} has {len(row)} entries in row {number}; wanted {len(names)}, as in row 1")
    body = rows[1:] if named else rows
    return {name: [row[n] for row in body] for n, name in enumerate(names)}


def _npy(path: Path) -> dict[str, Column]:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no array of NumPy's, or a damaged one: {error}") from None
    if not isinstance(array, np.ndarray) or array.ndim not in (1, 2) or array.dtype.kind not in "fiub":
        shape, dtype = getattr(array, "shape", "none"), getattr(array, "dtype", "none")
        raise ValueError(
            f"{path} holds an array of shape {shape} and dtype {dtype}; wanted numbers [N] or [N, columns]"
        )
    return {str(n): column for n, column in enumerate(array.reshape(len(array), -1).T)}


def _parquet(path: Path) -> dict[str, Column]:
    try:
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"{path}: a .parquet file wants the package pyarrow: pip install pyarrow") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no parquet file, or a damaged one: {error}") from None
    return {name: table[name].to_numpy() for name in table.column_names}


def _is_number(entry: str) -> bool:
    try:
        float(entry)
    except ValueError:
        return False
    return True


def _numeric(column: Column) -> bool:
    """Whether a column that nobody named is read: dates and words are not."""
    if isinstance(column, np.ndarray):
        return column.dtype.kind in "fiub"
    return _is_number(column[0]) or all(entry.strip() == "" or _is_number(entry) for entry in column)


def _pick(path: Path, table: dict[str, Column], option: str, names: Sequence[str]) -> dict[str, Column]:
    for name in names:
        if name not in table:
            raise ValueError(f"{option} names {name!r}, and {path} has no such column; it has {_listed(table)}")
    return {name: table[name] for name in names}


def _scaled(path: Path, table: dict[str, Column], scaling: Scaling) -> NDArray[np.float32]:
    return np.stack([_scale(path, name, _numbers(path, name, column), scaling) for name, column in table.items()], 1)


def _numbers(path: Path, name: str, column: Column) -> NDArray[np.float64]:
    if isinstance(column, np.ndarray):
        if column.dtype.kind not in "fiub":
            raise ValueError(f"{path}, column {name!r} holds {column.dtype}; wanted numbers")
        numbers = column.astype(np.float64)
    else:
        numbers = np.array([float(entry) if _is_number(entry) else np.nan for entry in column])
    bad = np.flatnonzero(~np.isfinite(numbers))
    if bad.size:
        raise ValueError(
            f"{path}, column {name!r}: {bad.size} of {len(numbers)} steps hold no finite number, first step {bad[0]}, "
            f"counted from 0: {column[bad[0]]!r}; wanted one at each step"
        )
    return numbers


def _scale(path: Path, name: str, values: NDArray[np.float64], scaling: Scaling) -> NDArray[np.float32]:
    if scaling != "none" and len(values) and np.ptp(values) == 0:
        raise ValueError(
            f"{path}, column {name!r} is {values[0]:g} at every step, which cannot be scaled; leave it out, or take "
            "--scaling none"
        )
    if scaling == "standard":
        values = (values - values.mean()) / values.std()
    elif scaling == "range":
        values = (values - values.min()) / np.ptp(values)
    return values.astype(np.float32)


def _listed(names: Sequence[str] | dict[str, Column]) -> str:
    names = list(names)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
