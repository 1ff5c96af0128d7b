"""What the game is compared with: PCA of every class, variational autoencoders, GANs.

Networks, losses and optimizers are those of the released code of arXiv 2206.09120, all as logits.
Its GANs play no adversarial game: the generator is trained to be taken for fake. Here it is trained
to be taken for real, the conditional GAN sees true labels with true samples, and InfoGAN's class is
one softmax away from its logits; ``paper_baseline_bug`` gives back what was released.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from crate_jax.studies.games.measure import top_directions
from crate_jax.studies.games.players import apply_network, init_network

REAL, FAKE = 0.0, 1.0
"""What a discriminator is to answer."""


def class_pca(train, test, dims) -> np.ndarray:
    """Test samples projected on the top ``dims[j]`` principal directions of their class.

    The oracle of several PCAs: it is told which class a sample belongs to, and its dimension.
    """
    out = np.zeros_like(test.X)
    for j, dim in enumerate(dims):
        basis = top_directions(train.X[train.y == j], dim)
        out[test.y == j] = (test.X[test.y == j] @ basis) @ basis.T
    return out


@dataclasses.dataclass(frozen=True)
class Networks:
    """Sizes that the networks of a baseline have.

    Attributes:
      inputs: d_x.
      classes: K.
      features: d_z of an autoencoder.
      settings: ``settings.Baselines``.
    """

    inputs: int
    classes: int
    features: int
    settings: object

    def mlp(self, key: Array, n: int, m: int, hidden: int | None = None, dtype=jnp.float32):
        """A ReLU network from n to m numbers with so many hidden layers."""
        layers = self.settings.layers if hidden is None else hidden
        return init_network(key, [n, *[self.settings.width] * max(layers, 1), m], dtype)


def _linear(key, n, m):
    return init_network(key, [n, m], jnp.float32)


def _one_hot(nets: Networks, y: Array) -> Array:
    return jax.nn.one_hot(y, nets.classes)


def _binary(logits: Array, target: float) -> Array:
    """Mean cross-entropy of the answers ``logits`` with one target."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, target)))


def _aim(nets: Networks) -> float:
    """What the generator wants to hear."""
    return FAKE if nets.settings.paper_baseline_bug else REAL


class GAN:
    """A generator of all samples alike, and its discriminator."""

    players = (("generator",), ("discriminator",))
    """Which parts each optimizer moves, in turn on every batch."""

    @staticmethod
    def init(nets: Networks, key: Array):
        """The parts by name."""
        g, d = jax.random.split(key)
        return {
            "generator": nets.mlp(g, nets.settings.noise, nets.inputs),
            "discriminator": nets.mlp(d, nets.inputs, 1),
        }

    @staticmethod
    def generate(nets: Networks, params, key: Array, y: Array) -> Array:
        """A sample for every entry of y."""
        z = jax.random.normal(key, (len(y), nets.settings.noise))
        return apply_network(params["generator"], z)

    @staticmethod
    def losses(nets: Networks, params, X, y, key):
        """What each of :attr:`players` minimises, as functions of all parts."""

        def generator(params):
            made = GAN.generate(nets, params, key, y)
            return _binary(apply_network(params["discriminator"], made), _aim(nets))

        def discriminator(params):
            made = GAN.generate(nets, params, key, y)
            real = _binary(apply_network(params["discriminator"], X), REAL)
            return real + _binary(apply_network(params["discriminator"], made), FAKE)

        return generator, discriminator


