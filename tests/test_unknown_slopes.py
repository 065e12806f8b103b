"""A slope that is unknown is no number: the mask that says so, and whatever is handed one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import normal

import lljax


def test_smoothing_leaves_unknown_slopes_out_of_the_mean():
    rng = np.random.default_rng(0)
    gradient, known = rng.normal(size=(9, 4)), rng.random((9, 4)) < 0.6
    known[:, 0] = True
    seen = []

    def record(policy_grad, state, policy, scale=1.0, known=None):
        seen.append((policy_grad, known))
        return policy, state

    optimizer = lljax.smoothed(lljax.MetaOptimizer(lambda policy: (), record), passes=2)
    policy = jnp.full((9, 4), 0.25)
    optimizer.update(jnp.asarray(gradient), optimizer.init(policy), policy, 1.0, jnp.asarray(known))
    mean = np.where(known, gradient, 0)
    for _ in range(2):
        after = np.zeros_like(mean)
        for t, n in np.argwhere(known):
            shares = [(1, max(t - 1, 0)), (2, t), (1, min(t + 1, 8))]
            total = sum(share for share, s in shares if known[s, n])
            after[t, n] = sum(share * mean[s, n] for share, s in shares if known[s, n]) / total
        mean = after
    np.testing.assert_allclose(seen[0][0], mean, rtol=1e-13)
    np.testing.assert_array_equal(seen[0][1], known)


METHODS = {
    "projected": lljax.projected_gradient(0.3),
    "exponentiated": lljax.exponentiated_gradient(0.3),
    "with_momentum": lljax.exponentiated_gradient(0.3, momentum=0.8),
    "with_cutoff": lljax.exponentiated_gradient(0.3, momentum=0.8, cutoff=0.3),
    "smoothed": lljax.smoothed(lljax.exponentiated_gradient(0.3, momentum=0.8, cutoff=0.3), 2),
}


@pytest.mark.parametrize("name", METHODS)
def test_an_example_whose_slope_is_unknown_gets_no_weight(name):
    """Whatever stands in its place: 0, below every slope, or a number from another gradient."""
    rng = np.random.default_rng(1)
    known = np.ones((6, 5), bool)
    known[:, 3:] = rng.random((6, 2)) < 0.5
    weights = np.where(known, rng.random((6, 5)), 0)
    policy = jnp.asarray(weights / weights.sum(axis=1, keepdims=True))
    slopes = 1 + rng.random((6, 5))
    optimizer = METHODS[name]
    update = jax.jit(optimizer.update)
    ends = []
    for invented in (0.0, -7.0, 99.0):
        moved, state = policy, optimizer.init(policy)
        gradient = jnp.asarray(np.where(known, slopes, invented))
        for _ in range(3):
            moved, state = update(gradient, state, moved, 1.0, jnp.asarray(known))
        np.testing.assert_array_equal(np.asarray(moved)[~known], 0)
        lljax.check_policy(moved, tolerance=1e-12)
        for leaf in jax.tree.leaves(state):
            if leaf.shape == known.shape:
                np.testing.assert_array_equal(np.asarray(leaf)[~known], 0)
        ends.append(moved)
    assert jnp.abs(ends[0] - policy).max() > 0.01
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


@pytest.mark.parametrize("name", [name for name in METHODS if name != "smoothed"])
def test_the_others_move_as_if_it_were_not_there(name):
    rng = np.random.default_rng(2)
    policy, slopes = rng.dirichlet(np.ones(4), 3), rng.normal(size=(3, 4))
    if name == "with_cutoff":  # the cutoff is a share of 1 / N
        optimizer = lljax.exponentiated_gradient(0.3, momentum=0.8, cutoff=0.3 * 4 / 7)
    else:
        optimizer = METHODS[name]
    alone, _ = optimizer.update(slopes, optimizer.init(policy), policy)
    wider = [np.concatenate([array, np.zeros((3, 3))], 1) for array in (slopes, policy)]
    known = jnp.arange(7) < 4
    found, _ = METHODS[name].update(
        wider[0],
        METHODS[name].init(wider[1]),
        wider[1],
        1.0,
        jnp.broadcast_to(known[None], (3, 7)),
    )
    np.testing.assert_allclose(found[:, :4], alone, rtol=1e-12)


def test_a_mask_that_says_all_are_known_changes_nothing():
    policy, slopes = jax.nn.softmax(normal(0, (6, 5))), normal(1, (6, 5))
    for optimizer in METHODS.values():
        state = optimizer.init(policy)
        plain, _ = optimizer.update(slopes, state, policy)
        masked, _ = optimizer.update(slopes, state, policy, 1.0, jnp.ones((6, 5), bool))
        np.testing.assert_allclose(masked, plain, rtol=1e-14)


@pytest.mark.parametrize(
    ("known", "words"),
    [
        (jnp.ones((6, 4), bool), r"`known` must hold bools in the form of `policy`, \(6, 5\)"),
        (jnp.ones((6, 5)), "got .* of float64"),
        ([jnp.ones((6, 5), bool)], "known_parameters"),
    ],
)
def test_a_mask_of_another_form_is_refused(known, words):
    policy = jax.nn.softmax(normal(0, (6, 5)))
    for optimizer in METHODS.values():
        with pytest.raises(ValueError, match=words):
            optimizer.update(policy, optimizer.init(policy), policy, 1.0, known)
    with pytest.raises(ValueError, match=words):
        lljax.optimality_gap(policy, policy, known)


@pytest.mark.parametrize("name", ["projected", "with_cutoff"])
def test_a_loop_carries_the_mask_of_an_objective_that_leaves_slopes_out(name):
    """Without a look at all examples what has lost its weight stays unknown, and has none."""
    slopes = normal(3, (6, 5))

    def objective(policy, *_):
        known = lljax.known_slopes(policy, 1)
        value = jnp.sum(policy * jnp.where(known, slopes, -9.0)) + jnp.sum(policy**2)
        return value, lljax.LossAucInfo(jnp.zeros(1), None, known)

    start = jnp.full((6, 5), 0.2)
    result = lljax.optimize_policy(
        objective, start, {}, {}, {}, optimizer=METHODS[name], num_steps=30
    )
    np.testing.assert_array_equal(result.known, lljax.known_slopes(result.policy, 1))
    assert not result.complete
    gaps = lljax.optimality_gap(result.policy, result.policy_grad, result.known)
    np.testing.assert_array_equal(jnp.isnan(gaps), ~result.known.all(axis=1))

    def known_objective(policy, *_):
        return jnp.sum(policy * slopes) + jnp.sum(policy**2), None

    look = jax.grad(lambda policy: known_objective(policy)[0])(result.policy)
    assert lljax.optimality_gap(result.policy, look).max() < 0.05
