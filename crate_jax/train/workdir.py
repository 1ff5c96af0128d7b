"""A run's directory: ``config.json`` says which config it belongs to."""

import json
import os
import pathlib

import jax

from crate_jax import config as configs
from crate_jax.config import Config, ConfigError
from crate_jax.train.checkpoint import SUBDIRECTORY


def claim(workdir: pathlib.Path, config: Config) -> None:
    """Makes the directory this config's, or raises if it holds another's; process 0 writes.

    Settings that change no number (where data lies, how often to log) may differ; the file then
    tells the present ones.

    Raises:
      ConfigError: listing the settings that differ.
    """
    path = workdir / "config.json"
    if not path.exists() and (workdir / SUBDIRECTORY).exists():
        raise ConfigError(
            f"{workdir} holds converted weights and no run; choose another --workdir, and set "
            f"config.train.init_from={str(workdir)!r} to start from them."
        )
    new = {"digest": configs.digest(config), "config": configs.as_dict(config)}
    if path.exists():
        old = json.loads(path.read_text())
        wanted = configs.numeric_part(config)
        lines = configs.differences(_only(old["config"], wanted), wanted)
        if lines:
            raise ConfigError(
                f"{workdir} holds a run of another config:\n  " + "\n  ".join(lines) + "\n"
                "Choose another --workdir, or put these settings back."
            )
    if jax.process_index() != 0:
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(new, indent=2) + "\n")
        os.replace(partial, path)
    except OSError as error:
        raise ConfigError(f"--workdir {workdir} cannot be written: {error.strerror}.") from error


def _only(saved: dict, wanted: dict) -> dict:
    """The part of a saved config that has to agree: what ``wanted`` names, nested."""
    return {
        key: _only(value, wanted[key])
        if isinstance(value, dict) and isinstance(wanted.get(key), dict) and key != "model"
        else value
        for key, value in saved.items()
        if key in wanted
    }
