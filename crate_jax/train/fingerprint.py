"""Fingerprints of arrays: whether what is read is what was written, on whatever mesh.

The fingerprint of a leaf is ``sum_i (2 i + 1) b_i  mod 2^32`` over its elements in row-major order,
``b_i`` their bits as unsigned words. An odd factor has an inverse modulo a power of two, so a
change of any one element changes the sum, wherever it is; the place of an element counts, so that
rows that change places are found too. A sum modulo ``2^32`` does not depend on its order, and so
not on how the leaf is split.
"""

import functools
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding

from crate_jax.sharding import place
from crate_jax.sharding.rules import named_leaves

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprints(tree: Any) -> dict[str, int]:
    """``{path: fingerprint}`` of the arrays of a pytree, the path as ``a/b/c``."""
    # One after the other: many small collectives in flight can starve each other of threads where
    # one CPU plays several devices.
    return {name: int(jax.device_get(_of_leaf(leaf))) for name, leaf in named_leaves(tree).items()}


def differing(tree: Any, saved: Mapping[str, int]) -> list[str]:
    """The paths of a pytree whose leaves are not those that were ``saved``."""
    return [path for path, total in fingerprints(tree).items() if saved.get(path) != total]


def of_json(value: Any) -> int:
    """The checksum of what is saved as JSON, the same before and after."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _of_leaf(x) -> Array:
    sharding = getattr(x, "sharding", None)
    whole = place.replicated(sharding.mesh) if isinstance(sharding, NamedSharding) else None
    return _compiled(whole)(x)


@functools.cache
def _compiled(out_sharding: NamedSharding | None):
    """Compiled once for all leaves of a shape and a layout."""
    return jax.jit(weighted_sum, out_shardings=out_sharding)


def weighted_sum(x: Array) -> Array:
    """The fingerprint of one array, uint32 ``()``."""
    x = jnp.asarray(x)
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(x, _WORDS[min(x.dtype.itemsize, 4)]).astype(jnp.uint32)
    index = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):  # row-major places, modulo 2^32
        stride = jnp.uint32(math.prod(words.shape[axis + 1 :]) % 2**32)
        index += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * stride
    return jnp.sum((2 * index + 1) * words, dtype=jnp.uint32)
