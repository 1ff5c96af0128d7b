"""The autoencoders that FlatNet is compared with: VAE, beta-VAE, FactorVAE, and a fair VAE.

As in the released code of arXiv 2305.01777: networks of linear layers of the data's width, Adam,
batches in the order of the data, and losses that are *means*, of the squared error over points and
coordinates and of the divergence over points and code coordinates. On data in the unit ball the
divergence then outweighs the error, and the codes collapse: the reconstruction is the data's mean.
Its FactorVAE leaves the two linear maps to the code's mean and variance untrained. Both are kept
here, as what was compared; ``fair_vae`` sums both terms over coordinates and trains everything.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array

from crate_jax.layers.initializers import torch_uniform

KINDS = ("vae", "beta_vae", "factor_vae", "fair_vae")
BETA = {"vae": 1.0, "beta_vae": 4.0, "factor_vae": 1.0, "fair_vae": 1.0}
GAMMA = 30.0
"""Weight of FactorVAE's total correlation."""

NOISE = 1e-4
"""Variance of the fair VAE's decoder, in units of the data's own; its error counts 1/(2 NOISE)."""

LEARNING_RATE = 1e-3
LAYERS = 5


def _linear(features: int, fan_in: int) -> nn.Dense:
    """With PyTorch's first parameters.

    With biases of 0 the layers before the first LayerNorm are homogeneous, and all that it leaves
    of a code of one coordinate is the sign.
    """
    return nn.Dense(features, kernel_init=torch_uniform(), bias_init=torch_uniform(fan_in))


class Network(nn.Module):
    """``in -> width``, ReLU; then ``layers - 1`` times ``width -> width``, ReLU, LayerNorm; out.

    Attributes:
      width: of the hidden layers.
      out: of the result.
      layers: hidden ones.
    """

    width: int
    out: int
    layers: int = LAYERS

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(_linear(self.width, x.shape[-1])(x))
        for _ in range(self.layers - 1):
            x = nn.LayerNorm(epsilon=1e-5)(nn.relu(_linear(self.width, self.width)(x)))
        return _linear(self.out, self.width)(x)


class Autoencoder(nn.Module):
    """Encoder trunk with a linear map to the code's mean and one to its log variance; decoder.

    Attributes:
      width: D, of the data and of the hidden layers.
      code: coordinates of the code.
    """

    width: int
    code: int

    def setup(self):
        self.trunk = Network(self.width, self.width, LAYERS - 1)
        self.fc_mu, self.fc_var = (_linear(self.code, self.width) for _ in range(2))
        self.decoder = Network(self.width, self.width)

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Mean and log variance of the code, ``(B, code)`` each."""
        h = self.trunk(x)
        return self.fc_mu(h), self.fc_var(h)

    def decode(self, z: Array) -> Array:
        """``(B, D)``."""
        return self.decoder(z)

    def __call__(self, x: Array, noise: Array) -> tuple[Array, Array, Array, Array]:
        """Reconstruction, mean, log variance, and the sampled code."""
        mean, log_var = self.encode(x)
        z = mean + jnp.exp(0.5 * log_var) * noise
        return self.decode(z), mean, log_var, z


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained autoencoder.

    Attributes:
      encode: ``(N, D)`` to codes ``(N, code)``, their means.
      decode: back.
      loss: of the last epoch, the mean over its batches.
    """

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    loss: float


class _State(NamedTuple):
    params: dict
    moments: tuple
    judge: dict
    judge_moments: tuple


