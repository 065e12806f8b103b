"""Losses whose value for an example depends on the examples beside it, or on its place."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import assert_refused, call
from problems import logistic_loss, make_logistic, normal

import lljax

SGD = optax.sgd(0.1)


def batch_norm(params, batch):
    z = batch["z"] - batch["z"].mean(0, keepdims=True)
    z /= jnp.sqrt(jnp.mean(z**2, axis=0, keepdims=True) + 1e-5)
    return logistic_loss(params, {**batch, "z": z})


def contrastive(params, batch):
    scores = (batch["z"] * params["w"][None]) @ batch["z"].T
    return -jnp.diagonal(jax.nn.log_softmax(scores))


def by_place(params, batch):
    losses = logistic_loss(params, batch)
    return losses * (1 + jnp.arange(losses.size))


def beside_the_first(params, batch):
    return logistic_loss(params, batch) + (batch["z"] @ batch["z"][0]) ** 2


MIXING = [batch_norm, contrastive, by_place, beside_the_first]


@pytest.mark.parametrize("loss_fn", MIXING)
def test_a_loss_that_mixes_is_found(loss_fn):
    for size in (2, 3, 17):
        _, params, train, _ = make_logistic(num_train=size)
        with pytest.raises(ValueError, match=r"`loss_fn` mixes .* batch of \d.*LayerNorm"):
            lljax.check_loss_fn(loss_fn, params, train)


def test_it_is_found_where_the_given_losses_are_all_the_same():
    """Parameters of zero, and a batch that begins with many copies of one example."""
    _, params, train, _ = make_logistic(num_train=64)
    with pytest.raises(ValueError, match="at slightly other parameters"):
        lljax.check_loss_fn(lambda *a: batch_norm(*a), jax.tree.map(jnp.zeros_like, params), train)
    copies = jax.tree.map(lambda leaf: leaf.at[:40].set(leaf[0]), train)
    with pytest.raises(ValueError, match="mixes the examples"):
        lljax.check_loss_fn(lambda *a: batch_norm(*a), params, copies)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_a_loss_of_its_own_passes_in_all_dtypes(dtype):
    """Rounding differs with the size of a batch: large sums and hidden layers too."""
    params = [normal(seed, (300, 300), jnp.float32).astype(dtype) / 17 for seed in range(3)]

    def loss_fn(params, batch):
        for weights in params:
            batch = jnp.tanh(batch @ weights)
        return jnp.sum(batch**2, axis=1) - 1

    lljax.check_loss_fn(loss_fn, params, normal(9, (50, 300), jnp.float32).astype(dtype))


def test_with_micro_batches_it_is_refused_and_without_warned_of_once():
    def loss_fn(params, batch):  # nothing is remembered of it
        return batch_norm(params, batch)

    policy, params, train, desired = make_logistic()
    cut = {"microbatch_size": 4}
    loss_auc = lljax.build_loss_auc(loss_fn, SGD, **cut)
    segments = lljax.build_segments(loss_fn, SGD, **cut)
    for refused in (
        lambda: loss_auc(policy, params, train, desired),
        lambda: jax.grad(lambda p: loss_auc(p, params, train, desired)[0])(policy),
        lambda: segments.start(params, (train, desired), {}),
        lambda: lljax.contributions(loss_fn, params, train, desired, **cut),
        lambda: lljax.unroll(loss_fn, SGD, policy, params, train, lambda *_: 0.0, **cut),
    ):
        with pytest.raises(ValueError, match=r"`loss_fn` mixes .*microbatch_size=None"):
            refused()

    with pytest.warns(UserWarning, match="exact for these very batches"):
        lljax.contributions(loss_fn, params, train, desired)
    lljax.contributions(loss_fn, params, train, desired)  # a second warning would be an error


def test_the_desired_loss_is_looked_at_too():
    def desired_loss_fn(params, batch):
        return batch_norm(params, batch)

    problem = make_logistic()
    options = {"desired_loss_fn": desired_loss_fn, "microbatch_size": 4}
    loss_auc = lljax.build_loss_auc(logistic_loss, SGD, **options)
    with pytest.raises(ValueError, match="`desired_loss_fn` mixes"):
        loss_auc(*problem)


def test_a_loss_is_evaluated_once_and_never_when_traced():
    traced = []

    def loss_fn(params, batch):
        traced.append(batch["y"].shape[0])
        return logistic_loss(params, batch)

    policy, params, train, desired = make_logistic()
    loss_auc = lljax.build_loss_auc(loss_fn, SGD)
    jax.jit(loss_auc).lower(policy, params, train, desired)
    assert set(traced) == {17, 7}  # whole batches only
    traced.clear()
    for _ in range(3):
        lljax.contributions(loss_fn, params, train, desired)
    assert [size for size in traced if size not in (17, 7)] == [8, 4]
    # A loss that closes over what is traced shows no numbers, and is no obstacle.
    scaled = jax.jit(
        lambda x: lljax.contributions(lambda p, b: x * logistic_loss(p, b), params, train, desired)
    )
    np.testing.assert_allclose(
        scaled(2.0), 4 * lljax.contributions(loss_fn, params, train, desired), rtol=1e-10
    )


def test_what_cannot_be_compared_passes():
    """Batches of one size only, losses that are not finite, a single example."""
    _, params, train, _ = make_logistic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed = lambda p, b: logistic_loss(p, b) + b["z"].reshape(17, 5)[:, 0]  # noqa: E731
        lljax.check_loss_fn(fixed, params, train)
        infinite = lambda p, b: logistic_loss(p, b) + b["z"].mean() * jnp.inf  # noqa: E731
        lljax.check_loss_fn(infinite, params, train)
        lljax.check_loss_fn(batch_norm, params, jax.tree.map(lambda leaf: leaf[:1], train))


def test_the_public_check_says_what_else_is_wrong():
    _, params, train, _ = make_logistic()
    lljax.check_loss_fn(logistic_loss, params, train)
    with pytest.raises(ValueError, match=r"`loss_fn\(params, batch\)` must return one loss"):
        lljax.check_loss_fn(lambda p, b: logistic_loss(p, b).mean(), params, train)
    with pytest.raises(ValueError, match=r"got tracers\. Call check_loss_fn outside"):
        jax.jit(lambda p: lljax.check_loss_fn(logistic_loss, p, train))(params)
    with pytest.raises(ValueError, match="`loss_fn` must be a function"):
        lljax.check_loss_fn(0.5, params, train)


TASK = """
import dataclasses
import numpy as np
from lljax import tasks
from lljax.tasks import Problem, Task

