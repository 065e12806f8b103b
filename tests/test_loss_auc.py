"""The objective and its gradient: against finite differences, an independent recursion, itself."""

import functools

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import numpy_reference as reference
import optax
import pytest
from problems import logistic_loss, make_logistic

import lljax

OPTIMIZERS = {
    "sgd": optax.sgd(0.3),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(optax.cosine_decay_schedule(0.1, 30), eps_root=1e-8, weight_decay=0.1),
    "clipped": optax.chain(
        optax.clip_by_global_norm(0.1),
        optax.adam(optax.linear_schedule(0.1, 0.01, 9), eps_root=1e-8),
    ),
}
STRATEGIES = {
    "stored": {},
    "recomputed": {"memory": lljax.RecomputeStates()},
    "recomputed_from_1": {"memory": lljax.RecomputeStates(1)},
    "recomputed_from_8": {"memory": lljax.RecomputeStates(8)},
    "recomputed_from_more_than_T": {"memory": lljax.RecomputeStates(1000)},
    "recomputed_twice": {"memory": lljax.RecomputeStates(depth=2)},
    "recomputed_from_2": {"memory": lljax.RecomputeStates(2, depth=4)},
    "offloaded": {"memory": lljax.OffloadStates()},
    "microbatches": {"microbatch_size": 4},
    "recomputed_microbatches": {"memory": lljax.RecomputeStates(), "microbatch_size": 5},
}


def value_and_grads(loss_auc):
    return jax.value_and_grad(loss_auc, argnums=(0, 1), has_aux=True)


def plain_loss_auc(optimizer, policy, params, train, desired):
    """The same quantity by JAX's own reverse mode through a scan."""

    def step(state, row):
        params, opt_state = state
        gradient = jax.grad(lambda p: row @ logistic_loss(p, train))(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), logistic_loss(params, desired).mean()

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), policy)
    return losses.mean(), (losses, params)


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry of each array."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max()),
        actual,
        expected,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_equals_finite_differences(name):
    policy, params, train, desired = make_logistic()
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZERS[name])

    @jax.jit
    def auc(policy, params):
        return loss_auc(policy, params, train, desired)[0]

    grads = jax.grad(auc, argnums=(0, 1))(policy, params)
    direction = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(3), leaf.shape), (policy, params)
    )
    expected = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, direction)))

    def along(step):
        moved = jax.tree.map(lambda leaf, d: leaf + step * d, (policy, params), direction)
        return auc(*moved)

    # A fourth-order difference. Adam bends on the scale sqrt(eps_root) = 1e-4 of its gradient.
    h = 1e-6
    difference = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    assert abs(difference - expected) <= 1e-6 * abs(expected)
    jax.test_util.check_grads(auc, (policy, params), order=1, modes=["rev"], eps=1e-7)


@pytest.mark.parametrize(
    ("optimizer", "by_hand"),
    [
        (optax.sgd(0.3), reference.GradientDescent(0.3)),
        (optax.sgd(0.1, momentum=0.9), reference.GradientDescent(0.1, 0.9)),
        (
            optax.chain(optax.clip_by_global_norm(0.2), optax.sgd(0.5)),
            reference.ClippedGradientDescent(0.5, 0.2),
        ),
        (
            optax.adamw(0.05, b1=0.8, b2=0.95, eps=1e-6, eps_root=1e-9, weight_decay=0.02),
            reference.AdamW(0.05, 0.8, 0.95, 1e-6, 1e-9, 0.02),
        ),
    ],
    ids=["sgd", "momentum", "clipped", "adamw"],
)
def test_gradient_equals_a_numpy_recursion(optimizer, by_hand):
    policy, params, train, desired = make_logistic(num_steps=40)

    def loss_fn(theta, batch):
        return optax.sigmoid_binary_cross_entropy(batch["z"] @ theta, batch["y"])

    loss_auc = lljax.build_loss_auc(loss_fn, optimizer)
    (auc, _), grads = jax.jit(value_and_grads(loss_auc))(policy, params["w"], train, desired)
    examples = [tuple(np.asarray(batch[k]) for k in ("z", "y")) for batch in (train, desired)]
    expected = reference.auc_and_gradients(
        by_hand, np.asarray(policy), np.asarray(params["w"]), *examples
    )
    assert_close((auc, *grads), expected, 1e-9)


