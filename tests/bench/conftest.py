"""Benches in tests: what they say counts, and not how long they take."""

import jax
import pytest


@pytest.fixture(scope="module")
def compiled_in_haste():
    """Nothing here is timed for its own sake."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
