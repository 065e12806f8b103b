"""Names that the whole package shares, and the axis letters, declared once.

Axis letters, used in every docstring:
  T  inner steps of the training run (the unroll)
  N  training examples
  K  desired examples
  B  examples of a batch handed to the loss function
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

Params = Any
"""Model parameters: any pytree of floating-point arrays."""

Batch = Any
"""Examples: any pytree of arrays that share their leading axis [B, ...]."""

ZeroWeight = Literal["compute", "slope_only", "omit"]
"""What a step does with the examples whose weight is exactly 0; see `build_loss_auc`."""


SecondOrder = Literal["auto", "forward_over_reverse", "reverse_over_reverse"]
"""Which pass `build_loss_auc` takes."""

PassName = Literal["forward_over_reverse", "reverse_over_reverse"]
"""How a cotangent is pulled back through the gradient of a step; see `passes`."""


class LossFn(Protocol):
    """A user's loss, one number in nats for each example of a batch."""

    def __call__(self, params: Params, batch: Batch, /) -> jax.Array:
        """(theta, B examples) -> [B], floating."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInputs:
    """What the T inner steps are given, in the place of a policy [T, N]: mini-batches and more.

    Step t trains on the examples `index[t]` of `train` with `weights[t]`; an example may be there
    more than once. Cost and memory follow B; nothing of the size of `train` is made for a step.
    """

    weights: jax.Array
    """[T, B], floating: gamma, a weight for every place of every batch. [T, N] without `index`."""

    index: jax.Array | None = None
    """[T, B], int in 0 .. N-1: which examples are in the batches; None for all N in each step."""

    hyperparams: Mapping[str, jax.Array] | None = None
    """By name [T, ...], floating: hyperparameters of an `optax.inject_hyperparams`. Where an
    optimiser has several such parts, each hyperparameter needs a name of its own."""

    desired_index: jax.Array | None = None
    """[T+1, K'], int in 0 .. K-1: the examples of `desired` on which L(theta_t) is measured."""


class TrainState(NamedTuple):
    """What one inner step maps to the next: s_t = (theta_t, o_t)."""

    params: Params  # theta_t
    opt_state: Any  # o_t, whatever the optax optimiser keeps


class LossAucInfo(NamedTuple):
    """What a training run leaves beside its AUC; also differentiable."""

    desired_losses: jax.Array  # [T/s+1] L(theta_0), L(theta_s) .. L(theta_T), nats; s = eval_every
    params: Params  # theta_T
    known_slopes: jax.Array | None = None
    """[T, B] bool, under `zero_weight="omit"`: which entries of the weights' gradient are slopes.
    The others are unknown, and 0. None where all are known."""


class LossAuc(Protocol):
    """The objective that `build_loss_auc` makes; any pure function of this form will do."""

    def __call__(
        self,
        policy: jax.Array | StepInputs,
        params: Params,
        train: Batch,
        desired: Batch,
        constants: Any = None,
    ) -> tuple[jax.Array, LossAucInfo]:
        """(gamma [T, N], theta_0, N examples, K examples) -> (AUC [], what the run leaves)."""
        ...


class Objective(Protocol):
    """What an outer loop minimises: a `LossAuc`, or a family of weights with a `LossAuc` behind it.

    The info may have `known_slopes`, here bool arrays like the policy; see `LossAucInfo`.
    """

    def __call__(
        self, policy: Any, params: Params, train: Batch, desired: Batch, /
    ) -> tuple[jax.Array, Any]:
        """(gamma or psi, theta_0, N examples, K examples) -> (AUC [], info)."""
        ...


class MetaUpdate(Protocol):
    """The `update` of a meta-optimiser."""

    def __call__(
        self,
        policy_grad: Any,
        state: Any,
        policy: Any,
        scale: jax.typing.ArrayLike = 1.0,
        known: Any = None,
    ) -> tuple[Any, Any]:
        """(gradient, state, policy, factor [] on the rate, known) -> (policy, state).

        Gradient and policy are pytrees of one form. `known`, of the same form, holds bools: which
        entries of the gradient are slopes; None where all are. The others are unknown.
        """
        ...


class MetaOptimizer(NamedTuple):
    """A method that improves a policy, or whatever else psi weights are made of; `meta_optimizer`.

    A step-size control sets `scale`, by which the learning rate is multiplied.
    """

    init: Callable[[Any], Any]
    """policy -> state."""

    update: MetaUpdate
    """(gradient, state, policy) -> (policy, state)."""

    restart: Callable[[Any, Any], Any] = lambda state, policy: state
    """(state, policy) -> a state without memory: with momentum along a direction that has turned
    bad no step is small enough."""

    on_simplices: bool = False
    """Whether it needs rows that are distributions, along the last axis of every array."""


def at_least_32_bits(dtype: Any) -> Any:
    """The floating dtype itself, or float32 in place of a narrower one: what sums are taken in."""
    return dtype if jnp.dtype(dtype).itemsize >= 4 else jnp.float32
