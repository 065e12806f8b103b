"""The loss AUC and its gradient a segment of steps at a time, for runs that take minutes or days.

`build_loss_auc` is one pure function, and so one uninterruptible program. Here the same sweeps come
in pieces: the caller owns the loop, and between two pieces it can show progress, save what it has
and go on another day. The state between pieces is an ordinary pytree of arrays.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from lljax import adjoint, checks, optimizer_check
from lljax.adjoint import TrainingRun
from lljax.evaluation import Place, where_measured
from lljax.memory import MemoryStrategy, StoreStates
from lljax.passes import select
from lljax.run_options import Held, RunOptions, rest_of
from lljax.step_inputs import as_step_inputs
from lljax.train_step import mean_loss
from lljax.types import (
    Batch,
    LossFn,
    Params,
    SecondOrder,
    StepInputs,
    TrainState,
    ZeroWeight,
)
from lljax.update import Cotangent

OBJECTIVE = "objective"

Data = tuple[Batch, Batch] | tuple[Batch, Batch, Any]
"""(train, desired): N and K examples; or (train, desired, constants)."""

Watched = Mapping[str, Batch]
"""Further sets of desired examples whose mean loss is measured, by name."""


class ForwardSegment(NamedTuple):
    """What the forward sweep over m steps leaves."""

    state: TrainState  # after the last of the steps
    losses: dict[str, jax.Array]  # [m] each, after every step: the objective's and the watched
    kept: Any  # for `backward`; may be thrown away and made again from the segment's first state


class Start(Protocol):
    def __call__(
        self,
        params: Params,
        data: Data,
        watched: Watched,
        desired_index: jax.Array | None = None,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """theta_0 -> (s_0, the losses [] before the first step)."""
        ...


class Forward(Protocol):
    def __call__(
        self, state: TrainState, rows: jax.Array | StepInputs, data: Data, watched: Watched
    ) -> ForwardSegment:
        """(s_t, gamma [m, N] or what m steps are given) -> what m steps leave."""
        ...


class StartBackward(Protocol):
    def __call__(
        self,
        state: TrainState,
        loss_cotangent: jax.Array,
        data: Data,
        desired_index: jax.Array | None = None,
    ) -> Cotangent:
        """(s_T, dJ/dL(theta_T) []) -> the cotangent of s_T."""
        ...


class Backward(Protocol):
    def __call__(
        self,
        cotangent: Cotangent,
        kept: Any,
        rows: jax.Array | StepInputs,
        loss_cotangents: jax.Array,
        data: Data,
        to_train: bool = False,
    ) -> tuple[Any, ...]:
        """(cotangent of s_{t+m}, kept, rows, dJ/dL [m]) -> (of s_t, of the rows); and with
        `to_train` of the training examples."""
        ...


class Segments(NamedTuple):
    """A training run and its adjoint in pieces; see `build_segments`."""

    start: Start  # the state before the first step
    forward: Forward  # m steps
    start_backward: StartBackward  # the cotangent after the last step
    backward: Backward  # that before m steps, and the gradient in their rows


def build_segments(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    desired_loss_fn: LossFn | None = None,
    memory: MemoryStrategy = StoreStates(),
    microbatch_size: int | None = None,
    zero_weight: ZeroWeight = "compute",
    second_order: SecondOrder = "auto",
    eval_every: int = 1,
    data_axis: str | None = None,
    watched_loss_fn: LossFn | None = None,
    check_loss: bool = True,
    check_optimizer: bool = True,
) -> Segments:
    """The pieces of one meta-gradient, d AUC / d gamma, as pure functions.

    >>> import jax.numpy as jnp, optax, lljax
    >>> data = {"x": jnp.array([1.0, -3.0])}, {"x": jnp.ones(2)}
    >>> policy = lljax.uniform_policy(num_steps=4, num_examples=2)
    >>> segments = lljax.build_segments(lambda w, b: (b["x"] - w) ** 2, optax.sgd(0.1))
    >>> state, _ = segments.start(jnp.zeros(()), data, {})
    >>> kept, slopes, of_auc = [], [], jnp.array([0, 1, 1, 1]) / 4
    >>> for rows in (policy[:2], policy[2:]):
    ...   state, losses, of_segment = segments.forward(state, rows, data, {})
    ...   kept.append(of_segment)
    >>> cotangent = segments.start_backward(state, jnp.array(1 / 4), data)
    >>> for steps in (slice(2, 4), slice(0, 2)):
    ...   cotangent, found = segments.backward(
    ...     cotangent, kept.pop(), policy[steps], of_auc[steps], data)
    ...   slopes = [*found, *slopes]
    >>> jnp.stack(slopes).shape
    (4, 2)

    `data` is (train, desired). A loss cotangent is the derivative of the objective J in a mean
    desired loss: dJ/dL(theta_T) for `start_backward`, and for `backward` the [m] dJ/dL before each
    step. For the AUC it is 1/T, and 0 at t = 0. `losses` holds the mean desired loss under
    "objective" and that of every batch in `watched` under its name, measured in the same pass.

    With `to_train=True` `backward` also gives the derivative in the training examples, like `train`
    with None for leaves that are not floating: the sum over the steps of the segment.

    Compile the functions with `jax.jit`. What `forward` kept of a segment is either held until
    `backward` needs it, or made again by `forward` from the same state: then a long run needs the
    memory of one segment and of the first states of all.

    In the place of rows of a policy there can be `StepInputs` of m steps, with a `desired_index`
    of m + 1 batches: those before each step and the one after the last, which is the first of the
    next segment. `start` takes the first of the run and `start_backward` the last of it.

    Args:
      loss_fn, optimizer, desired_loss_fn, microbatch_size: as in `build_loss_auc`.
      zero_weight, second_order, data_axis, check_loss, check_optimizer: the same.
      memory: the strategy within a segment.
      eval_every: as in `build_loss_auc`, and must divide m. `losses` are then [m / eval_every], and
        so are the loss cotangents of `backward`, of the losses before each such stretch of steps.
      watched_loss_fn: the loss of the watched batches; the desired loss when None.

    Returns:
      Segments. Cost in forward passes of an example, a step: 3 for `forward`, 8 for `backward`, and
      3 more where `kept` is made again. The functions raise ValueError at trace time when a shape
      or dtype does not fit.

    Reference: arXiv:2402.17759, App. C.
    """
    options = RunOptions(
        loss_fn,
        optimizer,
        desired_loss_fn,
        memory,
        microbatch_size,
        zero_weight,
        second_order,
        eval_every,
        check_loss,
        data_axis,
    )

    def training_run(
        data: Data,
        params: Params,
        inputs: StepInputs | None = None,
        of_train: tuple[bool, ...] = (),
    ) -> TrainingRun:
        train, desired, constants = _parts(data)
        indices = (inputs.index, inputs.desired_index) if inputs is not None else ()
        rules = options.rules(params, train, desired, constants, *indices)
        functions, shared = options.as_given(rules), (constants, Held())
        return options.run(functions, train, desired, shared, (of_train, (), ()))

    def observer(run: TrainingRun, watched: Watched):
        batches = {name: options.split(batch) for name, batch in watched.items()}
        loss = watched_loss_fn or desired_loss_fn or loss_fn
        rest = rest_of(run.shared)

        def measure(params: Params) -> dict[str, jax.Array]:
            return {
                name: mean_loss(lambda *both: loss(*both, *rest), params, batch)
                for name, batch in batches.items()
            }

        def observe(params: Params, place: Place) -> dict[str, jax.Array]:
            losses = where_measured(place, measure, params)
            return {OBJECTIVE: run.desired_loss(params, place), **losses}

        return observe

    def start(params, data, watched, desired_index=None):
        if OBJECTIVE in watched:
            raise ValueError(f"`watched` must not use the name {OBJECTIVE!r}, the desired losses'.")
        train, desired, constants = _parts(data)
        sets = {"desired": desired}
        if watched_loss_fn is None:
            sets |= watched
        checks.check_params(params)
        optimizer_check.check_update(optimizer, params)
        options.check_losses(params, train, sets, constants)
        for name, batch in watched.items() if watched_loss_fn else ():
            rest = rest_of((constants, None))
            checks.check_loss_fn(watched_loss_fn, params, batch, name, "watched_loss_fn", rest)
        if check_optimizer:
            optimizer_check.check_optimizer(optimizer, params)
        run = training_run(data, params)
        return run.init(params), observer(run, watched)(params, Place(desired_index, None))

    def forward(state, rows, data, watched):
        train, desired, _ = _parts(data)
        inputs = options.check_inputs(rows, state.params, train, desired)
        run = training_run(data, state.params, inputs)
        observe = observer(run, watched)
        end, losses, kept = adjoint.forward_sweep(run, state, inputs, memory, observe)
        losses = jax.tree.map(lambda losses: losses[eval_every - 1 :: eval_every], losses)
        return ForwardSegment(end, losses, kept)

    def start_backward(state, loss_cotangent, data, desired_index=None):
        run = training_run(data, state.params)
        return run.last_cotangent(state, Place(desired_index, None), loss_cotangent)[0]

    def backward(cotangent, kept, rows, loss_cotangents, data, to_train=False):
        inputs, (leaves, structure) = as_step_inputs(rows), jax.tree.flatten(data[0])
        wanted = tuple(to_train and jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves)
        run = training_run(data, cotangent.params, inputs, wanted)
        if eval_every > 1:
            wide = jnp.zeros(inputs.weights.shape[0], loss_cotangents.dtype)
            loss_cotangents = wide.at[::eval_every].set(loss_cotangents)
        zeros = adjoint.Sums([jnp.zeros_like(leaf) for leaf in select(data[0], wanted)], [], [])
        cotangent, sums, of_inputs = adjoint.backward_sweep(
            run, cotangent, zeros, kept, inputs, loss_cotangents, memory
        )
        of_rows = of_inputs if isinstance(rows, StepInputs) else of_inputs.weights
        if not to_train:
            return cotangent, of_rows
        found = iter(sums.train)
        of_train = [next(found) if is_wanted else None for is_wanted in wanted]
        return cotangent, of_rows, jax.tree.unflatten(structure, of_train)

    return Segments(start, forward, start_backward, backward)


def _parts(data: Data) -> tuple[Batch, Batch, Any]:
    """(train, desired, constants or None)."""
    train, desired, *rest = data
    return train, desired, rest[0] if rest else None
