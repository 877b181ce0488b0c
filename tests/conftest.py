import os

# The tests compile thousands of small programs and run each once: a third of their time is the compiler's optimiser.
# XLA_FLAGS= make test compiles as users do; CI does so on the newest JAX.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import hypothesis
import jax
import pytest

# Each example compiles, so few of them, and always the same ones: a red test must be red again on the next run.
hypothesis.settings.register_profile("compiles", max_examples=10, deadline=None, derandomize=True)
hypothesis.settings.load_profile("compiles")

# No dtype is ever widened by accident.
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _programs_of_one_module():
    """Lets go of a module's compiled programs behind it: of a thousand tests' they are gigabytes."""
    yield
    jax.clear_caches()
