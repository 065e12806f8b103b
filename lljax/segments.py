"""The loss AUC and its gradient a segment of steps at a time, for runs that take minutes or days.

`build_loss_auc` is one pure function, and so one uninterruptible program. Here the same sweeps come
in pieces: the caller owns the loop, and between two pieces it can show progress, save what it has
and go on another day. The state between pieces is an ordinary pytree of arrays.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import optax

from lljax import adjoint, checks, mixing, optimizer_check
from lljax.adjoint import TrainingRun
from lljax.memory import MemoryStrategy, StoreStates
from lljax.microbatch import split_microbatches
from lljax.train_step import mean_loss
from lljax.types import Batch, LossFn, Params, TrainState, ZeroWeight
from lljax.update import Cotangent

OBJECTIVE = "objective"

Data = tuple[Batch, Batch]
"""(train, desired): N and K examples."""

Watched = Mapping[str, Batch]
"""Further sets of desired examples whose mean loss is measured, by name."""


class ForwardSegment(NamedTuple):
    """What the forward sweep over m steps leaves."""

    state: TrainState  # after the last of the steps
    losses: dict[str, jax.Array]  # [m] each, after every step: the objective's and the watched
    kept: Any  # for `backward`; may be thrown away and made again from the segment's first state


class Start(Protocol):
    def __call__(
        self, params: Params, data: Data, watched: Watched
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """theta_0 -> (s_0, the losses [] before the first step)."""
        ...


class Forward(Protocol):
    def __call__(
        self, state: TrainState, rows: jax.Array, data: Data, watched: Watched
    ) -> ForwardSegment:
        """(s_t, gamma [m, N]) -> what m steps leave."""
        ...


class StartBackward(Protocol):
    def __call__(self, state: TrainState, loss_cotangent: jax.Array, data: Data) -> Cotangent:
        """(s_T, dJ/dL(theta_T) []) -> the cotangent of s_T."""
        ...


class Backward(Protocol):
    def __call__(
        self,
        cotangent: Cotangent,
        kept: Any,
        rows: jax.Array,
        loss_cotangents: jax.Array,
        data: Data,
    ) -> tuple[Cotangent, jax.Array]:
        """(cotangent of s_{t+m}, kept, gamma [m, N], dJ/dL [m]) -> (of s_t, dJ/dgamma [m, N])."""
        ...


class Segments(NamedTuple):
    """A training run and its adjoint in pieces; see `build_segments`."""

    start: Start
    forward: Forward
    start_backward: StartBackward
    backward: Backward


def build_segments(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    desired_loss_fn: LossFn | None = None,
    memory: MemoryStrategy = StoreStates(),
    microbatch_size: int | None = None,
    zero_weight: ZeroWeight = "compute",
    check_optimizer: bool = True,
) -> Segments:
    """The pieces of one meta-gradient, d AUC / d gamma, as four pure functions.

        state, losses = segments.start(params, data, watched)
        for rows in policy, segment by segment:                  # rows: gamma [m, N]
            state, losses, kept = segments.forward(state, rows, data, watched)
        cotangent = segments.start_backward(state, loss_cotangent, data)
        for rows, loss_cotangents in reversed(...):
            cotangent, policy_grad = segments.backward(
                cotangent, kept, rows, loss_cotangents, data)

    `data` is (train, desired). A loss cotangent is the derivative of the objective J in a mean
    desired loss: dJ/dL(theta_T) for `start_backward`, and for `backward` the [m] dJ/dL before each
    step. For the AUC it is 1/T, and 0 at t = 0. `losses` holds the mean desired loss under
    "objective" and that of every batch in `watched` under its name, measured in the same pass.

    Compile the functions with `jax.jit`. What `forward` kept of a segment is either held until
    `backward` needs it, or made again by `forward` from the same state: then a long run needs the
    memory of one segment and of the first states of all.

    Args:
      loss_fn, optimizer, desired_loss_fn, microbatch_size, zero_weight, check_optimizer: as in
        `build_loss_auc`.
      memory: the strategy within a segment.

    Returns:
      Segments. Cost in forward passes of an example, a step: 3 for `forward`, 8 for `backward`, and
      3 more where `kept` is made again. The functions raise ValueError at trace time when a shape
      or dtype does not fit.

    Reference: arXiv:2402.17759, App. C.
    """
    training_run = adjoint.training_run_builder(
        loss_fn, optimizer, desired_loss_fn, microbatch_size, zero_weight, memory
    )

    def observer(run: TrainingRun, watched: Watched):
        batches = {name: split_microbatches(b, microbatch_size) for name, b in watched.items()}

        def observe(params: Params) -> dict[str, jax.Array]:
            losses = {
                name: mean_loss(run.desired_loss_fn, params, batch)
                for name, batch in batches.items()
            }
            return {OBJECTIVE: run.desired_loss(params), **losses}

        return observe

    def start(params, data, watched):
        if OBJECTIVE in watched:
            raise ValueError(f"`watched` must not use the name {OBJECTIVE!r}, the desired losses'.")
        desired_sets = {"desired": data[1], **watched}
        mixing.check_losses(
            loss_fn, desired_loss_fn, params, data[0], desired_sets, microbatch_size
        )
        optimizer_check.check_update(optimizer, params)
        if check_optimizer:
            optimizer_check.check_optimizer(optimizer, params)
        run = training_run(*data)
        return run.init(params), observer(run, watched)(params)

    def forward(state, rows, data, watched):
        checks.check_policy_shape(rows, data[0])
        run = training_run(*data)
        end, losses, kept = adjoint.forward_sweep(run, state, rows, memory, observer(run, watched))
        return ForwardSegment(end, losses, kept)

    def start_backward(state, loss_cotangent, data):
        return training_run(*data).last_cotangent(state, loss_cotangent)

    def backward(cotangent, kept, rows, loss_cotangents, data):
        run = training_run(*data)
        return adjoint.backward_sweep(run, cotangent, kept, rows, loss_cotangents, memory)

    return Segments(start, forward, start_backward, backward)
