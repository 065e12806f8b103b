"""Ctrl-C and SIGTERM: the `lljax` command stops at once, wherever it is.

Python's way, KeyboardInterrupt in the main thread, is not enough: XLA computes and compiles for
minutes without returning to Python, and it goes on when a Python function that it calls raises. So
a thread watches the signals too. The main thread gets a moment to clean up; then the process is
ended where it stands. A run continues from there, as after a kill.
"""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

GRACE_SECONDS = 1.0
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
CONTINUED = ("run", "sweep")
"""Commands that go on from where they were."""


class _Process:
    """The state of this process; there is one."""

    sockets: tuple[socket.socket, ...] = ()
    received: int | None = None  # the first signal
    cleans_up = False  # whether KeyboardInterrupt reaches `stoppable`
    ending = threading.Lock()


def install() -> None:
    """Takes the signals over; those that are ignored, as after nohup, stay so."""
    if _Process.sockets:
        return
    signals = [number for number in _WORDS if signal.getsignal(number) is not signal.SIG_IGN]
    _Process.sockets = reader, writer = socket.socketpair()
    writer.setblocking(False)
    # Written to when a signal arrives, even if the main thread does not return to Python.
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    for number in signals:
        signal.signal(number, _on_signal)
    os.register_at_fork(after_in_child=_leave)
    sys.excepthook, sys.unraisablehook = _show_uncaught, _show_unraisable


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """What runs inside is stopped by KeyboardInterrupt, and then the process ends."""
    install()
    try:
        _Process.cleans_up = True
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        _end(_Process.received or signal.SIGINT)
    finally:
        _Process.cleans_up = False
        if _Process.received is not None:  # and nobody has heard it
            _end(_Process.received)


def end_as_by(number: int) -> NoReturn:
    """Ends the process as the signal does where it has no handler, without a word.

    The parent can tell: a shell's loop over several runs ends with Ctrl-C only so.
    """
    # signal.signal() works in the main thread alone.
    ctypes.pythonapi.PyOS_setsig(ctypes.c_int(number), None)
    os.kill(os.getpid(), number)
    while True:
        time.sleep(1)


def _on_signal(number: int, _: FrameType | None) -> None:
    if _Process.received is not None:
        return  # a second Ctrl-C must not disturb the cleaning up
    _Process.received = number
    if not _Process.cleans_up:
        _end(number)
    raise KeyboardInterrupt


def _watch(reader: socket.socket) -> None:
    while True:
        number = reader.recv(1)[0]
        if number in _WORDS:
            time.sleep(GRACE_SECONDS)
            _end(number)


def _end(number: int) -> NoReturn:
    while not _Process.ending.acquire(blocking=False):
        time.sleep(1)  # the other thread is at it
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    cure = "; the same command continues the run" if command in CONTINUED else ""
    start = "\n" if os.isatty(2) else ""  # behind ^C, or a progress bar
    with contextlib.suppress(OSError):
        os.write(2, f"{start}lljax: {_WORDS[signal.Signals(number)]}{cure}\n".encode())
    end_as_by(number)


def _leave() -> None:
    """A forked process, e.g. a worker of a task's data loader, has the signals for itself."""
    signal.set_wakeup_fd(-1)
    for number in _WORDS:
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_DFL)


def _show_uncaught(kind: type[BaseException], error: BaseException, place: Any) -> None:
    if _is_to_be_shown(kind):
        sys.__excepthook__(kind, error, place)


def _show_unraisable(unraisable: Any) -> None:
    if _is_to_be_shown(unraisable.exc_type):
        sys.__unraisablehook__(unraisable)


def _is_to_be_shown(kind: type[BaseException]) -> bool:
    """Whether an exception that meets code which does not pass it on is news."""
    # The threads of orbax's C++ tell what follows from an error that the main thread gets too.
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and not issubclass(kind, KeyboardInterrupt)
