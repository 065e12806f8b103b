"""One experiment, from config to artifacts."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from lljax import cluster
from lljax.artifacts import schema
from lljax.artifacts.files import write_arrays, write_samples, write_summary
from lljax.artifacts.manifest import write_manifest
from lljax.artifacts.reading import map_npy
from lljax.engine import analysis, finished, summary
from lljax.engine.analyses import Analyses
from lljax.engine.claim import Claim
from lljax.engine.differences import differences
from lljax.engine.memory_plan import MemoryPlan, plan_memory
from lljax.engine.metrics import Metrics
from lljax.engine.offload_check import verify_offload
from lljax.engine.optimization import BestPolicy, Optimization
from lljax.engine.placement import Placement, device_name, find_placement
from lljax.engine.policy_memory import place_policy, policy_memory, require_policy_memory
from lljax.engine.progress import log
from lljax.engine.smoothness import keep_smoothness, reruns_of_dense, smoothness_facts
from lljax.engine.trackers import find_trackers, open_trackers
from lljax.engine.workdir import Workdir
from lljax.errors import RunFailed
from lljax.tasks.build import build_problem, fingerprint
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import Experiment, PolicyProblem

OFFLOAD_ERROR = 1e-5  # relative; more and off-loading is not trusted


class Execute(Protocol):
    def __call__(self, experiment: Experiment, workdir: Workdir, claim: Claim, /) -> None:
        """Runs or continues an experiment, and writes everything but the report."""
        ...


def run(
    experiment: Experiment, root: Path, report: Callable[[Path], Path], execute: Execute
) -> None:
    """Runs an experiment in the folder `root`, or continues or recognises the one there.

    Args:
      experiment: what to run.
      root: its workdir.
      report: makes the report of the finished artifacts in `root`, and returns its path. With it
        the run is finished.
      execute: what such an experiment does; `execute` of this module for a dense policy.

    Raises:
      UserError: the folder is another run's or damaged, or the data are unusable.
      RunFailed: the inner training diverges, or the disk does not take what is written.
    """
    workdir = Workdir(root)
    cluster.end_if_stuck(math.inf)
    _check_alike(experiment)

    def look(in_words: bool) -> tuple[Claim, finished.State]:
        claim = Claim(experiment, workdir)
        return claim, finished.state(claim, workdir, in_words)

    if cluster.from_first(lambda: look(in_words=False))[1] == "whole":
        log(f"{root} holds this run already, finished. Its report: {workdir.report}")
        return
    with workdir.lock() if cluster.is_first() else contextlib.nullcontext():
        # Another process may have had the folder until now.
        claim, state = cluster.from_first(lambda: look(in_words=True))
        if state == "unfinished":
            execute(experiment, workdir, claim)
        if cluster.is_first():
            log(f"report: {report(root)}")
            write_manifest(root)


def _check_alike(experiment: Experiment) -> None:
    """RunFailed where the processes of a run were not started for the same one."""
    settings = schema.flatten(experiment.settings())
    of_hosts = experiment.task.free_settings  # such as the folder of a cache
    here = {**{key: settings[key] for key in settings if key not in of_hosts}, **versions()}
    first = cluster.from_first(lambda: here)
    if differing := differences(first, here):
        raise RunFailed(
            f"the first process and this one were not started for the same run: "
            f"{'; '.join(differing)}. Give all the same command and packages."
        )


def execute(experiment: Experiment, workdir: Workdir, claim: Claim) -> None:
    """Optimises a dense policy of one deterministic run."""
    config = experiment.config
    makers = find_trackers(config.trackers)
    placement = find_placement(config.mesh)
    problem = build_problem(experiment, on_host=True)
    claim.compare_data(fingerprint(problem), problem.provenance)
    with placement.context():
        problem = placement.problem(problem)
        plan = _checked_plan(problem, config, placement)
        require_policy_memory(plan, problem.num_train)
        trackers = functools.partial(open_trackers, makers, workdir.root, experiment.settings())
        shape = config.inner.num_steps, problem.num_train
        policies = policy_memory(plan, shape, placement)
        analyses = Analyses(config, problem, workdir, policies, placement)
        optimization = Optimization(
            config, problem, workdir, analyses, claim.run, plan, trackers, placement
        )
        start = optimization.find_start()
        # Whatever refuses the run has done so, and left the folder as it was.
        claim.settle()
        workdir.reopen()
        log(
            f"{experiment.task.name}: T = {config.inner.num_steps} inner steps in "
            f"{len(plan.segments)} segments ({plan.mode}), N = {problem.num_train} training "
            f"examples{policies.in_words}, {config.outer.num_steps} outer steps on "
            f"{device_name(placement)}; files in {workdir.root}"
        )
        cluster.end_if_stuck(config.mesh.stuck_minutes)
        keep_smoothness(
            workdir,
            lambda: reruns_of_dense(optimization.meta_gradient, problem),
            config.seed,
        )
        optimization.optimize(start)
        workdir.check_present()
        started, best = time.monotonic(), optimization.best_policy()
        path = analyses.path(best.outer_step, best.policy)
        policies.write(workdir.policy, best.policy)
    took = time.monotonic() - started
    _write_results(experiment, problem, workdir, path, best, optimization, took)
    optimization.clear()


def _checked_plan(
    problem: PolicyProblem, config: ExperimentConfig, placement: Placement
) -> MemoryPlan:
    """The memory plan; without off-loading where that gives another gradient."""
    inner = config.inner

    def plan_on_this_host() -> MemoryPlan:
        plan = plan_memory(problem, inner, placement=placement)
        return place_policy(plan, config, problem.num_train, placement)

    # By the memory of the first host: all have to run the same programs.
    plan = cluster.from_first(plan_on_this_host)
    if plan.mode != "offload":
        return plan
    error = verify_offload(problem, inner, plan, placement)
    if np.isnan(error):
        log("off-loading cannot be verified: the gradient of stored states is not finite or 0")
    elif error > OFFLOAD_ERROR:
        log(
            f"warning: off-loaded states give a gradient that differs by {error:.1e} from that of "
            f"stored states, so states are recomputed instead. This is a defect of the JAX version "
            f"or of its driver."
        )
        return dataclasses.replace(plan, mode="recompute")
    return plan


@cluster.on_first
def _write_results(
    experiment: Experiment,
    problem: PolicyProblem,
    workdir: Workdir,
    path: dict[int, analysis.Analysis],
    best: BestPolicy,
    optimization: Optimization,
    evaluation: float,
) -> None:
    """Writes everything but the report: the best policy, measured against the conventional one.

    Args:
      experiment, problem, workdir, optimization: of the run.
      path: analyses along the optimisation, by outer step.
      best: its policy is written already.
      evaluation: seconds that measuring it took.
    """
    config, metrics = experiment.config, optimization.metrics
    last, policy = best.outer_step, map_npy(workdir.policy)
    # Where no outer step was an improvement the conventional policy is the best one.
    ends = {"conventional": path[0], "optimized": path[last]}
    gaps = {"conventional": metrics[0]["optimality_gap"], "optimized": best.optimality_gap}
    arrays = summary.collect_arrays(problem, policy, path)
    write_arrays(workdir.root, arrays, config.inner.num_steps)
    samples = summary.samples(problem, policy)
    if samples is not None:
        write_samples(workdir.root, samples)
    optimize = sum(line["seconds"] for line in metrics)
    seconds = {
        "compile": _compile_seconds(metrics),
        "optimize": optimize,
        "evaluate": evaluation,
        # Of all the sessions that a resumed run took.
        "total": optimize + evaluation,
    }
    facts = {
        **summary.made_by(),
        "task": experiment.task.name,
        "seed": config.seed,
        "device": optimization.device,
        "versions": versions(),
        "inner_steps": config.inner.num_steps,
        "outer_steps": metrics[-1]["outer_step"],
        "best_outer_step": last,
        "zero_weight_threshold": analysis.ZERO_WEIGHT,
        "seconds": {key: round(value, 2) for key, value in seconds.items()},
    }
    workdir.write_metrics(metrics)
    facts |= smoothness_facts(workdir)
    write_summary(workdir.root, facts | summary.summarise(problem, ends, gaps))


def _compile_seconds(metrics: list[Metrics]) -> float:
    """What the first outer step took longer than the typical one."""
    seconds = [line["seconds"] for line in metrics[1:]]
    return max(0.0, seconds[0] - float(np.median(seconds))) if seconds else 0.0


def versions() -> dict[str, str]:
    packages = ("lljax", "jax", "jaxlib", "optax", "orbax-checkpoint", "numpy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}
