"""Which states of the unroll are kept for the backward sweep.

A strategy is an argument, not a mode: each one gives the same gradient to rounding, at
another price in memory and time. The unit is a state s_t = (theta_t, o_t), parameters and
optimiser state; activations are never kept.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class StoreStates:
    """Keep all T states: the fastest way, where they fit.

    Memory: T states and, for optimisers whose update is not linear in the gradient, T gradients.
    """

    def segment_length(self, num_steps: int) -> int:
        """Steps between two kept states."""
        del num_steps
        return 1


@dataclasses.dataclass(frozen=True)
class RecomputeStates:
    """Keep k states, evenly spaced, and recompute the others a segment at a time.

    Memory: k + ceil(T / k) states, least at the default k = ceil(sqrt(T)).
    Time: one forward sweep more, 14 instead of 11 forward passes of an example a step.

    Attributes:
      num_kept: k, the number of kept states, 1 <= k; ceil(sqrt(T)) when None. A k above T
        keeps every state.
    """

    num_kept: int | None = None

    def __post_init__(self) -> None:
        if self.num_kept is not None and self.num_kept < 1:
            raise ValueError(
                f"`num_kept` must be at least 1, the number of states that are kept; got "
                f"{self.num_kept}. Leave it out for ceil(sqrt(T))."
            )

    def segment_length(self, num_steps: int) -> int:
        """Steps between two kept states."""
        num_kept = self.num_kept or math.isqrt(num_steps - 1) + 1
        return math.ceil(num_steps / min(num_kept, num_steps))


MemoryStrategy = StoreStates | RecomputeStates
