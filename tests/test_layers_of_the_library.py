"""The arrows of the design: what imports what."""

import ast
from pathlib import Path

import pytest

import lstmjax

PACKAGE = Path(lstmjax.__file__).parent
# Every module may import those to its left, and nothing to its right.
ORDER = [
    "checks", "files", "functions", "numerals", "progress", "plot", "drawing", "typing", "init", "gates", "cells",
    "recurrence", "unroll", "tasks", "explain", "stack", "gradients",
]  # fmt: skip
# These stand next to one another on the core, and do not import one another.
SIBLINGS = ["gradients", "nn", "convert", "training"]
# And these on everything.
TOP = ["program", "__main__"]


def imports(module):
    paths = [PACKAGE / f"{module}.py", *sorted((PACKAGE / module).glob("*.py"))]
    for path in (p for p in paths if p.exists()):
        tree = ast.parse(path.read_text())
        # What runs as a program alone is no part of the module.
        tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if __name__ == '__main__'")]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lstmjax":
                names = node.module.split(".")[1:2] or [a.name for a in node.names]
                yield from (name for name in names if name != module)
            elif isinstance(node, ast.Import):
                yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("lstmjax."))


@pytest.mark.parametrize("module", ORDER)
def test_arrows_run_one_way(module):
    allowed = set(ORDER[: ORDER.index(module)])
    assert set(imports(module)) <= allowed


@pytest.mark.parametrize("module", SIBLINGS)
def test_siblings_do_not_know_one_another(module):
    assert not set(imports(module)) & set(SIBLINGS)


def test_every_module_is_placed():
    found = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert found - {"__init__"} == {*ORDER, *SIBLINGS, *TOP}
