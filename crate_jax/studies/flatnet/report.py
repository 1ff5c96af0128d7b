"""The table of all networks, for the terminal, for ``results.json`` and for the page."""

import json
import pathlib

import rich.table
from rich.console import Console

from crate_jax.interpret.page import Picture, Table, write_page
from crate_jax.interpret.summary import facts
from crate_jax.studies.flatnet import figures
from crate_jax.studies.flatnet.settings import Settings
from crate_jax.train import whole

COLUMNS = (
    "network", "N x D", "true d", "d found", "MLE", "TwoNN", "layers", "iterations", "seconds",
    "energy outside d", "MSE, d features", "as shipped", "test", "PCA-d", "PCA-d test",
    "variance", "MSE, all features",
)  # fmt: skip

NOTE = (
    "Mean squares over points and coordinates, in the data's units. d found is the most frequent "
    "dimension of the layers; reconstructions are from the first d principal coordinates of the "
    "features, by the decoder in reverse order, and as the released code orders it. The test "
    "points lie on the same manifold and were not flattened. Variance is the error of the mean."
)

CAPTIONS = {
    "features": (
        "Features",
        "Points keep their colour; grey lines lead from a point to its image.",
    ),
    "course": (
        "Course",
        "An iteration without a dot moved the data by less than 1e-4 and left no layer.",
    ),
    "spectrum": ("Spectrum", "Singular values of the centred data and features."),
    "rebuilt": ("Reconstructions", "From all features, from d of them, and by PCA."),
    "interpolation": ("Interpolation", "Ends are points of the data."),
    "distances": (
        "Distances",
        "Were features an isometry of the parameters, the map would have one colour.",
    ),
}
"""Title and note of a network's figure, in the order of the page."""


def row_of(name: str, result: dict) -> tuple[str, ...]:
    """Texts under :data:`COLUMNS`."""
    m = result["measures"]
    return (
        name, f"{result['points']:,} x {result['ambient']}", _text(result["true_dim"]),
        _text(result["found_dim"]), _text(result.get("mle"), ".1f"),
        _text(result.get("two_nn"), ".1f"), _text(result["depth"]), _text(result["iterations"]),
        f"{result['seconds']:.0f}", f"{m['outside']:.1e}",
        *(_text(m[key], ".2e") for key in (
            "mse_reverse", "mse_as_shipped", "mse_test", "mse_pca", "mse_pca_test", "variance",
            "mse_full",
        )),
    )  # fmt: skip


def _text(value, form: str = "") -> str:
    """Empty for what is not known."""
    return "" if value is None or value != value else format(value, form)


def write(settings: Settings, results: dict, workdir: pathlib.Path, console: Console) -> None:
    """Prints the table and writes ``results.json``, the figures of all networks and the page."""
    rows = [row_of(cell.name, result) for cell, result in results.items()]
    table = rich.table.Table("", *(row[0] for row in rows), title="FlatNet", box=None)
    for i, column in enumerate(COLUMNS[1:], start=1):  # a network a column: there are few
        table.add_row(column, *(row[i] for row in rows))
    console.print(table)
    parts = [_INTRODUCTION, Table("Networks", COLUMNS, rows, NOTE)]
    peers = [
        (
            cell.name, kind, str(of["code"]), _text(of["mse"], ".2e"), _text(of["mse_test"], ".2e"),
            f"{of['seconds']:.0f}",
        )
        for cell, result in results.items()
        for kind, of in result["autoencoders"].items()
    ]  # fmt: skip
    if peers:
        columns = ("data", "autoencoder", "code", "MSE", "test", "seconds")
        parts.append(Table("Autoencoders", columns, peers, _PEERS))
        table = rich.table.Table(*columns, title="Autoencoders", box=None)
        for row in peers:
            table.add_row(*row)
        console.print(table)
    known = [r for r in results.values() if r["true_dim"] is not None and "mle" in r]
    if len(known) > 1:
        figures.dimension_figure(known, workdir / "dimension.png")
        parts.append(Picture("Dimension", workdir / "dimension.png", "One mark a network."))
    for cell in results:
        for name, (title, note) in CAPTIONS.items():
            path = workdir / "cells" / cell.name / f"{name}.png"
            if path.is_file():
                parts.append(Picture(f"{cell.name}: {title.lower()}", path, note))
    write_page(workdir / "index.html", "FlatNet", parts)
    text = json.dumps({cell.name: result for cell, result in results.items()}, indent=2)
    whole.write_text(workdir / "results.json", text + "\n")
    console.print(facts(page=str(workdir / "index.html")))


_INTRODUCTION = (
    "FlatNet (arXiv 2305.01777) flattens a manifold layer by layer, each around one point, and "
    "bends it back in the reverse order."
)

_PEERS = (
    "vae, beta_vae and factor_vae have the losses of FlatNet's released code, means over "
    "coordinates; fair_vae sums them. Errors as above, from codes of the width given."
)
