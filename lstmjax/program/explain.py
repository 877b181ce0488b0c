"""One LSTM unit run with numbers, as a lecture's slides do."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from lstmjax import LSTMState
from lstmjax.explain import explain_sequence, explain_step, format_explanation, format_sequence
from lstmjax.program.common import one, several
from lstmjax.tasks.companies import COMPANIES, company_values, slide_unit

PICTURES = (".png", ".pdf", ".svg")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Run one LSTM unit with numbers, as a lecture's slides do: one step, or two companies' share values day by day."""

    c: Annotated[float | None, one("NUMBER", "2, and 0 for a sequence")] = None
    """Long-term memory before the first step."""
    h: Annotated[float | None, one("NUMBER", "1, and 0 for a sequence")] = None
    """Short-term memory before the first step."""
    x: Annotated[float | None, one("NUMBER", "1")] = None
    """Input of the one step."""
    sequence: Annotated[tuple[Literal["A", "B"], ...] | None, several("A|B", "one step")] = None
    """The companies to run over days 1 to 4, instead of one step."""
    picture: Annotated[Path | None, one("FILE", "none")] = None
    """File to save the drawing to, .png, .pdf or .svg."""

    def __post_init__(self) -> None:
        """Refuses what cannot be run or drawn, before anything is computed."""
        for name in ("c", "h", "x"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; wanted a finite number")
        if self.sequence is not None:
            if self.x is not None:
                raise ValueError("x is the input of one step, and sequence brings its own; give one of them")
            if not self.sequence or len(set(self.sequence)) < len(self.sequence):
                raise ValueError(f"sequence is {' '.join(self.sequence) or 'empty'}; wanted A, B or both, each once")
        if self.picture is not None and self.picture.suffix.lower() not in PICTURES:
            raise ValueError(f"picture is {self.picture}; wanted a name that ends in .png, .pdf or .svg")

    def run(self) -> None:
        """Prints the tables, and saves the drawing."""
        main(self)


def main(settings: Settings) -> None:
    """Prints the tables, computed in double precision, and saves the drawing where one is asked for."""
    drawing = None if settings.picture is None else _drawing()
    c, h = (0.0, 0.0) if settings.sequence else (2.0, 1.0)
    c, h = c if settings.c is None else settings.c, h if settings.h is None else settings.h
    x = 1.0 if settings.x is None else settings.x
    with jax.enable_x64(True):
        params = slide_unit(dtype=jnp.float64)
        state = LSTMState(c=jnp.array([c]), h=jnp.array([h]))
        if settings.sequence:
            days = {n: explain_sequence(params, company_values(n, jnp.float64), state) for n in settings.sequence}
            targets = {f"company {n}": COMPANIES[n].target for n in days}
            for n, steps in days.items():
                print(f"Company {n}: day 5 predicted as {steps.new_h[-1]:.4f}, wanted {COMPANIES[n].target:g}\n")
                print(f"{format_sequence(steps, step='day')}\n")
            titled = {f"company {n}": steps for n, steps in days.items()}
            figure = drawing and drawing.memory_diagram(titled, step="day", targets=targets)
        else:
            step = explain_step(params, state, jnp.array([x]))
            print(f"{format_explanation(step)}\n")
            figure = drawing and drawing.unit_diagram(step)
    if figure and settings.picture:
        settings.picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(settings.picture)
        print(f"Saved {settings.picture}")


def _drawing() -> Any:
    try:
        from lstmjax import drawing
    except ImportError as error:
        raise ImportError(f"--picture: {error}") from None
    return drawing
