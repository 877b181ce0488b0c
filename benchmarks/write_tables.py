"""Puts the tables of the committed results into the pages that show them, between their markers."""

import json
import re
from pathlib import Path

from benchmarks.gradient_norms import format_table

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Rewrites the table of gradient norms in the README."""
    results = json.loads((ROOT / "benchmarks/results/gradient_norms.json").read_text())
    page = ROOT / "README.md"
    table = f"\\1\n```text\n{format_table(results['fits'])}\n```\n\\2"
    text = re.sub(r"(<!-- table: .*? -->).*(<!-- end of table -->)", table, page.read_text(), flags=re.DOTALL)
    page.write_text(text)


if __name__ == "__main__":
    main()
