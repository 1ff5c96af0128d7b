"""Trains a perceptron on real samples to the optimum of regularised rate reduction.

The landscape paper's experiment ("A Global Geometric Analysis of Maximal Coding Rate Reduction",
ICML 2024) as its released code has it: 100 samples of each of the first classes, all of them in
every step, pixels -> 2048 -> LayerNorm -> ReLU -> features, AdamW under a cosine and a warm-up that
run together. Such a network can give every sample the feature it likes, so the optimum ``F*`` of
the features alone (``ops.rate_landscape``) is what it should reach. It takes a minute or a few and
starts over where a signal stops it. It ends in a verdict table, ``results.json``, a page and its
figures.

Features of unit length (the other network of the code) solve the constrained problem instead; their
reference is the isotropic rate reduction of the best ranks.
"""

import json
import math
import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table as Shown

from crate_jax.interpret import subspaces
from crate_jax.interpret.page import Picture, Table, write_page
from crate_jax.interpret.summary import facts
from crate_jax.ops import rate_landscape as forms
from crate_jax.ops.regularised_rate import regularised_rate_reduction
from crate_jax.studies.claims import COLUMNS, Claim, verdict_table
from crate_jax.studies.landscape_data import figures
from crate_jax.studies.landscape_data.settings import Settings, check
from crate_jax.studies.landscape_data.training import Look, load, train
from crate_jax.train import whole

__all__ = ["Settings", "check", "run"]


class Reference(NamedTuple):
    """What the features should come to.

    Attributes:
      name: of the optimum.
      value: F there, nats.
      sigma: of every singular value that is not 0; None where classes differ.
    """

    name: str
    value: float
    sigma: float | None


class Measured(NamedTuple):
    """Features at an epoch; in float64 whatever they were trained in.

    Attributes:
      epoch: counted from 1.
      value: F, nats.
      ranks: numerical ranks of the classes.
      low, high: least and largest singular value within the ranks.
      cosine: largest |cos| of samples of different classes.
    """

    epoch: int
    value: float
    ranks: tuple[int, ...]
    low: float
    high: float
    cosine: float


def run(settings: Settings, workdir: pathlib.Path, console: Console) -> int:
    """Trains, measures, writes; returns 0 whatever the verdicts are."""
    start = time.perf_counter()
    images = load(settings)
    goal = reference_of(settings)
    with console.status("training ...") as status:
        values, looks = train(
            settings, images,
            lambda epoch, F: status.update(
                f"epoch {epoch} of {settings.epochs}: F = {F:.4f} of {goal.value:.4f} nats"
            ),
        )  # fmt: skip
    measured = [measure(settings, look) for look in looks]
    claims = check_features(settings, goal, measured[-1])
    rows = [_cells(m, goal) for m in measured]
    course = Shown(*_COURSE, title="Course")
    for row in rows:
        course.add_row(*row)
    table = verdict_table(claims, "Landscape, real data")
    console.print(course)
    console.print(table)
    about = _about(settings, images, goal, measured[-1], claims)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        _write(workdir, settings, goal, values, looks[-1], rows, claims, about)
    seconds = f"{time.perf_counter() - start:.1f}"
    console.print(facts(**about, seconds=seconds, page=str(workdir / "index.html")))
    return 0


def reference_of(settings: Settings) -> Reference:
    """The optimum that belongs to the settings."""
    sizes, d, eps_sq = settings.sizes, settings.d, settings.eps_sq
    if settings.unit_norm:  # the regulariser is a constant
        ranks = forms.isotropic_ranks(sizes, d, eps_sq=eps_sq)
        value = forms.isotropic_rate_reduction(ranks, sizes, d, eps_sq=eps_sq)
        name = "the isotropic optimum"
        return Reference(name, value - settings.lmbda / 2 * sum(sizes), None)
    law = {"eps_sq": eps_sq, "lmbda": settings.lmbda}
    square = forms.stationary_squares(sizes[0], sum(sizes), d, **law)[0]
    return Reference("the optimum F*", forms.optimum(sizes, d, **law), math.sqrt(square))


