"""What a run will need, before it is run: `lljax plan CONFIG`.

Sizes are counted, working memory and FLOPs are the compiler's own figures for the programs of the
run, and the time comes from a probe (`probe`). The cost of an active set follows the policy, which
is not known yet: such a run is planned as if all examples had weight to the end.
"""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np

import lljax
from lljax.artifacts.schema import SETS
from lljax.engine.analysis import law_steps, snapshot_steps
from lljax.engine.memory_plan import MemoryPlan, plan_memory
from lljax.engine.meta_gradient import MetaGradient
from lljax.engine.placement import (
    Placement,
    bytes_on_a_device,
    device_name,
    find_placement,
)
from lljax.engine.policy_memory import ON_DEVICES, place_policy
from lljax.engine.probe import measure_step, num_sweeps, step_flops
from lljax.engine.units import count, duration, size
from lljax.tasks.build import build_problem
from lljax.tasks.config import ExperimentConfig, meta_optimizer
from lljax.tasks.problem import Experiment, PolicyProblem


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The needs of a run. Bytes, of a device; seconds; floating-point operations, of all devices.

    Attributes:
      device: what the run uses, in words.
      num_devices: of them.
      memory: how the run is cut and what is kept.
      data_lines: what became of the data.
      num_params: scalars in theta.
      data_bytes: of all examples.
      policy_bytes: of one array [T, N]; where the hosts have the policy, of the rows of a segment.
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
    data_lines: tuple[str, ...]
    device: str
    num_devices: int
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
        again = (num_sweeps(self.memory) - 1) * self.forward_seconds
        law = 3 / 8 * (self.backward_seconds - again) * len(law_steps(num_steps))
        return num_steps * self.forward_seconds + law

    @property
    def run_seconds(self) -> float:
        """Of compilation, meta-gradients and analyses, if every outer step is taken, and of the
        meta-gradient and two runs that tell how smooth training is."""
        return (
            self.compile_seconds
            + 2 * self.memory.num_steps * self.forward_seconds
            + (self.num_outer_steps + 1) * self.meta_gradient_seconds
            + self.num_analyses * self.analysis_seconds
        )

    def peak_bytes(self, mode: Any) -> int:
        """Device memory in the worst moment, under a mode of keeping states."""
        # The uniform and the best policy, its gradient and a momentum; in a sweep also the trial.
        # Of those in the hosts a segment's rows, and those of the segment before.
        number = 2 if self.memory.policy_in_hosts else ON_DEVICES
        policies = number * self.policy_bytes
        states = 3 * self.memory.state_bytes  # theta_0, a sweep's state and its cotangent
        sweeping = policies + states + self.memory.device_bytes(mode) + self.sweep_bytes
        return self.data_bytes + max(sweeping, self.policy_bytes + self.update_bytes)


def plan_run(experiment: Experiment) -> RunPlan:
    """Plans a run; takes seconds, at most some minutes where a step takes many of them.

    Raises:
      UserError: the config or its data are unusable, or no strategy fits into memory.
    """
    config = experiment.config
    placement = find_placement(config.mesh)
    problem = build_problem(experiment, on_host=True)
    with placement.context():
        return _plan(config, placement.problem(problem), placement)


def _plan(config: ExperimentConfig, problem: PolicyProblem, placement: Placement) -> RunPlan:
    memory = plan_memory(problem, config.inner, placement=placement)
    memory = place_policy(memory, config, problem.num_train, placement)
    started = time.monotonic()
    programs = MetaGradient(problem, config.inner, memory, placement=placement).compile()
    compile_seconds = time.monotonic() - started
    # What is kept is counted by the memory plan, not as working memory.
    working = max(
        _memory(programs.forward).made - programs.kept_bytes,
        _memory(programs.backward).made - memory.remade_bytes,
    )
    rows = memory.num_steps
    if memory.policy_in_hosts:  # with the neighbours that gradients are averaged over
        rows = min(rows, memory.segment_length + 2 * config.outer.smoothing)
    shape = rows, problem.num_train
    policy = placement.columns(jax.ShapeDtypeStruct(shape, np.float32))
    forward, backward = measure_step(problem, config.inner, memory, placement)
    batches = {id(b): b for b in (getattr(problem, n) for n in ("train", "objective", *SETS))}
    return RunPlan(
        memory=memory,
        data_lines=problem.data_lines,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(problem.params)),
        device=device_name(placement),
        num_devices=placement.num_devices,
        data_bytes=bytes_on_a_device(list(batches.values())),
        policy_bytes=bytes_on_a_device(policy),
        sweep_bytes=working,
        update_bytes=_update_bytes(config, policy, placement),
        step_flops=step_flops(problem, config.inner, memory),
        forward_seconds=forward,
        backward_seconds=backward,
        compile_seconds=compile_seconds,
        num_outer_steps=config.outer.num_steps + 1,
        num_analyses=len(snapshot_steps(config.outer.num_steps)) + 1,  # and the best policy
    )


