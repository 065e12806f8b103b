"""The objective and its gradient: against finite differences, an independent recursion, itself."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy_reference as reference
import optax
import pytest
from problems import (
    assert_close,
    compiled,
    logistic_loss,
    make_logistic,
    normal,
    plain_loss_auc,
    value_and_grads,
)

import lljax

OPTIMIZERS = {
    "sgd": optax.sgd(0.3),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(optax.cosine_decay_schedule(0.1, 30), eps_root=1e-8, weight_decay=0.1),
    "clipped": optax.chain(
        optax.clip_by_global_norm(0.1),
        # Not optax's linear schedule, which is in float32 here too.
        optax.adam(lambda count: 0.1 - 0.01 * jnp.minimum(count, 9), eps_root=1e-8),
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradient_equals_finite_differences(name):
    policy, params, train, desired = make_logistic()
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZERS[name])

    @jax.jit
    def auc(policy, params):
        return loss_auc(policy, params, train, desired)[0]

    grads = compiled(jax.grad(auc, argnums=(0, 1)))(policy, params)
    direction = jax.tree.map(lambda leaf: normal(3, leaf.shape), (policy, params))
    expected = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, direction)))

    def along(step):
        moved = jax.tree.map(lambda leaf, d: leaf + step * d, (policy, params), direction)
        return auc(*moved)

    # A fourth-order difference. Adam bends on the scale sqrt(eps_root) = 1e-4 of its gradient.
    h = 1e-6
    difference = (8 * (along(h) - along(-h)) - (along(2 * h) - along(-2 * h))) / (12 * h)
    assert abs(difference - expected) <= 1e-6 * abs(expected)


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
    (auc, _), grads = compiled(value_and_grads(loss_auc))(policy, params["w"], train, desired)
    examples = [tuple(np.asarray(batch[k]) for k in ("z", "y")) for batch in (train, desired)]
    expected = reference.auc_and_gradients(
        by_hand, np.asarray(policy), np.asarray(params["w"]), *examples
    )
    assert_close((auc, *grads), expected, 1e-9)


@functools.cache
def plain_value_and_grads(name):
    plain = functools.partial(plain_loss_auc, OPTIMIZERS[name])
    return compiled(value_and_grads(plain))(*make_logistic())


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
    (actual_auc, info), actual_grads = compiled(value_and_grads(loss_auc))(*problem)
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
    program = compiled(value_and_grads(loss_auc))
    one_by_one = [program(*problem) for problem in problems]
    if strategy == "stored":  # operation by operation, each compiled alone: slow
        assert_close(value_and_grads(loss_auc)(*problems[0]), one_by_one[0], 1e-12)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    together = compiled(jax.vmap(value_and_grads(loss_auc)))(*stacked)
    for index, alone in enumerate(one_by_one):
        assert_close(jax.tree.map(lambda leaf: leaf[index], together), alone, 1e-12)  # noqa: B023
    if strategy != "stored":
        return
    # Over policies alone, the data shared.
    policy, *rest = problems[0]
    policies = jnp.stack([policy, problems[1].policy])
    over_policies = jax.vmap(value_and_grads(loss_auc), in_axes=(0, None, None, None))
    _, grads = compiled(over_policies)(policies, *rest)
    assert_close(grads[0][0], one_by_one[0][1][0], 1e-12)
    # The gradient of a vmapped function.
    total = jax.grad(lambda p: jax.vmap(lambda q: loss_auc(q, *rest)[0])(p).sum())
    assert_close(compiled(total)(policies), grads[0], 1e-12)


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
    expected = compiled(jax.grad(functools.partial(objective, plain)))(logits)
    assert_close(compiled(jax.grad(functools.partial(objective, ours)))(logits), expected, 1e-11)
    remade = jax.checkpoint(functools.partial(objective, ours))
    assert_close(compiled(jax.grad(remade))(logits), expected, 1e-11)


def test_second_derivatives_by_reverse_over_reverse():
    policy, params, train, desired = make_logistic(num_steps=6)
    optimizer = OPTIMIZERS["momentum"]
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer, memory=lljax.RecomputeStates(2))
    direction = normal(9, policy.shape)

    def curvature(auc):
        return compiled(jax.grad(lambda p: jnp.vdot(jax.grad(auc)(p), direction)))(policy)

    ours = curvature(lambda p: loss_auc(p, params, train, desired)[0])
    plain = curvature(lambda p: plain_loss_auc(optimizer, p, params, train, desired)[0])
    assert_close(ours, plain, 1e-11)


def test_closed_form_of_a_single_step():
    """dL(theta_1)/dgamma_n = -eta grad L(theta_1) . grad l_n(theta_0)."""
    policy, params, train, desired = make_logistic(num_steps=1)
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.7))
    grads, info = compiled(jax.grad(loss_auc, has_aux=True))(policy, params, train, desired)
    after = compiled(jax.grad(lambda p: logistic_loss(p, desired).mean()))(info.params)
    per_example = compiled(jax.jacobian(logistic_loss))(params, train)
    products = per_example["w"] @ after["w"] + per_example["b"] * after["b"]
    assert_close(grads[0], -0.7 * products, 1e-12)


def test_permuting_the_examples_permutes_the_gradient():
    policy, params, train, desired = make_logistic()
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZERS["adamw"], microbatch_size=6)
    order = np.random.default_rng(5).permutation(policy.shape[1])
    shuffled = jax.tree.map(lambda leaf: leaf[order], train)
    gradient = compiled(jax.grad(loss_auc, has_aux=True))
    grads, _ = gradient(policy, params, train, desired)
    permuted, _ = gradient(policy[:, order], params, shuffled, desired)
    assert_close(permuted, grads[:, order], 1e-11)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [("adamw", "stored"), ("clipped", "recomputed"), ("sgd", "microbatches")],
)
def test_float32_is_close_to_float64(name, strategy):
    sizes = {"num_steps": 300, "num_train": 64, "num_desired": 32}
    exact = make_logistic(**sizes)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), exact)
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZERS[name], **STRATEGIES[strategy])
    both = compiled(value_and_grads(loss_auc))
    (auc, info), grads = both(*single)
    assert {leaf.dtype for leaf in jax.tree.leaves((auc, info, grads))} == {jnp.dtype("float32")}
    assert_close((auc, grads), (lambda out: (out[0][0], out[1]))(both(*exact)), 1e-4)


def test_optimizer_states_with_counts_keys_and_copies_of_the_parameters():
    """State leaves without a derivative pass through; those made from theta_0 give it one."""
    problem = make_logistic()

    def pull_to_start(strength):
        return optax.GradientTransformation(
            lambda params: params,
            lambda g, start, p: (
                jax.tree.map(lambda g, a, b: g + strength * (b - a), g, start, p),
                start,
            ),
        )

    noise = optax.add_noise(0.01, 0.5, jax.random.key(1))
    everything = optax.chain(noise, pull_to_start(0.1), optax.sgd(0.2), optax.ema(0.9))
    for optimizer in (everything, optax.inject_hyperparams(optax.sgd)(0.2)):
        plain = functools.partial(plain_loss_auc, optimizer)
        expected = compiled(value_and_grads(plain))(*problem)[1]
        loss_auc = lljax.build_loss_auc(logistic_loss, optimizer, memory=lljax.RecomputeStates())
        assert_close(compiled(value_and_grads(loss_auc))(*problem)[1], expected, 1e-11)


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
