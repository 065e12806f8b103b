"""What a model's activation and embeddings have to do with what a meta-gradient predicts.

    python -m benchmarks.activations [--only digits,language,curate] [--subsets 100] [--seed 0]

Training runs that differ in them alone. Random 5 % of the examples lose a part of their weight: all
of it, as for the datamodeling score, a half, a tenth, a hundredth. The smaller the part, the better
must a derivative foretell what happens, if the run has one that means something. Metasmoothness and
overshoot are measured at two sizes of the step. digits and language: the runs of
`benchmarks.trust`. curate: one run of configs/curate.py on its default text. Rows are kept in
benchmarks/ACTIVATIONS.json.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from scipy.stats import spearmanr

import lljax
from benchmarks import machine, output
from benchmarks.prediction import SHARE
from benchmarks.trust import LANGUAGE, Cell, Run, run_of
from lljax import datamodels, trust
from lljax.attribution import measure_and_scores
from lljax.models.activations import ACTIVATIONS
from lljax.tasks.build import build_problem
from lljax.tasks.config import inner_optimizer
from lljax.tasks.config_file import load_experiment

RESULTS = Path(__file__).with_name("ACTIVATIONS.json")
PARTS = (1.0, 0.5, 0.1, 0.01)  # of the weight, that is taken away
STEPS = (0.2, 0.02)  # of the metasmoothness
VARIANTS = (  # activation, embeddings, rate
    ("relu", "scaled", 0.02),
    ("relu", "torch", 0.02),
    ("gelu", "scaled", 0.02),
    ("gelu", "torch", 0.02),
    ("relu", "scaled", 0.005),
    ("gelu", "scaled", 0.005),
    ("gelu", "torch", 0.005),
)
FEW_DESIRED = 128  # of curate's, so that a retraining takes seconds


def of_cells(seed: int, *cells: Cell) -> Iterator[tuple[str, Run]]:
    for cell in cells:
        for activation in ACTIVATIONS:
            name = f"{cell.problem}, T = {cell.steps}, {activation}"
            yield name, run_of(cell._replace(activation=activation), seed)


def of_curate(seed: int) -> Iterator[tuple[str, Run]]:
    """One drawn run by the variants of its model and rate."""
    experiment = load_experiment("curate")
    config = experiment.config
    for activation, initialization, rate in VARIANTS:
        changed = {"activation": activation, "initialization": initialization}
        model = dataclasses.replace(config.model, **changed)
        problem = build_problem(
            experiment._replace(config=dataclasses.replace(config, model=model))
        )
        inner = dataclasses.replace(config.inner, learning_rate=rate)
        optimizer = inner_optimizer(inner)
        loss_auc = lljax.build_loss_auc(
            problem.loss_fn, optimizer, eval_every=5, check_loss=False, check_optimizer=False
        )
        shape = inner.num_steps, inner.batch_size
        index = jax.random.randint(jax.random.key(seed), shape, 0, problem.num_train)
        inputs = lljax.StepInputs(jnp.full(shape, 1 / shape[1]), index)
        desired = jax.tree.map(lambda leaf: leaf[:FEW_DESIRED], problem.desired)
        given = inputs, problem.params, problem.train, desired
        yield f"curate, {activation}, {initialization}, {rate:g}", Run(loss_auc, given, optimizer)


def measure(run: Run, seed: int, num_subsets: int) -> dict[str, float]:
    inputs, *data = run.given
    count = jax.tree.leaves(data[1])[0].shape[0]
    left_out = datamodels.draw_subsets(jax.random.key(seed + 5), count, num_subsets, SHARE)
    value, scores = jax.jit(functools.partial(measure_and_scores, run.loss_auc, of="auc"))(
        *run.given
    )

    @jax.jit
    def retrain(left_out, part):
        def auc(absent):
            return run.loss_auc(datamodels.scaled(inputs, 1.0 - part * absent), *data)[0]

        return jax.lax.map(auc, left_out, batch_size=4)

    _, info = jax.jit(run.loss_auc)(*run.given)
    found = {"AUC": float(value), "final": float(info.desired_losses[-1])}
    for part in PARTS:
        changes = retrain(left_out, part) - value
        found[f"-{part:.0%}"] = float(spearmanr(left_out @ scores, changes).statistic)
    direction = trust.random_direction(jax.random.key(seed), count)
    smoothness = functools.partial(trust.metasmoothness, run.loss_auc, direction=direction)
    for step in STEPS:
        of = jax.jit(functools.partial(smoothness, step=step))(*run.given)
        found[f"smooth, {step:g}"] = float(of.params)
        found[f"overshoot, {step:g}"] = float(trust.overshoot(-step * direction @ scores, of.aucs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="digits,language,curate")
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    parts = {
        "digits": lambda: of_cells(options.seed, Cell(steps=100), Cell(steps=300)),
        "language": lambda: of_cells(options.seed, LANGUAGE),
        "curate": lambda: of_curate(options.seed),
    }
    for part in options.only.split(","):
        for name, run in parts[part]():
            where, started = machine.in_words(machine.describe_machine()), time.monotonic()
            figures = measure(run, options.seed, options.subsets)
            took = time.monotonic() - started
            about = {"subsets": options.subsets, "took": took, "machine": where}
            output.write(RESULTS, output.read(RESULTS) | {name: {"figures": figures} | about})
            shown = "  ".join(f"{figure} {value:.3g}" for figure, value in figures.items())
            print(f"{name}: {shown}", flush=True)


if __name__ == "__main__":
    main()
