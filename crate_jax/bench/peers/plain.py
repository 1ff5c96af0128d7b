"""CRATE and CRATE-alpha as a plain Flax port has them: the peer that our step is timed against.

CRATE-alpha follows its published JAX model: float32, unrolled layers, Flax's LayerNorm and its
dot-product attention, whose three arguments are one projection. CRATE was published in PyTorch
alone; its port keeps that code's order of products, ``D^T y`` and ``D^T D y`` apart and heads
before tokens. Parameters have our names and shapes, so that both can start from the same weights.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import Array

from crate_jax.layers.initializers import kaiming_uniform
from crate_jax.layers.patches import patchify

ETA = LMBDA = 0.1


class Subspaces(nn.Module):
    """The projection alone, under the name that our parameters give it."""

    heads: int
    head_dim: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.heads, self.head_dim)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
        return jnp.einsum("bnd,dkp->bnkp", x, kernel)


class Attention(nn.Module):
    """Subspace attention; ``heads_first`` moves heads before tokens, as the torch code does."""

    heads: int
    heads_first: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        w = Subspaces(self.heads, width // self.heads, name="subspaces")(x)
        if self.heads_first:
            w = w.transpose(0, 2, 1, 3)
            logits = jnp.matmul(w, w.transpose(0, 1, 3, 2)) * w.shape[-1] ** -0.5
            out = jnp.matmul(jax.nn.softmax(logits, axis=-1), w).transpose(0, 2, 1, 3)
        else:
            out = nn.dot_product_attention(w, w, w)
        return nn.DenseGeneral(width, axis=(-2, -1), use_bias=self.heads_first, name="out")(out)


class SquareISTA(nn.Module):
    """``relu(y + eta (D^T y - D^T D y) - eta lambda)``, three products."""

    @nn.compact
    def __call__(self, y: Array) -> Array:
        D = self.param("D", kaiming_uniform, (y.shape[-1], y.shape[-1]))
        approximation = y @ D.T
        return jax.nn.relu(y + ETA * (y @ D - approximation @ D) - ETA * LMBDA)


class OvercompleteISTA(nn.Module):
    """Two steps from zero in a dictionary of 4d atoms, and the decoder."""

    @nn.compact
    def __call__(self, y: Array) -> Array:
        shape = (y.shape[-1], 4 * y.shape[-1])
        D = self.param("D", kaiming_uniform, shape)
        D1 = self.param("D1", kaiming_uniform, shape)
        z1 = jax.nn.relu(ETA * jnp.einsum("bnd,dm->bnm", y, D) - ETA * LMBDA)
        residual = jnp.einsum("bnm,dm->bnd", z1, D) - y
        z2 = jax.nn.relu(z1 - ETA * jnp.einsum("bnd,dm->bnm", residual, D) - ETA * LMBDA)
        return jnp.einsum("bnm,dm->bnd", z2, D1)


class Block(nn.Module):
    """A layer of either model."""

    family: str
    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        alpha = self.family == "crate_alpha"
        norm = partial(nn.LayerNorm, 1e-6 if alpha else 1e-5)
        x += Attention(self.heads, not alpha, name="attention")(norm(name="norm_attention")(x))
        y = norm(name="norm_ista")(x)
        if alpha:
            return x + OvercompleteISTA(name="ista")(y)
        return SquareISTA(name="ista")(y)


class Patches(nn.Module):
    """The stem: a convolution, or CRATE's linear map between two LayerNorms."""

    family: str
    width: int
    patch: int

    @nn.compact
    def __call__(self, image: Array) -> Array:
        if self.family == "crate_alpha":
            size = (self.patch, self.patch)
            x = nn.Conv(self.width, size, strides=size, padding="VALID", name="embed")(image)
            return x.reshape(x.shape[0], -1, self.width)
        x = nn.LayerNorm(1e-5, name="norm_pixels")(patchify(image, self.patch))
        return nn.LayerNorm(1e-5, name="norm_tokens")(nn.Dense(self.width, name="embed")(x))


class Embedding(nn.Module):
    """The class token and learned positions."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        B, N, D = x.shape
        cls = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, D))
        table = self.param("pos_embedding", nn.initializers.normal(0.02), (1, N + 1, D))
        x = jnp.concatenate([jnp.tile(cls, (B, 1, 1)), x], axis=1)
        return x + jnp.broadcast_to(table, x.shape)


class Plain(nn.Module):
    """The classifier of ``family``, ``crate`` or ``crate_alpha``, in its released setting."""

    family: str
    width: int
    depth: int
    heads: int
    patch: int
    num_classes: int = 1000

    @nn.compact
    def __call__(self, image: Array) -> Array:
        x = Patches(self.family, self.width, self.patch, name="patches")(image)
        x = Embedding(name="embedding")(x)
        for l in range(self.depth):
            x = Block(self.family, self.heads, name=f"blocks_{l}")(x)
        x = nn.LayerNorm(1e-6 if self.family == "crate_alpha" else 1e-5, name="norm")(x)
        return nn.Dense(self.num_classes, name="head")(x[:, 0])


@struct.dataclass
class PlainState:
    """Parameters and AdamW's state."""

    params: Any
    opt_state: Any


def mean_loss(logits: Array, label: Array) -> Array:
    """Mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def make_step(model: Plain, learning_rate: float):
    """``(loss, init, step)``: mean cross-entropy, a state from parameters, and one AdamW update."""
    tx = optax.adamw(learning_rate)

    def loss(params, batch):
        return mean_loss(model.apply({"params": params}, batch["image"]), batch["label"])

    def init(params):
        return PlainState(params, tx.init(params))

    def step(state, batch):
        value, grads = jax.value_and_grad(loss)(state.params, batch)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return PlainState(optax.apply_updates(state.params, updates), opt_state), value

    return loss, init, step
