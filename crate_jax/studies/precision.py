"""Where a study computes in float64: on the CPU, whatever else there is."""

import contextlib

import jax

from crate_jax.config import ConfigError


@contextlib.contextmanager
def float64_on_cpu(study: str):
    """Float64 on the CPU for as long as the context lasts.

    Args:
      study: its name, for the error.

    Raises:
      ConfigError: where JAX was told to leave the CPU out.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        raise ConfigError(
            f"the {study} study computes in float64 on the CPU, which JAX_PLATFORMS leaves out; "
            f"add cpu to it."
        ) from None
    with jax.default_device(cpu), jax.enable_x64(True):
        yield
