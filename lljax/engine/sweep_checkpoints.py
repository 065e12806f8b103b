"""Checkpoints of a meta-gradient on its way."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lljax import cluster
from lljax.artifacts.reading import Unreadable
from lljax.engine.checkpoint_folder import CheckpointFolder, Damaged
from lljax.engine.digests import digest
from lljax.engine.host_arrays import fetch
from lljax.engine.progress import log
from lljax.engine.row_blocks import RowBlocks
from lljax.engine.row_files import RowFiles
from lljax.engine.starts import DiskStarts, check_owner, read_start
from lljax.engine.sweep_state import Sweep
from lljax.engine.workdir import ROWS, STARTS


class OuterCheckpoints(Protocol):
    """Those of the outer steps, which may still be on their way to the disk."""

    def wait(self) -> None:
        """Until they are there."""
        ...


class SweepCheckpoints:
    """The newest state of the meta-gradient that an outer step is computing.

    Written at most every `every` seconds, and seldom enough that writing takes under a twentieth of
    the time; after each segment where `every` is 0. `label` names such meta-gradients to people.
    """

    def __init__(
        self, folder: Path, every: float, run: Mapping[str, Any], label: str = "outer step"
    ):
        """`run` says whose they are: its settings and data, as JSON can hold them."""
        # What is written changes while the sweep goes on, so it must be written before.
        self._files = CheckpointFolder(folder)
        # States in which segments start do not change any more: each is written once.
        self._starts = CheckpointFolder(folder.with_name(folder.name + STARTS))
        # So are blocks of the gradient's rows, where it is in blocks.
        self._rows = RowFiles(folder.with_name(folder.name + ROWS))
        self._every, self._run, self.label = every, dict(run), label
        self._last, self._took = time.monotonic(), 0.0
        self._owner: dict[str, Any] = {}
        self._num_starts = self._num_rows = 0  # that are written

    def save_at_times(self, outer_step: int, sweep: Sweep, outer: OuterCheckpoints) -> None:
        """Saves the sweep when it is time to; raises RunFailed if the disk does not take it."""
        started, gradient = time.monotonic(), sweep.policy_grad
        if not isinstance(gradient, RowBlocks):
            self._save_if_due(outer_step, sweep, outer, started)
        # All processes have a part of a block, and none is written twice.
        elif cluster.from_first(lambda: self._is_due(started)):
            for index in _done(sweep, gradient)[self._num_rows :]:
                self._rows.save(index, [gradient], gradient.segments[index], self._owner)
            self._num_rows = sweep.backward
            self._save_if_due(outer_step, sweep, outer, started)

    def _is_due(self, now: float) -> bool:
        return now - self._last >= (max(self._every, 20 * self._took) if self._every else 0)

    @cluster.on_first
    def _save_if_due(
        self, outer_step: int, sweep: Sweep, outer: OuterCheckpoints, started: float
    ) -> None:
        if not self._is_due(started):
            return
        outer.wait()  # the sweep is of no use without the outer step before it
        if not isinstance(sweep.starts, DiskStarts):
            for index in range(self._num_starts, sweep.forward + 1):
                self._starts.save(index, sweep.starts[index], self._owner)
            self._num_starts = sweep.forward + 1
        number = _number(outer_step, sweep)
        self._files.save(number, _alone(sweep), self._owner)
        for older in self._files.numbers():
            if older != number:
                self._files.remove(older)
        self._last = time.monotonic()
        self._took = self._last - started

    def restore(
        self, outer_step: int, policy: Any, template: Sweep, outer: OuterCheckpoints
    ) -> Sweep | None:
        """The saved sweep of this outer step and policy; None when there is none that is intact.

        What is saved of an earlier outer step is removed once the result of that step is on disk.
        """
        gradient, starts = template.policy_grad, template.starts
        if isinstance(gradient, RowBlocks):
            in_blocks, self._num_rows = policy.digest(), 0
            sweep = self._restore(outer_step, lambda: in_blocks, template, outer)
            if sweep is not None:
                for index in _done(sweep, gradient):
                    gradient[gradient.segments[index]] = self._read_block(index)
                sweep.policy_grad, self._num_rows = gradient, sweep.backward
        else:
            whole = fetch(policy)
            sweep = self._restore(outer_step, lambda: digest(whole), template, outer)
        if isinstance(starts, DiskStarts):
            starts.open(self._starts, self._owner)
            if sweep is not None:
                sweep.starts = starts
        return sweep

    @cluster.read_on_first
    def _restore(
        self,
        outer_step: int,
        of_policy: Callable[[], str],
        template: Sweep,
        outer: OuterCheckpoints,
    ) -> Sweep | None:
        """As `restore`, without a gradient that is in blocks."""
        self._last = time.monotonic()  # a sweep that is over sooner needs no file
        self._owner = {"outer_step": outer_step, "policy": of_policy(), "run": self._run}
        if isinstance(template.policy_grad, RowBlocks):
            self._owner["blocks"] = len(template.policy_grad.segments)
        self._num_starts = 0
        self._files.tidy()
        self._starts.tidy()
        numbers = self._files.numbers()
        for number in reversed(numbers):
            if number // _numbers_a_step(template) != outer_step:
                continue
            sweep = self._read(number, template)
            if sweep is not None:
                self._num_starts = sweep.forward + 1
                return sweep
        if numbers:
            outer.wait()
            self.clear()
        return None

    def _read(self, number: int, template: Sweep) -> Sweep | None:
        """A sweep with its starts; None where it is another policy's or, with a word, damaged."""
        place = self._files.path(number)
        try:
            if self._files.record(number) != self._owner:
                return None
            arrays, _ = self._files.restore(number, _alone(template))
            gradient = template.policy_grad
            in_blocks = {"policy_grad": None} if isinstance(gradient, RowBlocks) else {}
            on_disk = {"starts": None} if isinstance(template.starts, DiskStarts) else {}
            sweep = dataclasses.replace(template, **(arrays | in_blocks | on_disk))
            for index in _done(sweep, gradient) if in_blocks else ():
                self._read_block(index)
            for index in range(sweep.forward + 1 - sweep.backward):
                place = self._starts.path(index)
                if on_disk:  # where it is read, and checked, when it is needed
                    check_owner(self._starts.record(index), self._owner)
                    continue
                sweep.starts[index] = read_start(
                    self._starts, index, template.starts.template, self._owner
                )
        except Damaged as error:
            log(f"warning: {place} is damaged and is not used: {error}")
            return None
        return sweep

    @cluster.read_on_first
    def _read_block(self, index: int) -> np.ndarray:
        try:
            (rows,) = self._rows.read(index, self._owner)
        except Unreadable as error:
            raise Damaged(f"of its rows, {error}") from error
        return rows

    @cluster.on_first
    def clear(self) -> None:
        """Forgets the sweep, whose result is on disk."""
        self._files.clear()
        self._starts.clear()
        self._rows.clear()
        self._last = time.monotonic()


def _alone(sweep: Sweep) -> dict[str, Any]:
    """What of it changes: all but what is written once, the starts and blocks of its gradient."""
    return {
        name: value
        for name, value in vars(sweep).items()
        if name != "starts" and not isinstance(value, RowBlocks)
    }


def _done(sweep: Sweep, gradient: RowBlocks) -> list[int]:
    """The blocks of the gradient that are there, in the order in which they were made."""
    return [*reversed(range(len(gradient.segments)))][: sweep.backward]


def _numbers_a_step(sweep: Sweep) -> int:
    return 2 * len(sweep.starts)


def _number(outer_step: int, sweep: Sweep) -> int:
    return outer_step * _numbers_a_step(sweep) + sweep.forward + sweep.backward
