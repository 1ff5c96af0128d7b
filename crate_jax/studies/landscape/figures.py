"""The landscape's figures, drawn into files."""

import pathlib
from collections.abc import Sequence

import numpy as np

from crate_jax.interpret.plots import make_figure
from crate_jax.interpret.subspace_plots import heat_map, spectra
from crate_jax.ops import rate_landscape as forms
from crate_jax.studies.landscape.ascent import Ends, Run
from crate_jax.studies.landscape.basin import Basin
from crate_jax.studies.landscape.bounds import RATIOS, Bounds, turn
from crate_jax.studies.landscape.critical import Checked
from crate_jax.studies.landscape.problem import Problem

FORM = {"color": "black", "ls": "--", "lw": 1.0}


def _panels(title: str, height: float = 4.2):
    figure = make_figure(11, height)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure, left, right


def ascent_figure(problem: Problem, run: Run, ends: dict[str, Ends], path: pathlib.Path) -> None:
    """F of every start over the steps of gradient ascent, and where the starts end."""
    figure, left, right = _panels("Ascent of F against the closed-form optimum F*")
    steps = np.arange(1, len(run.values) + 1)
    left.plot(steps, run.values / problem.optimum, color="C0", lw=0.7, alpha=0.5)
    left.plot([], [], color="C0", label="every start")
    left.axhline(1, label="F*", **FORM)
    low = min(0.0, float(np.quantile(run.values[1:] / problem.optimum, 0.05)))
    left.set(xscale="log", xlabel="step of gradient ascent, size 1/α", ylabel="F / F*")
    left.set_ylim(max(low, -2), 1.08)
    left.legend(loc="lower right")
    for (name, end), mark in zip(ends.items(), ("o", "+"), strict=True):
        order = np.argsort(end.values)
        right.plot(
            np.arange(1, len(order) + 1), end.values[order] / problem.optimum, mark, ms=5,
            mfc="none", label=name,
        )  # fmt: skip
    right.axhline(1, label="F*", **FORM)
    right.set(xlabel="start, in the order of its end", ylabel="F / F* at the end")
    right.ticklabel_format(axis="y", useOffset=False)
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def features_figure(problem: Problem, Z: np.ndarray, path: pathlib.Path) -> None:
    """Cosines of the rows and the spectra of the classes at the best end."""
    figure = make_figure(11, 4.6)
    figure.suptitle("Features at the best end: orthogonal classes of equal singular values")
    left, right = figure.subplots(1, 2)
    image = heat_map(left, Z, title="|cos| of all pairs of rows, by class")
    figure.colorbar(image, ax=left)
    shown = problem.spectra(Z)
    sigma = {f"class {k} ({n} rows)": problem.sigmas[k][0] for k, n in enumerate(problem.sizes)}
    spectra(
        right,
        dict(zip(sigma, shown, strict=True)),
        sigma,
        title=r"dashed: $\sigma_k$ in closed form",
    )
    right.set_ylim(bottom=-0.02 * max(sigma.values()))
    figure.savefig(path, dpi=150)


def hessian_figure(checked: Sequence[Checked], alpha: float, path: pathlib.Path) -> None:
    """Eigenvalues of the Hessian at the global maximiser and at a saddle, with the closed form."""
    figure, left, right = _panels("Spectrum of the Hessian: measured, and in closed form")
    best = checked[0]
    saddle = max((c for c in checked if c.point.kind == "saddle"), key=lambda c: len(c.expected))
    for axes, c, title in ((left, best, "global maximiser"), (right, saddle, "a saddle")):
        stops = np.cumsum(np.round(c.counts))
        axes.step(
            np.append(0, stops), np.append(c.values[0], c.values) / alpha, lw=2.5, color="C0",
            alpha=0.6, label="measured", where="pre",
        )  # fmt: skip
        value = np.array([v for v, _ in c.expected]) / alpha
        stops = np.cumsum([n for _, n in c.expected])
        axes.step(
            np.append(0, stops), np.append(value[0], value), where="pre", label="closed form",
            **FORM,
        )  # fmt: skip
        ranks = f"ranks {c.point.ranks}"
        if any(c.point.saddle_ranks):
            ranks += rf", of size $\sigma_-$ {c.point.saddle_ranks}"
        axes.set_title(f"{title}\n{ranks}" if len(ranks) < 80 else title, fontsize="medium")
        axes.set(xlabel="number of the eigenvalue", ylabel="eigenvalue / α")
        axes.legend()
    figure.savefig(path, dpi=150)


