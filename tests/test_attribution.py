"""Scores of training examples: against finite differences, retraining, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import compiled, logistic_loss, make_logistic, normal

import lljax

T, N = 12, 9
OPTIMIZER = optax.adamw(0.05, eps_root=1e-6)


def problem():
    return make_logistic(num_steps=T, num_train=N, num_desired=5)


def minibatches():
    index = np.random.default_rng(3).integers(0, N - 1, (T, 4))  # the last example in no batch
    return lljax.StepInputs(jnp.full(index.shape, 1 / 4), jnp.asarray(index))


def retrain(p, optimizer, policy, of):
    """[R, N] -> the measure [R] of runs in which the weights of example n are multiplied by v_n."""
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer)

    def measure(factors):
        if isinstance(policy, lljax.StepInputs):
            given = lljax.StepInputs(policy.weights * factors[policy.index], policy.index)
        else:
            given = policy * factors[None]
        auc, info = loss_auc(given, p.params, p.train, p.desired)
        return auc if of == "auc" else info.desired_losses[-1]

    return jax.vmap(measure)


@pytest.mark.parametrize(
    ("policy", "of"),
    [(lljax.uniform_policy(T, N, jnp.float64), "auc"), (minibatches(), "final")],
)
def test_a_score_is_what_retraining_with_another_weight_shows(policy, of):
    p = problem()
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZER)
    scores = compiled(
        lambda: lljax.attribution_scores(loss_auc, policy, p.params, p.train, p.desired, of=of)
    )()
    step = 1e-5
    both = 1 + step * np.stack([np.eye(N), -np.eye(N)])
    retrained = compiled(retrain(p, OPTIMIZER, policy, of))
    up, down = retrained(both.reshape(2 * N, N)).reshape(2, N)
    np.testing.assert_allclose(scores, (down - up) / (2 * step), rtol=1e-6, atol=1e-10)
    assert (scores == 0)[-1] == isinstance(policy, lljax.StepInputs)
    assert np.abs(scores).max() > 1e-3


@pytest.mark.parametrize("of", ["auc", "final"])
def test_the_scores_order_the_examples_as_leaving_them_out_does(of):
    p, optimizer = make_logistic(num_steps=T, num_train=40, num_desired=20), optax.sgd(0.3)
    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer)
    policy = lljax.uniform_policy(T, 40, jnp.float64)
    scores, measures = compiled(
        lambda: (
            lljax.attribution_scores(loss_auc, policy, p.params, p.train, p.desired, of=of),
            retrain(p, optimizer, policy, of)(np.concatenate([np.ones((1, 40)), 1 - np.eye(40)])),
        )
    )()
    assert np.corrcoef(scores, measures[1:] - measures[0])[0, 1] > 0.99


@pytest.mark.parametrize(
    ("policy", "of"),
    [(lljax.uniform_policy(T, N, jnp.float64), "auc"), (minibatches(), "final")],
)
def test_each_desired_example_has_scores_of_its_own(policy, of):
    p = problem()
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZER)
    segments = lljax.build_segments(logistic_loss, OPTIMIZER)

    def alone(desired):
        one = jax.tree.map(lambda leaf: leaf[None], desired)
        return lljax.attribution_scores(loss_auc, policy, p.params, p.train, one, of=of)

    scores, expected = compiled(
        lambda: (
            lljax.attribution_of_each(
                segments, policy, p.params, p.train, p.desired, of=of, batch_size=2
            ),
            jax.vmap(alone)(p.desired),
        )
    )()
    assert scores.shape == (5, N)
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-14)


def test_one_forward_sweep_serves_all_desired_examples():
    p, calls = problem(), []

    def forward(*given):
        calls.append("forward")
        return segments.forward(*given)

    def backward(*given):
        calls.append("backward")
        assert not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(given[1]))
        return segments.backward(*given)

    segments = lljax.build_segments(logistic_loss, optax.sgd(0.1))
    counted = segments._replace(forward=forward, backward=backward)
    policy = lljax.uniform_policy(T, N, jnp.float64)
    lljax.attribution_of_each(counted, policy, p.params, p.train, p.desired, batch_size=5)
    assert calls == ["forward", "backward"]  # the one inside the map over the desired examples


def weighted_loss(params, batch):
    hidden = jnp.tanh(batch["x"] * params["w"][None] + params["b"])
    return jnp.sum(batch["v"] * jnp.square(hidden - batch["y"]), axis=1)


def test_scores_of_tokens_sum_to_those_of_their_examples():
    width = 4
    x, y = normal(0, (N, width)), normal(1, (N, width))
    present = jnp.ones((N, width)).at[0, 2:].set(0)
    params = {"w": normal(2, (width,)), "b": jnp.zeros(())}
    desired = {"x": normal(3, (3, width)), "y": normal(4, (3, width)), "v": jnp.ones((3, width))}
    loss_auc = lljax.build_loss_auc(weighted_loss, OPTIMIZER)
    policy = minibatches()

    def train(v):
        return {"x": x, "y": y, "v": v}

    tokens, whole, ends = compiled(
        lambda: (
            lljax.token_scores(loss_auc, policy, params, train, present, desired, of="final"),
            lljax.attribution_scores(loss_auc, policy, params, train(present), desired, of="final"),
            jax.vmap(lambda v: loss_auc(policy, params, train(v), desired)[1].desired_losses[-1])(
                jnp.stack([present.at[3, 1].add(step) for step in (1e-5, -1e-5)])
            ),
        )
    )()
    np.testing.assert_allclose(tokens.sum(axis=1), whole, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(tokens[3, 1], (ends[1] - ends[0]) / 2e-5, rtol=1e-6)
    assert (tokens[0, 2:] == 0).all()


def test_what_does_not_fit_is_refused():
    p = problem()
    loss_auc = lljax.build_loss_auc(logistic_loss, OPTIMIZER)
    data = (p.params, p.train, p.desired)
    with pytest.raises(ValueError, match="`of` must be one of auc, final; got 'mean'"):
        lljax.attribution_scores(loss_auc, p.policy, *data, of="mean")
    with pytest.raises(ValueError, match="`policy` must be floating"):
        lljax.attribution_scores(loss_auc, jnp.ones((T, N), int), *data)
    segments = lljax.build_segments(logistic_loss, OPTIMIZER)
    with pytest.raises(ValueError, match="`batch_size` must be"):
        lljax.attribution_of_each(segments, p.policy, *data, batch_size=0)
