"""The gradient in pieces, and what the memory strategies promise."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import compiled, logistic_loss, make_logistic

import lljax
from lljax.memory import states_held
from lljax.update import needs_gradient

ADAMW = optax.adamw(0.1, eps_root=1e-8)


@pytest.mark.parametrize(
    ("optimizer", "memory", "length"),
    [
        (optax.sgd(0.3), lljax.StoreStates(), 5),  # the last segment is shorter
        (ADAMW, lljax.RecomputeStates(), 12),
        (ADAMW, lljax.OffloadStates(), 23),
        (ADAMW, lljax.KeepGradients(), 7),
    ],
)
def test_segments_add_up_to_the_gradient(optimizer, memory, length):
    policy, params, train, desired = make_logistic()
    data, watched = (train, desired), {"training": train}
    segments = lljax.build_segments(logistic_loss, optimizer, memory=memory, microbatch_size=6)
    start, forward, start_backward, _ = map(compiled, segments)
    backward = compiled(functools.partial(segments.backward, to_train=True))
    num_steps = len(policy)
    pieces = [slice(t, min(t + length, num_steps)) for t in range(0, num_steps, length)]

    state, first = start(params, data, watched)
    curves, starts = [jax.tree.map(lambda loss: loss[None], first)], []
    for piece in pieces:
        starts.append(state)
        state, losses, _ = forward(state, policy[piece], data, watched)
        curves.append(losses)
    loss_cotangents = jnp.full(num_steps, 1 / num_steps).at[0].set(0)
    cotangent, grads, of_train = start_backward(state, loss_cotangents[-1], data), [], []
    for piece, first_state in reversed(list(zip(pieces, starts, strict=True))):
        kept = forward(first_state, policy[piece], data, watched).kept  # made again
        cotangent, slopes, more = backward(
            cotangent, kept, policy[piece], loss_cotangents[piece], data
        )
        grads.append(slopes)
        of_train.append(more)

    loss_auc = lljax.build_loss_auc(logistic_loss, optimizer)
    value_and_grads = compiled(jax.value_and_grad(loss_auc, argnums=(0, 2), has_aux=True))
    (auc, info), (expected, in_train) = value_and_grads(policy, params, train, desired)
    chex.assert_trees_all_close(
        jax.tree.map(lambda *parts: sum(parts), *of_train), in_train, rtol=1e-9, atol=1e-13
    )
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *curves)
    np.testing.assert_allclose(joined["objective"], info.desired_losses, rtol=1e-12)
    np.testing.assert_allclose(joined["objective"][1:].mean(), auc, rtol=1e-12)
    training = logistic_loss(info.params, train).mean()
    np.testing.assert_allclose(joined["training"][-1], training, rtol=1e-12)
    tolerance = 1e-12 * np.abs(expected).max()
    np.testing.assert_allclose(np.concatenate(grads[::-1]), expected, rtol=0, atol=tolerance)


@functools.cache
def thousand_steps(memory):
    problem = make_logistic(num_steps=1000, dtype=jnp.float32)
    loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.5, momentum=0.9), memory=memory)
    return np.asarray(compiled(jax.grad(loss_auc, has_aux=True))(*problem)[0])


@pytest.mark.parametrize(
    "memory",
    [
        lljax.RecomputeStates(),
        lljax.RecomputeStates(2, depth=9),
    ],
    ids=str,
)
def test_through_a_thousand_steps_all_strategies_agree_in_float32(memory):
    stored = thousand_steps(lljax.StoreStates())
    assert np.abs(thousand_steps(memory) - stored).max() <= 1e-5 * np.abs(stored).max()


@pytest.mark.parametrize(
    ("memory", "sweeps"),
    [
        (lljax.StoreStates(), 1),
        (lljax.OffloadStates(), 1),
        (lljax.RecomputeStates(), 2),
        (lljax.RecomputeStates(depth=3), 4),
        (lljax.RecomputeStates(2, depth=4), 5),
    ],
    ids=str,
)
def test_the_promised_number_of_recomputations_is_the_real_one(memory, sweeps):
    """23 steps fill no tree evenly, so this counts idle places too, if they do any work."""
    problem, ran = make_logistic(), []
    plain = optax.sgd(0.1)

    def update(gradient, state, params=None):
        jax.debug.callback(lambda: ran.append(1))
        return plain.update(gradient, state, params)

    counting = optax.GradientTransformation(plain.init, update)
    loss_auc = lljax.build_loss_auc(logistic_loss, counting, memory=memory, check_optimizer=False)
    jax.block_until_ready(compiled(jax.grad(loss_auc, has_aux=True))(*problem))
    jax.effects_barrier()
    pulling_back = 23  # the vjp of each update runs it once
    assert len(ran) - pulling_back == 23 * sweeps


def test_memory_grows_as_promised():
    """Temporary memory in states, for T = 100 .. 10,000 at a fixed number of states."""
    dim, budget = 4096, 40

    def states(num_steps, memory):
        problem = make_logistic(num_steps=num_steps, num_train=2, dim=dim, dtype=jnp.float32)
        loss_auc = lljax.build_loss_auc(logistic_loss, optax.sgd(0.1), memory=memory)
        gradient = jax.jit(jax.grad(loss_auc, has_aux=True))
        size = gradient.lower(*problem).compile().memory_analysis().temp_size_in_bytes
        return size / (4 * (dim + 1))

    for num_steps in (100, 1_000, 10_000):
        memory = lljax.recompute_within(num_steps, budget)
        assert states_held(memory, num_steps) <= budget
        # Beside the kept ones: those at work in a step, and copies of lists of them.
        assert states(num_steps, memory) < 2 * budget + 20
    assert states(1000, lljax.StoreStates()) > 1000


def test_a_budget_chooses_the_least_recomputation():
    assert lljax.recompute_within(10_000, 200).depth == 1
    assert lljax.recompute_within(10_000, 199).depth == 2
    assert lljax.recompute_within(1_000_000, 60).depth == 5
    deepest = lljax.recompute_within(100_000, 40)
    assert states_held(deepest, 100_000) <= 40
    with pytest.raises(ValueError, match="100000 steps need room for at least"):
        lljax.recompute_within(100_000, 20)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 23, 997, 1000, 4000, 4001])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_tree_holds_every_step(num_steps, depth):
    counts = lljax.RecomputeStates(depth=depth).split(num_steps)
    assert len(counts) == depth + 1
    assert math.prod(counts) >= num_steps
    assert math.prod(counts) - num_steps < num_steps * 0.5 + 4


def test_only_updates_that_need_it_keep_the_gradient():
    params = {"w": jnp.ones(3)}
    schedule = optax.cosine_decay_schedule(0.1, 10)
    for linear in (optax.sgd(0.1), optax.sgd(schedule, momentum=0.9, nesterov=True)):
        assert not needs_gradient(linear, params)
    for other in (ADAMW, optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))):
        assert needs_gradient(other, params)


def test_segments_refuse_what_does_not_fit():
    policy, params, train, desired = make_logistic()
    segments = lljax.build_segments(logistic_loss, optax.adam(0.1))
    with pytest.raises(ValueError, match="eps_root"):
        segments.start(params, (train, desired), {})
    segments = lljax.build_segments(logistic_loss, optax.sgd(0.1))
    bad = jax.tree.map(lambda leaf: leaf[:0], desired)
    with pytest.raises(ValueError, match="`validation` is empty"):
        segments.start(params, (train, desired), {"validation": bad})
    state, _ = segments.start(params, (train, desired), {})
    with pytest.raises(ValueError, match=r"\(23, 17\)"):
        segments.forward(state, policy[:, :5], (train, desired), {})


def test_the_second_segment_is_not_compiled_again():
    policy, params, train, desired = make_logistic()
    segments = lljax.build_segments(logistic_loss, ADAMW)
    forward = compiled(chex.assert_max_traces(n=1)(segments.forward))
    state, _ = segments.start(params, (train, desired), {})
    for piece in (slice(0, 10), slice(10, 20)):
        state = forward(state, policy[piece], (train, desired), {}).state
