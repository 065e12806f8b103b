"""Families of weights: what they give, by plain loops, and their derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import logistic_loss, make_logistic, normal

import lljax
from benchmarks.plain_loop import plain_loss_auc
from lljax import StepInputs

T, N, B, G = 12, 17, 5, 3
RNG = np.random.default_rng(0)
INDEX = RNG.integers(0, N, (T, B))
INDEX[:, 1] = INDEX[:, 0]
GROUPS = np.arange(N) % G
FEATURES = RNG.normal(size=(N, 4))


def scorer(psi, batch):
    return jnp.tanh(batch @ psi["in"]) @ psi["out"]


def simplex(*shape):
    return jnp.asarray(RNG.dirichlet(np.ones(shape[-1]), shape[:-1]))


def interpolated(rows):
    """[T, N], the rows at every step, by NumPy's own interpolation."""
    at = np.linspace(0, len(rows) - 1, T)
    return np.stack([np.interp(at, np.arange(len(rows)), column) for column in rows.T], 1)


def shares_of_groups(weights):
    return np.stack([weights[..., g] / np.sum(g == GROUPS) for g in GROUPS], -1)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def scores(psi):
    return np.tanh(FEATURES @ psi["in"]) @ psi["out"]


# psi, the family, and by NumPy the share [T, N] of each example at each step.
FAMILIES = {
    "static": (simplex(N), lljax.static_weights, lambda w: np.tile(w, (T, 1))),
    "group": (
        simplex(G),
        lambda w, *index, **steps: lljax.group_weights(w, jnp.asarray(GROUPS), *index, **steps),
        lambda w: np.tile(shares_of_groups(w), (T, 1)),
    ),
    "scheduled": (simplex(4, N), lljax.scheduled_weights, interpolated),
    "scheduled_groups": (
        simplex(3, G),
        lambda w, *index, **steps: lljax.scheduled_weights(
            w, *index, groups=jnp.asarray(GROUPS), **steps
        ),
        lambda rows: interpolated(shares_of_groups(rows)),
    ),
    "one_row": (simplex(1, N), lljax.scheduled_weights, lambda rows: np.tile(rows[0], (T, 1))),
    "dense": (simplex(T, N), lljax.scheduled_weights, lambda rows: rows),
    "scorer": (
        {"in": normal(1, (4, 3)), "out": normal(2, (3,))},
        lambda psi, *index, **steps: lljax.scorer_weights(
            scorer, psi, jnp.asarray(FEATURES), *index, **steps
        ),
        lambda psi: np.tile(softmax(scores(psi)), (T, 1)),
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_weights_of_batches_and_of_all_examples(name):
    psi, family, plain = FAMILIES[name]
    shares = plain(jax.tree.map(np.asarray, psi))
    np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-12)
    whole = family(psi, num_steps=T)
    np.testing.assert_allclose(whole, shares, rtol=1e-12)
    lljax.check_policy(whole, tolerance=1e-12)
    found = jax.jit(family)(psi, jnp.asarray(INDEX))
    expected = np.take_along_axis(shares, INDEX, 1) * N / B
    if name == "scorer":
        expected = softmax(scores(jax.tree.map(np.asarray, psi))[INDEX])
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "scorer"])
def test_batches_are_unbiased(name):
    """Batches that together have every example once have the mean of the full batch's gradient."""
    psi, family, plain = FAMILIES[name]
    gradients = RNG.normal(size=(N, 2))
    shares = plain(np.asarray(psi))
    parts = []
    for start in range(N):
        index = (start + np.arange(B)) % N  # every example is in B of the N batches
        weights = family(psi, jnp.broadcast_to(jnp.asarray(index), (T, B)))
        parts.append(np.asarray(weights) @ gradients[index])
    np.testing.assert_allclose(np.mean(parts, axis=0), shares @ gradients, rtol=1e-12)


def test_uniform_shares_are_ordinary_training():
    index = jnp.asarray(INDEX)
    sizes = np.bincount(GROUPS)
    for weights in (
        lljax.static_weights(jnp.full(N, 1 / N), index),
        lljax.group_weights(jnp.asarray(sizes / N), jnp.asarray(GROUPS), index),
        lljax.scheduled_weights(jnp.full((2, N), 1 / N), index),
    ):
        np.testing.assert_allclose(weights, 1 / B, rtol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_in_psi_is_that_of_a_plain_loop(name):
    psi, family, _ = FAMILIES[name]
    _, params, train, desired = make_logistic(num_steps=T, num_train=N)
    optimizer = optax.adamw(0.1, eps_root=1e-6)
    index = jnp.asarray(INDEX)

    def gradient(loss_auc):
        def objective(psi):
            value = loss_auc(StepInputs(family(psi, index), index), params, train, desired)
            return value[0] if isinstance(value, tuple) else value

        return jax.jit(jax.grad(objective))(psi)

    found = gradient(lljax.build_loss_auc(logistic_loss, optimizer, microbatch_size=2))
    expected = gradient(plain_loss_auc(logistic_loss, optimizer))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert jnp.abs(b).max() > 1e-6
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11 * np.abs(b).max())


