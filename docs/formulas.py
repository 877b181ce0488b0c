"""Typesets the formulas of docstrings, which are written so that a terminal shows them: ``h' = o ∘ tanh(c')``.

A Sphinx extension. In a sentence a formula stands between single backticks. Displayed ones stand in a literal block,
one a line, and what is said of them after two spaces or more.
"""

import re
import unicodedata

from docutils import nodes
from sphinx.transforms import SphinxTransform

FUNCTIONS = {"det", "exp", "ln", "log", "max", "min", "tanh"}
SYMBOLS = str.maketrans(
    {"Σ": r"\sum ", "Π": r"\prod ", "½": r"\tfrac12 ", "~": r"\sim ", "%": r"\%", "#": r"\#", "&": r"\&"}
)
WORD = re.compile(r"(?<![\\_^,A-Za-z])(?:[A-Za-z]{2,}_[a-z]{3,}|[A-Za-z]{3,}_[a-z]{2,}|[A-Za-z]{2,})")
EQUATION = re.compile(r"(?P<left>\S+(?: \S+){0,3}?)\s*(?P<sign>[=←])\s+(?P<right>.*)")


def latex(formula):
    r"""One formula in LaTeX. Letters stay as they are: MathJax reads σ and ∂.

    >>> latex("σ'(z_xi) = e^−z/√(var z + 1) ‖W_hᵀ‖")
    "σ'(z_{xi}) = e^{−z}/\\sqrt{\\operatorname{var} z + 1} ‖W_{h}^{T}‖"
    """
    formula = re.sub(r"(?<![_^])\{([^{}]*)\}", r"\\{\1\\}", formula).translate(SYMBOLS)
    formula = re.sub(r"\b1e-(\d)", r"10^−\1", formula).replace("log2 ", "log_2 ")
    formula = re.sub(r"(?<=\w) (?=d[a-z](?![a-z]))", r" \\, ", formula)
    formula = WORD.sub(_word, formula)
    formula = re.sub("[²³¹⁰⁴-⁹⁻ᵀᵏ]+", lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}", formula)
    formula = re.sub("[₀-₉]+", lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}", formula)
    formula = re.sub(r"(?<!\\)([_^])(−?[^\W_]+(?:,[a-z]+)?)", r"\1{\2}", formula)
    formula = re.sub(r"\^\(([^()]*)\)", r"^{\1}", formula)
    formula = re.sub(r"√\(((?:[^()]|\([^()]*\))*)\)|√(\w)", r"\\sqrt{\1\2}", formula)
    return re.sub("(\\w)\u0304", r"\\bar{\1}", formula)


def _word(match):
    """A name of several letters, upright; a differential as it is."""
    word = match[0]
    if re.fullmatch("d[a-z]", word):
        return word
    return f"\\{word} " if word in FUNCTIONS else r"\operatorname{" + word.replace("_", r"\_") + "}"


def display(block):
    r"""The lines of a literal block in LaTeX, aligned at their first equals signs; None if they are no formulas.

    >>> print(display("h' = o ∘ c'     the output"))
    h' &= o ∘ c' && \text{the output}
    >>> display("c    the cell state")
    """
    rows = []
    for line in block.splitlines():
        equation = EQUATION.fullmatch(line.strip())
        if (equation is None and not rows) or '"' in line:
            return None
        first, *rest = re.split(r"\s{2,}", equation["right"] if equation else line.strip())
        row = f"{latex(equation['left'])} &{equation['sign']} {latex(first)}" if equation else f"& {_part(first)}"
        rows.append(row + "".join((" && " if _in_words(part) else r" \qquad ") + _part(part) for part in rest))
    return " \\\\\n".join(rows)


def _in_words(part):
    """Whether a part of a line says something of the formula, and is none."""
    words = [word for word in re.findall(r"[A-Za-z]{3,}(?![\w(])", part) if word not in FUNCTIONS]
    return len(words) > bool(re.search("[=~]", part))


def _part(part):
    text = part.replace("%", r"\%").replace("`", "")
    return rf"\text{{{text}}}" if _in_words(part) else latex(part)


class Typeset(SphinxTransform):
    """Literal blocks that are formulas become displayed ones, and what stands between single backticks inline ones."""

    default_priority = 400  # before Sphinx asks whether a page has formulas and needs MathJax

    def apply(self):
        """Called by Sphinx, for each page."""
        for block in list(self.document.findall(nodes.literal_block)):
            lines = display(block.astext()) if "language" not in block else None
            if lines:
                aligned = f"\\begin{{aligned}}\n{lines}\n\\end{{aligned}}"
                formula = nodes.math_block(aligned, aligned, docname=self.env.docname, number=None, label=None)
                block.replace_self(formula)
        for formula in list(self.document.findall(nodes.title_reference)):
            formula.replace_self(nodes.math("", latex(formula.astext())))


def setup(app):
    """Called by Sphinx."""
    app.add_transform(Typeset)
    return {"parallel_read_safe": True}
