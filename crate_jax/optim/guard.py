"""A step whose loss or gradient is not finite changes nothing but the counters."""

import jax
import jax.numpy as jnp
from jax import Array


def guarded(old, new, ok: Array):
    """``new`` where ``ok``, else ``old`` with its step advanced and one more bad step.

    Args:
      old, new: states of the same structure, dataclasses with ``step`` and ``bad_steps`` (the
        consecutive bad steps so far). ``new.step`` is taken either way: data and randomness move
        on.
      ok: scalar boolean.
    """
    kept = jax.tree.map(lambda a, b: jnp.where(ok, b, a), old, new)
    return kept.replace(step=new.step, bad_steps=jnp.where(ok, 0, old.bad_steps + 1))
