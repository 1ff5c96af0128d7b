"""What of a report is finished lies in files of its own, and is not done again.

``parts/NAME.npz`` holds the statistics of the model, the losses of the changed networks, or what is
kept of one revision, each with a key that names what it was made of.
"""

import hashlib
import pathlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from crate_jax import config as configs
from crate_jax.config import ConfigError
from crate_jax.convert.huggingface import Checkpoint
from crate_jax.studies.llm_report.passes import Texts
from crate_jax.studies.llm_report.settings import Settings
from crate_jax.train import whole

KEY = "key"
_SAMPLES, _SAMPLE_BYTES = 8, 2**16


def make_key(settings: Settings, checkpoint: Checkpoint, texts: Texts) -> str:
    """A digest of the settings that change numbers, the texts, and samples of the weights.

    Samples are bytes at a few even distances of each file, its header among them: enough to tell
    one revision of a model from another.
    """
    digest = hashlib.sha256(configs.digest(settings).encode())
    digest.update(repr(checkpoint.arch).encode())
    digest.update(np.ascontiguousarray(texts.tokens).tobytes() + texts.domain.tobytes())
    for path in sorted({info.file for info in checkpoint.files.values()}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in np.linspace(0, max(0, size - _SAMPLE_BYTES), _SAMPLES).astype(int):
                file.seek(int(start))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def check_alike(keys: list[str]) -> None:
    """Raises where the processes do not read the same weights and texts."""
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(hashlib.sha256("".join(keys).encode()).digest(), np.uint8)
    if (multihost_utils.process_allgather(mine) != mine).any(axis=-1).any():
        raise ConfigError(
            "the processes do not see the same config.checkpoint, config.revisions and "
            "config.tokens; all hosts need the same files under these names."
        )


def find_or_make(
    path: pathlib.Path, key: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> tuple[dict[str, np.ndarray], bool]:
    """What a file holds, if its key is this one; else what ``make`` gives, written by process 0.

    Returns:
      the arrays, and whether they were there.
    """
    saved = whole.read_npz(path) or {}
    is_there = str(saved.pop(KEY, "")) == key
    if jax.process_count() > 1:  # one that reads while others compute would hang them
        is_there = multihost_utils.process_allgather(np.array(is_there)).all()
    if is_there:
        return saved, True
    made = dict(make())
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole.write_npz(path, made | {KEY: np.array(key)})
    return made, False
