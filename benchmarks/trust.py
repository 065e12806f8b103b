"""When does a meta-gradient predict? Metasmoothness and datamodeling scores over a grid of runs.

    python -m benchmarks.trust [--only digits,language] [--subsets 100] [--seed 0]

A cell is one training run: an optimiser with its eps_root, rate, batch, length, width, number
format and activation. Of each: the datamodeling score (LDS) of AUC and final loss, metasmoothness,
and whether lljax warns of the optimiser. Results go to benchmarks/TRUST.json, cell by cell, with
the machine that measured it; `--figure` draws benchmarks/figures/trust.png of what is there.
"""

import argparse
import functools
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lljax
from benchmarks import machine, output
from benchmarks.prediction import SHARE, language
from lljax import datamodels, optimizer_check, trust
from lljax.attribution import Measure, measure_and_scores, measured
from lljax.models.activations import Activation
from lljax.tasks.arrays import ArraysModel
from lljax.tasks.config import InnerConfig, inner_optimizer
from lljax.types import Batch, LossAuc, LossFn, Params

RESULTS = Path(__file__).with_name("TRUST.json")
FIGURE = Path(__file__).with_name("figures") / "trust.png"
STEP = 0.2
MEASURES: tuple[Measure, ...] = ("auc", "final")
ACTIVATIONS_TRIED: tuple[Activation, ...] = ("gelu", "relu")
PREDICTS, FAILS = (
    0.95,
    0.9,
)  # LDS: above the first a gradient predicts, below the second it does not


class Cell(NamedTuple):
    """A training run; what is not said of it is as in configs/noisy_labels.py."""

    problem: str = "digits"
    optimizer: Literal["sgd", "momentum", "adamw"] = "adamw"
    rate: float = 0.005
    eps_root: float = 1e-6
    schedule: Literal["constant", "warmup_cosine"] = "warmup_cosine"
    batch: int = 50
    steps: int = 100
    width: int = 64
    clip: float = 0.0
    precision: str = "float32"
    activation: Activation = "gelu"

    @property
    def name(self) -> str:
        """What differs from the default cell."""
        default = Cell(problem=self.problem)
        parts = [
            f"{field}={value}"
            for field, value, usual in zip(self._fields, self, default, strict=True)
            if value != usual and field != "problem"
        ]
        return f"{self.problem}: {', '.join(parts) or 'the default'}"


LANGUAGE = Cell("language", rate=3e-3, schedule="constant", batch=0, steps=40, width=32)


def grid() -> Iterator[Cell]:
    """Digits with either activation; the Transformer with the paper's relu, at times with gelu."""
    for activation in ACTIVATIONS_TRIED:
        yield from (cell._replace(activation=activation) for cell in _of_digits())
    yield from (cell._replace(activation="relu") for cell in _of_language())
    yield LANGUAGE
    yield LANGUAGE._replace(eps_root=1e-16)
    yield LANGUAGE._replace(rate=0.03)
    yield LANGUAGE._replace(optimizer="sgd", rate=3.0)


def _of_digits() -> Iterator[Cell]:
    """One thing changed at a time, and where training is rough two."""
    yield Cell()
    for eps_root in (1e-16, 1e-12, 1e-10, 1e-8, 1e-4):
        yield Cell(eps_root=eps_root)
    for rate in (0.001, 0.01, 0.02, 0.05):
        yield Cell(rate=rate)
        yield Cell(rate=rate, eps_root=1e-10)
    yield Cell(schedule="constant")
    yield Cell(rate=0.02, schedule="constant")
    yield Cell(rate=0.02, clip=0.5)
    for batch in (10, 200):
        yield Cell(batch=batch)
    for steps in (30, 300):
        yield Cell(steps=steps)
    yield Cell(steps=300, rate=0.02)
    for width in (16, 256):
        yield Cell(width=width)
    for rate in (0.1, 0.5, 2.0):
        yield Cell(optimizer="sgd", rate=rate)
    yield Cell(optimizer="momentum", rate=0.05)
    yield Cell(precision="bfloat16")
    yield Cell(optimizer="sgd", rate=0.1, precision="bfloat16")


def _of_language() -> Iterator[Cell]:
    for eps_root in (1e-6, 1e-16, 1e-10, 1e-8):
        yield LANGUAGE._replace(eps_root=eps_root)
    for rate in (0.01, 0.03):
        yield LANGUAGE._replace(rate=rate)
    for rate in (0.3, 1.0, 3.0):
        yield LANGUAGE._replace(optimizer="sgd", rate=rate)
    yield LANGUAGE._replace(precision="bfloat16")


