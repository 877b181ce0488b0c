"""One call that answers the question for several cells, fairly: does the gradient survive the lag?"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from lstmjax import numerals
from lstmjax.cells.base import Cell
from lstmjax.checks import whole_number
from lstmjax.files import replacing
from lstmjax.gradients import scaled
from lstmjax.gradients.adjoint import adjoint_norms
from lstmjax.gradients.decay import decay_fit, half_life
from lstmjax.gradients.differences import Difference, rate_differences
from lstmjax.gradients.gates import gate_statistics
from lstmjax.gradients.lyapunov import lyapunov_spectrum
from lstmjax.gradients.outputs import OutputState, with_output
from lstmjax.gradients.scaled import at_highest_precision
from lstmjax.progress import progress_bar
from lstmjax.typing import Key, Params
from lstmjax.unroll import unroll

Match = Literal["hidden size", "parameters"]


class Data(NamedTuple):
    """What every cell reads and is to predict.

    Attributes:
        xs: ``[T, B, I]`` inputs.
        targets: ``[B, O]`` what a linear readout of the last output is held against; with ``outputs`` given, whatever
            the loss takes, such as class labels ``[B]``.
    """

    xs: Any
    targets: Any


def squared_error(predictions: Array, targets: Array) -> Array:
    """`½ Σ (y − t)²`, summed over rows, so that no row's gradient depends on how many there are."""
    return 0.5 * ((predictions - targets) ** 2).sum()


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """The numbers of :func:`gradient_report`, with a table and a figure of them.

    Attributes:
        matched: what the cells have in common, in words.
        records: a dict for each cell, seed and phase: ``cell``, ``phase``, ``seed``, ``hidden_size``, ``parameters``,
            ``loss``, ``rate`` (of `ln ‖∂L/∂h‖` a step, the median over rows), ``rate_min`` and ``rate_max`` (of the
            rows, each fitted by itself), ``half_life`` (steps), ``r2``, ``lyapunov`` (the leading exponent),
            ``timescale`` (the median unit's `1/(1 − f)`, in steps; None without a gate that keeps).
        curves: ``[seeds, T + 1]`` base-10 logarithms of `‖∂L/∂h‖` by lag, a median over rows, by phase and cell. For a
            cell whose state has no field ``h``, of `‖∂L/∂s‖` over its whole state, and of `‖∂L/∂y‖` at lag 0.
    """

    matched: str
    records: list[dict[str, Any]]
    curves: dict[str, dict[str, NDArray]]

    def table(self) -> str:
        """Medians over seeds, a line for each phase and cell; the gradient at a lag is relative to that at lag 0.

        Lags beyond the sequence have no column. The last lines say what the columns are.
        """
        head, rows = self.rows()
        seeds = len({r["seed"] for r in self.records})
        over = f"medians over {seeds} seed{'s' if seeds > 1 else ''}"
        meanings = (
            "half-life and timescale in steps, of seeds and of rows from least to greatest; lag: ‖∂L/∂h‖ over lag 0's;",
            "λ₁: leading Lyapunov exponent a step; timescale: the median unit's 1/(1 − f)",
        )
        table = numerals.plain_table(head, rows, words=2)
        return "\n".join([f"matched by {self.matched}; {over}", "", table, "", *meanings])

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The head of the table and its lines, in words."""
        some = next(curve for curves in self.curves.values() for curve in curves.values())
        lags = [lag for lag in (10, 100, 1000) if lag < some.shape[1]]
        head = ["phase", "cell", "H", "loss", "half-life", "of seeds", "of rows", "R²"]
        head += [*(f"lag {lag}" for lag in lags), "λ₁", "timescale"]
        lines = []
        for phase, curves in self.curves.items():
            for cell, curve in curves.items():
                of = [r for r in self.records if r["phase"] == phase and r["cell"] == cell]
                timescale = f"{_median(of, 'timescale'):.3g}" if of[0]["timescale"] is not None else "-"
                lines.append(
                    [
                        phase, cell, str(of[0]["hidden_size"]), f"{_median(of, 'loss'):.3g}",
                        numerals.half_life(float(half_life(_median(of, "rate")))),
                        _half_lives(min(r["rate"] for r in of), max(r["rate"] for r in of)),
                        _half_lives(min(r["rate_min"] for r in of), max(r["rate_max"] for r in of)),
                        f"{_median(of, 'r2'):.3f}", *(_left(curve, lag) for lag in lags),
                        f"{_median(of, 'lyapunov'):.4f}", timescale,
                    ]
                )  # fmt: skip
        return head, lines

    def differences(self) -> dict[str, list[Difference]]:
        """Whether any two cells' rates differ, by phase: see :func:`~lstmjax.gradients.rate_differences`."""
        return {
            phase: rate_differences(
                {
                    cell: [r["rate"] for r in self.records if r["phase"] == phase and r["cell"] == cell]
                    for cell in curves
                }
            )
            for phase, curves in self.curves.items()
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes the report to a file in JSON, where numbers that are not finite stand as words.

        Args:
            path: the file; one that is there already is replaced.
        """
        with replacing(path) as part:
            part.write_text(json.dumps(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`save` writes, of dicts, lists, numbers and words alone."""
        curves = {phase: {cell: curve.tolist() for cell, curve in of.items()} for phase, of in self.curves.items()}
        return {"matched": self.matched, "records": _spelled(self.records), "curves": _spelled(curves)}

    @classmethod
    def load(cls, path: str | os.PathLike) -> "GradientReport":
        """Reads a report that :meth:`save` wrote, or the command ``lstmjax compare``.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it holds no report.

        >>> import tempfile
        >>> report = GradientReport("hidden size, 4", [{"rate": -0.5}], {"now": {"RNN": np.array([[0.0, -np.inf]])}})
        >>> report.save(path := Path(tempfile.mkdtemp()) / "report.json")
        >>> GradientReport.load(path).curves["now"]["RNN"].tolist()
        [[0.0, -inf]]
        """
        try:
            read = json.loads(Path(path).read_text())
            curves = {
                phase: {cell: np.array(curve, np.float64) for cell, curve in of.items()}
                for phase, of in read["curves"].items()
            }
            return cls(read["matched"], [_numbers(r) for r in read["records"]], curves)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no report of gradients: {error}") from None

    def figure(self) -> Any:
        """A panel for each phase, a line for each cell: median over seeds, band from least to greatest."""
        from lstmjax import plot

        panels = {
            phase: {cell: plot.Curve(np.arange(curve.shape[1]), curve) for cell, curve in curves.items()}
            for phase, curves in self.curves.items()
        }
        return plot.gradient_decay(panels, underflow=math.log10(float(np.finfo(np.float32).tiny)))


@at_highest_precision
def gradient_report(
    cells: Mapping[str, Callable[[int], Cell]],
    data: Data | tuple[Any, Any] | Callable[[Key], Any],
    *,
    loss_fn: Callable[[Array, Array], Array] = squared_error,
    outputs: int | None = None,
    hidden_size: int = 128,
    match: Match = "hidden size",
    seeds: int = 5,
    train_steps: int = 0,
    learning_rate: float = 1e-3,
    progress: bool = True,
) -> GradientReport:
    """Compares how gradients of several cells survive the lag, at initialisation and, on request, after training.

    Everything but the cell is the same: inputs, targets, loss, a linear readout of the last hidden state (of a cell
    whose state has no field ``h``: of its last output), and the keys that weights are drawn with. For every cell, seed
    and phase it takes `‖∂L/∂h_t‖` at every lag and a line through its logarithm, the leading Lyapunov exponent, and the
    time scale of the gate that keeps the state.

    Args:
        cells: for each name a function from a hidden size to a cell, such as ``lstmjax.lstm``.
        data: inputs ``[T, B, I]``, T and B at least 1, and targets ``[B, O]``; or a function that draws such a pair
            from a key, one for each seed and, in training, for each step.
        loss_fn: ``(predictions [B, O], targets) -> scalar``, summed over rows.
        outputs: O, for a loss whose targets are no ``[B, O]``: the number of classes, where they are labels ``[B]``.
        hidden_size: of every cell; or, matched by parameters, of the first cell.
        match: ``"parameters"`` gives every other cell the hidden size that comes nearest to the first one's number of
            parameters.
        seeds: how many; each draws weights and readout of its own.
        train_steps: steps of Adam, gradients clipped at norm 1, between the two phases; 0: no second phase.
        learning_rate: of Adam.
        progress: show a bar on standard error.

    Returns:
        A :class:`GradientReport`.

    Raises:
        ValueError: there is no cell, a setting is out of range, or inputs or targets have the wrong shape: with
            ``outputs`` given, that of targets is left to a loss of your own. Targets are whole numbers for a loss of
            your own, and ``outputs`` is not given; or a label is below 0 or not below ``outputs``. By parameters, no
            size gives a cell as many as the first one has.
        TypeError: cells is no dict, or holds something that is no function, or one that makes no Cell; a cell puts out
            no ``[*B, features]``.
        FloatingPointError: inputs, targets, weights, states or a loss are not finite; says where.

    >>> import lstmjax
    >>> xs = jax.random.normal(jax.random.key(0), (60, 4, 3))
    >>> report = gradient_report({"LSTM": lstmjax.lstm, "RNN": lstmjax.rnn}, (xs, xs[-1]), hidden_size=16, seeds=2)
    >>> print(report.table().splitlines()[0])
    matched by hidden size, 16; medians over 2 seeds
    """
    _check_cells(cells)
    hidden_size, seeds = whole_number("hidden_size", hidden_size), whole_number("seeds", seeds)
    train_steps = whole_number("train_steps", train_steps, 0)
    outputs = None if outputs is None else whole_number("outputs", outputs)
    if match not in ("hidden size", "parameters"):
        raise ValueError(f"match is {match!r}; wanted 'hidden size' or 'parameters'")
    draw = data if callable(data) else lambda key: data
    inputs, outputs = _check_shapes(Data(*draw(jax.random.key(0))), loss_fn, outputs)
    built = _matched(cells, inputs, hidden_size, match)
    first = next(iter(built))
    matched = f"hidden size, {hidden_size}"
    if match == "parameters":
        matched = f"number of parameters, near the {built[first].parameters} of {first}"

    records: list[dict[str, Any]] = []
    curves: dict[str, dict[str, list[NDArray]]] = {}
    bar = progress_bar(None, "gradient report", "seed", shown=progress, total=len(built) * seeds)
    for name, sized in built.items():
        train = _make_training(sized, loss_fn, draw, train_steps, learning_rate) if train_steps else None
        for seed in range(seeds):
            bar.set_postfix_str(name, refresh=False)
            key_init, key_data, key_train = jax.random.split(jax.random.key(seed), 3)
            batch = Data(*draw(key_data))
            _check_targets(batch.targets, outputs)
            params = _init(sized, key_init, inputs, outputs)
            phases = {"initialisation": params}
            if train is not None:
                params, losses = train(params, key_train)
                _check_losses(losses, name, seed)
                phases[f"{train_steps} steps"] = params
            for phase, params in phases.items():
                curve, numbers = _measure(sized, loss_fn, params, batch)
                if not math.isfinite(numbers["loss"]):
                    raise FloatingPointError(f"{name}, seed {seed}, {phase}: the loss is {numbers['loss']}")
                curves.setdefault(phase, {}).setdefault(name, []).append(curve)
                about = {"cell": name, "phase": phase, "seed": seed}
                records.append(about | {"hidden_size": sized.hidden_size, "parameters": sized.parameters} | numbers)
            bar.update()
    bar.close()
    stacked = {phase: {name: np.stack(rows) for name, rows in of.items()} for phase, of in curves.items()}
    return GradientReport(matched, records, stacked)


class _Sized(NamedTuple):
    """A cell, the same with its output in its state as ``h``, its hidden size and how many parameters it has."""

    cell: Cell
    with_h: Cell
    hidden_size: int
    parameters: int


def _matched(cells: Mapping[str, Callable], inputs: int, hidden_size: int, match: Match) -> dict[str, _Sized]:
    def sized(name, size):
        cell = cells[name](size)
        if not isinstance(cell, Cell):
            raise TypeError(
                f"cells[{name!r}] made a {type(cell).__name__} of hidden size {size}; wanted a lstmjax.Cell: of a bare "
                "step, Cell(init, initial_state, step)"
            )
        try:
            with_h = with_output(cell, inputs)
        except TypeError as error:
            raise TypeError(str(error).replace("the cell", f"the cell of cells[{name!r}]", 1)) from None
        shapes = jax.eval_shape(lambda key: cell.init(key, inputs), jax.random.key(0))
        parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        return _Sized(cell, with_h, size, parameters)

    names = list(cells)
    built = {name: sized(name, hidden_size) for name in names}
    if match == "hidden size":
        return built
    wanted = built[names[0]].parameters
    for name in names[1:]:
        low, high = 1, 2
        while (there := sized(name, high)).parameters < wanted:
            if high > wanted:  # a unit has a parameter of its own at least, where they grow with the size at all
                raise ValueError(
                    f"match is 'parameters', and cells[{name!r}] has {there.parameters} of them at hidden size {high}; "
                    f"wanted one whose parameters grow with its size to the {wanted} of {names[0]}"
                )
            low, high = high, 2 * high
        while high - low > 1:  # the parameters of a cell grow with its size
            middle = (low + high) // 2
            low, high = (middle, high) if sized(name, middle).parameters < wanted else (low, middle)
        built[name] = min((sized(name, n) for n in (low, high)), key=lambda s: abs(s.parameters - wanted))
    return built


def _init(sized: _Sized, key: Key, inputs: int, outputs: int) -> dict[str, Params]:
    key_cell, key_readout = jax.random.split(key)
    features = jax.eval_shape(sized.with_h.initial_state).h.shape[-1]
    readout = jax.nn.initializers.lecun_normal()(key_readout, (features, outputs))
    return {"cell": sized.cell.init(key_cell, inputs), "readout": readout}


def _make_training(sized: _Sized, loss_fn: Callable, draw: Callable, steps: int, learning_rate: float) -> Callable:
    import optax

    optimiser = optax.adam(learning_rate)

    def clipped(grads):
        # Optax's clipping squares: of a gradient above 1e19, an exploding one, it would leave exactly nothing.
        norm = jnp.exp(scaled.log_norm(grads, jnp.zeros((), jnp.int32)))
        return jax.tree.map(lambda g: (g / jnp.maximum(norm, 1.0)).astype(g.dtype), grads)

    def loss(params, batch):
        final, _ = unroll(sized.with_h, params["cell"], batch.xs)
        return loss_fn(final.h @ params["readout"], batch.targets) / batch.xs.shape[1]

    @jax.jit
    def train(params, key):
        def body(carry, key):
            params, opt_state = carry
            value, grads = jax.value_and_grad(loss)(params, Data(*draw(key)))
            updates, opt_state = optimiser.update(clipped(grads), opt_state)
            return (optax.apply_updates(params, updates), opt_state), value

        start = params, optimiser.init(params)
        (params, _), losses = jax.lax.scan(body, start, jax.random.split(key, steps))
        return params, losses

    return train


def _measure(sized: _Sized, loss_fn: Callable, params: dict, batch: Data) -> tuple[NDArray, dict[str, Any]]:
    readout = params["readout"]
    steps, rows = jnp.shape(batch.xs)[:2]

    def loss(states):
        return loss_fn(states.h[-1] @ readout, batch.targets)

    norms = adjoint_norms(sized.with_h, params["cell"], batch.xs, loss)
    if isinstance(norms, OutputState):  # the kept output passes nothing on: the way back is through the whole state
        norms = norms._replace(h=0.5 * jax.nn.logsumexp(2 * jnp.stack(jax.tree.leaves(norms)), axis=0))
    lags, of_rows = np.arange(1, steps + 1, dtype=np.float32), np.asarray(norms.h)[::-1]
    by_lag = np.median(of_rows, axis=1)
    fit, every = decay_fit(lags, by_lag[1:]), decay_fit(lags, of_rows[1:].T).rate
    final, _ = unroll(sized.with_h, params["cell"], batch.xs)
    # One row is enough for an exponent, which is an average over time already.
    exponent = lyapunov_spectrum(sized.cell, params["cell"], batch.xs[:, 0], leading=1, burn_in=steps // 10)
    numbers = {
        "loss": float(loss_fn(final.h @ readout, batch.targets)) / rows,
        "rate": float(fit.rate),
        "rate_min": float(np.min(every)),
        "rate_max": float(np.max(every)),
        "half_life": float(fit.half_life),
        "r2": float(fit.r2),
        "lyapunov": float(exponent[0]),
        "timescale": _timescale(sized.cell, params["cell"], batch.xs),
    }
    return by_lag / np.log(10), numbers


def _timescale(cell: Cell, params: Params, xs: Any) -> float | None:
    try:
        gates = gate_statistics(cell, params, xs)
    except TypeError:  # no gates
        return None
    (timescale,) = (g.timescale for g in gates.values() if g.timescale is not None)
    return float(jnp.median(timescale))


def _check_cells(cells: Mapping[str, Any]) -> None:
    if not isinstance(cells, Mapping):
        raise TypeError(
            f"cells is a {type(cells).__name__}; wanted a dict of names and functions from a hidden size to a cell"
        )
    if not cells:
        raise ValueError("cells is empty; wanted at least one")
    for name, make in cells.items():
        if not callable(make):
            raise TypeError(
                f"cells[{name!r}] is a {type(make).__name__}; wanted a function from a hidden size to a cell, such as "
                "lstmjax.lstm"
            )


def _check_shapes(data: Data, loss_fn: Callable, outputs: int | None) -> tuple[int, int]:
    """The numbers of input features and of outputs, once shapes are known to fit."""
    xs, targets = jnp.shape(data.xs), jnp.shape(data.targets)
    if len(xs) != 3:
        hint = ": xs[:, None] for one sequence" if len(xs) == 2 else ""
        raise ValueError(f"xs has shape {xs}; wanted [T, B, I]{hint}")
    if 0 in xs[:2]:
        raise ValueError(f"xs has shape {xs}; wanted at least one step and one row: the numbers are medians over rows")
    # The default loss would broadcast; what a loss of the user's own takes is not known here.
    if outputs is not None and loss_fn is not squared_error:
        return xs[-1], outputs
    if loss_fn is not squared_error and jnp.issubdtype(jnp.result_type(data.targets), jnp.integer):
        raise ValueError(
            f"targets are whole numbers of shape {targets}, and no number of outputs tells how many classes there are; "
            "wanted outputs=, for a loss that takes labels"
        )
    if len(targets) != 2 or targets[0] != xs[1] or outputs not in (None, targets[1]):
        hint = ": targets[:, None] for one number a row, or outputs for labels" if targets == xs[1:2] else ""
        raise ValueError(f"targets have shape {targets}; wanted [B, O], here ({xs[1]}, {outputs or 'O'}){hint}")
    return xs[-1], targets[1]


def _check_targets(targets: Any, outputs: int) -> None:
    targets = np.asarray(targets)
    if targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer):
        for label in (targets.max(), targets.min()):
            if not 0 <= label < outputs:
                raise ValueError(f"targets hold the label {label}; wanted labels from 0 on, below outputs = {outputs}")
    targets = targets.astype(np.float64)
    bad = np.argwhere(~np.isfinite(targets))
    if bad.size:
        row, value = bad[0, 0], targets[tuple(bad[0])]
        raise FloatingPointError(f"targets at row {row} hold {value}, the first that is not finite")


def _check_losses(losses: Array, name: str, seed: int) -> None:
    bad = np.flatnonzero(~np.isfinite(np.asarray(losses)))
    if bad.size:
        raise FloatingPointError(f"training {name}, seed {seed}: the loss is first not finite at step {bad[0]}")


def _median(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.median([r[key] for r in rows]))


def _half_lives(slowest: float, fastest: float) -> str:
    """Half-lives from that of the least rate, the fastest decay, to that of the greatest."""
    return numerals.half_lives(float(half_life(slowest)), float(half_life(fastest)))


def _left(curve: NDArray, lag: int) -> str:
    with np.errstate(invalid="ignore"):
        return numerals.power_of_ten(float(np.median(curve[:, lag] - curve[:, 0])))


def _spelled(value: Any) -> Any:
    """The value for JSON, which has no word of its own for an infinity or a NaN."""
    match value:
        case dict():
            return {key: _spelled(v) for key, v in value.items()}
        case list():
            return [_spelled(v) for v in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """A record with the words of :func:`_spelled` as numbers again."""
    return {key: float(v) if v in ("nan", "inf", "-inf") else v for key, v in record.items()}
