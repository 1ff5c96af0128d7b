"""Which checkpoints a report reads: one, the revisions of a training run, or planted ones."""

import pathlib
import re
from collections.abc import Mapping

import jax

from crate_jax.config import ConfigError
from crate_jax.sharding import processes
from crate_jax.studies.llm_report import planted

PLANTED = "planted"


def find(name: str, folder: pathlib.Path, seed: int) -> pathlib.Path:
    """The directory of ``config.checkpoint``; ``planted`` is written into the folder.

    Raises:
      ConfigError: where nothing is named.
    """
    if not name:
        raise ConfigError(
            "config.checkpoint is empty; name a directory with config.json and safetensors, or "
            "planted, for a tiny model to try the report on."
        )
    if name != PLANTED:
        return pathlib.Path(name).expanduser()
    _plant(folder, {"model": 1.0}, seed)
    return folder / "model"


def find_revisions(names: str, folder: pathlib.Path, seed: int) -> list[tuple[float, pathlib.Path]]:
    """Step and directory of each revision, by rising step.

    The step is the first number of the directory's name, as in ``step1000-tokens4B``; where not all
    names have one, revisions are counted from 0 as they are listed. ``planted`` stands for a model
    on its way from random to ``planted``.

    Raises:
      ConfigError: where a directory does not exist, or one holds no checkpoint.
    """
    if not names:
        return []
    if names == PLANTED:
        strengths = {f"step{step}": step / 1000 for step in (0, 250, 500, 750, 1000)}
        _plant(folder, strengths, seed)
        names = ",".join(str(folder / name) for name in strengths)
    directories = [pathlib.Path(part.strip()).expanduser() for part in names.split(",")]
    if len(directories) == 1 and not (directories[0] / "config.json").is_file():
        (root,) = directories
        inside = sorted(root.iterdir()) if root.is_dir() else []
        directories = [path for path in inside if (path / "config.json").is_file()]
        if not directories:
            raise ConfigError(
                f"config.revisions={names!r}: {root} holds no directories with a config.json."
            )
    numbers = [re.search(r"\d+", path.name) for path in directories]
    if not all(numbers):
        return [(float(i), path) for i, path in enumerate(directories)]
    steps = [float(number[0]) for number in numbers]
    return sorted(zip(steps, directories, strict=True))


def _plant(folder: pathlib.Path, strengths: Mapping[str, float], seed: int) -> None:
    """Process 0 writes; the others wait until it has."""
    if jax.process_index() == 0:
        for name, strength in strengths.items():
            planted.write(folder / name, strength=strength, seed=seed)
    processes.barrier("planted checkpoints")
