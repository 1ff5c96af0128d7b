"""What the theorems say of an equilibrium of linear players, beside what a game ended in.

Both theorems are of arXiv 2206.09120. Several subspaces: features of different classes are
orthogonal, each class keeps its dimension and fills it evenly, so that ``Delta R`` is that of the
isotropic configuration, and ``f(g(f(X_j)))`` spans what ``f(X_j)`` does. One subspace: f is an
isometry on it, so that ``R(f(X))`` is the rate of the samples' own spectrum in d_z dimensions, and
g undoes f up to a rotation inside the subspace. The tolerances are ours.
"""

import math

import numpy as np

from crate_jax.interpret import subspaces
from crate_jax.ops.rate_landscape import isotropic_rate_reduction
from crate_jax.studies.claims import Claim
from crate_jax.studies.games import measure


def conditions(settings, task) -> str:
    """Why the theorem says nothing of these samples and sizes; "" where it does."""
    players, dims = settings.players, task.dims
    if not task.clean:
        return "the samples are not clean"
    if players.features < sum(dims):
        return f"d_z={players.features} is less than the {sum(dims)} dimensions of the samples"
    if settings.game == "ssp":
        return ""
    X = task.train.X
    rank = subspaces.numerical_rank(subspaces.singular_values(X), 1e-6)
    if rank < sum(dims):
        return f"the subspaces are dependent: {rank} dimensions of {sum(dims)}"
    N = sum(task.sizes)
    bound = min(n / N * (players.features / d) ** 2 for n, d in zip(task.sizes, dims, strict=True))
    if players.eps_sq**2 > bound:
        return f"epsilon^4={players.eps_sq**2:g} is above {bound:g}"
    return ""


def best_quality(settings, task) -> float:
    """The largest Q of the training samples over the encoder's set, where the theorem holds."""
    players = settings.players
    if settings.game == "msp":
        return isotropic_rate_reduction(
            task.dims, task.sizes, players.features, eps_sq=players.eps_sq
        )
    s = subspaces.singular_values(task.train.X)
    scale = players.features / (len(task.train.X) * players.eps_sq)
    return float(0.5 * np.log1p(scale * s**2).sum())


def quality(settings, task, Z) -> float:
    """Q of the training samples' features, each class scaled to its energy where it has one."""
    if settings.game == "ssp":
        return measure.rate(Z, settings.players.eps_sq)
    y, K = task.train.y, task.num_classes
    return measure.rate_reduction(measure.renormalised(Z, y, K), y, K, settings.players.eps_sq)


def check(settings, task, features, course, gaps, part: str) -> list[Claim]:
    """The claims about the end of a game on the training samples.

    Args:
      settings: of the game.
      task: its samples.
      features: by name (``X``, ``fX``, ``gfX``, ``fgfX``), rows of the training samples.
      course: ``quality``, ``consistency``, ``excess`` of every turn.
      gaps: ``responses.Gaps``.
      part: which game this is, for the table.
    """
    best = best_quality(settings, task)
    several = settings.game == "msp"
    claims = [
        (
            "C is never positive", "max C <= 0", np.maximum(course["consistency"].max(), 0.0),
            1e-4,
        ),
        (
            "the encoder is in its set after each projection",
            "||F X_j||^2 <= n_j" if several else "F F^T = I or F^T F = I",
            course["excess"].max(), 1e-4,
        ),
        (
            "the follower's best response gains nothing", "max_g C = 0 -> C / Q",
            gaps.follower / best, 1e-3,
        ),
        (
            "nor does its search from here", "C found - C, over Q", gaps.follower_found / best,
            1e-3,
        ),
        (
            "the leader's search from here gains nothing", "Q found - Q, over Q",
            gaps.leader_found / best, 1e-3,
        ),
    ]  # fmt: skip
    claims += (_several if several else _single)(settings, task, features, best)
    return [
        Claim(part, text, form, float(measured), tolerance)
        for text, form, measured, tolerance in claims
    ]


