"""Checkpoints of an outer loop over drawn runs: the newest states, each with its metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lljax.artifacts import schema
from lljax.engine.checkpoint_folder import CheckpointFolder, Damaged
from lljax.engine.metrics import Metrics
from lljax.engine.progress import log
from lljax.errors import UserError

_KEPT = 2


class Restored(NamedTuple):
    """Where an optimisation stood."""

    step: int
    state: Any
    metrics: list[Metrics]  # of outer steps 0 .. step


class StateCheckpoints:
    """A context manager: leaving it waits for the write under way."""

    def __init__(self, folder: Path, template: Any, run: Mapping[str, Any]):
        """`template` has the shapes of a state, `run` says whose they are."""
        self._files = CheckpointFolder(folder, background=True)
        self._template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        self._run = dict(run)

    def __enter__(self) -> "StateCheckpoints":
        self._files.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._files.__exit__(*exception)

    def save(self, step: int, state: Any, metrics: Sequence[Metrics]) -> None:
        """Copies the state and returns while it is being written.

        Raises:
          RunFailed: the disk does not take it, or did not take the one before.
        """
        self.wait()
        for older in self._files.numbers()[:-_KEPT]:
            self._files.remove(older)
        record = {"outer_step": step, "run": self._run, "metrics": list(metrics)}
        self._files.save(step, state, record)

    def wait(self) -> None:
        """Until everything saved so far is on disk; raises as `save`."""
        self._files.wait()

    def tidy(self) -> None:
        """Removes what a kill left half-written, and names what is none of lljax's."""
        self._files.tidy()

    def is_empty(self) -> bool:
        """Whether there is no checkpoint, not even a damaged one."""
        return not self._files.numbers()

    def newest(self) -> Restored | None:
        """The newest intact checkpoint; damaged ones are told of.

        Raises:
          UserError: another lljax wrote it.
        """
        for step in reversed(self._files.numbers()):
            try:
                arrays, record = self._files.restore(step, self._template)
                if record.get("outer_step") != step or record.get("run") != self._run:
                    raise Damaged("it belongs to another outer step or run")
            except Damaged as error:
                log(f"warning: {self._files.path(step)} is damaged and is not used: {error}")
                continue
            try:
                for line in record["metrics"]:
                    schema.check_metrics(line, complete=True)
            except schema.SchemaError as error:
                raise UserError(
                    f"{self._files.path(step)} was written by another lljax, whose metrics differ "
                    f"({error}): let that lljax finish the run, or give a --workdir of its own."
                ) from error
            # Arrays bound to a device, as orbax makes them, would compile every program again.
            state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), arrays)
            return Restored(step, state, record["metrics"])
        return None
