"""Mini-batches, hyperparameters, constants and data: each derivative against a plain loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_loops import (
    gradient_in_everything,
    largest_errors,
    make_network,
    network_loss,
)

import lljax
from benchmarks.plain_loop import plain_loss_auc
from lljax import StepInputs

PASSES = ["forward_over_reverse", "reverse_over_reverse"]
TOLERANCE = 1e-10


def frozen(params):
    return {"in": "frozen", "out": "trained"}


OPTIMIZERS = {
    "sgd": optax.sgd(0.3),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": optax.chain(
        optax.clip_by_global_norm(0.3),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 12), eps_root=1e-6),
    ),
    "muon": optax.contrib.muon(0.05, adam_eps_root=1e-6),
    "multi_steps": optax.MultiSteps(optax.adamw(0.1, eps_root=1e-6), 3),
    "masked": optax.partition(
        {"trained": optax.adam(0.1, eps_root=1e-6), "frozen": optax.set_to_zero()}, frozen
    ),
}
STRATEGIES = [
    {},
    {"memory": lljax.RecomputeStates(), "microbatch_size": 4},
    {"memory": lljax.RecomputeStates(depth=2), "zero_weight": "slope_only", "microbatch_size": 2},
    {"memory": lljax.OffloadStates()},
    {"memory": lljax.KeepGradients(), "microbatch_size": 4},
]


def rates(num_steps=12):
    return {"learning_rate": jnp.linspace(0.2, 0.05, num_steps)}


def assert_exact(optimizer, problem, plain=None, **options):
    plain_options = {k: v for k, v in options.items() if k in ("desired_loss_fn", "eval_every")}
    reference = plain or plain_loss_auc(network_loss, optimizer, **plain_options)
    loss_auc = lljax.build_loss_auc(network_loss, optimizer, **options)
    found = gradient_in_everything(loss_auc, problem)
    expected = gradient_in_everything(reference, problem)
    errors = largest_errors(found, expected)
    assert set(errors) == {"inputs", "params", "train", "desired", "constants"}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_commonest_optimizers(name):
    assert_exact(OPTIMIZERS[name], make_network())


@pytest.mark.slow
@pytest.mark.parametrize("second_order", PASSES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name, second_order):
    # The check would refuse the one and warns of the other, which divides by a norm.
    check = name not in ("multi_steps", "muon")
    options = {"second_order": second_order, "check_optimizer": check}
    assert_exact(OPTIMIZERS[name], make_network(), **options)


def test_micro_batches_recomputation_and_the_second_pass():
    assert_exact(OPTIMIZERS["adamw"], make_network(), second_order=PASSES[1], **STRATEGIES[1])


@pytest.mark.slow
@pytest.mark.parametrize("second_order", PASSES)
@pytest.mark.parametrize("options", STRATEGIES[1:], ids=str)
def test_every_strategy(options, second_order):
    assert_exact(OPTIMIZERS["adamw"], make_network(), second_order=second_order, **options)


@pytest.mark.parametrize(
    "second_order", [PASSES[0], pytest.param(PASSES[1], marks=pytest.mark.slow)]
)
def test_hyperparameters_and_desired_mini_batches(second_order):
    """Measured at every third step only, of an optimiser inside another."""
    problem = make_network()
    inject = optax.inject_hyperparams(optax.adamw)
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.5), inject(0.1, weight_decay=0.01, eps_root=1e-6)
    )
    hyperparams = rates() | {"weight_decay": jnp.linspace(0.1, 0.2, 12)}
    desired_index = jnp.asarray(np.random.default_rng(0).integers(0, 9, (13, 4)))
    inputs = dataclasses.replace(
        problem.inputs, hyperparams=hyperparams, desired_index=desired_index
    )
    assert_exact(
        optimizer, problem._replace(inputs=inputs), eval_every=3, second_order=second_order
    )


def test_all_examples_at_every_step():
    """Without an index the weights are those of all examples, as in a policy [T, N]."""
    problem = make_network()
    weights = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(23), 12))
    whole = problem._replace(inputs=StepInputs(weights, hyperparams=rates()))
    optimizer = optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9)
    assert_exact(optimizer, whole, microbatch_size=5)
    loss_auc = lljax.build_loss_auc(network_loss, optax.sgd(0.1))
    arguments = problem[1:]
    policy = jax.jit(jax.grad(lambda w: loss_auc(w, *arguments)[0]))(weights)
    inputs = jax.jit(jax.grad(lambda w: loss_auc(StepInputs(w), *arguments)[0]))(weights)
    np.testing.assert_array_equal(policy, inputs)


def test_a_desired_loss_of_its_own_takes_the_constants_too():
    def margin(params, batch, constants):
        hidden = jnp.tanh(batch["z"] @ params["in"] + 2 * constants["bias"][None])
        return jnp.sum(hidden @ params["out"], axis=1) ** 2

    assert_exact(OPTIMIZERS["momentum"], make_network(), desired_loss_fn=margin)


def test_over_seeds_under_vmap():
    problem = make_network()
    loss_auc = lljax.build_loss_auc(network_loss, OPTIMIZERS["adamw"], microbatch_size=4)
    plain = plain_loss_auc(network_loss, OPTIMIZERS["adamw"])
    rng = np.random.default_rng(2)
    index = jnp.asarray(rng.integers(0, 23, (3, 12, 6)))
    scale = jnp.asarray(rng.uniform(0.5, 1.5, 3))

    def gradient(function):
        def run(weights, index, scale):
            params = jax.tree.map(lambda leaf: scale * leaf, problem.params)
            value = function(StepInputs(weights, index), params, *problem[2:])
            return value[0] if isinstance(value, tuple) else value

        program = jax.vmap(jax.grad(run, argnums=(0, 2)), in_axes=(None, 0, 0))
        return jax.jit(program)(problem.inputs.weights, index, scale)

    for found, expected in zip(gradient(loss_auc), gradient(plain), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_in_segments():
    problem = make_network()
    optimizer = optax.inject_hyperparams(optax.adamw)(0.1, eps_root=1e-6)
    desired_index = jnp.asarray(np.random.default_rng(0).integers(0, 9, (13, 4)))
    inputs = dataclasses.replace(problem.inputs, hyperparams=rates(), desired_index=desired_index)
    options = {"eval_every": 2, "microbatch_size": 4}
    loss_auc = lljax.build_loss_auc(network_loss, optimizer, **options)
    (_, info), expected = jax.jit(jax.value_and_grad(loss_auc, has_aux=True, allow_int=True))(
        inputs, *problem[1:]
    )
    segments = lljax.build_segments(network_loss, optimizer, **options)
    data = problem.train, problem.desired, problem.constants

    def cut(start, stop):
        part = jax.tree.map(lambda leaf: leaf[start:stop], inputs)
        return dataclasses.replace(part, desired_index=desired_index[start : stop + 1])

    pieces = [cut(0, 4), cut(4, 12)]
    state, losses = jax.jit(segments.start)(problem.params, data, {}, desired_index[0])
    curve, kept = [losses["objective"][None]], []
    for piece in pieces:
        state, losses, kept_here = jax.jit(segments.forward)(state, piece, data, {})
        curve.append(losses["objective"])
        kept.append(kept_here)
    np.testing.assert_allclose(jnp.concatenate(curve), info.desired_losses, rtol=1e-12)
    cotangent = segments.start_backward(state, jnp.array(1 / 6), data, desired_index[12])
    found = []
    for piece, kept_here, c in zip(
        pieces[::-1], kept[::-1], (jnp.full(4, 1 / 6), jnp.array([0, 1 / 6])), strict=True
    ):
        cotangent, of_inputs = jax.jit(segments.backward)(cotangent, kept_here, piece, c, data)
        found.insert(0, of_inputs)
    for name in ("weights", "hyperparams"):
        joined = jax.tree.map(lambda *x: jnp.concatenate(x), *(getattr(f, name) for f in found))
        for a, b in zip(
            jax.tree.leaves(joined), jax.tree.leaves(getattr(expected, name)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_the_unroll_takes_them():
    problem = make_network()
    inputs = dataclasses.replace(problem.inputs, hyperparams=rates())
    optimizer = optax.inject_hyperparams(optax.sgd)(0.1)
    loss_auc = lljax.build_loss_auc(network_loss, optimizer)
    _, info = loss_auc(inputs, *problem[1:])

    def observe(params, weights):
        return network_loss(params, problem.desired, problem.constants).mean()

    end, seen = lljax.unroll(
        network_loss,
        optimizer,
        inputs,
        problem.params,
        problem.train,
        observe,
        constants=problem.constants,
    )
    np.testing.assert_allclose(seen, info.desired_losses, rtol=1e-12)
    np.testing.assert_allclose(end["in"], info.params["in"], rtol=1e-12)


def test_a_learned_schedule_reaches_the_optimum_of_a_quadratic():
    """Two curvatures and two steps of gradient descent: the best rates are their inverses."""
    curvatures, start, num_steps = jnp.array([1.0, 4.0]), jnp.array([2.0, -1.0]), 2
    data = {"curvature": curvatures, "of": jnp.arange(2)}

    def loss_fn(params, batch):
        return 0.5 * batch["curvature"] * params[batch["of"]] ** 2

    sgd = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    loss_auc = lljax.build_loss_auc(loss_fn, sgd)
    index = jnp.tile(jnp.arange(2), (num_steps, 1))

    def final_loss(log_rates, params, train, desired):
        rates = {"learning_rate": jnp.exp(log_rates)}
        inputs = lljax.StepInputs(jnp.ones((num_steps, 2)), index, rates)
        _, info = loss_auc(inputs, params, train, desired)
        return info.desired_losses[-1], info

    def closed_form(log_rates):
        shrink = 1 - jnp.exp(log_rates)[:, None] * curvatures[None]
        return jnp.mean(0.5 * curvatures * (jnp.prod(shrink, axis=0) * start) ** 2)

    log_rates = jnp.log(jnp.array([0.5, 0.4]))
    found = jax.jit(jax.grad(final_loss, has_aux=True))(log_rates, start, data, data)[0]
    np.testing.assert_allclose(found, jax.grad(closed_form)(log_rates), rtol=1e-12)
    result = jax.jit(
        lambda psi: lljax.optimize_policy(
            final_loss,
            psi,
            start,
            data,
            data,
            optimizer=lljax.from_optax(optax.adam(0.05)),
            num_steps=150,
        )
    )(log_rates)
    rates = np.sort(np.exp(result.policy))
    np.testing.assert_allclose(rates, [0.25, 1.0], rtol=1e-2)
    assert result.auc < 1e-4 * closed_form(log_rates)
