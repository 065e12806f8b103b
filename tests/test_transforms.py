"""What is not finite, and what JAX can do with the objective: export, strict dtypes, directions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from problems import assert_close, compiled, logistic_loss, make_logistic, normal

import lljax

SGD = optax.sgd(0.3)
ADAMW = optax.adamw(0.1, eps_root=1e-8)
METHOD = lljax.exponentiated_gradient(0.3)
WAYS = [
    {},
    {"memory": lljax.RecomputeStates(), "microbatch_size": 4},
    {"memory": lljax.OffloadStates(), "microbatch_size": 4, "zero_weight": "slope_only"},
]


def gradient_of(optimizer=SGD, **options):
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer, check_optimizer=False, **options)
    return jax.grad(lambda *problem: loss_auc(*problem)[0])


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_gradient_can_be_exported(options):
    problem = make_logistic()
    program = jax.jit(gradient_of(**options))
    exported = export.export(program)(*problem)
    assert_close(exported.call(*problem), program(*problem), 1e-12)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_arrays_without_numbers_are_no_obstacle(options):
    problem = make_logistic()
    expected = compiled(gradient_of(**options))(*problem)
    train, desired = (
        {**batch, "nothing": jnp.zeros((len(batch["y"]), 0))}
        for batch in (problem.train, problem.desired)
    )
    found = compiled(gradient_of(**options))(*problem._replace(train=train, desired=desired))
    assert_close(found, expected, 1e-12)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_strict_promotion_gives_the_same(options):
    """With an optimiser that mixes dtypes itself, as optax's AdamW does."""
    problem, options = make_logistic(dtype=jnp.float32), options | {"optimizer": ADAMW}
    expected = compiled(gradient_of(**options))(*problem)
    with jax.numpy_dtype_promotion("strict"):
        assert_close(jax.jit(gradient_of(**options))(*problem), expected, 1e-5)


@pytest.mark.slow
def test_strict_promotion_of_all_that_acts_on_policies():
    problem = make_logistic(num_steps=3, dtype=jnp.float32)
    loss_auc = lljax.build_loss_auc(logistic_loss, ADAMW, microbatch_size=4)
    exponentiated = lljax.exponentiated_gradient(0.1, momentum=0.8, cutoff=0.1)

    def everything(policy, params, train, desired):
        row = policy[0]
        ct = lljax.contributions(logistic_loss, params, train, desired)
        edges = jnp.linspace(0, 1, 3, dtype=jnp.float32)
        projected = lljax.projected_gradient(0.1)
        return (
            projected.update(policy, projected.init(policy), policy),
            lljax.optimize_policy(
                loss_auc,
                policy,
                params,
                train,
                desired,
                optimizer=lljax.smoothed(exponentiated, 2),
                num_steps=1,
            ).policy,
            lljax.contribution_similarity(ct, row),
            lljax.zero_weight_share(ct, row),
            lljax.redundant_share(ct, row),
            lljax.learned_weight_counts(ct, row, edges),
            lljax.optimality_gap(policy, policy),
            lljax.effective_sample_size(policy),
            lljax.entropy(policy),
            lljax.compression_ratio(row, 7),
            lljax.acceleration_ratio(row, row),
            lljax.unroll(logistic_loss, ADAMW, policy, params, train, lambda _, r: r.sum()),
        )

    expected = compiled(everything)(*problem)
    with jax.numpy_dtype_promotion("strict"):
        found = compiled(everything)(*problem)
        lljax.check_policy(problem.policy)
        lljax.check_loss_fn(logistic_loss, problem.params, problem.train)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


def test_forward_mode_is_refused_in_words_and_its_cures_work():
    policy, *rest = make_logistic()
    direction = normal(1, policy.shape)
    loss_auc = lljax.build_loss_auc(logistic_loss, SGD, microbatch_size=4)
    words = r"differentiated in reverse: jax.jvp and jax.jacfwd of it .*lljax.unroll"
    with pytest.raises(ValueError, match=words):
        jax.jvp(lambda p: loss_auc(p, *rest), (policy,), (direction,))
    with pytest.raises(ValueError, match=words):
        jax.jacfwd(lambda scale: loss_auc(scale * policy, *rest)[0])(1.0)

    gradient = gradient_of(microbatch_size=4)

    def along(policy, direction):
        return jax.jvp(lambda p: gradient(p, *rest), (policy,), (direction,))

    value, product = compiled(along)(policy, direction)
    step = 1e-5 * direction
    ahead, behind = (compiled(gradient)(p, *rest) for p in (policy + step, policy - step))
    assert_close(product, (ahead - behind) / 2e-5, 1e-6)

    def plain(policy):
        params, train, desired = rest
        observe = lambda theta, _: logistic_loss(theta, desired).mean()  # noqa: E731
        losses = lljax.unroll(logistic_loss, SGD, policy, params, train, observe)[1]
        return losses[1:].mean()

    slope = compiled(lambda *both: jax.jvp(plain, both[:1], both[1:])[1])(policy, direction)
    np.testing.assert_allclose(slope, np.vdot(value, direction), rtol=1e-9)


def test_a_start_that_is_not_finite_is_refused():
    policy, params, train, desired = make_logistic()
    options = {"optimizer": METHOD, "num_steps": 2}
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1))
    broken = {**train, "z": train["z"].at[3, 0].set(jnp.nan)}
    with pytest.raises(ValueError, match=r"AUC of `policy` is nan: .* not finite from t = 1 on"):
        lljax.optimize_policy(loss_auc, policy, params, broken, desired, **options)

    def steep(policy, *_):  # a value, but no slope in one entry
        return jnp.sum(jnp.sqrt(policy.at[5, 2].multiply(0))), None

    with pytest.raises(ValueError, match=r"meta-gradient .* 1 of 23 rows, first at step 5, exam"):
        lljax.optimize_policy(steep, policy, params, train, desired, **options)


def test_what_was_not_finite_is_told_under_jit_and_vmap():
    policy, params, train, desired = make_logistic()
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1))

    def optimise(train):
        return lljax.optimize_policy(
            loss_auc, policy, params, train, desired, optimizer=METHOD, num_steps=3
        ).finite

    broken = {**train, "z": train["z"].at[3, 0].set(jnp.nan)}
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), train, broken)
    finite = compiled(jax.vmap(optimise))(both)
    np.testing.assert_array_equal(finite, [[True] * 4, [False] * 4])


def test_a_trial_whose_value_or_gradient_is_not_finite_is_told():
    start = jnp.full((1, 2), 0.5)

    def objective(policy, *_):
        weight = policy[0, 0]
        # Below 0.3 no value; below 0.4 a value that is better, and no slope.
        edge = jnp.sqrt(jnp.where(weight < 0.4, 0 * weight, 1.0))
        return jnp.where(weight < 0.3, jnp.nan, weight + edge), None

    def first_trial(rate):
        return lljax.optimize_policy(
            objective,
            start,
            {},
            jnp.zeros(2),
            jnp.zeros(1),
            optimizer=lljax.projected_gradient(rate),
            num_steps=1,
        )

    for rate, finite in ((0.1, True), (0.3, False), (0.5, False)):
        result = first_trial(rate)
        np.testing.assert_array_equal(result.finite, [True, finite])
        np.testing.assert_array_equal(result.accepted, [finite])
