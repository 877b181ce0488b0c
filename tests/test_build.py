"""How the kernels for CPU are built: what is said where they are not; the sanitisers over them."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import hatch_build
from lstmjax.recurrence import native

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that the build writes to and the library is looked for in, with nothing there yet."""
    for name in ("LIBRARY", "WHY_NOT"):
        monkeypatch.setattr(hatch_build, name, tmp_path / getattr(hatch_build, name).name)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    return tmp_path


def why_not():
    return native.why_not.__wrapped__()


def test_without_a_compiler(folder, monkeypatch):
    monkeypatch.setenv("CXX", "")
    assert hatch_build.build() is not None
    assert why_not() == (
        "the kernels for CPU were not built: no C++ compiler was found: wanted $CXX, c++, g++ or clang++"
    )


def test_a_build_that_fails_says_what_the_compiler_said(folder, monkeypatch):
    compiler = folder / "cxx"
    compiler.write_text("#!/bin/sh\necho 'error: no such processor' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert hatch_build.build() is not None
    assert "error: no such processor" in why_not()
    assert "no C++ compiler" not in why_not()


def test_a_compiler_that_cannot_be_started(folder, monkeypatch):
    compiler = folder / "cxx"
    compiler.write_bytes(b"\0")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert "Exec format error" in hatch_build.build()


def test_where_nothing_was_built_nothing_more_is_said(folder):
    assert why_not() == "the kernels for CPU were not built"


@pytest.mark.parametrize(
    ("platform", "targets", "tag"),
    [
        ("manylinux_2_17_x86_64", {"base", "avx2", "avx512"}, "py3-none-manylinux_2_17_x86_64"),
        ("macosx-11.0-arm64", {"base"}, "py3-none-macosx_11_0_arm64"),
    ],
)
def test_a_wheel_for_another_machine(tmp_path, monkeypatch, platform, targets, tag):
    compiler = tmp_path / "cxx"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; : > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("LSTMJAX_PLATFORM", platform)
    spec = importlib.util.spec_from_file_location("build_for_another", hatch_build.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(module.TARGETS) == targets
    for name, path in (("__file__", "hatch_build.py"), ("LIBRARY", "kernels.so"), ("WHY_NOT", "why_not.txt")):
        monkeypatch.setattr(module, name, tmp_path / path)

    class Hook(module.CustomBuildHook):
        target_name = "wheel"

        def __init__(self):
            """Without what hatchling hands over."""

    data = {"artifacts": []}
    Hook().initialize("standard", data)
    assert data == {"artifacts": ["kernels.so"], "pure_python": False, "tag": tag}


@pytest.mark.slow
def test_no_kernel_leaves_its_arrays(tmp_path):
    compiler = hatch_build.compiler()
    if compiler is None or sys.platform != "linux":
        pytest.skip("wanted a C++ compiler on Linux")
    program, source = tmp_path / "sanitised", ROOT / "tests" / "native_sanitised.cc"
    flags = "-std=c++17 -g1 -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-psabi"
    defined = ["-DLSTMJAX_TARGET=base", "-DLSTMJAX_BYTES=16", f"-I{hatch_build.FOLDER}"]
    built = subprocess.run(
        [*compiler, *flags.split(), *defined, str(source), "-o", str(program)], capture_output=True, text=True
    )
    if "cannot find" in built.stderr:
        pytest.skip("this compiler has no sanitisers")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith(" runs\n")
