"""Encoder and decoder, how each of them steps, and what the two play for.

``f`` maps samples to features and ``g`` back. The encoder leads and maximises ``Q - C``, the
decoder follows and maximises ``C`` (arXiv 2206.09120):

    several subspaces   Q = Delta R(f(X) | Pi)   C = - sum_j dist(f(X_j), f(g(f(X_j))))
    a single subspace   Q = R(f(X))              C = - dist(f(X), f(g(f(X))))

with ``dist(A, B) = R(A u B) - R(A)/2 - R(B)/2``, which is zero where the second moments agree.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from crate_jax.ops import coding_rate as rates
from crate_jax.ops import feasible_sets, stiefel
from crate_jax.studies.games.batches import Moments

_HIGHEST = jax.lax.Precision.HIGHEST

ADAM = optax.scale_by_adam()
"""PyTorch's defaults."""


SMALL = 0.1
"""Norm of a step whose entries are the rate; Adam's is at most some three times as long. Below it a
few Newton steps lead back to the manifold."""


def _product(A: Array, B: Array) -> Array:
    return jnp.matmul(A, B, precision=_HIGHEST)


def scale_by_scalar_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8):
    """Adam with one second moment for a whole matrix, the mean of its entries'.

    Adam scales each entry of a gradient by its own. Where a projection follows, what it then stands
    still at is no maximum of the payoff over the set: the scaled gradient is normal to the set
    there, and not the gradient. One scale for all has no such bias.
    """

    def init(F):
        return jnp.zeros([], jnp.int32), jnp.zeros_like(F), jnp.zeros([], F.dtype)

    def update(gradient, state, params=None):
        count, m, v = state
        count = count + 1
        m = b1 * m + (1 - b1) * gradient
        v = b2 * v + (1 - b2) * jnp.mean(gradient * gradient)
        t = count.astype(gradient.dtype)
        scale = jnp.sqrt(v / (1 - b2**t)) + eps
        return m / (1 - b1**t) / scale, (count, m, v)

    return optax.GradientTransformation(init, update)


SCALAR_ADAM = scale_by_scalar_adam()


def _step(optimizer, params, gradient, state, rate):
    update, state = optimizer.update(gradient, state)
    return jax.tree.map(lambda p, u: p - rate * u, params, update), state


@dataclasses.dataclass(frozen=True)
class Game:
    """What both kinds of players share: the payoffs.

    Attributes:
      name: ``msp`` or ``ssp``.
      num_classes: K.
      inputs: d_x.
      features: d_z.
      eps_sq: distortion squared.
    """

    name: str
    num_classes: int
    inputs: int
    features: int
    eps_sq: float

    def quality(self, Z: Array, batch) -> Array:
        """``Q`` of features ``Z = encode(F, batch)``."""
        if self.name == "ssp":
            return self.whole_rate(Z, batch)
        (each,) = class_rates(self.class_rows(Z, batch), eps_sq=self.eps_sq)
        return self.whole_rate(Z, batch) - jnp.sum(self.shares(batch) * each)

    def distance(self, Z: Array, Zhat: Array, batch) -> Array:
        """``-C``, summed over the classes."""
        return jnp.sum(self._distances(Z, Zhat, batch)[0])

    def follower_loss(self, Z: Array, Zhat: Array, batch) -> Array:
        """``-C`` but for the ``R(Z_j)``, which a decoder does not change."""
        A, B = self.class_rows(Z, batch), self.class_rows(Zhat, batch)
        both, other = class_rates(jnp.concatenate([A, B], axis=1), B, eps_sq=self.eps_sq)
        return jnp.sum(both - 0.5 * other)

    def payoffs(self, F, G, batch) -> tuple[Array, Array]:
        """``Q(f)`` and ``C(f, g)``."""
        Z = self.encode(F, batch)
        distances, each = self._distances(Z, self.returned(F, G, Z), batch)
        Q = self.whole_rate(Z, batch)
        if self.name == "msp":
            Q = Q - jnp.sum(self.shares(batch) * each)
        return Q, -jnp.sum(distances)

    def leader_utility(self, F, G, batch) -> Array:
        """``Q(f) - C(f, g)``."""
        Q, C = self.payoffs(F, G, batch)
        return Q - C

    def _distances(self, Z: Array, Zhat: Array, batch) -> tuple[Array, Array]:
        """Distance and ``R(Z_j)`` of every class, ``(K,)`` each."""
        A, B = self.class_rows(Z, batch), self.class_rows(Zhat, batch)
        both, one, other = class_rates(jnp.concatenate([A, B], axis=1), A, B, eps_sq=self.eps_sq)
        return both - 0.5 * one - 0.5 * other, one


