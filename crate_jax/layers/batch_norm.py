"""Batch normalisation with torch's conventions, over the global batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from crate_jax.sharding.place import pin_batch


class BatchNorm(nn.Module):
    """``(x - mean) / sqrt(var + eps) * scale + bias``, a channel at a time.

    In training, mean and variance are those of the batch, of all devices together: under jit they
    are plain means over a sharded axis. The running ones, collection ``batch_stats``, move as
    torch's do,

        mean <- (1 - momentum) mean + momentum batch_mean
        var  <- (1 - momentum) var + momentum n/(n-1) batch_var

    with the unbiased variance, which linen's own module does not take; they stand in for the
    batch's where ``train`` is off. Statistics are float32 or better whatever the dtype.

    Attributes:
      momentum: weight of the newest batch.
      eps: added to the variance.
      scale_init: of ``scale``; ``bias`` starts at 0.
      dtype: of the output; None is the input's and parameters' common one.
      param_dtype: of fresh parameters.
    """

    momentum: float = 0.1
    eps: float = 1e-5
    scale_init: Callable = nn.initializers.ones
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """The output for ``x: (B, ..., C)``."""
        C = x.shape[-1]
        scale = self.param("scale", self.scale_init, (C,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (C,), self.param_dtype)
        stats_dtype = jnp.promote_types(self.param_dtype, jnp.float32)
        running = {
            "mean": self.variable("batch_stats", "mean", jnp.zeros, (C,), stats_dtype),
            "var": self.variable("batch_stats", "var", jnp.ones, (C,), stats_dtype),
        }
        dtype = self.dtype or jnp.result_type(x, scale)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = jnp.mean(x, axes)
            var = jnp.mean(jnp.square(x - _like(x, mean)), axes)
            if self.is_mutable_collection("batch_stats") and not self.is_initializing():
                n = x.size // C
                seen = {"mean": mean, "var": var * (n / max(n - 1, 1))}
                for name, stat in running.items():
                    old, new = stat.value, jax.lax.stop_gradient(seen[name])
                    stat.value = old + self.momentum * (new.astype(old.dtype) - old)
        else:
            mean, var = running["mean"].value, running["var"].value
        factor = jax.lax.rsqrt(var + self.eps) * scale
        out = (x - _like(x, mean)) * _like(x, factor) + _like(x, bias)
        return pin_batch(out.astype(dtype))


def _like(x: Array, channels: Array) -> Array:
    """``(C,)`` with as many axes as ``x``."""
    return channels.reshape((1,) * (x.ndim - 1) + channels.shape)
