"""The README and the notebooks run, and say what the repository holds."""

import json
import re
from pathlib import Path

import jax
import nbclient
import nbformat
import numpy as np
import pytest

import lstmjax
from benchmarks import write_tables
from lstmjax.tasks import english_text

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_readme_code_on_the_first_screen_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(blocks("python")[0], "README.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.slow
def test_readme_code_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a figure is saved, and a reader's own data are read
    time = np.arange(2000)
    noisy = np.sin(time / 9) + 0.1 * np.random.default_rng(0).normal(size=2000)
    columns = np.stack([noisy, np.cos(time / 9)], axis=1)
    np.savetxt("series.csv", columns, delimiter=",", header="sine,cosine", comments="")
    Path("text.txt").write_text(english_text()[:40_000])
    # As a reader would run it: one session, from top to bottom, without the strictness of the tests.
    namespace = {}
    with jax.numpy_dtype_promotion("standard"):
        for code in blocks("python"):
            exec(compile(code, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "the gradient halves every" in printed
    assert "long-term 2.9476, short-term 0.9862" in printed
    assert float(re.search(r"^loss ([\d.]+)", printed, re.MULTILINE)[1]) < 0.1
    assert float(re.search(r"loss of the loan sentences ([\d.]+)", printed)[1]) < 0.1
    assert float(re.search(r"squared error on rows held out ([\d.]+)", printed)[1]) < 0.1
    bits, pairs = re.search(r"([\d.]+) bits a character; counts of pairs give ([\d.]+)", printed).groups()
    assert float(bits) < float(pairs)
    assert "matched by number of parameters" in printed
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_readme_code_on_the_first_screen_is_fifteen_lines():
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 15


def test_readme_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    commands = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    for command in filter(None, commands):
        tool, *rest = command.split()
        if tool == "make":
            assert re.search(rf"^{rest[0]}:", makefile, re.MULTILINE), command
        else:
            assert command.startswith("pip install -e "), command
            for extra in re.findall(r"\[(\w+)\]", command):
                assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name", write_tables.TABLES)
def test_tables_are_the_committed_results(name):
    page = (ROOT / write_tables.TABLES[name][0]).read_text()
    assert f"<!-- table: {name} -->{write_tables.between_markers(name)}<!-- end of table -->" in page


def test_what_to_cite_is_this_version():
    for text in (README, (ROOT / "CITATION.cff").read_text()):
        assert re.search(r"^ *version *[:=] *{?([\d.]+)", text, re.MULTILINE)[1] == lstmjax.__version__


def test_committed_results_are_of_whole_runs():
    assert json.loads((ROOT / "benchmarks/results/gradient_norms.json").read_text())["settings"]["complete"]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert target.startswith("http") or (path.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_run(path):
    notebook = nbformat.read(path, as_version=4)
    shown = pictures(notebook)
    assert shown, "a reader on a code host sees the outputs that are kept"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert pictures(notebook) == shown


def pictures(notebook):
    """How many outputs of a notebook are pictures."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return sum("image/png" in o.get("data", {}) for o in outputs)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda p: p.stem)
def test_notebooks_and_their_scripts_are_the_same(path):
    import jupytext

    script = jupytext.read(path)
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert [(c.cell_type, c.source) for c in script.cells] == [(c.cell_type, c.source) for c in notebook.cells]
