"""What a run will need, before it is run: `lljax plan CONFIG`.

Sizes are counted, working memory and FLOPs are the compiler's own figures for the very programs of
the run, and the time comes from a probe: a few inner steps forward and backward on a few
micro-batches, on more where that takes only seconds, scaled up to all of them. The cost of an
active set follows the policy: a run with one is planned by the programs of a run without.
"""

import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax.checks import num_examples
from lljax.experiment.config import ExperimentConfig, InnerConfig
from lljax.experiment.evaluate import law_steps, snapshot_steps
from lljax.experiment.memory_plan import MODES, MemoryPlan, num_bytes, plan_memory
from lljax.experiment.meta_gradient import MetaGradient, watched
from lljax.experiment.problem import Problem, build_problem, policy_optimizer
from lljax.experiment.results import SETS
from lljax.train_step import split_microbatches, weighted_gradient

PROBE_STEPS = 2  # of a segment
PROBE_SEGMENTS = 4
PROBE_SECONDS = 10  # about, where a few micro-batches take less
FEW_MICROBATCHES = 4


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The needs of a run. Bytes, seconds and floating-point operations.

    Attributes:
      memory: how the run is cut and what is kept.
      num_params: scalars in theta.
      data_bytes: of all examples.
      policy_bytes: of one array [T, N].
      sweep_bytes: working memory of a meta-gradient beside what is kept: the larger of the forward
        and the backward program's temporary and output arrays.
      update_bytes: device memory while a policy is updated: the policies and gradients involved.
      step_flops: of one inner step of a meta-gradient, recomputation included.
      forward_seconds: of one inner step.
      backward_seconds: of one inner step, recomputation included.
      compile_seconds: of the two programs.
      num_outer_steps: with the conventional policy's, step 0.
      num_analyses: full analyses of a policy.
    """

    memory: MemoryPlan
    num_params: int
    data_bytes: int
    policy_bytes: int
    sweep_bytes: int
    update_bytes: int
    step_flops: float
    forward_seconds: float
    backward_seconds: float
    compile_seconds: float
    num_outer_steps: int
    num_analyses: int

    @property
    def meta_gradient_seconds(self) -> float:
        return self.memory.num_steps * (self.forward_seconds + self.backward_seconds)

    @property
    def analysis_seconds(self) -> float:
        """A training run, and the contributions of all examples at the law's steps."""
        num_steps = self.memory.num_steps
        # A contribution takes 3 forward passes of an example where a step back takes 8.
        again = (_num_sweeps(self.memory) - 1) * self.forward_seconds
        law = 3 / 8 * (self.backward_seconds - again) * len(law_steps(num_steps))
        return num_steps * self.forward_seconds + law

    @property
    def run_seconds(self) -> float:
        """Of compilation, meta-gradients and analyses, if every outer step is taken."""
        return (
            self.compile_seconds
            + self.num_outer_steps * self.meta_gradient_seconds
            + self.num_analyses * self.analysis_seconds
        )

    def peak_bytes(self, mode: Any) -> int:
        """Device memory in the worst moment, under a mode of keeping states."""
        # The uniform and the best policy, its gradient and a momentum; in a sweep also the trial.
        policies = 5 * self.policy_bytes
        states = 3 * self.memory.state_bytes  # theta_0, a sweep's state and its cotangent
        sweeping = policies + states + self.memory.device_bytes(mode) + self.sweep_bytes
        return self.data_bytes + max(sweeping, self.policy_bytes + self.update_bytes)


