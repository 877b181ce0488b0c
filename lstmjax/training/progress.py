"""How far along: a bar in a terminal or a notebook, a line now and then in a log file."""

import sys
from typing import Any


class Progress:
    """A bar on standard error, alive in a terminal or a notebook; in a log file, a whole line every half minute.

    Args:
        start: steps done before.
        total: steps in all. Where there are none left there is no bar.
        shown: None: where ``tqdm`` is installed.
    """

    def __init__(self, start: int, total: int, shown: bool | None = None) -> None:
        self._bar: Any = None
        if shown is False or start >= total:
            return
        try:
            import tqdm
        except ImportError:
            if shown:
                raise ImportError("progress wants tqdm: pip install 'lstmjax[training]'") from None
            return
        options: dict[str, Any] = {"total": total, "initial": start, "unit": "step", "dynamic_ncols": True}
        if in_notebook():
            from tqdm.notebook import tqdm as notebook_bar

            self._bar = notebook_bar(**options)
        elif sys.stderr.isatty():
            self._bar = tqdm.tqdm(**options)
        else:
            options |= {"file": _Lines(sys.stderr), "mininterval": 30.0, "maxinterval": 60.0, "dynamic_ncols": False}
            line = "{n_fmt}/{total_fmt} steps [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
            self._bar = tqdm.tqdm(**options, bar_format=line)

    def advance(self, steps: int, loss: Any) -> None:
        """Says that ``steps`` more are done."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {float(loss):.4g}" if loss is not None else "", refresh=False)
            self._bar.update(steps)

    def close(self) -> None:
        """Leaves the last state standing."""
        if self._bar is not None:
            self._bar.close()


class _Lines:
    """A stream to which a bar's redrawings come as lines."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._last = ""

    def write(self, text: str) -> None:
        """Writes a redrawing as a line, once."""
        text = text.strip("\r\n ")
        if text and text != self._last:
            self._stream.write(text + "\n")
            self._last = text

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()


def in_notebook() -> bool:
    """Whether this is a notebook that can draw widgets."""
    shell = sys.modules.get("IPython")
    kernel = shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"
    if not kernel:
        return False
    try:
        import ipywidgets  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True
