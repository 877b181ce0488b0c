"""The site builds without a warning, its reference has every public name, and its links lead somewhere."""

import doctest
import importlib.util
import pkgutil
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import lstmjax

ROOT = Path(__file__).parent.parent
# What these hold is public as lstmjax exports it, or not at all; of nn, its two modules are.
INTERNAL = {"cells", "checks", "files", "functions", "nn", "recurrence", "stack", "unroll"} | {
    "numerals",
    "progress",
    "__main__",
}


def public_names():
    below = {module.name for module in pkgutil.iter_modules(lstmjax.__path__)} - INTERNAL | {"nn.linen", "nn.nnx"}
    for module in [lstmjax, *(importlib.import_module(f"lstmjax.{name}") for name in below)]:
        defined = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        listed = getattr(module, "__all__", [n for n in defined if not n.startswith("_")])
        yield from (module.__name__, *(f"{module.__name__}.{name}" for name in listed))


class Page(HTMLParser):
    """What a page links to, and what on it can be linked to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = [], {""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name == "id":
                self.anchors.add(value)


def broken_links(site):
    """Every link within a site to a file or an anchor that is not there."""
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in page.links:
            to = urlsplit(link)
            target = (path.parent / unquote(to.path)).resolve() if to.path else path
            inside = not (to.scheme or to.netloc)
            if inside and not (
                target.exists() and (target not in pages or unquote(to.fragment) in pages[target].anchors)
            ):
                yield f"{path.relative_to(site)}: {link}"


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="x"><a href="b%20c.html#y">1</a> <a href="#z">2</a> <a href="http://d">3</a>'
    )
    (tmp_path / "b c.html").write_text('<a id="y" href="a.html#x">1</a> <img src="none.png">')
    assert sorted(broken_links(tmp_path)) == ["a.html: #z", "b c.html: none.png"]


def formulas():
    """The extension of the site that typesets formulas; it is in no package."""
    spec = importlib.util.spec_from_file_location("formulas", ROOT / "docs/formulas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_formulas_are_typeset():
    pytest.importorskip("sphinx")
    extension = formulas()
    assert doctest.testmod(extension) == (0, 3)

    read = extension.display(lstmjax.lstm_1997.__doc__.split("::\n\n")[1].split("\n\n")[0])
    assert read.splitlines()[1] == r"g &= 4 σ(x W_{xg} + h W_{hg} + b_{g}) − 2 && " + (
        r"\text{candidate, between −2 and 2: 2 tanh(·/2)} \\"
    )
    assert extension.latex("MC_k = Σ_j |φ_j(k)|²") == r"\operatorname{MC}_{k} = \sum _{j} |φ_{j}(k)|^{2}"


@pytest.mark.slow
def test_site_is_whole(tmp_path):
    site = tmp_path / "site"
    build = [sys.executable, "-m", "sphinx", "-q", "--fail-on-warning", "--keep-going", "--conf-dir", "docs", ".", site]
    ran = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr

    # Four lines of header, then a line for each entry, compressed.
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    entries = set(re.findall(r"^(\S+) py:", inventory, re.MULTILINE))
    missing = set(public_names()) - entries
    assert not missing

    # What Sphinx writes where it has nothing better: fields of named tuples, values by their address.
    for page in [*site.glob("docs/api/*.html"), site / "docs/internals.html"]:
        assert not re.search(r"Alias for field|&lt;function|0x[0-9a-f]{6}", page.read_text()), page.name
        assert not re.search("<pre>[^<]*∘", page.read_text()), f"{page.name}: a formula that is not typeset"

    assert not list(broken_links(site))
