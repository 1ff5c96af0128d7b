"""Files that appear whole or not at all: texts, and arrays as ``.npz``."""

import contextlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, NotImplementedError)
"""What numpy raises for an ``.npz`` that is cut off, or in which bytes are others."""


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file; an earlier one stays until the new one is on disk, through a power cut too."""
    with _in_place_of(path, "w") as file:
        file.write(text)


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name, compressed; an earlier file stays as with :func:`write_text`."""
    with _in_place_of(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    """The arrays of an ``.npz`` by name; None where there is no file, or it is damaged."""
    try:
        with np.load(path) as file:
            return dict(file)
    except (FileNotFoundError, *_DAMAGE):
        return None


@contextlib.contextmanager
def _in_place_of(path: pathlib.Path, mode: str) -> Iterator[IO]:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open(mode) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