@functools.cache
def plain_value_and_grads(name):
    plain = functools.partial(plain_loss_auc, OPTIMIZERS[name])
    return jax.jit(value_and_grads(plain))(*make_logistic())


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *(("sgd", strategy) for strategy in STRATEGIES),
        *(("clipped", strategy) for strategy in ("stored", "recomputed_microbatches")),
        *((name, "recomputed") for name in ("momentum", "adamw", "clipped")),
        *((name, "stored") for name in ("momentum", "adamw")),
    ],
)
def test_every_strategy_agrees_with_reverse_mode_through_a_scan(name, strategy):
    problem = make_logistic()
    (auc, (losses, end)), grads = plain_value_and_grads(name)
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZERS[name], **STRATEGIES[strategy])
    (actual_auc, info), actual_grads = jax.jit(value_and_grads(loss_auc))(*problem)
    assert_close((actual_auc, actual_grads), (auc, grads), 1e-12)
    assert_close(info.params, end, 1e-12)
    start = logistic_loss(problem.params, problem.desired).mean()
    assert_close(info.desired_losses, jnp.concatenate([start[None], losses]), 1e-12)


@pytest.mark.parametrize(
    ("name", "strategy"), [("sgd", "stored"), ("clipped", "recomputed_microbatches")]
)
def test_jit_and_vmap_change_nothing(name, strategy):
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZERS[name], **STRATEGIES[strategy])
    problems = [make_logistic(key) for key in range(3)]
    one_by_one = [value_and_grads(loss_auc)(*problem) for problem in problems[:1]]
    compiled = jax.jit(value_and_grads(loss_auc))
    one_by_one += [compiled(*problem) for problem in problems[1:]]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    together = jax.jit(jax.vmap(value_and_grads(loss_auc)))(*stacked)
    for index, alone in enumerate(one_by_one):
        assert_close(jax.tree.map(lambda leaf: leaf[index], together), alone, 1e-12)  # noqa: B023
    # Over policies alone, the data shared.
    policy, *rest = problems[0]
    policies = jnp.stack([policy, problems[1].policy])
    over_policies = jax.vmap(value_and_grads(loss_auc), in_axes=(0, None, None, None))
    _, grads = jax.jit(over_policies)(policies, *rest)
    assert_close(grads[0][0], one_by_one[0][1][0], 1e-12)
    # The gradient of a vmapped function.
    total = jax.grad(lambda p: jax.vmap(lambda q: loss_auc(q, *rest)[0])(p).sum())
    assert_close(jax.jit(total)(policies), grads[0], 1e-12)


@pytest.mark.parametrize("strategy", ["stored", "recomputed"])
def test_any_function_of_the_loss_curve_has_an_exact_gradient(strategy):
    """A user's own objective: other weights on the curve, theta_T, and a loop around it all."""
    policy, params, train, desired = make_logistic()
    optimizer = OPTIMIZERS["momentum"]
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer, **STRATEGIES[strategy])

    def objective(run, logits):
        _, curve, end = run(jax.nn.softmax(logits))
        return jnp.sum(curve * jnp.linspace(0, 1, len(curve))) + jnp.sum(end["w"] ** 3)

    def ours(policy):
        auc, info = loss_auc(policy, params, train, desired)
        return auc, info.desired_losses, info.params

    def plain(policy):
        auc, (losses, end) = plain_loss_auc(optimizer, policy, params, train, desired)
        start = logistic_loss(params, desired).mean()
        return auc, jnp.concatenate([start[None], losses]), end

    logits = jnp.log(policy)
    expected = jax.grad(functools.partial(objective, plain))(logits)
    assert_close(jax.grad(functools.partial(objective, ours))(logits), expected, 1e-11)
    remade = jax.checkpoint(functools.partial(objective, ours))
    assert_close(jax.jit(jax.grad(remade))(logits), expected, 1e-11)


def test_second_derivatives_by_reverse_over_reverse():
    policy, params, train, desired = make_logistic(num_steps=6)
    optimizer = OPTIMIZERS["momentum"]
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer, memory=lljax.RecomputeStates(2))
    direction = jax.random.normal(jax.random.key(9), policy.shape)

    def curvature(auc):
        return jax.jit(jax.grad(lambda p: jnp.vdot(jax.grad(auc)(p), direction)))(policy)

    ours = curvature(lambda p: loss_auc(p, params, train, desired)[0])
    plain = curvature(lambda p: plain_loss_auc(optimizer, p, params, train, desired)[0])
    assert_close(ours, plain, 1e-11)


def test_closed_form_of_a_single_step():
    """dL(theta_1)/dgamma_n = -eta grad L(theta_1) . grad l_n(theta_0)."""
    policy, params, train, desired = make_logistic(num_steps=1)
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.7))
    grads, info = jax.grad(loss_auc, has_aux=True)(policy, params, train, desired)
    after = jax.grad(lambda p: logistic_loss(p, desired).mean())(info.params)
    per_example = jax.jacobian(logistic_loss)(params, train)
    products = per_example["w"] @ after["w"] + per_example["b"] * after["b"]
    assert_close(grads[0], -0.7 * products, 1e-12)


