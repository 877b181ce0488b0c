"""The cells that a command names: those of the headline, the whole zoo with settings, a file's, a trained network's."""

import ast
import importlib.util
import inspect
import itertools
import re
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lstmjax import cells, gates, init
from lstmjax.cells import Cell

CONVOLUTIONAL = "conv_lstm"  # reads pictures, and no series

# Where the equations of the cells stand that are not in one file with their step's.
STEPS: dict[str, tuple[Any, ...]] = {"lstm": (gates,), "gru": (cells.gru_step,), "rnn": (cells.rnn_step,)}


class Candidate(NamedTuple):
    """A cell to be measured.

    Attributes:
        make: from a hidden size to the cell.
        about: what it is, for a reader who has the name alone.
        equations: what a step computes, where the library says so; else empty.
        source: where the cell is from, or empty.
    """

    make: Callable[[int], Cell]
    about: str
    equations: str = ""
    source: str = ""


def headline(longest: int) -> dict[str, Candidate]:
    """The seven cells of the main job, whose recurrent weights are orthogonal for each gate, or else the identity.

    >>> list(headline(100))[:3]
    ['tanh RNN', 'identity ReLU RNN', 'GRU']
    """
    lag = max(longest, 3)
    made: dict[str, tuple[Callable, dict[str, Any], str]] = {
        "tanh RNN": (cells.rnn, {}, ""),
        "identity ReLU RNN": (
            cells.rnn, {"activation": jax.nn.relu, "w_h_init": init.identity()},
            "ReLU for tanh, and recurrent weights that begin as the identity: Le, Jaitly & Hinton (2015).",
        ),
        "GRU": (cells.gru, {}, ""),
        "GRU chrono": (
            cells.gru, {"b_init": init.chrono(lag, keeps=1, enters=None, gates=3)},
            f"Update biases are spread for memories of up to {lag} steps: Tallec & Ollivier (2018).",
        ),
        "LSTM b_f=0": (cells.lstm, {"forget_bias": 0.0}, "The forget gate's bias begins at 0."),
        "LSTM b_f=1": (cells.lstm, {"forget_bias": 1.0}, "The forget gate's bias begins at 1."),
        "LSTM chrono": (
            cells.lstm, {"b_init": init.chrono(lag)},
            f"Forget and input biases are spread for memories of up to {lag} steps: Tallec & Ollivier (2018).",
        ),
    }  # fmt: skip
    return {name: _of_the_library(f, settings, words) for name, (f, settings, words) in made.items()}


def _makes_a_cell(name: str) -> bool:
    """Whether it makes a cell of a number of units: wrappers want a cell, and steps and draws want arrays."""
    made = getattr(cells, name)
    return inspect.isfunction(made) and next(iter(inspect.signature(made).parameters)) == "hidden_size"


ZOO = sorted(name for name in cells.__all__ if _makes_a_cell(name) and name != CONVOLUTIONAL)
"""The names of the library's cells that read a series."""


def named(name: str, longest: int) -> Candidate:
    """The cell that a word of ``--cells`` names: one of the headline, or one of the zoo with its settings.

    Settings are those of the function, ``lstm:forget_bias=2`` for ``lstmjax.lstm(H, forget_bias=2)``. An activation is
    named as in ``jax.nn``, an initialiser as in :mod:`lstmjax.init`: ``rnn:activation=relu,w_h_init=identity(0.5)``.

    Args:
        name: the word.
        longest: the longest sequence in steps, up to which the headline's chrono biases are spread.

    Raises:
        ValueError: there is no such cell, or it has no such setting.

    >>> named("lstm:forget_bias=2", 100).make(4).init(jax.random.key(0), 3).b.tolist()[4:6]
    [2.0, 2.0]
    """
    known = headline(longest)
    if name in known:
        return known[name]
    word, _, settings = name.partition(":")
    if word not in ZOO:
        raise ValueError(
            f"cells names {name!r}; wanted one of {', '.join(map(repr, known))}, or, with settings as in "
            f"lstm:forget_bias=2, one of {', '.join(ZOO)}"
        )
    make = getattr(cells, word)
    given = _settings(name, settings)
    _, *rest = inspect.signature(make).parameters.values()
    has = [p.name for p in rest]
    for key in given:
        if key not in has:
            raise ValueError(f"cells names {name!r}, and {word} has no setting {key!r}; it has {', '.join(has)}")
    if missing := [p.name for p in rest if p.default is p.empty and p.name not in given]:
        raise ValueError(f"cells names {name!r}, and {word} wants {' and '.join(missing)}: {word}:{missing[0]}=…")
    # A whole number is a number too; which a setting wants, its annotation tells.
    takes = {p.name: "float" in str(p.annotation) for p in rest}
    return _of_the_library(make, {k: float(v) if takes[k] and type(v) is int else v for k, v in given.items()})


def from_file(word: str) -> tuple[str, Candidate]:
    """The name and the cell of ``--cell-file my_cell.py:make_cell``, a function from a hidden size to a cell.

    Raises:
        ValueError: the word is not of this form, the file cannot be run, or holds no such function.
        FileNotFoundError: there is no such file.
    """
    file, _, name = word.rpartition(":")
    if not file or not name.isidentifier():
        raise ValueError(f"cell_file is {word!r}; wanted FILE:FUNCTION, such as my_cell.py:make_cell")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"cell_file names {file}, which is no file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"cell_file names {file}; wanted a Python file, whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # for what it imports from beside it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise ValueError(f"{file} cannot be run: line {line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    make: Any = getattr(module, name, None)
    if not callable(make):
        there = [n for n, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == path.stem]
        raise ValueError(f"{file} holds no function {name!r}; it holds {', '.join(there) or 'none'}")
    about = (inspect.getdoc(make) or "").partition("\n")[0]
    of_theirs: Callable[[int], Any] = make
    return name, Candidate(of_theirs, f"{about} From {path.name}.".strip())


