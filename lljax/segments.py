"""The loss AUC and its gradient a segment of steps at a time, for runs that take minutes or days.

`build_loss_auc` is one pure function, and so one uninterruptible program. Here the same sweeps come
in pieces: the caller owns the loop, and between two pieces it can show progress, save what it has
and go on another day. The state between pieces is an ordinary pytree of arrays.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from lljax import adjoint, checks
from lljax.adjoint import Cotangent
from lljax.memory import MemoryStrategy, StoreStates
from lljax.train_step import mean_loss, split_microbatches
from lljax.types import Batch, LossFn, Params, TrainState, Weightless

OBJECTIVE = "objective"


class ForwardSegment(NamedTuple):
    """What the forward sweep over m steps leaves."""

    state: TrainState  # after the last of the steps
    losses: dict[str, jax.Array]  # [m] each, after every step: the objective's and the watched
    kept: Any  # for `backward`; may be thrown away and made again from the segment's first state


class Segments(NamedTuple):
    """A training run and its adjoint in pieces; see `build_segments`."""

    start: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    forward: Callable[..., ForwardSegment]
    turn: Callable[..., Cotangent]
    backward: Callable[..., tuple[Cotangent, jax.Array]]


def build_segments(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    memory: MemoryStrategy = StoreStates(),
    microbatch_size: int | None = None,
    weightless: Weightless = "full",
    check_optimizer: bool = True,
) -> Segments:
    """The pieces of one meta-gradient, d AUC / d gamma, as four pure functions.

        state, losses = segments.start(params, data, watched)
        for rows in policy, segment by segment:                  # rows: gamma [m, N]
            state, losses, kept = segments.forward(state, rows, data, watched)
        cotangent = segments.turn(state, factor, data)           # factor: dJ/dL(theta_T)
        for rows, factors in reversed(...):                      # factors [m]: dJ/dL before each
            cotangent, policy_grad = segments.backward(cotangent, kept, rows, factors, data)

    `data` is (train, desired). For the AUC a factor is 1/T, and 0 at t = 0. `losses` holds the mean
    loss of the desired examples under "objective" and that of every batch in `watched` under its
    name, measured in the same pass. Compile the functions with `jax.jit`. What `forward` kept of a
    segment is either held until `backward` needs it, or made again by `forward` from the same
    state: then a long run needs the memory of one segment and of the first states of all.

    Args:
      loss_fn: per-example losses, (params, batch of B) -> [B], nats.
      optimizer: any optax optimiser.
      memory: the strategy within a segment.
      microbatch_size: examples handled at once inside a step; all of them when None.
      weightless: as in `build_loss_auc`.
      check_optimizer: as in `build_loss_auc`.

    Returns:
      Segments. Cost in forward passes of an example, a step: 3 for `forward`, 8 for `backward`, and
      3 more where `kept` is made again. The functions raise ValueError at trace time when a shape
      or dtype does not fit.

    Reference: arXiv:2402.17759, App. C.
    """

    checks.check_microbatch_size(microbatch_size)
    checks.check_weightless(weightless, microbatch_size)

    def describe(data: tuple[Batch, Batch]) -> adjoint.TrainingRun:
        return adjoint.TrainingRun.over(loss_fn, optimizer, data, microbatch_size, weightless)

    def observer(run: adjoint.TrainingRun, watched: Mapping[str, Batch]):
        batches = {name: split_microbatches(b, microbatch_size) for name, b in watched.items()}

        def observe(params: Params) -> dict[str, jax.Array]:
            losses = {name: mean_loss(loss_fn, params, batch) for name, batch in batches.items()}
            return {OBJECTIVE: run.desired_loss(params), **losses}

        return observe

    def start(params, data, watched):
        if OBJECTIVE in watched:
            raise ValueError(f"`watched` must not use the name {OBJECTIVE!r}, the desired losses'.")
        for name, batch in (("train", data[0]), ("desired", data[1]), *watched.items()):
            checks.check_loss_fn(loss_fn, params, batch, name)
        if check_optimizer:
            checks.check_optimizer(optimizer, params)
        run = describe(data)
        return run.init(params), observer(run, watched)(params)

    def forward(state, rows, data, watched):
        checks.check_policy_shape(rows, data[0])
        run = describe(data)
        end, losses, kept = adjoint.forward_sweep(run, state, rows, memory, observer(run, watched))
        return ForwardSegment(end, losses, kept)

    def turn(state, factor, data):
        return describe(data).last_cotangent(state, factor)

    def backward(cotangent, kept, rows, factors, data):
        return adjoint.backward_sweep(describe(data), cotangent, kept, rows, factors, memory)

    return Segments(start, forward, turn, backward)
