"""A step whose loss or gradient is not finite changes nothing but the counters."""

import jax
import jax.numpy as jnp
from jax import Array


def guarded(old, new, ok: Array):
    """``new`` where ``ok``, else ``old`` with its step advanced and one more bad step counted.

    Args:
      old, new: states of the same structure, dataclasses with ``step``, ``bad_steps`` (in a row
        up to here) and ``bad_total``. ``new.step`` is taken either way: data and randomness move
        on.
      ok: scalar boolean.
    """
    kept = jax.tree.map(lambda a, b: jnp.where(ok, b, a), old, new)
    return kept.replace(
        step=new.step,
        bad_steps=jnp.where(ok, 0, old.bad_steps + 1),
        bad_total=old.bad_total + ~ok,
    )
