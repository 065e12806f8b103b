"""The training run of one policy, swept forward, and its adjoint, swept backward.

A state s_t = (theta_t, o_t) of parameters and optimiser state maps to the next one by

    g_t = grad_theta sum_n gamma_{t,n} l_n(theta_t),    s_{t+1} = Phi(s_t, g_t),

where Phi is the optax update and sees no data. The backward sweep carries the cotangent
(lambda, mu) of s and does, for t = T-1 .. 0 (paper, App. C, extended from gradient descent to any
differentiable Phi):

    1. (a, mu_t, u) = (lambda_{t+1}, mu_{t+1}) pulled back through Phi at (theta_t, o_t, g_t)
    2. (H_t u, [grad l_n(theta_t) . u]_n) by one forward-over-reverse pass in the direction u
    3. dJ/dgamma_{t,n} = grad l_n(theta_t) . u,    lambda_t = a + H_t u + c_t grad L(theta_t)

with c_t the cotangent of L(theta_t). No gradient of a single example is ever formed. Here is the
mathematics of one step; `sweep` has the order of the steps and the tree of kept states.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lljax import checks, optimizer_check, sweep
from lljax.memory import MemoryStrategy
from lljax.microbatch import (
    Examples,
    MicroBatches,
    ReorderedBatches,
    split_by_weight,
    split_microbatches,
)
from lljax.train_step import example_slopes, mean_loss, train_step, weighted_gradient
from lljax.types import Batch, LossFn, Params, TrainState, ZeroWeight
from lljax.update import (
    Cotangent,
    Record,
    make_record,
    pull_back_init,
    pull_back_update,
    zeros_like,
)


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """Everything of a run but its state and its policy."""

    loss_fn: LossFn
    desired_loss_fn: LossFn
    optimizer: optax.GradientTransformation
    train: MicroBatches
    desired: MicroBatches
    zero_weight: ZeroWeight

    def init(self, params: Params) -> TrainState:
        return TrainState(params, self.optimizer.init(params))

    def step(self, state: TrainState, row: jax.Array) -> tuple[TrainState, Params]:
        """(s_t, gamma_t) -> (s_{t+1}, g_t)."""
        examples, _ = self._split(row)
        return train_step(self.loss_fn, self.optimizer, state, examples, row)

    def step_and_record(self, state: TrainState, row: jax.Array) -> tuple[TrainState, Record]:
        """(s_t, gamma_t) -> (s_{t+1}, the record of step t)."""
        after, gradient = self.step(state, row)
        return after, make_record(self.optimizer, state, gradient)

    def step_back(
        self, cotangent: Cotangent, record: Record, row: jax.Array, loss_cotangent: jax.Array
    ) -> tuple[Cotangent, jax.Array]:
        """(lambda, mu)_{t+1} -> ((lambda, mu)_t, dJ/dgamma_t [N]); `loss_cotangent` is c_t."""
        through_update, direction = pull_back_update(self.optimizer, record, cotangent)
        theta = record.state.params
        examples, others = self._split(row)

        def gradient_and_losses(theta):
            return weighted_gradient(self.loss_fn, theta, examples, row)

        _, (curvature, slopes) = jax.jvp(gradient_and_losses, (theta,), (direction,))
        if others is not None:
            slopes = self._slopes_of_others(theta, direction, slopes, others)
        desired = self.desired_gradient(theta, loss_cotangent)
        adjoint = _add(through_update.params, curvature, desired)
        return Cotangent(adjoint, through_update.opt_state), slopes.astype(row.dtype)

    def _split(self, row: jax.Array) -> tuple[Examples, ReorderedBatches | None]:
        """(the examples that a step passes over, the others if they are set apart)."""
        if self.zero_weight == "compute":
            return self.train, None
        return split_by_weight(self.train, row)

    def _slopes_of_others(
        self, theta: Params, direction: Params, slopes: jax.Array, others: ReorderedBatches
    ) -> jax.Array:
        """The slopes [N], known for those with weight, 0 for the others, with these filled in."""
        if self.zero_weight == "slope_only":
            return slopes + example_slopes(self.loss_fn, theta, others, direction)
        largest = jnp.max(jnp.where(others.member, -jnp.inf, slopes))
        return jnp.where(others.member, jnp.where(others.member.all(), 0, largest), slopes)

    def desired_loss(self, params: Params) -> jax.Array:
        """L(theta), the mean over the K desired examples (Eq. 2)."""
        return mean_loss(self.desired_loss_fn, params, self.desired)

    def desired_gradient(self, params: Params, loss_cotangent: jax.Array) -> Params:
        """c_t grad L(theta)."""
        count = self.desired.num_examples
        weights = jnp.full(count, 1 / count, loss_cotangent.dtype)
        gradient, _ = weighted_gradient(self.desired_loss_fn, params, self.desired, weights)
        return jax.tree.map(lambda leaf: loss_cotangent.astype(leaf.dtype) * leaf, gradient)

    def last_cotangent(self, end: TrainState, loss_cotangent: jax.Array) -> Cotangent:
        """The cotangent of s_T where only L(theta_T) counts; `loss_cotangent` is c_T."""
        gradient = self.desired_gradient(end.params, loss_cotangent)
        return zeros_like(end)._replace(params=gradient)

    def first_cotangent(self, params: Params, cotangent: Cotangent) -> Params:
        """The cotangent of theta_0, from which o_0 is made too, from that of s_0."""
        return pull_back_init(self.optimizer, params, cotangent)


def training_run_builder(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    desired_loss_fn: LossFn | None,
    microbatch_size: int | None,
    zero_weight: ZeroWeight,
    memory: MemoryStrategy,
) -> Callable[[Batch, Batch], TrainingRun]:
    """What `build_loss_auc` and `build_segments` share: their options, checked once.

    Returns:
      (train, desired) -> the run over these data, cut into micro-batches.

    Raises:
      ValueError: an option is not valid.
    """
    checks.check_callable(loss_fn, "loss_fn")
    if desired_loss_fn is not None:
        checks.check_callable(desired_loss_fn, "desired_loss_fn")
    optimizer_check.check_is_optimizer(optimizer)
    checks.check_memory(memory)
    checks.check_microbatch_size(microbatch_size)
    checks.check_zero_weight(zero_weight, microbatch_size)

    def training_run(train: Batch, desired: Batch) -> TrainingRun:
        return TrainingRun(
            loss_fn,
            desired_loss_fn or loss_fn,
            optimizer,
            split_microbatches(train, microbatch_size),
            split_microbatches(desired, microbatch_size),
            zero_weight,
        )

    return training_run


def evaluate(run: TrainingRun, params: Params, policy: jax.Array) -> tuple[jax.Array, Params]:
    """(L(theta_0) .. L(theta_T) [T+1], theta_T); keeps nothing for a backward sweep."""

    def step(state, row):
        after, _ = run.step(state, row)
        return after, run.desired_loss(after.params)

    end, losses = jax.lax.scan(step, run.init(params), policy)
    return jnp.concatenate([run.desired_loss(params)[None], losses]), end.params


def forward_sweep(
    run: TrainingRun,
    start: TrainState,
    policy: jax.Array,
    memory: MemoryStrategy,
    observe: Callable[[Params], Any],
) -> tuple[TrainState, Any, Any]:
    """Runs the T steps of a policy from a state.

    Returns:
      (s_T; what `observe` sees at theta_1 .. theta_T, with a leading axis [T]; what the backward
      sweep starts from, as in `sweep.forward`).
    """

    def advance(state, row):
        after, _ = run.step(state, row)
        return after, observe(after.params)

    def advance_and_record(state, row):
        after, record = run.step_and_record(state, row)
        return after, (observe(after.params), memory.keep(record))

    counts = memory.split(policy.shape[0])
    return sweep.forward(advance, advance_and_record, start, policy, counts)


def backward_sweep(
    run: TrainingRun,
    cotangent: Cotangent,
    kept: Any,
    policy: jax.Array,
    loss_cotangents: jax.Array,
    memory: MemoryStrategy,
) -> tuple[Cotangent, jax.Array]:
    """The cotangents of s_0 and of the policy [T, N].

    Args:
      run: the run.
      cotangent: that of s_T, with the part that goes through L(theta_T).
      kept: what the forward sweep kept.
      policy: gamma [T, N].
      loss_cotangents: c_0 .. c_{T-1} [T], of the losses before each step.
      memory: as in the forward sweep.
    """

    def step_back(cotangent, record_and_inputs):
        record, (row, loss_cotangent) = record_and_inputs
        return run.step_back(cotangent, memory.fetch(record), row, loss_cotangent)

    def advance(state, inputs):
        return run.step(state, inputs[0])[0], None

    def advance_and_record(state, inputs):
        after, record = run.step_and_record(state, inputs[0])
        return after, memory.keep(record)

    inputs, counts = (policy, loss_cotangents), memory.split(policy.shape[0])
    return sweep.backward(step_back, advance, advance_and_record, cotangent, kept, inputs, counts)


def _add(*trees: Params) -> Params:
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)
