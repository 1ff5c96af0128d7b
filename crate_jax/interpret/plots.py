"""Figures of the layers, drawn into files."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def layers_figure(layers: Mapping[str, np.ndarray], path: str | pathlib.Path, title: str = ""):
    """Coding rate and non-zero fraction over depth, mean and one deviation over images, as a PNG.

    Args:
      layers: ``coding_rate``, ``coding_rate_std``, ``nonzero``, ``nonzero_std``, each ``(L,)``.
      path: file to write.
      title: over the figure.
    """
    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (
        ("coding_rate", "coding rate $R^c$ (nats)", "tab:blue"),
        ("nonzero", "non-zero codes (fraction)", "tab:red"),
    )
    for axes, (name, label, colour) in zip(figure.subplots(1, 2), panels, strict=True):
        mean, deviation = np.asarray(layers[name]), np.asarray(layers[f"{name}_std"])
        depth = np.arange(1, len(mean) + 1)
        axes.plot(depth, mean, "o-", color=colour)
        axes.fill_between(depth, mean - deviation, mean + deviation, color=colour, alpha=0.15)
        axes.set(xlabel="layer", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[1].set_ylim(0, 1)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)
