"""Numbered checkpoints in a folder, through orbax: arrays and a record, with digests of both."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from lljax.artifacts.failures import cannot_write
from lljax.artifacts.reading import cannot_read, check_absent, read_json
from lljax.engine import orbax_noise
from lljax.engine.digests import digest, digest_of_json
from lljax.engine.progress import log
from lljax.errors import is_out_of_memory
from lljax.safe_text import printable

ARRAYS, RECORD = "arrays", "record"  # the parts of a checkpoint
OLDER_PART = "default"  # the only part of those that lljax wrote before 0.1.0
SPARE_BYTES, SPARE_FILES = 2**18, 64  # of a checkpoint beside its arrays
_RECORD_FILE = "record.json"
_NUMBER = re.compile("0|[1-9][0-9]*")
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of what orbax has not completed


class Damaged(Exception):
    """A checkpoint that cannot be read or is not what was saved; says why."""


class CheckpointFolder:
    """The checkpoints that are whole; one whose writing was cut short is none.

    A context manager: leaving it waits for the write under way.
    """

    def __init__(self, folder: Path, background: bool = False):
        """With `background`, `save` returns while the checkpoint is being written."""
        self.folder = folder
        self._background = background
        self._writing: Path | None = None
        self._checkpointer: ocp.Checkpointer | None = None
        self._strays: set[Path] = set()  # that were told of
        orbax_noise.silence()

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            self.wait()
        except Exception:
            if kind is None:
                raise
        finally:
            if self._checkpointer is not None:
                self._checkpointer.close()
                self._checkpointer = None

    def numbers(self) -> list[int]:
        """Of the checkpoints, ascending."""
        return sorted(int(path.name) for path in _entries(self.folder) if _is_checkpoint(path))

    def path(self, number: int) -> Path:
        return self.folder / str(number)

    def tidy(self) -> None:
        """Removes what a kill left half-written; says what is there and is none of lljax's."""
        if self.folder.exists() and not self.folder.is_dir():
            log(f"warning: {self.folder} is a file in the place of a folder: it is removed")
            _remove(self.folder)
        for path in _entries(self.folder):
            if UNFINISHED in path.name:
                _remove(path)
            elif not _is_checkpoint(path) and path not in self._strays:
                log(f"warning: {printable(str(path))} is no checkpoint: it is ignored")
                self._strays.add(path)

    def save(self, number: int, arrays: Any, record: Mapping[str, Any]) -> None:
        """Writes a checkpoint, in the place of one that has that number.

        Args:
          number: its name.
          arrays: a tree of arrays that nobody changes any more.
          record: what JSON can hold.

        Raises:
          RunFailed: the disk does not take it, or did not take the one before.
        """
        self.wait()
        arrays = jax.device_get(arrays)
        needed = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(arrays))
        signed = {"record": record, "arrays": digest(arrays)}
        parts = {
            ARRAYS: ocp.args.StandardSave(arrays),
            RECORD: ocp.args.JsonSave({**signed, "sha256": digest_of_json(signed)}),
        }
        path = self.path(number)
        _remove(path)
        try:
            self.folder.mkdir(exist_ok=True)  # orbax would make a workdir again that is gone
            _check_room(self.folder, needed)
            self._open().save(path.resolve(), args=ocp.args.Composite(**parts))
        except Exception as error:
            raise cannot_write(path, error) from error
        self._writing = path if self._background else None

    def wait(self) -> None:
        """Until what was saved is on disk.

        Raises:
          RunFailed: the disk did not take it.
        """
        if self._writing is None or not isinstance(self._checkpointer, ocp.AsyncCheckpointer):
            return
        written, self._writing = self._writing, None
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:
            raise cannot_write(written, error) from error

    def record(self, number: int) -> dict[str, Any]:
        """The record of a checkpoint, without its arrays.

        Raises:
          Damaged: it cannot be read or is not what was saved.
          UserError: the disk or its permissions do not let it be read.
        """
        return self._signed(number)["record"]

    def restore(self, number: int, template: Any) -> tuple[Any, dict[str, Any]]:
        """The arrays of a checkpoint, in the form of the tree `template`, and its record.

        Raises: as `record`.
        """
        signed = self._signed(number)
        args = ocp.args.Composite(**{ARRAYS: ocp.args.StandardRestore(template)})
        try:
            arrays = self._open().restore(self.path(number).resolve(), args=args)[ARRAYS]
        except Exception as error:  # whatever its libraries make of damaged bytes
            if is_out_of_memory(error):
                raise
            _check_readable(self.path(number))
            raise Damaged(f"its arrays cannot be read ({type(error).__name__})") from error
        if digest(arrays) != signed["arrays"]:
            raise Damaged("its arrays are not those that were saved")
        return arrays, signed["record"]

    def remove(self, number: int) -> None:
        _remove(self.path(number))

    def clear(self) -> None:
        """Removes all checkpoints, and the folder if it holds nothing else."""
        for path in _entries(self.folder):
            if _is_checkpoint(path) or UNFINISHED in path.name:
                _remove(path)
        if self.folder.is_dir() and not any(_entries(self.folder)):
            self.folder.rmdir()

    def _open(self) -> ocp.Checkpointer:
        if self._checkpointer is None:
            make = ocp.AsyncCheckpointer if self._background else ocp.Checkpointer
            # The first process of a run has all arrays, and does not wait for the others.
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0} if jax.process_count() > 1 else None
            )
            parts = {
                ARRAYS: ocp.StandardCheckpointHandler(multiprocessing_options=alone),
                RECORD: ocp.JsonCheckpointHandler(_RECORD_FILE, multiprocessing_options=alone),
            }
            handler = ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone), **parts
            )
            self._checkpointer = make(handler, multiprocessing_options=alone)
        return self._checkpointer

    def _signed(self, number: int) -> dict[str, Any]:
        path = self.path(number) / RECORD / _RECORD_FILE
        try:
            found = read_json(path)
            signed = {"record": dict(found["record"]), "arrays": found["arrays"]}
            if found["sha256"] != digest_of_json(signed):
                raise Damaged("its record is not the one that was saved")
        except (OSError, TypeError, ValueError, LookupError) as error:
            check_absent(path, error)
            raise Damaged(f"its record cannot be read ({type(error).__name__})") from error
        return signed


def _entries(folder: Path) -> Iterator[Path]:
    """What is in a folder; nothing where there is none."""
    try:
        return iter(sorted(folder.iterdir()) if folder.is_dir() else ())
    except OSError as error:
        raise cannot_read(folder, error) from error


def _check_readable(folder: Path) -> None:
    """UserError if the disk does not give every byte in a folder: then nothing in it is damaged."""

    def give_up(error: OSError) -> None:
        raise error

    path = folder
    try:
        for place, _, names in os.walk(folder, onerror=give_up):
            for name in names:
                path = Path(place, name)
                with path.open("rb") as file:
                    while file.read(1 << 20):
                        pass
    except OSError as error:
        check_absent(path, error)


def _is_checkpoint(path: Path) -> bool:
    return bool(_NUMBER.fullmatch(path.name)) and path.is_dir()


def _remove(path: Path) -> None:
    """Removes a file or a folder, if it is there; RunFailed if the disk does not let it go."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _check_room(folder: Path, needed: int) -> None:
    """OSError where a checkpoint cannot fit: orbax's threads end badly when a disk is full."""
    disk = os.statvfs(folder)  # a file system that does not count tells of 0 in all
    full = disk.f_blocks and disk.f_bavail * disk.f_frsize < needed + SPARE_BYTES
    if full or (disk.f_files and disk.f_favail < SPARE_FILES):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
