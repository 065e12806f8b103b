"""The checkpoints of the outer loop, one an outer step; only those are believed that are intact."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax.artifacts import schema
from lljax.engine.checkpoint_folder import OLDER_PART, CheckpointFolder, Damaged
from lljax.engine.metrics import Metrics
from lljax.engine.progress import log
from lljax.errors import UserError
from lljax.step_control import OuterState

KEPT = 2  # the newest ones, beside the best


class Restored(NamedTuple):
    """Where an optimisation stood."""

    step: int
    state: OuterState
    metrics: list[Metrics]  # of outer steps 0 .. step


class Checkpoints:
    """The newest states of an outer loop, and the one with the best validation AUC.

    A context manager: leaving it waits for the writes under way.
    """

    def __init__(self, folder: Path, template: OuterState, run: Mapping[str, Any]):
        """Opens `folder`.

        Of which slopes are known a checkpoint only has whether all are: the policy has the rest.

        Args:
          folder: where they are.
          template: has the shapes and dtypes of a state.
          run: whose they are: its settings and data, as JSON can hold them.
        """
        self._files = CheckpointFolder(folder, background=True)
        shapes = jax.eval_shape(_as_saved, template)
        self._template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        self._run = dict(run)
        self._damaged: set[int] = set()
        self._last: Sequence[Metrics] = ()

    def __enter__(self) -> "Checkpoints":
        self._files.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._files.__exit__(*exception)
        if exception[0] is None:
            self._prune()

    def save(self, step: int, state: OuterState, metrics: Sequence[Metrics]) -> None:
        """Copies the state and returns while it is being written.

        Args:
          step: the outer step that `state` is the result of.
          state: what to keep.
          metrics: of all outer steps so far.

        Raises:
          RunFailed: the disk does not take it, or did not take the one before.
        """
        self.wait()
        self._prune()
        record = {"outer_step": step, "run": self._run, "metrics": list(metrics)}
        self._files.save(step, _as_saved(state), record)
        self._damaged.discard(step)
        self._last = metrics

    def wait(self) -> None:
        """Until everything saved so far is on disk; raises as `save`."""
        self._files.wait()

    def tidy(self) -> None:
        """Removes what a kill left half-written, and names what is none of lljax's."""
        self._files.tidy()

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

    def best(self, metrics: Sequence[Metrics]) -> tuple[int, jax.Array] | None:
        """The best policy [T, N] that can be read, and the outer step that it is the result of.

        Returns:
          None where the best that is left is the conventional policy, which needs no checkpoint.
        """
        for step in self._by_validation(metrics, self._files.numbers()):
            if _validation(metrics, step) >= _validation(metrics, 0):
                break
            restored = self._restore(step)
            if restored is not None:
                return first_with_policy_of(step, metrics), restored.state.policy
        return None

    def is_empty(self) -> bool:
        """Whether there is no checkpoint, not even a damaged one."""
        return not self._files.numbers()

    def _restore(self, step: int) -> Restored | None:
        """A checkpoint; None, with a word, where it is damaged."""
        self.wait()
        try:
            arrays, record = self._files.restore(step, self._template)
            if record.get("outer_step") != step or record.get("run") != self._run:
                raise Damaged("it belongs to another outer step or run")
            # Arrays bound to a device, as orbax makes them, would compile every program again.
            state = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), arrays)
            try:
                lljax.check_policy(state.policy)
            except ValueError as error:
                raise Damaged(str(error)) from error
        except Damaged as error:
            if step not in self._damaged:
                log(f"warning: {self._files.path(step)} is damaged and is not used: {error}")
            self._damaged.add(step)
            return None
        return Restored(step, state, record["metrics"])

    def _by_validation(self, metrics: Sequence[Metrics], steps: Sequence[int]) -> list[int]:
        """The intact ones, the best first."""
        known = [step for step in steps if step < len(metrics) and step not in self._damaged]
        return sorted(known, key=lambda step: (_validation(metrics, step), step))

    def _prune(self) -> None:
        """Removes those that nobody needs once the last one is on disk."""
        metrics = self._last
        known = [step for step in self._files.numbers() if step < len(metrics)]
        needed = {*known[-KEPT:], *self._by_validation(metrics, known)[:1]}
        for step in known:
            if step not in needed:
                self._files.remove(step)


def _as_saved(state: OuterState) -> OuterState:
    return state._replace(known=state.complete)


def first_with_policy_of(step: int, metrics: Sequence[Metrics]) -> int:
    """The outer step whose trial became the policy that stood after `step`."""
    while step > 0 and not metrics[step]["accepted"]:
        step -= 1
    return step


def _validation(metrics: Sequence[Metrics], step: int) -> float:
    value = metrics[step]["validation_auc"]
    return math.inf if value is None else value
