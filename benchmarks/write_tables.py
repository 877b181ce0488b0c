"""Puts the tables of the committed results into the pages that show them, between their markers."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import accelerators, gradient_study, half_precision, long_lag, throughput, training, zoo
from lstmjax.numerals import markdown_table
from lstmjax.program import gradients

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def gradient_table() -> str:
    """Half-lives and what is left at three lags."""
    return gradients.format_table(read("gradient_norms.json")["fits"])


def study_table(section: str) -> Callable[[], str]:
    """What a section of the gradient study found."""
    return lambda: "\n".join(read("gradient_study.json")["tables"][section])


def memory_table() -> str:
    """Temporary memory of training at one large point."""
    return throughput.format_memory(read("throughput.json")["memory"])


def long_lag_table() -> str:
    """Who solved what, after how many sequences."""
    return long_lag.format_table(read("long_lag.json")["summary"])


def zoo_table() -> str:
    """Every cell side by side."""
    return zoo.format_table(read("zoo.json"))


def training_table() -> str:
    """Updates a second of each library's training loop."""
    results = read("training.json")
    return f"{where_measured(results['environment'])}\n\n{training.format_speed(results['speed'])}"


def training_summary() -> str:
    """Time of a training step next to that of lstmjax."""
    speed = read("training.json")["speed"]
    points = list(dict.fromkeys((r["T"], r["B"], r["H"]) for r in speed))
    head = "time of a training step over that of lstmjax"
    names = dict.fromkeys(r["implementation"] for r in speed if r["implementation"] != "lstmjax")
    rows = [[n, *(f"{r['time_over_lstmjax']:.2f}" for r in speed if r["implementation"] == n)] for n in names]
    return markdown_table([head, *(f"T, B, H = {t}, {b}, {h}" for t, b, h in points)], rows)


def characters_table() -> str:
    """Bits a character where training ends."""
    results = read("training.json")
    return training.format_characters(results["characters"], results["entropies"])


def half_precision_table() -> str:
    """How far the gradient in bfloat16 is from that in float64."""
    return half_precision.format_table(read("half_precision.json")["records"])


def accelerators_table() -> str:
    """What a step launches and sends, compiled for machines that are not there."""
    results = read("accelerators.json")
    compiled = results["compiled"]
    return f"jax {compiled['jax']}, {compiled['date']}\n\n{accelerators.format_table(results['records'])}"


def where_measured(env: dict[str, Any]) -> str:
    """A line above a table of times."""
    return f"jax {env['jax']}, {env['cpus']} cores ({env['system']}), {env['dtype']}, {env['date']}"


def throughput_table(file: str) -> Callable[[], str]:
    """The whole grid, under a line that says where it was measured."""

    def table() -> str:
        results = read(file)
        return f"{where_measured(results['environment'])}\n\n{throughput.format_table(results['records'])}"

    return table


def speed_summary() -> str:
    """Geometric means over the grid, for both versions of JAX."""
    files = [read("throughput.json"), read("throughput_newest_jax.json")]
    columns = [(f["environment"]["jax"], p, f["geometric_means"][p]) for f in files for p in ("forward", "train")]
    names = list(dict.fromkeys(n for *_, means in columns for n in means if not n.startswith("lstmjax ")))
    rows = [[n, *(f"{means[n]:.2f}" if n in means else "–" for *_, means in columns)] for n in names]
    return markdown_table(["time over that of lstmjax", *(f"{p}, JAX {v}" for v, p, _ in columns)], rows)


# name of the marker: (page, what stands between the markers, whether it is text to be fenced)
TABLES: dict[str, tuple[str, Callable[[], str], bool]] = {
    "gradient norms": ("docs/results.md", gradient_table, True),
    "speed": ("README.md", speed_summary, False),
    "zoo": ("docs/cells.md", zoo_table, False),
    "training": ("docs/results.md", training_summary, False),
    "half precision": ("docs/results.md", half_precision_table, False),
    **{f"study, {n}": ("benchmarks/README.md", study_table(n), True) for n in gradient_study.SECTIONS},
    "accelerators": ("docs/accelerators.md", accelerators_table, False),
    "long lags": ("benchmarks/README.md", long_lag_table, True),
    "training speed": ("benchmarks/README.md", training_table, True),
    "characters": ("benchmarks/README.md", characters_table, True),
    "throughput": ("benchmarks/README.md", throughput_table("throughput.json"), True),
    "memory": ("benchmarks/README.md", memory_table, True),
    "throughput, newest JAX": ("benchmarks/README.md", throughput_table("throughput_newest_jax.json"), True),
}


def read(file: str) -> dict[str, Any]:
    """One committed result."""
    return json.loads((RESULTS / file).read_text())


def between_markers(name: str) -> str:
    """What belongs between the markers of a table, the line breaks next to them included."""
    _, table, fenced = TABLES[name]
    return f"\n```text\n{table()}\n```\n" if fenced else f"\n{table()}\n"


def main() -> None:
    """Rewrites every table."""
    for name, (page, *_) in TABLES.items():
        path = ROOT / page
        pattern = rf"(<!-- table: {re.escape(name)} -->).*?(<!-- end of table -->)"
        text, found = re.subn(
            pattern, lambda m, name=name: m[1] + between_markers(name) + m[2], path.read_text(), flags=re.DOTALL
        )
        if not found:
            raise ValueError(f"{page} has no markers for the table {name!r}")
        path.write_text(text)


if __name__ == "__main__":
    main()