def trained(word: str) -> tuple[str, Candidate]:
    """The name and the cell of ``--params weights.safetensors``, or ``weights.safetensors:PREFIX``: trained weights.

    The cell is the one whose weights they are, with σ and tanh, which a file of weights does not tell. Several layers
    are one cell, whose state holds those of all layers. Its weights are the file's, whatever key they are drawn with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, holds other modules, or a layer has two directions.
        ImportError: the package safetensors is missing.
    """
    from lstmjax.convert import load_safetensors

    file, _, prefix = word.partition(".safetensors:")
    path = Path(f"{file}.safetensors" if prefix else word)
    layers = load_safetensors(path, prefix=prefix)
    if any(not hasattr(layer, "_fields") for layer in layers):
        raise ValueError(f"{path} holds layers of two directions; wanted one: a lag has one direction in time")
    made = [_cell_of(layer) for layer in layers]
    cell = made[0] if len(made) == 1 else _stacked(made)
    params = layers[0] if len(layers) == 1 else layers
    inputs = layers[0].w_x.shape[0]

    def given(key: Any, input_size: int, dtype: Any = jnp.float32) -> Any:
        del key, dtype
        if input_size != inputs:
            raise ValueError(f"{path} holds weights for {inputs} input features, and the data have {input_size}")
        return params

    kind = f"{len(layers)} layers of {type(layers[0]).__name__.removesuffix('Params')}"
    about = f"Trained weights from {path.name}: {kind.replace('1 layers', 'one layer')}."
    return path.stem, Candidate(lambda hidden_size: cell.replace(init=given), about)


def _cell_of(params: Any) -> Cell:
    """The cell whose parameters these are, of their size."""
    hidden = params.w_h.shape[0]
    match params:
        case cells.LSTMParams():
            return cells.lstm(hidden)
        case cells.GRUParams():
            return cells.gru(hidden)
        case cells.RNNParams():
            return cells.rnn(hidden)
        case cells.ProjectedLSTMParams():
            return cells.projected_lstm(params.w_p.shape[0], params.w_p.shape[1])
    raise ValueError(f"params are of type {type(params).__name__}; wanted an LSTM's, a GRU's or an RNN's")


def _stacked(layers: list[Cell]) -> Cell:
    """Several layers as one cell: each reads the output of the one below it at the same step."""

    def initial_state(batch_shape: Any = (), dtype: Any = jnp.float32) -> Any:
        return tuple(cell.initial_state(batch_shape, dtype) for cell in layers)

    def step(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        states = []
        for cell, own, before in zip(layers, params, state, strict=True):
            after, x = cell.step(own, before, x)
            states.append(after)
        return tuple(states), x

    return Cell(layers[0].init, initial_state, step)


def _of_the_library(make: Callable, settings: dict[str, Any], words: str = "") -> Candidate:
    """A cell of the library with what its docstring says of it, or that of its step."""
    first = (inspect.getdoc(make) or "").partition("\n")[0]
    docs = [inspect.getdoc(part) or "" for part in (make, *STEPS.get(make.__name__, ()))]
    text = "\n".join(docs)
    lines = text.splitlines()
    found = re.search(r"^Source: (.*?(?<!al)\.)(?=\s|$)", text, re.MULTILINE | re.DOTALL)
    source = " ".join(found[1].split()) if found else ""
    begins = next((n for n, line in enumerate(lines) if line.endswith("::")), len(lines))
    block = itertools.takewhile(lambda line: not line or line.startswith(" "), lines[begins + 1 :])
    equations = textwrap.dedent("\n".join(block)).strip("\n")
    plain = re.sub(r"(?::\w+:)?`+~?([^`]*)`+", r"\1", source)
    about = f"{first} {words}".replace("`", "").strip()
    return Candidate(lambda hidden_size: make(hidden_size, **settings), about, equations, plain)


def _settings(name: str, text: str) -> dict[str, Any]:
    """``"forget_bias=2,b_init=chrono(100)"`` as the arguments of a function."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise SyntaxError
    except (SyntaxError, AssertionError):
        raise ValueError(f"cells names {name!r}; wanted settings as in {name.partition(':')[0]}:a=1,b=2") from None
    return {str(keyword.arg): _value(name, str(keyword.arg), keyword.value) for keyword in call.keywords}


def _value(name: str, key: str, node: ast.expr) -> Any:
    """A literal; or the name of an activation or an initialiser, the latter with arguments where it takes some."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    word, arguments = (node.func, node.args) if isinstance(node, ast.Call) else (node, None)
    home = init if key.endswith("_init") else jax.nn
    found = getattr(home, word.id, None) if isinstance(word, ast.Name) and not word.id.startswith("_") else None
    if not callable(found):
        raise ValueError(
            f"cells names {name!r}, where {key} is {ast.unparse(node)}; wanted a number or a name of {home.__name__}"
        )
    if arguments is None and (home is jax.nn or next(iter(inspect.signature(found).parameters)) == "key"):
        return found
    try:
        return found(*map(ast.literal_eval, arguments or ()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"cells names {name!r}, where {key} is {ast.unparse(node)}: {error}") from None
