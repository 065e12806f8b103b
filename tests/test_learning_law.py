"""Contributions, SIM, Properties 4.1 to 4.3 and the optimality gap, each against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import compiled

import lljax
from lljax.learning_law import (
    contribution_similarity,
    contributions,
    learned_weight_counts,
    optimality_gap,
    redundant_share,
    zero_weight_share,
)

N, K, D = 7, 5, 3


def loss_fn(params, batch):
    logits = batch["z"] @ params["slope"] + params["bias"]
    return optax.sigmoid_binary_cross_entropy(logits, batch["y"])


def make_batch(seed, size):
    rng = np.random.default_rng(seed)
    return {"z": rng.normal(size=(size, D)), "y": rng.integers(2, size=size).astype(float)}


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    params = {"slope": jnp.array(rng.normal(size=D)), "bias": jnp.array(rng.normal())}
    train, desired = (jax.tree.map(jnp.array, make_batch(i, s)) for i, s in ((1, N), (2, K)))
    return params, train, desired


def numpy_gradients(params, batch):
    """Per-example gradients [B, D+1] of the logistic loss, written by hand."""
    z, y = np.asarray(batch["z"]), np.asarray(batch["y"])
    logits = z @ np.asarray(params["slope"]) + float(params["bias"])
    error = 1 / (1 + np.exp(-logits)) - y
    return error[:, None] * np.concatenate([z, np.ones((len(y), 1))], axis=1)


def numpy_contributions(params, train, desired):
    return numpy_gradients(params, train) @ numpy_gradients(params, desired).mean(0)


@pytest.mark.parametrize("microbatch_size", [None, 1, 3, N, 100])
def test_contributions_are_products_of_gradients(problem, microbatch_size):
    # 3 divides neither N = 7 nor K = 5, so both batches are filled up.
    got = contributions(loss_fn, *problem, microbatch_size=microbatch_size)
    np.testing.assert_allclose(got, numpy_contributions(*problem), rtol=1e-12)


def test_contributions_are_the_policy_derivative_of_one_step():
    # A desired loss that is linear in theta has the same gradient before and after the step, so
    # dL(theta_1) / dgamma_n = -eta CT_n holds exactly; `curved` bends the training losses only.
    def bent_loss(params, batch):
        score = batch["z"] @ params
        return score + batch["curved"] * score**2

    rng = np.random.default_rng(3)
    train = {"z": jnp.array(rng.normal(size=(N, D))), "curved": jnp.ones(N)}
    desired = {"z": jnp.array(rng.normal(size=(K, D))), "curved": jnp.zeros(K)}
    params, eta = jnp.array(rng.normal(size=D)), 0.3
    loss_auc = lljax.build_loss_auc(bent_loss, optax.sgd(eta))
    policy = lljax.uniform_policy(1, N, params.dtype)
    grad, _ = jax.grad(loss_auc, has_aux=True)(policy, params, train, desired)
    expected = -eta * contributions(bent_loss, params, train, desired)
    np.testing.assert_allclose(grad[0], expected, rtol=1e-12)


def test_contributions_follow_a_permutation_of_the_examples(problem):
    params, train, desired = problem
    order = np.random.default_rng(4).permutation(N)
    permuted = contributions(
        loss_fn, params, jax.tree.map(lambda a: a[order], train), desired, microbatch_size=2
    )
    np.testing.assert_allclose(
        permuted, contributions(loss_fn, params, train, desired)[order], rtol=1e-12
    )


def test_contributions_under_jit_and_vmap(problem):
    params, train, desired = problem
    several = jax.tree.map(lambda p: jnp.stack([p, -p, 2 * p]), params)

    def compute(p):
        return contributions(loss_fn, p, train, desired, microbatch_size=2)

    got = compiled(jax.vmap(compute))(several)
    for i, factor in enumerate((1, -1, 2)):
        one = jax.tree.map(lambda p, f=factor: f * p, params)
        np.testing.assert_allclose(got[i], numpy_contributions(one, train, desired), rtol=1e-12)


def test_contributions_form_no_per_example_gradient(problem):
    """No array of the traced program has both the example axis and all parameter axes."""
    size, wide = 11, 13

    def wide_loss(params, batch):
        return jnp.sum(jnp.tanh(batch @ params), axis=-1)

    params, batch = jnp.ones((wide, 17)), jnp.ones((size, wide))
    traced = jax.make_jaxpr(lambda p: contributions(wide_loss, p, batch, batch))(params)
    assert f"[{wide},17]" in str(traced)
    assert f"[{size},{wide},17]" not in str(traced)


def test_contributions_name_the_argument_that_is_wrong(problem):
    params, train, desired = problem
    with pytest.raises(ValueError, match=r"`microbatch_size` must be an int, at least 1.*got 0"):
        contributions(loss_fn, params, train, desired, microbatch_size=0)
    with pytest.raises(ValueError, match="`desired` is empty"):
        contributions(loss_fn, params, train, jax.tree.map(lambda a: a[:0], desired))
    with pytest.raises(ValueError, match="one loss an example"):
        contributions(lambda p, b: loss_fn(p, b).mean(), params, train, desired)


def random_row(seed=5, size=40):
    """(CT, gamma) with signs of both kinds and a quarter of exact zeros."""
    rng = np.random.default_rng(seed)
    weights = rng.random(size)
    weights[rng.permutation(size)[: size // 4]] = 0
    return rng.normal(size=size) + 1, weights / weights.sum()


def numpy_similarity(ct, weights, threshold=0.0):
    in_use = weights > threshold
    mean = np.dot(weights, ct)
    squares = np.sum((ct[in_use] - mean) ** 2)
    return mean / np.sqrt(squares / (in_use.sum() - 1))


@pytest.mark.parametrize("threshold", [0.0, 0.01])
def test_similarity_is_equation_7(threshold):
    ct, weights = random_row()
    expected = numpy_similarity(ct, weights, threshold)
    got = contribution_similarity(ct, weights, threshold)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert threshold == 0 or abs(expected - numpy_similarity(ct, weights)) > 1e-3


def test_similarity_ignores_scale_and_order_but_not_sign():
    ct, weights = random_row()
    reference = contribution_similarity(ct, weights)
    order = np.random.default_rng(6).permutation(len(ct))
    for other in (
        contribution_similarity(1024 * ct, weights),
        contribution_similarity(ct[order], weights[order]),
        -contribution_similarity(-ct, weights),
    ):
        np.testing.assert_allclose(other, reference, rtol=1e-12)


def test_similarity_of_tiny_contributions_does_not_underflow():
    ct, weights = (jnp.asarray(a, jnp.float32) for a in random_row())
    tiny = contribution_similarity(ct * jnp.float32(1e-30), weights)
    np.testing.assert_allclose(tiny, contribution_similarity(ct, weights), rtol=1e-5)


@pytest.mark.parametrize(
    ("ct", "weights", "expected"),
    [
        ([2.0, 2.0, 9.0], [0.5, 0.5, 0.0], np.inf),
        ([-2.0, -2.0, 9.0], [0.5, 0.5, 0.0], -np.inf),
        ([0.0, 0.0, 9.0], [0.5, 0.5, 0.0], np.nan),
        ([2.0, 3.0, 9.0], [0.0, 1.0, 0.0], np.nan),
        ([2.0, 3.0, 9.0], [0.0, 0.0, 0.0], np.nan),
        ([2.0, np.nan, 9.0], [0.5, 0.5, 0.0], np.nan),
    ],
)
def test_similarity_at_its_limits(ct, weights, expected):
    got = contribution_similarity(jnp.array(ct), jnp.array(weights))
    np.testing.assert_equal(float(got), expected)


def test_optimality_gap_is_the_best_linear_gain():
    rng = np.random.default_rng(7)
    policy = rng.dirichlet(np.ones(6), size=4)
    grad = rng.normal(size=(4, 6))
    # Over a simplex the linear function <g, .> is smallest at a vertex: try all of them.
    gains = [
        [row @ g - vertex @ g for vertex in np.eye(6)] for row, g in zip(policy, grad, strict=True)
    ]
    np.testing.assert_allclose(optimality_gap(policy, grad), np.max(gains, axis=1), rtol=1e-12)


def test_optimality_gap_vanishes_exactly_where_the_law_holds():
    policy = jnp.array([[0.25, 0.75, 0.0], [0.25, 0.0, 0.75], [0.0, 0.0, 1.0]], jnp.float32)
    grad = jnp.array([[-0.1, -0.1, 5.0]] * 3, jnp.float32)
    assert optimality_gap(policy, grad).tolist()[0] == 0
    np.testing.assert_allclose(optimality_gap(policy, grad)[1:], [0.75 * 5.1, 5.1], rtol=1e-6)


def test_optimality_gap_is_never_negative_in_float32():
    policy = jax.random.dirichlet(jax.random.key(0), jnp.ones(300), (50,), jnp.float32)
    grad = jnp.full((50, 300), -0.1, jnp.float32)
    assert (policy.sum(1) != 1).any()
    assert (optimality_gap(policy, grad) == 0).all()


def test_optimality_gap_refuses_shapes_that_differ():
    with pytest.raises(ValueError, match=r"\(T, N\); got \(2, 3\) and \(3, 2\)"):
        optimality_gap(jnp.ones((2, 3)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"\(T, N\); got \(\)"):
        optimality_gap(jnp.ones(()), jnp.ones(()))


def test_the_gap_of_one_simplex_is_that_of_a_row():
    rng = np.random.default_rng(8)
    policy, grad = rng.dirichlet(np.ones(6), size=(2, 3)), rng.normal(size=(2, 3, 6))
    gaps = optimality_gap(policy, grad)
    assert gaps.shape == (2, 3)
    np.testing.assert_allclose(gaps[1, 2], optimality_gap(policy[1, 2], grad[1, 2]), rtol=1e-14)
    expected = policy[1, 2] @ grad[1, 2] - grad[1, 2].min()
    np.testing.assert_allclose(gaps[1, 2], expected, rtol=1e-12)


def test_a_gap_is_unknown_where_a_slope_is():
    policy, grad = jnp.array([[0.5, 0.5, 0.0]] * 2), jnp.array([[1.0, 2.0, 0.0]] * 2)
    known = jnp.array([[True, True, False], [True, True, True]])
    gaps = optimality_gap(policy, grad, known)
    assert jnp.isnan(gaps[0])
    assert gaps[1] == 1.5
    assert jnp.isnan(optimality_gap(policy[0], grad[0], known[0]))


def test_shares_count_examples_without_weight():
    ct = jnp.array([-1.0, 0.0, -2.0, -3.0, 1.0, 2.0, 3.0])
    weights = jnp.array([0.0, 0.0, 1e-5, 0.2, 0.0, 0.3, 0.5])
    # CT = 0 belongs to Property 4.1 ("CT <= 0").
    assert zero_weight_share(ct, weights) == 2 / 4
    assert zero_weight_share(ct, weights, 1e-5) == 3 / 4
    np.testing.assert_allclose(redundant_share(ct, weights), 1 / 3)
    np.testing.assert_allclose(redundant_share(ct, weights, 0.3), 2 / 3)


def test_shares_of_nothing_are_nan():
    weights = jnp.array([0.0, 1.0])
    assert jnp.isnan(zero_weight_share(jnp.array([1.0, 2.0]), weights))
    assert jnp.isnan(redundant_share(jnp.array([-1.0, 0.0]), weights))


def test_learned_weight_counts_are_a_cumulative_distribution():
    rng = np.random.default_rng(8)
    losses = 10 ** rng.uniform(-9, 0, size=50)
    _, weights = random_row(size=50)
    edges = np.linspace(0, 1, 9)
    learned = losses < 1e-6
    assert 0 < learned.sum() < 50
    relative = weights[learned] / weights.max()
    expected = [(relative <= edge).sum() for edge in edges]
    got = learned_weight_counts(losses, weights, edges)
    assert got.tolist() == expected
    assert got[-1] == learned.sum()
    everything = learned_weight_counts(losses, weights, edges, learned_loss=2.0)
    assert everything[-1] == 50


def test_learned_weight_counts_at_their_limits():
    losses, edges = jnp.array([1e-8, 1e-6]), jnp.array([0.0, 1.0])  # 1e-6 itself is not below
    assert learned_weight_counts(losses, jnp.zeros(2), edges).tolist() == [1, 1]
    assert learned_weight_counts(losses, jnp.array([jnp.nan, 1.0]), edges).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"`edges` must be a vector \(E,\)"):
        learned_weight_counts(losses, losses, jnp.ones((2, 2)))


@pytest.mark.parametrize("measure", [contribution_similarity, zero_weight_share, redundant_share])
def test_row_measures_name_a_wrong_shape(measure):
    with pytest.raises(ValueError, match=r"`weights` must share a shape \(N,\).*\(4,\) and \(3,\)"):
        measure(jnp.ones(4), jnp.ones(3))
    with pytest.raises(ValueError, match=r"\(2, 4\).*Use jax.vmap"):
        measure(jnp.ones((2, 4)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"\(0,\)"):
        measure(jnp.ones(0), jnp.ones(0))


def test_everything_works_as_an_observer_of_a_vmapped_run(problem):
    """Under jit, vmap over policies and scan, the same numbers as step by step in NumPy."""
    params, train, desired = problem
    rng = np.random.default_rng(9)
    policies = rng.dirichlet(np.ones(N), size=(2, 3))
    policies[:, :, 0] = 0  # one example without weight; the rows need not sum to 1 here
    eta, edges = 0.2, jnp.array([0.0, 0.5, 1.0])

    def observe(theta, row):
        ct = contributions(loss_fn, theta, train, desired, microbatch_size=3)
        losses = loss_fn(theta, train)
        return {
            "similarity": contribution_similarity(ct, row, 0.05),
            "excluded": zero_weight_share(ct, row, 0.05),
            "redundant": redundant_share(ct, row, 0.05),
            "learned": learned_weight_counts(losses, row, edges, learned_loss=0.5),
        }

    @jax.jit
    @jax.vmap
    def run(policy):
        return lljax.unroll(loss_fn, optax.sgd(eta), policy, params, train, observe)[1]

    seen = run(jnp.array(policies))
    shares = []
    for p, policy in enumerate(policies):
        theta = jax.tree.map(np.asarray, params)
        for t in range(4):
            row = policy[min(t, 2)]
            ct = numpy_contributions(theta, train, desired)
            at = {name: values[p, t] for name, values in seen.items()}
            np.testing.assert_allclose(at["similarity"], numpy_similarity(ct, row, 0.05), 1e-9)
            for name, among in (("excluded", ct <= 0), ("redundant", ct > 0)):
                share = (row[among] <= 0.05).mean() if among.any() else np.nan
                np.testing.assert_allclose(at[name], share)
                shares.append(share)
            relative = row[np.asarray(loss_fn(theta, train)) < 0.5] / row.max()
            assert at["learned"].tolist() == [(relative <= edge).sum() for edge in edges]
            step = row @ numpy_gradients(theta, train)
            theta = {
                "slope": theta["slope"] - eta * step[:D],
                "bias": theta["bias"] - eta * step[D],
            }
    assert len(set(shares)) > 2
