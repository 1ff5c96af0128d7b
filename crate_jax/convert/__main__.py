"""Between an official checkpoint and a directory that training and evaluation read.

    python -m crate_jax.convert c.pth runs/official --family crate --heads 12 --eta 0.1 --lmbda 0.1
    python -m crate_jax.convert runs/mine mine.safetensors

A source that is a directory (a run's workdir, or what this wrote) is exported to a file; a file is
loaded into a new directory. ``--set field=value`` sets any other field of the model.
"""

import argparse
import ast
import dataclasses
import pathlib
import shutil
import sys

import jax
import numpy as np
from absl import logging
from rich.console import Console
from rich.table import Table

from crate_jax import convert, models
from crate_jax.config import ConfigError
from crate_jax.convert import files
from crate_jax.train import checkpoint

_SIZES = ("width", "depth", "heads", "patch")
_CONFIGS = {
    "crate": "configs/crate/imagenet1k.py",
    "crate_alpha": "configs/crate_alpha/finetune_imagenet1k.py",
}


def _parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m crate_jax.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=pathlib.Path, metavar="SOURCE")
    parser.add_argument("dest", type=pathlib.Path, metavar="DEST")
    reading = parser.add_argument_group("reading a file")
    reading.add_argument("--family", choices=convert.LAYOUTS)
    reading.add_argument("--heads", type=int, help="where the file does not tell")
    reading.add_argument("--eta", type=float, help="ISTA's step")
    reading.add_argument("--lmbda", type=float, help="ISTA's sparsity")
    reading.add_argument("--channels", type=int, help="image channels, where not 3")
    reading.add_argument("--set", action="append", metavar="FIELD=VALUE", help="any other field")
    writing = parser.add_argument_group("writing a file")
    writing.add_argument("--layout", choices=("torch", "jax"))
    return parser.parse_args(argv)


def _assignment(text: str):
    field, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: write FIELD=VALUE.")
    try:
        return field, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return field, value


def _from_file(args):
    named = {key: getattr(args, key) for key in ("family", "heads", "eta", "lmbda", "channels")}
    if args.layout:
        raise ConfigError(f"--layout is for writing a file; {args.source} is one to read.")
    if args.dest.suffix in files.READERS:
        raise ConfigError(
            f"{args.source} is a file; DEST is then a new directory, not {args.dest}."
        )
    if not args.family:
        raise ConfigError(f"name the family of {args.source}: --family {'|'.join(convert.LAYOUTS)}")
    given = dict(map(_assignment, args.set or ()))
    given |= {key: value for key, value in named.items() if value is not None}
    module, variables = convert.load(args.source, **given)
    settings = models.describe(args.family, module)
    try:
        checkpoint.save_params(args.dest, variables["params"], settings)
    except BaseException:
        shutil.rmtree(args.dest, ignore_errors=True)  # what is left would count as there already
        raise
    return args.family, module, variables


def _from_directory(args):
    named = ("family", "heads", "eta", "lmbda", "channels", "set")
    said = [f"--{key}" for key in named if getattr(args, key) is not None]
    if said:
        raise ConfigError(
            f"{args.source} is a directory and tells what it holds; leave out {', '.join(said)}."
        )
    params, model = checkpoint.restore_params(args.source)
    settings = {key: value for key, value in model.items() if value is not None}
    family = settings.pop("name")
    module = models.create(family, **settings)
    convert.export(module, {"params": params}, args.dest, layout=args.layout)
    return family, module, {"params": params}


def _differing(module, family):
    """Settings that no variant decides and that are not the module's default."""
    defaults = {field.name: field.default for field in dataclasses.fields(module)}
    values = {key: getattr(module, key) for key in models.fields(family)}
    return {k: v for k, v in values.items() if k not in _SIZES and v != defaults[k]}


def _summary(args, family, module, variables):
    leaves = jax.tree.leaves(variables)
    shown = {
        key: getattr(module, key) for key in (*_SIZES, "num_classes", "eta", "lmbda", "param_dtype")
    }
    given = {"heads", "eta", "lmbda", *(text.partition("=")[0] for text in args.set or ())}
    table = Table(show_header=False)
    table.add_row("family", family, "")
    table.add_row("parameters", f"{sum(map(np.size, leaves)):,} in {len(leaves)} arrays", "")
    for key, value in (shown | _differing(module, family)).items():
        said = key in given and getattr(args, key, True) is not None
        table.add_row(key, str(value), "as given" if said else "")
    return table


def _evaluation(family, module, dest):
    """The command that evaluates the directory."""
    sizes = {"width": module.width, "depth": module.depth, "heads": module.heads}
    config = "CONFIG"
    for size, row in models.MODELS[family][1].items():
        if row == sizes:
            variant = size if module.patch == 16 else f"{size}/{module.patch}"
            config = f"{_CONFIGS[family]}:variant={variant}"
    switches = [f"--config.model.{k}={v}" for k, v in _differing(module, family).items()]
    return " ".join(
        [f"python -m crate_jax.main --config {config} --workdir {dest} --mode=eval", *switches]
    )


def main(argv=None) -> int:
    """Converts; returns the exit code: 2 with a sentence on what the command line has wrong, 1 with
    one on files that cannot be read or written.
    """
    args = _parse(argv)
    reading = not args.source.is_dir()
    try:
        if args.dest.exists():
            raise ConfigError(f"{args.dest} exists already; name a new one, or remove it.")
        family, module, variables = (_from_file if reading else _from_directory)(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except (checkpoint.WriteError, OSError) as error:
        print(f"{args.source} is not converted: {error}", file=sys.stderr)
        return 1
    print(f"{args.source} -> {args.dest}")
    Console().print(_summary(args, family, module, variables))
    if reading:
        print(_evaluation(family, module, args.dest))
    return 0


if __name__ == "__main__":
    logging.set_verbosity(logging.ERROR)
    sys.exit(main())
