"""The site builds without a warning, and its reference has every public name."""

import importlib
import pkgutil
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import lstmjax

ROOT = Path(__file__).parent.parent
# What these hold is public as lstmjax exports it, or not at all; of nn, its two modules are.
INTERNAL = {"cells", "fused", "nn", "scan", "stack", "unroll"}


def public_names():
    below = {module.name for module in pkgutil.iter_modules(lstmjax.__path__)} - INTERNAL | {"nn.linen", "nn.nnx"}
    for module in [lstmjax, *(importlib.import_module(f"lstmjax.{name}") for name in below)]:
        defined = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        listed = getattr(module, "__all__", [n for n in defined if not n.startswith("_")])
        yield from (module.__name__, *(f"{module.__name__}.{name}" for name in listed))


@pytest.mark.slow
def test_site_has_every_public_name(tmp_path):
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
