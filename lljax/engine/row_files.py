"""Blocks of rows on the disk, each in a file of its own: no process needs all of them at once."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lljax import cluster
from lljax.artifacts.failures import cannot_write
from lljax.artifacts.reading import Unreadable, check_absent
from lljax.engine.digests import read_signed, write_signed
from lljax.engine.host_arrays import fetch
from lljax.engine.row_blocks import RowBlocks

_NAME = re.compile(r"(0|[1-9][0-9]*)\.npz")
_OWNER = "owner"


class RowFiles:
    """Numbered files of rows in a folder. The first process has them; all processes call `save`."""

    def __init__(self, folder: Path):
        self._folder = folder

    def save(
        self, number: int, arrays: Sequence[RowBlocks], steps: slice, owner: Mapping[str, Any]
    ) -> None:
        """Writes some rows of all the arrays; `owner`, what JSON can hold, says whose they are.

        Raises:
          RunFailed: the disk does not take them.
        """
        self._save(number, [fetch(array[steps]) for array in arrays], owner)

    @cluster.on_first
    def _save(self, number: int, rows: list[np.ndarray], owner: Mapping[str, Any]) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        named = {str(index): array for index, array in enumerate(rows)}
        write_signed(self._path(number), named | {_OWNER: _bytes(owner)})

    def read(self, number: int, owner: Mapping[str, Any]) -> list[np.ndarray]:
        """The rows of all the arrays, in the first process.

        Raises:
          Unreadable: they are not there, not what was saved, or another owner's.
        """
        path = self._path(number)
        try:
            arrays = read_signed(path)
        except Unreadable as error:
            raise Unreadable(f"{path} is damaged ({error})") from error
        except OSError as error:
            check_absent(path, error)
            raise Unreadable(f"{path} is missing") from error
        if not np.array_equal(arrays.pop(_OWNER, np.empty(0)), _bytes(owner)):
            raise Unreadable(f"{path} belongs to something else")
        return [arrays[str(index)] for index in range(len(arrays))]

    def keep(self, is_wanted: Callable[[int], bool]) -> None:
        """Removes the files of other numbers, and what a kill left half-written."""
        for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            found = _NAME.fullmatch(path.name)
            is_ours = found or path.name.startswith(".")
            if is_ours and not (found and is_wanted(int(found[1]))):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise cannot_write(path, error) from error

    def clear(self) -> None:
        """Removes all files, and the folder if it holds nothing else."""
        self.keep(lambda _: False)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.npz"


def _bytes(owner: Mapping[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(owner, sort_keys=True).encode(), np.uint8)
