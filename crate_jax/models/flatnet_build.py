"""Builds a FlatNet: one layer after the other, until nothing moves any more.

"Representation Learning via Manifold Flattening and Reconstruction" (arXiv 2305.01777), as its code
does it. An iteration draws an anchor, finds the smallest dimension that fits around it, finds the
largest radius at which a quadratic patch of that dimension fits, and flattens there:

    1. d: fits at the radius r_d, a column more where the largest weighted residual exceeds
       ``max_error_ratio r_d``, a column less where it does not;
    2. r: a secant step of log(loss) to log(threshold), from r_d and the middle radius;
    3. alpha = min(alpha_max, sqrt(threshold / loss at r)): what fits badly is hardly moved;
    4. the layer is kept where the data move by 1e-4 or more (root mean square of the entries).

All thresholds are absolute, so the data are brought to a common scale first. Where the code has
traps, this has guards: the loss is floored, d is capped, what is not finite is an error, the loss
that belongs to an accepted dimension is the accepted fit's.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from crate_jax.config import ConfigError, nearest
from crate_jax.models import flatnet_descent
from crate_jax.models.flatnet import Layer, Stack, stack_layers
from crate_jax.models.flatnet_fit import Patch, Points, fit_patch, gamma_of, local_frame
from crate_jax.models.flatnet_settings import PRESETS, TRANSFORMS, Construction, check
from crate_jax.ops import point_distances
from crate_jax.ops.flattening import num_products

QUIET = 1e-4
"""Root mean square movement below which a layer is not kept."""


@dataclasses.dataclass(frozen=True)
class Iteration:
    """What an outer iteration did.

    Attributes:
      index: from 0 on.
      d: dimension found.
      r: radius, in units of the initial diameter.
      loss: of the patch at r.
      alpha: of the layer.
      mass: of the kernel at r_d: how many neighbours the dimension search saw.
      moved: root mean square movement of the data's entries.
      added: whether the layer was kept.
      depth: layers so far.
      fits, steps: of the inner descent, all in all.
      outside: energy outside the first d directions after it, over all energy.
      seconds: it took.
    """

    index: int
    d: int
    r: float
    loss: float
    alpha: float
    mass: float
    moved: float
    added: bool
    depth: int
    fits: int
    steps: int
    outside: float
    seconds: float


def build(
    X: Array, *, preset: str = "head", seed: int = 0, mesh: Mesh | None = None,
    progress: Callable[[Iteration], None] | None = None, **overrides,
) -> "Builder":  # fmt: skip
    """Builds a network to the end.

    Args:
      X: ``(N, D)`` points; float64 is kept where x64 is on.
      preset: a key of ``models.flatnet_settings.PRESETS``.
      seed: of anchors and starts.
      mesh: see :class:`Builder`.
      progress: told of every iteration.
      **overrides: settings of :class:`Construction`.

    Returns:
      The builder, with its ``stack``, its ``iterations`` and its ``ended``.
    """
    if preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}{nearest(str(preset), PRESETS)}")
    builder = Builder(X, Construction(**{**PRESETS[preset], **overrides}), seed=seed, mesh=mesh)
    while builder.ended is None:
        iteration = builder.advance()
        if progress is not None:
            progress(iteration)
    return builder


class Builder:
    """A network under construction.

    All that decides the next iteration is the seed, the number of iterations so far, and
    :meth:`memory`: a construction that is stopped and taken up again gives the same bits.

    Args:
      X: ``(N, D)``.
      construction: how.
      seed: of anchors and starts.
      mesh: with an axis ``data``, over which the points are then split.

    Attributes:
      points: the data as they are after the layers so far.
      iterations: what was done.
      ended: None, or why there is no further iteration.
    """

    def __init__(
        self, X: Array, construction: Construction, *, seed: int = 0, mesh: Mesh | None = None
    ):
        check(construction)
        X = np.asarray(X)
        if X.ndim != 2 or X.shape[0] < 2 or X.shape[1] < 2 or not np.isfinite(X).all():
            raise ConfigError(
                f"FlatNet takes finite points (N, D), two of each at least; got {X.shape}."
            )
        self.construction, self.seed, self.ended = construction, seed, None
        self.iterations: list[Iteration] = []
        self._layers: list[Layer] = []
        self._quiet, self._d = 0, 1
        self._N, self._D = X.shape
        # No more products than points: what fits everything says nothing.
        self._d_max = max(
            d for d in range(1, min(construction.d_max, self._D) + 1)
            if d == 1 or num_products(d) <= self._N
        )  # fmt: skip
        dtype = jnp.promote_types(jnp.asarray(X[:1]).dtype, jnp.float32)
        self.centre, self.scale = _normalisation(X, construction.normalise, dtype)
        X = (X.astype(dtype) - self.centre) / self.scale
        self._diameter = float(jax.jit(point_distances.diameter)(X))
        if not self._diameter > 0:
            raise ConfigError("all points are the same one; there is nothing to flatten.")
        self._r_step = 0.0
        if construction.n_iter_rsearch > 1 and self._N <= point_distances.EXACT:
            smallest = float(jax.jit(point_distances.smallest_distance)(X))
            self._r_step = construction.r_step_min * smallest
        self._mesh = mesh
        self.points = self._place(X)
        self._fit = _fitter(
            construction.inner, construction.learning_rate, construction.retraction,
            construction.n_iter_inner, construction.tolerance,
        )  # fmt: skip

    @property
    def stack(self) -> Stack:
        """The layers so far."""
        return stack_layers(self._layers, self.centre, self.scale)

    @property
    def features(self) -> np.ndarray:
        """``(N, D)``, the data after the layers so far."""
        Z = np.asarray(self.points.Z)
        return Z.transpose(0, 2, 1).reshape(-1, self._D)[: self._N]

    def memory(self) -> dict[str, Array]:
        """What a later :meth:`recall` needs.

        ``Z`` is ``(B, D, n)``, float64 as ``(B, D, n, 2)`` words of 32 bits: the threads that write
        and read checkpoints do not know that x64 is on.
        """
        counts = (len(self.iterations), len(self._layers), self._quiet, self._d)
        Z = self.points.Z
        if Z.dtype == jnp.float64:
            Z = jax.lax.bitcast_convert_type(Z, jnp.uint32)
        return {"Z": Z, "counts": jnp.asarray(counts, jnp.int32)}

    def recall(self, memory: dict, stack: Stack, iterations: list[Iteration]) -> None:
        """Goes back to where :meth:`memory` was taken.

        Args:
          memory: as it was.
          stack: at least the layers of then.
          iterations: at least those of then.
        """
        index, depth, self._quiet, self._d = (int(x) for x in memory["counts"])
        self.iterations = list(iterations[:index])
        self._layers = [_cut(stack, l) for l in range(depth)]
        Z = jnp.asarray(memory["Z"])
        if Z.dtype == jnp.uint32:
            Z = jax.lax.bitcast_convert_type(Z, jnp.float64)
        if self._mesh is not None:
            Z = jax.device_put(Z, self.points.Z.sharding)
        self.points = self.points._replace(Z=Z)
        self._judge()

    def advance(self) -> Iteration:
        """One more iteration."""
        start, index = time.perf_counter(), len(self.iterations)
        rng = np.random.default_rng([self.seed, index])
        candidates = [self._candidate(rng) for _ in range(self.construction.n_anchors)]
        best = max(candidates, key=lambda candidate: candidate.moved)
        added = best.moved >= QUIET
        self._quiet = 0 if added or best.r < self._radius("r_max") else self._quiet + 1
        if added:
            self._layers.append(jax.tree.map(np.asarray, best.layer))
            self.points, self._d = self.points._replace(Z=best.Z), best.d
        outside = float(_energy_outside(self.points, best.d))
        iteration = Iteration(
            index, best.d, best.r / self._diameter, best.loss, float(best.layer.alpha), best.mass,
            best.moved, added, len(self._layers), sum(c.fits for c in candidates),
            sum(c.steps for c in candidates), outside, time.perf_counter() - start,
        )  # fmt: skip
        self.iterations.append(iteration)
        self._judge()
        return iteration

    def _judge(self) -> None:
        construction, last = self.construction, self.iterations[-1] if self.iterations else None
        self.ended = None
        if self._quiet >= construction.n_stop:
            self.ended = f"{self._quiet} iterations moved nothing at the largest radius"
        elif last and last.added and last.outside < construction.stop_energy:
            self.ended = f"energy outside d = {last.d} directions is {last.outside:.1e}"
        elif last and len(self.iterations) >= construction.n_iter:
            self.ended = f"{construction.n_iter} iterations"

    def _radius(self, name: str) -> float:
        return getattr(self.construction, name) * self._diameter

    def _place(self, X: np.ndarray) -> Points:
        """Points ``(N, D)`` as chunks, split over the mesh."""
        shards = 1 if self._mesh is None else self._mesh.shape["data"]
        B = -(-self._N // self.construction.chunk)  # as few as may be, all of about one size
        n = -(-self._N // (B * shards)) * shards
        padded = np.zeros((B * n, self._D), X.dtype)
        padded[: self._N] = X
        Z = padded.reshape(B, n, self._D).transpose(0, 2, 1)
        valid = (np.arange(B * n) < self._N).astype(X.dtype).reshape(B, n)
        if self._mesh is None:
            return Points(jnp.asarray(Z), jnp.asarray(valid))
        places = (PartitionSpec(None, None, "data"), PartitionSpec(None, "data"))
        return Points(*(
            jax.device_put(x, NamedSharding(self._mesh, place))
            for x, place in zip((Z, valid), places, strict=True)
        ))  # fmt: skip

    def _candidate(self, rng: np.random.Generator) -> "_Candidate":
        """The layer of one anchor, and the data after it."""
        n = self.points.Z.shape[2]
        anchor = int(rng.integers(self._N))
        z_c = self.points.Z[anchor // n, :, anchor % n]
        search = _Search(self, z_c, rng)
        r_d, U, loss_d = search.find_dimension()
        patch, r = search.find_radius(U, r_d, loss_d)
        construction = self.construction
        loss = float(patch.loss)
        alpha = min(construction.alpha_max, math.sqrt(construction.thres_recon / loss))
        found = (loss, r, alpha)
        if not np.isfinite(found).all() or not np.isfinite(patch.V).all():
            raise FloatingPointError(f"the fit about point {anchor} has loss, r, alpha {found}.")
        Z, layer, moved = _apply(
            self.points, patch.U, patch.V, patch.mu, z_c, jnp.asarray(r, z_c.dtype),
            jnp.asarray(alpha, z_c.dtype), renormalise=construction.renormalise,
        )  # fmt: skip
        return _Candidate(
            layer, Z, float(moved), U.shape[1], r, loss, search.mass, search.fits, search.steps
        )


@dataclasses.dataclass(frozen=True)
class _Candidate:
    layer: Layer
    Z: Array
    moved: float
    d: int
    r: float
    loss: float
    mass: float
    fits: int
    steps: int


class _Search:
    """The fits about one anchor.

    Attributes:
      fits, steps: how many so far.
      mass: of the kernel at the last dimension fit.
    """

    def __init__(self, builder: Builder, z_c: Array, rng: np.random.Generator):
        self._b, self._z_c, self._rng = builder, z_c, rng
        self.fits, self.steps, self.mass = 0, 0, float("nan")

    def _run(self, U: Array, r: float) -> Patch:
        n_fit, dtype = self._b.construction.n_fit, self._z_c.dtype
        sample = jnp.asarray(self._rng.random(n_fit), dtype) if n_fit else None
        patch = self._b._fit(self._b.points, self._z_c, U, jnp.asarray(r, dtype), sample)
        self.fits, self.steps = self.fits + 1, self.steps + int(patch.steps)
        return patch

    def _orthonormal(self, d: int) -> Array:
        columns = jnp.asarray(self._rng.normal(size=(self._b._D, d)), self._z_c.dtype)
        return jnp.linalg.qr(columns)[0]

    def find_dimension(self) -> tuple[float, Array, float]:
        """The radius, U and loss of the smallest d that fits, starting from the last layer's."""
        construction, d = self._b.construction, min(self._b._d, self._b._d_max)
        r = self._b._radius("r_dimcheck")
        U = self._orthonormal(d)
        if construction.start == "frame":
            U = _frame(self._b.points, self._z_c, jnp.asarray(r, self._z_c.dtype), d)
        growing, kept = None, None
        for _ in range(self._b._D):
            patch = self._run(U, r)
            least = construction.min_mass * num_products(U.shape[1])
            while patch.mass < least and r < self._b._radius("r_max"):
                r *= 1.25
                patch = self._run(U, r)
            U, d, self.mass = patch.U, U.shape[1], float(patch.mass)
            if float(patch.error) <= construction.max_error_ratio * r:
                if growing or d == 1:
                    return r, U, float(patch.loss)
                growing, kept = False, (r, U, float(patch.loss))
                U = jnp.delete(U, int(jnp.argmin(patch.spread)), axis=1)
            else:
                if growing is False:
                    return kept
                if d >= self._b._d_max:
                    break
                growing = True
                U = jnp.linalg.qr(jnp.concatenate([U, self._orthonormal(1)], axis=1))[0]
        return r, U, float(patch.loss)

    def find_radius(self, U: Array, r_d: float, loss_d: float) -> tuple[Patch, float]:
        """The secant's patch and radius, held between the least and the largest."""
        construction = self._b.construction
        low, high = self._b._radius("r_min"), self._b._radius("r_max")
        goal = math.log(construction.thres_recon)
        r = (low + high) / 2
        patch = self._run(U, r)
        other, here = (r_d, math.log(loss_d) - goal), (r, math.log(float(patch.loss)) - goal)
        for _ in range(construction.n_iter_rsearch):
            rise = here[1] - other[1]
            rise = math.copysign(max(abs(rise), 1e-6), rise)
            new = min(max(here[0] - here[1] * (here[0] - other[0]) / rise, low), high)
            change, r = abs(new - r), new
            patch = self._run(patch.U, r)
            value = math.log(float(patch.loss)) - goal
            across = (value > 0) != (other[1] > 0) and (value > 0) == (here[1] > 0)
            if not (construction.bracket and across):
                other = here
            here = (r, value)
            if change < self._b._r_step:
                break
        return patch, r