def class_rates(*sets: Array, eps_sq: float) -> list[Array]:
    """``R`` of every class of several sets of rows, by one batch of log-determinants.

    One batch starts fewer operations than one for each set. It also keeps jaxlib's batched LAPACK
    kernels on a CPU from running two at a time: each waits for threads of the same pool, and with
    two cores two of them wait for each other forever.

    Args:
      *sets: ``(K, m, d)`` each, the number m of rows its own.
      eps_sq: distortion squared.

    Returns:
      ``(K,)`` for each set.
    """
    K, _, d = sets[0].shape
    side = min(max(Z.shape[1] for Z in sets), d)
    grams = []
    for Z in sets:
        m = Z.shape[1]
        pattern = "kid,kjd->kij" if side < d else "kmi,kmj->kij"
        gram = d / (m * eps_sq) * jnp.einsum(pattern, Z, Z, precision=_HIGHEST)
        short = side - gram.shape[1]
        grams.append(jnp.pad(gram, ((0, 0), (0, short), (0, short))))
    halves = 0.5 * rates.logdet_identity_plus(jnp.concatenate(grams))
    return jnp.split(halves, len(sets)) if len(sets) > 1 else [halves]


@dataclasses.dataclass(frozen=True)
class LinearGame(Game):
    """``f(x) = F x`` and ``g(z) = G z``, on :class:`Moments`.

    Attributes:
      manifold: see ``settings.Players``; of ``ssp`` alone.
      leader: see ``settings.Play``; of ``msp`` alone.
    """

    manifold: str = "official"
    leader: str = "adam"

    @property
    def encoder_is_riemannian(self) -> bool:
        """Whether the encoder steps along the Stiefel manifold."""
        return self.manifold == "stiefel" or self.features >= self.inputs

    @property
    def decoder_is_riemannian(self) -> bool:
        """Whether the decoder does."""
        return self.manifold == "stiefel" or self.features < self.inputs

    def init(self, key: Array, dtype) -> tuple[Array, Array]:
        """``F (d_z, d_x)`` and ``G (d_x, d_z)``: Gaussian entries, or points of the manifold."""
        keys, shapes = jax.random.split(key), ((self.features, self.inputs),)
        shapes = (*shapes, shapes[0][::-1])
        draw = jax.random.normal if self.name == "msp" else _random_orthonormal
        return tuple(draw(k, shape, dtype) for k, shape in zip(keys, shapes, strict=True))

    def init_optimizers(self, F, G):
        """States of the two optimizers."""
        if self.name == "msp":
            leader = ADAM if self.leader == "adam" else SCALAR_ADAM
            return leader.init(F), ADAM.init(G)
        return (), stiefel.adam_init(_tall(G)) if self.decoder_is_riemannian else ADAM.init(G)

    def encode(self, F, batch: Moments) -> Array:
        """Features ``(K, r, d_z)`` of the rows."""
        return _product(batch.rows, F.T)

    def class_rows(self, Z: Array, batch: Moments) -> Array:
        """Rows of every class ``(K, r, d_z)`` that have its second moment."""
        return Z

    def shares(self, batch: Moments) -> Array:
        """``n_j / n``, ``(K,)``."""
        return batch.share

    def whole_rate(self, Z: Array, batch: Moments) -> Array:
        """``R`` of all classes together, each with its share of the samples."""
        K, r, d = Z.shape
        weight = jnp.sqrt(batch.share * K)[:, None, None]
        return rates.coding_rate((weight * Z).reshape(K * r, d), eps_sq=self.eps_sq)

    def returned(self, F, G, Z) -> Array:
        """``f(g(Z))``; ``F G`` comes first, which is smaller than the samples."""
        return _product(Z, _product(F, G).T)

    def rows(self, F, G, X) -> dict[str, np.ndarray]:
        """``f``, ``g f`` and ``f g f`` of samples, in float64; ``X`` besides."""
        X, F, G = (np.asarray(x, np.float64) for x in (X, F, G))
        Z = X @ F.T
        back = Z @ G.T
        return {"X": X, "fX": Z, "gfX": back, "fgfX": back @ F.T}

    def lead(self, F, gradient, state, rate, batch: Moments):
        """The encoder's step against the gradient and its projection by this batch alone."""
        if self.name == "msp":
            optimizer = ADAM if self.leader == "adam" else SCALAR_ADAM
            F, state = _step(optimizer, F, gradient, state, rate)
            return self.project(F, batch), state
        if self.encoder_is_riemannian:
            F = _wide_or_tall(F, stiefel.sgd_step(_tall(F), _tall(gradient), rate))
        else:
            F = F - rate * gradient
        return stiefel.polar(F), state

    def project(self, F, batch: Moments) -> Array:
        """The nearest encoder of ``msp`` with ``||F X_j||^2 <= n_j`` for every class."""
        K, r, d = batch.rows.shape
        members = jnp.repeat(jnp.eye(K, dtype=F.dtype), r, axis=0, total_repeat_length=K * r)
        limits = jnp.full(K, r, F.dtype)
        return feasible_sets.project_class_norms(F, batch.rows.reshape(K * r, d), members, limits)

    def excess(self, F, batch: Moments) -> Array:
        """How far F is from its set: ``max_j ||F X_j||^2 / n_j - 1``, or of orthonormality."""
        if self.name == "msp":
            Z = self.encode(F, batch)
            return jnp.max(jnp.mean(jnp.sum(Z * Z, axis=-1), axis=-1)) - 1
        X = _tall(F)
        return jnp.max(jnp.abs(_product(X.T, X) - jnp.eye(X.shape[1], dtype=X.dtype)))

    def follow(self, G, gradient, state, rate):
        """The decoder's step and, of ``ssp``, its projection."""
        if self.name == "msp":
            return _step(ADAM, G, gradient, state, rate)
        if self.decoder_is_riemannian:
            X, state = stiefel.adam_step(_tall(G), _tall(gradient), state, rate)
            return _wide_or_tall(G, stiefel.polar_newton(X, 1)), state  # X is off by rounding
        G, state = _step(ADAM, G, gradient, state, rate)
        near = rate * G.size**0.5 < SMALL
        return jax.lax.cond(near, stiefel.polar_newton, stiefel.polar, G), state


