"""What a waiting person sees: log lines, and progress within long computations."""

import sys
import time
from typing import Any

from tqdm import tqdm

from lljax import cluster
from lljax.safe_text import printable

QUIET_SECONDS = 60  # between lines where there is no terminal for a bar
DELAY_SECONDS = 3  # before a bar appears: quick computations need none


@cluster.on_first
def log(message: str) -> None:
    """A line for people, that does not tear a progress bar."""
    tqdm.write(printable(message), file=sys.stderr)
    sys.stderr.flush()


def bar_of_steps(total: int, done: int) -> Any:
    """A bar that counts outer steps."""
    return tqdm(total=total, initial=done, disable=cluster.hide_bar(), unit="step")


class Progress:
    """How much of a computation is done: a bar on a terminal, elsewhere a line a minute.

    A context manager. Shares are of the whole; the time left goes by those of this session.
    """

    def __init__(self, label: str, done: float = 0.0):
        self._label, self._first, self._begun = label, done, time.monotonic()
        self._logged = self._begun
        self._bar: Any = None

    def __enter__(self) -> Any:
        self._bar = tqdm(
            desc=self._label,
            total=1.0,
            initial=self._first,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
            delay=DELAY_SECONDS,
            leave=False,
            disable=cluster.hide_bar(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, done: float) -> None:
        """`done` is the share that is done, in [0, 1]."""
        cluster.note_progress()
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._bar.disable and now - self._logged > QUIET_SECONDS:
            self._logged = now
            left = (now - self._begun) * (1 - done) / max(done - self._first, 1e-9)
            log(f"{self._label}: {done:.0%}, {tqdm.format_interval(left)} left")


class AnalysisProgress(Progress):
    """Of the analysis of a policy."""

    def update(self, step: int, num_steps: int) -> None:
        self.show(step / num_steps)
