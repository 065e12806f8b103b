"""Which optimisers a meta-gradient can be made of, and what is said of the others."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from optax import contrib
from problems import (
    assert_close,
    compiled,
    logistic_loss,
    make_logistic,
    plain_loss_auc,
    value_and_grads,
)

import lljax
from benchmarks.prediction import prediction_score, rare_words
from lljax.tasks import InnerConfig, inner_optimizer

ROOT = 1e-6


def gradient_of(optimizer, problem, **options):
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer, **options)
    return compiled(value_and_grads(loss_auc))(*problem)[1]


@pytest.mark.parametrize(
    ("optimizer", "words"),
    {
        "adam": (optax.adam(0.1), "eps_root=1e-6"),
        "rmsprop": (optax.rmsprop(0.1, eps_in_sqrt=False), "eps_root=1e-6"),
        "prodigy": (contrib.prodigy(0.1), "prodigy has no `eps_root`"),
        "madgrad": (contrib.madgrad(0.1), "madgrad has no `eps_root`"),
        "dadapt_adamw": (contrib.dadapt_adamw(0.1), "dadapt_adamw has no `eps_root`"),
        "schedule_free": (contrib.schedule_free_adamw(0.1), r"build it as optax\.contrib"),
        "radam": (optax.radam(0.05, eps_root=ROOT), "whatever the gradients"),
        "lion": (optax.lion(0.1), "only the sign of the gradient"),
        "sign_sgd": (optax.sign_sgd(0.1), "only the sign of the gradient"),
        "lion in part": (
            optax.partition({"a": optax.sgd(0.1), "b": optax.lion(0.1)}, {"w": "a", "b": "b"}),
            r"only the sign of the gradient of params\['b'\]:",
        ),
        "polyak_sgd": (optax.polyak_sgd(), "need the value of the loss"),
        "lbfgs": (optax.lbfgs(), "need the value of the loss"),
        "momo": (contrib.momo(0.1), "need the value of the loss"),
        "sophia": (contrib.sophia(0.1), "need the value of the loss"),
        "plateau": (
            optax.chain(optax.sgd(0.1), contrib.reduce_on_plateau()),
            "need the value of the loss",
        ),
        "lookahead": (optax.lookahead(optax.sgd(0.1), 5, 0.5), "lookahead"),
    }.values(),
)
def test_what_has_no_derivative_is_refused_with_a_cure_that_it_has(optimizer, words):
    policy, params, train, desired = make_logistic()
    with pytest.raises(ValueError, match=words) as refusal:
        jax.eval_shape(
            value_and_grads(lljax.build_loss_auc(logistic_loss, optimizer)),
            policy,
            params,
            train,
            desired,
        )
    assert len(str(refusal.value)) < 700


def test_without_a_gradient_nothing_is_wrong():
    assert jnp.isfinite(
        compiled(lljax.build_loss_auc(logistic_loss, optax.adam(0.1)))(*make_logistic())[0]
    )


@pytest.mark.parametrize(
    "cured",
    [
        optax.adamw(0.1, eps_root=ROOT),
        optax.adafactor(0.1, eps=ROOT),
        contrib.schedule_free(optax.adamw(0.1, b1=0.0, eps_root=ROOT), 0.1, b1=0.9),
        contrib.muon(0.1, adam_eps_root=ROOT),
    ],
    ids=["adamw", "adafactor", "schedule_free", "muon"],
)
@pytest.mark.filterwarnings("error")
def test_the_cure_works_for_a_parameter_without_gradient(cured):
    policy, params, train, desired = make_logistic(dtype=jnp.float32)
    train["z"] = train["z"].at[:, 0].set(0)
    grads = gradient_of(cured, (policy, params, train, desired))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("optimizer", [optax.adamw(0.1, eps_root=1e-16), optax.adamax(0.1)])
def test_a_derivative_that_predicts_nothing_is_said(optimizer):
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer)
    with pytest.warns(UserWarning, match=r"exact and may predict nothing.*eps_root=1e-6"):
        jax.eval_shape(value_and_grads(loss_auc), *make_logistic())


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(jnp.nan),
        optax.sgd(0.1, momentum=jnp.nan),
        optax.adamw(jnp.inf, eps_root=ROOT),
        optax.chain(optax.clip(1.0), optax.sgd(jnp.inf)),
        optax.sgd(lambda step: 0.1 / step),
    ],
)
def test_numbers_that_are_none_are_refused(optimizer):
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer)
    with pytest.raises(ValueError, match="learning rate or schedule"):
        jax.eval_shape(value_and_grads(loss_auc), *make_logistic())


def test_a_norm_that_is_divided_by_is_steep_at_a_zero_gradient():
    """Exact there, and ten thousand times what a small step shows."""
    optimizer = optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.1))
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer)
    with pytest.warns(UserWarning, match="steep where a whole gradient is zero.*divides by a norm"):
        jax.eval_shape(value_and_grads(loss_auc), *make_logistic())


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.clip_by_global_norm(0.05), optax.sgd(0.3)),
        optax.chain(optax.clip_by_block_rms(0.05), optax.sgd(0.3, momentum=0.9)),
        optax.chain(optax.adaptive_grad_clip(0.5), optax.adamw(0.1, eps_root=ROOT)),
    ],
    ids=["global norm", "block", "adaptive"],
)
def test_a_step_without_any_weight_has_its_derivative(optimizer):
    """At an exactly zero gradient the clipped update is the plain one."""
    policy, params, train, desired = make_logistic()
    policy = policy.at[3].set(0)
    loss_auc = compiled(lljax.build_loss_auc(logistic_loss, optimizer))
    grads, _ = gradient_of(optimizer, (policy, params, train, desired))
    step = 1e-6
    for n in (0, 4):
        ahead, behind = (
            loss_auc(policy.at[3, n].add(sign * step), params, train, desired)[0]
            for sign in (1, -1)
        )
        assert_close(grads[3, n], (ahead - behind) / (2 * step), 1e-5)


def test_complex_states_of_an_optimizer_carry_their_derivative():
    """Momentum that turns in the complex plane."""

    def init(params):
        return jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.complex128), params)

    def update(gradient, state, params=None):
        state = jax.tree.map(lambda s, g: (0.8 + 0.3j) * s + (1 - 0.5j) * g, state, gradient)
        return jax.tree.map(lambda s: -0.1 * (s.real + 0.5 * jnp.abs(s) ** 2), state), state

    turning, problem = optax.GradientTransformation(init, update), make_logistic()
    expected = compiled(value_and_grads(functools.partial(plain_loss_auc, turning)))(*problem)[1]
    for memory in (lljax.StoreStates(), lljax.RecomputeStates()):
        assert_close(gradient_of(turning, problem, memory=memory), expected, 1e-10)


@pytest.mark.slow
def test_adamw_predicts_at_the_default_of_the_command_line_and_not_without():
    default = inner_optimizer(InnerConfig(optimizer="adamw", learning_rate=0.01))
    assert prediction_score(rare_words(), default, 40).lds >= 0.9
    with pytest.warns(UserWarning, match="may predict nothing"):
        steep = prediction_score(rare_words(), optax.adamw(0.01, eps_root=1e-16), 40)
    assert steep.lds < 0.9
