"""One experiment over drawn runs, from config to artifacts."""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lljax import cluster
from lljax.artifacts import schema
from lljax.artifacts.files import (
    write_arrays,
    write_atomically,
    write_npy,
    write_samples,
    write_summary,
)
from lljax.curation import results
from lljax.curation.cost import finding_flops
from lljax.curation.drawn import RunSource
from lljax.curation.evaluation import TEST, Evaluation
from lljax.curation.families import Family, build_family, seen_of
from lljax.curation.loop import Curation
from lljax.curation.results import Measured
from lljax.curation.scorer import Scorer, Seen, fit_scorer, log_weights, shares_of
from lljax.engine import summary
from lljax.engine.claim import Claim
from lljax.engine.host_arrays import fetch
from lljax.engine.memory_plan import MemoryPlan, plan_memory
from lljax.engine.metrics import Metrics, number
from lljax.engine.placement import ONE_DEVICE, Placement, device_name, find_placement
from lljax.engine.progress import log
from lljax.engine.run import versions
from lljax.engine.smoothness import keep_smoothness, smoothness_facts
from lljax.engine.trackers import Maker, find_trackers, open_trackers
from lljax.engine.workdir import Workdir
from lljax.tasks.build import build_problem, fingerprint
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import Experiment, PolicyProblem

TEST_RUNS = 5


def execute(experiment: Experiment, workdir: Workdir, claim: Claim) -> None:
    """Runs or continues an experiment in its workdir; everything but the report."""
    config = experiment.config
    makers = find_trackers(config.trackers)
    placement = find_placement(config.mesh)
    problem = build_problem(experiment, on_host=True)
    claim.compare_data(fingerprint(problem), problem.provenance)
    family = build_family(config, problem)
    with placement.context():
        placed = placement.problem(problem)
        if placement.num_devices == 1:  # whose arrays can be read here: one copy is enough
            problem = placed
        found = _optimize(experiment, problem, placed, placement, family, workdir, claim, makers)
    _write_results(experiment, problem, placement, workdir, found)


class Found(NamedTuple):
    """What a run has computed, in the host's memory."""

    lines: list[Metrics]  # of all outer steps
    policy: np.ndarray  # as policy.npy has it
    shares: np.ndarray  # [S, N], the distributions that it makes
    scorer: Scorer | None
    scores: np.ndarray | None  # [N], its own
    correlation: float | None  # of a distilled scorer with what it was fitted to
    best_step: int
    measured: dict[str, Measured]  # fresh runs, by policy
    evaluate_seconds: float


def _optimize(
    experiment: Experiment,
    problem: PolicyProblem,
    placed: PolicyProblem,
    placement: Placement,
    family: Family,
    workdir: Workdir,
    claim: Claim,
    makers: Mapping[str, Maker],
) -> Found:
    """All that is computed of a run: of a problem that is placed, and as it was before."""
    config = experiment.config
    # By the memory of the first host: all have to run the same programs.
    plan = cluster.from_first(lambda: plan_runs(problem, config, placement))
    source = RunSource(config, problem)
    evaluation = Evaluation(config, placed, source, placement)
    trackers = functools.partial(open_trackers, makers, workdir.root, experiment.settings())
    curation = Curation(
        config, placed, family, source, evaluation, workdir, claim.run, plan, trackers, placement
    )
    start = curation.find_start()
    # Whatever refuses the run has done so, and left the folder as it was.
    claim.settle()
    workdir.reopen()
    batch = config.inner.batch_size
    log(
        f"{experiment.task.name}, policy {config.policy.family}: {config.outer.runs} runs of "
        f"T = {config.inner.num_steps} inner steps on "
        f"{'all' if batch is None else f'batches of {batch}'} of N = {problem.num_train} training "
        f"examples, {config.outer.num_steps} outer steps on {device_name(placement)}; "
        f"files in {workdir.root}"
    )
    cluster.end_if_stuck(config.mesh.stuck_minutes)
    keep_smoothness(workdir, curation.reruns, config.seed)
    state = curation.optimize(start)
    workdir.check_present()
    started = time.monotonic()
    psi = fetch(state.best)
    policy, shares, scorer, scores, correlation = cluster.from_first(
        lambda: _policy(config, problem, family, psi)
    )
    policies = {
        "conventional": np.full((1, problem.num_train), 1 / problem.num_train, np.float32),
        "optimized": shares,
    }
    if (oracle := results.oracle_shares(problem)) is not None:
        policies["oracle"] = oracle
    keys = evaluation.keys(TEST, TEST_RUNS)
    measured = {
        name: _measure(evaluation, jnp.asarray(of), keys, f"fresh runs, {name}")
        for name, of in policies.items()
    }
    return Found(
        curation.metrics,
        policy,
        shares,
        scorer,
        scores,
        correlation,
        int(state.best_step),
        measured,
        time.monotonic() - started,
    )


