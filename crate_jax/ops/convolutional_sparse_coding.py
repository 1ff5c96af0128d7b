"""Convolutional sparse coding: a dictionary as a convolution, its exact adjoint, unrolled FISTA.

    z* = argmin_z  1/2 ||x - A z||^2 + lmbda ||z||_1 + mu/2 ||z||^2        (z >= 0 where wished)

Images are ``(B, H, W, C)`` and atoms ``w: (k, k, C, M)``, one atom an output channel (PyTorch's
``(M, C, k, k)`` transposed by (2, 3, 1, 0)). ``A* x`` is the convolution of x with w by a stride
and a zero padding; ``A`` is its transpose at the size of x, whatever kernel, stride, padding and
side: the released layer fixes an output padding and so takes even sides and odd kernels only.
Source: SDNet (github.com/Delay-Xili/SDNet), the layer of CSC-CTRL (arXiv 2302.09347).
"""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from crate_jax.ops.sparse import relu_threshold, soft_threshold

INITIAL_STEP = 0.1
"""The step before the first power iteration."""

SAFETY = 0.9
"""The step is this over the largest eigenvalue of ``A* A``."""

ITERATIONS, TOLERANCE = 50, 1e-5
"""The most power iterations, and the squared change of the vector that ends them."""

SMALLEST_NORM = 1e-12
"""Norms are no smaller where they divide."""

GRADIENTS_AT = ("code", "momentum")
"""Where FISTA takes its gradient: at the code, as released, or at the extrapolation, as printed."""