def test_permuting_the_examples_permutes_the_gradient():
    policy, params, train, desired = make_logistic()
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZERS["adamw"], microbatch_size=6)
    order = jax.random.permutation(jax.random.key(5), policy.shape[1])
    shuffled = jax.tree.map(lambda leaf: leaf[order], train)
    gradient = jax.jit(jax.grad(loss_auc, has_aux=True))
    grads, _ = gradient(policy, params, train, desired)
    permuted, _ = gradient(policy[:, order], params, shuffled, desired)
    assert_close(permuted, grads[:, order], 1e-11)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        *((name, "stored") for name in OPTIMIZERS),
        ("clipped", "recomputed"),
        ("sgd", "microbatches"),
    ],
)
def test_float32_is_close_to_float64(name, strategy):
    sizes = {"num_steps": 300, "num_train": 64, "num_desired": 32}
    exact = make_logistic(**sizes)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), exact)
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZERS[name], **STRATEGIES[strategy])
    both = jax.jit(value_and_grads(loss_auc))
    (auc, info), grads = both(*single)
    assert {leaf.dtype for leaf in jax.tree.leaves((auc, info, grads))} == {jnp.dtype("float32")}
    assert_close((auc, grads), (lambda out: (out[0][0], out[1]))(both(*exact)), 1e-4)


def test_optimizer_states_with_counts_keys_and_copies_of_the_parameters():
    """State leaves without a derivative pass through; those made from theta_0 give it one."""
    problem = make_logistic()
    noisy = optax.chain(optax.add_noise(0.01, 0.5, jax.random.key(1)), optax.sgd(0.2))
    averaged = optax.chain(optax.sgd(0.2), optax.ema(0.9))

    def pull_to_start(strength):
        return optax.GradientTransformation(
            lambda params: params,
            lambda g, start, p: (
                jax.tree.map(lambda g, a, b: g + strength * (b - a), g, start, p),
                start,
            ),
        )

    anchored = optax.chain(pull_to_start(0.1), optax.sgd(0.2))
    for optimizer in (noisy, averaged, anchored, optax.inject_hyperparams(optax.sgd)(0.2)):
        plain = functools.partial(plain_loss_auc, optimizer)
        expected = jax.jit(value_and_grads(plain))(*problem)[1]
        for memory in (lljax.StoreStates(), lljax.RecomputeStates()):
            loss_auc = lljax.build_loss_auc(logistic_loss, optimizer, memory=memory)
            assert_close(jax.jit(value_and_grads(loss_auc))(*problem)[1], expected, 1e-11)


def test_new_data_of_the_same_shape_are_not_compiled_again():
    loss_auc = value_and_grads(lljax.build_loss_auc(logistic_loss, OPTIMIZERS["adamw"]))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced_once(*problem):
        return loss_auc(*problem)

    first, second = (traced_once(*make_logistic(key))[0][0] for key in range(2))
    assert first != second


def test_states_are_all_that_is_stored():
    """Temporary memory: T states when stored, about 2 sqrt(T) when recomputed, no activations."""
    num_steps, dim = 1024, 64
    problem = make_logistic(num_steps=num_steps, num_train=256, dim=dim, dtype=jnp.float32)
    policy_bytes = problem.policy.nbytes

    def temporary_bytes(**strategy):
        loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1), **strategy)
        gradient = jax.jit(jax.grad(loss_auc, has_aux=True))
        return gradient.lower(*problem).compile().memory_analysis().temp_size_in_bytes

    state = 4 * (dim + 1)
    # Stored: one copy of each state (the gradients are dropped, since SGD does not need them),
    # where activations [T, N] would take as much as the policy.
    assert temporary_bytes() < 1.5 * num_steps * state < policy_bytes
    # Recomputed: the policy is laid out in segments once, and its gradient too.
    recomputed = temporary_bytes(memory=lljax.RecomputeStates())
    assert recomputed < 3 * policy_bytes + 2 * 4 * num_steps**0.5 * state
    many_params = make_logistic(num_steps=num_steps, num_train=4, dim=4096, dtype=jnp.float32)

    def ratio(strategy):
        loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1), memory=strategy)
        gradient = jax.jit(jax.grad(loss_auc, has_aux=True))
        size = gradient.lower(*many_params).compile().memory_analysis().temp_size_in_bytes
        return size / (4 * 4097)

    assert ratio(lljax.StoreStates()) > num_steps
    assert ratio(lljax.RecomputeStates()) < 4 * num_steps**0.5


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
        jax.jit(loss_auc)(*problem)


def test_a_loss_that_is_not_one_number_an_example_is_refused():
    problem = make_logistic()
    mean = lljax.build_loss_auc(lambda p, b: logistic_loss(p, b).mean(), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"shape \(17,\); got \(\).*before taking their mean"):
        mean(*problem)


