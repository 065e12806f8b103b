"""Names that the whole package shares, and the axis letters, declared once.

Axis letters, used in every docstring:
  T  inner steps of the training run (the unroll)
  N  training examples
  K  desired examples
  B  examples of a batch handed to the loss function
"""

from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Params = Any
"""Model parameters: any pytree of floating-point arrays."""

Batch = Any
"""Examples: any pytree of arrays that share their leading axis [B, ...]."""

ZeroWeight = Literal["compute", "slope_only", "omit"]
"""What a step does with the examples whose weight is exactly 0; see `build_loss_auc`."""


class LossFn(Protocol):
    """A user's loss, one number in nats for each example of a batch."""

    def __call__(self, params: Params, batch: Batch, /) -> jax.Array:
        """(theta, B examples) -> [B], floating."""
        ...


class TrainState(NamedTuple):
    """What one inner step maps to the next: s_t = (theta_t, o_t)."""

    params: Params  # theta_t
    opt_state: Any  # o_t, whatever the optax optimiser keeps


class LossAucInfo(NamedTuple):
    """What a training run leaves beside its AUC; also differentiable."""

    desired_losses: jax.Array  # [T+1] L(theta_0) .. L(theta_T), nats
    params: Params  # theta_T


class LossAuc(Protocol):
    """The objective that `build_loss_auc` makes; any pure function of this form will do."""

    def __call__(
        self, policy: jax.Array, params: Params, train: Batch, desired: Batch
    ) -> tuple[jax.Array, LossAucInfo]:
        """(gamma [T, N], theta_0, N examples, K examples) -> (AUC [], what the run leaves)."""
        ...


def at_least_32_bits(dtype: Any) -> Any:
    """The floating dtype itself, or float32 in place of a narrower one: what sums are taken in."""
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32
