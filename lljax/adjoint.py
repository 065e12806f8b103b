"""The training run of one policy, swept forward, and its adjoint, swept backward.

A state s_t = (theta_t, o_t) of parameters and optimiser state maps to the next one by

    g_t = grad_theta sum_n gamma_{t,n} l_n(theta_t),    s_{t+1} = Phi(s_t, g_t),

where Phi is the optax update and sees no data. The backward sweep carries the cotangent
(lambda, mu) of s and does, for t = T-1 .. 0 (paper, App. C, extended from gradient descent to any
differentiable Phi):

    1. (a, mu_t, u) = (lambda_{t+1}, mu_{t+1}) pulled back through Phi at (theta_t, o_t, g_t)
    2. (H_t u, [grad l_n(theta_t) . u]_n) by one forward-over-reverse pass in the direction u
    3. dJ/dgamma_{t,n} = grad l_n(theta_t) . u,    lambda_t = a + H_t u + c_t grad L(theta_t)

with c_t the cotangent of L(theta_t). No per-example gradient is materialised.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lljax.train_step import MicroBatches, apply_optimizer, mean_loss, weighted_gradient
from lljax.types import LossFn, Params, TrainState


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """Everything of a run but its state and its policy."""

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    train: MicroBatches
    desired: MicroBatches

    def init(self, params: Params) -> TrainState:
        return TrainState(params, self.optimizer.init(params))

    def step(self, state: TrainState, row: jax.Array) -> tuple[TrainState, Params]:
        """(s_t, gamma_t) -> (s_{t+1}, g_t)."""
        gradient, _ = weighted_gradient(self.loss_fn, state.params, self.train, row)
        return apply_optimizer(self.optimizer, state, gradient), gradient

    def step_and_loss(self, state: TrainState, row: jax.Array) -> tuple[TrainState, jax.Array]:
        """(s_t, gamma_t) -> (s_{t+1}, L(theta_{t+1}))."""
        after, _ = self.step(state, row)
        return after, self.desired_loss(after.params)

    def step_and_record(self, state: TrainState, row: jax.Array) -> tuple[TrainState, "Trajectory"]:
        """(s_t, gamma_t) -> (s_{t+1}, what the backward sweep needs of step t)."""
        after, gradient = self.step(state, row)
        return after, Trajectory(state, gradient)

    def desired_loss(self, params: Params) -> jax.Array:
        """L(theta), the mean over the K desired examples (Eq. 2)."""
        return mean_loss(self.loss_fn, params, self.desired)

    def desired_gradient(self, params: Params, factor: jax.Array) -> Params:
        """factor * grad L(theta)."""
        count = self.desired.num_examples
        weights = jnp.full(count, 1 / count, factor.dtype)
        gradient, _ = weighted_gradient(self.loss_fn, params, self.desired, weights)
        return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, gradient)


class Trajectory(NamedTuple):
    """The steps of a stretch of the run, stacked along their first axis."""

    states: TrainState  # s_t
    gradients: Params  # g_t; dropped by the compiler where Phi is linear in it


class Cotangent(NamedTuple):
    """The cotangent of a state."""

    params: Params  # lambda, like theta
    opt_state: list[jax.Array]  # mu, one for each floating leaf of o


def evaluate(run: TrainingRun, params: Params, policy: jax.Array) -> tuple[jax.Array, Params]:
    """(L(theta_0) .. L(theta_T) [T+1], theta_T); keeps nothing for a backward sweep."""

    end, losses = jax.lax.scan(run.step_and_loss, run.init(params), policy)
    return jnp.concatenate([run.desired_loss(params)[None], losses]), end.params


def forward_sweep(
    run: TrainingRun, params: Params, policy: jax.Array, segment_length: int
) -> tuple[jax.Array, Params, Trajectory | TrainState]:
    """Runs T steps and keeps what the backward sweep starts from.

    Returns:
      (L(theta_0) .. L(theta_T) [T+1], theta_T, kept): for a segment length of 1 the trajectory of
      all steps, else the states in which the segments start, with a leading axis [k].
    """

    def step(state, row):
        after, record = run.step_and_record(state, row)
        return after, (run.desired_loss(after.params), record)

    def segment(start, rows):
        end, losses = jax.lax.scan(_skip_dead(run.step_and_loss), start, rows)
        return end, (losses, start)

    start = run.init(params)
    kept: Trajectory | TrainState
    if segment_length == 1:
        end, (losses, kept) = jax.lax.scan(step, start, policy)
    else:
        end, (losses, kept) = jax.lax.scan(segment, start, _cut(policy, segment_length))
        losses = _join(losses, policy.shape[0])
    return jnp.concatenate([run.desired_loss(params)[None], losses]), end.params, kept


def backward_sweep(
    run: TrainingRun,
    kept: Trajectory | TrainState,
    policy: jax.Array,
    params: tuple[Params, Params],
    loss_cotangents: jax.Array,
    params_cotangent: Params,
    segment_length: int,
) -> tuple[jax.Array, Params]:
    """The cotangents of the policy [T, N] and of theta_0, from those of the run's outputs.

    Args:
      run: the run.
      kept: what `forward_sweep` kept.
      policy: gamma [T, N].
      params: (theta_0, theta_T).
      loss_cotangents: c [T+1].
      params_cotangent: the cotangent of theta_T, beside the part that goes through L(theta_T).
      segment_length: as in the forward sweep.
    """

    def step(cotangent: Cotangent, inputs):
        trajectory, row, factor = inputs
        through_update, direction = _pull_back_update(run.optimizer, trajectory, cotangent)
        theta = trajectory.states.params

        def gradient_and_losses(theta):
            return weighted_gradient(run.loss_fn, theta, run.train, row)

        _, (curvature, slopes) = jax.jvp(gradient_and_losses, (theta,), (direction,))
        adjoint = _add(through_update.params, curvature, run.desired_gradient(theta, factor))
        return Cotangent(adjoint, through_update.opt_state), slopes.astype(policy.dtype)

    def recompute_segment(cotangent: Cotangent, inputs):
        start, ((rows, factors), live) = inputs

        _, trajectory = jax.lax.scan(_skip_dead(run.step_and_record), start, (rows, live))
        steps = ((trajectory, rows, factors), live)
        return jax.lax.scan(_skip_dead(step), cotangent, steps, reverse=True)

    first, last = params
    end = _add(params_cotangent, run.desired_gradient(last, loss_cotangents[-1]))
    opt_leaves, pull_back_init = jax.vjp(lambda p: _floating(run.optimizer.init(p)), first)
    cotangent = Cotangent(end, [jnp.zeros_like(leaf) for leaf in opt_leaves])
    inputs = (policy, loss_cotangents[:-1])
    if segment_length == 1:
        cotangent, slopes = jax.lax.scan(step, cotangent, (kept, *inputs), reverse=True)
    else:
        segments = (kept, _cut(inputs, segment_length))
        cotangent, slopes = jax.lax.scan(recompute_segment, cotangent, segments, reverse=True)
        slopes = _join(slopes, policy.shape[0])
    return slopes, _add(cotangent.params, *pull_back_init(cotangent.opt_state))


def _pull_back_update(
    optimizer: optax.GradientTransformation, trajectory: Trajectory, cotangent: Cotangent
) -> tuple[Cotangent, Params]:
    """Pulls (lambda_{t+1}, mu_{t+1}) back through Phi, to (theta_t, o_t) and to g_t."""
    state, gradient = trajectory

    def update(params, floating, gradient):
        opt_state = _with_floating(state.opt_state, floating)
        after = apply_optimizer(optimizer, TrainState(params, opt_state), gradient)
        return Cotangent(after.params, _floating(after.opt_state))

    _, pull_back = jax.vjp(update, state.params, _floating(state.opt_state), gradient)
    params, opt_state, direction = pull_back(cotangent)
    return Cotangent(params, opt_state), direction


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def _floating(opt_state: Any) -> list[jax.Array]:
    """The leaves of an optimiser state that have a derivative: no counts, flags or random keys."""
    return [leaf for leaf in jax.tree.leaves(opt_state) if _is_floating(leaf)]


def _with_floating(opt_state: Any, floating: list[jax.Array]) -> Any:
    """The optimiser state with its floating leaves replaced."""
    replacements = iter(floating)
    return jax.tree.map(lambda leaf: next(replacements) if _is_floating(leaf) else leaf, opt_state)


def _add(*trees: Params) -> Params:
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)


def _cut(steps: Any, length: int) -> tuple[Any, jax.Array]:
    """[T, ...] -> ([k, m, ...], live [k, m]): k segments, the last one filled with dead steps."""
    num_steps = jax.tree.leaves(steps)[0].shape[0]
    filling = -num_steps % length

    def cut(leaf):
        padded = jnp.pad(leaf, [(0, filling)] + [(0, 0)] * (leaf.ndim - 1))
        return padded.reshape(-1, length, *leaf.shape[1:])

    return jax.tree.map(cut, steps), cut(jnp.ones(num_steps, bool))


def _join(segments: jax.Array, num_steps: int) -> jax.Array:
    """[k, m, ...] -> [T, ...]."""
    return segments.reshape(-1, *segments.shape[2:])[:num_steps]


def _skip_dead(body):
    """A scan body over (inputs, live) that leaves the carry alone where the step is dead."""

    def skipping(carry, inputs_and_live):
        inputs, live = inputs_and_live
        _, output = jax.eval_shape(body, carry, inputs)

        def dead(carry, _):
            return carry, jax.tree.map(jnp.zeros_like, output)

        return jax.lax.cond(live, body, dead, carry, inputs)

    return skipping
