"""A docstring that explains arguments explains all of them. Several may share a line, which linters do not know."""

import ast
import re
from pathlib import Path

LIBRARY = Path(__file__).parent.parent / "lstmjax"


def explained(docstring):
    """The arguments that a docstring explains, or None where it has no such section."""
    section = re.search(r"^Args:\n(.*?)(?:^\S|\Z)", docstring, re.DOTALL | re.MULTILINE)
    if section is None:
        return None
    heads = re.findall(r"^ {4}((?:\*{0,2}\w+, )*\*{0,2}\w+):", section[1], re.MULTILINE)
    return {name.strip("*") for head in heads for name in head.split(", ")}


def test_every_argument_is_explained():
    looked_at, faults = 0, []
    for file in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.FunctionDef) or (said := explained(ast.get_docstring(node) or "")) is None:
                continue
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            names = {argument.arg for argument in every if argument is not None} - {"self", "cls"}
            looked_at += 1
            if names != said:
                faults.append(f"{file.relative_to(LIBRARY)}: {node.name}: {sorted(names ^ said)}")
    assert looked_at > 100
    assert not faults
