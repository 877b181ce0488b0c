"""The physical limit of a processor: the rate of its multiply-adds in registers, all cores at once."""

import ctypes
import functools
import os
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hatch_build import compiler

ROUNDS, PIECES = 200_000, 16
"""Of a piece, half a millisecond or so, and pieces a core. Threads take them one by one, so that a core that is wanted
elsewhere for a while does not hold up the run, and waking the threads is little next to it."""


@functools.cache
def multiply_adds() -> tuple[Callable[[], None], float] | None:
    """A run of nothing but multiply-adds in float32, and how many floating-point operations it is of.

    The processor's rate is that number over the time of the run. None without a C++ compiler.
    """
    command = compiler()
    if command is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "peak.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        subprocess.run([*command, *flags, str(Path(__file__).with_suffix(".cc")), "-o", str(file)], check=True)
        library = ctypes.CDLL(str(file))
    library.operations_a_round.restype = ctypes.c_double
    library.multiply_add.argtypes = ctypes.c_long, ctypes.c_float
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores)  # a call through ctypes lets go of the interpreter, and a waiting thread sleeps

    def run() -> None:
        list(pool.map(lambda _: library.multiply_add(ROUNDS, 0.5), range(cores * PIECES)))

    return run, cores * PIECES * ROUNDS * library.operations_a_round()
