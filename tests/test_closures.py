"""Losses and optimisers that close over what an enclosing jit, vmap or grad traces."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_loops import make_network, network_loss

import lljax
from benchmarks.plain_loop import plain_loss_auc
from lljax import StepInputs

PROBLEM = make_network(num_steps=4)
SGD = optax.sgd(0.3)


def closed_over(scale, build=lljax.build_loss_auc, **options):
    """The AUC where the losses hold a number, and a desired loss of its own holds it too."""

    def loss_fn(params, batch):
        return scale * network_loss(params, batch, PROBLEM.constants)

    def desired_loss_fn(params, batch):
        return network_loss(params, batch, PROBLEM.constants) + scale * jnp.sum(params["out"] ** 2)

    loss_auc = build(loss_fn, SGD, desired_loss_fn=desired_loss_fn, **options)

    def auc(weights):
        inputs = StepInputs(weights, PROBLEM.inputs.index)
        value = loss_auc(inputs, PROBLEM.params, PROBLEM.train, PROBLEM.desired)
        return value[0] if isinstance(value, tuple) else value

    return auc


def of_policy(scale, weights, **options):
    return jax.grad(closed_over(scale, **options))(weights)


WEIGHTS = PROBLEM.inputs.weights
WAYS = {
    "jit": lambda f: jax.jit(f)(1.3, WEIGHTS),
    "vmap": lambda f: jax.vmap(f, (0, None))(jnp.array([0.7, 1.3]), WEIGHTS),
    "scan": lambda f: jax.lax.map(lambda s: f(s, WEIGHTS), jnp.array([0.7, 1.3])),
    "checkpoint": lambda f: jax.jit(jax.checkpoint(f))(1.3, WEIGHTS),
}


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"microbatch_size": 4}, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_inside_a_transformation(way, options):
    found = WAYS[way](lambda *both: of_policy(*both, **options))
    expected = WAYS[way](lambda *both: of_policy(*both, build=plain_loss_auc))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("inside", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_the_gradient_of_a_transformed_function(inside):
    """The transformation has ended before the backward sweep begins."""
    scales = jnp.array([0.7, 1.3])

    def gradient(build):
        def total(weights):
            return inside(lambda scale: closed_over(scale, build)(weights))(scales).sum()

        if inside is jax.jit:
            return jax.grad(lambda w: jax.jit(lambda s: closed_over(s, build)(w))(1.3))(WEIGHTS)
        return jax.grad(total)(WEIGHTS)

    found, expected = gradient(lljax.build_loss_auc), gradient(plain_loss_auc)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"microbatch_size": 4}], ids=str)
def test_the_derivative_in_what_the_losses_hold(options):
    def gradient(build, **options):
        return jax.jit(jax.grad(lambda s: closed_over(s, build, **options)(WEIGHTS)))(1.3)

    found, expected = gradient(lljax.build_loss_auc, **options), gradient(plain_loss_auc)
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def built_with(rate, build=lljax.build_loss_auc):
    loss_auc = build(network_loss, optax.adamw(rate, eps_root=1e-6))

    def auc(weights):
        value = loss_auc(StepInputs(weights, PROBLEM.inputs.index), *PROBLEM[1:])
        return value[0] if isinstance(value, tuple) else value

    return auc


@pytest.mark.slow
def test_an_optimizer_built_inside():
    rates = jnp.array([0.01, 0.1])

    def gradients(build):
        def total(weights):
            return jax.vmap(lambda rate: built_with(rate, build)(weights))(rates).sum()

        return (
            jax.vmap(lambda rate: jax.grad(built_with(rate, build))(WEIGHTS))(rates),
            jax.grad(total)(WEIGHTS),
        )

    for found, expected in zip(
        gradients(lljax.build_loss_auc), gradients(plain_loss_auc), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"optax\.inject_hyperparams.*StepInputs"):
        jax.grad(lambda rate: built_with(rate)(WEIGHTS))(0.1)
