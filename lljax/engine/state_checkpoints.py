"""The newest states of an outer loop, one an outer step; only intact ones are believed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from lljax import cluster
from lljax.artifacts import schema
from lljax.engine.checkpoint_folder import OLDER_PART, CheckpointFolder, Damaged
from lljax.engine.host_arrays import fetch
from lljax.engine.metrics import Metrics
from lljax.engine.progress import log
from lljax.engine.workdir import Workdir
from lljax.errors import UserError

KEPT = 2  # the newest ones
ONE = "1 device"  # what a record that tells of no layout was made on


class Restored(NamedTuple):
    """Where an optimisation stood."""

    step: int
    state: Any
    metrics: list[Metrics]  # of outer steps 0 .. step
    layout: str  # where it was made


class StateCheckpoints:
    """The newest states of an outer loop.

    A context manager: leaving it waits for the writes under way.
    """

    def __init__(self, folder: Path, template: Any, run: Mapping[str, Any], layout: str = ONE):
        """Opens `folder`.

        Args:
          folder: where they are.
          template: has the shapes and dtypes of what is saved of a state.
          run: whose they are: its settings and data, as JSON can hold them.
          layout: on how many devices the run goes on, in words.
        """
        self._layout = layout
        self._files = CheckpointFolder(folder, background=True)
        # Of their form and no memory: some states are larger than one host's.
        self._template = jax.tree.map(
            lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), template
        )
        self._run = dict(run)
        self._form: dict[str, Any] = {}  # what a record says of the form of its state
        self._damaged: set[int] = set()
        self._last: Sequence[Metrics] = ()

    def __enter__(self) -> Self:
        self._files.__enter__()
        return self

    @cluster.on_first
    def __exit__(self, *exception: Any) -> None:
        self._files.__exit__(*exception)
        if exception[0] is None:
            self._prune()

    def save(self, step: int, state: Any, metrics: Sequence[Metrics]) -> None:
        """Copies the state and returns while it is being written.

        Args:
          step: the outer step that `state` is the result of.
          state: what to keep.
          metrics: of all outer steps so far.

        Raises:
          RunFailed: the disk does not take it, or did not take the one before.
        """
        self._save(step, fetch(state), metrics)

    @cluster.on_first
    def _save(self, step: int, state: Any, metrics: Sequence[Metrics]) -> None:
        self.wait()
        self._prune()
        record = {
            "outer_step": step,
            "run": self._run,
            "metrics": list(metrics),
            "layout": self._layout,
            **self._form,
        }
        self._files.save(step, state, record)
        self._damaged.discard(step)
        self._last = metrics

    @cluster.on_first
    def wait(self) -> None:
        """Until everything saved so far is on disk; raises as `save`."""
        self._files.wait()

    @cluster.on_first
    def tidy(self) -> None:
        """Removes what a kill left half-written, and names what is none of lljax's."""
        self._files.tidy()

    @cluster.read_on_first
    def find_start(self, workdir: Workdir) -> Restored | None:
        """The newest outer step that can be continued from; None where there is none.

        Raises:
          UserError: an earlier lljax began the run, or all of its checkpoints are missing.
        """
        start = self.newest()
        if start is None and self._files.numbers():
            log(
                f"warning: no checkpoint in {self._files.folder} can be used: the run begins again "
                f"at outer step 0"
            )
        elif start is None:
            workdir.check_begin()
        elif start.layout != self._layout:
            log(
                f"the run was on {start.layout} and goes on with {self._layout}: its results are "
                f"the same to rounding, and no longer to the bit"
            )
        return start

    def newest(self) -> Restored | None:
        """The newest intact checkpoint; damaged ones are told of.

        Raises:
          UserError: they were written by an earlier lljax, or there is no permission to read them.
        """
        numbers = self._files.numbers()
        for step in reversed(numbers):
            restored = self._restore(step)
            if restored is not None:
                self._check_columns(restored)
                self._last = restored.metrics
                return restored
        older = [step for step in numbers if (self._files.path(step) / OLDER_PART).exists()]
        if older:
            raise UserError(
                f"the checkpoints in {self._files.folder} were written by an earlier lljax, in "
                f"another form: let that lljax finish the run, or give a --workdir of its own."
            )
        return None

    def _check_columns(self, restored: Restored) -> None:
        try:
            for line in restored.metrics:
                schema.check_metrics(line, complete=True)
        except schema.SchemaError as error:
            raise UserError(
                f"{self._files.path(restored.step)} was written by another lljax, whose metrics "
                f"differ ({error}): let that lljax finish the run, or give a --workdir of its own."
            ) from error

    def _restore(self, step: int) -> Restored | None:
        """A checkpoint; None, with a word, where it is damaged."""
        self.wait()
        try:
            arrays, record = self._read(step)
            if record.get("outer_step") != step or record.get("run") != self._run:
                raise Damaged("it belongs to another outer step or run")
            # Arrays bound to a device, as orbax makes them, would compile every program again.
            state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), arrays)
            self._check(state)
        except Damaged as error:
            if step not in self._damaged:
                log(f"warning: {self._files.path(step)} is damaged and is not used: {error}")
            self._damaged.add(step)
            return None
        return Restored(step, state, record["metrics"], record.get("layout", ONE))

    def _read(self, step: int) -> tuple[Any, dict[str, Any]]:
        """A state and its record; Damaged where they cannot be read."""
        return self._files.restore(step, self._template)

    def _check(self, state: Any) -> None:
        """Damaged if it is no state."""

    def _needed(self, known: Sequence[int]) -> set[int]:
        """Of the checkpoints whose metrics are known, ascending, those that are kept."""
        return {*known[-KEPT:]}

    def _prune(self) -> None:
        """Removes those that nobody needs once the last one is on disk."""
        known = [step for step in self._files.numbers() if step < len(self._last)]
        needed = self._needed(known)
        for step in known:
            if step not in needed:
                self._files.remove(step)


def newest_record(workdir: Workdir) -> dict[str, Any] | None:
    """The record of the newest checkpoint whose record is intact."""
    files = CheckpointFolder(workdir.checkpoints)
    for number in reversed(files.numbers()):
        try:
            return files.record(number)
        except Damaged:
            continue  # told of when it is restored
    return None
