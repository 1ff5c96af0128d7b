"""A run's directory: ``config.json`` says which config it belongs to."""

import contextlib
import json
import pathlib

import jax

from crate_jax import config as configs
from crate_jax.config import ConfigError
from crate_jax.sharding import processes
from crate_jax.train import whole
from crate_jax.train.checkpoint import SUBDIRECTORY
from crate_jax.train.reading import comes_to_be


def claim(workdir: pathlib.Path, config) -> None:
    """Makes the directory this config's, or raises if it holds another's; process 0 writes.

    All processes must see the same directory: they read what process 0 has written before they go
    on. Settings that change no number (where data lies, how often to log) may differ; the file then
    tells the present ones.

    Args:
      workdir: the directory; made where it is not there.
      config: a ``config.Config``, or the settings of a study.

    Raises:
      ConfigError: on all processes, listing the settings that differ, or naming a process that does
        not see the directory.
    """
    processes.together(lambda: _check(workdir, config))
    processes.together(lambda: _write(workdir, config))
    processes.together(lambda: _look(workdir, config))


def _check(workdir: pathlib.Path, config) -> None:
    path = workdir / "config.json"
    if not path.exists() and (workdir / SUBDIRECTORY).exists():
        raise ConfigError(
            f"{workdir} holds converted weights and no run; choose another --workdir, and set "
            f"config.train.init_from={str(workdir)!r} to start from them."
        )
    if path.exists():
        try:
            old = json.loads(path.read_text())["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} cannot be read ({error}). Put it back, or delete it to let the config "
                f"that is given now stand."
            ) from error
        wanted = configs.numeric_part(config)
        lines = configs.differences(_only(old, wanted), wanted)
        if lines:
            raise ConfigError(
                f"{workdir} holds a run of another config:\n  " + "\n  ".join(lines) + "\n"
                "Choose another --workdir, or put these settings back."
            )


def _write(workdir: pathlib.Path, config) -> None:
    if jax.process_index() != 0:
        return
    path = workdir / "config.json"
    new = {"digest": configs.digest(config), "config": configs.as_dict(config)}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        whole.write_text(path, json.dumps(new, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"--workdir {workdir} cannot be written: {error.strerror}.") from error


def _look(workdir: pathlib.Path, config) -> None:
    """Whether what process 0 has written is there for this process too.

    NFS and mounted buckets may show for a while what was there before.
    """
    path, digest = workdir / "config.json", configs.digest(config)
    if not comes_to_be(lambda: path.exists() and _digest_in(path) == digest):
        raise ConfigError(
            f"--workdir {workdir} is not the directory that process 0 has written to; it must lie "
            f"on storage that all hosts share (NFS, or a mounted bucket)."
        )


def _digest_in(path: pathlib.Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())["digest"]
    return None


def _only(saved: dict, wanted: dict) -> dict:
    """The part of a saved config that has to agree: what ``wanted`` names, nested."""
    return {
        key: _only(value, wanted[key])
        if isinstance(value, dict) and isinstance(wanted.get(key), dict) and key != "model"
        else value
        for key, value in saved.items()
        if key in wanted
    }
