"""The cache of downloads and tokenised text: its locks, and how damage in it is found.

Whatever is in the cache can be made again. It is only believed if it is what was written, which
digests tell; leftovers of killed processes go when the next process writes there.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from lljax.data.errors import TextError
from lljax.data.progress import log
from lljax.safe_text import printable

_SEAL = "digests.json"
_PATIENCE_SECONDS = 3.0  # before one is told that another process is waited for


def default_folder() -> Path:
    """Where the cache is when no setting says so.

    Raises:
      TextError: the user has no home folder.
    """
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "lljax"
    try:
        return Path.home() / ".cache" / "lljax"
    except RuntimeError as error:
        raise TextError(
            "data.cache_dir: there is no home folder for the cache. Give a folder as "
            "data.cache_dir, or in the environment variable XDG_CACHE_HOME."
        ) from error


def unwritable(folder: Path, error: OSError) -> TextError:
    """What to say where a folder of the cache cannot be written."""
    return TextError(
        f"data.cache_dir: {printable(str(folder))} cannot be written ({error.strerror or error}). "
        f"Make room or get permission there, or give another folder as data.cache_dir or in the "
        f"environment variable XDG_CACHE_HOME."
    )


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Makes a folder of the cache; one process at a time goes on, the others wait.

    Raises:
      TextError: the folder cannot be made or written, before or within the context.
    """
    try:
        if folder.exists() and not folder.is_dir():
            remove(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ".lock"
        if path.is_dir():
            remove(path)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=_PATIENCE_SECONDS)
        except filelock.Timeout:
            log(f"waiting for another process that writes {printable(str(folder))}")
            lock.acquire()
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, (ConnectionError, TimeoutError)):
            raise  # of a network, not of a disk
        raise unwritable(folder, error) from error
    finally:
        lock.release()


def remove(path: Path) -> None:
    """A file or a folder with all that is in it; nothing where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clean(folder: Path) -> None:
    """Removes what killed processes left in the folders beside `folder`, unless one is at work."""
    for leftover in folder.parent.glob("*/incomplete.*"):
        if leftover.parent == folder:  # its lock is held
            shutil.rmtree(leftover, ignore_errors=True)
            continue
        lock = filelock.FileLock(leftover.parent / ".lock")
        with contextlib.suppress(OSError, filelock.Timeout), lock.acquire(timeout=0):
            shutil.rmtree(leftover, ignore_errors=True)


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_record(path: Path, content: dict[str, Any]) -> None:
    """A small JSON file with its own digest, put into place whole."""
    part = path.with_name(f"{path.name}.part")
    record = {"content": content, "sha256": _digest(content)}
    part.write_text(json.dumps(record), encoding="utf-8")
    if path.is_dir():
        remove(path)
    os.replace(part, path)


def read_record(path: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None if it is not there or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        content = record["content"]
        return content if record["sha256"] == _digest(content) else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seal(folder: Path) -> None:
    """Writes the digests of all files of a finished folder into it."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    files = [path for path in files if not path.name.startswith(_SEAL)]
    write_record(folder / _SEAL, {path.name: digest_of(path) for path in files})


def is_sealed(folder: Path) -> bool:
    """Whether a folder has digests that are themselves undamaged."""
    return read_record(folder / _SEAL) is not None


def damage(folder: Path) -> str | None:
    """The name of a file that is not what was sealed, or None if all are."""
    digests = read_record(folder / _SEAL)
    if digests is None:
        return _SEAL
    for name, digest in digests.items():
        try:
            if digest_of(folder / name) != digest:
                return name
        except OSError:
            return name
    return None
