"""Examples without weight: what they may cost, and that leaving them out changes nothing."""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import optax
import pytest
from problems import compiled, logistic_loss, make_logistic, normal

import lljax

OPTIMIZERS = {
    "sgd": optax.sgd(0.3),
    "adamw": optax.adamw(0.1, eps_root=1e-8, weight_decay=0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
}
MICROBATCH = 4  # 17 examples: the last of five is filled up


def sparse_logistic(**sizes):
    """Rows with all examples, with one, with none, and with some of them."""
    policy, *rest = make_logistic(**sizes)
    keep = jax.random.bernoulli(jax.random.key(7), 0.3, policy.shape)
    keep = keep.at[0].set(True).at[1].set(False).at[1, 3].set(True).at[2].set(False)
    policy = jnp.where(keep, policy, 0)
    return policy / jnp.maximum(policy.sum(1, keepdims=True), 1e-9), *rest


def value_and_grads(**options):
    loss_auc = lljax.build_loss_auc(
        logistic_loss, options.pop("optimizer", OPTIMIZERS["sgd"]), **options
    )
    return compiled(jax.value_and_grad(loss_auc, argnums=(0, 1), has_aux=True))


def skipped(policy):
    """[T, N] bool: all but as many whole micro-batches as hold the examples with weight."""
    policy = np.asarray(policy)
    result = np.zeros(policy.shape, bool)
    for row, weights in zip(result, policy, strict=True):
        order = np.concatenate([np.flatnonzero(weights), np.flatnonzero(weights == 0)])
        row[order[-(-np.count_nonzero(weights) // MICROBATCH) * MICROBATCH :]] = True
    return result


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("sgd", lljax.RecomputeStates()),
        ("momentum", lljax.StoreStates()),
        ("adamw", lljax.StoreStates()),
    ],
)
def test_slopes_give_the_whole_gradient_and_omitting_says_which_are_known(name, memory):
    problem = sparse_logistic()
    optimizer = OPTIMIZERS[name]
    expected = value_and_grads(optimizer=optimizer)(*problem)
    options = {"optimizer": optimizer, "memory": memory, "microbatch_size": MICROBATCH}
    exact = value_and_grads(zero_weight="slope_only", **options)(*problem)
    chex.assert_trees_all_close(exact, expected, rtol=1e-11, atol=1e-13)

    (auc, info), grads = value_and_grads(zero_weight="omit", **options)(*problem)
    out = skipped(problem[0])
    assert 0.3 < out.mean() < 0.9
    np.testing.assert_array_equal(info.known_slopes, ~out)
    np.testing.assert_array_equal(lljax.known_slopes(problem[0], MICROBATCH), ~out)
    same = auc, info._replace(known_slopes=None)
    chex.assert_trees_all_close(same, expected[0], rtol=1e-12)
    chex.assert_trees_all_close(grads[1], expected[1][1], rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(grads[0][out], 0)
    np.testing.assert_allclose(grads[0][~out], expected[1][0][~out], rtol=1e-10, atol=1e-13)


def test_slopes_equal_a_numpy_recursion_and_finite_differences():
    policy, params, train, desired = sparse_logistic(num_steps=12)

    def loss_fn(theta, batch):
        return optax.sigmoid_binary_cross_entropy(batch["z"] @ theta, batch["y"])

    loss_auc = lljax.build_loss_auc(
        loss_fn, optax.sgd(0.3), zero_weight="slope_only", microbatch_size=MICROBATCH
    )
    auc = compiled(lambda policy: loss_auc(policy, params["w"], train, desired)[0])
    gradient = jax.grad(auc)(policy)
    examples = [tuple(np.asarray(batch[k]) for k in ("z", "y")) for batch in (train, desired)]
    _, expected, _ = reference.auc_and_gradients(
        reference.GradientDescent(0.3), np.asarray(policy), np.asarray(params["w"]), *examples
    )
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-9 * np.abs(expected).max())
    # A direction that gives weight to examples that have none.
    direction = normal(1, policy.shape)
    h = 1e-6
    difference = (auc(policy + h * direction) - auc(policy - h * direction)) / (2 * h)
    np.testing.assert_allclose(difference, jnp.vdot(gradient, direction), rtol=1e-6)


def test_what_has_no_weight_is_not_computed():
    """Examples that poison what touches them: any pass, or only second derivatives."""
    policy, params, train, desired = sparse_logistic()
    bad = jnp.arange(train["y"].size) % 5 == 0
    policy = jnp.where(bad, 0, policy)

    def poisoned(power, params, batch):
        losses = logistic_loss(params, batch)
        is_bad = batch["bad"] > 0
        root = jnp.abs(jnp.where(is_bad, jnp.sum(params["w"]) * 0, 1)) ** power
        return losses + jnp.where(is_bad, root, 0)

    def gradient(power, zero_weight):
        loss_auc = lljax.build_loss_auc(
            functools.partial(poisoned, power),
            optax.sgd(0.3),
            zero_weight=zero_weight,
            microbatch_size=1,
        )
        batches = [
            data | {"bad": mask.astype(float)}
            for data, mask in ((train, bad), (desired, jnp.zeros_like(desired["y"])))
        ]
        grads, _ = compiled(jax.grad(loss_auc, has_aux=True))(policy, params, *batches)
        return grads

    assert jnp.isfinite(gradient(2.0, "compute")).all()
    assert not jnp.isfinite(gradient(1.5, "compute")).all()  # only the second derivative is bad
    assert jnp.isfinite(gradient(1.5, "slope_only")).all()
    assert not jnp.isfinite(gradient(0.5, "slope_only")).all()  # the first one is bad too
    assert jnp.isfinite(gradient(0.5, "omit")).all()


@pytest.mark.parametrize("zero_weight", ["slope_only", "omit"])
def test_under_vmap_every_run_has_its_own_support(zero_weight):
    policy, *rest = sparse_logistic(num_steps=6)
    policies = jnp.stack([policy, policy[::-1]])
    loss_auc = lljax.build_loss_auc(
        logistic_loss, optax.sgd(0.3), zero_weight=zero_weight, microbatch_size=MICROBATCH
    )
    grads = compiled(jax.grad(lambda policy: loss_auc(policy, *rest)[0]))
    batched = compiled(jax.vmap(jax.grad(lambda policy: loss_auc(policy, *rest)[0])))(policies)
    np.testing.assert_allclose(batched, jnp.stack([*map(grads, policies)]), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("zero_weight", ["slope_only", "omit"])
def test_segments_pass_over_the_same_examples(zero_weight):
    policy, params, train, desired = sparse_logistic()
    options = {"zero_weight": zero_weight, "microbatch_size": MICROBATCH}
    built = lljax.build_segments(logistic_loss, OPTIMIZERS["sgd"], **options)
    segments = type(built)(*map(compiled, built))
    data, num_steps = (train, desired), len(policy)
    state, _ = segments.start(params, data, {})
    state, losses, kept = segments.forward(state, policy, data, {})
    factors = jnp.full(num_steps, 1 / num_steps)
    cotangent = segments.start_backward(state, factors[-1], data)
    _, grads = segments.backward(cotangent, kept, policy, factors.at[0].set(0), data)
    (auc, _), (expected, _) = value_and_grads(**options)(policy, params, train, desired)
    np.testing.assert_allclose(losses["objective"].mean(), auc, rtol=1e-12)
    np.testing.assert_allclose(grads, expected, rtol=1e-10, atol=1e-14)


def test_bad_arguments_are_named():
    with pytest.raises(
        ValueError, match="`zero_weight` must be one of compute, slope_only, omit; got 'n"
    ):
        lljax.build_loss_auc(logistic_loss, optax.sgd(0.1), zero_weight="none")
    for build in (lljax.build_loss_auc, lljax.build_segments):
        with pytest.raises(ValueError, match=r"give `microbatch_size` too, .* got None"):
            build(logistic_loss, optax.sgd(0.1), zero_weight="slope_only")
    with pytest.raises(ValueError, match=r"`cutoff` must be .* in \[0, 1\); got 1"):
        lljax.exponentiated_gradient(0.1, cutoff=1.0)


def test_a_cutoff_writes_zeros_and_takes_examples_back():
    optimizer = lljax.exponentiated_gradient(1.0, momentum=0.5, cutoff=0.1)
    policy = jnp.array([[0.2, 0.2, 0.03, 0.57]])
    out, state = optimizer.update(jnp.array([[0.0, 0.0, 3.0, 0.0]]), optimizer.init(policy), policy)
    assert out[0, 2] == 0
    lljax.check_policy(out, tolerance=1e-6)
    # A slope above the row's mean leaves it out, one below it brings it back with a small weight.
    same, _ = optimizer.update(jnp.array([[1.0, 0.0, 0.9, 0.0]]), state, out)
    assert same[0, 2] == 0
    back, _ = optimizer.update(jnp.array([[1.0, 0.0, -0.9, 0.0]]), state, out)
    assert 0.025 < back[0, 2] < 0.3
    lljax.check_policy(back, tolerance=1e-6)


@pytest.mark.parametrize("rate", [0.3, 0.01, 0.001])
def test_every_example_that_is_wanted_back_comes_back(rate):
    policy = jnp.concatenate([jnp.full(64, 1 / 64), jnp.zeros(64)])[None]
    slopes = normal(0, policy.shape)
    optimizer = lljax.exponentiated_gradient(rate, momentum=0.5, cutoff=0.1)
    update = compiled(optimizer.update)
    out, state = update(slopes, optimizer.init(policy), policy)
    wanted = (policy == 0) & (slopes < (policy * slopes).sum())
    assert 10 < wanted.sum() < 60
    np.testing.assert_array_equal((out > 0) & (policy == 0), wanted)
    again, _ = update(slopes, state, out)
    assert (again > 0)[wanted & (slopes < (out * slopes).sum())].all()
    # Small steps move little: an example comes back as softly as others lose their weight.
    assert abs(out - policy).max() < 4 * rate / 64


def test_weights_above_the_cutoff_move_as_without_one():
    slopes = normal(0, (3, 8))
    policy = jax.nn.softmax(normal(1, (3, 8)), axis=1)
    plain, sparse = (lljax.exponentiated_gradient(0.1, cutoff=cutoff) for cutoff in (0.0, 0.01))
    out, expected = (
        compiled(method.update)(slopes, method.init(policy), policy)[0]
        for method in (sparse, plain)
    )
    np.testing.assert_allclose(out, expected, rtol=1e-13)
    # Nor does a large step overflow in float32.
    large = lljax.exponentiated_gradient(1e4, cutoff=0.1)
    policy = policy.astype(jnp.float32)
    moved, _ = compiled(large.update)(slopes.astype(jnp.float32), large.init(policy), policy)
    np.testing.assert_array_equal(moved, jax.nn.one_hot(slopes.argmin(axis=1), 8))


def test_slopes_that_tie_bring_no_example_back():
    optimizer = lljax.exponentiated_gradient(0.3, cutoff=0.1)
    weights = jax.random.uniform(jax.random.key(0), (500, 8)) * (jnp.arange(8) < 5)[None]
    policy = (weights / weights.sum(1, keepdims=True)).astype(jnp.float32)
    slopes = normal(1, (500, 1), jnp.float32) + jnp.zeros((500, 8))
    out, _ = compiled(optimizer.update)(slopes, optimizer.init(policy), policy)
    assert (out[:, 5:] == 0).all()


def test_a_check_that_is_taken_back_has_looked_at_all_examples():
    """The first trial is good and sparse, the others are always worse."""
    _, *rest = make_logistic(num_steps=5, num_train=40, num_desired=16)
    policy = lljax.uniform_policy(5, 40, jnp.float64)

    def update(policy_grad, count, policy, scale=1.0, known=None):
        best, worst = (jnp.argsort(sign * policy_grad)[:, :5] for sign in (1, -1))
        chosen = jnp.where(count == 0, best, worst)
        trial = jnp.zeros_like(policy).at[jnp.arange(5)[:, None], chosen].set(1 / 5)
        return trial, count + 1

    build = functools.partial(
        lljax.build_loss_auc, logistic_loss, optax.sgd(0.5), microbatch_size=1
    )
    whole = build(zero_weight="slope_only")
    loop = lljax.build_outer_loop(
        whole,
        lljax.MetaOptimizer(lambda policy: jnp.zeros((), jnp.int32), update),
        active_loss_auc=build(zero_weight="omit"),
        check_every=2,
    )
    state, step = compiled(loop.init)(policy, *rest), compiled(loop.step)
    assert state.complete
    gradient = compiled(jax.grad(whole, has_aux=True))
    for accepted, complete in [(True, False), (False, True), (False, True)]:
        state = step(state, *rest)
        assert (state.accepted, state.complete) == (accepted, complete)
        expected, _ = gradient(state.policy, *rest)
        assert np.allclose(state.policy_grad, expected, rtol=1e-9, atol=1e-15) == complete
        np.testing.assert_allclose(
            state.policy_grad, np.where(state.known, expected, 0), rtol=1e-9, atol=1e-15
        )
        gaps = lljax.optimality_gap(state.policy, state.policy_grad, state.known)
        assert np.isnan(gaps).any() == (not complete)


@pytest.mark.parametrize(
    "method",
    [lljax.exponentiated_gradient(0.2, momentum=0.5, cutoff=0.3), lljax.projected_gradient(1.0)],
    ids=["exponentiated", "projected"],
)
def test_an_active_set_ends_where_the_whole_set_does(method):
    # On other data projected gradient is not at its end after 60 steps, with or without one.
    _, *rest = make_logistic(3, num_steps=15, num_train=40, num_desired=16)
    policy = lljax.uniform_policy(15, 40, jnp.float64)
    build = functools.partial(
        lljax.build_loss_auc, logistic_loss, optax.sgd(0.5), microbatch_size=MICROBATCH
    )

    def optimise(**active):
        return compiled(
            lambda policy: lljax.optimize_policy(
                build(zero_weight="slope_only"),
                policy,
                *rest,
                optimizer=method,
                num_steps=60,
                **active,
            )
        )(policy)

    dense = optimise()
    active = optimise(active_loss_auc=build(zero_weight="omit"), check_every=4)
    assert dense.auc < 0.97 * dense.auc_history[0]
    assert abs(active.auc - dense.auc) <= 1e-3 * dense.auc
    assert (active.policy > 0).mean() < 0.5
    assert (dense.complete, active.complete) == (True, True)  # the 60th step is a check
    assert dense.known is None
    with pytest.raises(ValueError, match="`check_every` must be an int, at least 1; got 0"):
        optimise(check_every=0)


@pytest.mark.slow
def test_under_vmap_an_active_set_is_looked_at_all_only_in_checks():
    _, params, train, desired = make_logistic(num_steps=5, num_train=40, num_desired=16)
    policy = lljax.uniform_policy(5, 40, jnp.float64)
    build = functools.partial(
        lljax.build_loss_auc, logistic_loss, optax.sgd(0.5), microbatch_size=MICROBATCH
    )
    calls = collections.Counter()

    def counted(zero_weight):
        loss_auc = build(zero_weight=zero_weight)

        def count_and_compute(*arguments):
            jax.debug.callback(lambda: calls.update([zero_weight]))
            return loss_auc(*arguments)

        return count_and_compute

    def optimise(whole, active, factor):
        return lljax.optimize_policy(
            whole,
            policy,
            jax.tree.map(lambda leaf: factor * leaf, params),
            train,
            desired,
            optimizer=lljax.exponentiated_gradient(2.0, cutoff=0.3),
            num_steps=5,
            active_loss_auc=active,
            check_every=2,
        )

    factors = jnp.array([0.0, 1.0, -3.0])
    run = functools.partial(optimise, counted("slope_only"), counted("omit"))
    found = compiled(jax.vmap(run))(factors)
    jax.effects_barrier()
    # The start, two checks, and the look that a check which is taken back needs.
    assert calls == {"slope_only": 5, "omit": 3}
    alone = compiled(
        functools.partial(optimise, build(zero_weight="slope_only"), build(zero_weight="omit"))
    )
    gradient = compiled(jax.grad(build(), has_aux=True))
    for index, factor in enumerate(factors):
        expected = alone(factor)
        one = jax.tree.map(lambda leaf, index=index: leaf[index], found)
        chex.assert_trees_all_close(one, expected, rtol=1e-9)
        start = jax.tree.map(lambda leaf, factor=factor: factor * leaf, params)
        whole, _ = gradient(one.policy, start, train, desired)
        assert np.allclose(one.policy_grad, whole, rtol=1e-9, atol=1e-15) == one.complete