def plan_run(config: ExperimentConfig) -> RunPlan:
    """Compiles the programs of a run and probes how fast they are.

    Raises:
      UserError: the config or its data are unusable, or no strategy fits into memory.
    """
    problem = build_problem(config)
    memory = plan_memory(problem, config.inner)
    started = time.monotonic()
    forward_program, backward_program = MetaGradient(problem, config.inner, memory).compile()
    compile_seconds = time.monotonic() - started
    # What the forward program keeps is one of its outputs, and counted by the memory plan.
    counts = memory.within_segment.split(memory.segment_length)
    kept = counts[0] * (memory.record_bytes if len(counts) == 1 else memory.state_bytes)
    # So are the deeper levels of recomputed states, which the backward program holds.
    deeper = sum(counts[1:]) * memory.record_bytes
    working = max(_memory(forward_program).made - kept, _memory(backward_program).made - deeper)
    policy = jax.ShapeDtypeStruct((config.inner.num_steps, problem.num_train), np.float32)
    forward, backward = _probe(problem, config.inner, memory)
    batches = {id(b): b for b in (getattr(problem, n) for n in ("train", "objective", *SETS))}
    return RunPlan(
        memory=memory,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(problem.params)),
        data_bytes=num_bytes(list(batches.values())),
        policy_bytes=num_bytes(policy),
        sweep_bytes=working,
        update_bytes=_update_bytes(config, policy),
        step_flops=_step_flops(problem, config.inner, memory),
        forward_seconds=forward,
        backward_seconds=backward,
        compile_seconds=compile_seconds,
        num_outer_steps=config.outer.num_steps + 1,
        num_analyses=len(snapshot_steps(config.outer.num_steps)) + 1,  # and the kept policy
    )


class _Memory(NamedTuple):
    """Bytes of a program: its arguments; its outputs and what it needs in between."""

    given: int
    made: int


def _memory(program: jax.stages.Compiled) -> _Memory:
    stats: Any = program.memory_analysis()
    made = stats.output_size_in_bytes + stats.temp_size_in_bytes
    return _Memory(stats.argument_size_in_bytes, made)


def _update_bytes(config: ExperimentConfig, policy: jax.ShapeDtypeStruct) -> int:
    """Device memory of `take`, the largest of the outer loop's own programs."""
    control = lljax.build_step_control(policy_optimizer(config.outer))
    auc = jax.ShapeDtypeStruct((), np.float32)
    state = jax.eval_shape(control.begin, policy, auc, policy)
    needed = _memory(jax.jit(control.take).lower(state, auc, policy).compile())
    return needed.given + needed.made


def _step_flops(problem: Problem, inner: InnerConfig, plan: MemoryPlan) -> float:
    """Of one inner step, counted by the compiler on a micro-batch (it counts no loop's turns)."""
    size = min(inner.microbatch_size or problem.num_train, problem.num_train)
    piece = jax.tree.map(lambda leaf: leaf[:size], problem.train)
    weights, params = jnp.ones(size), problem.params

    def gradient(params):
        examples = split_microbatches(piece, None)
        return weighted_gradient(problem.loss_fn, params, examples, weights)

    def flops(function, *arguments) -> float:
        analysis: Any = jax.jit(function).lower(*arguments).compile().cost_analysis() or {}
        return analysis.get("flops", np.nan) / size  # not every backend counts

    loss = flops(lambda p: problem.loss_fn(p, piece), params)
    grad = flops(gradient, params)
    both = flops(lambda p, u: jax.jvp(gradient, (p,), (u,)), params, params)
    objective = num_examples(problem.objective, "objective")
    followed = sum(num_examples(batch, name) for name, batch in watched(problem).items())
    observed = 1 if plan.resident else 2  # sweeps in which losses are measured
    return (
        problem.num_train * (_num_sweeps(plan) * grad + both)
        + objective * (observed * loss + grad)
        + followed * observed * loss
    )


def _num_sweeps(plan: MemoryPlan) -> int:
    """How often a step is done in a meta-gradient."""
    again = 0 if plan.resident else 1
    return again + len(plan.within_segment.split(plan.segment_length))


