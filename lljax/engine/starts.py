"""The states in which segments of a training run start: in the host's memory, or on the disk."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lljax import cluster
from lljax.engine.checkpoint_folder import CheckpointFolder, Damaged
from lljax.errors import RunFailed


class HostStarts:
    """All of them, whole, in each process's memory."""

    def __init__(self, leaves: Sequence[Any], count: int):
        """Of so many states with leaves of these shapes and dtypes."""
        self._arrays = [np.zeros((count, *leaf.shape), leaf.dtype) for leaf in leaves]
        self._count = count

    def __len__(self) -> int:
        return self._count

    @property
    def template(self) -> list[np.ndarray]:
        """Leaves of the shapes and dtypes of one of them."""
        return self[0]

    def __getitem__(self, index: int) -> list[np.ndarray]:
        return [array[index] for array in self._arrays]

    def __setitem__(self, index: int, leaves: Sequence[np.ndarray]) -> None:
        for array, leaf in zip(self._arrays, leaves, strict=True):
            array[index] = leaf


class DiskStarts:
    """Each one a checkpoint of its own, which the first process writes as soon as it is there.

    The newest is in memory as well: a forward sweep needs no other, and no folder.
    """

    def __init__(self, leaves: Sequence[Any], count: int):
        """As of `HostStarts`."""
        self.template = [np.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        self._count = count
        self._newest: tuple[int, list[np.ndarray]] | None = None
        self._folder: CheckpointFolder | None = None
        self._owner: Mapping[str, Any] = {}

    def __len__(self) -> int:
        return self._count

    def open(self, folder: CheckpointFolder, owner: Mapping[str, Any]) -> None:
        """From here on they are in a folder; `owner` says whose they are."""
        self._folder, self._owner = folder, owner

    def __getitem__(self, index: int) -> list[np.ndarray]:
        if self._newest is not None and self._newest[0] == index:
            return self._newest[1]
        self._newest = None  # the backward sweep has left it behind
        return self._read(index)

    def __setitem__(self, index: int, leaves: Sequence[np.ndarray]) -> None:
        self._newest = index, list(leaves)
        if self._folder is not None:
            self._write(self._folder, index, list(leaves))

    @cluster.on_first
    def _write(self, folder: CheckpointFolder, index: int, leaves: list[np.ndarray]) -> None:
        folder.save(index, leaves, self._owner)

    @cluster.read_on_first
    def _read(self, index: int) -> list[np.ndarray]:
        if self._folder is None:
            raise ValueError(f"the start of segment {index} was not kept: no folder was opened.")
        try:
            return read_start(self._folder, index, self.template, self._owner)
        except Damaged as error:
            self._folder.remove(index)  # so that it is missed when the run goes on
            raise RunFailed(
                f"{self._folder.path(index)} is damaged: {error}. The same command makes the "
                f"states again that this meta-gradient needs."
            ) from error


Starts = HostStarts | DiskStarts


@contextlib.contextmanager
def folder_of_one_sweep(starts: HostStarts | DiskStarts) -> Iterator[None]:
    """Has starts on the disk in the system's temporary folder, for a sweep that is not resumed."""
    if not isinstance(starts, DiskStarts):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lljax-starts-") as folder:
        starts.open(CheckpointFolder(Path(folder)), {})
        yield


def read_start(
    folder: CheckpointFolder, index: int, template: list[np.ndarray], owner: Mapping[str, Any]
) -> list[np.ndarray]:
    """The leaves of one that was written.

    Raises:
      Damaged: it is not as it was written, or another owner's.
    """
    leaves, found = folder.restore(index, template)
    check_owner(found, owner)
    return leaves


def check_owner(found: Mapping[str, Any], owner: Mapping[str, Any]) -> None:
    """Damaged unless one that was found is this owner's."""
    if found != owner:
        raise Damaged("it is the start of another sweep")
