"""Is training with lstmjax fast, and does it come to the same? One model of text, next to Flax + Optax and PyTorch.

Speed: steps a second of each library's own training loop, interleaved in one process, every loss compared first.
Characters: the same model trained to the end by each library, and its bits a character on text held out.

    python -m benchmarks.training --quick
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import matplotlib.pyplot as plt
import numpy as np
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.character_models import TRAINERS, Trainer, draw_weights
from benchmarks.throughput import parse_shape, run_rounds, say_left_out
from lstmjax.files import replacing
from lstmjax.plot import LINES, STYLE
from lstmjax.program.output import dump_json, environment
from lstmjax.progress import progress_bar
from lstmjax.tasks import Characters, Windows, bigram_entropy, character_windows, english_text, unigram_entropy

TrainerName = Literal[
    "lstmjax, a device a core", "lstmjax, a step a call", "Flax Linen + Optax", "Flax NNX + Optax", "PyTorch"
]
SHAPE = "T,B,H, three positive whole numbers, as 64,32,64"
AGREEMENT = 1e-3
"""How far the losses of the first round may differ, relatively, in float32."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Time the training of a model of text next to Flax + Optax and PyTorch, and compare where training ends."""

    out: Path = Path("out")
    """Folder for training.json and .png."""
    text: Path | None = None
    """A text file in UTF-8 to learn; unless given, the English prose that ships with Python."""
    shapes: tuple[str, ...] = ("64,32,64", "128,64,256")
    """Points to time, each T,B,H: steps of a window, windows of a batch, hidden units."""
    peers: tuple[TrainerName, ...] = (
        "lstmjax, a device a core", "lstmjax, a step a call", "Flax Linen + Optax", "Flax NNX + Optax", "PyTorch",
    )  # fmt: skip
    """Whom to time next to lstmjax on one device; what is not installed is left out, and that is said."""
    steps_per_round: int = 20
    """Updates that each library makes in a round, for lstmjax in one call."""
    seconds: float = 30.0
    """Time for the rounds of one point; there are at least seven."""
    epochs: int = 6
    """How often the text is gone through for the characters; 0: leave them out."""
    characters_shape: str = "64,32,256"
    """T,B,H of the model that is trained to the end."""
    learning_rate: float = 2e-3
    """Of Adam."""
    quick: bool = False
    """One small point, a small model and one epoch of a tenth of the text, in under a minute."""
    progress: bool = True
    """Show a progress bar on standard error."""

    def __post_init__(self):
        """Refuses shapes that are not three positive numbers."""
        for shape in (*self.shapes, self.characters_shape):
            parse_shape(shape, SHAPE)


