import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import compiled, logistic_loss, make_logistic, normal

import lljax
from lljax.tasks import OuterConfig, meta_optimizer

METHODS = {
    "projected_gradient": lljax.projected_gradient(0.5),
    "exponentiated_gradient": lljax.exponentiated_gradient(0.3),
    "with_momentum": lljax.exponentiated_gradient(0.1, momentum=0.8),
    "smoothed": lljax.smoothed(lljax.exponentiated_gradient(0.3), passes=3),
}


def setup(num_train=40):
    _, *rest = make_logistic(num_steps=20, num_train=num_train, num_desired=16)
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.5))
    return loss_auc, lljax.uniform_policy(20, num_train, jnp.float64), rest


@pytest.mark.parametrize("name", METHODS)
def test_a_loop_of_ones_own(name):
    """init and update are all a user needs; the AUC falls and the rows stay distributions."""
    loss_auc, policy, rest = setup()
    value_and_grad = compiled(jax.value_and_grad(loss_auc, has_aux=True))
    update = compiled(METHODS[name].update)
    state = METHODS[name].init(policy)
    (start, _), gradient = value_and_grad(policy, *rest)
    for _ in range(3):
        policy, state = update(gradient, state, policy)
        lljax.check_policy(policy, tolerance=1e-12)
        (auc, _), gradient = value_and_grad(policy, *rest)
    assert auc < 0.99 * start


def test_exponentiated_gradient_is_blind_to_the_scale_of_a_row():
    policy = jax.nn.softmax(normal(0, (4, 9), jnp.float32))
    gradient = normal(1, (4, 9), jnp.float32)
    scale = jnp.array([[1.0], [1e-25], [1e25], [7.0]], jnp.float32)
    optimizer = lljax.exponentiated_gradient(0.3)
    plain, _ = optimizer.update(gradient, optimizer.init(policy), policy)
    scaled, _ = optimizer.update(gradient * scale, optimizer.init(policy), policy)
    np.testing.assert_allclose(scaled, plain, rtol=1e-5)
    assert jnp.abs(plain - policy).max() > 0.01


def test_exponentiated_gradient_leaves_a_stationary_row_and_zeros_alone():
    policy = jnp.array([[0.2, 0.3, 0.5, 0.0]])
    optimizer = lljax.exponentiated_gradient(1.0, momentum=0.5)
    same, _ = optimizer.update(jnp.full((1, 4), 3.0), optimizer.init(policy), policy)
    np.testing.assert_allclose(same, policy)
    moved, _ = optimizer.update(jnp.arange(4.0)[None], optimizer.init(policy), policy)
    assert moved[0, 3] == 0
    assert moved[0, 0] > policy[0, 0]


def test_schedules_and_scale_multiply_the_rate():
    policy = jnp.full((1, 3), 1 / 3)
    gradient = jnp.array([[1.0, 0.0, -1.0]])
    for method in (lljax.projected_gradient, lljax.exponentiated_gradient):
        plain = method(0.1)
        scheduled = method(lambda count: jnp.where(count == 0, 0.4, 0.1))
        state = scheduled.init(policy)
        first, state = scheduled.update(gradient, state, policy, 0.25)
        expected, _ = plain.update(gradient, plain.init(policy), policy)
        np.testing.assert_allclose(first, expected)
        second, _ = scheduled.update(gradient, state, policy)
        np.testing.assert_allclose(second, expected)


