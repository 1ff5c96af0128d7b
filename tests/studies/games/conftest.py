"""Nothing in the tests of the games runs long, so that it is compiled in haste."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def compiled_in_haste():
    """Compiling is most of what they do."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
