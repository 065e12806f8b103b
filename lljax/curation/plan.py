"""What a run over drawn runs will need, before it is run: `lljax plan CONFIG`."""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lljax.curation.drawn import DrawnGradient, RunSource, run_keys
from lljax.curation.evaluation import Evaluation
from lljax.curation.families import Family, build_family
from lljax.curation.run import TEST_RUNS, plan_runs
from lljax.engine.memory_plan import MemoryPlan, num_bytes
from lljax.engine.placement import Placement, device_name, find_placement
from lljax.engine.plan import starts_on_disk
from lljax.engine.sweep_state import Sweep
from lljax.engine.units import duration, size
from lljax.memory import StoreStates
from lljax.tasks.build import build_problem
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import Experiment, PolicyProblem

PROBE_STEPS, PROBE_SEGMENTS = 2, 3


class CurationPlan(NamedTuple):
    """The needs of a run. Bytes and seconds."""

    data_lines: tuple[str, ...]
    device: str
    memory: MemoryPlan
    num_params: int
    num_weights: int
    num_runs: int
    num_outer_steps: int
    step_seconds: float
    """Of an inner step of all runs of a meta-gradient, forward and back."""
    validation_seconds: float
    """Of all comparisons."""
    evaluation_seconds: float
    """Of the fresh runs at the end."""

    @property
    def outer_seconds(self) -> float:
        return self.memory.num_steps * self.step_seconds

    @property
    def run_seconds(self) -> float:
        # A meta-gradient and two runs without one.
        smoothness = (1 + 2 * 3 / 11) * self.outer_seconds
        optimize = self.num_outer_steps * self.outer_seconds + smoothness
        return optimize + self.validation_seconds + self.evaluation_seconds


def plan_run(experiment: Experiment) -> CurationPlan:
    """Plans a run; compiles its programs and times a few inner steps.

    Raises:
      UserError: the config or its data are unusable, or no strategy fits into memory.
    """
    placement = find_placement(experiment.config.mesh)
    problem = build_problem(experiment, on_host=True)
    family = build_family(experiment.config, problem)
    with placement.context():
        return _plan(experiment.config, placement.problem(problem), placement, family)


def _plan(
    config: ExperimentConfig, problem: PolicyProblem, placement: Placement, family: Family
) -> CurationPlan:
    memory = plan_runs(problem, config, placement)
    source = RunSource(config, problem)
    starts = range(0, PROBE_SEGMENTS * PROBE_STEPS, PROBE_STEPS)
    short = dataclasses.replace(
        memory,
        mode="store",
        segments=tuple(slice(start, start + PROBE_STEPS) for start in starts),
        within_segment=StoreStates(),
    )
    steps = PROBE_SEGMENTS * PROBE_STEPS
    probe = dataclasses.replace(
        config,
        inner=dataclasses.replace(config.inner, num_steps=max(steps, config.inner.num_steps)),
    )
    gradient = DrawnGradient(problem, probe, short, source, placement)
    shares = jnp.full((1, problem.num_train), 1 / problem.num_train, jnp.float32)
    runs = source.draw(shares, run_keys(jax.random.key(0), 0, config.outer.runs))
    sweep = gradient.new_sweep()
    seconds = 0.0
    for run in (gradient.run_forward, gradient.run_backward):
        moments: list[float] = []
        run(runs, sweep, _clock(moments))
        seconds += float(np.median(np.diff(moments))) / PROBE_STEPS
    outer = config.outer
    evaluation = Evaluation(config, problem, source, placement)
    one = evaluation.seconds(shares, ("validation",))
    comparisons = 1 + 2 * -(-outer.num_steps // outer.validate_every)
    three = evaluation.seconds(shares, ("desired", "validation", "test"))
    policies = 3 if problem.perturbed is not None else 2
    return CurationPlan(
        data_lines=problem.data_lines,
        device=device_name(placement),
        memory=memory,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(problem.params)),
        num_weights=num_bytes(family.start) // 4,
        num_runs=outer.runs,
        num_outer_steps=outer.num_steps,
        step_seconds=seconds,
        validation_seconds=comparisons * outer.validation_runs * one,
        evaluation_seconds=policies * TEST_RUNS * three,
    )


def _clock(moments: list[float]) -> Callable[[Sweep], None]:
    return lambda _: moments.append(time.monotonic())


def describe(plan: CurationPlan) -> str:
    """The plan in words, for a terminal."""
    memory = plan.memory
    lines = [
        *plan.data_lines,
        "",
        f"device            {plan.device}",
        f"parameters        {plan.num_params:,} of the model, {plan.num_weights:,} of the policy",
        f"inner steps       {memory.num_steps:,} in {len(memory.segments)} segments of "
        f"{memory.segment_length}, {plan.num_runs} runs at once",
        "",
        f"memory            budget for kept states: {size(memory.budget_bytes)}",
        f"  {'strategy':<16}{'kept on the device':>20}{'host':>12}",
    ]
    for mode in memory.modes:
        chosen = "  <- chosen" if mode == memory.mode else ""
        kept = size(memory.device_bytes(mode))
        lines.append(f"  {mode:<16}{kept:>20}{size(memory.host_bytes(mode)):>12}{chosen}")
    lines += [
        *starts_on_disk(memory),
        "",
        f"time              {duration(plan.step_seconds)} an inner step of all runs, forward "
        f"and back, measured",
        f"  outer step      {duration(plan.outer_seconds)}",
        f"  comparisons     {duration(plan.validation_seconds)} in all",
        f"  fresh runs      {duration(plan.evaluation_seconds)} at the end",
        f"  whole run       {duration(plan.run_seconds)}, and compilation",
    ]
    return "\n".join(lines)
