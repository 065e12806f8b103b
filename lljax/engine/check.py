"""`lljax check`: how far the meta-gradient of a config's own training can be trusted."""

import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax import datamodels, optimizer_check, trust
from lljax.engine import divergence
from lljax.engine.memory_plan import in_memory, plan_memory
from lljax.engine.meta_gradient import MetaGradient
from lljax.engine.metrics import number
from lljax.engine.placement import find_placement
from lljax.engine.policy_memory import place_policy
from lljax.engine.smoothness import STEP, Reruns, Smoothness, reruns_of_dense, smoothness_of
from lljax.tasks.build import build_problem
from lljax.tasks.config import ExperimentConfig, InnerConfig
from lljax.tasks.problem import Experiment, PolicyProblem

SHARE = 0.05  # of the examples, left out of a retraining
LEAST, MOST = 6, 100  # retrainings
ENOUGH = 16  # of them, for a rank correlation to say something
PREDICTS, MISLEADS = 0.9, 0.7  # correlations of predicted and actual changes
WRONG = 1e-5  # error of a gradient in float64 beside finite differences, at most
SLICE_STEPS, SLICE_EXAMPLES = 3, 32  # of the run, for finite differences


def check(experiment: Experiment, seconds: float) -> "Findings":
    """Of the one deterministic run of a dense policy; see `check_run`."""
    config, placement = experiment.config, find_placement(experiment.config.mesh)
    problem = build_problem(experiment, on_host=True)
    with placement.context():
        problem = placement.problem(problem)
        plan = in_memory(plan_memory(problem, config.inner, placement=placement))
        plan = place_policy(plan, config, problem.num_train, placement)
        meta_gradient = MetaGradient(problem, config.inner, plan, placement=placement)
        return check_run(problem, config, reruns_of_dense(meta_gradient, problem), seconds)


class Findings(NamedTuple):
    """What `check_run` found."""

    smoothness: Smoothness
    finite_differences: float | None  # relative error of the gradient beside them
    lds: float | None  # rank correlation of predicted and actual changes of the AUC
    interval: tuple[float | None, float | None]  # of that, 95 %
    correlation: float | None  # Pearson's
    explained: float | None  # share of the actual changes' squares
    retrainings: int
    auc: float | None  # at uniform weights, nats
    steep: str  # what is to be said of the optimiser; empty: nothing
    cures: tuple[str, ...]  # what would make this training smoother, to be tried in this order
    seconds: float

    @property
    def verdict(self) -> str:
        """trust, care or mistrust."""
        correlation, error = self.correlation, self.finite_differences
        if not self.smoothness.is_known or correlation is None or error is None:
            return "mistrust"
        if error > WRONG or correlation < MISLEADS:
            return "mistrust"
        predicts = correlation >= PREDICTS and self.smoothness.predicts
        return "trust" if predicts and not self.steep else "care"


def check_run(
    problem: PolicyProblem, config: ExperimentConfig, reruns: Reruns, seconds: float
) -> Findings:
    """Measures it on the config's own run.

    Args:
      problem: of the config.
      config: its seed draws directions and the examples that are left out.
      reruns: its training run, at uniform weights.
      seconds: for retrainings; `LEAST` of them are made in any case, and `MOST` at most.

    Raises:
      RunFailed: training diverges.
    """
    begun, seed = time.monotonic(), config.seed
    steep = _steepness(problem)
    error = _finite_differences(problem, config.inner, seed)
    gradient = reruns.gradient("meta-gradient")
    base, slopes = gradient.sweep, gradient.slopes
    curve = base.desired.reshape(len(base.desired), -1).mean(axis=1)
    divergence.check_curve(curve, np.arange(len(curve)), config.inner.learning_rate)
    started = time.monotonic()
    smooth = smoothness_of(reruns, seed, gradient)
    each = (time.monotonic() - started) / 2
    count = int(np.clip(seconds / max(each, 1e-9), LEAST, MOST))
    keys = jax.random.split(jax.random.key(seed + 1))
    drawn = datamodels.draw_subsets(keys[0], reruns.num_train, count, SHARE)
    left_out = np.asarray(drawn, np.float64)
    actual = [
        reruns.run(1 - absent, f"retraining {i + 1} of {count}").objective
        for i, absent in enumerate(left_out)
    ]
    changes = np.asarray(actual, np.float64) - np.float64(base.objective)
    predicted = -left_out @ np.asarray(slopes, np.float64)
    score = datamodels.score_predictions(
        jnp.asarray(predicted), jnp.asarray(changes), base.objective, keys[1]
    )
    usable = np.isfinite(changes).all() and np.isfinite(predicted).all()
    correlation = np.corrcoef(predicted, changes)[0, 1] if usable else np.nan
    low, high = map(number, score.interval)
    return Findings(
        smooth,
        error,
        number(score.lds),
        (low, high),
        number(correlation),
        number(score.explained),
        count,
        number(base.objective),
        steep,
        _cures(config),
        time.monotonic() - begun,
    )