def _several(settings, task, features, best):
    """Claims of CTRL-MSP's theorem: text, form, measured, tolerance."""
    y, dims, Z = task.train.y, task.dims, features["fX"]
    K = task.num_classes
    scale = max(s.max(initial=0.0) for s in subspaces.class_spectra(Z, y, K))
    ranks = subspaces.class_ranks(Z, y, K, largest=scale)
    return [
        (
            "every class keeps its dimension", "rank f(X_j) = d_j",
            sum(r != d for r, d in zip(ranks, dims, strict=True)), 0.5,
        ),
        (
            "classes are orthogonal", "max cos(f(X_i), f(X_j)) = 0",
            measure.largest_principal_cosine(Z, y, dims), 1e-2,
        ),
        (
            "each class fills its subspace evenly", "sigma / sqrt(n_j / d_j) = 1",
            measure.anisotropy(Z, y, dims), 1e-2,
        ),
        (
            "Delta R is the isotropic one", f"Delta R = {best:.10f}",
            abs(quality(settings, task, Z) / best - 1), 1e-3,
        ),
        (
            "f(g(f(X_j))) spans what f(X_j) does", "max sin = 0",
            measure.largest_span_sine(Z, features["fgfX"], y, dims), 3e-2,
        ),
    ]  # fmt: skip


def _single(settings, task, features, best):
    """Claims of CTRL-SSP's theorem."""
    (dim,), y = task.dims, task.train.y
    X, Z = features["X"], features["fX"]
    ratios = measure.isometry_ratios(X, Z)
    s = subspaces.singular_values(X)[:dim]

    def off(name):
        return np.abs(subspaces.singular_values(features[name])[:dim] / s - 1).max()

    return [
        (
            "f is an isometry on the subspace", "||f(x) - f(x')|| / ||x - x'|| = 1",
            np.abs(ratios - 1).max(), 2e-4,
        ),
        (
            "R(f(X)) is at its bound", f"R = {best:.4f}",
            abs(quality(settings, task, Z) / best - 1), 1e-4,
        ),
        ("f(X) has the spectrum of X", "sigma_p equal", off("fX"), 1e-3),
        ("g(f(X)) has it too", "sigma_p equal", off("gfX"), 1e-3),
        ("f(g(f(X))) has it too", "sigma_p equal", off("fgfX"), 1e-2),
        (
            "X lies in the span of g(f(X))", "||x - P x|| / ||x|| = 0",
            measure.relative_residual(X, features["gfX"], y, task.dims), 3e-2,
        ),
    ]  # fmt: skip


def summary(settings, task, features, made: str) -> dict[str, float]:
    """Numbers that need no theorem, on any rows with their classes.

    Args:
      settings: of the game.
      task: its samples; ``test`` has the rows' classes.
      features: by name, rows of the test samples; with ``fX`` or without.
      made: the name of what lives beside X, ``gfX`` or ``gZ``.

    Returns:
      what is known of them, by name; of one class no cosines between classes.
    """
    y, dims, K = task.test.y, task.dims, task.num_classes
    X = features["X"]
    out = {
        "residual": measure.relative_residual(X, features[made], y, dims),
        "cosine_X": measure.mean_cosine_between(X, y),
        "cosine_made": measure.mean_cosine_between(features[made], y),
    }
    if "fX" in features:
        Z, back = features["fX"], features["fgfX"]
        out |= {
            "cosine_fX": measure.mean_cosine_between(Z, y),
            "quality": measure.rate_reduction(Z, y, K, settings.players.eps_sq)
            if settings.game == "msp"
            else measure.rate(Z, settings.players.eps_sq),
            "return_error": float(np.linalg.norm(back - Z) / np.linalg.norm(Z)),
        }
        if settings.game == "ssp":
            ratios = measure.isometry_ratios(X, Z)
            out |= {
                "isometry_mean": float(ratios.mean()),
                "isometry_least": float(ratios.min()),
                "isometry_most": float(ratios.max()),
            }
    return {name: value for name, value in out.items() if not math.isnan(value)}
