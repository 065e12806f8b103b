"""How far a meta-gradient is, in the host's memory."""

import dataclasses
from typing import Any

import jax
import numpy as np

from lljax.engine.host_arrays import fetch
from lljax.engine.starts import Starts
from lljax.segments import OBJECTIVE


@dataclasses.dataclass
class Sweep:
    """How far a meta-gradient is: arrays in the host's memory, of shapes that never change.

    Attributes:
      curves: [T+1] each, mean losses at theta_0 .. theta_T: the objective's and the watched sets'.
      starts: the leaves of the C+1 states in which the segments start, and s_T.
      cotangent: the leaves of the cotangent of the state that the backward sweep has reached.
      policy_grad: [T, N], in blocks of rows where the policy is; with an active set 0 where no
        slope was computed.
      forward: the segments that the forward sweep has done.
      backward: those that the backward sweep has done, from the last one on.
    """

    curves: dict[str, np.ndarray]
    starts: Starts
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

    def put_start(self, index: int, state: Any) -> None:
        """Notes the state in which a segment starts."""
        self.starts[index] = jax.tree.leaves(fetch(state))
