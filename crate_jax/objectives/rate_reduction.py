"""The losses of MCR^2 (Yu et al. 2020, arXiv 2006.08558), to be minimised, in nats.

    L = R^c(Z|Pi) - gamma2/2 logdet(I + gamma1 d/(N eps^2) Z^T Z) + lmbda/2 ||Z||_F^2

With gamma1 = gamma2 = 1 and lmbda = 0 it is the negative rate reduction: of features on the unit
sphere the constrained problem. Self-supervised, every image is a class of its own and gamma1 = 20,
gamma2 = 0.05 keep the expansion from drowning the compression. With lmbda > 0 and free features it
is the regularised problem of the landscape paper, whose code writes ``lmb = lmbda / 2``.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from crate_jax.ops.coding_rate import class_coding_rate, coding_rate, second_moment_rate


def rate_reduction_loss(
    Z: ArrayLike,
    labels: ArrayLike,
    num_classes: int,
    *,
    eps_sq: float,
    gamma1: float = 1.0,
    gamma2: float = 1.0,
    lmbda: float = 0.0,
) -> tuple[Array, dict[str, Array]]:
    """The loss, and the rates that it is made of.

    Args:
      Z: ``(N, d)``, rows are samples.
      labels: integers ``(N,)`` or memberships ``(N, K)``, rows that sum to one.
      num_classes: K.
      eps_sq: distortion squared.
      gamma1: factor inside the expansion's log-determinant.
      gamma2: weight of the expansion.
      lmbda: weight of half the squared norm.

    Returns:
      The loss, and ``rate`` R, ``class_rate`` R^c and ``rate_reduction`` R - R^c, all with plain
      gammas.
    """
    Z = jnp.asarray(Z)
    rate = coding_rate(Z, eps_sq=eps_sq)
    class_rate = class_coding_rate(Z, labels, num_classes, eps_sq=eps_sq)
    expansion = rate if gamma1 == 1.0 else coding_rate(Z, eps_sq=eps_sq / gamma1)
    loss = class_rate - gamma2 * expansion
    if lmbda:
        loss += 0.5 * lmbda * jnp.sum(jnp.square(Z.astype(loss.dtype)))
    rates = {"rate": rate, "class_rate": class_rate, "rate_reduction": rate - class_rate}
    return loss, rates


def masked_rates(
    Z: Array, labels: Array, mask: Array, num_classes: int, *, eps_sq: float
) -> tuple[dict[str, Array], Array]:
    """Rates of the rows of ``Z (N, d)`` whose ``mask (N,)`` is 1, as if there were no others.

    Returns:
      ``rate``, ``class_rate`` and ``rate_reduction``, and the number of rows.
    """
    count = jnp.sum(mask)
    n = jnp.maximum(count, 1)
    kept = Z * mask[:, None]
    S = jnp.einsum("ni,nj->ij", kept, kept, precision=jax.lax.Precision.HIGHEST) / n
    rate = second_moment_rate(S, eps_sq=eps_sq)
    labels = jnp.where(mask > 0, labels, -1)
    class_rate = class_coding_rate(Z, labels, num_classes, eps_sq=eps_sq) * (Z.shape[0] / n)
    rates = {"rate": rate, "class_rate": class_rate, "rate_reduction": rate - class_rate}
    return rates, count


def view_classes(num_samples: int, views: int) -> Array:
    """The image that each of ``num_samples`` rows is a view of, ``0 0 .. 1 1 ..``, int32."""
    return jnp.arange(num_samples, dtype=jnp.int32) // views


def soft_memberships(labels: ArrayLike, num_classes: int, smoothing: float) -> Array:
    """``(1 - s) onehot + s/K`` of integer labels ``(N,)``: ``(N, K)``, rows that sum to one."""
    one_hot = jnp.asarray(labels)[:, None] == jnp.arange(num_classes)[None, :]
    return (1.0 - smoothing) * one_hot + smoothing / num_classes