def _random_orthonormal(key, shape, dtype):
    point = stiefel.random_point(key, max(shape), min(shape), dtype)
    return point if shape[0] >= shape[1] else point.T


def _tall(X: Array) -> Array:
    """A wide matrix by its transpose: a point of the manifold has orthonormal columns."""
    return X if X.shape[0] >= X.shape[1] else X.T


def _wide_or_tall(like: Array, point: Array) -> Array:
    return point if like.shape == point.shape else point.T


@dataclasses.dataclass(frozen=True)
class NetworkGame(Game):
    """ReLU networks, on :class:`Labelled` batches; features have unit length.

    Attributes:
      layers: linear layers of each.
      width: between them.
    """

    layers: int = 2
    width: int = 40

    def init(self, key: Array, dtype):
        """Weights and biases of both networks, by PyTorch's default law."""
        inner = [self.width] * (self.layers - 1)
        sizes = [self.inputs, *inner, self.features]
        f, g = jax.random.split(key)
        return init_network(f, sizes, dtype), init_network(g, sizes[::-1], dtype)

    def init_optimizers(self, F, G):
        """States of the two optimizers."""
        return ADAM.init(F), ADAM.init(G)

    def encode(self, F, batch) -> Array:
        """Features ``(N, d_z)`` of the samples."""
        return self.features_of(F, batch.X)

    def class_rows(self, Z: Array, batch) -> Array:
        """``(K, N, d_z)`` with the second moment of each class: its samples, zeros for others."""
        members = jax.nn.one_hot(batch.y, self.num_classes, dtype=Z.dtype)
        weight = jnp.sqrt(len(Z) / jnp.maximum(jnp.sum(members, axis=0), 1.0))
        return (members * weight[None, :]).T[:, :, None] * Z[None]

    def shares(self, batch) -> Array:
        """``n_j / n``, ``(K,)``."""
        return jnp.mean(jax.nn.one_hot(batch.y, self.num_classes, dtype=batch.X.dtype), axis=0)

    def whole_rate(self, Z: Array, batch) -> Array:
        """``R`` of all samples."""
        return rates.coding_rate(Z, eps_sq=self.eps_sq)

    def features_of(self, F, X) -> Array:
        """``f(X)``."""
        Z = apply_network(F, X)
        norm_sq = jnp.sum(Z * Z, axis=-1, keepdims=True)
        return Z * jax.lax.rsqrt(jnp.where(norm_sq > 0, norm_sq, 1.0))

    def returned(self, F, G, Z) -> Array:
        """``f(g(Z))``."""
        return self.features_of(F, apply_network(G, Z))

    def rows(self, F, G, X) -> dict[str, np.ndarray]:
        """``f``, ``g f`` and ``f g f`` of samples, as float64; ``X`` besides."""
        X = jnp.asarray(X, F[0]["kernel"].dtype)
        Z = self.features_of(F, X)
        back = apply_network(G, Z)
        out = {"X": X, "fX": Z, "gfX": back, "fgfX": self.features_of(F, back)}
        return {name: np.asarray(x, np.float64) for name, x in out.items()}

    def lead(self, F, gradient, state, rate, batch):
        """The encoder's step; there is nothing to project."""
        return _step(ADAM, F, gradient, state, rate)

    def excess(self, F, batch) -> Array:
        """No constraint but the unit length, which holds by construction."""
        return jnp.zeros([], batch.X.dtype)

    def follow(self, G, gradient, state, rate):
        """The decoder's step."""
        return _step(ADAM, G, gradient, state, rate)


