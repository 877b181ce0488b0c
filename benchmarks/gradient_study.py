"""What decides whether the gradient survives: the forget bias, the initialiser, the spectral norm, depth, training.

Each section varies one thing and holds the rest; `gradient_norms.py`, the main job, compares the cells themselves.

    python -m benchmarks.gradient_study --out out
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from numpy.typing import NDArray

import lstmjax
from lstmjax import numerals, plot
from lstmjax.files import replacing
from lstmjax.gradients import (
    GradientReport,
    adjoint_norms,
    decay_fit,
    depth_norms,
    feed_forward,
    gradient_report,
    lyapunov_spectrum,
)
from lstmjax.program.cells import headline
from lstmjax.program.gradients import FLOAT32_TINY
from lstmjax.program.output import dump_json, environment, number
from lstmjax.progress import progress_bar
from lstmjax.tasks import english_text, one_hot_text

SectionName = Literal["forget bias", "initialisers", "spectral norm", "depth", "trained", "long lags"]
ZEROS = jax.nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure what decides whether gradients survive, and write numbers, tables and pictures."""

    out: Path = Path("out")
    """Folder for gradient_study.json and a picture for each section."""
    sections: tuple[SectionName, ...] = (
        "forget bias", "initialisers", "spectral norm", "depth", "trained", "long lags",
    )  # fmt: skip
    """What to vary."""
    seeds: int = 5
    """How many seeds; each draws weights and inputs of its own."""
    hidden_size: int = 64
    """Hidden units of every cell and layer."""
    length: int = 1000
    """Sequence length in steps, of all sections but depth, trained and long lags."""
    long_length: int = 10_000
    """Sequence length for long lags."""
    layers: int = 30
    """Layers of the feed-forward networks of the section depth."""
    recurrent_layers: int = 12
    """Layers of its recurrent stacks."""
    train_steps: int = 300
    """Steps of Adam between the two measurements of the section trained."""
    train_length: int = 200
    """Sequence length that training is done at and measured over."""
    progress: bool = True
    """Show a progress bar on standard error."""

    def __post_init__(self):
        """Refuses settings that cannot be measured."""
        counts = (
            "seeds",
            "hidden_size",
            "length",
            "long_length",
            "layers",
            "recurrent_layers",
            "train_steps",
            "train_length",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted at least 1")
        if not self.sections or len(set(self.sections)) < len(self.sections):
            raise ValueError(f"sections is {self.sections}; wanted at least one, each once")


class Section(NamedTuple):
    """What a section found.

    Attributes:
        records: flat rows.
        table: the same, in short, to read.
        figures: by the end of its file's name, the figure.
    """

    records: list[dict[str, Any]]
    table: str
    figures: dict[str, Any]


def noise(seed: int, steps: int, rows: int = 4, features: int = 16) -> jax.Array:
    """White noise, ``[T, B, I]``."""
    return jax.random.normal(jax.random.key(1000 + seed), (steps, rows, features))


def decay(cell: lstmjax.Cell, seed: int, xs: jax.Array, part: str = "h") -> NDArray:
    """ln ‖∂L/∂s_t‖ by lag, ``[T + 1]``, a median over rows, of a loss that reads the last hidden state at random."""
    key_cell, key_readout = jax.random.split(jax.random.key(seed))
    params = cell.init(key_cell, xs.shape[-1])
    weights = jax.random.normal(key_readout, cell.initial_state().h.shape)
    norms = adjoint_norms(cell, params, xs, lambda states: (states.h[-1] * weights).sum())
    return np.median(np.asarray(getattr(norms, part)), axis=1)[::-1]


def half_life(norms: NDArray) -> tuple[float, float]:
    """Rate per step, natural logarithm, and steps to half, of a line through a curve from lag 1 on."""
    fit = decay_fit(np.arange(1, len(norms), dtype=np.float32), norms[1:].astype(np.float32))
    return float(fit.rate), float(fit.half_life)


def format_columns(first: list[str], groups: list[str], names: list[str], rows: list[list[str]]) -> str:
    """A table with a column for every group and name, whose heads stand above one another, so that it stays narrow."""
    heads = [[*("" for _ in first), *(g for g in groups for _ in names)], [*first, *(names * len(groups))]]
    columns = [[text.replace("$", "") for text in column] for column in zip(*heads, *rows, strict=True)]
    widths = [max(map(len, column)) + 2 for column in columns]
    lines = zip(*columns, strict=True)
    return "\n".join("".join(f"{text:>{width}}" for text, width in zip(line, widths, strict=True)) for line in lines)


def forget_bias(settings: Settings) -> Section:
    """Half-life of ∂L/∂c against b_f, with and without recurrent weights, next to ln 2 / −ln σ(b_f)."""
    biases = np.arange(-2, 7)
    cells: dict[str, Callable[[float], lstmjax.Cell]] = {
        "$W_h = 0$": lambda b: lstmjax.lstm(settings.hidden_size, forget_bias=b, w_h_init=ZEROS),
        "$W_h$ orthogonal": lambda b: lstmjax.lstm(settings.hidden_size, forget_bias=b),
    }
    inputs = {"zero input": 0.0, "white noise": 1.0}
    theory = np.log10(math.log(2) / np.log1p(np.exp(-biases.astype(float))))
    records, panels = [], {}
    for input_name, scale in inputs.items():
        lines = {r"theory: $\ln 2\,/\,{-}\ln\sigma(b_f)$": plot.Curve(biases, theory[None])}
        for name, make in cells.items():
            lives = np.full((settings.seeds, len(biases)), np.nan)
            for n, bias in enumerate(biases):
                cell = make(float(bias))
                for seed in range(settings.seeds):
                    rate, life = half_life(decay(cell, seed, scale * noise(seed, settings.length), "c"))
                    lives[seed, n] = math.log10(life)
                    records.append(
                        {
                            "input": input_name,
                            "recurrent": name.strip("$"),
                            "b_f": int(bias),
                            "seed": seed,
                            "rate": number(rate),
                        }
                    )
            lines[name] = plot.Curve(biases, lives)
        panels[input_name] = lines
    rows = [
        [f"{bias:.0f}", f"{10 ** theory[n]:.2f}"]
        + [numerals.half_life(10 ** np.median(panels[i][c].y[:, n])) for i in inputs for c in cells]
        for n, bias in enumerate(biases)
    ]
    table = format_columns(["b_f", "theory"], list(inputs), list(cells), rows)
    figure = plot.bands(panels, xlabel="forget bias $b_f$", ylabel=r"half-life of $\partial L\,/\,\partial c$ (steps)")
    return Section(records, table, {"": figure})


def initialisers(settings: Settings) -> Section:
    """Decay with the recurrent weights drawn in different ways that go by similar names."""
    size = settings.hidden_size
    draws: dict[str, Callable[[int], Any]] = {
        "orthogonal, each gate": lambda gates: lstmjax.init.per_gate(lstmjax.init.orthogonal(), gates),
        "orthogonal, all gates at once": lambda gates: jax.nn.initializers.orthogonal(),
        "uniform ±1/√H (PyTorch)": lambda gates: lstmjax.init.pytorch_uniform(size),
        "Glorot uniform, each gate": lambda gates: lstmjax.init.per_gate(jax.nn.initializers.glorot_uniform(), gates),
    }
    cells = {
        "LSTM, $b_f$ = 1": (4, lambda init: lstmjax.lstm(size, w_h_init=init)),
        "GRU": (3, lambda init: lstmjax.gru(size, w_h_init=init)),
        "tanh RNN": (1, lambda init: lstmjax.rnn(size, w_h_init=init)),
    }
    records, panels = [], {}
    table = [f"{'cell':<16} {'recurrent weights':<30} {'rms sing. value':>15} {'half-life':>10}"]
    for cell_name, (gates, make) in cells.items():
        panels[cell_name] = {}
        for name, draw in draws.items():
            if gates == 1 and name == "orthogonal, all gates at once":
                continue  # with one gate it is the first
            curves, values, lives = [], [], []
            for seed in range(settings.seeds):
                cell = make(draw(gates))
                curve = decay(cell, seed, noise(seed, settings.length))
                w_h = cell.init(jax.random.split(jax.random.key(seed))[0], 16).w_h
                value = float(jnp.sqrt((w_h**2).sum() / (gates * size)))
                rate, life = half_life(curve)
                records.append(
                    {
                        "cell": cell_name.replace("$", ""),
                        "recurrent": name,
                        "seed": seed,
                        "rms_singular_value": value,
                        "rate": number(rate),
                    }
                )
                curves.append(curve / np.log(10))
                values.append(value)
                lives.append(life)
            panels[cell_name][name] = plot.Curve(np.arange(settings.length + 1), np.stack(curves))
            life = numerals.half_life(float(np.median(lives)))
            table.append(f"{cell_name.replace('$', ''):<16} {name:<30} {np.median(values):>15.3f} {life:>10}")
    return Section(records, "\n".join(table), {"": plot.gradient_decay(panels, underflow=FLOAT32_TINY)})


def spectral_norm(settings: Settings) -> Section:
    """Rate of decay or growth against ‖W_h‖₂: W_h is s times an orthogonal matrix, s from 0.5 to 2."""
    scales = np.linspace(0.5, 2.0, 13)
    size = settings.hidden_size

    def rnn(activation):
        return lambda s: lstmjax.rnn(size, activation=activation, w_h_init=lstmjax.init.orthogonal(s))

    cells: dict[str, Callable[[float], lstmjax.Cell]] = {
        "linear RNN": rnn(_identity),
        "tanh RNN": rnn(jnp.tanh),
        "LSTM, $b_f$ = 1": lambda s: lstmjax.lstm(size, w_h_init=lstmjax.init.per_gate(lstmjax.init.orthogonal(s), 4)),
    }
    inputs = {"weak input (0.01 of white noise)": 0.01, "white noise": 1.0}
    # A linear RNN's states grow as s^T: 2^100 is still a number.
    length = min(settings.length, 100)
    records, panels = [], {}
    for input_name, scale in inputs.items():
        panels[input_name] = {r"bound: $\ln \|W_h\|_2$": plot.Curve(scales, np.log(scales)[None])}
        for name, make in cells.items():
            rates = np.zeros((settings.seeds, len(scales)))
            for n, s in enumerate(scales):
                cell = make(float(s))
                for seed in range(settings.seeds):
                    xs = scale * noise(seed, length)
                    rates[seed, n], _ = half_life(decay(cell, seed, xs))
                    params = cell.init(jax.random.split(jax.random.key(seed))[0], xs.shape[-1])
                    exponent = lyapunov_spectrum(cell, params, xs[:, 0], leading=1, burn_in=length // 5)[0]
                    records.append(
                        {
                            "input": input_name, "cell": name.replace("$", ""), "spectral_norm": round(float(s), 4),
                            "seed": seed, "rate": number(rates[seed, n]), "lyapunov": number(exponent),
                        }
                    )  # fmt: skip
            panels[input_name][name] = plot.Curve(scales, rates)
    figure = plot.bands(
        panels, logarithmic=False,
        xlabel=r"spectral norm $\|W_h\|_2$ of each gate", ylabel=r"rate of $\ln\|\partial L\,/\,\partial h\|$ a step",
    )  # fmt: skip
    rows = [
        [f"{s:.3f}", f"{math.log(s):.3f}"] + [f"{np.median(panels[i][c].y[:, n]):.3f}" for i in inputs for c in cells]
        for n, s in enumerate(scales)
    ]
    groups = [f"{i.split()[0]} input" if "input" in i else i for i in inputs]
    return Section(records, format_columns(["‖W_h‖", "bound"], groups, list(cells), rows), {"": figure})


def depth(settings: Settings) -> Section:
    """Gradient and relative change of the weights, layer by layer from the output down."""
    size = settings.hidden_size
    records, panels = [], {"gradient, feed-forward": {}, "relative change, feed-forward": {}, "gradient, recurrent": {}}

    def add(panel, name, rows):
        below = np.stack([np.asarray(row)[::-1] / np.log(10) for row in rows])
        panels[panel][name] = plot.Curve(np.arange(below.shape[1]), below)
        records.extend(
            {"what": panel, "network": name, "seed": seed, "layers_below_output": n, "log10": number(value)}
            for seed, row in enumerate(below)
            for n, value in enumerate(row)
        )

    def feed_forward_norms(activation, seed):
        init, apply = feed_forward(settings.layers, size, activation=activation)
        x, target = (noise(seed + n, 1, 64, size)[0] for n in (0, 500))
        return depth_norms(lambda p: ((apply(p, x) - target) ** 2).mean(), init(jax.random.key(seed)))

    def recurrent_norms(make, seed):
        stack, xs = [make(size)] * settings.recurrent_layers, noise(seed, 30)
        params = lstmjax.init_stack(stack, jax.random.key(seed), xs.shape[-1])
        return depth_norms(lambda p: (lstmjax.unroll_stack(stack, p, xs)[1][-1] ** 2).sum(), params)

    for name, activation in {"logistic": jax.nn.sigmoid, "tanh": jnp.tanh, "ReLU": jax.nn.relu}.items():
        norms = [feed_forward_norms(activation, seed) for seed in range(settings.seeds)]
        add("gradient, feed-forward", name, [n.gradient for n in norms])
        add("relative change, feed-forward", name, [n.relative_change for n in norms])
    for name, make in {"tanh RNN": lstmjax.rnn, "GRU": lstmjax.gru, "LSTM, $b_f$ = 1": lstmjax.lstm}.items():
        norms = [recurrent_norms(make, seed) for seed in range(settings.seeds)]
        add("gradient, recurrent", name, [n.gradient for n in norms])
    figure = plot.bands(panels, xlabel="layers below the output", ylabel=r"norm, for each layer's weights")
    table = [f"{'what':<32} {'network':<16} {'first layer / last layer':>25}"]
    for what, lines in panels.items():
        for name, curve in lines.items():
            fall = float(np.median(curve.y[:, -1] - curve.y[:, 0]))
            table.append(f"{what:<32} {name.replace('$', ''):<16} {numerals.power_of_ten(fall):>25}")
    return Section(records, "\n".join(table), {"": figure})


def trained_cells(steps: int) -> dict[str, Callable[[int], lstmjax.Cell]]:
    """The cells that are trained, each a function of its hidden size."""
    return {
        "tanh RNN": lstmjax.rnn,
        "GRU": lstmjax.gru,
        "LSTM b_f=0": lambda n: lstmjax.lstm(n, forget_bias=0.0),
        "LSTM b_f=1": lstmjax.lstm,
        "LSTM chrono": lambda n: lstmjax.lstm(n, b_init=lstmjax.init.chrono(max(steps, 3))),
    }


def trained(settings: Settings) -> Section:
    """The cells before and after training, on text and on a task that needs its first step."""
    steps = settings.train_length
    text = one_hot_text(english_text())
    ids, symbols = jnp.asarray(text.argmax(1)), text.shape[1]

    def draw_text(key):
        starts = jax.random.randint(key, (16,), 0, len(ids) - steps)
        window = jax.nn.one_hot(ids[starts + jnp.arange(steps + 1)[:, None]], symbols)
        return window[:-1], window[-1]

    def draw_first(key):
        xs = 0.3 * jax.random.normal(key, (steps, 16, 2))
        signs = jnp.where(jax.random.bernoulli(jax.random.split(key)[0], shape=(16,)), 1.0, -1.0)
        xs = xs.at[0, :, 0].set(signs).at[:, :, 1].set(0.0).at[0, :, 1].set(1.0)
        return xs, signs[:, None]

    def cross_entropy(predictions, targets):
        return -(jax.nn.log_softmax(predictions) * targets).sum()

    tasks: dict[str, tuple[Callable, dict[str, Any]]] = {
        "text": (draw_text, {"loss_fn": cross_entropy}),
        "the first sign": (draw_first, {}),
    }
    records, table, figures = [], [], {}
    for task, (draw, options) in tasks.items():
        report: GradientReport = gradient_report(
            trained_cells(steps), draw, hidden_size=settings.hidden_size, seeds=settings.seeds,
            train_steps=settings.train_steps, learning_rate=3e-3, **options,
        )  # fmt: skip
        records += [
            {"task": task} | {k: number(v) if isinstance(v, float) else v for k, v in r.items()} for r in report.records
        ]
        table += [f"{task}: {report.table()}", ""]
        panels = {
            phase: {c.replace("b_f", "$b_f$"): plot.Curve(np.arange(y.shape[1]), y) for c, y in curves.items()}
            for phase, curves in report.curves.items()
        }
        figures[f"_{task.split()[-1]}"] = plot.gradient_decay(panels, underflow=FLOAT32_TINY)
    return Section(records, "\n".join(table).rstrip(), figures)


def long_lags(settings: Settings) -> Section:
    """Lags to ten thousand, on white noise."""
    steps = settings.long_length
    records, lines = [], {}
    table = [f"{'cell':<20} {'half-life':>10} " + " ".join(f"{f'lag {lag}':>11}" for lag in _decades(steps))]
    for name, candidate in headline(steps).items():
        cell = candidate.make(settings.hidden_size)
        curves, lives = [], []
        for seed in range(settings.seeds):
            curve = decay(cell, seed, noise(seed, steps))
            rate, life = half_life(curve)
            lives.append(life)
            curves.append(curve / np.log(10))
            records.append(
                {"cell": name, "seed": seed, "rate": number(rate)}
                | {f"log10_left_at_{lag}": number(curves[-1][lag] - curves[-1][0]) for lag in _decades(steps)}
            )
        lines[name.replace("b_f", "$b_f$")] = plot.Curve(np.arange(steps + 1), np.stack(curves))
        with np.errstate(invalid="ignore"):
            left = [np.median([c[lag] - c[0] for c in curves]) for lag in _decades(steps)]
        shown = map(numerals.power_of_ten, left)
        life = float(np.median(lives))
        table.append(f"{name:<20} {numerals.half_life(life):>10} " + " ".join(f"{s:>11}" for s in shown))
    return Section(records, "\n".join(table), {"": plot.gradient_decay({"white noise": lines}, underflow=FLOAT32_TINY)})


def _decades(steps: int) -> list[int]:
    return [lag for lag in (10, 100, 1000, 10_000) if lag <= steps]


def _identity(z: jax.Array) -> jax.Array:
    return z


SECTIONS: dict[SectionName, Callable[[Settings], Section]] = {
    "forget bias": forget_bias,
    "initialisers": initialisers,
    "spectral norm": spectral_norm,
    "depth": depth,
    "trained": trained,
    "long lags": long_lags,
}


def write_results(settings: Settings, found: Mapping[str, Section]) -> None:
    """Writes .json and the pictures, each whole or not at all."""
    results = {
        "environment": environment("float32", "optax"),
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("out", "progress")},
        "tables": {name: section.table.split("\n") for name, section in found.items()},
        **{name: section.records for name, section in found.items()},
    }
    with replacing(settings.out / "gradient_study.json") as path:
        path.write_text(dump_json(results))
    for name, section in found.items():
        for end, figure in section.figures.items():
            with replacing(settings.out / f"gradient_study_{name.replace(' ', '_')}{end}.png") as path:
                figure.savefig(path, format="png")


def run(settings: Settings) -> Iterator[tuple[SectionName, Section]]:
    """Measures one section after another."""
    for name in settings.sections:
        yield name, SECTIONS[name](settings)


def main(settings: Settings) -> None:
    """Measures, prints, and writes; what is measured is written even if the run is cut short."""
    settings.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Section] = {}
    bar = progress_bar(
        run(settings), "gradient study", "section", shown=settings.progress, total=len(settings.sections)
    )
    try:
        for name, section in bar:
            found[name] = section
    finally:
        bar.close()
        if found:
            write_results(settings, found)
            for name, section in found.items():
                print(f"{name}\n{'=' * len(name)}\n{section.table}\n")
            print(f"Wrote gradient_study.json and pictures to {settings.out}/")


if __name__ == "__main__":
    main(tyro.cli(Settings))
