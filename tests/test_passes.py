"""Losses with backward rules of their own: the second pass, and how the first refuses them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_loops import (
    Problem,
    gradient_in_everything,
    largest_errors,
    make_network,
)

import lljax
from benchmarks.plain_loop import plain_loss_auc

ADAMW = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1, eps_root=1e-6))


@jax.custom_vjp
def reverse_gradient(x):
    """Of domain-adversarial training."""
    return x


reverse_gradient.defvjp(lambda x: (x, None), lambda _, g: (-0.7 * g,))


@jax.custom_vjp
def clip_gradient(x):
    return x


clip_gradient.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.01, 0.01),))


@jax.custom_vjp
def rounded(x):
    """Straight through: the derivative of the identity, held back outside [-1, 1]."""
    return jnp.round(4 * x) / 4


rounded.defvjp(lambda x: (jnp.round(4 * x) / 4, x), lambda x, g: (g * (jnp.abs(x) < 1),))


@jax.custom_jvp
def reverse_tangent(x):
    return x


reverse_tangent.defjvp(lambda x, t: (x[0], -0.7 * t[0]))


@jax.custom_vjp
def attention(q, k, v):
    return jax.nn.softmax(q @ k.mT) @ v


def attend(q, k, v):
    weights = jax.nn.softmax(q @ k.mT)
    return weights @ v, (weights, q, k, v)


def attend_back(saved, g):
    """As a fused kernel does it: by hand, and not by what JAX would derive."""
    weights, q, k, v = saved
    of_weights = g @ v.mT
    inner = weights * (of_weights - jnp.sum(of_weights * weights, axis=-1, keepdims=True))
    return inner @ k, inner.mT @ q, weights.mT @ g


attention.defvjp(attend, attend_back)


def layered(between):
    def loss_fn(params, batch, constants):
        hidden = between(jnp.tanh(batch["z"] @ params["in"] + constants["bias"][None]))
        logits = hidden @ params["out"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])

    return loss_fn


def attention_loss(params, batch, constants):
    tokens = batch["z"][:, :, None] * constants["bias"][None, None] / 8
    q, k = tokens @ params["in"].T[:, :4], tokens @ params["in"].T[:, 1:]
    mixed = attention(q, k, tokens)
    return optax.softmax_cross_entropy_with_integer_labels(
        mixed.mean(1) @ params["out"], batch["label"]
    )


def meta_weighted_loss(params, batch, constants):
    """Meta-Weight-Net: each loss weighted by a small network of its own value, held fixed."""
    losses = layered(lambda hidden: hidden)(params, batch, constants)
    fixed = layered(lambda hidden: hidden)(jax.lax.stop_gradient(params), batch, constants)
    score = jnp.tanh(fixed[:, None] * constants["bias"][None]) @ constants["bias"]
    return jax.nn.sigmoid(score) * losses


WITH_RULES = {
    "gradient reversal": layered(reverse_gradient),
    "clipped gradient": layered(clip_gradient),
    "straight through": layered(rounded),
    "attention": attention_loss,
}
LOSSES = WITH_RULES | {
    "reversed tangent": layered(reverse_tangent),
    "loss-dependent weights": meta_weighted_loss,
}
STRATEGIES = [{}, {"microbatch_size": 4, "memory": lljax.RecomputeStates()}]


def errors(loss_fn, problem: Problem, optimizer=ADAMW, **options):
    loss_auc = lljax.build_loss_auc(loss_fn, optimizer, **options)
    found = gradient_in_everything(loss_auc, problem)
    expected = gradient_in_everything(plain_loss_auc(loss_fn, optimizer), problem)
    return largest_errors(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("options", STRATEGIES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_the_second_pass_is_exact(name, options):
    found = errors(LOSSES[name], make_network(), second_order="reverse_over_reverse", **options)
    assert max(found.values()) < 1e-10, found


@pytest.mark.parametrize("name", WITH_RULES)
def test_a_loss_without_a_forward_derivative_gets_it_by_itself(name):
    found = errors(LOSSES[name], make_network(num_steps=3), optax.sgd(0.3))
    assert max(found.values()) < 1e-10, found
    loss_auc = lljax.build_loss_auc(LOSSES[name], ADAMW, second_order="forward_over_reverse")
    with pytest.raises(ValueError, match=r"custom_vjp\).*second_order='reverse_over_reverse'"):
        jax.eval_shape(loss_auc, *make_network())


def test_the_first_pass_would_be_wrong_there():
    """Else there would be nothing to check: by a third, where a rule is not the derivative."""
    found = errors(LOSSES["reversed tangent"], make_network(), check_loss=False)
    assert max(found.values()) > 0.1


def test_a_rule_that_is_no_derivative_is_refused_where_it_can_be_evaluated():
    problem = make_network()
    loss_fn = LOSSES["reversed tangent"]
    loss_auc = lljax.build_loss_auc(loss_fn, ADAMW)
    with pytest.raises(ValueError, match=r"not the derivative of its value.*second_order="):
        loss_auc(*problem)
    with pytest.raises(ValueError, match="not the derivative of its value"):
        lljax.check_loss_fn(loss_fn, problem.params, problem.train, problem.constants)
    lljax.check_loss_fn(
        loss_fn,
        problem.params,
        problem.train,
        problem.constants,
        second_order="reverse_over_reverse",
    )
    jax.jit(loss_auc)(*problem)  # where it cannot be evaluated nothing is said
    segments = lljax.build_segments(loss_fn, ADAMW)
    with pytest.raises(ValueError, match="not the derivative of its value"):
        segments.start(problem.params, (problem.train, problem.desired, problem.constants), {})


@jax.custom_jvp
def almost(x):
    return x


almost.defjvp(lambda x, t: (x[0], 0.98 * t[0]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_rule_that_is_two_percent_off_is_found(dtype):
    """As much as the quantised products of 8-bit training change."""
    problem = make_network(dtype=dtype)
    with pytest.raises(ValueError, match="not the derivative"):
        lljax.check_loss_fn(layered(almost), problem.params, problem.train, problem.constants)


@pytest.mark.parametrize("dtype", [pytest.param(jnp.bfloat16, marks=pytest.mark.slow), jnp.float32])
@pytest.mark.parametrize(
    "between",
    [
        jnp.tanh,
        jax.nn.relu,
        jax.nn.gelu,
        lambda x: jax.nn.logsumexp(x, axis=1, keepdims=True) * x,
        lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x),
        jax.checkpoint(jnp.sin),
        lambda x: x / jnp.sqrt(jnp.mean(x**2, axis=1, keepdims=True) + 1e-6),
    ],
)
def test_ordinary_losses_pass(between, dtype):
    problem = make_network(dtype=dtype)
    lljax.check_loss_fn(layered(between), problem.params, problem.train, problem.constants)
    zeros = jax.tree.map(jnp.zeros_like, problem.params)
    lljax.check_loss_fn(layered(between), zeros, problem.train, problem.constants)
    linear = lambda p, b, _: (b["z"] @ p["in"]).sum(1)  # noqa: E731
    lljax.check_loss_fn(linear, problem.params, problem.train, problem.constants)


def test_contributions_take_backward_rules_as_they_are():
    problem = make_network()
    loss_fn = LOSSES["gradient reversal"]
    rest = problem.params, problem.train, problem.desired

    def gradient(batch):
        return jax.grad(lambda p: loss_fn(p, batch, problem.constants).mean())(problem.params)

    towards = gradient(problem.desired)

    def one(n):
        own = gradient(jax.tree.map(lambda leaf: leaf[n : n + 1], problem.train))
        return sum(jnp.vdot(a, b) for a, b in zip(own.values(), towards.values(), strict=True))

    expected = np.array([one(n) for n in range(23)])
    for size in (None, 4):
        found = lljax.contributions(
            loss_fn, *rest, constants=problem.constants, microbatch_size=size
        )
        np.testing.assert_allclose(found, expected, rtol=1e-10)
