"""The outer loop over runs that are drawn anew: plain steps, an average, and who chooses."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import compiled, logistic_loss

import lljax
from lljax import StepInputs

DIM = 6
KEYS = {"key": jax.random.key(0), "validation_key": jax.random.key(1)}


def make_examples(seed, *counts):
    rng = np.random.default_rng(seed)
    true = rng.normal(size=DIM)
    for count in counts:
        z = rng.normal(size=(count, DIM))
        yield {"z": jnp.asarray(z), "y": jnp.asarray((z @ true > 0).astype(float))}


def drawn_objective(train, desired, optimizer, num_steps=20, batch=6):
    """The AUC of static weights in a run from a drawn start over drawn mini-batches."""
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer, check_loss=False)
    count = train["y"].size

    def objective(weights, key):
        init, order = jax.random.split(key)
        params = {"w": 0.5 * jax.random.normal(init, (DIM,)), "b": jnp.zeros(())}
        index = jax.random.randint(order, (num_steps, batch), 0, count)
        inputs = StepInputs(lljax.static_weights(weights, index), index)
        return loss_auc(inputs, params, train, desired)

    return objective


def quadratic(policy, key):
    """A distance from a target, with noise that has mean 0."""
    noise = 0.3 * jax.random.normal(key, policy.shape)
    target = jnp.arange(1.0, 5) / 10
    return jnp.sum((policy - target) ** 2) + jnp.sum(noise * policy), None


def run(objective=quadratic, policy=jnp.full(4, 0.25), **options):
    settings = {"optimizer": lljax.projected_gradient(0.05), "num_steps": 20} | KEYS | options
    key = settings.pop("key")
    return lljax.optimize_over_runs(objective, policy, key, **settings)


def test_flipped_labels_lose_their_weight():
    train, desired, held_out = make_examples(0, 40, 40, 60)
    flipped = np.arange(40) % 5 < 2
    train["y"] = jnp.where(jnp.asarray(flipped), 1 - train["y"], train["y"])
    build = functools.partial(drawn_objective, train, optimizer=optax.adamw(0.1, eps_root=1e-6))
    result = compiled(
        lambda w: run(
            build(desired),
            w,
            optimizer=lljax.exponentiated_gradient(0.3),
            validation_objective=build(held_out),
            num_steps=15,
            num_runs=3,
            num_validation_runs=6,
        )
    )(jnp.full(40, 1 / 40))
    assert result.finite.all()
    assert result.policy[flipped].sum() < 0.12
    start, *others = result.validation_aucs.mean(axis=2)
    assert result.auc == np.min(others) < 0.8 * start[0]
    # So it is in runs and on examples that chose nothing.
    fresh = compiled(
        lambda w: jax.vmap(lambda key: build(held_out)(w, key)[0])(
            jax.random.split(jax.random.key(2), 12)
        )
    )
    assert fresh(result.policy).mean() < 0.85 * fresh(jnp.full(40, 1 / 40)).mean()


def test_it_finds_the_optimum_of_the_mean():
    """Where a long optimisation of the mean over many fixed runs ends, by another loop."""
    train, desired = make_examples(0, 8, 60)
    train["y"] = train["y"].at[:3].set(1 - train["y"][:3])
    objective = drawn_objective(train, desired, optax.sgd(0.3), num_steps=15, batch=8)
    fixed = jax.random.split(jax.random.key(7), 128)

    def mean(weights, *_):
        return jnp.mean(jax.vmap(lambda key: objective(weights, key)[0])(fixed)), None

    start = jnp.full(8, 1 / 8)
    expected = compiled(
        lambda w: lljax.optimize_policy(
            mean,
            w,
            {},
            {},
            {},
            optimizer=lljax.exponentiated_gradient(0.3, momentum=0.5, cutoff=0.1),
            num_steps=40,
        )
    )(start)
    assert lljax.optimality_gap(expected.policy, expected.policy_grad) < 1e-4
    rate = optax.polynomial_schedule(0.15, 0.02, 1, 80)
    found = compiled(
        lambda w: run(
            objective,
            w,
            optimizer=lljax.exponentiated_gradient(rate),
            num_steps=80,
            num_runs=8,
            validate_every=20,
        )
    )(start)
    assert (expected.policy > 0.02).sum() >= 3
    assert np.abs(found.average - expected.policy).sum() < 0.15
    gained = expected.auc_history[0] - expected.auc
    for policy in (found.average, found.policy):
        assert compiled(mean)(policy)[0] - expected.auc < 0.01 * gained


def test_what_is_returned_is_what_the_validation_runs_say():
    result = compiled(lambda policy: run(policy=policy, num_validation_runs=7))(jnp.full(4, 0.25))
    assert result.validation_steps.tolist() == [0, 5, 10, 15, 20]
    assert result.validation_aucs.shape == (5, 2, 7)
    assert result.run_aucs.shape == (20, 4)
    keys = jax.random.split(KEYS["validation_key"], 7)
    for policy, aucs in (
        (jnp.full(4, 0.25), result.validation_aucs[0, 0]),
        (result.last, result.validation_aucs[-1, 0]),
        (result.average, result.validation_aucs[-1, 1]),
    ):
        np.testing.assert_allclose(jax.vmap(lambda k, p=policy: quadratic(p, k)[0])(keys), aucs)
    means = result.validation_aucs.mean(axis=2)
    place, kind = np.unravel_index(means.argmin(), means.shape)
    assert result.step == result.validation_steps[place]
    assert result.is_average == (kind == 1)
    np.testing.assert_allclose(result.auc, means.min())
    np.testing.assert_allclose(np.mean([quadratic(result.policy, k)[0] for k in keys]), means.min())


def test_steps_and_average_are_those_of_a_plain_loop():
    eta, policy, number_of_runs = 2.0, jnp.full(4, 0.25), 3
    result = run(averaging=eta, num_runs=number_of_runs, num_steps=10)
    optimizer = lljax.projected_gradient(0.05)
    iterates = []
    for number in range(1, 11):
        keys = jax.random.split(jax.random.fold_in(KEYS["key"], number), number_of_runs)
        slopes = [jax.grad(lambda p, k=key: quadratic(p, k)[0])(policy) for key in keys]
        policy, _ = optimizer.update(sum(slopes) / 3, optimizer.init(policy), policy)
        iterates.append(policy)
    np.testing.assert_allclose(result.last, policy, rtol=1e-12)
    # The weight of iterate s is c_s times what the later ones leave of it.
    shares = [(eta + 1) / (s + eta) for s in range(1, 11)]
    weights = [share * np.prod(1 - np.array(shares[s + 1 :])) for s, share in enumerate(shares)]
    np.testing.assert_allclose(result.average, np.average(iterates, axis=0, weights=weights))
    assert np.argmax(weights) == 9
    lljax.check_policy(result.average[None], tolerance=1e-12)


def test_a_pytree_of_simplices_in_float32_stays_on_them():
    policy = {"a": jnp.full(3, 1 / 3, jnp.float32), "b": jnp.full((2, 5), 0.2, jnp.float32)}

    def objective(policy, key):
        noise = jax.random.normal(key, (2, 5), jnp.float32)
        return jnp.sum(noise * policy["b"]) + policy["a"][0], None

    with jax.numpy_dtype_promotion("strict"):
        result = run(objective, policy, optimizer=lljax.exponentiated_gradient(0.3), averaging=0.5)
    for tree in (result.policy, result.last, result.average):
        chex.assert_trees_all_equal_shapes_and_dtypes(tree, policy)
        lljax.check_policy(tree["b"], tolerance=1e-5)
        lljax.check_policy(tree["a"][None], tolerance=1e-5)
    assert result.policy["a"][0] < 0.1


def test_steps_that_are_not_finite_are_left_out_and_said():
    def sometimes(policy, key):
        auc, info = quadratic(policy, key)
        return jnp.where(jax.random.uniform(key) < 0.15, jnp.nan, auc), info

    result = run(sometimes, validation_objective=quadratic)
    bad = ~np.isfinite(result.run_aucs).all(axis=1)
    np.testing.assert_array_equal(result.finite, ~bad)
    assert 2 < bad.sum() < 18
    assert jnp.isfinite(result.last).all()
    assert jnp.abs(result.last - 0.25).max() > 0.01

    def beyond(policy, key):  # finite where it begins
        auc, info = quadratic(policy, key)
        return jnp.where(jnp.abs(policy - 0.25).max() > 1e-6, jnp.inf, auc), info

    result = run(quadratic, validation_objective=beyond)
    assert result.step == 0
    np.testing.assert_array_equal(result.policy, 0.25)
    assert jnp.isinf(result.validation_aucs[1:]).all()


def test_a_slope_that_one_run_does_not_know_gives_no_weight():
    def objective(policy, key):
        known = jnp.arange(4) != jax.random.randint(key, (), 2, 4)
        info = lljax.LossAucInfo(jnp.zeros(1), None, known)
        return jnp.sum(policy * jnp.where(known, jnp.arange(1.0, 5), 0)), info

    policy = jnp.array([0.5, 0.5, 0.0, 0.0])
    result = run(objective, policy, num_runs=16, validation_objective=quadratic, num_steps=5)
    np.testing.assert_array_equal(result.last[2:], 0)
    assert result.last[0] > 0.5


def test_free_parameters():
    def objective(psi, key):
        noise = jax.random.normal(key, (3,))
        return jnp.sum((psi["x"] - 1) ** 2 + 0.1 * noise * psi["x"]), None

    method = lljax.from_optax(optax.adam(0.2))
    result = run(objective, {"x": jnp.zeros(3)}, optimizer=method, num_steps=40, num_runs=8)
    np.testing.assert_allclose(result.average["x"], 1, atol=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_runs": 0}, "`num_runs` must be an int, at least 1; got 0"),
        ({"num_validation_runs": 2.5}, "`num_validation_runs` must be an int"),
        ({"num_steps": 7}, "`validate_every` must divide `num_steps`.*got 5 and 7"),
        ({"averaging": -1.0}, "`averaging` must be a finite number >= 0"),
        ({"optimizer": optax.sgd(0.1)}, "must be a MetaOptimizer.*from_optax"),
        ({"policy": jnp.ones(4)}, "`policy` must be a distribution over its 4 .* it does not sum"),
        ({"policy": {}}, "holds no arrays"),
        ({"policy": jnp.array([1, 0])}, "`policy` must be floating"),
        ({"key": 3}, "`key` must be a key"),
        ({"validation_key": jax.random.split(jax.random.key(0))}, "`validation_key` must be a key"),
        ({"objective": 3}, "`objective` must be a function"),
        ({"validation_objective": 3}, "`validation_objective` must be a function"),
        (
            {"objective": lambda p, k: p.sum()},
            r"`objective\(policy, key\)` must return \(AUC, info",
        ),
        ({"objective": lambda p, k: (p, None)}, r"got an AUC of shape \(4,\) and dtype float64"),
        (
            {"objective": lambda p, k: (jnp.nan * p.sum(), None)},
            "nothing to improve: .* not finite in 16 of 16 runs",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(options, words):
    with pytest.raises(ValueError, match=words):
        run(**options)
