"""Every bench in little, and one table of predicted and measured ratios.

    python -m crate_jax.bench ladder --torch-python PATH --json ladder.json

``--torch-python`` is handed to ``peers``, ``--source`` and ``--data-dir`` to ``input``. Ratios are
to the first way of a bench. Run a bench by itself for sizes worth quoting.
"""

import argparse
import contextlib
import importlib
import io
import json
import pathlib
import sys
import tempfile

from rich.table import Table

from crate_jax.bench import timing

STEP = ["--model", "crate", "--variant", "T/16", "--batch", "2"]
LADDER = {
    "attention": ["--batch", "2"],
    "ista": ["--tokens", "394"],
    "step": STEP,
    "donation": STEP,
    "stalls": ["--model", "crate", "--variant", "T/16"],
    "cache": [*STEP, "--rounds", "1"],
    "peers": ["--family", "crate", "--variant", "T/16", "--batch", "2"],
    "input": ["--photos", "16", "--seconds", "4", "--workers", "0"],
}
"""The benches of the ladder, and what they are told."""

HANDED_ON = {"peers": ("torch_python",), "input": ("source", "data_dir")}


def rows_of(found: dict) -> dict[str, timing.Row]:
    """The rows of a bench; of the input pipeline the stages of which something was expected."""
    if "stages" not in found:
        return found
    stages = found["stages"]
    rows = {"decode": {"seconds": stages["decode"]["ms"] / 1e3}}
    rows["decode"]["predicted"] = rows["decode"]["seconds"]  # what the others are relative to
    for name, stage in stages.items():
        if stage["expected_ms"] is not None:
            rows[name] = {"seconds": stage["ms"] / 1e3, "predicted": stage["expected_ms"] / 1e3}
    return rows


def main(argv) -> int:
    """The command line; returns the exit code of the first bench that fails, or 0."""
    parser = argparse.ArgumentParser(prog="python -m crate_jax.bench ladder", description=__doc__)
    parser.add_argument("--benches", nargs="+", choices=LADDER, default=list(LADDER))
    parser.add_argument("--torch-python", help="an interpreter that has torch")
    parser.add_argument("--source", help="of the input bench; none writes photographs")
    parser.add_argument("--data-dir", help="root of the TFDS files")
    parser.add_argument("--json", help="also write the rows of every bench to this file")
    args = parser.parse_args(argv)
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "rows.json"
        for name in args.benches:
            words = list(LADDER[name])
            for option in HANDED_ON.get(name, ()):
                if getattr(args, option):
                    words += [f"--{option.replace('_', '-')}", getattr(args, option)]
            print(f"{name} {' '.join(words)}", file=sys.stderr)
            bench = importlib.import_module(f"crate_jax.bench.{name}")
            with contextlib.redirect_stdout(io.StringIO()):
                code = bench.main([*words, "--json", str(path)])
            if code:
                return code
            found[name] = rows_of(json.loads(path.read_text()))
    table = Table("bench", "way", "predicted ratio", "ratio", "seconds", box=None)
    for name, rows in found.items():
        for way, row in rows.items():
            table.add_row(name, way, *timing.ratios(rows, way), f"{row['seconds']:.4g}")
    timing.wide_console().print(table)
    timing.write(args.json, found)
    return 0
