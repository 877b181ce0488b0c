"""How far along a measurement is: one bar for everything that takes a while."""

import shutil
import sys
from collections.abc import Iterable
from typing import Any


def progress_bar(
    items: Iterable | None, description: str, unit: str, *, shown: bool = True, total: int | None = None
) -> Any:
    """A bar on standard error: alive in a terminal or a notebook, a line now and then in a log file.

    Args:
        items: what is gone through; None: ``update`` says how far it is.
        description: what is done.
        unit: what is counted.
        shown: whether there is a bar at all.
        total: how many there are, where the items do not tell.

    Returns:
        A bar of ``tqdm``.
    """
    from tqdm.auto import tqdm  # imports much in a notebook

    # A terminal that says it has no columns, as some containers' do, would be shown a bar of none.
    return tqdm(
        items, desc=description, unit=unit, total=total, disable=not shown, ncols=shutil.get_terminal_size().columns,
        mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )  # fmt: skip
