import importlib.metadata
import os

# The tests compile hundreds of programs and run each once, so the compiler's optimiser is left out, and of its ways to
# write machine code the quickest is taken: a third of the time. XLA_FLAGS= make test compiles as users do; CI does so
# on the newest JAX. XLA ends the process at a flag it does not know, so the two that may go are for these versions.
_QUICK = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _QUICK += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", _QUICK)

import hypothesis
import jax
import pytest

# Each example compiles, so few of them, and always the same ones: a red test must be red again on the next run.
hypothesis.settings.register_profile("compiles", max_examples=10, deadline=None, derandomize=True)
hypothesis.settings.load_profile("compiles")

# Of further devices only where arrays lie is asked: tests/test_placement.py, tests/test_split.py.
jax.config.update("jax_num_cpu_devices", 8)

# No dtype is ever widened by accident.
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Examples of docstrings compile a great deal, and the tests say the same more strictly: they are slow tests."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker("slow")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_module():
    """Lets go of a module's compiled programs behind it: of a thousand tests' they are gigabytes."""
    yield
    jax.clear_caches()
