"""stdout and stderr of the `lljax` command, where what is written may not arrive.

A reader may go away, a disk may be full, a locale may know fewer letters: none of it may end a
run, whose results are on disk. So writing never raises; what went wrong is said at the end.
"""

import contextlib
import errno
import io
import os
import signal
import sys
from typing import Any

from lljax import interrupt


def open_all() -> None:
    """Opens those of stdin, stdout and stderr that are closed, before a file gets their number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


class _Lenient(io.RawIOBase):
    """A file descriptor; what cannot be written is dropped, and the first reason is kept."""

    def __init__(self, descriptor: int):
        self._file = io.FileIO(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def isatty(self) -> bool:
        return self._file.isatty()

    def write(self, data: Any) -> int | None:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            return len(data)


class Streams:
    """Stands in for sys.stdout and sys.stderr; `end` judges sys.stdout."""

    def __init__(self) -> None:
        open_all()
        self._raw = _Lenient(1)
        sys.stdout = _text(self._raw, sys.stdout)
        sys.stderr = _text(_Lenient(2), sys.stderr)

    def end(self, status: int) -> int:
        """The exit status, given that of the command; does not return where the reader is gone.

        Then the process ends as by SIGPIPE, like other programs in a pipe.
        """
        sys.stdout.flush()
        error = self._raw.error
        if error is None or status:
            return status
        if error.errno == errno.EPIPE:
            interrupt.end_as_by(signal.SIGPIPE)
        print(f"lljax: stdout cannot be written: {error.strerror}", file=sys.stderr)
        return 1


def _text(raw: _Lenient, old: Any) -> io.TextIOWrapper:
    """The text stream of a descriptor, in the encoding of the one before."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        old.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(old, "encoding", None) or "utf-8",
        errors="backslashreplace",  # a letter that the locale does not know must not end a run
        line_buffering=raw.fileno() == 2 or raw.isatty(),
    )