def optimizer_of(cell: Cell) -> optax.GradientTransformation:
    inner = InnerConfig(
        num_steps=cell.steps,
        learning_rate=cell.rate,
        optimizer=cell.optimizer,
        schedule=cell.schedule,
        clip_norm=cell.clip or None,
    )
    return inner_optimizer(inner, cell.eps_root)


class Training(NamedTuple):
    loss_fn: LossFn
    desired_loss_fn: LossFn
    params: Params
    train: Batch
    desired: Batch


def training_of(cell: Cell, seed: int) -> Training:
    if cell.problem == "digits":
        found = _digits(ArraysModel(width=cell.width, activation=cell.activation), seed)
    else:
        of = language(seed, cell.activation)
        train, desired = (jax.tree.map(lambda x: x[:256], b) for b in (of.train, of.desired))
        found = Training(of.loss_fn, of.loss_fn, of.params, train, desired)
    if cell.precision == "float32":
        return found

    def in_bfloat16(loss_fn: LossFn) -> LossFn:
        """Parameters and features rounded as a mixed-precision run has them; losses in float32."""

        def rounded(tree: Any) -> Any:
            def cast(leaf: Any) -> Any:
                is_floating = jnp.issubdtype(leaf.dtype, jnp.floating)
                return leaf.astype(jnp.bfloat16) if is_floating else leaf

            return jax.tree.map(cast, tree)

        return lambda params, batch: loss_fn(rounded(params), rounded(batch)).astype(jnp.float32)

    return found._replace(
        loss_fn=in_bfloat16(found.loss_fn), desired_loss_fn=in_bfloat16(found.desired_loss_fn)
    )


def _digits(model: ArraysModel, seed: int) -> Training:
    import dataclasses

    from lljax.tasks.arrays import ArraysConfig
    from lljax.tasks.build import build_problem
    from lljax.tasks.config_file import TASKS
    from lljax.tasks.problem import Experiment

    task = next(task for task in TASKS if task.name == "arrays")
    config = dataclasses.replace(ArraysConfig(), seed=seed, model=model)
    problem = build_problem(Experiment(task, config))
    return Training(
        problem.loss_fn, problem.desired_loss_fn, problem.params, problem.train, problem.desired
    )


class Run(NamedTuple):
    """A cell's training run."""

    loss_auc: LossAuc
    given: tuple[Any, ...]  # what it takes: step inputs, parameters, data
    optimizer: optax.GradientTransformation


def run_of(cell: Cell, seed: int) -> Run:
    training = training_of(cell, seed)
    optimizer = optimizer_of(cell)
    count = jax.tree.leaves(training.train)[0].shape[0]
    loss_auc = lljax.build_loss_auc(
        training.loss_fn,
        optimizer,
        desired_loss_fn=training.desired_loss_fn,
        check_loss=False,
        check_optimizer=False,
    )
    inputs = lljax.StepInputs(jnp.full((cell.steps, count), 1 / count))
    if cell.batch:
        shape = cell.steps, cell.batch
        index = jax.random.randint(jax.random.key(seed), shape, 0, count)
        inputs = lljax.StepInputs(jnp.full(shape, 1 / cell.batch), index)
    return Run(loss_auc, (inputs, training.params, training.train, training.desired), optimizer)


def smoothness(run: Run) -> dict[str, Any]:
    """Along three random directions; what `lljax run` measures along one."""
    count = jax.tree.leaves(run.given[2])[0].shape[0]
    smooth = jax.jit(functools.partial(trust.metasmoothness, run.loss_auc, step=STEP))
    _, scores = jax.jit(functools.partial(measure_and_scores, run.loss_auc, of="auc"))(*run.given)
    directions = [trust.random_direction(jax.random.key(s), count) for s in (0, 1, 2)]
    found = [smooth(*run.given, direction=direction) for direction in directions]
    predicted = [-STEP * direction @ scores for direction in directions]
    return {
        "smoothness": [float(of.params) for of in found],
        "smoothness_of_losses": [float(of.losses) for of in found],
        "overshoot": [
            float(trust.overshoot(change, of.aucs))
            for change, of in zip(predicted, found, strict=True)
        ],
    }


def measure(cell: Cell, seed: int, num_subsets: int) -> dict[str, Any]:
    """What a cell's gradient predicts, and how smooth its training is."""
    run = run_of(cell, seed)
    row = smoothness(run)
    for of, found in scores_of_both(run.loss_auc, run.given, seed, num_subsets).items():
        row[f"lds_{of}"] = float(found.lds)
        row[f"interval_{of}"] = [float(end) for end in found.interval]
        row[of] = float(found.outcome)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer_check.check_optimizer(run.optimizer, run.given[1])
    return row | {"warned": bool(caught)}


