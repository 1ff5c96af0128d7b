"""Walks over the landscape of regularised rate reduction and holds it against its closed form.

"A Global Geometric Analysis of Maximal Coding Rate Reduction" (ICML 2024) says of ``F(Z) = R(Z) -
R^c(Z|Pi) - lmbda/2 ||Z||_F^2`` where its maximisers are and that all other critical points can be
left upwards (``ops.rate_landscape``). This study builds the critical points and measures value,
gradient and curvature there; leaves the saddles; climbs from many random starts by gradient steps
and by L-BFGS; asks which starts zero keeps; shows from which lmbda on the theorem's global
maximisers are none; and climbs the constrained problem. All in float64. It ends in a verdict table,
``results.json``, a page and its figures. It runs for a minute or a few and starts over where a
signal stops it.
"""

import json
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from crate_jax.interpret.page import Picture, Table, write_page
from crate_jax.interpret.summary import facts
from crate_jax.ops import rate_landscape as forms
from crate_jax.studies.claims import COLUMNS, Claim, verdict_table
from crate_jax.studies.landscape import figures
from crate_jax.studies.landscape.ascent import (
    Ends,
    Run,
    check_ends,
    check_rise,
    describe,
    draw,
    gradient_ascent,
    lbfgs_ascent,
)
from crate_jax.studies.landscape.basin import Basin, check_basin, check_escape, explore
from crate_jax.studies.landscape.bounds import RATIOS, Bounds, check_bounds, sweep, turn
from crate_jax.studies.landscape.constrained import check_constrained
from crate_jax.studies.landscape.critical import (
    Checked,
    check_gradient,
    check_points,
    examine,
    list_points,
)
from crate_jax.studies.landscape.problem import Problem
from crate_jax.studies.landscape.settings import Settings, check, problem_of
from crate_jax.studies.precision import float64_on_cpu
from crate_jax.train import whole

__all__ = ["Settings", "check", "run"]


class Done(NamedTuple):
    """Everything measured; see the modules of the parts."""

    claims: list[Claim]
    checked: list[Checked]
    gradient: Run
    ends: dict[str, Ends]
    best: np.ndarray
    basin: Basin
    bounds: Bounds


def run(settings: Settings, workdir: pathlib.Path, console: Console) -> int:
    """Measures, compares, writes; returns 0 whatever the verdicts are."""
    start = time.perf_counter()
    problem = problem_of(settings)
    with float64_on_cpu("landscape"):
        done = measure(settings, problem, console)
    table = verdict_table(done.claims, "Landscape")
    console.print(table)
    about, tables = _about(problem, done), _tables(problem, done)
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        write_page(
            workdir / "index.html",
            "The landscape of rate reduction",
            [
                _INTRODUCTION,
                Table("What was climbed", ("", ""), list(about.items())),
                Table("Verdicts", COLUMNS, [c.cells() for c in done.claims], _VERDICTS),
                *_draw(workdir, problem, done),
                *tables,
            ],
        )
        results = {"about": about, "claims": [claim.record() for claim in done.claims]}
        for part in tables:
            rows = [dict(zip(part.columns, row, strict=True)) for row in part.rows]
            results[part.title.lower()] = rows
        whole.write_text(workdir / "results.json", json.dumps(results, indent=2) + "\n")
    seconds = f"{time.perf_counter() - start:.1f}"
    console.print(facts(**about, seconds=seconds, page=str(workdir / "index.html")))
    return 0


def measure(settings: Settings, problem: Problem, console: Console) -> Done:
    """All parts in turn."""
    rng = np.random.default_rng(settings.seed)
    limits = (settings.steps, settings.tolerance)
    with console.status("critical points ..."):
        points = list_points(problem, settings.points, rng)
        checked = examine(problem, points, rng)
        claims = check_points(problem, checked) + check_gradient(problem, rng)
    with console.status("gradient ascent ..."):
        starts = draw(problem, settings.starts, settings.std, settings.seed)
        climbed = gradient_ascent(problem, starts, 1 / problem.alpha, *limits)
    with console.status("L-BFGS ..."):
        faster = lbfgs_ascent(problem, starts, *limits)
    ends = {"gradient ascent": describe(problem, climbed), "L-BFGS": describe(problem, faster)}
    for by, end in ends.items():
        claims += check_ends(problem, by, end, settings.tolerance)
    claims.append(check_rise(climbed))
    with console.status("the basin of zero ..."):
        basin = explore(problem, settings.scales, settings.scale_starts, settings.seed, *limits)
        saddles = [point for point in points if point.kind == "saddle"]
        claims += check_basin(basin) + check_escape(problem, saddles, *limits)
    with console.status("the range of lmbda ..."):
        claims += check_bounds(rng)
        bounds = sweep()
    with console.status("the constrained problem ..."):
        claims += check_constrained(np.random.default_rng(settings.seed))
    best = max(ends.values(), key=lambda end: end.values.max())
    run = climbed if best is ends["gradient ascent"] else faster
    return Done(claims, checked, climbed, ends, run.Z[best.values.argmax()], basin, bounds)


def _about(problem: Problem, done: Done) -> dict[str, str]:
    bound = forms.lambda_max(problem.sizes, problem.d, eps_sq=problem.eps_sq)
    about = {
        "rows of the classes": ", ".join(map(str, problem.sizes)),
        "dimension d": f"{problem.d}",
        "eps squared": f"{problem.eps_sq:g}",
        "lmbda": f"{problem.lmbda:.6g}, {problem.lmbda / bound:.4f} of lambda_max",
        "optimum F* (nats)": f"{problem.optimum:.10f}, ranks {problem.best_ranks}",
    }
    for by, end in done.ends.items():
        reached = int((np.abs(end.values - problem.optimum) <= 1e-8).sum())
        low, middle, high = np.quantile(end.values / problem.optimum, (0, 0.5, 1))
        about[f"{by}: starts at F*"] = (
            f"{reached} of {len(end.values)}; F/F* {low:.4f} to {high:.4f}, median {middle:.4f}"
        )
    about["steps of gradient ascent"] = f"{len(done.gradient.values)}"
    about["verdict"] = f"{sum(c.holds for c in done.claims)} of {len(done.claims)} claims hold"
    return about


