"""The checkpoints of a policy's optimisation: its newest states, and the best one."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

import lljax
from lljax import cluster
from lljax.artifacts.reading import Unreadable
from lljax.engine.checkpoint_folder import Damaged
from lljax.engine.metrics import Metrics
from lljax.engine.policy_memory import Policy
from lljax.engine.row_blocks import RowBlocks
from lljax.engine.row_files import RowFiles
from lljax.engine.state_checkpoints import ONE, Restored, StateCheckpoints
from lljax.engine.workdir import ROWS, Workdir
from lljax.step_control import OuterState

Block = Callable[[int], list[np.ndarray]]
"""From the number of a block to its rows, of every array [T, N] of a state."""


class Checkpoints(StateCheckpoints):
    """The newest states of an outer loop, and the one with the best validation AUC.

    Of which slopes are known a checkpoint only has whether all are: the policy has the rest. A
    state in blocks of rows is a checkpoint of its scalars, and one a block; a run goes on from
    either form, whichever its policy has now.
    """

    def __init__(
        self,
        folder: Path,
        template: OuterState,
        run: Mapping[str, Any],
        layout: str = ONE,
        segments: Sequence[slice] = (),
        blocks: RowBlocks | None = None,
    ):
        """As `StateCheckpoints`.

        Args:
          folder, run, layout: as there.
          template: has the shapes and dtypes of a state in one piece.
          segments: whose rows a block has, where a policy may be in blocks.
          blocks: has the form of the policy, if it is.
        """
        super().__init__(folder, jax.eval_shape(_as_saved, template), run, layout)
        self._scalars, self._arrays = _apart(self._template)
        self._segments, self._blocks = segments, blocks
        self._rows = RowFiles(folder.with_name(folder.name + ROWS))
        if blocks is not None:
            self._form = {"blocks": len(segments)}
        self._opened: tuple[int, Block] | None = None

    def save(self, step: int, state: OuterState, metrics: Sequence[Metrics]) -> None:
        saved: Any = _as_saved(state)
        if self._blocks is not None:
            self._make_room(step)
            saved, arrays = _apart(saved)
            for index, steps in enumerate(self._segments):
                self._rows.save(self._number(step, index), arrays, steps, self._owner(step))
        super().save(step, saved, metrics)

    def find_start(self, workdir: Workdir) -> Restored | None:
        found = super().find_start(workdir)
        if found is None or self._blocks is None:
            return found
        arrays = self._load(found.step, len(self._arrays))
        return found._replace(state=self._together(found.state, arrays))

    def best(self, metrics: Sequence[Metrics]) -> tuple[int, Policy] | None:
        """The best policy [T, N] that can be read, and the outer step that it is the result of.

        Returns:
          None where the best that is left is the conventional policy, which needs no checkpoint.
        """
        found = self._find_best(metrics)
        if found is None:
            return None
        step, policy = found
        if self._blocks is not None:
            (policy,) = self._load(step, 1)
        return first_with_policy_of(step, metrics), policy

    @cluster.read_on_first
    def _find_best(self, metrics: Sequence[Metrics]) -> tuple[int, Any] | None:
        for step in self._by_validation(metrics, self._files.numbers()):
            if _validation(metrics, step) >= _validation(metrics, 0):
                break
            restored = self._restore(step)
            if restored is not None:
                return step, None if self._blocks is not None else restored.state.policy
        return None

    @cluster.on_first
    def _make_room(self, step: int) -> None:
        """Before a state is written in parts nothing is left that they could be taken for."""
        self.wait()
        self._prune()
        self._files.remove(step)
        self._prune_rows()

    @cluster.on_first
    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if exception[0] is None:
            self._prune_rows()

    def _prune_rows(self) -> None:
        """Removes those of checkpoints that are gone."""
        steps = {*self._files.numbers()}
        self._rows.keep(lambda number: number // len(self._segments) in steps)

    def _read(self, step: int) -> tuple[Any, dict[str, Any]]:
        """Of a policy in blocks the scalars, once every block has been seen to be whole."""
        if self._blocks is None and "blocks" not in self._files.record(step):
            return super()._read(step)
        scalars, block, record = self._open(step)
        blocks = range(len(self._segments))
        if self._blocks is not None:
            for index in blocks:
                _check(block(index)[0])
            return scalars, record
        arrays = [np.concatenate(parts) for parts in zip(*map(block, blocks), strict=True)]
        return self._together(scalars, arrays), record

    def _open(self, step: int) -> tuple[Any, Block, dict[str, Any]]:
        """The scalars of a state, its blocks and its record, of either form."""
        segments = self._segments
        if "blocks" in self._files.record(step):
            scalars, record = self._files.restore(step, self._scalars)

            def read(index: int) -> list[np.ndarray]:
                try:
                    return self._rows.read(self._number(step, index), self._owner(step))
                except Unreadable as error:
                    raise Damaged(f"of its rows, {error}") from error

            return scalars, read, record
        whole, record = super()._read(step)
        scalars, arrays = _apart(whole)
        return scalars, lambda index: [array[segments[index]] for array in arrays], record

    def _load(self, step: int, number: int) -> list[RowBlocks]:
        """The first arrays of a state, block by block, in every process."""
        blocks = cast(RowBlocks, self._blocks)
        arrays = [blocks.empty() for _ in range(number)]
        for index, steps in enumerate(self._segments):
            rows = cluster.from_first(lambda: self._block(step, index)[:number])  # noqa: B023
            for array, part in zip(arrays, rows, strict=True):
                array[steps] = part
        self._opened = None
        return arrays

    def _block(self, step: int, index: int) -> list[np.ndarray]:
        """The rows of a block, in the first process."""
        if self._opened is None or self._opened[0] != step:
            self._opened = step, self._open(step)[1]
        return self._opened[1](index)

    def _together(self, scalars: Any, arrays: Sequence[Any]) -> OuterState:
        """The opposite of `_apart`."""
        leaves, structure = jax.tree.flatten(self._template)
        rest, rows = iter(scalars), iter(arrays)
        parts = [next(rows if leaf.ndim == 2 else rest) for leaf in leaves]
        return jax.tree.unflatten(structure, parts)

    def _number(self, step: int, index: int) -> int:
        """Of the file of a block."""
        return step * len(self._segments) + index

    def _owner(self, step: int) -> dict[str, Any]:
        return {"outer_step": step, "run": self._run}

    def _check(self, state: Any) -> None:
        if self._blocks is None:
            _check(state.policy)

    def _needed(self, known: Sequence[int]) -> set[int]:
        return super()._needed(known) | {*self._by_validation(self._last, known)[:1]}

    def _by_validation(self, metrics: Sequence[Metrics], steps: Sequence[int]) -> list[int]:
        """The intact ones, the best first."""
        known = [step for step in steps if step < len(metrics) and step not in self._damaged]
        return sorted(known, key=lambda step: (_validation(metrics, step), step))


def _as_saved(state: OuterState) -> OuterState:
    return state._replace(known=state.complete)


def _apart(state: Any) -> tuple[list[Any], list[Any]]:
    """(what a state has beside arrays [T, N], those)."""
    leaves = jax.tree.leaves(state)
    return [x for x in leaves if x.ndim != 2], [x for x in leaves if x.ndim == 2]


def _check(policy: Any) -> None:
    try:
        lljax.check_policy(policy)
    except ValueError as error:
        raise Damaged(str(error)) from error


def first_with_policy_of(step: int, metrics: Sequence[Metrics]) -> int:
    """The outer step whose trial became the policy that stood after `step`."""
    while step > 0 and not metrics[step]["accepted"]:
        step -= 1
    return step


def _validation(metrics: Sequence[Metrics], step: int) -> float:
    value = metrics[step]["validation_auc"]
    return math.inf if value is None else value