def scores_of_both(
    loss_auc: LossAuc, given: tuple[Any, ...], seed: int, num_subsets: int
) -> dict[Measure, trust.DatamodelingScore]:
    """As `trust.linear_datamodeling_score` of both measures, whose retrainings are the same."""
    inputs, *data = given
    count = jax.tree.leaves(data[1])[0].shape[0]
    of_subsets, of_bootstrap = jax.random.split(jax.random.key(seed + 5))
    left_out = datamodels.draw_subsets(of_subsets, count, num_subsets, SHARE)

    @jax.jit
    def retrain(left_out):
        def run(absent):
            found = loss_auc(datamodels.scaled(inputs, 1.0 - absent), *data)
            return {of: measured(*found, of) for of in MEASURES}

        return jax.lax.map(run, left_out, batch_size=16)

    outcomes, found = retrain(left_out), {}
    for of in MEASURES:
        score = functools.partial(measure_and_scores, loss_auc, of=of)
        value, scores = jax.jit(score)(*given)
        changes = left_out @ scores, outcomes[of] - value
        found[of] = datamodels.score_predictions(*changes, value, of_bootstrap)
    return found


def table(rows: dict[str, Any]) -> str:
    """The cells by their score, with what the rule says of each."""
    width = max(map(len, rows)) + 1
    heads = f"{'smooth':>8}{'over':>9}{'warned':>8}{'LDS AUC':>9}{'final':>7}{'AUC':>8}  rule"
    lines = [" " * width + heads]
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["lds_auc"]):
        smooth = statistics.median(row["smoothness"])
        overshoot = statistics.median(row["overshoot"])
        steady = smooth >= trust.SMOOTH and overshoot <= trust.OVERSHOOT
        trusts = steady and not row["warned"]
        holds = row["lds_auc"] > PREDICTS if trusts else row["lds_auc"] < FAILS
        between = FAILS <= row["lds_auc"] <= PREDICTS
        rule = "between" if between else "holds" if holds else "FAILS"
        warned = "yes" if row["warned"] else ""
        lines.append(
            f"{name:<{width}}{smooth:>8.2f}{overshoot:>9.3g}{warned:>8}{row['lds_auc']:>9.3f}"
            f"{row['lds_final']:>7.3f}{row['auc']:>8.3f}  {'trust' if trusts else 'not'}: {rule}"
        )
    return "\n".join(lines)


def draw(rows: dict[str, Any]) -> None:
    """Score against metasmoothness, a point a cell; those of ReLU are hollow."""
    figure, ((axis,),) = output.subplots(1, 1, 5.2, 3.6)

    def kind(row: dict[str, Any]) -> str:
        overshoots = statistics.median(row["overshoot"]) > trust.OVERSHOOT
        return "overshoots" if overshoots else "warned" if row["warned"] else "fine"

    for name, colour, label in (
        ("fine", "#0072b2", "optimiser fine"),
        ("warned", "#d55e00", "optimiser warned of"),
        ("overshoots", "#000000", "gradient overshoots"),
    ):
        for activation in ACTIVATIONS_TRIED:
            is_relu = activation == "relu"
            of = [r for n, r in rows.items() if kind(r) == name and n.endswith("relu") == is_relu]
            x = [statistics.median(row["smoothness"]) for row in of]
            y = [row["lds_auc"] for row in of]
            face = "none" if is_relu else colour
            axis.plot(x, y, "o", color=colour, mfc=face, ms=4.5, label=None if is_relu else label)
    axis.plot([], [], "o", color="#888", mfc="none", ms=4.5, label="hollow: ReLU; full: GELU")
    axis.axvline(trust.SMOOTH, color="#888", lw=0.8, ls="--")
    axis.axhspan(FAILS, PREDICTS, color="#888", alpha=0.15, lw=0)
    axis.set(xlabel="metasmoothness of the trained parameters", ylabel="LDS of the loss AUC")
    axis.legend(frameon=False)
    figure.savefig(FIGURE, dpi=output.DPI)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="digits,language")
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure cells that are there too")
    parser.add_argument("--figure", action="store_true")
    options = parser.parse_args()
    rows = output.read(RESULTS)
    for cell in grid():
        if cell.problem not in options.only.split(",") or (cell.name in rows and not options.again):
            continue
        started = time.monotonic()
        row = measure(cell, options.seed, options.subsets)
        where = machine.in_words(machine.describe_machine())
        more = {"subsets": options.subsets, "took": time.monotonic() - started, "machine": where}
        rows = output.read(RESULTS)  # another process may have added some
        rows[cell.name] = row | more
        output.write(RESULTS, rows)
        print(table({cell.name: rows[cell.name]}).splitlines()[1], flush=True)
    if options.figure:
        draw(rows)
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
