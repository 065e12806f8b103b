"""Small mini-batch runs, and their derivatives in everything that has one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.plain_loop import largest_error, split_floating
from lljax import StepInputs


class Problem(NamedTuple):
    inputs: StepInputs
    params: Any
    train: Any
    desired: Any
    constants: Any


def network_loss(params, batch, constants):
    """A small classifier with a frozen first bias; every argument has leaves that are integers."""
    hidden = jnp.tanh(batch["z"] @ params["in"] + constants["bias"][None])
    logits = (hidden @ params["out"])[:, constants["order"]]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def make_network(
    seed=0, *, num_steps=12, num_train=23, size=6, num_desired=9, dtype=jnp.float64
) -> Problem:
    """Mini-batches in which some examples are there twice, and some never."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    def examples(count):
        return {"z": normal(count, 5), "label": jnp.asarray(rng.integers(0, 3, count))}

    index = rng.integers(0, num_train - 2, (num_steps, size))
    index[:, 1] = index[:, 0]
    weights = jnp.asarray(rng.dirichlet(np.ones(size), num_steps), dtype)
    return Problem(
        StepInputs(weights, jnp.asarray(index)),
        {"in": 0.4 * normal(5, 8), "out": 0.4 * normal(8, 3)},
        examples(num_train),
        examples(num_desired),
        {"bias": normal(8), "order": jnp.array([2, 0, 1])},
    )


def gradient_in_everything(loss_auc, problem):
    """The compiled gradient in all floating leaves, by the name of the argument."""
    names = [name for name, tree in zip(Problem._fields, problem, strict=True) if tree is not None]
    parts = {name: split_floating(getattr(problem, name)) for name in names}

    def objective(floating):
        value = loss_auc(*(parts[name][1](floating[name]) for name in names))
        return value[0] if isinstance(value, tuple) else value

    floating = {name: part[0] for name, part in parts.items()}
    return jax.device_get(jax.jit(jax.grad(objective))(floating))


def largest_errors(found, expected):
    """By argument: the largest difference relative to the largest entry of its array."""
    return {name: largest_error(found[name], expected[name]) for name in expected if expected[name]}
