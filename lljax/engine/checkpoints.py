"""The checkpoints of a policy's optimisation: its newest states, and the best one."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import lljax
from lljax import cluster
from lljax.engine.checkpoint_folder import Damaged
from lljax.engine.metrics import Metrics
from lljax.engine.state_checkpoints import ONE, StateCheckpoints
from lljax.step_control import OuterState


class Checkpoints(StateCheckpoints):
    """The newest states of an outer loop, and the one with the best validation AUC.

    Of which slopes are known a checkpoint only has whether all are: the policy has the rest.
    """

    def __init__(
        self, folder: Path, template: OuterState, run: Mapping[str, Any], layout: str = ONE
    ):
        """As `StateCheckpoints`; `template` has the shapes and dtypes of a state."""
        super().__init__(folder, jax.eval_shape(_as_saved, template), run, layout)

    def save(self, step: int, state: OuterState, metrics: Sequence[Metrics]) -> None:
        super().save(step, _as_saved(state), metrics)

    @cluster.read_on_first
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

    def _check(self, state: OuterState) -> None:
        try:
            lljax.check_policy(state.policy)
        except ValueError as error:
            raise Damaged(str(error)) from error

    def _needed(self, known: Sequence[int]) -> set[int]:
        return super()._needed(known) | {*self._by_validation(self._last, known)[:1]}

    def _by_validation(self, metrics: Sequence[Metrics], steps: Sequence[int]) -> list[int]:
        """The intact ones, the best first."""
        known = [step for step in steps if step < len(metrics) and step not in self._damaged]
        return sorted(known, key=lambda step: (_validation(metrics, step), step))


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
