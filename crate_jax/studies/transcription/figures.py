"""The figures of a closed loop: grids of images, and how features lie."""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from crate_jax.interpret import subspace_plots, subspaces
from crate_jax.interpret.plots import make_figure
from crate_jax.studies.transcription.loop import Seen

INCHES = 0.62
"""Side of an image in a grid."""

HEAT = 1000
"""Images in the heat map, at most."""


def grid(
    path: pathlib.Path, rows: Sequence[np.ndarray], labels: Sequence[str], title: str, note: str
) -> None:
    """Rows of images, each with a name at its left, as a PNG.

    Args:
      path: of the file.
      rows: of intensities ``(n, H, W, C)``, n the same for all.
      labels: one a row.
      title: over the grid.
      note: under it.
    """
    count = len(rows[0])
    figure = make_figure(INCHES * count + 1.4, INCHES * len(rows) + 0.9)
    panels = figure.subplots(len(rows), count, squeeze=False)
    for row, images, label in zip(panels, rows, labels, strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(note, fontsize=8)
    figure.savefig(path, dpi=110)


def reconstructions(path: pathlib.Path, seen: Seen, shown: int, title: str) -> None:
    """Images of every class in turn, above what the loop returns."""
    order, rows, labels = np.argsort(seen.labels, kind="stable"), [], []
    picked = np.linspace(0, len(order) - 1, min(3 * shown, len(order))).astype(int)
    picked = order[picked]
    for start in range(0, len(picked) - shown + 1, shown):
        part = picked[start : start + shown]
        rows += [seen.images[part], seen.returned[part]]
        labels += ["image", "returned"]
    grid(path, rows, labels, title, "each image above its transcription")


def heat_map(path: pathlib.Path, seen: Seen) -> None:
    """``|Z^T Z|`` and ``|Z^T Z^|``, rows by class."""
    part = np.linspace(0, len(seen.labels) - 1, min(HEAT, len(seen.labels))).astype(int)
    Z, Zhat, order = seen.Z[part], seen.Zhat[part], subspaces.label_order(seen.labels[part])
    figure = make_figure(9, 4.2)
    left, right = figure.subplots(1, 2)
    subspace_plots.heat_map(left, Z, order=order, title="$|Z^T Z|$")
    image = subspace_plots.heat_map(right, Z, Zhat, order=order, title=r"$|Z^T \hat Z|$")
    figure.colorbar(image, ax=[left, right], label="|cosine|")
    figure.suptitle("Features of test images, and of their transcriptions, by class")
    figure.savefig(path, dpi=110)


def spectra(path: pathlib.Path, values: Mapping[str, np.ndarray]) -> None:
    """Deviations along the principal components of each class."""
    figure = make_figure(7, 4)
    axes = figure.subplots()
    subspace_plots.spectra(axes, values, title="Principal components of each class's features")
    axes.set(xlabel="component", ylabel="standard deviation")
    figure.savefig(path, dpi=110)


def quality(path: pathlib.Path, seen: Seen) -> None:
    """How PSNR and sample-wise consistency spread over the test images."""
    figure = make_figure(8, 3)
    for axes, values, label in zip(
        figure.subplots(1, 2), (np.minimum(seen.psnr, 100), seen.cosine),
        ("PSNR (dB)", r"$\langle z, \hat z \rangle$"), strict=True,
    ):  # fmt: skip
        axes.hist(values, bins=40, color="tab:blue")
        axes.axvline(values.mean(), color="black", ls="--", lw=1, label=f"mean {values.mean():.3g}")
        axes.set(xlabel=label, ylabel="images")
        axes.legend(fontsize="small")
    figure.suptitle("Test images and what the loop returns")
    figure.savefig(path, dpi=110)


def sweeps(path: pathlib.Path, found: Mapping[str, Sequence[Mapping]], score: str) -> None:
    """The score over lambda for each level of each noise, and where it is best."""
    figure = make_figure(4.2 * len(found), 6.4)
    panels = figure.subplots(2, len(found), squeeze=False)
    for column, (noise, levels) in enumerate(found.items()):
        above, below = panels[:, column]
        for i, row in enumerate(levels):
            colour = (0.1 + 0.8 * i / max(len(levels) - 1, 1), 0.2, 0.6)
            above.plot(row["lambdas"], row[score], ".-", color=colour, lw=1, label=row["level"])
        above.set(title=noise, xlabel=r"$\lambda$ of the first stage", ylabel=score)
        above.legend(title="level", fontsize=6, title_fontsize=7, ncols=2)
        above.grid(alpha=0.3)
        error = np.array([row["error_at_best"] for row in levels])
        best = np.array([row["best_lambda"] for row in levels])
        below.plot(error, best, "o", color="tab:blue")
        if len(set(error)) > 1:
            slope, offset = np.polyfit(error, best, 1)
            ends = np.array([error.min(), error.max()])
            below.plot(ends, slope * ends + offset, "k--", lw=1)
        below.set(xlabel=r"mean $\|x - A z\|^2$ there", ylabel=r"best $\lambda$")
        below.grid(alpha=0.3)
    figure.suptitle(f"Noise: {score} over lambda, and the best lambda over the first stage's error")
    figure.savefig(path, dpi=110)