def main(settings: Settings) -> None:
    """Measures, prints tables, writes the results; what is measured is written in any case."""
    text = english_text() if settings.text is None else settings.text.read_text(encoding="utf-8")
    if settings.quick:
        quick = {"shapes": settings.shapes[:1], "seconds": 3.0, "epochs": 1, "characters_shape": "64,16,64"}
        settings, text = dataclasses.replace(settings, **quick), text[: len(text) // 10]
    settings.out.mkdir(parents=True, exist_ok=True)
    names = ("lstmjax", *settings.peers)
    results: dict[str, list[dict[str, Any]]] = {"speed": [], "characters": []}
    bar = progress_bar([], "training", "part", shown=settings.progress, total=len(settings.shapes) + settings.epochs)
    try:
        for shape in settings.shapes:
            bar.set_postfix_str(f"speed at {shape}")
            results["speed"] += measure_speed(settings, parse_shape(shape, SHAPE), names, text)
            bar.update()
        for results["characters"] in learn(settings, names, text) if settings.epochs else ():
            bar.set_postfix_str("characters")
            bar.update()
    finally:
        bar.close()
        if any(results.values()):
            known = entropies(text)
            write_results(settings, len(text), known, results)
            if results["speed"]:
                print(format_speed(results["speed"]) + "\n")
            if results["characters"]:
                print(format_characters(results["characters"], known) + "\n")
            print(f"Wrote training.json{' and .png' if results['characters'] else ''} to {settings.out}/")


def build(
    settings: Settings, shape: tuple[int, ...], names: Iterable[str], text: str
) -> tuple[Characters, dict[str, Trainer]]:
    """The windows of a shape, and every library's trainer of the same weights."""
    steps, batch_size, hidden = shape
    data = character_windows(text, steps, batch_size)
    weights = draw_weights(jax.random.key(0), len(data.vocabulary), hidden)
    trainers = {}
    for name in names:
        try:
            trainers[name] = TRAINERS[name](weights, batch_size, settings.learning_rate, settings.steps_per_round)
        except ImportError as error:
            say_left_out(name, str(error))
    return data, trainers


def measure_speed(
    settings: Settings, shape: tuple[int, ...], names: tuple[str, ...], text: str
) -> list[dict[str, Any]]:
    """One point: a record for each library. Rounds go through the text, each library at its own place in it."""
    data, trainers = build(settings, shape, names, text)
    few = settings.steps_per_round
    runs = {name: following(trainer, data.train, few) for name, trainer in trainers.items()}
    first = {name: run() for name, run in runs.items()}  # compiles, too
    for name, losses in first.items():
        if not np.allclose(losses, first["lstmjax"], rtol=AGREEMENT):
            raise AssertionError(f"{name} has losses {losses}, and lstmjax {first['lstmjax']}; wanted the same")
    times = run_rounds(runs, settings.seconds)
    return [
        {
            "implementation": name,
            **dict(zip("TBH", shape, strict=True)),
            "steps_per_second": round(few / float(np.median(time)), 3),
            "time_over_lstmjax": round(float(np.median(time / times["lstmjax"])), 4),
            "rounds": len(time),
        }
        for name, time in times.items()
    ]


def following(trainer: Trainer, windows: Windows, count: int) -> Callable[[], Any]:
    """A function that trains on the next ``count`` windows at each call, from the first again where they end."""
    whole = len(windows.inputs) // count
    if not whole:
        raise ValueError(f"the text has {len(windows.inputs)} windows; wanted {count}, steps_per_round, or more")
    parts = itertools.cycle(Windows(*(a[i * count :][:count] for a in windows)) for i in range(whole))
    return lambda: trainer.train(next(parts))


def learn(settings: Settings, names: tuple[str, ...], text: str) -> Iterator[list[dict[str, Any]]]:
    """Trains every library's model on the whole text; after each epoch, a record for each library."""
    shape = parse_shape(settings.characters_shape, SHAPE)
    data, trainers = build(settings, shape, [name for name in names if "," not in name], text)
    records = [
        {
            "implementation": name,
            **dict(zip("TBH", shape, strict=True)),
            "steps": 0,
            "held_out": [bits(trainer.test(data.held_out))],
            "training": [],
        }
        for name, trainer in trainers.items()
    ]
    for _ in range(settings.epochs):
        for record, trainer in zip(records, trainers.values(), strict=True):
            losses = trainer.train(data.train)
            record["steps"] += len(losses)
            record["training"].append(bits(losses.mean()))
            record["held_out"].append(bits(trainer.test(data.held_out)))
        yield records


def bits(nats: float) -> float:
    """Cross-entropy in bits, to five places."""
    return round(float(nats) / math.log(2), 5)


def entropies(text: str) -> dict[str, float]:
    """What counts of the held-out text itself could reach on it: no model knows them beforehand."""
    data = character_windows(text, 1, 1)
    held_out = "".join(data.vocabulary[i] for i in data.held_out.targets.ravel())
    return {"unigram": round(unigram_entropy(held_out), 5), "bigram": round(bigram_entropy(held_out), 5)}


def format_speed(speed: list[dict[str, Any]]) -> str:
    """Updates a second, and each library's time over that of lstmjax in the same round."""
    points = list(dict.fromkeys((r["T"], r["B"], r["H"]) for r in speed))
    head = f"{'training  T,B,H':<26}" + "".join(f"{','.join(map(str, p)):>24}" for p in points)
    lines = [head, f"{'':<26}" + f"{'steps/s':>12}{'time':>12}" * len(points), "-" * len(head)]
    for name in dict.fromkeys(r["implementation"] for r in speed):
        cells = ""
        for point in points:
            found = [r for r in speed if (r["implementation"], r["T"], r["B"], r["H"]) == (name, *point)]
            cells += "".join(f"{r['steps_per_second']:>12.1f}{r['time_over_lstmjax']:>12.2f}" for r in found)
        lines.append(f"{name:<26}{cells}")
    return "\n".join(lines)


def format_characters(characters: list[dict[str, Any]], known: dict[str, float]) -> str:
    """Bits a character on held-out text, before training, after the first epoch and at the end."""
    head = f"{'bits a character, held out':<30}{'untrained':>11}{'1 epoch':>11}{'the end':>11}{'steps':>9}"
    lines = [head, "-" * len(head)]
    for r in characters:
        start, first, *rest = r["held_out"]
        lines.append(f"{r['implementation']:<30}{start:>11.4f}{first:>11.4f}{[first, *rest][-1]:>11.4f}{r['steps']:>9}")
    return "\n".join(lines + [f"{name + ' entropy':<30}{'':>22}{value:>11.4f}" for name, value in known.items()])


def characters_figure(characters: list[dict[str, Any]], known: dict[str, float]) -> Figure:
    """Bits a character on held-out text against the epoch, a line for each library, those that differ or not."""
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.9), dpi=220, layout="constrained")
        axis = figure.subplots()
        for i, (r, style) in enumerate(zip(characters, LINES, strict=False)):
            # Lines that lie on one another are told apart by their widths.
            width = 1.2 + 1.6 * (len(characters) - 1 - i)
            axis.plot(r["held_out"], label=r["implementation"], **{**style, "linestyle": "-"}, linewidth=width)
        for name, value in known.items():
            axis.axhline(value, color="0.5", linewidth=0.8)
            axis.annotate(
                f"{name} entropy", (1, value), (-2, 2), ("axes fraction", "data"), "offset points", ha="right"
            )
        axis.set(xlabel="epoch", ylabel="bits a character, held out")
        axis.set_ylim(0, 1.02 * max(r["held_out"][0] for r in characters))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(True)
        axis.legend(frameon=False)
    return figure


def write_results(
    settings: Settings, length: int, known: dict[str, float], found: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes .json and, where there are characters, .png, each whole or not at all; ``length`` is that of the text."""
    results = {
        "environment": environment("float32", "flax", "optax", "torch"),
        "settings": {
            **{
                k: str(v) if k == "text" and v else v
                for k, v in dataclasses.asdict(settings).items()
                if k not in ("out", "progress")
            },
            "characters_of_text": length,
            "time_over_lstmjax": "median over rounds of two times from the same round",
        },
        "entropies": known,
        **found,
    }
    with replacing(settings.out / "training.json") as path:
        path.write_text(dump_json(results))
    if found["characters"]:
        with replacing(settings.out / "training.png") as path:
            characters_figure(found["characters"], known).savefig(path, format="png")


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", os.cpu_count())  # for the candidate that has a device a core
    main(tyro.cli(Settings))