@pytest.mark.parametrize("name", ["static", "scheduled", "group", "scorer"])
def test_nothing_of_the_size_of_all_examples_is_made_for_a_step(name):
    size, steps = 100_000, 200
    index = jax.ShapeDtypeStruct((steps, B), jnp.int32)
    groups = jnp.asarray(np.arange(size) % G)
    features = jax.ShapeDtypeStruct((size, 4), jnp.float32)
    forms = {"static": (size,), "scheduled": (3, size), "group": (G,), "scorer": (4,)}
    psi = jax.ShapeDtypeStruct(forms[name], jnp.float32)

    def total(psi, index, features):
        weights = {
            "static": lambda: lljax.static_weights(psi, index),
            "scheduled": lambda: lljax.scheduled_weights(psi, index),
            "group": lambda: lljax.group_weights(psi, groups, index),
            "scorer": lambda: lljax.scorer_weights(lambda p, b: b @ p, psi, features, index),
        }[name]()
        return jnp.sum(weights**2)

    program = jax.jit(jax.grad(total)).lower(psi, index, features).compile()
    memory = program.memory_analysis()
    # The scatter into psi, and for groups a few copies of their numbers; [T, N] would be 80 MB.
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 5e6


def test_families_under_vmap_have_batches_of_their_own():
    indices = jnp.asarray(RNG.integers(0, N, (3, T, B)))
    psi = FAMILIES["scorer"][0]
    for name in ("scheduled", "scorer"):
        psi, family, _ = FAMILIES[name]
        together = jax.jit(jax.vmap(family, in_axes=(None, 0)))(psi, indices)
        np.testing.assert_allclose(together[1], family(psi, indices[1]), rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_dtype_is_that_of_psi(dtype):
    with jax.numpy_dtype_promotion("strict"):
        index = jnp.asarray(INDEX)
        assert lljax.static_weights(jnp.ones(N, dtype), index).dtype == dtype
        assert lljax.scheduled_weights(jnp.ones((2, N), dtype), index).dtype == dtype
        assert lljax.group_weights(jnp.ones(G, dtype), jnp.asarray(GROUPS), index).dtype == dtype


W, BATCHES, ROWS = jnp.ones(N), jnp.asarray(INDEX), jnp.ones((2, N))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lljax.static_weights(W), "or `num_steps` .*; got neither"),
        (lambda: lljax.static_weights(W, BATCHES, num_steps=T), "got both"),
        (lambda: lljax.static_weights(W, num_steps=0), "`num_steps` must be an int, at least 1"),
        (
            lambda: lljax.static_weights(ROWS, BATCHES),
            r"`weights` must have shape \(N,\).*got \(2, 17\)",
        ),
        (lambda: lljax.static_weights(W.astype(int), BATCHES), "`weights` must be floating"),
        (lambda: lljax.static_weights(W, BATCHES + 5), "`index` must be in 0 .. 16"),
        (lambda: lljax.static_weights(W, BATCHES.astype(float)), r"integers \(T, B\); got float64"),
        (lambda: lljax.static_weights(W, BATCHES[:0]), "T, B >= 1"),
        (lambda: lljax.scheduled_weights(W, BATCHES), r"`rows` must have shape \(S, N\)"),
        (lambda: lljax.scheduled_weights(jnp.ones((T + 1, N)), BATCHES), "S <= T = 12.*got 13"),
        (
            lambda: lljax.group_weights(jnp.ones(4), GROUPS, BATCHES),
            "1 of 4 have none, first group 3",
        ),
        (lambda: lljax.group_weights(jnp.ones(2), GROUPS, BATCHES), r"in 0 .. 1, .* got 0 .. 2"),
        (
            lambda: lljax.group_weights(jnp.ones(3), GROUPS * 1.0, BATCHES),
            "`groups` must be an array of",
        ),
        (lambda: lljax.group_weights(jnp.ones(3), list(GROUPS), BATCHES), "got list"),
        (lambda: lljax.scorer_weights(3, W, FEATURES, BATCHES), "`scorer` must be a function"),
        (
            lambda: lljax.scorer_weights(lambda p, b: b, W, jnp.asarray(FEATURES), BATCHES),
            r"one logit an example, shape \(5,\); got \(5, 4\)",
        ),
        (
            lambda: lljax.scorer_weights(lambda p, b: jnp.arange(5), W, FEATURES, BATCHES),
            "must be floating",
        ),
        (
            lambda: lljax.known_parameters(ROWS > 0, jnp.arange(3), N),
            r"`index` must have the shape",
        ),
        (lambda: lljax.known_parameters(ROWS, jnp.arange(N), N), "`known` must be a bool array"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