class _Memory(NamedTuple):
    """Bytes of a program: its arguments; its outputs and what it needs in between."""

    given: int
    made: int


def _memory(program: jax.stages.Compiled) -> _Memory:
    stats: Any = program.memory_analysis()
    made = stats.output_size_in_bytes + stats.temp_size_in_bytes
    return _Memory(stats.argument_size_in_bytes, made)


def _update_bytes(
    config: ExperimentConfig, policy: jax.ShapeDtypeStruct, placement: Placement
) -> int:
    """Device memory of `take`, the largest of the outer loop's own programs."""
    control = lljax.build_step_control(meta_optimizer(config.outer))
    objective = jax.ShapeDtypeStruct((), np.float32)
    active_set = config.outer.check_every is not None
    known = policy.update(dtype=bool) if active_set else None
    state = placement.columns(jax.eval_shape(control.begin, policy, objective, policy, known))
    needed = _memory(jax.jit(control.take).lower(state, objective, policy, known).compile())
    return needed.given + needed.made


def starts_on_disk(memory: MemoryPlan) -> list[str]:
    """A line on them, where they are there."""
    if not memory.starts_on_disk:
        return []
    return [f"  {size(memory.starts_bytes)} on the disk: the states in which the segments start"]


def describe(plan: RunPlan) -> str:
    """The plan in words, for a terminal."""
    memory, several = plan.memory, plan.num_devices > 1
    meta = memory.num_steps * plan.step_flops
    lines = [
        *plan.data_lines,
        *([""] if plan.data_lines else []),
        *([f"devices           {plan.device}; memory is that of each of them"] if several else []),
        f"parameters        {plan.num_params:,}; a state of the inner optimiser takes "
        f"{size(memory.state_bytes)}, the record of a step {size(memory.record_bytes)}",
        f"inner steps       {memory.num_steps:,} in {len(memory.segments)} segments of "
        f"{memory.segment_length}",
        f"arithmetic        {count(plan.step_flops, 'FLOP')} an inner step, "
        f"{count(meta, 'FLOP')} a meta-gradient, "
        f"{count(meta * plan.num_outer_steps, 'FLOP')} in {plan.num_outer_steps} of them",
        "",
        f"memory            budget for kept states: {size(memory.budget_bytes)}",
        f"  {'strategy':<16}{'kept on the device':>20}{'peak on the device':>20}{'host':>12}",
    ]
    for mode in memory.modes:
        chosen = "  <- chosen" if mode == memory.mode else ""
        lines.append(
            f"  {mode:<16}{size(memory.device_bytes(mode)):>20}"
            f"{size(plan.peak_bytes(mode)):>20}{size(memory.host_bytes(mode)):>12}{chosen}"
        )
    if memory.policy_in_hosts:
        held, number = memory.policy_held_bytes, memory.policy_arrays
        lines.append(
            f"  the host holds {number} policies, gradients and momenta in blocks of rows "
            f"({size(held)} each); the devices have the rows of one segment at a time"
        )
    lines += [
        *starts_on_disk(memory),
        f"  the peak holds data ({size(plan.data_bytes)}), policies and their gradients "
        f"({size(plan.policy_bytes)} each) and working memory ({size(plan.sweep_bytes)})",
        "",
        f"time              {duration(plan.forward_seconds)} forward and "
        f"{duration(plan.backward_seconds)} backward an inner step, measured",
        f"  meta-gradient   {duration(plan.meta_gradient_seconds)}",
        f"  analysis        {duration(plan.analysis_seconds)}, of {plan.num_analyses} policies",
        f"  whole run       {duration(plan.run_seconds)}, if no outer step is taken back",
    ]
    return "\n".join(lines)
