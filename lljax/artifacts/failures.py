"""What the disk says when it does not take a file, in a sentence for people."""

import errno
import os
import re
from pathlib import Path

from lljax.errors import StorageFailed
from lljax.safe_text import printable

NEEDED = {
    errno.ENOSPC: "Free space on its disk (or inodes: `df -i`)",
    errno.EDQUOT: "Free space in your quota there",
    errno.EFBIG: "Allow larger files (`ulimit -f`)",
    errno.EACCES: "Make it readable and writable for you",
    errno.EPERM: "Make it readable and writable for you",
    errno.EROFS: "Make its disk writable",
    errno.EISDIR: "Move the folder of that name away",
    errno.ENOTDIR: "Move the file that stands in the place of a folder away",
    errno.EEXIST: "Move what stands in its place away",
    errno.ENOENT: "It or its folder was moved or removed: put it back if it was moved",
    errno.EMFILE: "Allow more open files (`ulimit -n`)",
    errno.ENFILE: "Close other programs' files, the system's table of open files is full",
    errno.EIO: "Check that disk",
    errno.ESTALE: "Mount that file system again",
    errno.ENAMETOOLONG: "Take a shorter name",
    errno.ENOMEM: "Free memory",
}
"""What a user can do, by the number of an error of the operating system."""
# As TensorStore, which orbax writes with, says it inside a longer text.
_NUMBER_IN_TEXT = re.compile(r"os_error_code='?(\d+)")


def cannot_write(path: Path, error: BaseException) -> StorageFailed:
    """The error of a write in one sentence: what happened, where, and what is needed.

    Args:
      path: what was being written.
      error: an OSError, or what a library made of one.
    """
    number = os_error_number(error)
    if number is None and not path.parent.exists():
        number = errno.ENOENT  # the cause of whatever a library says of it
    if number is None:
        lines = str(error).splitlines() or [""]
        words = f"{type(error).__name__}: {printable(lines[0])[:200]}"
    else:
        words = os.strerror(number)
    needed = NEEDED.get(number or 0, "Put that right")
    return StorageFailed(
        f"{printable(str(path))} cannot be written: {words}. {needed}, and the same command "
        f"continues the run."
    )


def os_error_number(error: BaseException) -> int | None:
    """The errno behind an exception or behind one that it came from; None where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        if found := _NUMBER_IN_TEXT.search(str(seen)):
            return int(found[1])
        seen = seen.__cause__ or seen.__context__
    return None
