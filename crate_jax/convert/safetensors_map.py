"""Tensors of a Hugging Face checkpoint directory, read slice by slice from a memory map.

A directory holds ``model.safetensors``, or several files and ``model.safetensors.index.json``,
whose ``weight_map`` says which tensor lies where. Opening reads the headers alone; a slice that is
asked for reads its own bytes alone, so that each host of several takes its part of each tensor.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from crate_jax.config import ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
"""What weights are stored as."""


class TensorInfo(NamedTuple):
    """A tensor as its file's header describes it; ``dtype`` is the header's word."""

    shape: tuple[int, ...]
    dtype: str
    file: pathlib.Path


class TensorFiles(Mapping):
    """The tensors of a directory by name: ``files[name]`` is a :class:`TensorInfo`.

    Args:
      directory: of the checkpoint.

    Raises:
      ConfigError: where there are no safetensors, a file of the index is missing, one is cut short,
        or holds not what the index says.
    """

    def __init__(self, directory: str | pathlib.Path):
        self.directory = pathlib.Path(directory)
        self._handles = {}
        self._infos = {}
        where = self._find()
        for path in sorted(set(where.values())):
            self._open(path)
        if lost := sorted(name for name in where if name not in self._infos and name):
            raise ConfigError(
                f"{self.directory / INDEX} lists {some(lost)}, which {where[lost[0]].name} does "
                f"not hold; copy the checkpoint again."
            )

    def __getitem__(self, name: str) -> TensorInfo:
        return self._infos[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """A part of a tensor, in the dtype that it is stored in.

        Args:
          name: of the tensor.
          index: a slice for each of the first axes; ``()`` is the whole.

        Raises:
          ConfigError: see :meth:`check_dtype`.
        """
        info = self._infos[name]
        self.check_dtype(name)
        handle = self._handles[info.file]
        full = all(part.indices(n) == (0, n, 1) for part, n in zip(index, info.shape, strict=False))
        return handle.get_tensor(name) if full else handle.get_slice(name)[index]

    def check_dtype(self, name: str) -> None:
        """Raises a ConfigError on a dtype that no weights have (a quantised checkpoint)."""
        info = self._infos[name]
        if info.dtype not in DTYPES:
            raise ConfigError(
                f"{name} of {info.file} is stored as {info.dtype}; only {', '.join(DTYPES)} are "
                f"read. Take a checkpoint that is not quantised."
            )

    def _find(self) -> dict[str, pathlib.Path]:
        """File of each tensor; where no index tells, the one file under an empty name."""
        if not self.directory.is_dir():
            raise ConfigError(f"there is no checkpoint directory {self.directory}.")
        if (self.directory / SINGLE).is_file():
            return {"": self.directory / SINGLE}
        index = self.directory / INDEX
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text())["weight_map"]
                where = {name: self.directory / file for name, file in weight_map.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{index} is no index of safetensors: {error!r}.") from error
            if lost := sorted({path.name for path in where.values() if not path.is_file()}):
                raise ConfigError(f"{self.directory} lacks {some(lost)}, which {INDEX} names.")
            return where
        others = sorted(self.directory.glob("*.safetensors"))
        if len(others) == 1:
            return {"": others[0]}
        held = sorted(path.name for path in self.directory.iterdir())
        raise ConfigError(
            f"{self.directory} holds neither {SINGLE} nor {INDEX}; it has {some(held)}. Weights "
            f"in another format have to be saved as safetensors first."
        )

    def _open(self, path: pathlib.Path) -> None:
        try:
            handle = safetensors.safe_open(path, framework="numpy")
            for name in handle.keys():
                part = handle.get_slice(name)
                self._infos[name] = TensorInfo(tuple(part.get_shape()), part.get_dtype(), path)
        except (safetensors.SafetensorError, OSError) as error:
            raise ConfigError(
                f"{path} cannot be read as safetensors ({error}); it is cut short, damaged or of "
                f"another kind."
            ) from error
        self._handles[path] = handle


def some(names: Sequence[str], separator: str = ", ") -> str:
    """The first few of what an error is about, and how many more."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (separator.join(names[:3]) or "nothing") + rest
