"""The objective on all kinds of input: what is refused, in which words, and what works."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from problems import (
    assert_close,
    compiled,
    logistic_loss,
    make_logistic,
    plain_loss_auc,
    value_and_grads,
)

import lljax


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": lambda p: p.policy.T}, r"\(T, N\) = \(23, 17\).*got \(17, 23\): it may be tr"),
        ({"policy": lambda p: p.policy[0]}, r"`policy` must have shape \(T, N\)"),
        ({"policy": lambda p: p.policy[:0]}, "at least one inner step"),
        ({"policy": lambda p: p.policy[:, :5]}, r"\(23, 17\)"),
        ({"policy": lambda p: jnp.ones((23, 17), int)}, "`policy` must be floating"),
        (
            {"params": lambda p: {"w": p.params["w"], "b": 0}},
            r"floating array; `params\['b'\]` is int",
        ),
        ({"params": lambda p: {}}, "`params` holds no arrays"),
        ({"train": lambda p: {}}, "`train` must be a pytree of arrays"),
        ({"desired": lambda p: jax.tree.map(lambda a: a[:0], p.desired)}, "`desired` is empty"),
        (
            {"train": lambda p: {"z": p.train["z"], "y": p.train["y"][:3]}},
            r"`train` must share.*train\['y'\]: 3, train\['z'\]: 17",
        ),
        ({"desired": lambda p: {**p.desired, "c": 1.0}}, r"desired\['c'\]` is a scalar"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change, message):
    problem = make_logistic()
    problem = problem._replace(**{name: make(problem) for name, make in change.items()})
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1))
    with pytest.raises(ValueError, match=message):
        compiled(loss_auc)(*problem)


def test_a_loss_that_is_not_one_number_an_example_is_refused():
    problem = make_logistic()
    mean = lljax.build_loss_auc(lambda p, b: logistic_loss(p, b).mean(), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"shape \(17,\); got \(\).*before taking their mean"):
        mean(*problem)


def test_bad_strategies_are_refused():
    with pytest.raises(ValueError, match="`num_kept` must be an int, at least 1"):
        lljax.RecomputeStates(0)
    with pytest.raises(ValueError, match="`microbatch_size` must be an int, at least 1"):
        lljax.build_loss_auc(logistic_loss, optax.sgd(0.1), microbatch_size=0)


def test_the_check_of_the_optimizer_can_be_skipped():
    """On a dense problem Adam's derivative exists, eps_root or not."""
    problem, optimizer = make_logistic(), optax.adam(0.1)
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer, check_optimizer=False)
    plain = functools.partial(plain_loss_auc, optimizer)
    expected = compiled(value_and_grads(plain))(*problem)[1]
    assert_close(compiled(value_and_grads(loss_auc))(*problem)[1], expected, 1e-9)


def test_optimizers_made_of_traced_or_shaped_arrays():
    """A learning rate that jit or vmap traces, and one for each coordinate."""
    problem = make_logistic()

    def gradient(rate):
        loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(rate))
        return jax.grad(loss_auc, has_aux=True)(*problem)[0]

    both = compiled(jax.vmap(gradient))(jnp.array([0.1, 0.3]))
    assert_close(both[1], compiled(gradient)(0.3), 1e-12)

    rates = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3), problem.params)
    by_coordinate = optax.stateless(
        lambda gradient, _: jax.tree.map(lambda g, rate: -rate * g, gradient, rates)
    )
    loss_auc = lljax.build_loss_auc(logistic_loss, by_coordinate)
    assert_close(compiled(jax.grad(loss_auc, has_aux=True))(*problem)[0], both[1], 1e-12)


def test_an_empty_parameter_is_no_obstacle():
    policy, params, train, desired = make_logistic()
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1))
    gradient = compiled(jax.grad(loss_auc, has_aux=True))
    grads, _ = gradient(policy, {**params, "empty": jnp.zeros((0, 3))}, train, desired)
    assert_close(grads, gradient(policy, params, train, desired)[0], 1e-12)


@pytest.mark.parametrize("memory", [lljax.StoreStates(), lljax.RecomputeStates()])
def test_examples_spread_over_devices(memory):
    """One device here; the sharded program is the same, and its gradient stays spread."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, jax.P("data"))
    policy, params, train, desired = make_logistic(dtype=jnp.float32)
    loss_auc = compiled(
        value_and_grads(lljax.build_loss_auc(logistic_loss, optax.sgd(0.1), memory=memory))
    )
    expected = loss_auc(policy, params, train, desired)[1]
    placed = jax.tree.map(lambda leaf: jax.device_put(leaf, spread), (train, desired))
    assert_close(loss_auc(policy, params, *placed)[1], expected, 1e-6)


def test_16_bit_training_has_a_32_bit_curve():
    policy, params, train, desired = make_logistic(dtype=jnp.float32)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, train, desired))
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.3))
    (auc, info), (policy_grad, _) = compiled(value_and_grads(loss_auc))(policy, *half)
    assert auc.dtype == info.desired_losses.dtype == policy_grad.dtype == jnp.float32
    exact = compiled(value_and_grads(loss_auc))(policy, params, train, desired)
    assert_close(policy_grad, exact[1][0], 0.1)


def test_nothing_that_is_not_finite_is_hidden():
    policy, params, train, desired = make_logistic()
    train["z"] = train["z"].at[3, 0].set(jnp.nan)
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1))
    (auc, info), grads = compiled(value_and_grads(loss_auc))(policy, params, train, desired)
    assert jnp.isfinite(info.desired_losses[0])
    assert jnp.isnan(info.desired_losses[1:]).all()
    assert jnp.isnan(auc)
    assert jnp.isnan(grads[0]).any()
