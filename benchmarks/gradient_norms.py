"""Does the gradient survive the lag? Measures ‖∂L/∂h_t‖ and ‖∂L/∂c_t‖ of recurrent cells at initialisation.

For every cell, input and seed, the loss is that of predicting the value after the last step of a sequence, and one
backward pass gives its gradient with respect to every earlier state. All sequence lengths run in one batch, as rows of
different length, so each kind of cell is compiled once for each input.

    python -m benchmarks.gradient_norms --out out
"""

import csv
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro
from numpy.typing import NDArray

import lstmjax
from benchmarks.output import dump_json, environment, progress_bar
from lstmjax.files import replacing
from lstmjax.gradients import adjoint_norms, decay_fit
from lstmjax.gradients.decay import half_life
from lstmjax.gradients.report import format_half_life, power_of_ten
from lstmjax.plot import Curve, gradient_decay
from lstmjax.tasks import english_text, one_hot_text, seattle_temperatures

CellName = Literal["tanh RNN", "identity ReLU RNN", "GRU", "LSTM b_f=0", "LSTM b_f=1", "LSTM chrono"]
InputName = Literal["characters", "temperature", "white noise"]

FLOAT32_TINY = math.log10(float(np.finfo(np.float32).tiny))


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure how the gradient of recurrent cells decays with the lag, and write a table, the numbers and a picture."""

    out: Path = Path("out")
    """Folder for gradient_norms.json, .csv and .png."""
    lengths: tuple[int, ...] = (10, 20, 50, 100, 200, 500, 1000)
    """Sequence lengths in steps. The longest is also the one that fits, table and picture are made of."""
    seeds: int = 5
    """How many seeds; each draws weights, readout and windows of its own."""
    windows: int = 4
    """Windows of input for each seed; a record is the median over them."""
    hidden_size: int = 64
    """Hidden units of every cell."""
    cells: tuple[CellName, ...] = (
        "tanh RNN", "identity ReLU RNN", "GRU", "LSTM b_f=0", "LSTM b_f=1", "LSTM chrono",
    )  # fmt: skip
    """Which cells to measure. b_f is the forget gate's initial bias; chrono spreads it up to the longest length."""
    inputs: tuple[InputName, ...] = ("characters", "temperature", "white noise")
    """Which inputs: characters of English text, hourly temperatures, Gaussian white noise in 16 channels."""
    progress: bool = True
    """Show a progress bar on standard error."""

    def __post_init__(self):
        """Refuses settings that cannot be measured."""
        for name in ("seeds", "windows", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")
        for name in ("lengths", "cells", "inputs"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}; wanted at least one, each once")
        if min(self.lengths) < 1:
            raise ValueError(f"lengths is {self.lengths}; wanted each at least 1 step")
        if max(self.lengths) > 8000:
            raise ValueError(f"the longest length is {max(self.lengths)}; the temperatures hold windows of up to 8000")


def make_cells(hidden_size: int, longest: int) -> dict[str, lstmjax.Cell]:
    """The cells under test. Recurrent weights are orthogonal for each gate, or the identity where the name says so."""
    return {
        "tanh RNN": lstmjax.rnn(hidden_size),
        "identity ReLU RNN": lstmjax.rnn(hidden_size, activation=jax.nn.relu, w_h_init=lstmjax.init.identity()),
        "GRU": lstmjax.gru(hidden_size),
        "LSTM b_f=0": lstmjax.lstm(hidden_size, forget_bias=0.0),
        "LSTM b_f=1": lstmjax.lstm(hidden_size, forget_bias=1.0),
        "LSTM chrono": lstmjax.lstm(hidden_size, b_init=lstmjax.init.chrono(max(longest, 3))),
    }


def make_series(name: InputName) -> Callable[[np.random.Generator, int], NDArray]:
    """A function that draws one window ``[steps, I]`` of the named input."""
    if name == "white noise":
        return lambda rng, steps: rng.standard_normal((steps, 16), np.float32)
    series = one_hot_text(english_text()) if name == "characters" else seattle_temperatures()

    def window(rng: np.random.Generator, steps: int) -> NDArray:
        start = rng.integers(len(series) - steps + 1)
        return series[start : start + steps]

    return window


class Batch(NamedTuple):
    """Windows of input with, for every length, the value that follows.

    Attributes:
        xs: ``[T, L, W, I]`` the same W windows for each of L lengths.
        targets: ``[L, W, I]`` the value after the last step.
        lengths: ``[L, W]``.
    """

    xs: NDArray
    targets: NDArray
    lengths: NDArray


def make_batch(draw: Callable, seed: int, windows: int, lengths: tuple[int, ...]) -> Batch:
    """Draws one seed's windows."""
    rng = np.random.default_rng(seed)
    longest, rows = max(lengths), (len(lengths), windows)
    series = np.stack([draw(rng, longest + 1) for _ in range(windows)], axis=1)
    xs = np.broadcast_to(series[:-1, None], (longest, *rows, series.shape[-1]))
    return Batch(xs, series[list(lengths)], np.broadcast_to(np.array(lengths)[:, None], rows))


def measure(cell: lstmjax.Cell, batch: Batch, seed: int, categorical: bool) -> dict[str, NDArray]:
    """log10 ‖∂L/∂h‖ and, where there is a cell state, ‖∂L/∂c‖, each ``[T + 1, L]`` by lag.

    L is the cross-entropy of the next character, or half the squared error of the next value, from a linear readout of
    the last hidden state. The median is over windows; NaN where the lag is beyond the length.
    """
    key_cell, key_readout = jax.random.split(jax.random.key(seed))
    params = cell.init(key_cell, batch.xs.shape[-1])
    features = jax.tree.leaves(cell.initial_state())[0].shape[-1]
    readout = jax.nn.initializers.lecun_normal()(key_readout, (features, batch.xs.shape[-1]))

    def loss(states):
        predicted = states.h[-1] @ readout
        if categorical:
            return -(jax.nn.log_softmax(predicted) * batch.targets).sum()
        return 0.5 * ((predicted - batch.targets) ** 2).sum()

    norms = adjoint_norms(cell, params, batch.xs, loss, lengths=batch.lengths)
    return {part: by_lag(np.asarray(n), batch.lengths) for part, n in norms._asdict().items()}


def by_lag(norms: NDArray, lengths: NDArray) -> NDArray:
    """Turns natural logarithms by time, ``[T + 1, L, W]``, into base-10 medians by lag, ``[T + 1, L]``."""
    times = lengths[None] - np.arange(len(norms)).reshape(-1, 1, 1)
    picked = np.take_along_axis(norms, np.maximum(times, 0), axis=0)
    return np.where(times[..., 0] >= 0, np.median(picked, axis=-1), np.nan) / np.log(10)


def recorded_lags(length: int) -> list[int]:
    """Every lag to 10, then ten a decade, and the whole length."""
    decades = np.rint(10 ** np.arange(1, math.log10(max(length, 10)) + 1e-9, 0.1)).astype(int)
    return sorted({*range(min(10, length) + 1), *(int(d) for d in decades if d <= length), length})


class Measurement(NamedTuple):
    """One cell on one input from one seed; ``h`` and ``c`` (or None) are ``[T + 1, L]`` base-10 logarithms by lag."""

    cell: str
    input: str
    seed: int
    h: NDArray
    c: NDArray | None


def run(settings: Settings) -> Iterator[Measurement]:
    """Measures every input, cell and seed, one at a time."""
    cells = make_cells(settings.hidden_size, max(settings.lengths))
    for input_name in settings.inputs:
        draw = make_series(input_name)
        batches = [make_batch(draw, seed, settings.windows, settings.lengths) for seed in range(settings.seeds)]
        for cell_name in settings.cells:
            for seed, batch in enumerate(batches):
                parts = measure(cells[cell_name], batch, seed, input_name == "characters")
                yield Measurement(cell_name, input_name, seed, parts["h"], parts.get("c"))


def make_records(settings: Settings, measured: list[Measurement]) -> list[dict[str, Any]]:
    """The measurements as flat rows, thinned to :func:`recorded_lags`."""
    return [
        {
            "cell": m.cell,
            "input": m.input,
            "seed": m.seed,
            "length": length,
            "lag": lag,
            "log10_dL_dh": number(m.h[lag, column]),
            "log10_dL_dc": None if m.c is None else number(m.c[lag, column]),
        }
        for m in measured
        for column, length in enumerate(settings.lengths)
        for lag in recorded_lags(length)
    ]


def make_fits(curves: dict[tuple[str, str], Curve]) -> list[dict[str, Any]]:
    """A line through ln ‖∂L/∂h‖ over all lags of the longest length, for each cell and input: medians over seeds."""
    fits = []
    for (cell, input_name), curve in curves.items():
        fit = decay_fit(curve.x[1:].astype(np.float32), curve.y[:, 1:] * np.log(10))
        rate = float(np.median(fit.rate))
        fits.append(
            {
                "cell": cell,
                "input": input_name,
                "rate_per_step": number(rate),
                "half_life": number(half_life(rate)),  # of the rate next to it
                "r2": number(np.median(fit.r2)),
                "rate_min": number(np.min(fit.rate)),
                "rate_max": number(np.max(fit.rate)),
                "left": {
                    str(lag): number(np.median(curve.y[:, lag] - curve.y[:, 0]))
                    for lag in (10, 100, 1000)
                    if lag < len(curve.x)
                },
            }
        )
    return fits


def make_curves(settings: Settings, measured: list[Measurement]) -> dict[tuple[str, str], Curve]:
    """‖∂L/∂h‖ at the longest length by (cell, input), one row a seed."""
    column, lags = int(np.argmax(settings.lengths)), np.arange(max(settings.lengths) + 1)
    rows: dict[tuple[str, str], list[NDArray]] = {}
    for m in measured:
        rows.setdefault((m.cell, m.input), []).append(m.h[:, column])
    return {key: Curve(lags, np.stack(seeds)) for key, seeds in rows.items()}


def number(value: Any) -> float | None:
    """A float for JSON, which knows neither NaN nor infinity: None in their place."""
    return round(float(value), 6) if math.isfinite(value) else None


def format_table(fits: list[dict[str, Any]]) -> str:
    """The fits as a table to read."""

    def left(fit: dict, lag: str) -> str:
        if lag not in fit["left"]:
            return "-"
        exponent = fit["left"][lag]
        return "0" if exponent is None else power_of_ten(exponent)

    head = f"{'input':<12} {'cell':<18} {'half-life':>10} {'lag 10':>9} {'lag 100':>9} {'lag 1000':>9} {'R²':>6}"
    lines = [head, "-" * len(head)]
    for fit in fits:
        steps = format_half_life(math.inf if fit["half_life"] is None else fit["half_life"])
        r2 = "-" if fit["r2"] is None else f"{fit['r2']:.3f}"
        lines.append(
            f"{fit['input']:<12} {fit['cell']:<18} {steps:>10} "
            f"{left(fit, '10'):>9} {left(fit, '100'):>9} {left(fit, '1000'):>9} {r2:>6}"
        )
    return "\n".join(lines)


def write_results(settings: Settings, measured: list[Measurement], complete: bool) -> list[dict[str, Any]]:
    """Writes .json, .csv and .png, each whole or not at all, and returns the fits."""
    records, curves = make_records(settings, measured), make_curves(settings, measured)
    fits = make_fits(curves)
    results = {
        "environment": environment("float32"),
        "settings": {
            **{k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "progress")},
            "complete": complete,
            "fit": "natural log of dL/dh over lags 1 to the longest length, medians over seeds",
            "left": "log10 of dL/dh at the lag over dL/dh at lag 0, at the longest length, medians over seeds",
            "null": "a gradient that is exactly zero (dL/dc at lag 0 always is: L reads h alone), or no half-life",
        },
        "records": records,
        "fits": fits,
    }
    with replacing(settings.out / "gradient_norms.json") as path:
        path.write_text(dump_json(results))
    with replacing(settings.out / "gradient_norms.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    with replacing(settings.out / "gradient_norms.png") as path:
        panels = {
            f"input: {name}": {cell.replace("b_f", "$b_f$"): curve for (cell, i), curve in curves.items() if i == name}
            for name in dict.fromkeys(m.input for m in measured)
        }
        gradient_decay(panels, underflow=FLOAT32_TINY).savefig(path, format="png")
    return fits


def count_lost(measured: list[Measurement]) -> str:
    """Says how many norms a plain float32 backward pass would have lost."""
    values = np.concatenate([p[np.isfinite(p)] for m in measured for p in (m.h, m.c) if p is not None])
    return (
        f"{(values < FLOAT32_TINY).mean():.0%} of the {values.size} norms are below 1.2e-38, the least normal float32, "
        "where plain backpropagation loses digits and then reads 0; they were carried as a mantissa and an exponent."
    )


def main(settings: Settings) -> None:
    """Measures, prints the table, and writes the results; what is measured is written even if the run is cut short."""
    settings.out.mkdir(parents=True, exist_ok=True)  # first, so that a folder that cannot be made costs no run
    total = len(settings.inputs) * len(settings.cells) * settings.seeds
    measured: list[Measurement] = []
    bar = progress_bar(run(settings), "gradient norms", "curve", settings.progress, total)
    try:
        for measurement in bar:
            bar.set_postfix_str(f"{measurement.cell}, {measurement.input}", refresh=False)
            measured.append(measurement)
    finally:
        bar.close()
        if measured:
            fits = write_results(settings, measured, complete=len(measured) == total)
            print(f"Gradient of a loss at step {max(settings.lengths)}: ‖∂L/∂h‖ at a lag, over its value at lag 0\n")
            print(format_table(fits))
            print(f"\n{count_lost(measured)}\nWrote gradient_norms.json, .csv and .png to {settings.out}/")
        if len(measured) < total:
            print(f"Cut short: {len(measured)} of {total} curves were measured.", file=sys.stderr)


if __name__ == "__main__":
    main(tyro.cli(Settings))
