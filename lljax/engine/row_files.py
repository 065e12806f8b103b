"""Blocks of rows on the disk, each by itself: no process needs all of them at once."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lljax import cluster
from lljax.engine.checkpoint_folder import CheckpointFolder, Damaged
from lljax.engine.placement import fetch
from lljax.engine.row_blocks import RowBlocks


class RowFiles:
    """Numbered files of rows. The first process has them; all processes call `save`."""

    def __init__(self, folder: Path):
        self._files = CheckpointFolder(folder)

    def save(
        self, number: int, arrays: Sequence[RowBlocks], steps: slice, owner: Mapping[str, Any]
    ) -> None:
        """Writes some rows of all the arrays; `owner` says whose they are.

        Raises:
          RunFailed: the disk does not take them.
        """
        self._save(number, [fetch(array[steps]) for array in arrays], owner)

    @cluster.on_first
    def _save(self, number: int, rows: list[np.ndarray], owner: Mapping[str, Any]) -> None:
        self._files.save(number, rows, owner)

    def read(
        self, number: int, like: RowBlocks, count: int, steps: slice, owner: Mapping[str, Any]
    ) -> list[np.ndarray]:
        """The rows of so many arrays in the form of `like`, in the first process.

        Raises:
          Damaged: they cannot be read, are not what was saved, or are another owner's.
        """
        shape = steps.stop - steps.start, like.shape[1]
        template = [np.zeros(shape, like.dtype) for _ in range(count)]
        try:
            rows, found = self._files.restore(number, template)
        except Damaged as error:
            raise Damaged(f"its rows {self._files.path(number)} are: {error}") from error
        if found != owner:
            raise Damaged(f"its rows {self._files.path(number)} belong to something else")
        return [np.asarray(part) for part in rows]

    def keep(self, is_wanted: Callable[[int], bool]) -> None:
        """Removes the others."""
        for number in self._files.numbers():
            if not is_wanted(number):
                self._files.remove(number)

    def tidy(self) -> None:
        """Removes what a kill left half-written."""
        self._files.tidy()

    def clear(self) -> None:
        self._files.clear()
