"""Does a meta-gradient predict? The linear datamodeling score over AdamW's eps_root.

    python -m benchmarks.prediction [--problems words,language] [--seeds 3] [--subsets 40]

A share of the training examples is left out, the model is trained again, and the actual change of
the loss AUC is set against the one that the meta-gradient at uniform weights predicts; the score
(LDS) is their rank correlation over many such subsets. A gradient can be exact and score near zero.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lljax
from benchmarks.output import Output
from lljax import trust
from lljax.models.activations import Activation

EPS_ROOTS = (1e-16, 1e-12, 1e-10, 1e-8, 1e-6)
SHARE = 0.05  # of the examples, left out


class Training(NamedTuple):
    """A training run but for its optimiser."""

    loss_fn: Callable
    params: Any
    train: Any
    desired: Any
    num_steps: int
    learning_rate: float
    microbatch_size: int | None = None


class Score(NamedTuple):
    lds: float  # rank correlation of predicted and actual change
    auc: float  # of the training run with all examples


def rare_words(seed: int = 0, num_train: int = 300, num_words: int = 100) -> Training:
    """Documents of four topics with some common and many rare words, two labels in five drawn anew.

    The gradients of rare words are tiny or zero, as are those of a picture's corners.
    """
    rng, topics, width = np.random.default_rng(seed), 4, 16
    frequency = np.concatenate([np.full(8, 0.5), 0.15 / np.arange(1, num_words - 7)])
    taste = rng.normal(size=(topics, num_words)) * np.where(np.arange(num_words) < 8, 1.5, 0.3)

    def draw(count: int, noise: float) -> dict[str, jax.Array]:
        label = rng.integers(0, topics, count)
        chance = 1 / (1 + (1 / frequency - 1) * np.exp(-taste[label]))
        words = (rng.random(chance.shape) < chance) * rng.uniform(0.1, 1, chance.shape)
        label = np.where(rng.random(count) < noise, rng.integers(0, topics, count), label)
        return {"words": jnp.asarray(words, jnp.float32), "label": jnp.asarray(label)}

    weights = {
        "in": rng.normal(size=(num_words, width)) / num_words**0.5,
        "bias": np.zeros(width),
        "out": rng.normal(size=(width, topics)) / width**0.5,
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), weights)
    return Training(_topic_loss, params, draw(num_train, 0.4), draw(300, 0.0), 60, 0.01)


def _topic_loss(params, batch):
    hidden = jnp.tanh(batch["words"] @ params["in"] + params["bias"][None])
    logits = hidden @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def language(seed: int = 0, activation: Activation = "relu") -> Training:
    """The model of configs/transformer_small.py, on the manual that ships with Python."""
    import dataclasses

    from lljax.tasks.build import build_problem
    from lljax.tasks.config_file import load_experiment

    experiment = load_experiment("transformer_small")
    model = dataclasses.replace(experiment.config.model, activation=activation)
    config = dataclasses.replace(experiment.config, seed=seed, model=model)
    problem = build_problem(experiment._replace(config=config))
    data = problem.params, problem.train, problem.desired
    return Training(problem.loss_fn, *data, num_steps=80, learning_rate=3e-3, microbatch_size=128)


PROBLEMS: dict[str, Callable[[int], Training]] = {"words": rare_words, "language": language}


def prediction_score(
    training: Training, optimizer: optax.GradientTransformation, num_subsets: int
) -> Score:
    """The LDS of one training run's meta-gradient; costs that and `num_subsets` retrainings."""
    count = jax.tree.leaves(training.train)[0].shape[0]
    loss_auc = lljax.build_loss_auc(
        training.loss_fn, optimizer, microbatch_size=training.microbatch_size
    )
    policy = lljax.uniform_policy(training.num_steps, count)
    score = functools.partial(
        trust.linear_datamodeling_score,
        loss_auc,
        key=jax.random.key(1),
        num_subsets=num_subsets,
        share=SHARE,
        batch_size=8,
    )
    found = jax.jit(score)(policy, training.params, training.train, training.desired)
    return Score(float(found.lds), float(found.outcome))


def measure(name: str, seeds: int, num_subsets: int) -> Iterator[dict[str, Any]]:
    """A row for each eps_root: the scores over seeds, and the training's AUC."""
    trainings = [PROBLEMS[name](seed) for seed in range(seeds)]
    for eps_root in EPS_ROOTS:
        scores = [
            prediction_score(t, optax.adamw(t.learning_rate, eps_root=eps_root), num_subsets)
            for t in trainings
        ]
        lds, auc = (sorted(values) for values in zip(*scores, strict=True))
        row = {"eps_root": eps_root, "lds": lds, "median_auc": float(np.median(auc))}
        print(
            f"{name:<10} eps_root {eps_root:.0e}  LDS min {lds[0]:.3f} median "
            f"{np.median(lds):.3f} max {lds[-1]:.3f}  AUC {row['median_auc']:.4f}",
            flush=True,
        )
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--subsets", type=int, default=40)
    Output.add_option(parser)
    arguments = parser.parse_args()
    output = Output("prediction", arguments.out and Path(arguments.out))
    for name in arguments.problems.split(","):
        rows = list(measure(name, arguments.seeds, arguments.subsets))
        output.add(name, {"rows": rows, "subsets": arguments.subsets, "share": SHARE})


if __name__ == "__main__":
    main()