def analyse(x: Array, w: Array, *, stride: int = 1, padding: int = 0) -> Array:
    """``A* x``: correlations of images ``(B, H, W, C)`` with atoms, ``(B, H', W', M)``."""
    return lax.conv_general_dilated(
        x, w, (stride, stride), [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def synthesise(
    z: Array, w: Array, *, side: tuple[int, int], stride: int = 1, padding: int = 0
) -> Array:
    """``A z``: images ``(B, *side, C)`` from codes ``(B, H', W', M)``, the adjoint of analysis."""
    return _synthesise(tuple(side), stride, padding, z, w)


def _transpose(side, stride, padding, z, w):
    like = jax.ShapeDtypeStruct((z.shape[0], *side, w.shape[2]), z.dtype)

    def convolve(x):
        return analyse(x, w, stride=stride, padding=padding)

    return jax.linear_transpose(convolve, like)(z)[0]


def _synthesise_forward(side, stride, padding, z, w):
    return _transpose(side, stride, padding, z, w), (z, w)


def _synthesise_backward(side, stride, padding, kept, dx):
    # <dx, A z> = <A* dx, z>: the gradient in w is that of a convolution of dx. Left to itself, JAX
    # differentiates the transpose, ten times as slow on CPUs.
    z, w = kept

    def convolve(w):
        return analyse(dx, w, stride=stride, padding=padding)

    dz, pull_back = jax.vjp(convolve, w)
    return dz, pull_back(z)[0]


_synthesise = jax.custom_vjp(_transpose, nondiff_argnums=(0, 1, 2))
_synthesise.defvjp(_synthesise_forward, _synthesise_backward)


def code_side(side: int, kernel: int, *, stride: int, padding: int) -> int:
    """Places that an atom has along a side."""
    return (side + 2 * padding - kernel) // stride + 1


def unit_atoms(w: Array) -> Array:
    """Every atom over its norm."""
    norm = jnp.sqrt(jnp.sum(w * w, axis=(0, 1, 2), keepdims=True))
    return w / jnp.maximum(norm, SMALLEST_NORM)


def elastic_net_prox(
    v: Array, eta: ArrayLike, *, lmbda: ArrayLike, mu: float = 0.0, non_negative: bool = True
) -> Array:
    """The proximal map of ``eta (lmbda ||.||_1 + mu/2 ||.||^2)``, over codes >= 0 where wished."""
    scale = 1.0 / (1.0 + mu * eta)
    threshold = relu_threshold if non_negative else soft_threshold
    return threshold(v * scale, lmbda * eta * scale)


def fista(
    x: Array,
    w: Array,
    *,
    eta: ArrayLike,
    lmbda: ArrayLike,
    mu: float = 0.0,
    steps: int = 2,
    stride: int = 1,
    padding: int = 0,
    non_negative: bool = True,
    squared: bool = True,
    gradient_at: str = "code",
) -> Array:
    """Codes of images after some accelerated proximal steps from zero.

        z_1 = prox(eta A* x),   z_2 = prox(z_1 + eta A*(x - A z_1)),   and from the third on
        a = z + (t' - 1)/t (z - z'),   z <- prox(a + eta A*(x - A z)),   t = (1 + sqrt(1 + 4t'^2))/2

    The gradient is taken at the code z and not at its extrapolation a. That is the released code,
    and differs from FISTA (Beck & Teboulle 2009) from the third step on.

    Args:
      x: ``(B, H, W, C)``.
      w: ``(k, k, C, M)``.
      eta: step, below 2 over the largest eigenvalue of ``A* A``.
      lmbda, mu: weights of the l1 norm and of half the squared l2 norm.
      steps: at least 1. T of them cost T convolutions and T - 1 transposed ones.
      stride, padding: of the convolution.
      non_negative: whether codes are.
      squared: the data term is ``1/2 ||r||^2``; otherwise ``1/2 ||r||_2`` of each image from the
        second step on, whose gradient divides by a norm that is not differentiated.
      gradient_at: a word of ``GRADIENTS_AT``.

    Returns:
      ``(B, H', W', M)``.
    """
    side = x.shape[1:3]

    def prox(v):
        return elastic_net_prox(v, eta, lmbda=lmbda, mu=mu, non_negative=non_negative)

    def descent(z):
        r = x - synthesise(z, w, side=side, stride=stride, padding=padding)
        if not squared:
            norm = jnp.sqrt(jnp.sum(r * r, axis=(1, 2, 3), keepdims=True))
            r = 0.5 * r / lax.stop_gradient(jnp.maximum(norm, SMALLEST_NORM))
        return eta * analyse(r, w, stride=stride, padding=padding)

    def step(carry, _):
        z, before, t_before = carry
        t = (1 + jnp.sqrt(1 + 4 * t_before**2)) / 2
        a = z + (t_before - 1) / t * (z - before)
        return (prox(a + descent(z if gradient_at == "code" else a)), z, t), None

    z = prox(eta * analyse(x, w, stride=stride, padding=padding))
    if steps == 1:
        return z
    before, z = z, prox(z + descent(z))
    t = jnp.asarray((1 + math.sqrt(5.0)) / 2, z.dtype)
    return lax.scan(step, (z, before, t), length=steps - 2)[0][0] if steps > 2 else z


def energies(
    x: Array, z: Array, w: Array, *, lmbda: float, mu: float = 0.0, stride: int = 1,
    padding: int = 0,
) -> tuple[Array, Array]:  # fmt: skip
    """Of each image ``||x - A z||^2`` and ``lmbda ||z||_1 + mu/2 ||z||^2``, both ``(B,)``."""
    r = x - synthesise(z, w, side=x.shape[1:3], stride=stride, padding=padding)
    penalty = lmbda * jnp.abs(z) + 0.5 * mu * z * z
    return jnp.sum(r * r, axis=(1, 2, 3)), jnp.sum(penalty, axis=(1, 2, 3))


def power_iteration(
    w: Array,
    v: Array,
    *,
    side: tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> tuple[Array, Array]:
    """The largest eigenvalue of ``A* A`` from below, and its vector; nothing is differentiated.

    Args:
      w: ``(k, k, C, M)``.
      v: ``(1, H', W', M)``, where to start: the vector that the last call gave.
      side: of the images that the operator acts on.
      stride, padding: of the convolution.
      iterations: at most.
      tolerance: ends them when ``||v' - v||^2`` is no larger.

    Returns:
      ``||A v||^2`` and the unit vector v.
    """
    w = lax.stop_gradient(w)
    geometry = {"stride": stride, "padding": padding}

    def iterate(carry):
        k, v, _ = carry
        new = analyse(synthesise(v, w, side=side, **geometry), w, **geometry)
        new = new / jnp.maximum(jnp.linalg.norm(new), SMALLEST_NORM)
        return k + 1, new, jnp.sum((new - v) ** 2)

    start = (0, lax.stop_gradient(v), jnp.asarray(jnp.inf, v.dtype))
    _, v, _ = lax.while_loop(
        lambda carry: (carry[0] < iterations) & (carry[2] > tolerance), iterate, start
    )
    return jnp.sum(synthesise(v, w, side=side, **geometry) ** 2), v
