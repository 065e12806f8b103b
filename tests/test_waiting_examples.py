"""Exponentiated gradient with a cutoff: an example without weight comes back when it is better."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import compiled

import lljax


def stuck_rows(num_examples):
    """Rows on every vertex and on faces of two examples of equal slope, and their slopes."""
    rng = np.random.default_rng(0)
    vertices = np.eye(num_examples)
    slopes = rng.normal(size=(num_examples, num_examples))
    if num_examples == 2:  # no face leaves an example outside
        return vertices, slopes
    faces, face_slopes = np.zeros_like(vertices), rng.normal(size=slopes.shape)
    for row, slope in zip(faces, face_slopes, strict=True):
        first, second = rng.choice(num_examples, 2, replace=False)
        row[first] = rng.uniform(0.01, 0.99)
        row[second] = 1 - row[first]
        slope[second] = slope[first]
    return np.concatenate([vertices, faces]), np.concatenate([slopes, face_slopes])


def relative_gaps(optimizer, policy, gradient, num_updates):
    """[updates, T], the gaps of a linear objective in units of the spread of its slopes."""

    def body(carry, _):
        carry = optimizer.update(gradient, carry[1], carry[0])
        return carry, lljax.optimality_gap(carry[0], gradient)

    def descend(policy):
        return jax.lax.scan(body, (policy, optimizer.init(policy)), length=num_updates)[1]

    return compiled(descend)(policy) / np.ptp(gradient, axis=1)


@pytest.mark.parametrize(("momentum", "num_updates"), [(0.0, 80), (0.8, 40)])
@pytest.mark.parametrize("num_examples", [2, 16, 300])
def test_every_row_arrives_at_its_best_example(num_examples, momentum, num_updates):
    policy, gradient = (jnp.asarray(rows, jnp.float32) for rows in stuck_rows(num_examples))
    late = jnp.where(jnp.arange(len(policy)) % 2, 1.0, 1e-20)[:, None].astype(jnp.float32)
    optimizer = lljax.exponentiated_gradient(0.1, momentum=momentum, cutoff=0.1)
    gaps = relative_gaps(optimizer, policy, gradient * late, num_updates)
    assert gaps[-1].max() < 1e-3
    # No row rests on its way: it gains in the time in which a weight grows to the cutoff.
    before = np.concatenate([gaps[:1], gaps])
    assert ((before[11:] < before[:-11]) | (gaps[10:] < 1e-3)).all()


@pytest.mark.parametrize("cutoff", [0.01, 0.99])
def test_it_arrives_whatever_the_cutoff(cutoff):
    policy, gradient = (jnp.asarray(rows, jnp.float32) for rows in stuck_rows(16))
    for momentum in (0.0, 0.8):
        optimizer = lljax.exponentiated_gradient(0.2, momentum=momentum, cutoff=cutoff)
        assert relative_gaps(optimizer, policy, gradient, 60)[-1].max() < 1e-3


def test_rows_that_have_nowhere_to_go_stay():
    vertex, face = [1.0, 0.0, 0.0], [0.25, 0.75, 0.0]
    policy = jnp.array([vertex, face, vertex, face], jnp.float32)
    gradient = jnp.array([[1, 1, 1], [1, 1, 1], [0, 1, 2], [0.3, 0.3, 2]], jnp.float32)
    for momentum in (0.0, 0.8):
        optimizer = lljax.exponentiated_gradient(0.1, momentum=momentum, cutoff=0.1)
        assert (relative_gaps(optimizer, policy[2:], gradient[2:], 20) <= 1e-7).all()
        state, moved = optimizer.init(policy), policy
        for _ in range(5):
            moved, state = optimizer.update(gradient, state, moved)
        np.testing.assert_allclose(moved, policy, rtol=1e-5)
        one = jnp.ones((3, 1), jnp.float32)
        np.testing.assert_array_equal(optimizer.update(-one, optimizer.init(one), one)[0], one)


def test_the_spread_counts_the_examples_that_wait():
    """By hand: the variance under gamma, or a hundredth of the mean square of the two that wait."""
    policy = np.array([[0.6, 0.4, 0.0, 0.001, 0.0]])
    gradient = np.array([[1.0, 1.01, 0.5, -1.0, 3.0]])
    policy /= policy.sum()
    centred = gradient - (policy * gradient).sum()
    variance = (policy * centred**2).sum()
    mean_square = (centred[0, 2:4] ** 2).mean()
    assert variance < mean_square / 100
    spread = np.sqrt(mean_square) / 10
    least = 0.1 / 5
    start = np.where(policy < least, policy / least, 1 + np.log(np.maximum(policy / least, 1)))
    dual = start - 0.3 * centred / spread
    expected = np.where(dual < 1, np.maximum(dual, 0), np.exp(dual - 1))
    optimizer = lljax.exponentiated_gradient(0.3, cutoff=0.1)
    moved, _ = optimizer.update(jnp.array(gradient), optimizer.init(policy), jnp.array(policy))
    np.testing.assert_allclose(moved, expected / expected.sum(), rtol=1e-12)


def test_a_rate_that_falls_still_brings_it_there():
    policy, gradient = (jnp.asarray(rows, jnp.float32) for rows in stuck_rows(16))
    schedule = functools.partial(jnp.polyval, jnp.array([-0.004, 0.3]))
    optimizer = lljax.exponentiated_gradient(schedule, momentum=0.5, cutoff=0.1)
    assert relative_gaps(optimizer, policy, gradient, 50)[-1].max() < 1e-3


@pytest.mark.parametrize("cutoff", [0.0, 0.1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_whose_slopes_are_not_finite_is_visible(bad, cutoff):
    policy = jnp.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    optimizer = lljax.exponentiated_gradient(0.1, cutoff=cutoff)
    gradient = jnp.array([[1.0, 2.0, bad], [1.0, 2.0, 3.0]])
    moved, _ = optimizer.update(gradient, optimizer.init(policy), policy)
    assert jnp.isnan(moved[0]).all()
    assert moved[1, 0] > 0.5


def test_an_optimisation_from_vertices_leaves_them():
    def objective(policy, *_):
        return jnp.sum(policy @ jnp.arange(6.0)[::-1]) + jnp.sum(policy[:, 2] ** 2), None

    start = jnp.eye(6)[:4]
    result = lljax.optimize_policy(
        objective,
        start,
        {},
        jnp.zeros(6),
        jnp.zeros(1),
        optimizer=lljax.exponentiated_gradient(0.1, momentum=0.8, cutoff=0.1),
        num_steps=60,
    )
    gaps = lljax.optimality_gap(result.policy, result.policy_grad)
    assert gaps.max() < 1e-3 * 5
