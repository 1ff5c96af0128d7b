"""The figures of a trained perceptron, drawn into files."""

import pathlib

import numpy as np

from crate_jax.interpret import subspaces
from crate_jax.interpret.plots import make_figure
from crate_jax.interpret.subspace_plots import heat_map, spectra


def course_figure(values: np.ndarray, reference: float, name: str, path: pathlib.Path) -> None:
    """F over the epochs against its optimum, and what is left to it.

    Args:
      values: ``(E,)`` F, nats.
      reference: the optimum, nats.
      name: of the optimum.
      path: of the PNG.
    """
    figure = make_figure(11, 4.2)
    figure.suptitle(f"Full-batch training against {name}")
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(values) + 1)
    left.plot(epochs, values, color="C0", label="F of the features")
    left.axhline(reference, color="black", ls="--", lw=1, label=name)
    left.set(xlabel="epoch", ylabel="F (nats)", ylim=(min(0.0, reference), 1.06 * reference))
    left.legend(loc="lower right")
    right.plot(epochs, np.abs(1 - values / reference), color="C0")
    right.set(xlabel="epoch", ylabel="relative distance from it", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def features_figure(
    Z: np.ndarray, labels: np.ndarray, level: float | None, path: pathlib.Path
) -> None:
    """Cosines of the samples and the spectra of the classes.

    Args:
      Z: ``(N, d)`` in the order of the classes.
      labels: ``(N,)``.
      level: the closed form of a singular value, where there is one for all.
      path: of the PNG.
    """
    K = int(labels.max()) + 1
    figure = make_figure(11, 4.6)
    figure.suptitle("Features at the end of training")
    left, right = figure.subplots(1, 2)
    image = heat_map(left, Z, title="|cos| of all pairs of samples, by class")
    figure.colorbar(image, ax=left)
    shown = {f"class {k}": s for k, s in enumerate(subspaces.class_spectra(Z, labels, K))}
    title = "" if level is None else r"dashed: $\sigma_k$ in closed form"
    spectra(right, shown, level, title=title)
    right.set_ylim(bottom=0)
    figure.savefig(path, dpi=150)
