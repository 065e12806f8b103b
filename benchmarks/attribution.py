"""What attribution by one run's meta-gradient is worth: planted wrong labels, and retraining.

    python -m benchmarks.attribution [--only recall,lds] [--seeds 5] [--subsets 60]

Recall: 5 % of the digits' training labels are flipped, the 5 % of the examples with the lowest
scores are inspected, and the share of the planted ones among them is counted. Beside the scores
stand what costs nothing, the training loss, and what needs no clean data, self-influence.

LDS: a share of 5 % of the examples is left out, the model is trained again, and what the scores
predict is ranked against what happened, for the desired loss as a whole and for single desired
examples. The intervals are those of a bootstrap over the retrainings.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import rankdata

import lljax
from benchmarks.output import Output
from benchmarks.prediction import Training, language, rare_words
from lljax.attribution import Measure
from lljax.datamodels import scaled
from lljax.tasks.build import build_problem
from lljax.tasks.config_file import load_experiment
from lljax.tasks.problem import PolicyProblem

SHARE = 0.05  # of the labels that are flipped, and of the examples that are left out
EACH = 50  # desired examples with scores of their own
BOOTSTRAP = 2000
MEASURES: tuple[Measure, ...] = ("auc", "final")
PUBLIC = """\
Public figures; models, data and the subsets that are left out are others:
  MAGIC, LDS on GPT-2's fine-tuning 0.983 +- 0.005; EK-FAC 0.47, SOURCE 0.39, TrackStar 0.18
  (arXiv:2504.16430)
  TRAK, planted wrong labels: 74 of 100 among the first 100 inspected"""


class Run(NamedTuple):
    """One training run: weights v [N] of its examples -> (AUC, info)."""

    of_weights: Callable[[jax.Array], Any]
    inputs: lljax.StepInputs
    params: Any


class Digits(NamedTuple):
    problem: PolicyProblem
    batch_size: int
    num_steps: int

    def run(self, key: jax.Array, desired: Any) -> Run:
        """A run with an initialisation and an order of its own."""
        problem = self.problem
        init, order = jax.random.split(key)
        index = draw_epochs(order, self.num_steps, self.batch_size, problem.num_train)
        params = problem.params if problem.init_params is None else problem.init_params(init)
        weights = jnp.full(index.shape, 1 / self.batch_size)
        loss_auc = lljax.build_loss_auc(problem.loss_fn, problem.optimizer)

        def of_weights(v):
            inputs = lljax.StepInputs(weights * v[index], index)
            return loss_auc(inputs, params, problem.train, desired)

        return Run(of_weights, lljax.StepInputs(weights, index), params)


def draw_epochs(key: jax.Array, num_steps: int, batch_size: int, count: int) -> jax.Array:
    """Batches [T, B] that go through all examples before any comes again."""
    epochs = -(-num_steps * batch_size // count)
    orders = [jax.random.permutation(k, count) for k in jax.random.split(key, epochs)]
    return jnp.concatenate(orders)[: num_steps * batch_size].reshape(num_steps, batch_size)


def digits(seed: int, num_steps: int = 100, flipped: float = SHARE) -> Digits:
    """The problem of configs/noisy_labels.py with few wrong labels."""
    experiment = load_experiment("noisy_labels")
    config = dataclasses.replace(
        experiment.config,
        seed=seed,
        inner=dataclasses.replace(experiment.config.inner, num_steps=num_steps),
        data=dataclasses.replace(experiment.config.data, flipped=flipped),
    )
    problem = build_problem(experiment._replace(config=config))
    return Digits(problem, config.inner.batch_size, num_steps)


def both_scores(digits: Digits, desired: Any, keys: jax.Array) -> dict[str, np.ndarray]:
    """The scores [R, N] by the AUC and by the final loss, of every run."""
    ones = jnp.ones(digits.problem.num_train)

    def one(key):
        def measures(v):
            auc, info = digits.run(key, desired).of_weights(v)
            return jnp.stack([auc, info.desired_losses[-1]])

        _, pull = jax.vjp(measures, ones)
        return -jax.vmap(lambda c: pull(c)[0])(jnp.eye(2))

    auc, final = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(keys)).swapaxes(0, 1)
    return {"auc": auc, "final": final}


def training_losses(digits: Digits, keys: jax.Array) -> np.ndarray:
    """[N], minus the training loss at the end, the mean over runs: what needs no meta-gradient."""

    def one(key):
        run = digits.run(key, digits.problem.desired)
        _, info = run.of_weights(jnp.ones(digits.problem.num_train))
        return digits.problem.loss_fn(info.params, digits.problem.train)

    return -np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys).mean(axis=0))(keys))


def self_influence(digits: Digits, key: jax.Array, of: Measure) -> np.ndarray:
    """[N], minus how much the weight of an example lowers its own loss: no clean data needed."""
    problem = digits.problem
    segments = lljax.build_segments(problem.loss_fn, problem.optimizer)

    def all_pairs(key):
        run = digits.run(key, problem.desired)
        pairs = lljax.attribution_of_each(
            segments, run.inputs, run.params, problem.train, problem.train, of=of, batch_size=16
        )
        return jnp.diagonal(pairs)

    return -np.asarray(jax.jit(all_pairs)(key))


def consistency(digits: Digits, keys: jax.Array, of: Measure) -> np.ndarray:
    """[N], the mean score over single desired examples and runs, in their standard deviations."""
    problem = digits.problem
    segments = lljax.build_segments(problem.loss_fn, problem.optimizer)

    def each(key):
        run = digits.run(key, problem.desired)
        data = run.params, problem.train, problem.desired
        return lljax.attribution_of_each(segments, run.inputs, *data, of=of, batch_size=16)

    scores = np.asarray(jax.jit(lambda keys: jax.lax.map(each, keys))(keys))
    scores = scores.reshape(-1, problem.num_train)
    return scores.mean(axis=0) / (scores.std(axis=0) + 1e-12)


def recall(scores: np.ndarray, planted: np.ndarray) -> float:
    """The share of the planted examples among as many of the lowest scores."""
    lowest = np.argsort(scores, kind="stable")[: planted.sum()]
    return float(planted[lowest].mean())


def measure_recall(seeds: int) -> dict[str, list[float]]:
    """By the way of scoring, the recall over seeds."""
    found: dict[str, list[float]] = {}

    def add(name: str, scores: np.ndarray, planted: np.ndarray) -> None:
        found.setdefault(name, []).append(recall(scores, planted))

    for seed in range(seeds):
        for num_steps in (100, 400):
            of = digits(seed, num_steps)
            problem, train = of.problem, of.problem.train
            planted = np.asarray(problem.perturbed)
            keys = jax.random.split(jax.random.key(seed), 16)
            more = jax.tree.map(
                lambda *two: jnp.concatenate(two), problem.desired, problem.validation
            )
            for name, scores in both_scores(of, problem.desired, keys).items():
                for runs in (1, 4, 16):
                    add(f"T={num_steps} {name}, {runs} runs", scores[:runs].mean(axis=0), planted)
            for label, desired in (("twice the desired data", more), ("training set", train)):
                for name, scores in both_scores(of, desired, keys[:4]).items():
                    label_of = f"T={num_steps} {name}, 4 runs, for {label}"
                    add(label_of, scores.mean(axis=0), planted)
            add(f"T={num_steps} training loss, 4 runs", training_losses(of, keys[:4]), planted)
            for name in MEASURES if num_steps == 100 else ():
                add(
                    f"T={num_steps} {name}, 4 runs, mean / deviation",
                    consistency(of, keys[:4], name),
                    planted,
                )
                add(
                    f"T={num_steps} self-influence, {name}, 1 run",
                    self_influence(of, keys[0], name),
                    planted,
                )
        print(f"seed {seed}: {planted.sum()} planted of {len(planted)}", flush=True)
    return found


def lds(scores: np.ndarray, left_out: np.ndarray, actual: np.ndarray) -> dict[str, float]:
    """The LDS of scores [M, N] with actual measures [S, M] of S subsets, a mean over M, and its
    95 % interval by resampling the subsets."""
    predicted = left_out @ scores.T.astype(np.float64)

    def mean(rows):
        pairs = zip(predicted[rows].T, actual[rows].T, strict=True)
        # Subsets that are drawn twice have one rank.
        return float(np.mean([np.corrcoef(*map(rankdata, pair))[0, 1] for pair in pairs]))

    rng, count = np.random.default_rng(0), len(actual)
    times = BOOTSTRAP if scores.shape[0] == 1 else BOOTSTRAP // 10
    resampled = [mean(rng.integers(0, count, count)) for _ in range(times)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"lds": mean(np.arange(count)), "low": float(low), "high": float(high)}


class Case(NamedTuple):
    """A training run for the LDS."""

    loss_fn: Callable
    optimizer: optax.GradientTransformation
    params: Any
    train: Any
    desired: Any
    inputs: lljax.StepInputs
    microbatch_size: int | None = None


def _digits_case() -> Case:
    of = digits(0)
    problem = of.problem
    run = of.run(jax.random.key(0), problem.desired)
    data = run.params, problem.train, problem.desired
    return Case(problem.loss_fn, problem.optimizer, *data, run.inputs)


def _whole_batch(make: Callable) -> Case:
    training = make(0)
    count = jax.tree.leaves(training.train)[0].shape[0]
    policy = lljax.uniform_policy(training.num_steps, count)
    optimizer = optax.adamw(training.learning_rate, eps_root=1e-6)
    data = training.params, training.train, training.desired
    size = training.microbatch_size
    return Case(training.loss_fn, optimizer, *data, lljax.StepInputs(policy), size)


def _fewer_sequences(seed: int) -> Training:
    """So that retraining takes seconds."""
    training = language(seed)
    train, desired = (
        jax.tree.map(lambda leaf, size=size: leaf[:size], batch)
        for batch, size in ((training.train, 192), (training.desired, 96))
    )
    return training._replace(train=train, desired=desired, microbatch_size=None)


CASES: dict[str, Callable[[], Case]] = {
    "digits, batches of 50": _digits_case,
    "rare words": lambda: _whole_batch(rare_words),
    "small Transformer": lambda: _whole_batch(_fewer_sequences),
}


def measure_lds(case: Case, num_subsets: int) -> dict[str, Any]:
    """The LDS by the AUC and by the final loss, of the desired set and of single examples."""
    count = jax.tree.leaves(case.train)[0].shape[0]
    size = case.microbatch_size
    loss_auc = lljax.build_loss_auc(case.loss_fn, case.optimizer, microbatch_size=size)
    segments = lljax.build_segments(case.loss_fn, case.optimizer, microbatch_size=size)
    few = jax.tree.map(lambda leaf: leaf[:EACH], case.desired)
    run = case.inputs, case.params, case.train
    rng = np.random.default_rng(1)
    left_out = np.zeros((num_subsets, count), bool)
    for row in left_out:
        row[rng.choice(count, round(SHARE * count), replace=False)] = True

    def retrain(kept):
        auc, info = loss_auc(scaled(case.inputs, kept), case.params, case.train, case.desired)
        return jnp.stack([auc, info.desired_losses[-1]]), case.loss_fn(info.params, few)

    kept = jnp.asarray(~left_out, jnp.float32)
    wholes, ends = jax.jit(lambda sets: jax.lax.map(retrain, sets, batch_size=4))(kept)
    wholes, ends = np.asarray(wholes, np.float64), np.asarray(ends, np.float64)
    found: dict[str, Any] = {}
    for place, of in enumerate(MEASURES):
        score = functools.partial(lljax.attribution_scores, loss_auc, of=of)
        scores, seconds = timed(score, *run, case.desired)
        found[f"{of}, all"] = lds(scores[None], left_out, wholes[:, place, None])
        found[f"{of}, all"]["seconds"] = seconds
    each = functools.partial(lljax.attribution_of_each, segments, of="final")
    scores, seconds = timed(each, *run, few)
    found["final, single"] = lds(scores, left_out, ends) | {"seconds": seconds}
    return found


def timed(function: Callable, *arguments: Any) -> tuple[np.ndarray, float]:
    """What a function returns, and the seconds that it takes once it is compiled."""
    program = jax.jit(function).lower(*arguments).compile()
    started = time.monotonic()
    found = np.asarray(program(*arguments))
    return found, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="recall,lds")
    parser.add_argument("--cases", default=";".join(CASES), help="of the LDS, divided by ;")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--subsets", type=int, default=60)
    Output.add_option(parser)
    arguments = parser.parse_args()
    output = Output("attribution", arguments.out and Path(arguments.out))
    parts = arguments.only.split(",")
    if "recall" in parts:
        rows = measure_recall(arguments.seeds)
        print("recall of planted labels in the lowest 5 %: min, median, max over seeds")
        for name, values in rows.items():
            low, middle, high = np.quantile(values, [0, 0.5, 1])
            print(f"  {name:<48} {low:.2f} {middle:.2f} {high:.2f}", flush=True)
        output.add("recall", {"rows": rows})
    for name in arguments.cases.split(";") if "lds" in parts else ():
        found = measure_lds(CASES[name](), arguments.subsets)
        for of, value in found.items():
            interval = f"[{value['low']:.3f}, {value['high']:.3f}]"
            seconds = f"scores in {value['seconds']:.1f} s"
            print(f"  {name:<22} {of:<13} LDS {value['lds']:.3f} {interval} {seconds}", flush=True)
        output.add(name, found | {"subsets": arguments.subsets})
    print(PUBLIC)


if __name__ == "__main__":
    main()
