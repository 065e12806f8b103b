"""How far a meta-gradient is, in the host's memory."""

import dataclasses
from typing import Any

import jax
import numpy as np

from lljax.engine.placement import fetch
from lljax.segments import OBJECTIVE


@dataclasses.dataclass
class Sweep:
    """How far a meta-gradient is: arrays in the host's memory, of shapes that never change.

    Attributes:
      curves: [T+1] each, mean losses at theta_0 .. theta_T: the objective's and the watched sets'.
      starts: leaves [C+1, ...], the states in which the segments start, and s_T.
      cotangent: the leaves of the cotangent of the state that the backward sweep has reached.
      policy_grad: [T, N], in blocks of rows where the policy is; with an active set 0 where no
        slope was computed.
      forward: the segments that the forward sweep has done.
      backward: those that the backward sweep has done, from the last one on.
    """

    curves: dict[str, np.ndarray]
    starts: list[np.ndarray]
    cotangent: list[np.ndarray]
    policy_grad: Any  # np.ndarray, or RowBlocks
    forward: int = 0
    backward: int = 0

    @property
    def desired(self) -> np.ndarray:
        """[T+1], the desired losses; the objective itself where nothing else is in it."""
        return self.curves.get("desired", self.curves[OBJECTIVE])

    @property
    def objective(self) -> np.float32:
        """The AUC of the objective's curve: its mean over t = 1 .. T."""
        return np.float32(self.curves[OBJECTIVE][1:].mean(dtype=np.float64))

    def start(self, index: int) -> list[np.ndarray]:
        """The leaves of the state in which a segment starts."""
        return [array[index] for array in self.starts]

    def put_start(self, index: int, state: Any) -> None:
        """Notes the state in which a segment starts."""
        for array, leaf in zip(self.starts, jax.tree.leaves(fetch(state)), strict=True):
            array[index] = leaf