def train(
    kind: str, X: np.ndarray, code: int, *, epochs: int, batch: int, seed: int = 0
) -> Trained:  # fmt: skip
    """Trains one of :data:`KINDS`.

    Args:
      kind: which.
      X: ``(N, D)``; batches run through it in order, what is left over at the end is left out.
      code: coordinates of the code.
      epochs, batch: of the training.
      seed: of the parameters and the noise.
    """
    N, D = X.shape
    batch = min(batch, N)
    centre, size = X.mean(axis=0), np.sqrt(np.max(np.sum((X - X.mean(axis=0)) ** 2, axis=1)))
    X = jnp.asarray((X - centre) / size, jnp.float32)
    variance = float(jnp.mean(jnp.square(X)))
    net, judge = Autoencoder(D, code), Network(D, 2)
    keys = jax.random.split(jax.random.key(seed), 3)
    params = net.init(keys[0], X[:1], jnp.zeros((1, code)))["params"]
    judge_params = judge.init(keys[1], jnp.zeros((1, code)))["params"]
    optimizer = optax.adam(LEARNING_RATE)
    frozen = ("fc_mu", "fc_var") if kind == "factor_vae" else ()

    def loss_of(params, judge_params, x, noise):
        x_hat, mean, log_var, z = net.apply({"params": params}, x, noise)
        error = jnp.square(x_hat - x)
        divergence = -0.5 * (1 + log_var - jnp.square(mean) - jnp.exp(log_var))
        if kind == "fair_vae":
            error = jnp.sum(error, axis=1) / (2 * NOISE * variance)
            return jnp.mean(error) + jnp.mean(jnp.sum(divergence, axis=1)), z
        loss = jnp.mean(error) + BETA[kind] * jnp.mean(divergence)
        if kind == "factor_vae":
            logits = judge.apply({"params": judge_params}, z)
            loss = loss + GAMMA * jnp.mean(logits[:, 0] - logits[:, 1])
        return loss, z

    def judge_loss(judge_params, z, shuffled):
        logits = judge.apply({"params": judge_params}, jnp.concatenate([z, shuffled]))
        target = jnp.repeat(jnp.arange(2), jnp.array([len(z), len(shuffled)]), total_repeat_length=(
            len(z) + len(shuffled)
        ))  # fmt: skip
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, target))

    def step(state, inputs):
        x, key = inputs
        keys = jax.random.split(key, 3)
        half = batch // 2 if kind == "factor_vae" and batch > 1 else batch
        noise = jax.random.normal(keys[0], (half, code))
        (loss, z), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.judge, x[:half], noise
        )
        grads = {k: jax.tree.map(jnp.zeros_like, g) if k in frozen else g for k, g in grads.items()}
        updates, moments = optimizer.update(grads, state.moments)
        new = state._replace(params=optax.apply_updates(state.params, updates), moments=moments)
        if kind == "factor_vae" and batch > 1:
            rest = x[half : 2 * half]
            *_, other = net.apply(
                {"params": state.params}, rest, jax.random.normal(keys[1], (half, code))
            )
            shuffled = jax.random.permutation(keys[2], other, axis=0, independent=True)
            gradient = jax.grad(judge_loss)(state.judge, z, shuffled)
            updates, moments = optimizer.update(gradient, state.judge_moments)
            new = new._replace(
                judge=optax.apply_updates(state.judge, updates), judge_moments=moments
            )
        return new, loss

    batches = X[: N // batch * batch].reshape(-1, batch, D)

    @jax.jit
    def epoch(state, key):
        return jax.lax.scan(step, state, (batches, jax.random.split(key, len(batches))))

    state = _State(
        params, optimizer.init(params), judge_params, optimizer.init(judge_params)
    )  # fmt: skip
    losses = jnp.zeros(1)
    for key in jax.random.split(keys[2], epochs):
        state, losses = epoch(state, key)

    def encode(x):
        x = jnp.asarray((x - centre) / size, jnp.float32)
        mean, log_var = net.apply({"params": state.params}, x, method=net.encode)
        if kind == "fair_vae":
            return np.asarray(mean)
        noise = jax.random.normal(jax.random.key(seed + 1), mean.shape)  # codes are sampled there
        return np.asarray(mean + jnp.exp(0.5 * log_var) * noise)

    def decode(z):
        x = net.apply({"params": state.params}, jnp.asarray(z, jnp.float32), method=net.decode)
        return np.asarray(x, np.float64) * size + centre

    return Trained(encode, decode, float(jnp.mean(losses)))