@pytest.mark.parametrize("method", [lljax.projected_gradient, lljax.exponentiated_gradient])
def test_smoothing_averages_over_neighbouring_steps(method):
    policy = jax.nn.softmax(normal(0, (7, 5), jnp.float64))
    gradient = normal(1, (7, 5), jnp.float64)
    mean = np.asarray(gradient)
    for _ in range(2):
        padded = np.pad(mean, ((1, 1), (0, 0)), mode="edge")
        mean = np.stack([np.convolve(column, [0.25, 0.5, 0.25], "valid") for column in padded.T], 1)
    plain, smooth = method(0.1), lljax.smoothed(method(0.1), passes=2)
    expected, _ = plain.update(mean, plain.init(policy), policy)
    found, _ = smooth.update(gradient, smooth.init(policy), policy)
    np.testing.assert_allclose(found, expected, rtol=1e-12)

    oscillating = gradient[:1] * (-1.0) ** jnp.arange(7)[:, None]
    found, _ = smooth.update(oscillating, smooth.init(policy), policy)
    np.testing.assert_allclose(found[2:-2], policy[2:-2], rtol=1e-12)


def test_a_runs_settings_smooth():
    policy = jax.nn.softmax(normal(0, (7, 5), jnp.float64))
    gradient = normal(1, (7, 5), jnp.float64)
    config = OuterConfig(learning_rate=0.2, momentum=0.5, smoothing=3)
    method = lljax.smoothed(lljax.exponentiated_gradient(0.2, momentum=0.5), passes=3)
    (expected, _), (found, _) = (
        one.update(gradient, one.init(policy), policy) for one in (method, meta_optimizer(config))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_optimize_policy_only_ever_improves_and_closes_the_gap(name):
    loss_auc, policy, rest = setup()
    gradient, _ = jax.grad(loss_auc, has_aux=True)(policy, *rest)

    @jax.jit
    def optimise(policy):
        return lljax.optimize_policy(loss_auc, policy, *rest, optimizer=METHODS[name], num_steps=60)

    result = optimise(policy)
    assert (jnp.diff(result.auc_history) <= 0).all()
    assert result.auc_history[-1] == result.auc < 0.97 * result.auc_history[0]
    np.testing.assert_array_equal(result.accepted, jnp.diff(result.auc_history) < 0)
    np.testing.assert_allclose(loss_auc(result.policy, *rest)[0], result.auc, rtol=1e-12)
    gaps = [
        float(lljax.optimality_gap(*pair).sum())
        for pair in ((policy, gradient), (result.policy, result.policy_grad))
    ]
    assert gaps[1] < 0.3 * gaps[0]


def test_a_rough_objective_is_survived():
    """A far too large rate, and an objective that is NaN away from the start."""
    loss_auc, policy, rest = setup()

    def rough(policy, *arguments):
        auc, info = loss_auc(policy, *arguments)
        return jnp.where(policy.max() > 0.2, jnp.nan, auc), info

    result = lljax.optimize_policy(
        rough, policy, *rest, optimizer=lljax.projected_gradient(1e6), num_steps=40
    )
    assert not result.accepted[0]
    assert result.accepted.any()
    assert jnp.isfinite(result.policy_grad).all()
    assert jnp.isfinite(result.auc)
    assert result.auc < result.auc_history[0]
    assert result.policy.max() <= 0.2


def test_a_gradient_that_is_not_finite_is_not_taken():
    loss_auc, policy, rest = setup()

    def broken(policy, *arguments):
        auc, info = loss_auc(policy, *arguments)
        far = jnp.abs(policy - 1 / policy.shape[1]).max() > 1e-3
        # Far away the value is lower, hence tempting, and the slope of sqrt(0) infinite.
        return auc + jnp.sqrt(jnp.where(far, jnp.sum(policy * 0), 1)), info

    result = lljax.optimize_policy(
        broken, policy, *rest, optimizer=lljax.exponentiated_gradient(0.3), num_steps=12
    )
    assert jnp.isfinite(result.policy_grad).all()
    assert not result.accepted[0]
    assert result.accepted.any()


def test_momentum_that_leads_nowhere_is_forgotten():
    """Where the momentum points uphill, a shrinking step alone would be rejected for ever."""
    loss_auc, policy, rest = setup()
    loop = lljax.build_outer_loop(loss_auc, METHODS["with_momentum"])
    step = compiled(loop.step)
    state = step(loop.init(policy, *rest), *rest)
    count, trace = state.optimizer_state
    uphill = state._replace(optimizer_state=(count, -100 * trace))
    accepted = []
    for _ in range(8):
        uphill = step(uphill, *rest)
        accepted.append(bool(uphill.accepted))
    assert accepted[:3] == [False] * 3
    assert any(accepted[3:])


def test_many_seeds_in_one_program():
    loss_auc, policy, _ = setup()
    problems = [make_logistic(key, num_train=40, num_desired=16)[1:] for key in range(3)]

    def optimise(*rest):
        return lljax.optimize_policy(
            loss_auc, policy, *rest, optimizer=METHODS["with_momentum"], num_steps=5
        )

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    together = compiled(jax.vmap(optimise))(*stacked)
    alone = compiled(optimise)(*problems[1])
    np.testing.assert_allclose(together.policy[1], alone.policy, rtol=1e-10)
    np.testing.assert_allclose(together.auc_history[1], alone.auc_history, rtol=1e-10)


def test_bad_arguments_are_named():
    loss_auc, policy, rest = setup()
    optimizer = METHODS["projected_gradient"]
    with pytest.raises(ValueError, match="`num_steps` must be an int, at least 1"):
        lljax.optimize_policy(loss_auc, policy, *rest, optimizer=optimizer, num_steps=0)
    with pytest.raises(ValueError, match="row 0 does not sum to 1"):
        lljax.optimize_policy(loss_auc, 2 * policy, *rest, optimizer=optimizer, num_steps=1)
    with pytest.raises(ValueError, match="may be transposed"):
        lljax.optimize_policy(loss_auc, policy.T, *rest, optimizer=optimizer, num_steps=1)
    with pytest.raises(ValueError, match="must be a MetaOptimizer"):
        lljax.optimize_policy(loss_auc, policy, *rest, optimizer=optax.sgd(0.1), num_steps=1)
    with pytest.raises(ValueError, match="`momentum`"):
        lljax.exponentiated_gradient(0.1, momentum=1.0)
    with pytest.raises(ValueError, match="`passes` must be an int, at least 1"):
        lljax.smoothed(optimizer, 0)
    with pytest.raises(ValueError, match="must be a MetaOptimizer, such as"):
        lljax.smoothed(optax.sgd(0.1), 1)
    with pytest.raises(ValueError, match="`shrink`"):
        lljax.build_outer_loop(loss_auc, optimizer, shrink=2.0)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("num_train", [2, 16, 300])
def test_a_row_leaves_the_examples_it_is_on_for_a_better_one(num_train, momentum):
    """From the worst example, and from two of equal slope; float32, rows of any size of slope."""
    slopes = np.arange(num_train)[::-1].astype(np.float32)
    on_one, on_two = np.zeros((2, num_train), np.float32)
    on_one[0], on_two[:2] = 1, 0.5
    equal = slopes.copy()
    equal[: min(2, num_train - 1)] = slopes[0]
    policy = jnp.asarray(np.stack([on_one, on_one, on_two]))
    if num_train == 2:
        policy = policy[:2]
    grad = jnp.asarray(np.stack([slopes, 1e-30 * slopes, equal])[: len(policy)])
    optimizer = lljax.exponentiated_gradient(0.5, momentum=momentum, cutoff=0.3)
    update, state = jax.jit(optimizer.update), optimizer.init(policy)
    for _ in range(30):
        policy, state = update(grad, state, policy)
    spread = grad.max(axis=1) - grad.min(axis=1)
    assert np.all(lljax.optimality_gap(policy, grad) <= 1e-3 * spread)


def test_a_row_of_equal_slopes_stays():
    policy = jnp.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    optimizer = lljax.exponentiated_gradient(0.5, momentum=0.8, cutoff=0.3)
    moved, _ = optimizer.update(jnp.full((2, 3), 0.7), optimizer.init(policy), policy)
    np.testing.assert_array_equal(moved, policy)
