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
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lljax.memory import MemoryStrategy
from lljax.train_step import (
    MicroBatches,
    ReorderedBatches,
    apply_optimizer,
    example_losses,
    mean_loss,
    split_by_weight,
    split_microbatches,
    weighted_gradient,
)
from lljax.types import Batch, LossFn, Params, TrainState, Weightless


class Record(NamedTuple):
    """What the backward sweep needs of a step."""

    state: TrainState  # s_t
    gradient: Params | None  # g_t; None where Phi is linear in it


class Cotangent(NamedTuple):
    """The cotangent of a state."""

    params: Params  # lambda, like theta
    opt_state: list[jax.Array]  # mu, one for each floating leaf of o


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """Everything of a run but its state and its policy."""

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    train: MicroBatches
    desired: MicroBatches
    weightless: Weightless

    @classmethod
    def over(
        cls,
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        data: tuple[Batch, Batch],
        microbatch_size: int | None,
        weightless: Weightless,
    ) -> "TrainingRun":
        """The run over `data`, (train, desired), cut into micro-batches."""
        train, desired = (split_microbatches(batch, microbatch_size) for batch in data)
        return cls(loss_fn, optimizer, train, desired, weightless)

    def init(self, params: Params) -> TrainState:
        return TrainState(params, self.optimizer.init(params))

    def step(self, state: TrainState, row: jax.Array) -> tuple[TrainState, Params]:
        """(s_t, gamma_t) -> (s_{t+1}, g_t)."""
        examples, _ = self._split(row)
        gradient, _ = weighted_gradient(self.loss_fn, state.params, examples, row)
        return apply_optimizer(self.optimizer, state, gradient), gradient

    def step_and_record(self, state: TrainState, row: jax.Array) -> tuple[TrainState, Record]:
        """(s_t, gamma_t) -> (s_{t+1}, the record of step t)."""
        after, gradient = self.step(state, row)
        kept = gradient if needs_gradient(self.optimizer, state.params) else None
        return after, Record(state, kept)

    def step_back(
        self, cotangent: Cotangent, record: Record, row: jax.Array, factor: jax.Array
    ) -> tuple[Cotangent, jax.Array]:
        """(lambda, mu)_{t+1} -> ((lambda, mu)_t, dJ/dgamma_t [N]); `factor` is c_t."""
        through_update, direction = _pull_back_update(self.optimizer, record, cotangent)
        theta = record.state.params
        examples, others = self._split(row)

        def gradient_and_losses(theta):
            return weighted_gradient(self.loss_fn, theta, examples, row)

        _, (curvature, slopes) = jax.jvp(gradient_and_losses, (theta,), (direction,))
        if others is not None:
            slopes = self._slopes_of_others(theta, direction, slopes, others)
        adjoint = _add(through_update.params, curvature, self.desired_gradient(theta, factor))
        return Cotangent(adjoint, through_update.opt_state), slopes.astype(row.dtype)

    def _split(
        self, row: jax.Array
    ) -> tuple[MicroBatches | ReorderedBatches, ReorderedBatches | None]:
        """(the examples that a step passes over, the others, if they are kept apart)."""
        return (self.train, None) if self.weightless == "full" else split_by_weight(self.train, row)

    def _slopes_of_others(
        self, theta: Params, direction: Params, slopes: jax.Array, others: ReorderedBatches
    ) -> jax.Array:
        """The slopes [N], known for those with weight, 0 for the others, with these filled in."""
        if self.weightless == "slopes":
            _, more = jax.jvp(
                lambda theta: example_losses(self.loss_fn, theta, others), (theta,), (direction,)
            )
            return slopes + more
        largest = jnp.max(jnp.where(others.member, -jnp.inf, slopes))
        return jnp.where(others.member, jnp.where(others.member.all(), 0, largest), slopes)

    def desired_loss(self, params: Params) -> jax.Array:
        """L(theta), the mean over the K desired examples (Eq. 2)."""
        return mean_loss(self.loss_fn, params, self.desired)

    def desired_gradient(self, params: Params, factor: jax.Array) -> Params:
        """factor * grad L(theta)."""
        count = self.desired.num_examples
        weights = jnp.full(count, 1 / count, factor.dtype)
        gradient, _ = weighted_gradient(self.loss_fn, params, self.desired, weights)
        return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, gradient)

    def last_cotangent(self, end: TrainState, factor: jax.Array) -> Cotangent:
        """The cotangent of s_T where only L(theta_T) counts, with `factor` = c_T."""
        zeros = [jnp.zeros_like(leaf) for leaf in _floating(end.opt_state)]
        return Cotangent(self.desired_gradient(end.params, factor), zeros)

    def first_cotangent(self, params: Params, cotangent: Cotangent) -> Params:
        """The cotangent of theta_0, from which o_0 is made too, from that of s_0."""
        _, pull_back = jax.vjp(lambda p: _floating(self.optimizer.init(p)), params)
        return _add(cotangent.params, *pull_back(cotangent.opt_state))


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
      sweep starts from: the records of all steps [T], or the first states of the segments [b_1]).
    """
    counts = memory.split(policy.shape[0])

    def step(state, row):
        after, _ = run.step(state, row)
        return after, observe(after.params)

    def step_and_keep(state, row):
        after, record = run.step_and_record(state, row)
        return after, (observe(after.params), memory.keep(record))

    steps = _nest(policy, counts)
    if len(counts) == 1:
        end, (seen, kept) = _scan(step_and_keep, start, steps)
    else:
        end, (seen, kept) = _advance_and_keep(step, start, steps, len(counts))
    return end, _flatten(seen, counts, policy.shape[0]), kept


def backward_sweep(
    run: TrainingRun,
    cotangent: Cotangent,
    kept: Any,
    policy: jax.Array,
    factors: jax.Array,
    memory: MemoryStrategy,
) -> tuple[Cotangent, jax.Array]:
    """The cotangents of s_0 and of the policy [T, N].

    Args:
      run: the run.
      cotangent: that of s_T, with the part that goes through L(theta_T).
      kept: what the forward sweep kept.
      policy: gamma [T, N].
      factors: c_0 .. c_{T-1} [T], the cotangents of the losses before each step.
      memory: as in the forward sweep.
    """
    counts = memory.split(policy.shape[0])

    def step_back(cotangent, inputs):
        record, row, factor = inputs
        return run.step_back(cotangent, memory.fetch(record), row, factor)

    def step_alone(state, inputs):
        return run.step(state, inputs[0])[0], None

    def step_and_record(state, inputs):
        return run.step_and_record(state, inputs[0])

    def sweep(cotangent, kept, steps, depth):
        if depth == 1:
            with_records = steps._replace(inputs=(kept, *steps.inputs))
            return _scan(step_back, cotangent, with_records, reverse=True)

        def segment(cotangent, start_and_steps):
            start, steps = start_and_steps
            if depth == 2:
                _, kept = _scan(step_and_record, start, steps)
            else:
                _, (_, kept) = _advance_and_keep(step_alone, start, steps, depth - 1)
            return sweep(cotangent, kept, steps, depth - 1)

        return jax.lax.scan(segment, cotangent, (kept, steps), reverse=True)

    steps = _nest((policy, factors), counts)
    cotangent, slopes = sweep(cotangent, kept, steps, len(counts))
    return cotangent, _flatten(slopes, counts, policy.shape[0])


class _Steps(NamedTuple):
    """The inputs of steps, cut into a tree: leaves [b_1, .., b_d, ...]."""

    inputs: Any
    live: jax.Array | None  # [b_1, .., b_d]; None where the tree has no idle places


def _nest(inputs: Any, counts: tuple[int, ...]) -> _Steps:
    num_steps, places = jax.tree.leaves(inputs)[0].shape[0], math.prod(counts)

    def nest(leaf):
        if places > num_steps:
            leaf = jnp.pad(leaf, [(0, places - num_steps)] + [(0, 0)] * (leaf.ndim - 1))
        return leaf.reshape(*counts, *leaf.shape[1:])

    live = nest(jnp.ones(num_steps, bool)) if places > num_steps else None
    return _Steps(jax.tree.map(nest, inputs), live)


def _flatten(tree: Any, counts: tuple[int, ...], num_steps: int) -> Any:
    """The reverse of `_nest`, for what its steps gave."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(counts) :])[:num_steps], tree)


