"""From a config to what the core works on: a loss, an optimiser, parameters and four data sets."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lljax
from lljax.checks import num_examples
from lljax.data.teacher_student import LabelledInputs, make_teacher_student
from lljax.experiment.config import (
    ExperimentConfig,
    InnerConfig,
    OuterConfig,
    PerceptronConfig,
)
from lljax.experiment.errors import UserError
from lljax.memory import MemoryStrategy
from lljax.types import Batch, LossFn, Params


class WeightedExamples(NamedTuple):
    """Examples whose losses count `weights` times in a mean."""

    examples: Batch
    weights: jax.Array  # [B], mean 1


@dataclasses.dataclass(frozen=True)
class Problem:
    """One experiment's mathematics.

    `objective` is the batch whose mean loss the policy is optimised for: the desired examples
    and, with a train share s > 0, the training examples too, weighted to (1 - s) L_desired +
    s L_train.
    """

    loss_fn: LossFn  # accepts plain batches and WeightedExamples
    optimizer: optax.GradientTransformation
    params: Params
    train: Batch
    objective: Batch
    desired: Batch
    validation: Batch
    test: Batch
    vocab_size: int  # |V| of the compression ratio: 2 for binary labels

    @property
    def num_train(self) -> int:
        return num_examples(self.train, "train")


def build_problem(config: ExperimentConfig) -> Problem:
    """Draws the data and initial parameters of an experiment.

    Raises:
      UserError: a data set holds a number that is not finite.
    """
    match config:
        case PerceptronConfig():
            loss_fn, params, sets, vocab_size = _perceptron(config)
        case _:
            raise UserError(f"there is no task for a {type(config).__name__}.")
    for name, data in sets.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(data):
            if not np.isfinite(leaf).all():
                where = f"{name}{jax.tree_util.keystr(path)}"
                raise UserError(f"the data hold NaN or infinite numbers, in {where}.")
    objective = _with_train_share(sets["desired"], sets["train"], config.outer.train_share)

    def weighted_loss_fn(params: Params, batch: Batch) -> jax.Array:
        if isinstance(batch, WeightedExamples):
            return batch.weights * loss_fn(params, batch.examples)
        return loss_fn(params, batch)

    return Problem(
        loss_fn=weighted_loss_fn,
        optimizer=_inner_optimizer(config.inner),
        params=params,
        objective=objective,
        vocab_size=vocab_size,
        **sets,
    )


def perceptron_loss(theta: jax.Array, batch: LabelledInputs) -> jax.Array:
    """The logistic loss of sigma(theta . z), nats: [D], B examples -> [B]."""
    return optax.sigmoid_binary_cross_entropy(batch.z @ theta, batch.y)


def memory_strategy(config: InnerConfig) -> MemoryStrategy:
    if config.memory == "recompute":
        return lljax.RecomputeStates(config.kept_states)
    return lljax.StoreStates()


def policy_optimizer(config: OuterConfig) -> lljax.PolicyOptimizer:
    if config.method == "projected_gradient":
        return lljax.projected_gradient(config.learning_rate)
    return lljax.exponentiated_gradient(config.learning_rate, momentum=config.momentum)


def _perceptron(config: PerceptronConfig):
    data = config.data
    sets = make_teacher_student(
        jax.random.key(config.seed),
        dim=data.dim,
        num_train=data.num_train,
        num_desired=data.num_desired,
        num_validation=data.num_validation,
        num_test=data.num_test,
        train_label_noise=data.label_noise,
    )
    return perceptron_loss, jnp.zeros(data.dim), sets._asdict(), 2


def _inner_optimizer(config: InnerConfig) -> optax.GradientTransformation:
    match config.optimizer:
        case "sgd":
            optimizer = optax.sgd(config.learning_rate)
        case "momentum":
            optimizer = optax.sgd(config.learning_rate, momentum=0.9)
        case "adamw":
            # Without eps_root one parameter with no gradient makes the meta-gradient NaN.
            optimizer = optax.adamw(config.learning_rate, eps_root=1e-16)
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer


def _with_train_share(desired: Batch, train: Batch, share: float) -> Batch:
    if share == 0:
        return desired
    count_desired = num_examples(desired, "desired")
    count_train = num_examples(train, "train")
    total = count_desired + count_train
    weights = [
        jnp.full(count_desired, (1 - share) * total / count_desired),
        jnp.full(count_train, share * total / count_train),
    ]
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), desired, train)
    return WeightedExamples(both, jnp.concatenate(weights))
