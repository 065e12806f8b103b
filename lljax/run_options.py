"""What `build_loss_auc` and `build_segments` are given, checked, and made a training run of."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from jax.extend.core import Jaxpr

from lljax import checks, optimizer_check
from lljax.adjoint import TrainingRun
from lljax.closures import open_closure
from lljax.hyperparams import init_state
from lljax.loss_check import check_losses
from lljax.memory import MemoryStrategy
from lljax.microbatch import MicroBatches, split_microbatches
from lljax.passes import Rules, SharedLossFn, choose_pass, has_backward_rules
from lljax.shards import find_shards
from lljax.step_inputs import check_step_inputs
from lljax.types import Batch, LossFn, Params, SecondOrder, StepInputs, ZeroWeight


class Held(NamedTuple):
    """The tracers that the functions of a run close over."""

    loss_fn: tuple[jax.Array, ...] = ()
    desired_loss_fn: tuple[jax.Array, ...] = ()
    optimizer: tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]] = ((), ())


Shared = tuple[Any, Held]
"""(constants or None, what the functions of the run close over)."""


@dataclasses.dataclass(frozen=True)
class RunFunctions:
    """The functions of a run for data of given shapes; they close over nothing that is traced."""

    loss_fn: SharedLossFn  # its third argument is Shared
    desired_loss_fn: SharedLossFn
    optimizer: Callable[[Held], optax.GradientTransformation]
    rules: Rules

    @property
    def has_backward_rules(self) -> bool:
        """Whether a loss may have a backward rule of its own."""
        return self.rules.desired_has_rules or self.rules.train == "reverse_over_reverse"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The options; the arguments of `build_loss_auc` have the meanings."""

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    desired_loss_fn: LossFn | None
    memory: MemoryStrategy
    microbatch_size: int | None
    zero_weight: ZeroWeight
    second_order: SecondOrder
    eval_every: int
    check_loss: bool = True
    data_axis: str | None = None

    def __post_init__(self) -> None:
        """ValueError: an option is not valid."""
        checks.check_callable(self.loss_fn, "loss_fn")
        if self.desired_loss_fn is not None:
            checks.check_callable(self.desired_loss_fn, "desired_loss_fn")
        optimizer_check.check_is_optimizer(self.optimizer)
        checks.check_memory(self.memory)
        checks.check_microbatch_size(self.microbatch_size)
        checks.check_zero_weight(self.zero_weight, self.microbatch_size)
        checks.check_choice("second_order", self.second_order, SecondOrder)
        checks.check_count("eval_every", self.eval_every)
        checks.check_data_axis(self.data_axis)

    def split(self, batch: Batch) -> MicroBatches:
        """Examples cut into the pieces that a step passes over."""
        return split_microbatches(batch, self.microbatch_size, find_shards(self.data_axis, batch))

    def check(
        self,
        policy: jax.Array | StepInputs,
        params: Params,
        train: Batch,
        desired: Batch,
        constants: Any,
    ) -> StepInputs:
        """The inputs of the steps; ValueError unless everything fits together."""
        checks.check_params(params)
        optimizer_check.check_update(self.optimizer, params)
        inputs = self.check_inputs(policy, params, train, desired)
        self.check_losses(
            params, train, {"desired": desired}, constants, inputs.index, inputs.desired_index
        )
        return inputs

    def check_losses(
        self,
        params: Params,
        train: Batch,
        desired_sets: Mapping[str, Batch],
        constants: Any,
        index: jax.Array | None = None,
        desired_index: jax.Array | None = None,
    ) -> None:
        """ValueError unless the losses fit the parameters and the data.

        Shapes are those of what a loss will be handed at once: a batch, or a micro-batch of it.
        """
        indices = {"train": index, "desired": desired_index}
        check_losses(
            self.loss_fn,
            self.desired_loss_fn,
            params,
            train,
            desired_sets,
            self.microbatch_size,
            rest_of((constants, None)),
            self.second_order,
            self.check_loss,
            lambda name, batch: self._piece(batch, indices.get(name)),
        )

    def check_inputs(
        self, policy: jax.Array | StepInputs, params: Params, train: Batch, desired: Batch
    ) -> StepInputs:
        """The inputs of the steps; ValueError unless they fit the data and the options."""
        inputs = check_step_inputs(policy, train, desired, self.optimizer, params)
        num_steps = inputs.weights.shape[0]
        if num_steps % self.eval_every:
            raise ValueError(
                f"`eval_every` must divide the number of steps, so that the last ones count; got "
                f"{self.eval_every} with T = {num_steps}."
            )
        return inputs

    def open(
        self,
        inputs: StepInputs,
        params: Params,
        train: Batch,
        desired: Batch,
        constants: Any,
    ) -> tuple[RunFunctions, Held]:
        """The functions of a run for data of these shapes, and what they close over."""
        rest = rest_of((constants, None))
        train_piece = self._piece(train, inputs.index)
        desired_piece = self._piece(desired, inputs.desired_index)
        loss_fn = open_closure(self.loss_fn, params, train_piece, *rest)
        desired_loss_fn = open_closure(
            self.desired_loss_fn or self.loss_fn, params, desired_piece, *rest
        )
        state = jax.eval_shape(lambda p: init_state(self.optimizer, p), params)
        with jax.numpy_dtype_promotion("standard"):
            init = open_closure(self.optimizer.init, params)
            update = open_closure(self.optimizer.update, params, state, params)

        def optimizer(held: Held) -> optax.GradientTransformation:
            if not any(held.optimizer):
                return self.optimizer
            of_init, of_update = held.optimizer
            return optax.GradientTransformation(
                lambda params: init.function(of_init, params),
                lambda *arguments: update.function(of_update, *arguments),
            )

        functions = RunFunctions(
            lambda p, b, shared: loss_fn.function(shared[1].loss_fn, p, b, *rest_of(shared)),
            lambda p, b, shared: desired_loss_fn.function(
                shared[1].desired_loss_fn, p, b, *rest_of(shared)
            ),
            optimizer,
            self._rules(loss_fn.jaxpr, desired_loss_fn.jaxpr),
        )
        return functions, Held(loss_fn.held, desired_loss_fn.held, (init.held, update.held))

    def as_given(self, rules: Rules) -> RunFunctions:
        """The functions of a run whose parts are called within one trace."""
        desired_loss_fn = self.desired_loss_fn or self.loss_fn
        return RunFunctions(
            lambda p, b, shared: self.loss_fn(p, b, *rest_of(shared)),
            lambda p, b, shared: desired_loss_fn(p, b, *rest_of(shared)),
            lambda _: self.optimizer,
            rules,
        )

    def run(
        self,
        functions: RunFunctions,
        train: Batch,
        desired: Batch,
        shared: Shared,
        wanted: tuple[tuple[bool, ...], ...] = ((), (), ()),
    ) -> TrainingRun:
        """The run over these data."""
        return TrainingRun(
            functions.loss_fn,
            functions.desired_loss_fn,
            functions.optimizer(shared[1]),
            train,
            desired,
            self.split(train),
            self.split(desired),
            shared,
            self.microbatch_size,
            self.zero_weight,
            functions.rules,
            self.eval_every,
            wanted,
        )

    def _piece(self, batch: Batch, index: jax.Array | None) -> Batch:
        """The form of the examples that a loss is handed at once."""

        def cut(batch, index):
            shards = find_shards(self.data_axis, batch)
            if index is not None:
                batch = shards.take(batch, index[0])
            pieces = split_microbatches(batch, self.microbatch_size, shards).batch
            return jax.tree.map(lambda leaf: shards.first(leaf)[0], pieces)

        return jax.eval_shape(cut, batch, index)

    def rules(
        self,
        params: Params,
        train: Batch,
        desired: Batch,
        constants: Any,
        index: jax.Array | None = None,
        desired_index: jax.Array | None = None,
    ) -> Rules:
        """How the losses are differentiated, for data of these shapes."""
        pieces = (
            (self.loss_fn, self._piece(train, index)),
            (self.desired_loss_fn or self.loss_fn, self._piece(desired, desired_index)),
        )
        rest = rest_of((constants, None))
        return self._rules(*(jax.make_jaxpr(f)(params, p, *rest).jaxpr for f, p in pieces))

    def _rules(self, loss: Jaxpr, desired_loss: Jaxpr) -> Rules:
        return Rules(
            choose_pass(self.second_order, has_backward_rules(loss)),
            has_backward_rules(desired_loss),
        )


def rest_of(shared: tuple[Any, Any]) -> tuple[Any, ...]:
    """The arguments of a loss behind (params, batch): its constants, if it has any."""
    return () if shared[0] is None else shared[:1]