def loss_fn(w, x):
    return ((x - x.mean()) * w - x) ** 2

def build(config):
    x = np.arange(1.0, 9.0, dtype=np.float32)
    return Problem(
        loss_fn=loss_fn, optimizer=tasks.inner_optimizer(config.inner),
        params=np.ones((), np.float32), train=x, desired=x, validation=x, test=x, num_symbols=2,
    )

@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(tasks.ExperimentConfig):
    inner: tasks.InnerConfig = tasks.InnerConfig(num_steps=2, learning_rate=0.01)
    outer: tasks.OuterConfig = tasks.OuterConfig(num_steps=1)

def get_config():
    return Config()

def get_task():
    return Task("mixing", Config, build)
"""


def test_a_task_is_refused_or_warned_of(tmp_path):
    config = tmp_path / "mixing.py"
    config.write_text(TASK)
    share = "--outer.train-share"
    size = "--inner.microbatch-size"
    for flags, cure in (
        ((share, "0", size, "4"), "or leave inner.microbatch_size out."),
        ((share, "0.5"), "or set outer.train_share to 0."),
        ((share, "0.5", size, "4"), "leave inner.microbatch_size out and set outer.train_share"),
    ):
        words = ["task mixing", "`loss_fn` mixes", cure]
        assert_refused(call("plan", config, *flags), *words)
    result = call("plan", config, share, "0")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("warning: `loss_fn` mixes the examples") == 1
