"""Small problems that several tests train on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class LogisticProblem(NamedTuple):
    policy: jax.Array  # [T, N]
    params: dict  # two arrays
    train: dict
    desired: dict


def logistic_loss(params, batch):
    return optax.sigmoid_binary_cross_entropy(batch["z"] @ params["w"] + params["b"], batch["y"])


def make_logistic(
    key=0, *, num_steps=23, num_train=17, num_desired=7, dim=5, dtype=jnp.float64
) -> LogisticProblem:
    """A logistic regression whose policy is far from uniform."""
    keys = jax.random.split(jax.random.key(key), 6)

    def examples(key_z, key_y, size):
        z = jax.random.normal(key_z, (size, dim), dtype)
        return {"z": z, "y": jax.random.bernoulli(key_y, 0.4, (size,)).astype(dtype)}

    return LogisticProblem(
        jax.nn.softmax(jax.random.normal(keys[4], (num_steps, num_train), dtype)),
        {"w": jax.random.normal(keys[5], (dim,), dtype), "b": jnp.zeros((), dtype)},
        examples(keys[0], keys[1], num_train),
        examples(keys[2], keys[3], num_desired),
    )
