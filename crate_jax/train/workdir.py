"""A run's directory: ``config.json`` says which config it belongs to."""

import contextlib
import json
import pathlib

import jax

from crate_jax import config as configs
from crate_jax.config import ConfigError
from crate_jax.sharding import processes
from crate_jax.train import checkpoint, reading, whole


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
    processes.together(lambda: _check(workdir, config), (ConfigError, *reading.ERRORS))
    processes.together(lambda: _write(workdir, config))
    processes.together(lambda: _look(workdir, config))


def release(workdir: pathlib.Path) -> None:
    """Gives a claimed directory up again, where nothing has been written into it besides."""
    if jax.process_index() == 0 and [path.name for path in workdir.iterdir()] == ["config.json"]:
        (workdir / "config.json").unlink()


def _check(workdir: pathlib.Path, config) -> None:
    if jax.process_index() != 0:  # what process 0 sees on disk holds for all
        return
    saved = _saved_config(workdir)
    if saved is not None:
        check_same(saved, config, workdir)


def _saved_config(workdir: pathlib.Path) -> dict | None:
    """The config of the run that a directory holds; its newest checkpoint, too, knows it."""
    path = workdir / "config.json"
    if path.exists():
        try:
            return json.loads(path.read_text())["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} cannot be read ({error}). Put it back, or delete it: the newest "
                f"checkpoint knows what it said, and without one the config that is given now "
                f"stands."
            ) from error
    meta = checkpoint.newest_meta(workdir)
    if meta is not None and "config" not in meta:
        raise ConfigError(
            f"{workdir} holds converted weights and no run; choose another --workdir, and set "
            f"config.train.init_from={str(workdir)!r} to start from them."
        )
    return meta and meta["config"]


def check_same(saved: dict, config, where: pathlib.Path) -> None:
    """Raises with the settings that decide numbers and are not those that were saved.

    Args:
      saved: nested, as ``as_dict`` of a config gives it.
      config: what is wanted.
      where: what holds the saved one.
    """
    wanted = configs.numeric_part(config, whole=True)
    unsaid = configs.as_dict(type(config)())  # settings that came later than the run
    lines = configs.differences(_only(saved, unsaid, wanted), wanted)
    if lines:
        raise ConfigError(
            f"{where} holds a run of another config:\n  " + "\n  ".join(lines) + "\n"
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
    if not reading.comes_to_be(lambda: path.exists() and _digest_in(path) == digest):
        raise ConfigError(
            f"--workdir {workdir} is not the directory that process 0 has written to; it must lie "
            f"on storage that all hosts share (NFS, or a mounted bucket)."
        )


def _digest_in(path: pathlib.Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())["digest"]
    return None


def _only(saved: dict, unsaid: dict, wanted: dict) -> dict:
    """The part of a saved config that has to agree: what ``wanted`` names, nested.

    ``unsaid`` holds what stands for settings that were not saved.
    """
    out = {}
    for key, want in wanted.items():
        value = saved.get(key, unsaid.get(key))
        if isinstance(value, dict) and isinstance(want, dict) and key != "model":
            value = _only(value, unsaid.get(key, {}), want)
        out[key] = value
    return out
