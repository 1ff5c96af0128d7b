"""The tensors of a torch checkpoint, read without torch and without running anything in it.

Since torch 1.6 a checkpoint is a zip: ``NAME/data.pkl`` pickles the objects, ``NAME/data/KEY`` is
the raw memory of a storage. A pickle names the functions that rebuild its objects, so a foreign one
can name any. Here two names mean a tensor and one a dict; every other becomes :class:`Inert`, which
swallows whatever it is given. Optimizers and schedulers pass by as that.
"""

import pathlib
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from typing import NamedTuple

import ml_dtypes
import numpy as np

from crate_jax.config import ConfigError

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip

WRAPPERS = ("state_dict", "model")
"""Under which a training checkpoint keeps its parameters."""


class Inert:
    """Stands for anything that a pickle may name and nobody here needs."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        pass

    def extend(self, items):
        pass


class _StorageType(NamedTuple):
    """What a pickle names as ``torch.FloatStorage`` and the like."""

    name: str


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype


class _Tensor(NamedTuple):
    """A view of a storage; memory is touched only when it is asked for."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self, archive: "_Archive") -> np.ndarray:
        memory = archive.memory(self.storage)
        if 0 in self.shape:
            return np.zeros(self.shape, memory.dtype)
        steps = [(n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)]
        if min((self.offset, *self.shape, *self.strides)) < 0 or (
            self.offset + sum(steps) >= memory.size
        ):
            raise ValueError(f"a tensor reaches beyond its storage {self.storage.key}")
        strides = [step * memory.itemsize for step in self.strides]
        start = memory[self.offset :]
        return np.lib.stride_tricks.as_strided(start, self.shape, strides, writeable=False)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._parameter
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _StorageType(name)
        return type("Inert", (Inert,), {})

    def persistent_load(self, pid):
        kind, storage_type, key, *_ = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            return Inert()
        return _Storage(key, np.dtype(_STORAGES[storage_type.name]))

    def _tensor(self, storage, offset, shape, strides, *_):
        if not isinstance(storage, _Storage):
            return Inert()
        return _Tensor(storage, offset, shape, strides)

    def _parameter(self, tensor, *_):
        return tensor


class _Archive:
    def __init__(self, zipped: zipfile.ZipFile):
        self.zipped, self.memories = zipped, {}
        pickles = [name for name in zipped.namelist() if name.split("/")[1:] == ["data.pkl"]]
        self.root = pickles[0].partition("/")[0] + "/" if pickles else ""
        order = f"{self.root}byteorder"
        self.big_endian = order in zipped.namelist() and zipped.read(order) == b"big"

    def content(self):
        with self.zipped.open(f"{self.root}data.pkl") as file:
            return _Unpickler(file).load()

    def memory(self, storage: _Storage) -> np.ndarray:
        if storage not in self.memories:
            raw = self.zipped.read(f"{self.root}data/{storage.key}")
            if self.big_endian:
                words = np.frombuffer(raw, f">u{storage.dtype.itemsize}")
                raw = words.astype(words.dtype.newbyteorder("=")).tobytes()
            self.memories[storage] = np.frombuffer(raw, storage.dtype)
        return self.memories[storage]


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The state dict of a checkpoint: the dict itself, or what it has under ``WRAPPERS``.

    Raises:
      ConfigError: on the format before torch 1.6, and on a file that holds no state dict.
    """
    with path.open("rb") as file:
        head = file.read(2)
    if not head.startswith(b"PK") and (head.startswith(b"\x80") or tarfile.is_tarfile(path)):
        raise ConfigError(
            f"{path} is in torch's format of before version 1.6, which cannot be read safely. "
            f"Save it again: torch.save(torch.load(FILE, map_location='cpu'), FILE)."
        )
    with zipfile.ZipFile(path) as zipped:
        archive = _Archive(zipped)
        content = archive.content()
        if isinstance(content, dict):
            wrapped = (content.get(key) for key in WRAPPERS)
            content = next((inner for inner in wrapped if isinstance(inner, dict)), content)
            tensors = {k: v for k, v in content.items() if isinstance(v, _Tensor)}
            return {name: tensor.array(archive) for name, tensor in tensors.items()}
    raise ConfigError(
        f"{path} pickles no state dict, but an object of torch's; save its state_dict()."
    )
