"""One page that stands by itself: numbers, figures, settings, environment and how to cite, in light and in dark."""

import base64
import html
import io
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lstmjax.program.cells import Candidate

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --soft: #5a5a5a; --rule: #d8d8d8; --tint: #f4f4f2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #000000; --soft: #a6a6a6; --rule: #3a3a3a; --tint: #161616; }
}
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--rule); padding-bottom: .25rem; }
p, dd { max-width: 46rem; }
.lead, figcaption, footer { color: var(--soft); }
figure { margin: 1.5rem 0; }
figure img { width: 100%; height: auto; }
figcaption { font-size: .88rem; max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; }
.words { text-align: left; }
dt { font-weight: 600; margin-top: .7rem; }
dd { margin: 0; }
pre { background: var(--tint); padding: .6rem .8rem; overflow-x: auto; font-size: .82rem; line-height: 1.4;
  border-radius: 4px; }
.command { white-space: pre-wrap; }
summary { cursor: pointer; }
.warning { border-left: 4px solid #d55e00; padding: .3rem .8rem; background: var(--tint); }
@media print { body { max-width: none; padding: 0; } details { display: block; } }
"""


class Page:
    """A page put together from the top to the bottom.

    Args:
        title: what it asks or says.
        lead: a line below it.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self.lead = lead
        self._sources: dict[str, None] = {}
        self._parts: list[str] = []

    def heading(self, words: str) -> None:
        """Begins a part."""
        self._parts.append(f"<h2>{_text(words)}</h2>")

    def paragraph(self, words: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{_text(words)}</p>")

    def warning(self, words: str) -> None:
        """A paragraph that nobody should miss."""
        self._parts.append(f'<p class="warning">{_text(words)}</p>')

    def figure(self, figure: Any, caption: str) -> None:
        """A figure of matplotlib, which the page holds twice, for light and for dark; of none, why there is none."""
        if figure is None:
            self.paragraph("There is no picture: pictures want matplotlib, pip install 'lstmjax[plots]'.")
            return
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        light, dark = (_address(svg) for svg in (drawn.getvalue(), _for_dark(drawn.getvalue())))
        self._parts.append(
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img style="max-width: {1.5 * figure.get_figwidth():.1f}in" src="{light}" alt="{_text(caption)}">'
            f"</picture><figcaption>{_text(caption)}</figcaption></figure>"
        )

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]], words: int = 1) -> None:
        """A table whose first columns are words, and the rest numbers."""
        self._parts.append(_table(head, rows, words))

    def items(self, items: Mapping[str, Any]) -> None:
        """Terms, and what they mean."""
        entries = "".join(f"<dt>{_text(term)}</dt><dd>{_text(meaning)}</dd>" for term, meaning in items.items())
        self._parts.append(f"<dl>{entries}</dl>")

    def entry(self, name: str, about: str, equations: str = "") -> None:
        """A thing, what it is, and its equations."""
        block = f"<pre>{_text(equations)}</pre>" if equations else ""
        self._parts.append(f"<dl><dt>{_text(name)}</dt><dd>{_text(about)}{block}</dd></dl>")

    def candidate(self, name: str, candidate: Candidate) -> None:
        """A cell: what it is, its equations, and whom to cite for it."""
        source = f"Source: {candidate.source}" if candidate.source else ""
        self.entry(name, f"{candidate.about} {source}".strip(), candidate.equations)
        if candidate.source:
            self._sources[f"{name}: {candidate.source}"] = None

    def details(self, summary: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table that opens on request."""
        self._parts.append(f"<details><summary>{_text(summary)}</summary>{_table(head, rows, 0)}</details>")

    def html(self, settings: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
        """The page, with settings, environment and how to cite at its end."""
        self.heading("Settings")
        self._parts.append(f'<pre class="command">lstmjax {_text(_command())}</pre>')
        self.table(["setting", "value"], [[k, _words(v)] for k, v in settings.items()], words=2)
        self.heading("Environment")
        self.table(["what", "which"], [[k, _words(v)] for k, v in environment.items()], words=2)
        self.heading("How to cite")
        version = environment["lstmjax"]
        self._parts.append(
            "<pre>@software{lstmjax,\n  title   = {lstmjax: a functional LSTM for JAX, and an instrument for watching\n"
            "             gradients over long lags},\n  author  = {{The lstmjax authors}},\n"
            f"  version = {{{version}}},\n  year    = {{{environment['date'][:4]}}}\n}}</pre>"
        )
        if self._sources:
            self.paragraph("The cells are of their authors:")
            self._parts.append("<ul>" + "".join(f"<li>{_text(s)}</li>" for s in self._sources) + "</ul>")
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_text(self.title)} {_text(self.lead)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f'<h1>{_text(self.title)}</h1>\n<p class="lead">{_text(self.lead)}</p>\n'
            + "\n".join(self._parts)
            + f"\n<footer><p>Made by lstmjax {version} on {environment['date']}.</p></footer>\n</body>\n</html>\n"
        )


def _address(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _for_dark(svg: str) -> str:
    """A drawing with its greys turned round, and text, which has the colour of the whole, light; colours stay."""

    def turned(found: re.Match) -> str:
        return "#" + f"{255 - int(found[1], 16):02x}" * 3

    return re.sub(r"#([0-9a-fA-F]{2})\1\1\b", turned, svg).replace("<svg ", '<svg fill="#ffffff" ', 1)


def _command() -> str:
    """What was typed after the program's name."""
    return shlex.join(sys.argv[1:])


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], words: int) -> str:
    def row(tag: str, entries: Sequence[Any]) -> str:
        kinds = (' class="words"' if n < words else "" for n in range(len(entries)))
        return "<tr>" + "".join(f"<{tag}{k}>{_text(e)}</{tag}>" for k, e in zip(kinds, entries, strict=True)) + "</tr>"

    body = "".join(row("td", entries) for entries in rows)
    return f'<div class="wide"><table><thead>{row("th", head)}</thead><tbody>{body}</tbody></table></div>'


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value))
