"""Panels that show features in subspaces: heat maps of cosines, spectra of classes.

Each function draws into axes of ``plots.make_figure`` and leaves size, saving and the figure's
title to the caller.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from crate_jax.interpret.subspaces import cosines


def heat_map(
    axes: Axes, A, B=None, order: Sequence[int] | None = None, title: str = ""
) -> AxesImage:
    """``|cos|`` of every row of ``A`` with every row of ``B``, white at 0 and dark blue at 1.

    Args:
      axes: drawn into.
      A: ``(n, d)``.
      B: ``(m, d)``, as many rows as ``A`` where ``order`` is given; None for ``A`` itself.
      order: of the rows of both, see ``subspaces.label_order``.
      title: over the panel.

    Returns:
      The image, for ``figure.colorbar``.
    """
    A = np.asarray(A)
    B = A if B is None else np.asarray(B)
    if order is not None:
        A, B = A[np.asarray(order)], B[np.asarray(order)]
    image = axes.imshow(np.abs(cosines(A, B)), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title)
    return image


def spectra(
    axes: Axes,
    values: Mapping[str, np.ndarray],
    reference: Mapping[str, float] | float | None = None,
    title: str = "",
    log: bool = False,
) -> None:
    """Singular values in descending order, a line a set, and what they should be, dashed.

    Args:
      axes: drawn into.
      values: by label, ``(r,)`` in any order.
      reference: one level for all, or by label; a label that has one is dashed in its own colour.
      title: over the panel.
      log: logarithmic heights.
    """
    levels = reference if isinstance(reference, Mapping) else {}
    for label, s in values.items():
        s = np.sort(np.asarray(s))[::-1]
        (line,) = axes.plot(np.arange(1, len(s) + 1), s, ".-", ms=4, lw=1.2, label=label)
        if label in levels:
            axes.axhline(levels[label], color=line.get_color(), ls="--", lw=1)
    if reference is not None and not isinstance(reference, Mapping):
        axes.axhline(reference, color="black", ls="--", lw=1)
    axes.set(xlabel="index", ylabel="singular value", title=title)
    axes.set_yscale("log" if log else "linear")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    if len(values) <= 12:
        axes.legend(fontsize="small")
