"""Small problems that several tests train on."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class LogisticProblem(NamedTuple):
    policy: jax.Array  # [T, N]
    params: dict  # two arrays
    train: dict
    desired: dict


def compiled(function):
    """`jax.jit` with NumPy's arrays as results: what a test does with them compiles nothing."""
    program = jax.jit(function)
    return lambda *arguments: jax.device_get(program(*arguments))


def logistic_loss(params, batch):
    return optax.sigmoid_binary_cross_entropy(batch["z"] @ params["w"] + params["b"], batch["y"])


def normal(seed, shape, dtype=jnp.float64):
    """Standard normal numbers; by NumPy, because JAX compiles a program for each new shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def make_logistic(
    seed=0, *, num_steps=23, num_train=17, num_desired=7, dim=5, dtype=jnp.float64
) -> LogisticProblem:
    """A logistic regression whose policy is far from uniform."""
    rng = np.random.default_rng(seed)

    def examples(size):
        z, y = rng.normal(size=(size, dim)), rng.random(size) < 0.4
        return {"z": jnp.asarray(z, dtype), "y": jnp.asarray(y, dtype)}

    weights = np.exp(rng.normal(size=(num_steps, num_train)))
    return LogisticProblem(
        jnp.asarray(weights / weights.sum(axis=1, keepdims=True), dtype),
        {"w": jnp.asarray(rng.normal(size=dim), dtype), "b": jnp.zeros((), dtype)},
        examples(num_train),
        examples(num_desired),
    )


def value_and_grads(loss_auc):
    return jax.value_and_grad(loss_auc, argnums=(0, 1), has_aux=True)


def plain_loss_auc(optimizer, policy, params, train, desired):
    """The same quantity by JAX's own reverse mode through a scan."""

    def step(state, row):
        params, opt_state = state
        gradient = jax.grad(lambda p: row @ logistic_loss(p, train))(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), logistic_loss(params, desired).mean()

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), policy)
    return losses.mean(), (losses, params)


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry of each array."""

    def compare(actual, expected):
        actual, expected = np.asarray(actual, float), np.asarray(expected, float)
        largest = np.abs(expected).max()
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * largest)

    jax.tree.map(compare, actual, expected)