def test_bad_strategies_are_refused():
    with pytest.raises(ValueError, match="`num_kept` must be at least 1"):
        lljax.RecomputeStates(0)
    with pytest.raises(ValueError, match="`microbatch_size` must be at least 1"):
        lljax.build_loss_auc(logistic_loss, optax.sgd(0.1), microbatch_size=0)


@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(0.1), optax.adamw(0.1), optax.rmsprop(0.1, eps_in_sqrt=False)],
    ids=["adam", "adamw", "rmsprop"],
)
def test_adam_without_eps_root_is_refused_with_the_cure(optimizer):
    problem = make_logistic()
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer)
    assert jnp.isfinite(jax.jit(loss_auc)(*problem)[0])  # without a gradient nothing is wrong
    with pytest.raises(ValueError, match="eps_root=1e-16"):
        jax.jit(jax.grad(loss_auc, has_aux=True))(*problem)


def test_the_check_of_the_optimizer_can_be_skipped():
    """On a dense problem Adam's derivative exists, eps_root or not."""
    problem, optimizer = make_logistic(), optax.adam(0.1)
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer, check_optimizer=False)
    expected = value_and_grads(functools.partial(plain_loss_auc, optimizer))(*problem)[1]
    assert_close(value_and_grads(loss_auc)(*problem)[1], expected, 1e-9)


def test_optimizers_made_of_traced_or_shaped_arrays():
    """A learning rate that jit or vmap traces, and one for each coordinate."""
    problem = make_logistic()

    def gradient(rate):
        loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(rate))
        return jax.grad(loss_auc, has_aux=True)(*problem)[0]

    both = jax.jit(jax.vmap(gradient))(jnp.array([0.1, 0.3]))
    assert_close(both[1], gradient(0.3), 1e-12)

    rates = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.3), problem.params)
    by_coordinate = optax.stateless(
        lambda gradient, _: jax.tree.map(lambda g, rate: -rate * g, gradient, rates)
    )
    loss_auc = lljax.build_loss_auc(logistic_loss, by_coordinate)
    assert_close(jax.grad(loss_auc, has_aux=True)(*problem)[0], both[1], 1e-12)


def test_an_empty_parameter_is_no_obstacle():
    policy, params, train, desired = make_logistic()
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1))
    grads, _ = jax.grad(loss_auc, has_aux=True)(
        policy, {**params, "empty": jnp.zeros((0, 3))}, train, desired
    )
    assert_close(grads, jax.grad(loss_auc, has_aux=True)(policy, params, train, desired)[0], 1e-12)


@pytest.mark.parametrize("memory", [lljax.StoreStates(), lljax.RecomputeStates()])
def test_examples_spread_over_devices(memory):
    """One device here; the sharded program is the same, and its gradient stays spread."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, jax.P("data"))
    policy, params, train, desired = make_logistic(dtype=jnp.float32)
    loss_auc = jax.jit(
        value_and_grads(lljax.build_loss_auc(logistic_loss, optax.sgd(0.1), memory=memory))
    )
    expected = loss_auc(policy, params, train, desired)[1]
    placed = jax.tree.map(lambda leaf: jax.device_put(leaf, spread), (train, desired))
    assert_close(loss_auc(policy, params, *placed)[1], expected, 1e-6)


def test_16_bit_training_has_a_32_bit_curve():
    policy, params, train, desired = make_logistic(dtype=jnp.float32)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, train, desired))
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.3))
    (auc, info), (policy_grad, _) = jax.jit(value_and_grads(loss_auc))(policy, *half)
    assert auc.dtype == info.desired_losses.dtype == policy_grad.dtype == jnp.float32
    exact = jax.jit(value_and_grads(loss_auc))(policy, params, train, desired)
    assert_close(policy_grad, exact[1][0], 0.1)


def test_the_cure_works_for_a_parameter_without_gradient():
    policy, params, train, desired = make_logistic(dtype=jnp.float32)
    train["z"] = train["z"].at[:, 0].set(0)
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.adamw(0.1, eps_root=1e-16))
    _, grads = value_and_grads(loss_auc)(policy, params, train, desired)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("argument", [2, 3])
def test_a_derivative_in_the_data_is_refused_not_zero(argument):
    problem = make_logistic()
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"its derivative in `(train|desired)` was asked for"):
        jax.jit(jax.grad(loss_auc, argnums=argument, has_aux=True))(*problem)


def test_nothing_that_is_not_finite_is_hidden():
    policy, params, train, desired = make_logistic()
    train["z"] = train["z"].at[3, 0].set(jnp.nan)
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1))
    (auc, info), grads = value_and_grads(loss_auc)(policy, params, train, desired)
    assert jnp.isfinite(info.desired_losses[0])
    assert jnp.isnan(info.desired_losses[1:]).all()
    assert jnp.isnan(auc)
    assert jnp.isnan(grads[0]).any()
