"""Compression ratio and acceleration ratio: closed forms, limits, jit and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lljax.compression import acceleration_ratio, compression_ratio


def test_compression_ratio_is_log_vocabulary_over_auc():
    losses = np.random.default_rng(0).uniform(1, 9, size=30)
    total = sum(losses[t] for t in range(1, 30))
    expected = 29 * np.log(5000) / total
    np.testing.assert_allclose(compression_ratio(jnp.array(losses), 5000), expected, rtol=1e-12)
    # bits over bits is the same number
    in_bits = np.log2(5000) / np.mean(losses[1:] / np.log(2))
    np.testing.assert_allclose(compression_ratio(losses, 5000), in_bits, rtol=1e-12)


def test_compression_ratio_does_not_count_the_untrained_model():
    guessing = jnp.full(6, jnp.log(2.0))
    np.testing.assert_allclose(compression_ratio(guessing, 2), 1, rtol=1e-6)
    np.testing.assert_allclose(compression_ratio(guessing.at[0].set(99.0), 2), 1, rtol=1e-6)


def test_compression_ratio_keeps_float32():
    assert compression_ratio(jnp.ones(4, jnp.float32), 8).dtype == jnp.float32


def test_compression_ratio_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"`vocab_size` must be an int, at least 2.*got 1"):
        compression_ratio(jnp.ones(4), 1)
    with pytest.raises(ValueError, match=r"`desired_losses` must have shape \(T\+1,\).*\(1,\)"):
        compression_ratio(jnp.ones(1), 5)
    with pytest.raises(ValueError, match=r"\(2, 4\)\. Use jax.vmap over runs"):
        compression_ratio(jnp.ones((2, 4)), 5)
    with pytest.raises(ValueError, match=r"must be floating.*int"):
        compression_ratio(jnp.ones(4, int), 5)


CONVENTIONAL = [5.0, 4.0, 3.0, 2.5, 2.0]


@pytest.mark.parametrize(
    ("accelerated", "expected"),
    [
        (CONVENTIONAL, 1.0),  # against itself
        ([5.0, 3.0, 2.0, 1.0, 1.0], 2.0),  # equality counts as reached
        ([5.0, 3.0, 2.1, 1.0, 1.0], 4 / 3),
        ([5.0, 2.0, 9.0, 9.0, 9.0], 4.0),  # a dip counts
        ([5.0, 3.0, 2.9, 2.8, 2.1], np.nan),  # never reached
        ([1.0, 1.0, 1.0, 1.0, 1.0], 4.0),  # reached before the first step: T
        ([1.0, 9.0, 9.0, 2.0, 9.0], 4 / 3),  # t = 0 itself is not searched
        ([5.0, np.nan, 1.0, 1.0, 1.0], 2.0),
        ([np.nan] * 5, np.nan),
    ],
)
def test_acceleration_ratio_by_hand(accelerated, expected):
    got = acceleration_ratio(jnp.array(CONVENTIONAL), jnp.array(accelerated))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("end", [np.nan, np.inf])
def test_acceleration_over_a_diverged_run_is_nan(end):
    diverged = jnp.array([*CONVENTIONAL[:-1], end])
    assert jnp.isnan(acceleration_ratio(diverged, jnp.array(CONVENTIONAL)))


def test_both_ratios_under_jit_and_vmap():
    rng = np.random.default_rng(1)
    conventional, accelerated = np.sort(rng.uniform(1, 9, (2, 20, 31)))[:, :, ::-1]
    got = jax.jit(jax.vmap(acceleration_ratio))(conventional, accelerated)
    expected = []
    for a, b in zip(conventional, accelerated, strict=True):
        steps = [t for t in range(1, 31) if b[t] <= a[30]]
        expected.append(30 / steps[0] if steps else np.nan)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    assert 0 < np.isnan(expected).sum() < 20
    ratios = jax.jit(jax.vmap(lambda losses: compression_ratio(losses, 7)))(conventional)
    np.testing.assert_allclose(ratios, np.log(7) / conventional[:, 1:].mean(1), rtol=1e-12)


def test_acceleration_ratio_names_what_is_wrong():
    with pytest.raises(ValueError, match=r"same T steps.*\(4,\) and \(5,\)"):
        acceleration_ratio(jnp.ones(4), jnp.ones(5))
    with pytest.raises(ValueError, match=r"`accelerated` must have shape \(T\+1,\)"):
        acceleration_ratio(jnp.ones(4), jnp.ones((1, 4)))


def test_a_curve_does_not_accelerate_itself():
    """However it oscillates; only a curve that is the same at every step."""
    oscillating = jnp.array([1.0, 0.2, 0.9, 0.3, 0.5])
    assert acceleration_ratio(oscillating, oscillating) == 1
    assert acceleration_ratio(oscillating, oscillating.at[2].set(0.8)) == 4
    assert jnp.isnan(acceleration_ratio(oscillating.at[-1].set(jnp.nan), oscillating))
