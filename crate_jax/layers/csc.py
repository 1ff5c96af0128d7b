"""Convolutional sparse coding as a layer, and a dictionary as a decoder's stage (CSC-CTRL)."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from crate_jax.layers.initializers import kaiming_uniform
from crate_jax.ops import convolutional_sparse_coding as csc

COLLECTION = "csc"
"""The collection of every layer's step and power vector: state that no gradient reaches."""


def _unit_kaiming(key, shape, dtype):
    return csc.unit_atoms(kaiming_uniform(key, shape, dtype))


class CSC(nn.Module):
    """Codes of an image in a convolutional dictionary, by unrolled FISTA; see :func:`csc.fista`.

    Atoms have unit norm: whoever trains them projects after each update (``csc.unit_atoms``), where
    the released layer normalises them in place in its forward pass. The step ``eta`` and the vector
    of its power iteration are variables of the collection ``csc``, which
    ``models.dcgan`` renews after each update. Only ``lmbda eta`` enters the threshold, so
    another ``lmbda`` on the same variables is all that a sweep at test time takes.

    Attributes:
      atoms: M.
      kernel, stride, padding: geometry.
      steps, lmbda, mu, non_negative, squared, gradient_at: see :func:`csc.fista`.
      adaptive_lmbda: multiplies ``lmbda`` by the entries of an image over those of its code.
    """

    atoms: int
    kernel: int
    stride: int = 1
    padding: int = 0
    steps: int = 2
    lmbda: float = 0.1
    mu: float = 0.0
    non_negative: bool = True
    squared: bool = True
    gradient_at: str = "code"
    adaptive_lmbda: bool = False
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BHWC: Array) -> Array:
        """Codes ``(B, H', W', M)``; sows ``fidelity``, ``||x - A z||^2`` of each image."""
        shape = (self.kernel, self.kernel, x_BHWC.shape[-1], self.atoms)
        geometry = {"stride": self.stride, "padding": self.padding}
        sides = [csc.code_side(side, self.kernel, **geometry) for side in x_BHWC.shape[1:3]]
        w = self.param("atoms", _unit_kaiming, shape, self.param_dtype)
        eta = self.variable(
            COLLECTION, "step_size", lambda: jnp.asarray(csc.INITIAL_STEP, self.param_dtype)
        )
        self.variable(
            COLLECTION, "vector",
            lambda: nn.initializers.normal(1.0)(
                self.make_rng("params"), (1, *sides, self.atoms), self.param_dtype
            ),
        )  # fmt: skip
        x, w = nn.dtypes.promote_dtype(x_BHWC, w, dtype=self.dtype)
        ratio = x[0].size / (sides[0] * sides[1] * self.atoms) if self.adaptive_lmbda else 1.0
        lmbda = self.lmbda * ratio
        z = csc.fista(
            x, w, eta=eta.value.astype(x.dtype), lmbda=lmbda, mu=self.mu, steps=self.steps,
            non_negative=self.non_negative, squared=self.squared, gradient_at=self.gradient_at,
            **geometry,
        )  # fmt: skip
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            fidelity, _ = csc.energies(x, z, w, lmbda=lmbda, mu=self.mu, **geometry)
            self.sow("intermediates", "fidelity", fidelity)
        return z


class Synthesis(nn.Module):
    """``x = A z``: a transposed convolution with a dictionary of its own, or with one it is given.

    Attributes:
      channels: C of the image.
      side: H = W of the image.
      kernel, stride, padding: of the convolution whose adjoint it is.
      init: of an own dictionary, ``(k, k, C, M)``.
    """

    channels: int
    side: int
    kernel: int
    stride: int = 1
    padding: int = 0
    init: nn.initializers.Initializer = nn.initializers.normal(0.02)
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, z_BHWM: Array, w: Array | None = None) -> Array:
        if w is None:
            shape = (self.kernel, self.kernel, self.channels, z_BHWM.shape[-1])
            w = self.param("atoms", self.init, shape, self.param_dtype)
        z, w = nn.dtypes.promote_dtype(z_BHWM, w, dtype=self.dtype)
        side = (self.side, self.side)
        return csc.synthesise(z, w, side=side, stride=self.stride, padding=self.padding)
