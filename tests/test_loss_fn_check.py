"""A loss whose value for an example depends on its neighbours is found."""

import jax
import jax.numpy as jnp
import optax
import pytest
from problems import logistic_loss, make_logistic

import lljax


def normalised(params, batch):
    """Batch normalisation without running statistics."""
    z = batch["z"] - batch["z"].mean(axis=0, keepdims=True)
    return logistic_loss(params, {**batch, "z": z})


def contrast(params, batch):
    scores = batch["z"] @ params["w"]
    return optax.softmax_cross_entropy_with_integer_labels(
        scores[:, None] * batch["z"] @ batch["z"].T, jnp.arange(len(scores))
    )


def by_place(params, batch):
    losses = logistic_loss(params, batch)
    return losses * (1 + jnp.arange(losses.size, dtype=losses.dtype))


@pytest.mark.parametrize("loss_fn", [normalised, contrast, by_place])
def test_what_micro_batches_would_change_is_refused_with_them(loss_fn):
    policy, params, train, desired = make_logistic()
    words = "`loss_fn` gives an example of `train` another loss when other examples are beside it"
    with pytest.raises(ValueError, match=words):
        lljax.build_loss_auc(loss_fn, optax.sgd(0.1), microbatch_size=4)(
            policy, params, train, desired
        )
    with pytest.raises(ValueError, match="`microbatch_size` divides the examples"):
        lljax.check_loss_fn(loss_fn, params, train)
    with pytest.warns(UserWarning, match="The result holds for just this batch"):
        lljax.contributions(loss_fn, params, train, desired)


def test_a_model_that_begins_at_zero_hides_nothing():
    _, params, train, _ = make_logistic()
    with pytest.raises(ValueError, match="another loss when other examples are beside it"):
        lljax.check_loss_fn(normalised, jax.tree.map(jnp.zeros_like, params), train)


def test_a_loss_of_each_example_alone_passes():
    policy, params, train, desired = make_logistic()
    lljax.check_loss_fn(logistic_loss, params, train)
    losses = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1), microbatch_size=4)
    assert jnp.isfinite(losses(policy, params, train, desired)[0])


def test_in_32_bits_and_under_jit_nothing_is_said():
    policy, params, train, desired = make_logistic(dtype=jnp.float32)
    lljax.check_loss_fn(logistic_loss, params, train)
    whole = lljax.build_loss_auc(normalised, optax.sgd(0.1))
    assert jnp.isfinite(jax.jit(whole)(policy, params, train, desired)[0])