def init_network(key: Array, sizes, dtype) -> list[dict[str, Array]]:
    """Linear layers ``sizes[i] -> sizes[i + 1]``, uniform in ``1/sqrt(inputs)``: PyTorch's law."""
    layers = []
    for n, m in zip(sizes[:-1], sizes[1:], strict=True):
        key, w, b = jax.random.split(key, 3)
        bound = n**-0.5
        layers.append(
            {
                "kernel": jax.random.uniform(w, (n, m), dtype, -bound, bound),
                "bias": jax.random.uniform(b, (m,), dtype, -bound, bound),
            }
        )
    return layers


def apply_network(layers, X: Array) -> Array:
    """The layers on rows ``X``, with ReLU between them."""
    for i, layer in enumerate(layers):
        X = _product(jax.nn.relu(X) if i else X, layer["kernel"])
        X = X + layer["bias"].reshape((1,) * (X.ndim - 1) + (-1,))
    return X


def make_game(settings, num_classes: int, inputs: int, linear: bool) -> Game:
    """The game of some settings on samples of ``inputs`` numbers, by linear players or networks."""
    players = settings.players
    shared = (settings.game, num_classes, inputs, players.features, players.eps_sq)
    if linear:
        return LinearGame(*shared, manifold=players.manifold, leader=settings.play.leader)
    return NetworkGame(*shared, layers=players.layers, width=players.width)
