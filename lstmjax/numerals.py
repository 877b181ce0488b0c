"""Numbers as words of a table or a drawing: each kind is written in one way, here."""

import math
from typing import Any


def power_of_ten(exponent: float) -> str:
    """10**exponent as 1.2e-301, where a float would have ended at 5e-324; 0 for 10**−∞.

    >>> power_of_ten(-400.5), power_of_ten(0.0), power_of_ten(float("-inf"))
    ('3.2e-401', '1.0e+00', '0')
    """
    if math.isnan(exponent):
        return "-"
    if math.isinf(exponent):
        return "0" if exponent < 0 else "∞"
    whole = math.floor(exponent)
    digits = f"{10 ** (exponent - whole):.1f}"
    if digits == "10.0":
        whole, digits = whole + 1, "1.0"
    return f"{digits}e{whole:+03d}"


def half_life(steps: float) -> str:
    """Steps to half, in three digits; ``-`` where there is no line to take them from.

    >>> half_life(10.372), half_life(float("inf")), half_life(float("nan"))
    ('10.4', 'no decay', '-')
    """
    return "-" if math.isnan(steps) else f"{steps:.3g}" if math.isfinite(steps) else "no decay"


def half_lives(low: float, high: float) -> str:
    """From the least half-life to the greatest, where ∞ is none.

    >>> half_lives(10.37, 11.3), half_lives(400.0, float("inf")), half_lives(float("inf"), float("inf"))
    ('10.4–11.3', '400–∞', 'no decay')
    """
    if math.isnan(low) or math.isnan(high):
        return "-"
    if math.isinf(low):
        return "no decay"
    return f"{low:.3g}–{high:.3g}".replace("inf", "∞")


def markdown_table(head: list[str], rows: list[list[Any]]) -> str:
    """A table in Markdown, the first column to the left.

    >>> print(markdown_table(["cell", "steps"], [["GRU", 2]]))
    | cell | steps |
    |---|---|
    | GRU | 2 |
    """
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def plain_table(head: list[str], rows: list[list[str]], words: int = 1) -> str:
    """A table in plain text, the first columns to the left, the rest to the right, each as wide as it must be.

    >>> print(plain_table(["cell", "steps"], [["GRU", "2"]]))
    cell  steps
    -----------
    GRU       2
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            entry.ljust(w) if n < words else entry.rjust(w) for n, (entry, w) in enumerate(zip(r, widths, strict=True))
        )
        for r in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *(line.rstrip() for line in lines[1:])])