def _draw(workdir: pathlib.Path, problem: Problem, done: Done) -> list[Picture]:
    """Draws every figure; the pictures in the order of the page."""
    paths = {name: workdir / f"{name}.png" for name in _CAPTIONS}
    figures.ascent_figure(problem, done.gradient, done.ends, paths["ascent"])
    figures.features_figure(problem, done.best, paths["features"])
    figures.hessian_figure(done.checked, problem.alpha, paths["hessian"])
    figures.basin_figure(problem, done.basin, paths["basin"])
    figures.bounds_figure(done.bounds, paths["bounds"])
    return [Picture(title, paths[name], note) for name, (title, note) in _CAPTIONS.items()]


def _tables(problem: Problem, done: Done) -> list[Table]:
    """Critical points, classes, scales of the start, the corrected range."""
    points = [
        (
            c.point.kind, str(c.point.ranks), str(c.point.saddle_ranks), f"{c.value:.8f}",
            f"{c.gradient:.1e}", f"{c.values[0] / problem.alpha:.3g}",
            f"{(c.values > 1e-9 * problem.alpha).dot(c.counts):.0f}",
            f"{c.counts[np.abs(c.values) <= 1e-9 * problem.alpha].sum():.0f}",
        )
        for c in done.checked
    ]  # fmt: skip
    classes = []
    for k, n in enumerate(problem.sizes):
        law = {"eps_sq": problem.eps_sq}
        bound = forms.class_lambda_max(n, problem.N, problem.d, **law)
        zero = forms.lambda_zero(n, problem.N, problem.d, **law)
        value = forms.class_values(problem.sizes, problem.d, **problem.weights)[k]
        sigma, minus = problem.sigmas[k]
        numbers = (sigma, minus, value, bound, zero)
        classes.append((str(k), str(n), *(f"{x:.6g}" for x in numbers)))
    scales = [
        (
            f"{std:.3g}", f"{below.mean():.2f}", f"{np.median(values) / problem.optimum:z.4f}",
            f"{ranks.sum(-1).mean():.1f}", f"{(np.abs(values) < 1e-8).mean():.2f}",
        )
        for std, below, values, ranks in zip(
            done.basin.stds, done.basin.below, done.basin.values, done.basin.ranks, strict=True
        )
    ]  # fmt: skip
    return [
        Table("Critical points", _POINTS, points, _POINTS_NOTE),
        Table("Classes", _CLASSES, classes, _CLASSES_NOTE),
        Table("Scale of the start", _SCALES, scales, "Medians and means over the starts."),
        Table("Where the theorem turns", ("N/N_k", "lambda_0 / lambda_max"),
              [(str(ratio), f"{turn(ratio):.4f}") for ratio in RATIOS]),
    ]  # fmt: skip


_INTRODUCTION = (
    "Features Z themselves are the variables of F(Z) = R(Z) - R^c(Z|Pi) - lmbda/2 ||Z||^2 (nats), "
    "the regularised objective of 'A Global Geometric Analysis of Maximal Coding Rate Reduction' "
    "(ICML 2024). Its critical points, their curvature and its optimum F* are known in closed form "
    "and are held against what is measured, in float64."
)

_VERDICTS = (
    "Measured is the largest distance between the two sides, or a count of exceptions. The "
    "spectrum of the Hessian, the optimum by greedy ranks and the bound on the basin of zero are "
    "worked out in crate_jax/ops/rate_landscape.py and crate_jax/studies/landscape/basin.py."
)

_CAPTIONS = {
    "ascent": (
        "Value against the optimum",
        "Left: gradient ascent at the safe step. Right: both methods' ends. Every end is a local "
        "maximiser; with unequal classes most are not global.",
    ),
    "features": (
        "Features",
        "Left: rows of different classes are orthogonal. Right: a class's singular values are "
        "sigma_k or 0.",
    ),
    "hessian": (
        "Curvature",
        "Eigenvalues in descending order. The flat stretch at 0 is the manifold of maximisers; a "
        "saddle has positive ones.",
    ),
    "basin": (
        "The basin of zero",
        "Left: what one direction adds; below sigma_- it shrinks. Right: ends of gradient ascent "
        "from normal starts of each scale.",
    ),
    "bounds": (
        "The range of lmbda",
        "Left: two classes of 6 and 12 rows in 18 dimensions. Right: for any d and epsilon.",
    ),
}
"""Title and note of a figure, in the order of the page."""

_POINTS = (
    "kind", "ranks", "ranks of size sigma_-", "F (nats)", "largest gradient entry",
    "largest eigenvalue / alpha", "positive eigenvalues", "eigenvalues at 0",
)  # fmt: skip
_POINTS_NOTE = (
    "Of 'shared', the classes marked 1 lie along one direction. Where N d is above 1500 the "
    "eigenvalues are counted by their Lanczos weights, up to chance."
)
_CLASSES = (
    "class", "rows", "sigma_k", "sigma_-", "h_k(sigma_k^2)", "its lambda_max", "its lambda_0"
)  # fmt: skip
_CLASSES_NOTE = "A class gains nothing from lambda_0 on and holds no direction from lambda_max on."
_SCALES = (
    "std of the entries", "classes below sigma_- at the start", "F / F*", "directions used",
    "starts at zero",
)  # fmt: skip
