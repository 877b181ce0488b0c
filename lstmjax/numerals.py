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


def short(value: Any, digits: int = 5) -> str:
    """A number to so many digits and four decimals, without the zeros at its end, unless they stand for digits it has.

    So a number that reads 1 is 1, and one that reads 1.0000 is nearly so. A very great or small one has three digits.

    >>> [short(v) for v in (2.7, 1.0, 0.9999999, -12.34567, 0.006393, 1e-7, 0.0, -123456.0)]
    ['2.7', '1', '1.0000', '-12.346', '0.00639', '1e-7', '0', '-1.23e5']
    >>> [short(v, 4) for v in (5.95, 0.9999999, -12.3456, 12340.0)]
    ['5.95', '1.0000', '-12.35', '12340']
    """
    v = float(value) + 0.0  # and no zero has a sign
    size = abs(v)
    if v and not 1e-3 <= size < 99999.5:
        mantissa, _, exponent = f"{v:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}" if exponent else mantissa
    if 0 < size < 0.1:
        return f"{v:.3g}"
    before = len(str(int(size))) if size >= 1 else 0
    fixed = f"{v:.{max(0, min(4, digits - before))}f}"
    stripped = fixed.rstrip("0").rstrip(".") if "." in fixed else fixed
    return fixed if "." not in stripped and float(stripped) != v else stripped


def aligned(value: Any) -> str:
    """A number for a column: to six decimals, fewer where it is great, or four digits where it is very great or small.

    >>> [aligned(v) for v in (0.98623, 1234.5, 1e-7)]
    ['0.986230', '1234.5000', '1.000e-07']
    """
    v = float(value) + 0.0
    size = abs(v)
    if size >= 1e6 or 0 < size < 1e-4:
        return f"{v:.3e}"
    return f"{v:.6f}" if size < 100 else f"{v:.4f}" if size < 1e4 else f"{v:.2f}"


def signed(number: str) -> str:
    """A number in words as a term of a sum.

    >>> signed("2.7"), signed("-1")
    ('+ 2.7', '- 1')
    """
    return f"{number[0]} {number[1:]}" if number[0] in "-−" else f"+ {number}"


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