@functools.lru_cache(maxsize=16)
def _fitter(inner, learning_rate, retraction, max_steps, tolerance) -> Callable:
    """The compiled fit, one for all builders of the same settings."""
    if inner == "riemannian_adam":
        descent = flatnet_descent.riemannian_adam(learning_rate or 1.0, retraction=retraction)
    else:
        transform = TRANSFORMS[inner](learning_rate or 0.1)
        descent = flatnet_descent.from_transform(transform.init, transform.update, retraction)

    @jax.jit
    def fit(points, z_c, U, r, sample):
        return fit_patch(
            points, z_c, U, r, descent, max_steps=max_steps, tolerance=tolerance, sample=sample
        )

    return fit


_frame = functools.partial(jax.jit, static_argnames="d")(local_frame)


@functools.partial(jax.jit, static_argnames="renormalise")
def _apply(points, U, V, mu, z_c, r, alpha, *, renormalise):
    """The data ``(B, D, n)`` after a layer, the layer, and the root mean square movement."""
    Z, valid, highest = points.Z, points.valid[:, None], jax.lax.Precision.HIGHEST
    C, gamma = Z - mu[None, :, None], gamma_of(r)
    t = jnp.einsum("dk,bdn->bkn", U, C, precision=highest)
    n = C - jnp.einsum("dk,bkn->bdn", U, t, precision=highest)
    k = alpha * jnp.exp(-gamma * jnp.sum(jnp.square(C), axis=1, keepdims=True))
    Y, N = Z - k * n, jnp.sum(valid)
    m, s = jnp.zeros_like(mu), jnp.ones_like(r)
    if renormalise:
        m = jnp.sum(Y * valid, axis=(0, 2)) / N
        s = jnp.sqrt(jnp.max(valid[:, 0] * jnp.sum(jnp.square(Y - m[None, :, None]), axis=1)))
        s = jnp.where(s > 0, s, 1)
    new = valid * (Y - m[None, :, None]) / s
    moved = jnp.sqrt(jnp.sum(jnp.square(new - Z)) / (N * Z.shape[1]))
    return new, Layer(U, V, mu, z_c, gamma, alpha, m, s), moved


