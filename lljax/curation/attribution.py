"""`lljax attribute`: what each training example of a config's run does for the desired loss."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lljax
from lljax.curation.attribution_files import NAME, Attributed, Choice, Found, check_folder, write
from lljax.curation.drawn import RunSource, run_keys
from lljax.engine import divergence
from lljax.engine.memory_plan import plan_memory
from lljax.engine.placement import Placement, device_name, find_placement
from lljax.engine.progress import Progress, log
from lljax.engine.scored_run import Scored, ScoredRun
from lljax.errors import RunFailed, UserError
from lljax.tasks.build import build_problem
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import Experiment, PolicyProblem
from lljax.tasks.tokens import TokenWeights
from lljax.types import StepInputs

KEY = 2**30  # of the runs: no outer step draws them


def attribute(experiment: Experiment, folder: Path, choice: Choice) -> Attributed:
    """Scores the training examples of a config and writes them into a folder.

    Args:
      experiment: its inner settings, data and seed say what is run; its policy and outer settings
        only whether runs are drawn, and how many (outer.runs).
      folder: of what is written; it may hold what the same command has written before.
      choice: of what the scores are.

    Raises:
      UserError: the folder holds something else, or the settings or data do not fit.
      RunFailed: the training diverges, or the disk does not take what is written.
    """
    about = {"config": experiment.settings(), **choice._asdict()}
    check_folder(folder, about)
    config = run_config(experiment.config)
    placement = find_placement(config.mesh)
    problem = build_problem(experiment._replace(config=config))
    tokens = _prepare(problem, choice)
    if tokens is not None:
        problem = dataclasses.replace(problem, train=tokens.examples)
    with placement.context():
        scored = _score(experiment, config, placement.problem(problem), placement, choice, tokens)
    return write(problem, folder, choice, about, scored, tokens)


def run_config(config: ExperimentConfig) -> ExperimentConfig:
    """The config of the runs that are scored: the measure is of the desired examples alone."""
    inner, outer = config.inner, dataclasses.replace(config.outer, train_share=0.0)
    if config.policy.is_dense:  # one run, on all desired examples
        inner = dataclasses.replace(inner, desired_batch_size=None)
        outer = dataclasses.replace(outer, runs=1)
    return dataclasses.replace(config, inner=inner, outer=outer)


def _prepare(problem: PolicyProblem, choice: Choice) -> TokenWeights | None:
    """The tokens that are asked for; UserError where the choice does not fit the problem."""
    number = len(jax.tree.leaves(problem.desired)[0])
    if choice.each is not None and not 1 <= choice.each <= number:
        raise UserError(
            f"--each must be from 1 to {number}, the desired examples; got {choice.each}."
        )
    if not choice.tokens:
        return None
    if choice.each is not None:
        raise UserError("--each and --tokens cannot be given together: take one after the other.")
    if problem.tokens is None:
        raise UserError("--tokens needs training examples of tokens: the task has none.")
    return problem.tokens()


def _score(
    experiment: Experiment,
    config: ExperimentConfig,
    problem: PolicyProblem,
    placement: Placement,
    choice: Choice,
    tokens: TokenWeights | None,
) -> Found:
    """The means over the runs."""
    if config.policy.is_dense:  # its run begins at theta_0
        problem = dataclasses.replace(problem, init_params=None)
    plan = plan_memory(problem, config.inner, placement=placement)
    source, count = RunSource(config, problem), config.outer.runs
    shares = lljax.uniform_policy(1, problem.num_train)
    keys = run_keys(jax.random.key(config.seed), KEY, count)

    def draw(number: int) -> tuple[Any, StepInputs]:
        runs = source.draw(shares, keys[number : number + 1])
        inputs = jax.tree.map(lambda leaf: leaf[:, 0], runs.inputs)
        if inputs.index is None:
            inputs = dataclasses.replace(inputs, weights=placement.columns(inputs.weights))
        return placement.state(jax.tree.map(lambda leaf: leaf[0], runs.params)), inputs

    params, inputs = draw(0)
    run = ScoredRun(
        problem,
        config.inner,
        plan,
        placement,
        inputs,
        of=choice.of,
        each=choice.each,
        to_train=tokens is not None,
    )
    batch = config.inner.batch_size
    steps = f"T = {config.inner.num_steps} inner steps"
    on = "all examples" if batch is None else f"batches of {batch}"
    log(
        f"{experiment.task.name}: scores of N = {problem.num_train} training examples by the "
        f"{choice.measured}, from {count} run{'s' * (count > 1)} of {steps} on {on} at uniform "
        f"weights ({plan.mode}), on {device_name(placement)}"
    )
    found: list[Scored] = []
    with Progress(NAME) as progress:
        parts = 0

        def done() -> None:
            nonlocal parts
            parts += 1
            progress.show(parts / (count * run.num_parts))

        for number in range(count):
            params, inputs = draw(number)
            scored = run.run(params, inputs, done)
            measured_at = np.arange(len(scored.losses))
            divergence.check_curve(scored.losses, measured_at, config.inner.learning_rate)
            if not np.isfinite(scored.scores).all():
                raise RunFailed(
                    f"the scores of {(~np.isfinite(scored.scores)).any(axis=0).sum()} examples are "
                    f"not finite: the training is unstable. Lower inner.learning_rate "
                    f"({config.inner.learning_rate:g})."
                )
            found.append(scored)
    of_tokens = None
    if tokens is not None:
        weights = np.asarray(tokens.read(problem.train))
        slopes = [np.asarray(tokens.read(scored.of_train)) for scored in found]
        of_tokens = (-weights * np.mean(slopes, axis=0)).astype(np.float32)
    scores, losses, train_losses = (
        np.stack(values).mean(axis=0, dtype=np.float64)
        for values in (
            [scored.scores for scored in found],
            [scored.losses for scored in found],
            [scored.train_losses for scored in found],
        )
    )
    scores = (scores if choice.each is not None else scores[0]).astype(np.float32)
    return Found(scores, of_tokens, losses, train_losses)
