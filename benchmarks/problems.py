"""What the benchmarks compute meta-gradients of: the paper's two problems, at any size.

Each as in the paper, all examples at every step of plain gradient descent, and in mini-batches
through AdamW, where the loss at the end is what is differentiated: all that the peers for
mini-batches know.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import lljax
from lljax.models.transformer import TokenSequences, Transformer, init_params, sequence_loss
from lljax.tasks.perceptron import PerceptronConfig, make_teacher_student, perceptron_loss
from lljax.tasks.text import TransformerConfig
from lljax.types import Batch, LossFn, Params

LEARNING_RATE = 0.1


class AdamWRates(NamedTuple):
    """What AdamW is built with, in every framework."""

    learning_rate: float
    eps_root: float = 1e-6
    weight_decay: float = 1e-4
    eps: float = 1e-8


class Problem(NamedTuple):
    """A training run to be differentiated."""

    name: str
    loss_fn: LossFn
    policy: jax.Array  # [T, B], uniform; B = N where a step takes all examples
    params: Params
    train: Batch
    desired: Batch
    forward_flops: float  # of one example: twice the multiply-adds of its matrix products
    train_passes: int  # the forward passes that a meta-gradient needs of an example a step
    desired_passes: int
    tokens: int = 1  # an example has, where it is text
    model: Transformer | None = None
    optimizer: optax.GradientTransformation = optax.sgd(LEARNING_RATE)
    batch_index: jax.Array | None = None  # [T, B], the examples of each step
    rates: AdamWRates | None = None  # those of `optimizer`, if it is AdamW
    only_end: bool = False  # the loss at the end is what counts, not the area under all of them

    def in_float64(self) -> "Problem":
        """The same numbers, wider; in a process with jax_enable_x64."""

        def widen(leaf):
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(jnp.float64) if floating else leaf

        policy, params, train, desired = jax.tree.map(widen, self.arguments[:4])
        return self._replace(policy=policy, params=params, train=train, desired=desired)

    @property
    def arguments(self) -> tuple:
        """The index is there for mini-batches only."""
        arguments = self.policy, self.params, self.train, self.desired
        return arguments if self.batch_index is None else (*arguments, self.batch_index)

    @property
    def num_steps(self) -> int:
        return self.policy.shape[0]

    @property
    def eval_every(self) -> int:
        return self.num_steps if self.only_end else 1

    @property
    def batch_size(self) -> int:
        return self.policy.shape[1]

    @property
    def num_train(self) -> int:
        return jax.tree.leaves(self.train)[0].shape[0]

    @property
    def num_desired(self) -> int:
        return jax.tree.leaves(self.desired)[0].shape[0]

    def update(self, gradient: Params, state: tuple[Params, Any]) -> tuple[Params, Any]:
        """A step of the optimiser, (parameters, its state) -> the next ones, as its users write."""
        params, opt_state = state
        updates, opt_state = self.optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @property
    def flops(self) -> float:
        """Of one meta-gradient that keeps no activations: 3 + 8 forward passes of each example of
        a step, 1 + 3 of each desired one where its loss is measured. Where nothing is
        differentiated by the inputs of the only product, it takes 2 + 3 and 1 + 2. What a way
        repeats does not count, nor what an optimiser does."""
        of_train = self.train_passes * self.batch_size * self.num_steps
        of_desired = self.desired_passes * self.num_desired * (self.num_steps // self.eval_every)
        return (of_train + of_desired) * self.forward_flops


def take(train: Batch, index: jax.Array | None) -> Batch:
    """The examples of these numbers; all of them without."""
    return train if index is None else jax.tree.map(lambda leaf: leaf[index], train)


def perceptron(
    num_steps: int = 2000,
    num_train: int = 4096,
    num_desired: int = 512,
    dim: int = 128,
    seed: int = 0,
) -> Problem:
    """The paper's linear classification (§4.1), with noisy training labels."""
    data = make_teacher_student(
        jax.random.key(seed),
        dim=dim,
        num_train=num_train,
        num_desired=num_desired,
        train_label_noise=0.3,
    )
    policy = lljax.uniform_policy(num_steps, num_train)
    params = jnp.zeros(dim)
    return Problem(
        "perceptron",
        perceptron_loss,
        policy,
        params,
        data.train,
        data.desired,
        forward_flops=2.0 * dim,
        train_passes=5,
        desired_passes=3,
    )


