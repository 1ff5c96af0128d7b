"""One landscape: sizes of the classes, dimension, distortion and weight, with its closed forms."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.interpret import subspaces
from crate_jax.ops import rate_landscape as forms
from crate_jax.ops import regularised_rate as rates

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Problem:
    """``max F(Z)`` over ``Z: (N, d)``, rows in the order of their classes.

    Symbols as in ``ops.rate_landscape``. ``lmbda`` is below every ``class_lambda_max``.

    Attributes:
      sizes: rows of every class.
      d: dimension.
      eps_sq: distortion squared.
      lmbda: weight of ``||Z||_F^2 / 2``.
    """

    sizes: tuple[int, ...]
    d: int
    eps_sq: float
    lmbda: float

    @property
    def N(self) -> int:
        """Rows of all classes."""
        return sum(self.sizes)

    @property
    def K(self) -> int:
        """Number of classes."""
        return len(self.sizes)

    @property
    def alpha(self) -> float:
        """``d/(N eps^2)``; ``1/alpha`` is a safe step of gradient ascent."""
        return self.d / (self.N * self.eps_sq)

    @property
    def labels(self) -> np.ndarray:
        """``(N,)`` class of every row."""
        return np.repeat(np.arange(self.K), self.sizes)

    @property
    def weights(self) -> dict[str, float]:
        """``eps_sq`` and ``lmbda``, as the closed forms take them."""
        return {"eps_sq": self.eps_sq, "lmbda": self.lmbda}

    @functools.cached_property
    def sigmas(self) -> list[tuple[float, float]]:
        """``(sigma_k, sigma_{k,-})`` of every class."""
        squares = (forms.stationary_squares(n, self.N, self.d, **self.weights) for n in self.sizes)
        return [(math.sqrt(plus), math.sqrt(minus)) for plus, minus in squares]

    @functools.cached_property
    def best_ranks(self) -> tuple[int, ...]:
        """Ranks of a global maximiser."""
        return forms.greedy_ranks(self.sizes, self.d, **self.weights)

    @functools.cached_property
    def optimum(self) -> float:
        """``F*``, nats."""
        return self.value_of(self.best_ranks)

    def value_of(self, ranks) -> float:
        """F at a local maximiser with these ranks, nats."""
        return forms.value_of_ranks(tuple(ranks), self.sizes, self.d, **self.weights)

    def value(self, Z: Array) -> Array:
        """``F(Z)``, ``(..., N, d)`` to ``(...)``."""
        return rates.regularised_rate_reduction(Z, self.sizes, **self.weights)

    def value_and_gradient(self, Z: Array) -> tuple[Array, Array]:
        """``F(Z)`` and its closed-form gradient."""
        return rates.value_and_gradient(Z, self.sizes, **self.weights)

    def gradient(self, Z: Array) -> Array:
        """The closed-form gradient, as ``Z``."""
        return self.value_and_gradient(Z)[1]

    def product(self, Z: Array, V: Array) -> Array:
        """Hessian of F at ``Z`` times ``V``, both ``(N, d)``."""
        return rates.hessian_product(Z, V, self.sizes, **self.weights)

    def hessian(self, Z: Array) -> Array:
        """Hessian of F at ``Z``, ``(N d, N d)``."""
        columns = jnp.eye(Z.size, dtype=Z.dtype).reshape(-1, *Z.shape)
        return jax.vmap(lambda V: self.product(Z, V))(columns).reshape(Z.size, Z.size)

    def spectra(self, Z) -> list[np.ndarray]:
        """Singular values of every class, descending."""
        return subspaces.class_spectra(Z, self.labels, self.K)

    def ranks_of(self, spectra: list[np.ndarray]) -> tuple[int, ...]:
        """Number of singular values of every class above a hundredth of ``sigma_k``."""
        return tuple(
            subspaces.numerical_rank(s, largest=sigma)
            for s, (sigma, _) in zip(spectra, self.sigmas, strict=True)
        )
