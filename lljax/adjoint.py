"""The training run of one policy, swept forward, and its adjoint, swept backward.

A state s_t = (theta_t, o_t) of parameters and optimiser state maps to the next one by

    g_t = grad_theta sum_b w_{t,b} l(theta_t, x_{t,b}),    s_{t+1} = Phi(s_t, g_t),

where Phi is the optax update and sees no data. The examples x_{t,b} of step t are all N, with the
weights gamma_t, or a mini-batch. The backward sweep carries the cotangent (lambda, mu) of s and
does, for t = T-1 .. 0 (paper, App. C, extended from gradient descent to any differentiable Phi):

    1. (a, mu_t, u) = (lambda_{t+1}, mu_{t+1}) pulled back through Phi at (theta_t, o_t, g_t)
    2. (H_t u, [grad l_b(theta_t) . u]_b) by one pass in the direction u (`passes`)
    3. dJ/dw_{t,b} = grad l_b(theta_t) . u,    lambda_t = a + H_t u + c_t grad L(theta_t)

with c_t the cotangent of L(theta_t). No gradient of a single example is ever formed. Derivatives
in examples and constants, where they are asked for, come out of the same passes and are summed over
the steps. Here is the mathematics of one step; `sweep` has the order of the steps and the tree of
kept states.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lljax import sweep
from lljax.array_types import varies_beyond
from lljax.evaluation import Place, places, where_measured
from lljax.hyperparams import init_state
from lljax.memory import MemoryStrategy, keeps_gradients
from lljax.microbatch import (
    Examples,
    MicroBatches,
    ReorderedBatches,
    split_by_weight,
    split_microbatches,
)
from lljax.passes import (
    Rules,
    SharedLossFn,
    Wanted,
    bind,
    loss_gradient,
    pull_back_gradient,
    pull_back_slopes,
    select,
)
from lljax.shards import Shards
from lljax.step_inputs import is_valid
from lljax.train_step import apply_optimizer, mean_loss, train_step
from lljax.types import Batch, Params, StepInputs, TrainState, ZeroWeight
from lljax.update import (
    Cotangent,
    Record,
    make_record,
    pull_back_init,
    pull_back_update,
    zeros_like,
)


class Sums(NamedTuple):
    """Derivatives summed over the steps, of the leaves that are wanted."""

    train: list[jax.Array]
    desired: list[jax.Array]
    shared: list[jax.Array]


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """Everything of a run but its state and the inputs of its steps."""

    loss_fn: SharedLossFn
    desired_loss_fn: SharedLossFn
    optimizer: optax.GradientTransformation
    train: Batch
    desired: Batch
    all_train: MicroBatches  # the same, cut
    all_desired: MicroBatches
    shared: Any  # the third argument of the losses
    microbatch_size: int | None
    zero_weight: ZeroWeight
    rules: Rules
    eval_every: int
    # Of `train`, `desired` and `shared`, in this order.
    wanted: tuple[tuple[bool, ...], ...] = ((), (), ())

    def init(self, params: Params) -> TrainState:
        return TrainState(params, init_state(self.optimizer, params))

    def step(self, state: TrainState, inputs: StepInputs) -> tuple[TrainState, Params]:
        """(s_t, what step t is given) -> (s_{t+1}, g_t)."""
        weights, examples, _ = self._batch(inputs)
        loss_fn = bind(self.loss_fn, self.shared)
        return train_step(loss_fn, self.optimizer, state, examples, weights, inputs.hyperparams)

    def step_and_record(self, state: TrainState, inputs: StepInputs) -> tuple[TrainState, Record]:
        """(s_t, what step t is given) -> (s_{t+1}, the record of step t)."""
        after, gradient = self.step(state, inputs)
        return after, make_record(self.optimizer, state, gradient)

    def update_and_record(
        self, state: TrainState, gradient: Params, inputs: StepInputs
    ) -> tuple[TrainState, Record]:
        """As `step_and_record` where g_t is known: nothing of the data is needed."""
        after = apply_optimizer(self.optimizer, state, gradient, inputs.hyperparams)
        return after, make_record(self.optimizer, state, gradient)

    def step_back(
        self,
        cotangent: Cotangent,
        sums: Sums,
        record: Record,
        inputs: StepInputs,
        place: Place,
        loss_cotangent: jax.Array,
    ) -> tuple[Cotangent, Sums, StepInputs]:
        """(lambda, mu)_{t+1} -> ((lambda, mu)_t, sums, the cotangent of what step t was given).

        `place` and `loss_cotangent` are those of L(theta_t): c_t.
        """
        through_update, direction, hyperparams = pull_back_update(
            self.optimizer, record, cotangent, inputs.hyperparams
        )
        theta = record.state.params
        weights, examples, others = self._batch(inputs)
        of_train, _, of_shared = self.wanted
        terms = pull_back_gradient(
            self.rules.train,
            self.loss_fn,
            theta,
            examples,
            self.shared,
            weights,
            direction,
            Wanted(of_train, of_shared),
        )
        slopes = terms.slopes
        if others is not None and self.zero_weight == "slope_only":
            slopes = slopes + pull_back_slopes(
                self.rules.train, self.loss_fn, theta, others, self.shared, direction
            )
        desired, sums = self._add_loss_gradient(sums, theta, place, loss_cotangent)
        sums = Sums(
            [_add_at(*pair, inputs.index) for pair in zip(sums.train, terms.batch, strict=True)],
            sums.desired,
            _add(sums.shared, terms.shared),
        )
        adjoint = _add(through_update.params, terms.params, desired)
        of_inputs = StepInputs(slopes.astype(inputs.weights.dtype), hyperparams=hyperparams)
        return Cotangent(adjoint, through_update.opt_state), sums, of_inputs

    def desired_loss(self, params: Params, place: Place) -> jax.Array:
        """L(theta), the mean over the desired examples (Eq. 2); 0 where it is not measured."""

        def measure(params):
            examples, is_known = self._desired_examples(place)
            loss = mean_loss(bind(self.desired_loss_fn, self.shared), params, examples)
            return loss if is_known is None else jnp.where(is_known, loss, jnp.nan)

        return where_measured(place, measure, params)

    def last_cotangent(
        self, end: TrainState, place: Place, loss_cotangent: jax.Array
    ) -> tuple[Cotangent, Sums]:
        """The cotangent of s_T where only L(theta_T) counts; `loss_cotangent` is c_T."""
        sets = (self.train, self.desired, self.shared)
        zeros = (
            [jnp.zeros_like(leaf) for leaf in select(*pair)]
            for pair in zip(sets, self.wanted, strict=True)
        )
        gradient, sums = self._add_loss_gradient(Sums(*zeros), end.params, place, loss_cotangent)
        return zeros_like(end)._replace(params=gradient), sums

    def first_cotangent(self, params: Params, cotangent: Cotangent) -> Params:
        """The cotangent of theta_0, from which o_0 is made too, from that of s_0."""
        return pull_back_init(self.optimizer, params, cotangent)

    def _batch(self, inputs: StepInputs) -> tuple[jax.Array, Examples, ReorderedBatches | None]:
        """(the weights, the examples that a step passes over, the others if they are set apart)."""
        weights, examples = inputs.weights, self.all_train
        if inputs.index is not None:
            size = self.all_train.num_examples
            weights = jnp.where(is_valid(inputs.index, size), weights, jnp.nan)
            examples = self._pick(self.train, inputs.index, self.all_train.shards)
        if self.zero_weight == "compute":
            return weights, examples, None
        return weights, *split_by_weight(examples, weights)

    def _pick(self, examples: Batch, index: jax.Array, shards: Shards) -> MicroBatches:
        return split_microbatches(shards.take(examples, index), self.microbatch_size, shards)

    def _desired_examples(self, place: Place) -> tuple[MicroBatches, jax.Array | None]:
        """(the desired examples of a place, whether there are examples of all its numbers)."""
        if place.desired_index is None:
            return self.all_desired, None
        batch = self._pick(self.desired, place.desired_index, self.all_desired.shards)
        return batch, jnp.all(is_valid(place.desired_index, self.all_desired.num_examples))

    def _add_loss_gradient(
        self, sums: Sums, params: Params, place: Place, loss_cotangent: jax.Array
    ) -> tuple[Params, Sums]:
        """(c_t grad L(theta_t), the sums with c_t times the derivatives of L(theta_t) added)."""
        _, *wanted = self.wanted
        # A gradient that is a sum over devices is no product with what each of them has.
        is_inside = self.rules.desired_has_rules or varies_beyond(loss_cotangent, params)

        def gradients(params):
            examples, _ = self._desired_examples(place)
            count = examples.num_examples
            weights = jnp.full(count, 1 / count, loss_cotangent.dtype)
            if is_inside:
                weights = loss_cotangent * weights
            return loss_gradient(
                self.desired_loss_fn, params, examples, self.shared, weights, Wanted(*wanted)
            )

        def scaled(tree):
            if is_inside:
                return tree
            return jax.tree.map(lambda leaf: loss_cotangent.astype(leaf.dtype) * leaf, tree)

        of_params, of_desired, of_shared = where_measured(place, gradients, params)
        pairs = zip(sums.desired, scaled(of_desired), strict=True)
        return scaled(of_params), Sums(
            sums.train,
            [_add_at(*pair, place.desired_index) for pair in pairs],
            _add(sums.shared, scaled(of_shared)),
        )


def evaluate(run: TrainingRun, params: Params, inputs: StepInputs) -> tuple[jax.Array, Params]:
    """(L(theta_0) .. L(theta_T) [T+1], theta_T); keeps nothing for a backward sweep."""

    def step(state, step):
        inputs, place = step
        after, _ = run.step(state, inputs)
        return after, run.desired_loss(after.params, place)

    first, _, after, _ = places(inputs, run.eval_every)
    steps = dataclasses.replace(inputs, desired_index=None), after
    end, losses = jax.lax.scan(step, run.init(params), steps)
    return jnp.concatenate([run.desired_loss(params, first)[None], losses]), end.params


def forward_sweep(
    run: TrainingRun,
    start: TrainState,
    inputs: StepInputs,
    memory: MemoryStrategy,
    observe: Callable[[Params, Place], Any],
) -> tuple[TrainState, Any, Any]:
    """Runs the T steps from a state.

    Returns:
      (s_T; what `observe` sees at theta_1 .. theta_T, with a leading axis [T]; what the backward
      sweep starts from: the gradients of all steps, if they are kept, and what `sweep.forward`
      keeps).
    """

    def advance(state, step):
        inputs, place = step
        after, gradient = run.step(state, inputs)
        kept = memory.keep(gradient) if keeps_gradients(memory) else None
        return after, (observe(after.params, place), kept)

    def advance_and_record(state, step):
        inputs, place = step
        after, record = run.step_and_record(state, inputs)
        return after, ((observe(after.params, place), None), memory.keep(record))

    steps = dataclasses.replace(inputs, desired_index=None), places(inputs, run.eval_every)[2]
    counts = memory.split(inputs.weights.shape[0])
    end, (seen, gradients), kept = sweep.forward(advance, advance_and_record, start, steps, counts)
    return end, seen, (gradients, kept)


def backward_sweep(
    run: TrainingRun,
    cotangent: Cotangent,
    sums: Sums,
    kept: Any,
    inputs: StepInputs,
    loss_cotangents: jax.Array,
    memory: MemoryStrategy,
) -> tuple[Cotangent, Sums, StepInputs]:
    """The cotangent of s_0, the sums over the steps, and the cotangent of the steps' inputs.

    Args:
      run: the run.
      cotangent: that of s_T, with the part that goes through L(theta_T).
      sums: so far.
      kept: what the forward sweep kept.
      inputs: of the T steps.
      loss_cotangents: c_0 .. c_{T-1} [T], of the losses before each step.
      memory: as in the forward sweep.
    """

    def step_back(carry, record_and_step):
        record, (inputs, place, loss_cotangent, _) = record_and_step
        cotangent, sums, of_inputs = run.step_back(
            *carry, memory.fetch(record), inputs, place, loss_cotangent
        )
        return (cotangent, sums), of_inputs

    def advance(state, step):
        return run.step(state, step[0])[0], None

    def advance_and_record(state, step):
        inputs, *_, gradient = step
        if gradient is None:
            after, record = run.step_and_record(state, inputs)
        else:
            after, record = run.update_and_record(state, memory.fetch(gradient), inputs)
        return after, memory.keep(record)

    gradients, kept = kept
    before = places(inputs, run.eval_every)[1]
    steps = dataclasses.replace(inputs, desired_index=None), before, loss_cotangents, gradients
    counts = memory.split(inputs.weights.shape[0])
    (cotangent, sums), of_inputs = sweep.backward(
        step_back, advance, advance_and_record, (cotangent, sums), kept, steps, counts
    )
    return cotangent, sums, of_inputs


def _add(*trees: Params) -> Params:
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)


def _add_at(total: jax.Array, some: jax.Array, index: jax.Array | None) -> jax.Array:
    """`some` [B, ...] added at the places [B] of `total` [N, ...]; everywhere without an index."""
    return total + some if index is None else total.at[index].add(some)
