"""At the optimum of every family the Learning Law holds: slopes are equal where there is weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import compiled, logistic_loss, plain_loss_auc
from scipy import optimize

import lljax
from lljax import StepInputs

T, N, B, G, K, DIM = 12, 16, 4, 4, 40, 6
OPTIMIZER = optax.sgd(0.5)
METHOD = lljax.exponentiated_gradient(0.2, momentum=0.5, cutoff=0.1)


def make_problem():
    """Labels with noise, so that no few examples are enough."""
    rng = np.random.default_rng(1)
    true = rng.normal(size=DIM)

    def examples(count):
        z = rng.normal(size=(count, DIM))
        y = (z @ true + rng.normal(size=count) > 0).astype(float)
        return {"z": jnp.asarray(z), "y": jnp.asarray(y)}

    data = examples(N), examples(K)
    return {"w": jnp.zeros(DIM), "b": jnp.zeros(())}, *data, jnp.asarray(rng.integers(0, N, (T, B)))


PARAMS, TRAIN, DESIRED, INDEX = make_problem()
GROUPS = jnp.asarray(np.arange(N) % G)
BATCHES = {"mini_batch": INDEX, "full_batch": None}


def family_of(name, index):
    steps = {"num_steps": T} if index is None else {"index": index}
    return {
        "static": functools.partial(lljax.static_weights, **steps),
        "group": functools.partial(lljax.group_weights, groups=GROUPS, **steps),
        "scheduled": functools.partial(lljax.scheduled_weights, **steps),
        "scheduled_groups": functools.partial(lljax.scheduled_weights, groups=GROUPS, **steps),
    }[name]


def objective_of(family, index, **options):
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZER, check_loss=False, **options)

    def objective(psi, params, train, desired):
        return loss_auc(StepInputs(family(psi), index), params, train, desired)

    return objective


def optimise(objective, psi, num_steps, method=METHOD, train=TRAIN, **options):
    def run(psi):
        return lljax.optimize_policy(
            objective,
            psi,
            PARAMS,
            train,
            DESIRED,
            optimizer=method,
            num_steps=num_steps,
            **options,
        )

    return compiled(run)(psi)


def slopes_of(weights, index):
    """[T, B], the derivative in each weight alone: no family is differentiated."""
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZER, check_loss=False)
    gradient = jax.grad(lambda w: loss_auc(StepInputs(w, index), PARAMS, TRAIN, DESIRED)[0])
    return compiled(gradient)(weights)


def summed_slopes(slopes, index):
    """[N], over all places where an example is, times N / B."""
    if index is None:
        return slopes.sum(axis=0)
    sums = np.zeros(N)
    np.add.at(sums, np.asarray(index), slopes)
    return sums * N / B


# psi to start from, outer steps, and the gap that they reach.
CASES = {
    "static": (jnp.full(N, 1 / N), 120, 1e-6),
    "group": (jnp.full(G, 1 / G), 60, 1e-6),
    "scheduled": (jnp.full((2, N), 1 / N), 200, 1e-4),
    "scheduled_groups": (jnp.full((3, G), 1 / G), 80, 1e-6),
}


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("name", CASES)
def test_the_law_holds_at_the_optimum(name, batches):
    start, num_steps, tolerance = CASES[name]
    index = BATCHES[batches]
    family = family_of(name, index)
    result = optimise(objective_of(family, index), start, num_steps)
    psi = jnp.asarray(result.policy)
    gaps = lljax.optimality_gap(psi, jnp.asarray(result.policy_grad))
    assert gaps.max() < tolerance
    assert result.auc < 0.99 * result.auc_history[0]
    if name not in ("static", "group"):
        return
    # By hand: at the optimum the sums are equal where there is weight, and nowhere smaller.
    sums = summed_slopes(slopes_of(family(psi), index), index)
    if name == "group":
        sums = np.array([sums[np.asarray(GROUPS) == g].mean() for g in range(G)])
    weights = np.asarray(psi)
    assert (weights > 1e-3).sum() >= 2
    small = 1e-3 * np.abs(sums).max()
    np.testing.assert_allclose(sums[weights > 1e-3], weights @ sums, rtol=0, atol=small)
    assert sums.min() > weights @ sums - small
    np.testing.assert_allclose(gaps, weights @ sums - sums.min(), rtol=1e-6, atol=1e-12)


def test_static_weights_of_all_examples_are_those_of_a_reference():
    """Another gradient, through a plain scan, and another method: SciPy's quadratic programming."""
    value_and_grad = compiled(
        jax.value_and_grad(
            lambda w: plain_loss_auc(
                OPTIMIZER, jnp.broadcast_to(w[None], (T, N)), PARAMS, TRAIN, DESIRED
            )[0]
        )
    )

    def function(weights):
        value, gradient = value_and_grad(weights)
        return float(value), np.asarray(gradient)

    expected = optimize.minimize(
        function,
        np.full(N, 1 / N),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * N,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert expected.success
    found = optimise(objective_of(family_of("static", None), None), CASES["static"][0], 120)
    assert (expected.x > 1e-3).sum() >= 5
    np.testing.assert_allclose(found.auc, expected.fun, rtol=1e-8)
    np.testing.assert_allclose(found.policy, expected.x, rtol=0, atol=1e-3)


@pytest.mark.parametrize("batches", BATCHES)
def test_a_scorer_at_its_optimum(batches):
    """No direction in its features is left: the weighted covariance of slopes and features is 0."""
    index = BATCHES[batches]
    steps = {"num_steps": T} if index is None else {"index": index}

    def features(batch):
        return jnp.stack([batch["y"], jnp.sum(batch["z"] ** 2, axis=1)], axis=1)

    def family(psi):
        return lljax.scorer_weights(lambda psi, b: features(b) @ psi, psi, TRAIN, **steps)

    method = lljax.from_optax(optax.adam(0.1))
    result = optimise(objective_of(family, index), jnp.zeros(2), 100, method)
    assert result.auc < 0.999 * result.auc_history[0]
    psi = jnp.asarray(result.policy)
    weights = np.asarray(family(psi))
    slopes = slopes_of(jnp.asarray(weights), index)
    x = np.asarray(features(TRAIN))
    x = np.broadcast_to(x[None], (T, N, 2)) if index is None else x[np.asarray(index)]
    mean = (weights * slopes).sum(axis=1, keepdims=True)
    covariance = np.einsum("tb,tb,tbf->f", weights, slopes - mean, x)
    np.testing.assert_allclose(result.policy_grad, covariance, rtol=1e-6, atol=1e-12)
    assert np.abs(covariance).max() < 1e-4


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name", ["static", pytest.param("group", marks=SLOW), pytest.param("scheduled", marks=SLOW)]
)
def test_an_active_set_over_a_family_ends_where_the_whole_set_does(name):
    start, num_steps, _ = CASES[name]
    family = family_of(name, INDEX)
    columns = GROUPS[INDEX] if name == "group" else INDEX
    rows = {"num_rows": 2} if name == "scheduled" else {}
    omitting = objective_of(family, INDEX, zero_weight="omit", microbatch_size=1)

    def active(psi, *data):
        auc, info = omitting(psi, *data)
        known = lljax.known_parameters(info.known_slopes, columns, psi.shape[-1], **rows)
        return auc, info._replace(known_slopes=known)

    whole = objective_of(family, INDEX, zero_weight="slope_only", microbatch_size=1)
    # A group whose labels are wrong, so that it loses its weight.
    train = TRAIN | {"y": jnp.where(GROUPS == 1, 1 - TRAIN["y"], TRAIN["y"])}
    options = {"active_loss_auc": active, "check_every": 4, "train": train}
    found = optimise(whole, start, num_steps, **options)
    expected = optimise(whole, start, num_steps, train=train)
    assert found.complete
    assert (found.policy == 0).any()
    np.testing.assert_allclose(found.auc, expected.auc, rtol=1e-6)
    _, info = compiled(lambda psi: active(psi, PARAMS, train, DESIRED))(found.policy)
    assert not info.known_slopes.all()
    with pytest.raises(ValueError, match=r"info.known_slopes.*lljax.known_parameters\("):
        optimise(whole, start, 1, active_loss_auc=omitting)
