"""Reads files that a disk may have damaged: whatever is wrong with one is said in a few words."""

import contextlib
import errno
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lljax.artifacts.failures import NEEDED
from lljax.errors import CannotRead
from lljax.safe_text import printable

# What the system says of a file that is not there, or is none; it says anything else of its own.
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
LARGEST = 2**63  # of whole numbers: larger ones overflow where they are used


class Unreadable(ValueError):
    """A file, or a part of it, that cannot be read; says why."""


def check_absent(path: Path, error: Exception) -> None:
    """CannotRead unless an error of reading a file means that it is not there, or damaged.

    Without permission, or on a failing disk, it may be whole: nothing may be put in its place.
    """
    if isinstance(error, OSError) and not isinstance(error, _ABSENT) and error.errno != errno.ELOOP:
        raise cannot_read(path, error) from error


def cannot_read(path: Path, error: OSError) -> CannotRead:
    """What to say of it: what happened, where, and what is needed."""
    needed = NEEDED.get(error.errno or 0, "Put that right")
    return CannotRead(
        f"{printable(str(path))} cannot be read: {error.strerror or error}. {needed}, and the same "
        f"command goes on; nothing was changed."
    )


def parse_json(text: str) -> Any:
    """The value of a JSON text; infinities and numbers too large to compute with are none.

    Raises:
      Unreadable: it is no such text.
    """
    try:
        return json.loads(text, parse_constant=_constant, parse_float=_real, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise Unreadable(f"no valid JSON ({error.msg} at character {error.pos})") from None
    except RecursionError:
        raise Unreadable("no valid JSON (nested too deeply)") from None


def read_text(path: Path) -> str:
    """A text in UTF-8.

    Raises:
      OSError: the file is not there or cannot be opened.
      Unreadable: it is no such text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Unreadable("no text in UTF-8") from None


def read_json(path: Path) -> Any:
    """`parse_json` of `read_text`."""
    return parse_json(read_text(path))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an archive; raises as `read_text`, and so a truncated one is found here."""
    return _load(path, lambda archive: {name: archive[name] for name in archive.files})


def read_npy(path: Path) -> np.ndarray:
    """One array; raises as `read_text`."""
    return _load(path, lambda array: array.view(np.ndarray))


def map_npy(path: Path) -> np.ndarray:
    """One array, which memory need not hold: what is used of it is read then. Raises as `read_npy`
    where its form is wrong, or not all of it is there."""
    with path.open("rb"), _unreadable():
        return np.lib.format.open_memmap(path, mode="r").view(np.ndarray)


def _load(path: Path, take: Callable[[Any], Any]) -> Any:
    with path.open("rb") as file, _unreadable():
        return take(np.load(file, allow_pickle=False))


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    """What numpy and zipfile make of damaged bytes, as `Unreadable`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
            raise  # of the disk
        words = printable(" ".join(str(error).split()))[:200]
        raise Unreadable(f"{type(error).__name__}: {words}") from None


def _constant(word: str) -> float:
    return math.nan if word == "NaN" else _refuse_number(word)


def _refuse_number(word: str) -> Any:
    raise Unreadable(f"no valid JSON ({word} is no number)")


def _real(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refuse_number("a number out of range")


def _whole(digits: str) -> int:
    # Python refuses to read very long ones, with advice for programmers.
    value = int(digits) if len(digits) < 30 else LARGEST + 1
    return value if abs(value) <= LARGEST else _refuse_number("a number out of range")
