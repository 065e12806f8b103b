"""Meta-optimisers on what is no policy [T, N]: one simplex, trees of them, free parameters."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import compiled, logistic_loss, make_logistic, normal

import lljax
from lljax import StepInputs

SIMPLEX_METHODS = {
    "projected": lljax.projected_gradient(0.5),
    "exponentiated": lljax.exponentiated_gradient(0.3, momentum=0.8),
    "with_cutoff": lljax.exponentiated_gradient(0.3, momentum=0.8, cutoff=0.3),
}


def make_tree(seed, dtype=jnp.float64):
    """One simplex, rows of them, and rows with two axes."""
    rows = {"one": normal(seed, (5,)), "rows": [normal(seed + 1, (3, 4)), normal(2, (2, 2, 6))]}
    return jax.tree.map(lambda leaf: leaf.astype(dtype), rows)


@pytest.mark.parametrize("name", SIMPLEX_METHODS)
def test_every_row_of_a_tree_moves_as_a_policys_row(name):
    optimizer = SIMPLEX_METHODS[name]
    policy = jax.tree.map(jax.nn.softmax, make_tree(0))
    state, update = optimizer.init(policy), jax.jit(optimizer.update)
    found = policy
    for seed in (5, 6):
        found, state = update(make_tree(seed), state, found)

    def alone(policy, *gradients):
        policy = policy.reshape(-1, policy.shape[-1])
        state = optimizer.init(policy)
        for gradient in gradients:
            policy, state = optimizer.update(gradient.reshape(policy.shape), state, policy)
        return policy

    expected = jax.tree.map(alone, policy, make_tree(5), make_tree(6))
    flat = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), found)
    chex.assert_trees_all_close(flat, expected, rtol=1e-13)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, policy)


@pytest.mark.parametrize("name", SIMPLEX_METHODS)
def test_an_optimisation_over_a_tree_arrives_at_its_vertices(name):
    slopes = make_tree(7)

    def objective(policy, *_):
        return sum(jax.tree.leaves(jax.tree.map(lambda p, s: jnp.sum(p * s), policy, slopes))), None

    start = jax.tree.map(jax.nn.softmax, make_tree(0))
    result = compiled(
        lambda policy: lljax.optimize_policy(
            objective, policy, {}, {}, {}, optimizer=SIMPLEX_METHODS[name], num_steps=40
        )
    )(start)
    best = jax.tree.map(lambda s: jax.nn.one_hot(s.argmin(-1), s.shape[-1]), slopes)
    chex.assert_trees_all_close(result.policy, best, atol=1e-3)
    assert (jnp.diff(result.auc_history) <= 0).all()


def test_from_optax_takes_the_steps_of_optax():
    transformation = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.1, 0.01, 5))
    )
    optimizer = lljax.from_optax(transformation)
    psi = expected = make_tree(0, jnp.float32)
    state, plain = optimizer.init(psi), transformation.init(psi)
    update = jax.jit(optimizer.update)
    for seed in range(4):
        gradient = make_tree(seed, jnp.float32)
        psi, state = update(gradient, state, psi, 0.5)
        updates, plain = transformation.update(gradient, plain, expected)
        expected = jax.tree.map(lambda a, b: a + 0.5 * b, expected, updates)
    chex.assert_trees_all_close(psi, expected, rtol=1e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(psi, expected)
    assert not optimizer.on_simplices


def test_from_optax_leaves_parameters_of_unknown_slope_alone():
    optimizer = lljax.from_optax(optax.adam(0.1))
    psi, known = jnp.zeros(4), jnp.array([True, False, True, False])
    state = optimizer.init(psi)
    psi, state = optimizer.update(jnp.ones(4), state, psi)
    after, state = optimizer.update(jnp.array([1.0, 9.0, 1.0, 9.0]), state, psi, 1.0, known)
    np.testing.assert_array_equal(after[1::2], psi[1::2])
    assert (after[::2] < psi[::2]).all()
    assert state[0].mu[1] < 0.1 < 9  # of the first step, without the invented slope


def test_a_restart_forgets_all_but_the_counts_of_schedules():
    schedule = optax.exponential_decay(0.1, 1, 0.5)
    for transformation in (
        optax.adam(schedule),
        optax.inject_hyperparams(optax.adam)(schedule),
        optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.adam)(schedule)),
    ):
        optimizer = lljax.from_optax(transformation)
        psi = jnp.zeros(2)
        state = optimizer.init(psi)
        for _ in range(3):
            _, state = optimizer.update(jnp.ones(2), state, psi)
        fresh = jax.jit(optimizer.restart)(state, psi)
        chex.assert_trees_all_equal_shapes_and_dtypes(fresh, state)
        moved, _ = optimizer.update(-jnp.ones(2), fresh, psi)
        np.testing.assert_allclose(moved, schedule(3), rtol=1e-5)  # without momentum, at its rate


def test_a_learned_schedule_of_learning_rates():
    """Free parameters of the optimiser itself, by step control: the logarithms of T rates."""
    _, *data = make_logistic(num_steps=20, num_train=40, num_desired=16)
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.inject_hyperparams(optax.sgd)(0.1))
    policy = lljax.uniform_policy(20, 40, jnp.float64)

    def objective(psi, params, train, desired):
        rates = {"learning_rate": jnp.exp(psi["log_rate"])}
        return loss_auc(StepInputs(policy, hyperparams=rates), params, train, desired)

    start = {"log_rate": jnp.full(20, jnp.log(0.1))}
    result = compiled(
        lambda psi: lljax.optimize_policy(
            objective, psi, *data, optimizer=lljax.from_optax(optax.adam(0.2)), num_steps=40
        )
    )(start)
    assert result.auc < 0.98 * result.auc_history[0]
    assert (jnp.diff(result.auc_history) <= 0).all()
    assert result.known is None
    assert result.complete


def test_only_methods_on_simplices_ask_for_distributions():
    def objective(psi, *_):
        return jnp.sum((psi["x"] - 1) ** 2), None

    def optimise(psi, optimizer):
        return lljax.optimize_policy(
            objective, psi, {}, {}, {}, optimizer=optimizer, num_steps=20
        ).policy

    found = optimise({"x": jnp.zeros(3)}, lljax.from_optax(optax.sgd(0.3)))
    np.testing.assert_allclose(found["x"], 1, atol=1e-3)
    for optimizer in (*SIMPLEX_METHODS.values(), lljax.smoothed(lljax.projected_gradient(1.0), 1)):
        assert optimizer.on_simplices
        words = r"`policy\['x'\]` must be a distribution over its 3 entries; it does not sum to 1"
        with pytest.raises(ValueError, match=words):
            optimise({"x": jnp.zeros(3)}, optimizer)
        words = r"`policy\['x'\]` .* in every row; row 1 has a negative entry .* 1 of 2 like it"
        with pytest.raises(ValueError, match=words):
            optimise({"x": jnp.array([[0.5, 0.5], [1.5, -0.5]])}, optimizer)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lljax.from_optax(3), "must be an optax optimiser"),
        (lambda: lljax.from_optax(lljax.projected_gradient(1.0)), "A MetaOptimizer is what"),
        (lambda: lljax.from_optax(optax.lbfgs()).init(jnp.zeros(3)), "line searches"),
        (lambda: lljax.projected_gradient(1.0).init(jnp.zeros(())), "rows of at least one entry"),
        (lambda: lljax.projected_gradient(1.0).init({"a": jnp.arange(3)}), r"`policy\['a'\]` must"),
        (
            lambda: lljax.smoothed(lljax.projected_gradient(1.0), 1).init(jnp.ones(3) / 3),
            r"averages over inner steps, .* got an array of shape \(3,\)",
        ),
        (
            lambda: SIMPLEX_METHODS["projected"].update({"b": 1.0}, 0, {"a": jnp.ones(1)}),
            "key mismatch|structure",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_start_that_is_not_finite_is_told_by_its_place():
    def objective(psi, *_):
        return jnp.sum(jnp.sqrt(psi["a"])) + jnp.sum(psi["b"]), None

    psi = {"a": jnp.array([0.5, 0.0]), "b": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"`policy\['a'\]` is not finite in 1 of 2 entries, first"):
        lljax.optimize_policy(
            objective, psi, {}, {}, {}, optimizer=lljax.from_optax(optax.sgd(0.1)), num_steps=1
        )
    with pytest.raises(ValueError, match="holds no arrays"):
        lljax.optimize_policy(
            objective, {}, {}, {}, {}, optimizer=lljax.from_optax(optax.sgd(0.1)), num_steps=1
        )
