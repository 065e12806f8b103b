"""What a waiting person sees while text is fetched, read and tokenised."""

import math
import sys
import time
from typing import Any

from tqdm import tqdm

from lljax import cluster

QUIET_SECONDS = 10.0  # between lines where there is no terminal for a bar
_PAUSE_SECONDS = 1.0  # between phases that are one wait, at most
DELAY_SECONDS = 3.0  # before a bar appears: small texts need none


# Of all phases of one wait, so that several short ones are not a long silence: since when nothing
# was said, and when the last one ended.
_silent_since = _ended = -math.inf


def log(message: str) -> None:
    """A line for people, that does not tear a progress bar; of several processes by the first."""
    global _silent_since
    if cluster.is_first():
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()
    _silent_since = time.monotonic()


class Progress:
    """How much of something is done: a bar on a terminal, elsewhere a line now and then.

    A context manager.
    """

    def __init__(self, label: str, total: int | None, unit: str = "B"):
        """`total` is in `unit`; None where it is not known."""
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._begun = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        global _silent_since
        if self._begun - _ended > _PAUSE_SECONDS:
            _silent_since = self._begun
        self._bar = tqdm(
            desc=self._label,
            total=self._total,
            unit=self._unit,
            unit_scale=True,
            delay=DELAY_SECONDS,
            leave=False,
            disable=cluster.hide_bar(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        global _ended
        self._bar.close()
        _ended = time.monotonic()

    def advance(self, number: int) -> None:
        """So many more are done; 0 only lets a line be said whose time has come."""
        self._done += number
        self._bar.update(number)
        now = time.monotonic()
        if self._bar.disable and now - _silent_since > QUIET_SECONDS:
            log(f"{self._label}: {self._share()}, {tqdm.format_interval(now - self._begun)}")

    def _share(self) -> str:
        if self._total:
            return f"{min(100 * self._done // self._total, 100)}%"
        return tqdm.format_sizeof(self._done, self._unit)
