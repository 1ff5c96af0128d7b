"""One layer of FlatNet: flattens a manifold near a point, and bends it back.

"Representation Learning via Manifold Flattening and Reconstruction" (arXiv 2305.01777). Near the
anchor ``x_c`` the data are a quadratic patch over the tangent space ``U``,

    x ~ x_c + U c + V q(c),    c = U^T (x - x_c),    q(c) = (c_i c_j)_{i <= j}

The encoder shrinks the part of ``x - mu`` that is normal to ``U``, with a Gaussian weight; the
decoder finds that weight again from the shrunk vector and adds what the patch says was removed:

    F(x) = (x - k n - m) / s,    n = (I - U U^T)(x - mu),    k = alpha exp(-gamma |x - mu|^2)
    G(z) = y + k [(I - U U^T)(x_c - mu) + V q(U^T (y - x_c))],    y = s z + m

``F`` keeps ``t = U^T (x - mu)`` and multiplies n by ``1 - k``, so that ``rho = |n|^2`` solves

    (1 - a exp(-gamma rho))^2 rho = nu,    a = alpha exp(-gamma |t|^2)

where nu is the squared norm of the shrunk normal part. The left side rises in rho for a < 1.

A *layer* is anything with the attributes U ``(D, d)``, V ``(D, p)``, mu and x_c ``(D,)``, gamma and
alpha ``()``, m ``(D,)``, s ``()``: see ``models.flatnet.Layer``. Rows are points.

Products are taken at the highest precision: the fits look at losses of 1e-5 of the data's own
scale, which a TPU's bfloat16 passes would drown.
"""

import jax
import jax.numpy as jnp
from jax import Array

NEWTON_STEPS = 8
"""Enough for float64 up to alpha = 0.9; five are at 0.5."""

_HIGHEST = jax.lax.Precision.HIGHEST


def num_products(d: int) -> int:
    """How many ``c_i c_j``, i <= j, there are: d (d + 1) / 2."""
    return d * (d + 1) // 2


def products(c: Array, axis: int = -1) -> Array:
    """``c_i c_j`` for i <= j, the upper triangle row by row, with no extra factors.

    Args:
      c: ``(..., d)``, or with d at another ``axis``.
      axis: where d is, and where p will be.

    Returns:
      ``(..., p)``.
    """
    d = c.shape[axis]
    take = jax.lax.slice_in_dim
    rows = [take(c, i, i + 1, axis=axis) * take(c, i, d, axis=axis) for i in range(d)]
    return jnp.concatenate(rows, axis=axis)


def _dot(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


def _split(x: Array, layer) -> tuple[Array, Array]:
    """Tangent coordinates ``(N, d)`` and normal part ``(N, D)`` of ``x - mu``."""
    c = x - layer.mu[None]
    t = _dot(c, layer.U)
    return t, c - _dot(t, layer.U.T)


def flatten_raw(x: Array, layer) -> Array:
    """``x - k n``: the layer without its renormalisation; ``(N, D)`` in and out."""
    _, n = _split(x, layer)
    c_sq = jnp.sum(jnp.square(x - layer.mu[None]), axis=-1, keepdims=True)
    return x - layer.alpha * jnp.exp(-layer.gamma * c_sq) * n


def flatten(x: Array, layer) -> Array:
    """The encoder's layer F.

    Args:
      x: ``(N, D)``.
      layer: of one anchor.

    Returns:
      ``(N, D)``.
    """
    return (flatten_raw(x, layer) - layer.m[None]) / layer.s


def reconstruct(z: Array, layer) -> Array:
    """The decoder's layer G: what was removed, by the quadratic patch.

    Args:
      z: ``(N, D)``.
      layer: of one anchor.

    Returns:
      ``(N, D)``.
    """
    y = layer.s * z + layer.m[None]
    t, shrunk = _split(y, layer)
    k = _removed_kernel(t, shrunk, layer)
    offset = layer.x_c - layer.mu
    offset = offset - _dot(layer.U, _dot(layer.U.T, offset))
    coordinates = _dot(y - layer.x_c[None], layer.U)
    return y + k * (offset[None] + _dot(products(coordinates), layer.V.T))


def exact_inverse(z: Array, layer) -> Array:
    """``F^{-1}``, by algebra: ``y + k / (1 - k) n'``.

    It knows nothing of the manifold: it multiplies what lies off it by up to ``1 / (1 - alpha)`` a
    layer, and cannot rebuild from d coordinates. For tests of a layer, not for decoding.
    """
    y = layer.s * z + layer.m[None]
    t, shrunk = _split(y, layer)
    k = _removed_kernel(t, shrunk, layer)
    return y + k / (1 - k) * shrunk


def _removed_kernel(t: Array, shrunk: Array, layer) -> Array:
    """The encoder's k ``(N, 1)``, from what it has left."""
    # From the vector itself: a difference of two squared norms would cancel near the plane.
    nu = jnp.sum(jnp.square(shrunk), axis=-1, keepdims=True)
    a = layer.alpha * jnp.exp(-layer.gamma * jnp.sum(jnp.square(t), axis=-1, keepdims=True))
    return a * jnp.exp(-layer.gamma * kernel_root(nu, a, layer.gamma))


@jax.custom_jvp
def kernel_root(nu: Array, a: Array, gamma: Array) -> Array:
    """The rho with ``(1 - a exp(-gamma rho))^2 rho = nu``.

    In ``w = sqrt(rho)`` the root of ``w (1 - a exp(-gamma w^2)) = sqrt(nu)`` lies between
    ``sqrt(nu)`` and ``sqrt(nu) / (1 - a)``; Newton starts at the upper end and is held in between.
    The derivative is the implicit one, which is smooth at nu = 0, where that of the root is not.

    Args:
      nu: ``(...)``, at least 0.
      a: ``(...)``, from 0 to below 1.
      gamma: ``()``, above 0.

    Returns:
      ``(...)``.
    """
    low = jnp.sqrt(nu)
    high = low / (1 - a)

    def newton(_, w):
        k = a * jnp.exp(-gamma * w * w)
        slope = 1 - k + 2 * gamma * w * w * k
        return jnp.clip(w - (w * (1 - k) - low) / slope, low, high)

    return jnp.square(jax.lax.fori_loop(0, NEWTON_STEPS, newton, high))


@kernel_root.defjvp
def _kernel_root_jvp(primals, tangents):
    (nu, a, gamma), (d_nu, d_a, d_gamma) = primals, tangents
    rho = kernel_root(nu, a, gamma)
    e = jnp.exp(-gamma * rho)
    k = a * e
    by_rho = (1 - k) * (1 - k + 2 * gamma * rho * k)
    by_a = -2 * (1 - k) * e * rho
    by_gamma = 2 * (1 - k) * k * rho * rho
    return rho, (d_nu - by_a * d_a - by_gamma * d_gamma) / by_rho
