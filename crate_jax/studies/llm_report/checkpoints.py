"""Which checkpoints a report reads: one, the revisions of a training run, or planted ones."""

import pathlib
import re

import jax

from crate_jax.config import ConfigError
from crate_jax.sharding import processes
from crate_jax.studies.llm_report import planted

PLANTED = "planted"
PLANTED_STEPS = (0, 250, 500, 750, 1000)


def plant(checkpoint: str, revisions: str, folder: pathlib.Path, seed: int) -> None:
    """Writes the checkpoints that are called ``planted``; process 0 does, the others wait."""
    strengths = {"model": 1.0} if checkpoint == PLANTED else {}
    if revisions == PLANTED:
        strengths |= {f"step{step}": step / 1000 for step in PLANTED_STEPS}
    if jax.process_index() == 0:
        for name, strength in strengths.items():
            planted.write(folder / name, strength=strength, seed=seed)
    processes.barrier("planted checkpoints")


def find(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The directory of ``config.checkpoint``; that of ``planted`` is in the folder.

    Raises:
      ConfigError: where nothing is named.
    """
    if not name:
        raise ConfigError(
            "config.checkpoint is empty; name a directory with config.json and safetensors, or "
            "planted, for a tiny model to try the report on."
        )
    return folder / "model" if name == PLANTED else pathlib.Path(name).expanduser()


def find_revisions(names: str, folder: pathlib.Path) -> list[tuple[float, pathlib.Path]]:
    """Step and directory of each revision, by rising step.

    The step is the number behind the word step in a directory's name, as in ``step1000-tokens4B``,
    or the only number of it, as in ``ckpt-1000``; where these do not tell the revisions apart, they
    are counted from 0 as they are listed. ``planted`` stands for a model on its way from random to
    ``planted``.

    Raises:
      ConfigError: where a directory does not exist, or one holds no checkpoint.
    """
    if not names:
        return []
    if names == PLANTED:
        names = ",".join(str(folder / f"step{step}") for step in PLANTED_STEPS)
    directories = [pathlib.Path(part.strip()).expanduser() for part in names.split(",")]
    if len(directories) == 1 and not (directories[0] / "config.json").is_file():
        (root,) = directories
        inside = sorted(root.iterdir()) if root.is_dir() else []
        directories = [path for path in inside if (path / "config.json").is_file()]
        if not directories:
            raise ConfigError(
                f"config.revisions={names!r}: {root} holds no directories with a config.json."
            )
    steps = [_read_step(path.name) for path in directories]
    if None in steps or len(set(steps)) < len(steps):
        return [(float(i), path) for i, path in enumerate(directories)]
    return sorted(zip(steps, directories, strict=True))


def _read_step(name: str) -> float | None:
    behind = re.findall(r"step[-_=]?(\d+)", name, re.IGNORECASE)
    numbers = behind or re.findall(r"(?<![0-9a-z])\d+(?![0-9a-z])", name, re.IGNORECASE)
    return float(numbers[0]) if len(numbers) == 1 else None