def plan_runs(
    problem: PolicyProblem, config: ExperimentConfig, placement: Placement = ONE_DEVICE
) -> MemoryPlan:
    """The memory plan for R runs at once."""
    return plan_memory(problem, config.inner, config.outer.runs, placement)


@cluster.on_first
def _write_results(
    experiment: Experiment,
    problem: PolicyProblem,
    placement: Placement,
    workdir: Workdir,
    found: Found,
) -> None:
    """Everything but the report."""
    config, shares, measured, scorer = experiment.config, found.shares, found.measured, found.scorer
    (workdir.root / schema.TRANSFER_FILE).unlink(missing_ok=True)  # of another policy
    write_npy(workdir.policy, found.policy)
    num_steps = config.inner.num_steps
    write_arrays(workdir.root, results.arrays(problem, shares, measured, num_steps), num_steps)
    samples = summary.samples(problem, np.broadcast_to(shares.mean(axis=0), (1, problem.num_train)))
    if samples is not None:
        write_samples(workdir.root, samples)
    results.write_examples(workdir.root, problem, shares, found.scores)
    if scorer is not None:
        scorer.save(workdir.root / schema.SCORER_FILE)
    for name, content in problem.files.items():
        write_atomically(workdir.root / name, content)
    lines = found.lines
    optimize = sum(line["seconds"] for line in lines)
    evaluate = found.evaluate_seconds
    numbers = results.summarise(problem, shares, measured)
    numbers["runs"]["scorer_correlation"] = found.correlation
    made = lines[-1]["outer_step"]
    numbers["runs"]["flops"] = number(finding_flops(problem, config, made))
    facts: dict[str, Any] = {
        **summary.made_by(),
        "task": experiment.task.name,
        "family": config.policy.family,
        "data_digest": fingerprint(problem, with_params=False),
        "seed": config.seed,
        "device": device_name(placement),
        "versions": versions(),
        "inner_steps": num_steps,
        "outer_steps": made,
        "best_outer_step": found.best_step,
        "seconds": {
            "optimize": round(optimize, 2),
            "evaluate": round(evaluate, 2),
            "total": round(optimize + evaluate, 2),
        },
    }
    workdir.write_metrics(lines)
    write_summary(workdir.root, facts | smoothness_facts(workdir) | numbers)


def _policy(
    config: ExperimentConfig, problem: PolicyProblem, family: Family, psi: Any
) -> tuple[np.ndarray, np.ndarray, Scorer | None, np.ndarray | None, float | None]:
    """The policy, shares, scorer, scores and correlation that `Found` has."""
    shares = np.asarray(family.shares(psi))
    scorer, seen = _scorer(config, problem, family, psi)
    if scorer is None or seen is None:
        return np.asarray(psi, np.float32), shares, None, None, None
    correlation, scores = None, seen.scores(scorer)
    if config.policy.scorer == "distilled":
        both = scores, log_weights(shares[0])
        if all(values.std() > 0 for values in both):  # else no weight differs from another
            correlation = float(np.corrcoef(*both)[0, 1])
            log(f"the scorer's correlation with the weights' logarithms: {correlation:.2f}")
    shares = shares_of(scores)[None]
    return shares[0], shares, scorer, scores, correlation


def _scorer(
    config: ExperimentConfig, problem: PolicyProblem, family: Family, psi: Any
) -> tuple[Scorer | None, Seen | None]:
    """(the scorer of the best policy, what it sees); (None, None) for another family."""
    if config.policy.family != "scorer":
        return None, None
    seen = seen_of(problem)
    if config.policy.scorer == "boosted":
        weights = np.asarray(psi, np.float32)
        scores = np.asarray(seen.features @ weights, np.float64)[seen.document]
        top = scores.max()
        bias = float(-top - np.log(np.exp(scores - top).mean()))  # so that the mean weight is 1
        return Scorer(weights, bias), seen
    log("fitting the scorer")
    return fit_scorer(seen, np.asarray(family.shares(psi))[0]), seen


def _measure(evaluation: Evaluation, shares: jax.Array, keys: jax.Array, label: str) -> Measured:
    curves = evaluation.curves(shares, keys, schema.SETS, label)
    return Measured({name: evaluation.at_all_steps(curve) for name, curve in curves.items()})
