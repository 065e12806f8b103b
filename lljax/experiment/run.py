"""One experiment from config to report."""

import dataclasses
import importlib.metadata
import os
import platform
import time
from pathlib import Path

import jax
import numpy as np

from lljax.experiment import evaluate
from lljax.experiment.config import ExperimentConfig
from lljax.experiment.memory_plan import plan_memory
from lljax.experiment.meta_gradient import verify_offload
from lljax.experiment.optimization import Metrics, Optimization
from lljax.experiment.problem import Problem, build_problem, fingerprint
from lljax.experiment.progress import log
from lljax.experiment.results import load_results
from lljax.experiment.workdir import Workdir, write_json, write_npy, write_npz

OFFLOAD_ERROR = 1e-5  # relative; more and off-loading is not trusted


def run(config: ExperimentConfig, root: Path) -> None:
    """Runs an experiment in the folder `root`, or continues or recognises the one there.

    Raises:
      UserError: the folder is another run's or damaged, or the data are unusable.
      RunFailed: the inner training diverges.
    """
    workdir = Workdir(root)
    workdir.claim(config)
    if workdir.report.exists():
        log(f"{root} holds this run already, finished. Its report: {workdir.report}")
        _print_table(workdir)
        return
    with workdir.lock():
        _run(config, workdir)


def _run(config: ExperimentConfig, workdir: Workdir) -> None:
    problem = build_problem(config)
    workdir.claim_data(fingerprint(problem))
    plan = plan_memory(problem, config.inner)
    if plan.mode == "offload":
        error = verify_offload(problem, config.inner, plan)
        if np.isnan(error):
            log("off-loading cannot be verified: the gradient of stored states is not finite or 0")
        elif error > OFFLOAD_ERROR:
            log(
                f"warning: off-loaded states give a gradient that differs by {error:.1e} from that "
                f"of stored states, so states are recomputed instead. This is a defect of the JAX "
                f"version or of its driver."
            )
            plan = dataclasses.replace(plan, mode="recompute")
    optimization = Optimization(config, problem, workdir, plan)
    log(
        f"{config.task}: T = {config.inner.num_steps} inner steps in {len(plan.segments)} "
        f"segments ({plan.mode}), N = {problem.num_train} training examples, "
        f"{config.outer.num_steps} outer steps on {device_name()}; files in {workdir.root}"
    )
    optimization.optimize()
    _finish(config, problem, workdir, optimization)


def device_name() -> str:
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    return f"{device.device_kind} x {jax.device_count()}"


def _finish(
    config: ExperimentConfig, problem: Problem, workdir: Workdir, optimization: Optimization
) -> None:
    """Measures the kept policy against the conventional one; writes every result and report."""
    from lljax.experiment import report  # matplotlib, jinja2: not needed before

    started, metrics, kept = time.monotonic(), optimization.metrics, optimization.kept()
    best = kept.outer_step
    steps = [step for step in sorted(optimization.snapshot_steps) if step < best]
    path = {step: workdir.read_snapshot(step) for step in steps}
    path[best] = optimization.analysis(best, kept.policy)
    # Where no outer step was an improvement the conventional policy is the kept one.
    analyses = {"conventional": path[0], "optimized": path[best]}
    gaps = {
        "conventional": metrics[0]["optimality_gap"],
        "optimized": kept.optimality_gap,
    }
    policy = np.asarray(kept.policy, np.float32)
    write_npy(workdir.policy, policy)
    arrays = evaluate.collect_arrays(problem, policy, path)
    write_npz(workdir.analysis, arrays)
    samples = evaluate.samples(problem, policy)
    if samples is not None:
        write_json(workdir.samples, samples)
    optimize = sum(line["seconds"] for line in metrics)
    evaluation = time.monotonic() - started
    seconds = {
        "compile": _compile_seconds(metrics),
        "optimize": optimize,
        "evaluate": evaluation,
        # Of all the sessions that a resumed run took.
        "total": optimize + evaluation,
    }
    summary = {
        "task": config.task,
        "seed": config.seed,
        "device": device_name(),
        "versions": versions(),
        "inner_steps": config.inner.num_steps,
        "outer_steps": metrics[-1]["outer_step"],
        "best_outer_step": best,
        "zero_weight_threshold": evaluate.ZERO_WEIGHT,
        "seconds": {key: round(value, 2) for key, value in seconds.items()},
        **evaluate.summarise(problem, analyses, gaps),
    }
    write_json(workdir.summary, summary)
    optimization.looks.clear()
    log(f"report: {report.render(workdir.root)}")
    _print_table(workdir)


def _compile_seconds(metrics: list[Metrics]) -> float:
    """What the first outer step took longer than the typical one."""
    seconds = [line["seconds"] for line in metrics[1:]]
    return max(0.0, seconds[0] - float(np.median(seconds))) if seconds else 0.0


def versions() -> dict[str, str]:
    packages = ("lljax", "jax", "jaxlib", "optax", "orbax-checkpoint", "numpy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}


def _print_table(workdir: Workdir) -> None:
    from lljax.experiment import report

    print(report.summary_table(load_results(workdir.root).summary))