def _probe(problem: Problem, inner: InnerConfig, plan: MemoryPlan) -> tuple[float, float]:
    """Seconds of an inner step, forward and backward.

    The time is linear in the number of micro-batches, which run one after the other, so one of them
    and as many as PROBE_SECONDS allow tell that of all.
    """
    size = min(inner.microbatch_size or problem.num_train, problem.num_train)
    # The last one may be filled up, and then costs as much as a full one.
    total = math.ceil(problem.num_train / size)

    def measure(count: int, segments: int) -> np.ndarray:
        train = jax.tree.map(lambda leaf: leaf[: count * size], problem.train)
        return _measure(dataclasses.replace(problem, train=train), inner, plan, segments)

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
    return float(forward), float(backward + (_num_sweeps(plan) - 1) * forward)


def _measure(
    problem: Problem, inner: InnerConfig, plan: MemoryPlan, num_segments: int
) -> np.ndarray:
    """Seconds of a step, (forward, backward): medians over all segments but the first."""
    most = plan.budget_bytes // (PROBE_STEPS * plan.record_bytes)  # that the device can hold
    num_segments = max(2, min(num_segments, most))
    starts = range(0, num_segments * PROBE_STEPS, PROBE_STEPS)
    short = dataclasses.replace(
        plan,
        mode="store",
        segments=tuple(slice(start, start + PROBE_STEPS) for start in starts),
        within_segment=lljax.StoreStates(),
    )
    meta_gradient = MetaGradient(problem, inner, short)
    policy = lljax.uniform_policy(short.num_steps, problem.num_train)
    sweep = meta_gradient.new_sweep()

    def time_segments(run) -> float:
        # A sweep compiles in its first segment, which also holds what it does but once.
        moments: list[float] = []
        run(policy, sweep, lambda _: moments.append(time.monotonic()))
        return float(np.median(np.diff(moments))) / PROBE_STEPS

    return np.array(
        [time_segments(run) for run in (meta_gradient.run_forward, meta_gradient.run_backward)]
    )


def describe(plan: RunPlan) -> str:
    """The plan in words, for a terminal."""
    memory = plan.memory
    meta = memory.num_steps * plan.step_flops
    lines = [
        f"parameters        {plan.num_params:,}; a state of the inner optimiser takes "
        f"{_bytes(memory.state_bytes)}, the record of a step {_bytes(memory.record_bytes)}",
        f"inner steps       {memory.num_steps:,} in {len(memory.segments)} segments of "
        f"{memory.segment_length}",
        f"arithmetic        {_count(plan.step_flops, 'FLOP')} an inner step, "
        f"{_count(meta, 'FLOP')} a meta-gradient, "
        f"{_count(meta * plan.num_outer_steps, 'FLOP')} in {plan.num_outer_steps} of them",
        "",
        f"memory            budget for kept states: {_bytes(memory.budget_bytes)}",
        f"  {'strategy':<16}{'kept on the device':>20}{'peak on the device':>20}{'host':>12}",
    ]
    for mode in MODES:
        chosen = "  <- chosen" if mode == memory.mode else ""
        lines.append(
            f"  {mode:<16}{_bytes(memory.device_bytes(mode)):>20}"
            f"{_bytes(plan.peak_bytes(mode)):>20}{_bytes(memory.host_bytes(mode)):>12}{chosen}"
        )
    lines += [
        f"  the peak holds data ({_bytes(plan.data_bytes)}), policies and their gradients "
        f"({_bytes(plan.policy_bytes)} each) and working memory ({_bytes(plan.sweep_bytes)})",
        "",
        f"time              {_seconds(plan.forward_seconds)} forward and "
        f"{_seconds(plan.backward_seconds)} backward an inner step, measured",
        f"  meta-gradient   {_seconds(plan.meta_gradient_seconds)}",
        f"  analysis        {_seconds(plan.analysis_seconds)}, of {plan.num_analyses} policies",
        f"  whole run       {_seconds(plan.run_seconds)}, if no outer step is taken back",
    ]
    return "\n".join(lines)


def _count(value: float, unit: str) -> str:
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _bytes(value: float) -> str:
    return _count(value, "B")


def _seconds(value: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{1000 * value:.{3 if value < 1 else 4}g} ms"
