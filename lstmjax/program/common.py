"""What the commands that measure have in common: their options, and what these name."""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
from tyro.conf import arg

from lstmjax.cells import Cell
from lstmjax.checks import whole_number
from lstmjax.program import cells
from lstmjax.program.cells import Candidate
from lstmjax.program.series import InputName, Scaling, Series, read_file, shipped

PictureFormat = Literal["png", "pdf", "svg"]


def several(metavar: str, default: str) -> Any:
    """An option that takes one value or more; ``default`` says in words what it is without any."""
    return arg(metavar=f"{metavar} [{metavar} ...]", help_behavior_hint=f"(default: {default})")


def one(metavar: str, default: str) -> Any:
    """An option that takes one value, where the default is none."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of every command that measures cells on a series."""

    data: Annotated[Path | None, one("FILE", "what --inputs says")] = None
    """A series of your own: .csv, .tsv, .npy or .parquet, a row a step, or .txt, read character by character."""
    columns: Annotated[tuple[str, ...] | None, several("NAME", "every column of numbers")] = None
    """The columns of the data that a cell reads; where they have no names, their numbers from 0."""
    target: Annotated[tuple[str, ...] | None, several("NAME", "the columns that are read")] = None
    """The columns to predict, one step ahead."""
    scaling: Scaling = "standard"
    """How columns are scaled: standard, to mean 0 and variance 1; range, to 0 … 1; none."""
    cells: Annotated[tuple[str, ...] | None, several("CELL", "seven, where no other option names one")] = None
    """Cells by name: "tanh RNN", "identity ReLU RNN", "GRU", "GRU chrono", "LSTM b_f=0", "LSTM b_f=1", "LSTM chrono".
    Or any cell of the library with its settings: mgu, lstm:forget_bias=2, co_rnn:dt=0.05,gamma=2,epsilon=1."""
    cell_file: Annotated[tuple[str, ...] | None, several("FILE:FUNCTION", "none")] = None
    """Cells of your own: a function in a Python file, from a hidden size to a lstmjax.Cell."""
    params: Annotated[tuple[str, ...] | None, several("FILE[:PREFIX]", "none")] = None
    """Trained networks: .safetensors files with the names that torch.nn.LSTM, GRU or RNN give.
    A prefix of the names is given as in model.safetensors:encoder.lstm. (lstmjax.convert writes such files.)"""
    hidden_size: int = 64
    """Hidden units of every cell that is not trained."""
    device: Annotated[str | None, one("cpu|gpu|tpu", "the fastest there is")] = None
    """Where to compute."""
    format: Annotated[PictureFormat | None, one("png|pdf|svg", "png, where matplotlib is installed")] = None
    """The picture's format. Pictures want matplotlib: pip install 'lstmjax[plots]'."""
    out: Path = Path("out")
    """Folder for the results. One that holds another run is refused."""
    overwrite: bool = False
    """Replace another run that is in the folder."""
    progress: bool = True
    """Show a progress bar on standard error."""

    def __post_init__(self) -> None:
        """Refuses settings that cannot be measured, before anything is read."""
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if isinstance(values, tuple) and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{field.name} is {values}; wanted at least one, each once")
            if isinstance(field.default, int) and not isinstance(field.default, bool):
                whole_number(field.name, values, least=min(field.default, 1))
        if self.data is None and (self.columns or self.target):
            raise ValueError("columns and target are those of a file; wanted --data too")
        if self.format is not None and importlib.util.find_spec("matplotlib") is None:
            raise ValueError(f"format is {self.format}, and pictures want matplotlib: pip install 'lstmjax[plots]'")

    @property
    def picture(self) -> PictureFormat | None:
        """The picture's format; None where none can be drawn."""
        return self.format or ("png" if importlib.util.find_spec("matplotlib") else None)


def all_series(options: Options, inputs: Sequence[InputName]) -> list[Series]:
    """What is measured on: the file, or the inputs that come with the library."""
    if options.data is not None:
        return [read_file(options.data, options.columns, options.target, options.scaling)]
    return [shipped(name) for name in inputs]


def candidates(options: Options, longest: int, features: Sequence[int]) -> dict[str, Candidate]:
    """The cells that the options name, each tried on shapes alone.

    Raises:
        ValueError: a cell cannot be made, or does not take the inputs; says which.
    """
    names = options.cells or (() if options.cell_file or options.params else tuple(cells.headline(longest)))
    found = {name: cells.named(name, longest) for name in names}
    more = [cells.from_file(word) for word in options.cell_file or ()]
    more += [cells.trained(word) for word in options.params or ()]
    for name, candidate in more:
        if name in found:
            raise ValueError(f"two cells have the name {name!r}; wanted one of each")
        found[name] = candidate
    for name, candidate in found.items():
        for inputs in features:
            _try(name, candidate, options.hidden_size, inputs)
    return found


def _try(name: str, candidate: Candidate, hidden_size: int, inputs: int) -> None:
    try:
        cell: Any = candidate.make(hidden_size)
        if not isinstance(cell, Cell):
            raise TypeError(f"made of it was a {type(cell).__name__}; wanted a lstmjax.Cell")
        jax.eval_shape(
            lambda key, x: cell.step(cell.init(key, inputs), cell.initial_state((2,)), x),
            jax.random.key(0), jax.ShapeDtypeStruct((2, inputs), "float32"),
        )  # fmt: skip
    except Exception as error:  # whatever a stranger's cell raises
        raise ValueError(f"the cell {name!r}, of hidden size {hidden_size}, for {inputs} features: {error}") from error


def described(options: Options, **more: Any) -> dict[str, Any]:
    """The settings as a page and a file of results say them; data by their content, and not by their place."""
    data: dict[str, Any] = {}
    if options.data is not None:
        digest = hashlib.sha256(options.data.read_bytes()).hexdigest()
        data = {"data": options.data.name, "sha256": digest} | {
            name: getattr(options, name) for name in ("columns", "target", "scaling")
        }
    return data | more


def select_device(name: str | None) -> Any:
    """A context in which arrays lie on the first device of a kind.

    Raises:
        ValueError: this machine, or this JAX, has none.
    """
    if name is None:
        return jax.default_device(None)
    try:
        return jax.default_device(jax.devices(name)[0])
    except RuntimeError:
        there = ", ".join(dict.fromkeys(d.platform for d in jax.devices()))
        raise ValueError(f"device is {name!r}, and there is none of this kind here; there is {there}") from None
