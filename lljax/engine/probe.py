"""What one inner step of a meta-gradient costs: counted by the compiler, and measured."""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax.checks import num_examples
from lljax.engine.memory_plan import MemoryPlan
from lljax.engine.meta_gradient import MetaGradient
from lljax.engine.pieces import watched
from lljax.engine.placement import ONE_DEVICE, Placement
from lljax.microbatch import split_microbatches
from lljax.tasks.config import InnerConfig
from lljax.tasks.problem import PolicyProblem
from lljax.train_step import weighted_gradient

PROBE_STEPS = 2  # of a segment
PROBE_SEGMENTS = 4
PROBE_SECONDS = 10  # about, where a few micro-batches take less
FEW_MICROBATCHES = 4


def step_flops(problem: PolicyProblem, inner: InnerConfig, plan: MemoryPlan) -> float:
    """Of one inner step, counted by the compiler on a micro-batch: it does not see how often a
    loop runs."""

    def pieces(loss_fn, batch):
        """For a micro-batch: its loss, its gradient, and what they are divided by."""
        count = min(inner.microbatch_size or problem.num_train, num_examples(batch, "batch"))
        piece = jax.tree.map(lambda leaf: leaf[:count], batch)
        weights = jnp.ones(count)

        def gradient(params):
            return weighted_gradient(loss_fn, params, split_microbatches(piece, None), weights)

        return lambda params: loss_fn(params, piece), gradient, count

    def flops(function, count, *arguments) -> float:
        analysis: Any = jax.jit(function).lower(*arguments).compile().cost_analysis() or {}
        return analysis.get("flops", np.nan) / count  # not every backend counts

    params = problem.params
    _, gradient, count = pieces(problem.loss_fn, problem.train)
    grad = flops(gradient, count, params)
    both = flops(lambda p, u: jax.jvp(gradient, (p,), (u,)), count, params, params)
    loss, gradient, count = pieces(problem.desired_loss_fn, problem.desired)
    desired_loss, desired_grad = (flops(function, count, params) for function in (loss, gradient))
    objective = num_examples(problem.objective, "objective")
    followed = sum(num_examples(batch, name) for name, batch in watched(problem).items())
    observed = 1 if plan.resident else 2  # sweeps in which losses are measured
    return (
        problem.num_train * (num_sweeps(plan) * grad + both)
        + objective * (observed * desired_loss + desired_grad)
        + followed * observed * desired_loss
    )


def num_sweeps(plan: MemoryPlan) -> int:
    """How often a step is done in a meta-gradient."""
    again = 0 if plan.resident else 1
    return again + len(plan.within_segment.split(plan.segment_length))


def measure_step(
    problem: PolicyProblem,
    inner: InnerConfig,
    plan: MemoryPlan,
    placement: Placement = ONE_DEVICE,
) -> tuple[float, float]:
    """Seconds of an inner step, forward and backward.

    A few steps of a few micro-batches are timed, more where that takes only seconds. Micro-batches
    run one after the other, so the time of all follows from that of one and of several.
    """
    size = min(inner.microbatch_size or problem.num_train, problem.num_train)
    # The last one may be filled up, and then costs as much as a full one.
    total = math.ceil(problem.num_train / size)

    def measure(count: int, segments: int) -> np.ndarray:
        train = jax.tree.map(lambda leaf: leaf[: count * size], problem.train)
        few = placement.problem(dataclasses.replace(problem, train=train))
        return _measure(few, inner, plan, segments, placement)

    if total <= FEW_MICROBATCHES:
        forward, backward = measure(total, PROBE_SEGMENTS)
    else:
        one = measure(1, PROBE_SEGMENTS)
        seconds = one.sum() * PROBE_STEPS
        count = min(total, max(FEW_MICROBATCHES, int(PROBE_SECONDS / PROBE_SEGMENTS / seconds)))
        segments = np.clip(PROBE_SECONDS / (count * seconds), 2, PROBE_SEGMENTS)
        several = measure(count, int(segments))
        # On a noisy machine several may seem no slower than one.
        slope = np.where(several > one, (several - one) / (count - 1), several / count)
        forward, backward = several + slope * (total - count)
    return float(forward), float(backward + (num_sweeps(plan) - 1) * forward)


def _measure(
    problem: PolicyProblem,
    inner: InnerConfig,
    plan: MemoryPlan,
    num_segments: int,
    placement: Placement,
) -> np.ndarray:
    """Seconds of a step, (forward, backward): medians over all segments but the first."""
    most = plan.budget_bytes // (PROBE_STEPS * plan.record_bytes)  # that the device can hold
    num_segments = max(2, min(num_segments, most))
    starts = range(0, num_segments * PROBE_STEPS, PROBE_STEPS)
    short = dataclasses.replace(
        plan,
        mode="store",
        policy_arrays=0,
        segments=tuple(slice(start, start + PROBE_STEPS) for start in starts),
        within_segment=lljax.StoreStates(),
    )
    meta_gradient = MetaGradient(problem, inner, short, placement=placement)
    policy = placement.columns(lljax.uniform_policy(short.num_steps, problem.num_train))
    sweep = meta_gradient.new_sweep()

    def time_segments(run) -> float:
        # A sweep compiles in its first segment, which also holds what it does but once.
        moments: list[float] = []
        run(policy, sweep, lambda _: moments.append(time.monotonic()))
        return float(np.median(np.diff(moments))) / PROBE_STEPS

    return np.array(
        [time_segments(run) for run in (meta_gradient.run_forward, meta_gradient.run_backward)]
    )
