"""Flat dicts of arrays in and out of files, by suffix: npz, safetensors, and torch's own.

bfloat16 has no npy code: numpy writes it as two bytes of nothing in particular (``V2``), and it is
taken back as what it was.
"""

import os
import pathlib
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from crate_jax.config import ConfigError, nearest
from crate_jax.convert import torch_zip

_SAFETENSORS = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
    "BOOL": np.bool_,
}  # fmt: skip


def _read_npz(path):
    def as_written(array):
        return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array

    with np.load(path, allow_pickle=False) as file:
        # Optimizer and clock of the official training loop stay unread.
        names = [name for name in file.files if not name.startswith(("opt/", "chrono/"))]
        return {name: as_written(file[name]) for name in names}


def _read_safetensors(path):
    return {
        name: np.frombuffer(entry["data"], _SAFETENSORS[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in safetensors.deserialize(path.read_bytes())
    }


def _write_npz(arrays, file):
    np.savez(file, **arrays)


def _write_safetensors(arrays, file):
    # It writes memory as it lies, so a transposed view has to be laid out first.
    file.write(safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()}))


def _write_torch(arrays, file):
    try:
        import torch
    except ImportError as error:
        raise ConfigError(
            "writing a .pth needs torch: pip install 'crate_jax[torch]', or write .npz or "
            ".safetensors."
        ) from error

    def tensor(array):
        array = np.array(array)  # torch wants memory that is writable, and no bfloat16
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    torch.save({name: tensor(array) for name, array in arrays.items()}, file)


READERS = {".npz": _read_npz, ".safetensors": _read_safetensors} | dict.fromkeys(
    (".pth", ".pt", ".bin", ".tar"), torch_zip.read
)
WRITERS = {".npz": _write_npz, ".safetensors": _write_safetensors, ".pth": _write_torch}


def _of_suffix(path, table, doing):
    if path.suffix not in table:
        raise ConfigError(f"{doing} {path}: suffix {path.suffix!r}{nearest(path.suffix, table)}")
    return table[path.suffix]


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file, by their names in it.

    Raises:
      ConfigError: when there is no such file, it is damaged, or of an unknown kind.
    """
    path = pathlib.Path(path)
    reader = _of_suffix(path, READERS, "reading")
    if not path.is_file():
        raise ConfigError(f"there is no file {path}.")
    try:
        arrays = reader(path)
    except ConfigError:
        raise
    except Exception as error:  # damaged zips and pickles raise about anything
        raise ConfigError(
            f"{path} cannot be read as {path.suffix} ({type(error).__name__}: {error}); it is cut "
            f"short, damaged or of another kind."
        ) from error
    if not arrays:
        raise ConfigError(f"{path} holds no arrays.")
    return arrays


def write(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the arrays; the file appears under its name only when it is whole.

    Raises:
      ConfigError: on an unknown suffix, and on ``.pth`` where torch is not installed.
    """
    path = pathlib.Path(path)
    writer = _of_suffix(path, WRITERS, "writing")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            writer(arrays, file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
