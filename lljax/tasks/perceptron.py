"""The paper's linear classification: Gaussian inputs, labelled by a linear teacher (§4.1)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lljax.field_types import check_fields
from lljax.tasks.config import ExperimentConfig, inner_optimizer, require, require_counts
from lljax.tasks.problem import Problem, Task
from lljax.tasks.size import require_memory

SIZES = ("num_train", "num_desired", "num_validation", "num_test")


@dataclasses.dataclass(frozen=True)
class PerceptronData:
    """Gaussian inputs labelled by a random linear teacher."""

    dim: int = 128
    """D, the input dimension."""
    num_train: int = 4096
    """N, training examples."""
    num_desired: int = 512
    """K, desired examples: those in the objective."""
    num_validation: int = 4096
    """Desired examples that choose which outer step is the best."""
    num_test: int = 4096
    """Desired examples that are only reported."""
    label_noise: float = 0.3
    """Noise of the training labels: standard deviation as a share of the teacher's output's."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        require_counts("data", self, "dim", *SIZES)
        noise = self.label_noise
        require(0 <= noise <= 10**6, "data.label_noise", "in [0, 1,000,000]", noise)


@dataclasses.dataclass(frozen=True)
class PerceptronConfig(ExperimentConfig):
    """The paper's linear classification (§4.1)."""

    data: PerceptronData = PerceptronData()


class LabelledInputs(NamedTuple):
    """Examples of a linear classification problem."""

    z: jax.Array  # [B, D] inputs
    y: jax.Array  # [B] labels, 0. or 1.


class TeacherStudent(NamedTuple):
    """One problem: a training set and three desired sets that share nothing but the teacher."""

    train: LabelledInputs
    desired: LabelledInputs
    validation: LabelledInputs
    test: LabelledInputs


def make_teacher_student(
    key: jax.Array,
    *,
    dim: int = 128,
    num_train: int = 4096,
    num_desired: int = 512,
    num_validation: int = 4096,
    num_test: int = 4096,
    train_label_noise: float = 0.0,
) -> TeacherStudent:
    """Draws a teacher w ~ N(0, sqrt(D) I) and the four sets it labels, y = [w . z > 0].

    Training inputs are z ~ N(0, 3 I); those of the three desired sets z ~ N(1/2, I).

    Args:
      key: a PRNG key.
      dim: D.
      num_train: N.
      num_desired: K, the examples in the objective.
      num_validation: desired examples that choose the policy to keep.
      num_test: desired examples that are reported and used for nothing else.
      train_label_noise: standard deviation of the Gaussian noise added to w . z before the
        training labels are taken, as a share of the standard deviation of w . z itself. The
        labels of the desired sets are exact.

    Returns:
      The four sets, float32.
    """
    keys = jax.random.split(key, 6)
    teacher = jax.random.normal(keys[0], (dim,)) * dim**0.25
    z = jax.random.normal(keys[1], (num_train, dim)) * jnp.sqrt(3.0)
    noise_std = train_label_noise * jnp.sqrt(3.0) * jnp.linalg.norm(teacher)
    noise = noise_std * jax.random.normal(keys[2], (num_train,))
    train = LabelledInputs(z, (z @ teacher + noise > 0).astype(z.dtype))

    def desired_set(key: jax.Array, size: int) -> LabelledInputs:
        z = jax.random.normal(key, (size, dim)) + 0.5
        return LabelledInputs(z, (z @ teacher > 0).astype(z.dtype))

    sizes = (num_desired, num_validation, num_test)
    return TeacherStudent(train, *map(desired_set, keys[3:], sizes))


def perceptron_loss(theta: jax.Array, batch: LabelledInputs) -> jax.Array:
    """The logistic loss of sigma(theta . z), nats: [D], B examples -> [B]."""
    # For labels 0 and 1 one logarithm is enough, where a cross-entropy takes two.
    return jax.nn.softplus((1 - 2 * batch.y) * (batch.z @ theta))


def _build(config: PerceptronConfig) -> Problem:
    data = config.data
    examples = sum(getattr(data, name) for name in SIZES)
    require_memory(
        4 * examples * (data.dim + 1),
        "the data",
        f"{examples:,} examples x {data.dim + 1:,} numbers of 4 bytes",
        "data.dim or the largest of data.num_train, num_desired, num_validation and num_test",
    )
    sets = make_teacher_student(
        jax.random.key(config.seed),
        dim=data.dim,
        num_train=data.num_train,
        num_desired=data.num_desired,
        num_validation=data.num_validation,
        num_test=data.num_test,
        train_label_noise=data.label_noise,
    )
    return Problem(
        loss_fn=perceptron_loss,
        optimizer=inner_optimizer(config.inner),
        params=jnp.zeros(data.dim),
        **sets._asdict(),
        num_symbols=2,
    )


TASK = Task("perceptron", PerceptronConfig, _build)