class CGAN:
    """Generator and discriminator told of a class, through a linear layer each."""

    players = (("generator", "generator_label"), ("discriminator", "discriminator_label"))

    @staticmethod
    def init(nets: Networks, key: Array):
        """The parts by name."""
        K, keys = nets.classes, jax.random.split(key, 4)
        return {
            "generator": nets.mlp(keys[0], nets.settings.noise + K, nets.inputs),
            "generator_label": _linear(keys[1], K, K),
            "discriminator": nets.mlp(keys[2], nets.inputs + K, 1),
            "discriminator_label": _linear(keys[3], K, K),
        }

    @staticmethod
    def generate(nets: Networks, params, key: Array, y: Array) -> Array:
        """A sample of every class of y."""
        z = jax.random.normal(key, (len(y), nets.settings.noise))
        label = apply_network(params["generator_label"], _one_hot(nets, y))
        return apply_network(params["generator"], jnp.concatenate([z, label], axis=-1))

    @staticmethod
    def judge(nets: Networks, params, X, y) -> Array:
        """Logits of being fake."""
        label = apply_network(params["discriminator_label"], _one_hot(nets, y))
        return apply_network(params["discriminator"], jnp.concatenate([X, label], axis=-1))

    @staticmethod
    def losses(nets: Networks, params, X, y, key):
        """What each of :attr:`players` minimises."""
        noise, label = jax.random.split(key)
        asked = jax.random.randint(label, y.shape, 0, nets.classes)
        true = asked if nets.settings.paper_baseline_bug else y

        def generator(params):
            made = CGAN.generate(nets, params, noise, asked)
            return _binary(CGAN.judge(nets, params, made, asked), _aim(nets))

        def discriminator(params):
            made = CGAN.generate(nets, params, noise, asked)
            real = _binary(CGAN.judge(nets, params, X, true), REAL)
            return (real + _binary(CGAN.judge(nets, params, made, asked), FAKE)) / 2

        return generator, discriminator


class InfoGAN:
    """A generator told of a class and a code, both to be read off its samples again."""

    heads = ("discriminator", "class", "code")
    players = (("generator",), (*heads, "trunk"), ("generator", "trunk", *heads))

    @staticmethod
    def init(nets: Networks, key: Array):
        """The parts by name."""
        K, width, code = nets.classes, nets.settings.width, nets.settings.code
        keys = jax.random.split(key, 5)
        return {
            "generator": nets.mlp(keys[0], nets.settings.noise + K + code, nets.inputs),
            "trunk": nets.mlp(keys[1], nets.inputs, width, hidden=nets.settings.layers - 1),
            "discriminator": _linear(keys[2], width, 1),
            "class": _linear(keys[3], width, K),
            "code": _linear(keys[4], width, code),
        }

    @staticmethod
    def make(nets: Networks, params, z, y, code) -> Array:
        """Samples of noise, class and code."""
        inputs = jnp.concatenate([z, _one_hot(nets, y), code], axis=-1)
        return apply_network(params["generator"], inputs)

    @staticmethod
    def generate(nets: Networks, params, key: Array, y: Array) -> Array:
        """A sample of every class of y, its code uniform in [-1, 1)."""
        n, c = jax.random.split(key)
        z = jax.random.normal(n, (len(y), nets.settings.noise))
        low = 0.0 if nets.settings.paper_baseline_bug else -1.0
        code = jax.random.uniform(c, (len(y), nets.settings.code), minval=low)
        return InfoGAN.make(nets, params, z, y, code)

    @staticmethod
    def losses(nets: Networks, params, X, y, key):
        """What each of :attr:`players` minimises."""
        n, c, label = jax.random.split(key, 3)
        z = jax.random.normal(n, (len(y), nets.settings.noise))
        code = jax.random.uniform(c, (len(y), nets.settings.code), minval=-1.0)
        asked = jax.random.randint(label, y.shape, 0, nets.classes)

        def head(params, name, X):
            return apply_network(params[name], apply_network(params["trunk"], X))

        def generator(params):
            made = InfoGAN.make(nets, params, z, asked, code)
            return _binary(head(params, "discriminator", made), _aim(nets))

        def discriminator(params):
            made = InfoGAN.make(nets, params, z, asked, code)
            real = _binary(head(params, "discriminator", X), REAL)
            return (real + _binary(head(params, "discriminator", made), FAKE)) / 2

        def information(params):
            made = InfoGAN.make(nets, params, z, asked, code)
            logits = head(params, "class", made)
            if nets.settings.paper_baseline_bug:
                logits = jax.nn.softmax(logits)
            named = optax.softmax_cross_entropy_with_integer_labels(logits, asked)
            return jnp.mean(named) + jnp.mean((head(params, "code", made) - code) ** 2)

        return generator, discriminator, information


