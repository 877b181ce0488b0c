"""How exact is a gradient in bfloat16? That of the LSTM, next to the same gradient in float64.

Weights and inputs are rounded to bfloat16 first, so that what is measured is the computation: how far it leaves what
float64 makes of the same numbers.

    python -m benchmarks.half_precision --out out
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import lstmjax
from benchmarks.peers import JAX_PEERS
from lstmjax import convert
from lstmjax.files import replacing
from lstmjax.numerals import markdown_table
from lstmjax.program.output import dump_json, environment

LOSSES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "of every step": lambda ys: (_wide(ys) ** 2).mean(),
    "of the last step": lambda ys: (_wide(ys[-1]) ** 2).mean(),
}
WAYS: dict[str, Callable[[Any], Any]] = {
    "lstmjax": lambda gradient: gradient,
    "lstmjax scan": lambda gradient: gradient,
    "Flax Linen OptimizedLSTMCell": lambda gradient: convert.from_linen(gradient["params"]["cell"]),
}
"""Peers by name, with what reads an :class:`lstmjax.LSTMParams` from the gradient of their variables."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Compare the gradient of the LSTM's weights in bfloat16 with that in float64."""

    out: Path = Path("out")
    """Folder for half_precision.json."""
    lengths: tuple[int, ...] = (100, 1000)
    """Time steps."""
    batch: int = 8
    """Rows."""
    inputs: int = 16
    """Input features."""
    hidden_size: int = 64
    """Hidden units."""
    seeds: int = 5
    """Draws of weights and inputs."""


def main(settings: Settings) -> None:
    """Measures, prints the table and writes the file."""
    records = [
        {"implementation": name, "loss": loss, "T": steps, "errors": [round(e, 6) for e in errors]}
        for steps in settings.lengths
        for loss in LOSSES
        for name, errors in relative_errors(settings, steps, loss).items()
    ]
    results = {
        "environment": environment("bfloat16", "flax"),
        "settings": {k: v for k, v in dataclasses.asdict(settings).items() if k != "out"},
        "records": records,
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    with replacing(settings.out / "half_precision.json") as path:
        path.write_text(dump_json(results))
    print(format_table(records))
    print(f"\nWrote half_precision.json to {settings.out}/")


def relative_errors(settings: Settings, steps: int, loss: str) -> dict[str, list[float]]:
    """‖g − g64‖/‖g64‖ over all weights, by implementation, for each seed."""
    errors: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in range(settings.seeds):
        key_params, key_xs = jax.random.split(jax.random.key(seed))
        params = lstmjax.lstm(settings.hidden_size).init(key_params, settings.inputs, jnp.bfloat16)
        xs = jax.random.normal(key_xs, (steps, settings.batch, settings.inputs), jnp.bfloat16)
        with jax.enable_x64(True):
            wide, wide_xs = jax.tree.map(lambda a: a.astype(jnp.float64), (params, xs))
            exact = _flat(gradient("lstmjax scan", wide, wide_xs, loss))
        for name in WAYS:
            got = _flat(gradient(name, params, xs, loss))
            errors[name].append(float(np.linalg.norm(got - exact) / np.linalg.norm(exact)))
    return errors


def gradient(name: str, params: lstmjax.LSTMParams, xs: jax.Array, loss: str) -> lstmjax.LSTMParams:
    """The gradient of a loss with respect to the weights, in the dtype these have."""
    peer = JAX_PEERS[name](params, xs)
    return WAYS[name](jax.jit(jax.grad(lambda v, xs: LOSSES[loss](peer.forward(v, xs))))(peer.variables, peer.xs))


def _wide(ys: jax.Array) -> jax.Array:
    return ys.astype(jnp.promote_types(ys.dtype, jnp.float32))


def _flat(gradient: lstmjax.LSTMParams) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in gradient])


def format_table(records: list[dict[str, Any]]) -> str:
    """The median error over seeds, and the greatest."""
    columns = list(dict.fromkeys((r["loss"], r["T"]) for r in records))
    names = list(dict.fromkeys(r["implementation"] for r in records))
    cells = {(r["implementation"], r["loss"], r["T"]): r["errors"] for r in records}

    def said(errors: list[float]) -> str:
        return f"{np.median(errors):.2%} ({max(errors):.2%})"

    rows = [[name, *(said(cells[name, loss, steps]) for loss, steps in columns)] for name in names]
    return markdown_table(["error of the gradient", *(f"loss {loss}, T = {steps}" for loss, steps in columns)], rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