@functools.partial(jax.jit, static_argnames="d")
def _energy_outside(points: Points, d: int) -> Array:
    """Share of the centred energy that the first d principal directions leave, ``()``."""
    Z, valid, highest = points.Z, points.valid[:, None], jax.lax.Precision.HIGHEST
    C = valid * (Z - (jnp.sum(Z, axis=(0, 2)) / jnp.sum(valid))[None, :, None])
    G = jnp.einsum("bdn,ben->de", C, C, precision=highest)
    W = jnp.linalg.eigh(G)[1][:, ::-1][:, :d]
    # From what is left of the points: a difference of eigenvalues would cancel.
    t = jnp.einsum("dk,bdn->bkn", W, C, precision=highest)
    left = C - jnp.einsum("dk,bkn->bdn", W, t, precision=highest)
    total = jnp.sum(jnp.square(C))
    return jnp.sum(jnp.square(left)) / jnp.where(total > 0, total, 1)


def _normalisation(X: np.ndarray, kind: str, dtype) -> tuple[np.ndarray, np.ndarray]:
    """Centre ``(D,)`` and scale ``()``; in float64 whatever the data's dtype."""
    X, centre, scale = X.astype(np.float64), np.zeros(X.shape[1]), np.ones(())
    if kind == "unit_ball":
        centre = X.mean(axis=0)
        scale = np.sqrt(np.max(np.sum((X - centre) ** 2, axis=1)))
    elif kind == "rms":
        scale = np.sqrt(np.mean(X**2))
    scale = scale if scale > 0 else 1.0
    return centre.astype(dtype), np.asarray(scale, dtype)


def _cut(stack: Stack, l: int) -> Layer:
    """Layer l at its own d."""
    d, d_max = int(stack.dims[l]), stack.layers.U.shape[2]
    layer = jax.tree.map(lambda x: np.asarray(x[l]), stack.layers)
    i, j = np.triu_indices(d_max)
    return layer._replace(U=layer.U[:, :d], V=layer.V[:, (i < d) & (j < d)])