class VAE:
    """An autoencoder with Gaussian features; both terms of its loss are means over entries."""

    players = (("encoder", "mean", "log_variance", "decoder"),)

    @classmethod
    def init(cls, nets: Networks, key: Array):
        """The parts by name."""
        width, features, keys = nets.settings.width, nets.features, jax.random.split(key, 4)
        hidden = nets.settings.layers - 1
        return {
            "encoder": nets.mlp(keys[0], nets.inputs, width, hidden=hidden),
            "mean": _linear(keys[1], width, features),
            "log_variance": _linear(keys[2], width, features),
            "decoder": nets.mlp(keys[3], features, nets.inputs),
        }

    @classmethod
    def encode(cls, nets: Networks, params, X, y) -> tuple[Array, Array]:
        """Mean and log-variance of the features."""
        hidden = apply_network(params["encoder"], X)
        return apply_network(params["mean"], hidden), apply_network(params["log_variance"], hidden)

    @classmethod
    def reconstruct(cls, nets: Networks, params, key: Array, X, y) -> Array:
        """Samples through features drawn anew."""
        mean, log_variance = cls.encode(nets, params, X, y)
        z = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        return apply_network(params["decoder"], z)

    @classmethod
    def losses(cls, nets: Networks, params, X, y, key):
        """What the one optimizer minimises."""

        def loss(params):
            mean, log_variance = cls.encode(nets, params, X, y)
            made = cls.reconstruct(nets, params, key, X, y)
            kl = 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance)
            return jnp.mean(kl) + jnp.mean((made - X) ** 2)

        return (loss,)


class CVAE(VAE):
    """The autoencoder whose encoder is told of the class; the decoder is not."""

    players = ((*VAE.players[0], "data_embedding", "label_embedding"),)

    @classmethod
    def init(cls, nets: Networks, key: Array):
        """The parts by name."""
        K, d, keys = nets.classes, nets.inputs, jax.random.split(key, 4)
        return super().init(nets, keys[0]) | {
            "encoder": nets.mlp(keys[1], d + K, nets.settings.width),
            "data_embedding": _linear(keys[2], d, d),
            "label_embedding": _linear(keys[3], K, K),
        }

    @classmethod
    def encode(cls, nets: Networks, params, X, y) -> tuple[Array, Array]:
        """Mean and log-variance of the features."""
        label = apply_network(params["label_embedding"], _one_hot(nets, y))
        both = jnp.concatenate([apply_network(params["data_embedding"], X), label], axis=-1)
        return super().encode(nets, params, both, y)


MODELS = {"gan": GAN, "cgan": CGAN, "infogan": InfoGAN, "vae": VAE, "cvae": CVAE}
"""By method."""


def train(model, nets: Networks, samples, order: np.ndarray, seed: int):
    """Trains the parts, each optimizer in turn on every batch.

    Args:
      model: of :data:`MODELS`.
      nets: sizes.
      samples: what it is trained on.
      order: indices ``(T, B)`` of the batches.
      seed: of the start and the noise.

    Returns:
      the parts, and what each optimizer minimised, ``(T, players)``.
    """
    init_key, noise_key = jax.random.split(jax.random.key(seed))
    params = model.init(nets, init_key)
    adam = optax.adam(nets.settings.learning_rate)
    states = [adam.init({name: params[name] for name in parts}) for parts in model.players]
    X, y = jnp.asarray(samples.X, jnp.float32), jnp.asarray(samples.y, jnp.int32)

    @jax.jit
    def run(params, states, order):
        def step(carry, x):
            params, states = carry
            t, chosen = x
            values, new = [], []
            for i, (parts, state) in enumerate(zip(model.players, states, strict=True)):
                key = jax.random.fold_in(jax.random.fold_in(noise_key, t), i)
                moved = {name: params[name] for name in parts}

                def loss(moved, params=params, key=key, i=i):
                    every = params | moved
                    return model.losses(nets, every, X[chosen], y[chosen], key)[i](every)

                value, gradient = jax.value_and_grad(loss)(moved)
                update, state = adam.update(gradient, state)
                params = params | optax.apply_updates(moved, update)
                values.append(value)
                new.append(state)
            return (params, new), jnp.stack(values)

        (params, _), values = jax.lax.scan(step, (params, states), (jnp.arange(len(order)), order))
        return params, values

    params, values = run(params, states, jnp.asarray(order))
    return params, np.asarray(values)


def generate(model, nets: Networks, params, samples, seed: int) -> np.ndarray:
    """What a trained model makes of test samples: reconstructions, or as many new ones."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    y = jnp.asarray(samples.y, jnp.int32)
    if hasattr(model, "reconstruct"):
        made = model.reconstruct(nets, params, key, jnp.asarray(samples.X, jnp.float32), y)
    else:
        made = model.generate(nets, params, key, y)
    return np.asarray(made, np.float64)
