"""The README, the pages of the site and the notebooks run, and say what the repository holds."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import jax
import nbclient
import nbformat
import numpy as np
import pytest

import lstmjax
from benchmarks import write_tables
from lstmjax import program
from lstmjax.convert import save_safetensors
from lstmjax.tasks import english_text

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language, page="README.md"):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


# What the code of a page prints; losses are below 0.1.
PRINTED = {
    "README.md": [r"the gradient halves every [\d.]+ steps"],
    "docs/gradients.md": [
        r"matched by number of parameters",
        r"truncated BPTT keeps 99 % of the gradient from \d+ steps on$",
        r"the shares of 38 letters sum to",
        r"unstable, 1/e in -5\.48 steps, a turn in 9\.76$",  # −1/ln 1.2 and 2π/atan(3/4)
        r"memory capacity [\d.]+ ± 0\.\d+ of at most 8$",
    ],
    "docs/training.md": [
        r"loss 0\.0\d+$",
        r"loss of the loan sentences 0\.0\d+$",
        r"squared error on rows held out 0\.0\d+$",
        r"[\d.]+ bits a character",
    ],
    "docs/unit.md": [r"long-term 2\.9476, short-term 0\.9862$"],
}


def run(codes, page):
    """As a reader runs it: one session, from top to bottom, without the strictness of the tests."""
    namespace = {}
    with jax.numpy_dtype_promotion("standard"):
        for code in codes:
            exec(compile(code, page, "exec"), namespace)


@pytest.fixture
def a_readers_folder(tmp_path, monkeypatch):
    """Where figures are saved, with a reader's own data in it."""
    monkeypatch.chdir(tmp_path)
    time = np.arange(2000)
    noisy = np.sin(time / 9) + 0.1 * np.random.default_rng(0).normal(size=2000)
    columns = np.stack([noisy, np.cos(time / 9)], axis=1)
    np.savetxt("series.csv", columns, delimiter=",", header="sine,cosine", comments="")
    Path("text.txt").write_text(english_text()[:40_000])
    return tmp_path


def test_readme_code_on_the_first_screen_runs(capsys):
    code = blocks("python")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    run([code], "README.md")
    assert re.search(PRINTED["README.md"][0], capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks("python", page)])
def test_code_of_a_page_runs(page, capsys, a_readers_folder):
    run(blocks("python", page), page)
    printed = capsys.readouterr().out
    for line in PRINTED.get(page, []):
        assert re.search(rf"^{line}", printed, re.MULTILINE), line
    if found := re.search(r"([\d.]+) bits a character; counts of pairs give ([\d.]+)", printed):
        assert float(found[1]) < float(found[2])
    if page == "docs/gradients.md":
        assert (a_readers_folder / "report.png").stat().st_size > 10_000


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 160
    assert max(map(len, lines)) <= 121


def commands():
    """Every line of a page's shell blocks, without its comment."""
    lines = [line.split("#")[0].strip() for p in PAGES for block in blocks("sh", p) for line in block.splitlines()]
    return list(dict.fromkeys(filter(None, lines)))


def test_commands_of_the_pages_exist():
    makefile = (ROOT / "Makefile").read_text()
    for command in commands():
        tool, *rest = command.split()
        if tool == "make":
            assert re.search(rf"^{rest[0]}:", makefile, re.MULTILINE), command
        else:
            assert command.startswith(("pip install -e ", "pip install 'lstmjax[plots]'", "lstmjax ")), command


CELL_FILE = """
import lstmjax

def make_cell(hidden_size):
    return lstmjax.lstm(hidden_size, forget_bias=3.0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("lstmjax ")])
def test_commands_of_the_program_run(command, a_readers_folder):
    (a_readers_folder / "my_cell.py").write_text(CELL_FILE)
    save_safetensors((lstmjax.lstm(4).init(jax.random.key(0), 2),), "weights.safetensors")
    _, name, *options = shlex.split(command)
    # The same run, smaller.
    smaller = {"gradients": ["--lengths", "5", "10"], "compare": ["--length", "10", "--train-steps", "2"]}
    if name in smaller:
        options += [*smaller[name], "--seeds", "1", "--windows", "2", "--hidden-size", "4", "--no-progress"]
    with jax.numpy_dtype_promotion("standard"):
        program.main([name, *options])


def test_readme_installs_every_extra():
    listed = re.findall(r"^pip install -e '.\[(\w+)\]'", "".join(blocks("sh")), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(listed) == sorted(project["optional-dependencies"])


@pytest.mark.parametrize("name", write_tables.TABLES)
def test_tables_are_the_committed_results(name):
    page = (ROOT / write_tables.TABLES[name][0]).read_text()
    assert f"<!-- table: {name} -->{write_tables.between_markers(name)}<!-- end of table -->" in page


def test_what_to_cite_is_this_version():
    cited = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: ([\d.]+)$", cited, re.MULTILINE)[1] == lstmjax.__version__


def test_committed_results_are_of_whole_runs():
    assert json.loads((ROOT / "benchmarks/results/gradient_norms.json").read_text())["settings"]["complete"]


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "benchmarks/README.md"])
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
