"""From a config to what the core works on: a loss, an optimiser, parameters and four data sets."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lljax
from lljax.checks import num_examples
from lljax.data.perturbation import perturb
from lljax.data.remote import TextError
from lljax.data.sequences import load_sequences, split_sequences
from lljax.data.teacher_student import LabelledInputs, make_teacher_student
from lljax.experiment.config import (
    ExperimentConfig,
    InnerConfig,
    OuterConfig,
    PerceptronConfig,
    TransformerConfig,
)
from lljax.experiment.errors import UserError
from lljax.models.transformer import TokenSequences, Transformer, init_params, sequence_loss
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
    perturbed: np.ndarray | None = None  # [N] bool, the damaged training examples, if any are
    show: Callable[[int], str] | None = None  # the n-th training example in words

    @property
    def num_train(self) -> int:
        return num_examples(self.train, "train")


class _Task(NamedTuple):
    """What is particular to a task."""

    loss_fn: LossFn
    params: Params
    sets: dict[str, Batch]  # train, desired, validation, test
    vocab_size: int
    perturbed: np.ndarray | None = None
    show: Callable[[int], str] | None = None


def build_problem(config: ExperimentConfig) -> Problem:
    """Draws the data and initial parameters of an experiment.

    Raises:
      UserError: the data cannot be had, or hold a number that is not finite.
    """
    match config:
        case PerceptronConfig():
            task = _perceptron(config)
        case TransformerConfig():
            task = _transformer(config)
        case _:
            raise UserError(f"there is no task for a {type(config).__name__}.")
    for name, data in task.sets.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(data):
            if not np.isfinite(leaf).all():
                where = f"{name}{jax.tree_util.keystr(path)}"
                raise UserError(f"the data hold NaN or infinite numbers, in {where}.")
    share = config.outer.train_share

    def weighted_loss_fn(params: Params, batch: Batch) -> jax.Array:
        if isinstance(batch, WeightedExamples):
            return batch.weights * task.loss_fn(params, batch.examples)
        return task.loss_fn(params, batch)

    return Problem(
        loss_fn=weighted_loss_fn,
        optimizer=_inner_optimizer(config.inner),
        params=task.params,
        objective=_with_train_share(task.sets["desired"], task.sets["train"], share),
        vocab_size=task.vocab_size,
        perturbed=task.perturbed,
        show=task.show,
        **task.sets,
    )


def fingerprint(problem: Problem) -> str:
    """A hash of all that a run is made of beside its config: the data and theta_0."""
    digest = hashlib.sha256()
    sets = (problem.train, problem.desired, problem.validation, problem.test, problem.params)
    for leaf in jax.tree.leaves(sets):
        array = np.asarray(leaf)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def perceptron_loss(theta: jax.Array, batch: LabelledInputs) -> jax.Array:
    """The logistic loss of sigma(theta . z), nats: [D], B examples -> [B]."""
    # For labels 0 and 1 one logarithm is enough, where a cross-entropy takes two.
    return jax.nn.softplus((1 - 2 * batch.y) * (batch.z @ theta))


def policy_optimizer(config: OuterConfig) -> lljax.PolicyOptimizer:
    if config.method == "projected_gradient":
        optimizer = lljax.projected_gradient(config.learning_rate)
    else:
        optimizer = lljax.exponentiated_gradient(
            config.learning_rate, momentum=config.momentum, cutoff=config.cutoff
        )
    return lljax.smoothed(optimizer, config.smoothing) if config.smoothing else optimizer


def _perceptron(config: PerceptronConfig) -> _Task:
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
    return _Task(perceptron_loss, jnp.zeros(data.dim), sets._asdict(), vocab_size=2)


def _transformer(config: TransformerConfig) -> _Task:
    data, model_config = config.data, config.model
    try:
        sequences = load_sequences(data)
        split = split_sequences(
            sequences,
            seed=config.seed,
            num_train=data.num_train,
            num_desired=data.num_desired,
            num_validation=data.num_validation,
            num_test=data.num_test,
        )
    except TextError as error:
        raise UserError(str(error)) from error
    sets = {name: sequences.tokens[indices] for name, indices in split._asdict().items()}
    sets["train"], perturbed = perturb(
        sets["train"],
        seed=config.seed,
        vocab_size=data.vocab_size,
        share=data.perturbed_share,
        operations=data.perturbations,
    )
    model = Transformer(
        vocab_size=data.vocab_size,
        context=data.context,
        **dataclasses.asdict(model_config),
    )
    params = init_params(model, jax.random.key(config.seed))
    train = sets["train"]
    return _Task(
        sequence_loss(model),
        params,
        {name: TokenSequences(jnp.asarray(tokens)) for name, tokens in sets.items()},
        data.vocab_size,
        perturbed if perturbed.any() else None,
        lambda n: sequences.tokenizer.decode(train[n].tolist()),
    )


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
