import hypothesis
import jax
import pytest

# Each example compiles, so few of them, and always the same ones: a red test must be red again on the next run.
hypothesis.settings.register_profile("compiles", max_examples=12, deadline=None, derandomize=True)
hypothesis.settings.load_profile("compiles")

# No dtype is ever widened by accident.
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