def _scan(body, carry, steps: _Steps, reverse: bool = False):
    """`lax.scan` over a segment of single steps; in idle places nothing happens."""

    def guarded(carry, step):
        if step.live is None:
            return body(carry, step.inputs)
        _, output = jax.eval_shape(body, carry, step.inputs)

        def idle(carry, _):
            return carry, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), output)

        return jax.lax.cond(step.live, body, idle, carry, step.inputs)

    return jax.lax.scan(guarded, carry, steps, reverse=reverse)


def _advance(body, state, steps: _Steps, depth: int):
    """All steps of a tree of the given depth."""
    if depth == 1:
        return _scan(body, state, steps)
    return jax.lax.scan(lambda s, segment: _advance(body, s, segment, depth - 1), state, steps)


def _advance_and_keep(body, state, steps: _Steps, depth: int):
    """As `_advance`; beside the outputs the states in which the top segments start, [b_1]."""

    def segment(start, steps):
        end, outputs = _advance(body, start, steps, depth - 1)
        return end, (outputs, start)

    return jax.lax.scan(segment, state, steps)


def _pull_back_update(
    optimizer: optax.GradientTransformation, record: Record, cotangent: Cotangent
) -> tuple[Cotangent, Params]:
    """Pulls (lambda_{t+1}, mu_{t+1}) back through Phi, to (theta_t, o_t) and to g_t."""
    state, gradient = record
    if gradient is None:
        gradient = jax.tree.map(jnp.zeros_like, state.params)

    def update(params, floating, gradient):
        opt_state = _with_floating(state.opt_state, floating)
        after = apply_optimizer(optimizer, TrainState(params, opt_state), gradient)
        return Cotangent(after.params, _floating(after.opt_state))

    _, pull_back = jax.vjp(update, state.params, _floating(state.opt_state), gradient)
    params, opt_state, direction = pull_back(cotangent)
    return Cotangent(params, opt_state), direction


def needs_gradient(optimizer: optax.GradientTransformation, params: Params) -> bool:
    """Whether Phi's pull-back depends on g_t; not where Phi is linear in it, as in plain SGD."""
    state = jax.eval_shape(lambda p: TrainState(p, optimizer.init(p)), params)
    cotangent = jax.eval_shape(lambda s: Cotangent(s.params, _floating(s.opt_state)), state)

    def pull_back(gradient, state, cotangent):
        return _pull_back_update(optimizer, Record(state, gradient), cotangent)

    jaxpr = jax.make_jaxpr(pull_back)(state.params, state, cotangent).jaxpr
    used = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if used & {id(variable) for variable in equation.outvars}:
            used |= {id(variable) for variable in equation.invars}
    count = len(jax.tree.leaves(params))
    return any(id(variable) in used for variable in jaxpr.invars[:count])


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
