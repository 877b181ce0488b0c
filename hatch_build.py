"""Builds the kernels for CPU where there is a C++ compiler; where there is none the library goes without them.

``python hatch_build.py`` builds them in place, in an environment that holds jaxlib.
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    BuildHookInterface = object

FOLDER = Path(__file__).parent / "lstmjax" / "recurrence" / "native"
LIBRARY = FOLDER / "kernels.so"  # the name ctypes loads it by, on every system
WHY_NOT = FOLDER / "why_not.txt"  # what stands in its place where it could not be built

FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
X86 = {
    "base": (16, []),
    "avx2": (32, ["-mavx2", "-mfma"]),
    "avx512": (64, ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mfma"]),
}
PLATFORM = os.environ.get("LSTMJAX_PLATFORM") or sysconfig.get_platform()
"""What it is built for, in the words of a wheel's name: this machine, or what $CXX compiles for, as in .ci/wheels."""

# A Python for two kinds of Mac names both, and compiles for the one it runs on.
_MACHINE = (os.environ.get("LSTMJAX_PLATFORM") or platform.machine()).lower()
TARGETS = X86 if _MACHINE.endswith(("x86_64", "amd64")) else {"base": (16, [])}
"""Of each instruction set the bytes of a vector, and what makes a compiler use it."""


def compiler() -> list[str] | None:
    """The command of a C++ compiler, or None; ``CXX=`` that names none asks to go without."""
    given = os.environ.get("CXX")
    for command in ("c++", "g++", "clang++") if given is None else (given,):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    return None


def headers() -> str | None:
    """The folder of XLA's headers, found without an import of JAX, or None."""
    spec = importlib.util.find_spec("jaxlib")
    folder = Path(spec.origin).parent / "include" if spec is not None and spec.origin else None
    return str(folder) if folder is not None and (folder / "xla" / "ffi" / "api" / "ffi.h").exists() else None


def build() -> str | None:
    """Builds the library in place, or leaves a file that says why not; returns what it says, or None."""
    LIBRARY.unlink(missing_ok=True)
    WHY_NOT.unlink(missing_ok=True)
    why_not = _built()
    if why_not is not None:
        WHY_NOT.write_text(why_not)
    return why_not


def _built() -> str | None:
    command, include = compiler(), headers()
    if command is None:
        return "no C++ compiler was found: wanted $CXX, c++, g++ or clang++"
    if include is None:
        return "jaxlib's headers were not found"
    with tempfile.TemporaryDirectory() as folder:
        jobs = {
            name: [*command, *FLAGS, "-O3", *flags, f"-DLSTMJAX_TARGET={name}", f"-DLSTMJAX_BYTES={size}",
                   "-Wno-psabi", "-c", str(FOLDER / "cells.cc")]
            for name, (size, flags) in TARGETS.items()
        }  # fmt: skip
        jobs["ffi"] = [*command, *FLAGS, "-O2", "-isystem", include, "-c", str(FOLDER / "ffi.cc")]
        objects = {name: str(Path(folder) / f"{name}.o") for name in jobs}
        link = [*command, "-shared", "-pthread", *objects.values(), "-o", str(Path(folder) / "kernels.so")]
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda name: _run([*jobs[name], "-o", objects[name]]), jobs))
            _run(link)
        except (RuntimeError, OSError) as error:
            return str(error)
        shutil.move(Path(folder) / "kernels.so", LIBRARY)
    return None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")


class CustomBuildHook(BuildHookInterface):
    """Puts the library into wheels, which then are of one platform, and beside the sources of an editable install."""

    def dependencies(self) -> list[str]:
        """The headers to build against: the oldest JAX's, whose library newer ones load too.

        That JAX has no wheel for Python 3.15 and newer, which take what there is.
        """
        if self.target_name != "wheel" or not compiler():
            return []
        return ["jaxlib>=0.10,<0.11; python_version < '3.15'", "jaxlib>=0.10; python_version >= '3.15'"]

    def initialize(self, version: str, build_data: dict) -> None:
        """Builds it, before the wheel is put together."""
        if self.target_name != "wheel":
            return
        why_not = build()
        made = LIBRARY if why_not is None else WHY_NOT
        build_data["artifacts"].append(str(made.relative_to(Path(__file__).parent)))
        if why_not is not None:
            self.app.display_warning(f"lstmjax is built without its kernels for CPU: {why_not}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + PLATFORM.replace("-", "_").replace(".", "_")


if __name__ == "__main__":
    sys.exit(build())