def bounds_figure(bounds: Bounds, path: pathlib.Path) -> None:
    """Optimum and printed optimum over lmbda; where they part, over the share of a class."""
    figure, left, right = _panels(
        r"The theorem's global maximisers are the best up to $\lambda_0$, not up to $\lambda_{max}$"
    )
    left.plot(bounds.fractions, bounds.greedy, color="C0", lw=2, label="greedy: the optimum F*")
    left.plot(bounds.fractions, bounds.printed, color="C3", lw=1.6, label="ranks as printed")
    left.axvline(bounds.zero, label=r"$\lambda_0/\lambda_{max}$", **FORM)
    left.set(xlabel=r"$\lambda/\lambda_{max}$", ylabel="F (nats)", xlim=(0.7, 1))
    left.set_ylim(0.95 * bounds.printed[-1], 1.05 * bounds.greedy[bounds.fractions >= 0.7][0])
    left.legend(loc="upper right")
    right.plot(bounds.ratios, bounds.turns, color="C0", lw=2)
    right.plot(RATIOS, [turn(ratio) for ratio in RATIOS], "o", color="C0", ms=5)
    right.fill_between(bounds.ratios, bounds.turns, 1, color="C3", alpha=0.15)
    right.text(4, 0.965, "class k is better left out", color="C3")
    right.text(4, 0.855, "the theorem holds", color="C0")
    right.set(xscale="log", xlabel=r"$N/N_k$", ylabel=r"$\lambda_0/\lambda_{max}$ of class k")
    right.set_ylim(0.84, 1)
    figure.savefig(path, dpi=150)


def basin_figure(problem: Problem, basin: Basin, path: pathlib.Path) -> None:
    """What a direction adds over its size, and where starts of each scale end."""
    figure, left, right = _panels("Small starts fall to zero: the basin behind σ₋")
    plus, minus = zip(*problem.sigmas, strict=True)
    grid = np.geomspace(0.3 * min(minus), 1.5 * max(plus), 400)
    for n in dict.fromkeys(problem.sizes):
        k = problem.sizes.index(n)
        heights = [
            forms.direction_value(x * x, n, problem.N, problem.d, **problem.weights) for x in grid
        ]
        (line,) = left.plot(grid, heights, label=f"class of {n} rows")
        for size, mark in zip(problem.sigmas[k], ("o", "x"), strict=True):
            height = forms.direction_value(size**2, n, problem.N, problem.d, **problem.weights)
            left.plot([size], [height], mark, color=line.get_color())
    left.plot([], [], "o", color="0.3", label=r"$\sigma_k$, maximum")
    left.plot([], [], "x", color="0.3", label=r"$\sigma_-$, minimum")
    left.axhline(0, color="0.5", lw=0.8)
    left.set(xscale="log", xlabel="singular value σ of one direction")
    left.set_ylabel(r"$h_k(\sigma^2)$ (nats)")
    left.legend(loc="upper left", fontsize="small")
    best = problem.optimum
    right.plot(basin.stds, basin.values / best, "o", color="C0", ms=4, alpha=0.5)
    right.plot(basin.stds, np.median(basin.values, 1) / best, color="C0", label="F / F*")
    used = basin.ranks.sum(-1) / min(problem.N, problem.d)
    right.plot(basin.stds, used.mean(1), "s--", color="C1", ms=4, label="directions used / most")
    right.plot(
        basin.stds, basin.below.mean((1, 2)), ":", color="0.3",
        label=r"classes that start below $\sigma_-$",
    )  # fmt: skip
    right.set(xscale="log", xlabel="standard deviation of the start's entries", ylabel="fraction")
    right.set_ylim(-0.05, 1.08)
    right.legend(loc="center right", fontsize="small")
    figure.savefig(path, dpi=150)
