"""Sparse coding as a layer: CRATE's square ISTA step and CRATE-alpha's overcomplete one."""

from flax import linen as nn
from jax import Array

from crate_jax.layers.initializers import kaiming_uniform
from crate_jax.ops.products import product
from crate_jax.ops.sparse import PROX, ista_step


class ISTA(nn.Module):
    """Proximal gradient steps on a non-negative LASSO, warm-started at the token itself.

        min_{a >= 0}  1/2 ||y - D a||^2 + lambda ||a||_1
        a_0 = y,   a_{t+1} = prox(a_t + eta D^T (y - D a_t), eta lambda)

    with ``prox(v, t) = relu(v - t)``, once in every released model. For a row, ``D a`` is
    ``a @ D.T``, so D is laid out as the released ``weight``.

    Attributes:
      eta, lmbda: step and sparsity; constants, not parameters.
      prox: ``relu``, or ``soft`` for the signed code of the journal's figure.
      steps: number of proximal steps.
    """

    eta: float = 0.1
    lmbda: float = 0.1
    prox: str = "relu"
    steps: int = 1
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, y_BND: Array, D: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Codes of the tokens. ``D`` is a dictionary that layers share; None makes an own one."""
        width = y_BND.shape[-1]
        if D is None:
            D = self.param("D", kaiming_uniform, (width, width), self.param_dtype)
        y_BND, D = nn.dtypes.promote_dtype(y_BND, D, dtype=self.dtype)
        a_BND = y_BND
        for _ in range(self.steps):
            a_BND = ista_step(a_BND, y_BND, D, eta=self.eta, lmbda=self.lmbda, prox=self.prox)
        return a_BND, {"codes": a_BND}


class OvercompleteISTA(nn.Module):
    """CRATE-alpha's overcomplete dictionary layer (ODL), from zero codes.

        a_1 = relu(eta D^T y - eta lambda)
        a_2 = relu(a_1 - eta D^T (D a_1 - y) - eta lambda)
        out = D_1 a_2     (decoupled)    or    D a_2

    Only the decoder is decoupled; both proximal steps use D. Both are ``(d, C d)`` as stored.

    Attributes:
      expansion: C, atoms a channel.
      decoupled: decode with an own dictionary D1.
      eta, lmbda, prox, steps: as in :class:`ISTA`.
    """

    expansion: int = 4
    decoupled: bool = True
    eta: float = 0.1
    lmbda: float = 0.1
    prox: str = "relu"
    steps: int = 2
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, y_BND: Array) -> tuple[Array, dict[str, Array]]:
        """Returns the decoded tokens, and the first and last codes, ``(B, N, C d)``."""
        shape = (y_BND.shape[-1], self.expansion * y_BND.shape[-1])
        D = self.param("D", kaiming_uniform, shape, self.param_dtype)
        D1 = self.param("D1", kaiming_uniform, shape, self.param_dtype) if self.decoupled else D
        y_BND, D, D1 = nn.dtypes.promote_dtype(y_BND, D, D1, dtype=self.dtype)

        first = a = PROX[self.prox](self.eta * product(y_BND, D), self.eta * self.lmbda)
        for _ in range(self.steps - 1):
            a = ista_step(a, y_BND, D, eta=self.eta, lmbda=self.lmbda, prox=self.prox)
        return product(a, D1.T), {"codes": a, "first_codes": first}


class Decoded(nn.Module):
    """``D_1 a`` after a square ISTA layer: decoupling without overcompleteness, for the ladder."""

    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, a_BND: Array) -> Array:
        width = a_BND.shape[-1]
        D1 = self.param("D1", kaiming_uniform, (width, width), self.param_dtype)
        a_BND, D1 = nn.dtypes.promote_dtype(a_BND, D1, dtype=self.dtype)
        return product(a_BND, D1.T)