def transformer(
    num_steps: int = 8,
    num_train: int = 64,
    num_desired: int = 16,
    width: int = 128,
    num_layers: int = 2,
    num_heads: int = 8,
    context: int = 64,
    vocab_size: int = 5000,
) -> Problem:
    """The paper's language model (§4.1), initialised as the public code does, on random tokens."""
    model = Transformer(
        vocab_size,
        context,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        attention_scale="width",
        initialization="torch",
    )
    params = init_params(model, jax.random.key(0))
    shape = (num_train + num_desired, context + 1)
    tokens = jax.random.randint(jax.random.key(1), shape, 2, vocab_size)
    train, desired = TokenSequences(tokens[:num_train]), TokenSequences(tokens[num_train:])
    policy = lljax.uniform_policy(num_steps, num_train)
    a_token = num_layers * (12 * width**2 + 2 * context * width) + width * vocab_size
    return Problem(
        "transformer",
        sequence_loss(model),
        policy,
        params,
        train,
        desired,
        forward_flops=2.0 * a_token * context,
        train_passes=11,
        desired_passes=4,
        tokens=context,
        model=model,
    )


def _in_minibatches(whole: Problem, num_steps: int, batch_size: int, rates: AdamWRates) -> Problem:
    """The same data and model, batches in a random order without repetition within an epoch."""
    num_train = whole.num_train
    needed = -(-num_steps * batch_size // num_train)
    epochs = [jax.random.permutation(jax.random.key(2 + e), num_train) for e in range(needed)]
    index = jnp.concatenate(epochs)[: num_steps * batch_size].reshape(num_steps, batch_size)
    return whole._replace(
        name=f"minibatch_{whole.name}",
        policy=lljax.uniform_policy(num_steps, batch_size),
        optimizer=optax.adamw(**rates._asdict()),
        rates=rates,
        batch_index=index,
        only_end=True,
    )


PERCEPTRON_RATES = AdamWRates(0.01)
TRANSFORMER_RATES = AdamWRates(1e-3)


def minibatch_perceptron(
    num_steps: int = 500, num_train: int = 16_384, batch_size: int = 1024, **sizes: int
) -> Problem:
    """Linear classification in mini-batches through AdamW."""
    whole = perceptron(1, num_train, **sizes)
    return _in_minibatches(whole, num_steps, batch_size, PERCEPTRON_RATES)


def minibatch_transformer(
    num_steps: int = 32,
    num_train: int = 16_384,
    num_desired: int = 32,
    batch_size: int = 32,
    **sizes: int,
) -> Problem:
    """The paper's language model and number of sequences, in mini-batches through AdamW."""
    whole = transformer(1, num_train, num_desired, **sizes)
    return _in_minibatches(whole, num_steps, batch_size, TRANSFORMER_RATES)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "perceptron": perceptron,
    "transformer": transformer,
    "minibatch_perceptron": minibatch_perceptron,
    "minibatch_transformer": minibatch_transformer,
}


def problem_sizes(config: PerceptronConfig | TransformerConfig) -> dict[str, Any]:
    """The sizes of a config's problem as the arguments of a benchmark's."""
    sizes: dict[str, Any] = {
        "num_train": config.data.num_train,
        "num_desired": config.data.num_desired,
    }
    if isinstance(config, PerceptronConfig):
        return sizes | {"dim": config.data.dim}
    data, model = config.data, config.model
    return sizes | {
        "width": model.width,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "context": data.context,
        "vocab_size": data.vocab_size,
    }
