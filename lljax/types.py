"""Names that the whole package shares, and the axis letters, declared once.

Axis letters, used in every docstring:
  T  inner steps of the training run (the unroll)
  N  training examples
  K  desired examples
  B  examples of a batch handed to the loss function
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax

Params = Any
"""Model parameters: any pytree of floating-point arrays."""

Batch = Any
"""Examples: any pytree of arrays that share their leading axis [B, ...]."""

LossFn = Callable[[Params, Batch], jax.Array]
"""Per-example losses in nats: (params, batch of B examples) -> [B]."""

Weightless = Literal["full", "slopes", "skip"]
"""What a step does with the examples whose weight is exactly 0; see `build_loss_auc`."""


class TrainState(NamedTuple):
    """What one inner step maps to the next: s_t = (theta_t, o_t)."""

    params: Params  # theta_t
    opt_state: Any  # o_t, whatever the optax optimiser keeps


class LossAucInfo(NamedTuple):
    """What a training run leaves beside its AUC; also differentiable."""

    desired_losses: jax.Array  # [T+1] L(theta_0) .. L(theta_T), nats
    params: Params  # theta_T
