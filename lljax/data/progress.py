"""What a waiting person sees while text is fetched, read and tokenised, and how Ctrl-C gets in."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tqdm import tqdm

QUIET_SECONDS = 10.0  # between lines where there is no terminal for a bar
DELAY_SECONDS = 3.0  # before a bar appears: small texts need none

ResultT = TypeVar("ResultT")


def log(message: str) -> None:
    """A line for people, that does not tear a progress bar."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


class Progress:
    """How much of something is done: a bar on a terminal, elsewhere a line now and then.

    A context manager.
    """

    def __init__(self, label: str, total: int | None, unit: str = "B"):
        """`total` is in `unit`; None where it is not known."""
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._begun = self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        self._bar = tqdm(
            desc=self._label,
            total=self._total,
            unit=self._unit,
            unit_scale=True,
            delay=DELAY_SECONDS,
            leave=False,
            disable=None,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, number: int) -> None:
        """So many more are done; 0 only lets a line be said whose time has come."""
        self._done += number
        self._bar.update(number)
        now = time.monotonic()
        if self._bar.disable and now - self._said > QUIET_SECONDS:
            self._said = now
            log(f"{self._label}: {self._share()}, {tqdm.format_interval(now - self._begun)}")

    def _share(self) -> str:
        if self._total:
            return f"{min(self._done / self._total, 1):.0%}"
        return tqdm.format_sizeof(self._done, self._unit)


def interruptible(work: Callable[[], ResultT], tick: Callable[[], None]) -> ResultT:
    """The result of a long call into C, which Ctrl-C does not have to wait for.

    The call is made in a thread of its own, so it must let other threads run. `tick` is called
    several times a second.
    """
    results: list[ResultT] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        tick()
    if errors:
        raise errors[0]
    return results[0]
