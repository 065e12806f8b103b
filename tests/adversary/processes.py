"""Command lines in processes of their own: interrupted, killed, or short of what they need."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from command_line import FAST_COMPILATION, ROOT

from adversary.verdicts import Result

SECONDS = 180
"""More than any command of these tests takes on a busy machine."""
# A process that is killed must not leave half an entry in the tests' cache of compiled programs.
_WRITE_NO_PROGRAM = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}


def environment(**changes: str) -> dict[str, str]:
    """That of a user, who knows nothing of the settings under which tests compile."""
    flags = os.environ.get("XLA_FLAGS", "").replace(FAST_COMPILATION, "").strip()
    return os.environ | {"XLA_FLAGS": flags} | changes


def start(*arguments: object, within: Sequence[str] = (), **changes: str) -> subprocess.Popen:
    """A command line of lljax in a process group of its own.

    Args:
      arguments: behind `lljax`.
      within: a command that runs it, as `nice` would.
      changes: of the environment.
    """
    return subprocess.Popen(
        [*within, sys.executable, "-m", "lljax", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(**_WRITE_NO_PROGRAM, **changes),
        start_new_session=True,
    )


def finish(process: subprocess.Popen, seconds: float = SECONDS) -> Result:
    """Waits for a process; one that takes longer is killed and counts as hung."""
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
            return Result(process.returncode, out, err)
        except subprocess.TimeoutExpired:
            send(process, signal.SIGKILL)
            out, err = process.communicate()
            return Result(None, out, err)


def send(process: subprocess.Popen, number: signal.Signals) -> None:
    """A signal to a process and all that it has started, as a terminal sends it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def is_left(process: subprocess.Popen) -> bool:
    """Whether anything that an ended process started still runs."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def when(condition: Callable[[], bool], process: subprocess.Popen, action: Callable[[], None]):
    """Does something to a running process once the condition holds; not if it ends before."""
    while process.poll() is None:
        if condition():
            action()
            return
        time.sleep(0.002)


def ends_on_its_own(process: subprocess.Popen, seconds: float) -> Result | None:
    """The result of a process that ends within the time; None for one that had to be killed."""
    with process:
        try:
            out, err = process.communicate(timeout=seconds)
            return Result(process.returncode, out, err)
        except subprocess.TimeoutExpired:
            send(process, signal.SIGKILL)
            process.communicate()
            return None


def lines_of(path: Path) -> int:
    """0 where there is no such file."""
    return len(path.read_bytes().splitlines()) if path.is_file() else 0
