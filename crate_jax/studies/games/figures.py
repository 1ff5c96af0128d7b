"""The figures of a game, drawn into files."""

import pathlib

import numpy as np

from crate_jax.interpret import subspace_plots, subspaces
from crate_jax.interpret.plots import make_figure
from crate_jax.studies.games import measure

NAMES = {
    "X": "samples X",
    "fX": "features f(X)",
    "gfX": "g(f(X))",
    "fgfX": "f(g(f(X)))",
    "gZ": "generated g(Z)",
}
"""What the panels are called."""

SMOOTHING = 10
"""Turns of the running mean of Q."""


def _panels(count: int, title: str, height: float = 3.8):
    """Panels side by side, four inches each."""
    figure = make_figure(4 * count, height)
    figure.suptitle(title)
    return figure, np.atleast_1d(figure.subplots(1, count))


def spectra_figure(features, path: pathlib.Path) -> None:
    """Singular values of all rows together, by name."""
    figure, panels = _panels(len(features), "Singular values of all samples together")
    for axes, (name, Z) in zip(panels, features.items(), strict=True):
        subspace_plots.spectra(axes, {"all classes": subspaces.singular_values(Z)})
        axes.set_title(NAMES[name])
        axes.get_legend().remove()
    figure.savefig(path, dpi=150)


def class_spectra_figure(features, y, num_classes: int, levels, path: pathlib.Path) -> None:
    """Singular values of each class; dashed ``sqrt(n_j / d_j)`` where the theorem has it."""
    figure, panels = _panels(len(features), "Singular values of each class")
    for axes, (name, Z) in zip(panels, features.items(), strict=True):
        each = subspaces.class_spectra(Z, y, num_classes)
        lines = {f"class {j}": s for j, s in enumerate(each) if s.size}
        dashed = levels if name == "fX" else None
        subspace_plots.spectra(axes, lines, dashed, NAMES[name])
        if dashed:
            axes.set_title(f"{NAMES[name]}; dashed: theorem")
    figure.savefig(path, dpi=150)


def heat_figure(features, y, path: pathlib.Path) -> None:
    """``|cos|`` of all pairs of rows, sorted by class."""
    figure, panels = _panels(len(features), "|cos| of all pairs, sorted by class", 4.2)
    order = subspaces.label_order(y)
    for axes, (name, Z) in zip(panels, features.items(), strict=True):
        image = subspace_plots.heat_map(axes, Z, order=order, title=NAMES[name])
        axes.set_aspect("equal")
    figure.colorbar(image, ax=list(panels), shrink=0.8, label="|cos|")
    figure.savefig(path, dpi=150)


def residual_figure(features, y, dims, pairs, path: pathlib.Path) -> None:
    """Residuals from the span of a class: its top dimensions, and the span as published.

    Args:
      features: rows by name.
      y: their classes.
      dims: dimension of each class.
      pairs: names of rows and of what spans.
      path: of the PNG.
    """
    figure = make_figure(10, 3.4 * len(pairs))
    figure.suptitle("Distance of samples from the span of their class")
    panels = np.atleast_2d(figure.subplots(len(pairs), 2))
    for row, (a, b) in zip(panels, pairs, strict=True):
        for axes, kind, words in (
            (row[0], "top", "top $d_j$ directions of"),
            (row[1], "published", "all directions (QR, rank) of"),
        ):
            each = measure.class_residuals(features[a], features[b], y, dims, kind)
            most = max(max((r.max() for r in each if r.size), default=0.0), 1e-3)
            edges = np.linspace(0, 1.02 * most, 41)
            for j, r in enumerate(each):
                axes.hist(r, edges, histtype="step", lw=1.4, label=f"class {j}")
            axes.set(xlabel="residual norm", ylabel="samples")
            axes.set_title(f"{NAMES[a]} from {words} {NAMES[b]}", fontsize="medium")
            axes.grid(alpha=0.3)
    if len(dims) > 1:
        panels[0, 0].legend(fontsize="small", ncols=1 + (len(dims) > 5))
    figure.savefig(path, dpi=150)


def course_figure(course, best: float | None, game: str, path: pathlib.Path) -> None:
    """Q and C over the leader's steps.

    Args:
      course: ``quality`` and ``consistency``, ``(T,)``.
      best: the largest Q, or None where no theorem gives it.
      game: ``msp`` or ``ssp``.
      path: of the PNG.
    """
    figure = make_figure(9, 3.6)
    figure.suptitle("The two payoffs, on the batch of each of the leader's steps")
    left, right = figure.subplots(1, 2)
    Q, C = course["quality"], course["consistency"]
    steps = np.arange(1, len(Q) + 1)
    left.plot(steps, Q, color="C0", lw=0.8, alpha=0.5, label="Q of the batch")
    if len(Q) >= 2 * SMOOTHING:
        mean = np.convolve(Q, np.full(SMOOTHING, 1 / SMOOTHING), "valid")
        left.plot(steps[SMOOTHING - 1 :], mean, color="C0", label=f"mean of {SMOOTHING}")
    if best is not None:
        left.axhline(best, color="black", ls="--", lw=1, label="best of all samples")
    form = r"$\Delta R(f(X)|\Pi)$" if game == "msp" else "$R(f(X))$"
    left.set(xlabel="leader's step", ylabel=f"Q = {form} (nats)")
    left.legend(fontsize="small")
    floor = 1e-7
    right.plot(steps, np.maximum(-C, floor), color="C1", lw=1)
    right.set(yscale="log", xlabel="leader's step", ylabel="-C (nats)")
    right.set_title("what the follower leaves", fontsize="medium")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=150)


def isometry_figure(ratios: np.ndarray, path: pathlib.Path) -> None:
    """How f stretches distances."""
    figure = make_figure(5.5, 3.6)
    axes = figure.subplots()
    low, high = ratios.min(), ratios.max()
    margin = max(0.05 * (high - low), 1e-6)  # an exact isometry has one ratio
    axes.hist(ratios, np.linspace(low - margin, high + margin, 61), color="C0")
    axes.axvline(1, color="black", ls="--", lw=1)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.locator_params(axis="x", nbins=5)
    axes.set(xlabel="||f(x) - f(x')|| / ||x - x'||", ylabel="pairs of samples")
    axes.set_title(f"Distances under f: {low:.6f} to {high:.6f}; isometry at 1", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def losses_figure(losses: np.ndarray, names, path: pathlib.Path) -> None:
    """What each optimizer of a baseline minimised, ``(T, players)``."""
    figure = make_figure(5.5, 3.6)
    axes = figure.subplots()
    for values, name in zip(losses.T, names, strict=True):
        axes.plot(np.arange(1, len(values) + 1), values, lw=1, label=name)
    axes.set(xlabel="batch", ylabel="loss")
    axes.set_title("Losses of the baseline's optimizers", fontsize="medium")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
