"""Runs side by side: a table in Markdown, and the curves of their layers in one figure.

    python -m crate_jax.interpret.compare runs/adamw runs/sgd --figure layers.png

It reads what a run leaves in its workdir, so runs under way can be compared too.
"""

import argparse
import collections
import json
import pathlib
import sys

import numpy as np

from crate_jax.config import ConfigError
from crate_jax.interpret import plots

COLUMNS = (
    "run", "model", "optimizer", "learning rate", "step", "accuracy", "images/s",
    "coding rate, first to last layer", "non-zero, first to last layer",
)  # fmt: skip


def last_row(path: pathlib.Path, key: str) -> dict:
    """The last line of a ``.jsonl`` file that has ``key``.

    Raises:
      ConfigError: when there is none.
    """
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    having = [row for row in rows if key in row]
    if not having:
        raise ConfigError(f"{path} has no line with {key!r}; is {path.parent} a run's workdir?")
    return having[-1]


def read_layers(row: dict) -> dict[str, np.ndarray]:
    """The curves over depth in a line of ``metrics.jsonl``: ``layers/NAME/l`` by NAME."""
    curves = collections.defaultdict(dict)
    for key, value in row.items():
        if key.startswith("layers/"):
            _, name, layer = key.split("/")
            curves[name][int(layer)] = value
    return {name: np.array([curve[l] for l in sorted(curve)]) for name, curve in curves.items()}


def describe(workdir: pathlib.Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """A run's cells of the table, and its layers."""
    row = last_row(workdir / "metrics.jsonl", "eval/accuracy")
    timing = last_row(workdir / "timing.jsonl", "timing/images_per_second")
    config = json.loads((workdir / "config.json").read_text())["config"]
    layers = read_layers(row)
    rate, nonzero = layers.get("coding_rate", []), layers.get("nonzero", [])
    cells = [
        workdir.name, config["model"]["name"], config["optimizer"]["name"],
        f"{config['optimizer']['learning_rate']:g}", f"{row['step']:,}",
        f"{100 * row['eval/accuracy']:.2f} %", f"{timing['timing/images_per_second']:,.0f}",
        " ".join(f"{r:.0f}" for r in rate), " ".join(f"{s:.2f}" for s in nonzero),
    ]  # fmt: skip
    return cells, layers


def main(argv=None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m crate_jax.interpret.compare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    parser.add_argument("--figure", type=pathlib.Path, help="PNG of the layers")
    args = parser.parse_args(argv)
    try:
        described = {workdir.name: describe(workdir) for workdir in args.workdirs}
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    rows = [cells for cells, _ in described.values()]
    for row in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        print(f"| {' | '.join(row)} |")
    if args.figure:
        plots.layers_figure({name: layers for name, (_, layers) in described.items()}, args.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
