"""``metrics.jsonl`` of a study, whose parts know on disk what they have measured."""

import pathlib
from collections.abc import Iterable


class MetricsFile:
    """Begun anew from what the parts have on disk, then appended to.

    Args:
      path: of the file.
    """

    def __init__(self, path: pathlib.Path):
        self._file = path.open("w")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write_lines(self, lines: Iterable[str]) -> None:
        """One object a line, each on disk before the next part begins."""
        self._file.writelines(f"{line}\n" for line in lines)
        self._file.flush()
