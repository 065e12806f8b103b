"""How far the activation of a model decides what a meta-gradient predicts.

    python -m benchmarks.activations [--only digits,language] [--subsets 100] [--seed 0]

The digits with 40 % wrong labels and the small Transformer of `benchmarks.trust`. Random 5 % of the
examples lose a part of their weight: all of it, as for the datamodeling score, a half, a tenth, a
hundredth. The smaller the part, the better must a derivative foretell what happens, if the run has
one that means something. Metasmoothness is measured at two sizes of the step, too.
"""

import argparse
import functools

import jax
from scipy.stats import spearmanr

from benchmarks import machine
from benchmarks.prediction import SHARE
from benchmarks.trust import LANGUAGE, Cell, Run, run_of
from lljax import datamodels, trust
from lljax.attribution import measure_and_scores
from lljax.models.activations import ACTIVATIONS

PARTS = (1.0, 0.5, 0.1, 0.01)  # of the weight, that is taken away
STEPS = (0.2, 0.02)  # of the metasmoothness
CELLS = Cell(steps=100), Cell(steps=300), LANGUAGE


def correlations(run: Run, seed: int, num_subsets: int) -> list[float]:
    """Rank correlations of foretold and actual changes of the AUC, by the part taken away."""
    inputs, *data = run.given
    count = jax.tree.leaves(data[1])[0].shape[0]
    left_out = datamodels.draw_subsets(jax.random.key(seed + 5), count, num_subsets, SHARE)
    score = functools.partial(measure_and_scores, run.loss_auc, of="auc")
    value, scores = jax.jit(score)(*run.given)

    @jax.jit
    def retrain(left_out, part):
        def auc(absent):
            return run.loss_auc(datamodels.scaled(inputs, 1.0 - part * absent), *data)[0]

        return jax.lax.map(auc, left_out, batch_size=16)

    return [
        float(spearmanr(left_out @ scores, retrain(left_out, part) - value).statistic)
        for part in PARTS
    ]


def smoothness(run: Run) -> list[float]:
    """By the size of the step."""
    count = jax.tree.leaves(run.given[2])[0].shape[0]
    direction = trust.random_direction(jax.random.key(0), count)
    measure = functools.partial(trust.metasmoothness, run.loss_auc, direction=direction)
    found = [jax.jit(functools.partial(measure, step=step))(*run.given) for step in STEPS]
    return [float(of.params) for of in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="digits,language")
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(machine.in_words(machine.describe_machine()))
    heads = [f"-{part:.0%}" for part in PARTS] + [f"smooth, h = {step:g}" for step in STEPS]
    print(f"{'':<28}{'AUC':>8}" + "".join(f"{head:>18}" for head in heads))
    for cell in CELLS:
        for activation in ACTIVATIONS if cell.problem in options.only.split(",") else ():
            run = run_of(cell._replace(activation=activation), options.seed)
            auc = float(jax.jit(run.loss_auc)(*run.given)[0])
            found = [*correlations(run, options.seed, options.subsets), *smoothness(run)]
            name = f"{cell.problem}, T = {cell.steps}, {activation}"
            values = "".join(f"{value:>18.3f}" for value in found)
            print(f"{name:<28}{auc:>8.3f}{values}", flush=True)


if __name__ == "__main__":
    main()