def _steepness(problem: PolicyProblem) -> str:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer_check.check_optimizer(problem.optimizer, problem.params)
    return " ".join(str(warning.message) for warning in caught)


def _finite_differences(problem: PolicyProblem, inner: InnerConfig, seed: int) -> float | None:
    """The gradient's error, on a few steps and examples, in float64."""
    train, desired = (
        jax.tree.map(lambda leaf: np.asarray(leaf[:SLICE_EXAMPLES]), batch)
        for batch in (problem.train, problem.desired)
    )
    loss_auc = lljax.build_loss_auc(
        problem.loss_fn,
        problem.optimizer,
        desired_loss_fn=problem.desired_loss_fn,
        second_order=problem.second_order,
        check_loss=False,
        check_optimizer=False,
    )
    count = len(jax.tree.leaves(train)[0])
    policy = lljax.uniform_policy(min(SLICE_STEPS, inner.num_steps), count)
    found = trust.finite_difference_check(
        loss_auc, policy, problem.params, train, desired, key=jax.random.key(seed)
    )
    return number(found.error)


def _cures(config: ExperimentConfig) -> tuple[str, ...]:
    """Only what the config has not."""
    inner, model = config.inner, getattr(config, "model", None)
    activation = getattr(model, "activation", None)
    ways = {
        "--model.activation gelu": activation == "relu",
        "a smooth activation where your model has ReLU": activation is None,
        "--model.initialization torch": getattr(model, "initialization", None) == "scaled",
        f"a lower inner.learning_rate ({inner.learning_rate:g} here)": True,
        "--inner.schedule warmup_cosine": inner.schedule != "warmup_cosine",
        "a larger inner.batch_size": inner.batch_size is not None,
        "--inner.clip-norm": inner.clip_norm is None,
        "--inner.optimizer sgd or momentum": inner.optimizer == "adamw",
        "fewer inner.num_steps": True,
    }
    return tuple(way for way, is_open in ways.items() if is_open)


def describe(found: Findings) -> str:
    """The verdict with its figures, and what to change."""

    def shown(value: Any, form: str = ".2f") -> str:
        return "not finite" if value is None else format(value, form)

    rows = [
        (
            "gradient beside finite differences",
            f"error {shown(found.finite_differences, '.1e')}",
            f"float64, {SLICE_STEPS} steps; at most {WRONG:.0e}",
        ),
        (
            "metasmoothness of the trained parameters",
            shown(found.smoothness.params),
            f"three runs, weights changed by {STEP}; at least {found.smoothness.least}",
        ),
        ("  of the loss curve", shown(found.smoothness.losses), "for comparison"),
        (
            "predicted over actual change of the AUC",
            shown(found.smoothness.overshoot, ".3g"),
            f"in the same runs; at most {found.smoothness.most:g}",
        ),
        (
            f"predicted and actual AUC of {found.retrainings} retrainings",
            f"correlation {shown(found.correlation)}",
            f"{SHARE:.0%} of the examples left out; at least {PREDICTS}",
        ),
    ]
    if found.retrainings >= ENOUGH:
        low, high = found.interval
        between = f"95 %: {shown(low)} to {shown(high)}"
        rows.append(("  of their ranks (LDS)", shown(found.lds), between))
    width = [max(len(row[i]) for row in rows) for i in range(2)]
    lines = [f"{a:<{width[0]}}  {b:<{width[1]}}  {c}" for a, b, c in rows]
    return "\n".join([*lines, "", *_conclusions(found)])


def _conclusions(found: Findings) -> list[str]:
    words = {
        "trust": "The meta-gradient predicts: it can be trusted for weights near uniform ones.",
        "care": "The meta-gradient predicts in part: trust large differences, not small ones.",
        "mistrust": "Do not trust the meta-gradient of this run: it does not predict.",
    }
    lines = [f"Verdict: {found.verdict}. {words[found.verdict]}"]
    error = found.finite_differences
    if error is None or error > WRONG:
        lines.append(
            "The gradient itself differs from finite differences: a loss that is not smooth or not "
            "deterministic, that computes in float32 or less whatever it is given, or a defect."
        )
    if found.steep:
        lines.append(found.steep)
    if found.verdict != "trust":
        lines.append(
            f"What makes training smoother, in the order in which to try it: "
            f"{', '.join(found.cures)}."
        )
    if found.retrainings < ENOUGH:
        lines.append(
            f"With {found.retrainings} retrainings the correlation is a rough one: --seconds gives "
            f"it more time."
        )
    return lines