def measure(settings: Settings, look: Look) -> Measured:
    """Numbers about the features of one epoch."""
    labels = _labels(settings)
    spectra = subspaces.class_spectra(look.Z, labels, settings.classes)
    largest = max(s.max() for s in spectra)
    ranks = tuple(subspaces.numerical_rank(s, largest=largest) for s in spectra)
    held = np.concatenate([s[:r] for s, r in zip(spectra, ranks, strict=True)])
    with jax.enable_x64(True):
        value = regularised_rate_reduction(
            jnp.asarray(look.Z, jnp.float64), settings.sizes, eps_sq=settings.eps_sq,
            lmbda=settings.lmbda,
        )  # fmt: skip
    cosine = subspaces.max_cosine_between(look.Z, labels, settings.classes)
    return Measured(look.epoch, float(value), ranks, held.min(), held.max(), cosine)


def check_features(settings: Settings, goal: Reference, end: Measured) -> list[Claim]:
    """What the theorem says of the features at the end."""
    claims = [
        Claim("data", "training reaches the optimum of the features alone",
              "F / F* = 1" if goal.sigma else "F / (isotropic optimum) = 1",
              abs(end.value / goal.value - 1), 1e-5 if goal.sigma else 1e-2),
        Claim("data", "classes are orthogonal", "|cos| of samples of two classes = 0", end.cosine,
              1e-3 if goal.sigma else 1e-1),
        Claim("data", "and use every dimension", "sum_k r_k = min(N, d)",
              float(abs(sum(end.ranks) - min(sum(settings.sizes), settings.d))), 0.0),
    ]  # fmt: skip
    if goal.sigma:
        off = max(abs(s / goal.sigma - 1) for s in (end.low, end.high))
        claims.append(
            Claim("data", "singular values are 0 or sigma_k", "s / sigma_k = 1", off, 1e-3)
        )
    return claims


def _labels(settings: Settings) -> np.ndarray:
    return np.repeat(np.arange(settings.classes), settings.per_class)


def _cells(m: Measured, goal: Reference) -> tuple[str, ...]:
    return (
        str(m.epoch), f"{m.value:.4f}", f"{m.value / goal.value:.6f}", str(m.ranks),
        f"{m.low:.4f} to {m.high:.4f}", f"{m.cosine:.1e}",
    )  # fmt: skip


def _about(settings: Settings, images, goal: Reference, end: Measured, claims) -> dict[str, str]:
    sigma = {} if goal.sigma is None else {"sigma_k": f"{goal.sigma:.4f}"}
    return {
        "samples": f"{settings.source}, {settings.classes} classes of {settings.per_class}",
        "network": f"{math.prod(images.shape[1:])} pixels, {settings.hidden} hidden, "
        f"{settings.d} features{' of unit length' if settings.unit_norm else ''}",
        "augmentation": settings.augment,
        "lmbda": f"{settings.lmbda:g}",
        f"{goal.name} (nats)": f"{goal.value:.6f}",
        **sigma,
        "F at the end (nats)": f"{end.value:.6f}, {end.value / goal.value:.6f} of it",
        "verdict": f"{sum(c.holds for c in claims)} of {len(claims)} claims hold",
    }


def _write(workdir, settings, goal, values, last: Look, rows, claims, about) -> None:
    paths = {name: workdir / f"{name}.png" for name in ("course", "features")}
    figures.course_figure(values, goal.value, goal.name, paths["course"])
    figures.features_figure(last.Z, _labels(settings), goal.sigma, paths["features"])
    write_page(
        workdir / "index.html",
        "Rate reduction on real samples",
        [
            _INTRODUCTION,
            Table("What was trained", ("", ""), list(about.items())),
            Table("Verdicts", COLUMNS, [claim.cells() for claim in claims]),
            Picture("Course", paths["course"]),
            Picture("Features", paths["features"], _FEATURES),
            Table("Features on the way", _COURSE, rows, _COURSE_NOTE),
        ],
    )
    results = {
        "about": about,
        "claims": [claim.record() for claim in claims],
        "course": [dict(zip(_COURSE, row, strict=True)) for row in rows],
    }
    whole.write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")


_INTRODUCTION = (
    "A perceptron of one hidden layer on a few hundred samples, all of them in every step, after "
    "'A Global Geometric Analysis of Maximal Coding Rate Reduction' (ICML 2024) and its released "
    "code. F = R - R^c - lmbda/2 ||Z||^2 in nats."
)
_FEATURES = "Every class fills a subspace with equal singular values, orthogonal to the others."
_COURSE = ("epoch", "F (nats)", "F / optimum", "ranks", "singular values", "|cos| between classes")
_COURSE_NOTE = (
    "Ranks count singular values above a hundredth of the largest, the singular values are theirs."
)
