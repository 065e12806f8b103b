"""The scaling-law fit: known laws are found again, and what cannot be fitted is refused."""

import math
import re

import numpy as np
import pytest

from lljax.scaling_law import (
    ScalingLaw,
    fit_scaling_law,
    fit_scaling_laws,
    misfit,
    scaling_law_improvement,
)

CONVENTIONAL = ScalingLaw(L0=0.051, B=3.16e8, beta=0.12, t0=400, r2=1.0)  # the paper's Table 1
OPTIMIZED = ScalingLaw(L0=0.051, B=1.99e7, beta=0.14, t0=400, r2=1.0)


def make_curve(law, num_steps, noise=0.0, seed=0):
    """[T+1] on the law after t0; up to t0 a straight line above the law's start."""
    t = np.arange(1, num_steps + 1)
    losses = law.L0 + (law.B / t) ** law.beta
    losses[: law.t0] = np.linspace(2, 1.2, law.t0) * losses[law.t0]
    excess = np.exp(noise * np.random.default_rng(seed).normal(size=num_steps))
    return np.concatenate([[2 * losses[0]], law.L0 + (losses - law.L0) * excess])


def assert_same_law(got, expected, rtol):
    np.testing.assert_allclose(got.L0, expected.L0, rtol=rtol, atol=rtol * 1e-2)
    np.testing.assert_allclose(math.log(got.B), math.log(expected.B), rtol=rtol)
    np.testing.assert_allclose(got.beta, expected.beta, rtol=rtol)


@pytest.mark.parametrize("law", [CONVENTIONAL, OPTIMIZED])
def test_the_papers_coefficients_are_found_again(law):
    got = fit_scaling_law(make_curve(law, 4000))
    assert got.t0 == 400
    assert_same_law(got, law, rtol=1e-3)
    assert got.r2 > 1 - 1e-10


@pytest.mark.parametrize(
    "law",
    [
        ScalingLaw(L0=0.0, B=50.0, beta=0.5, t0=0, r2=1.0),
        ScalingLaw(L0=1.5, B=3.0, beta=2.0, t0=0, r2=1.0),  # ends 3e-6 above its floor
        ScalingLaw(L0=0.3, B=1e-3, beta=0.2, t0=37, r2=1.0),
        ScalingLaw(L0=0.1, B=1e20, beta=0.05, t0=113, r2=1.0),
        ScalingLaw(L0=0.0, B=1e-9, beta=1.0, t0=0, r2=1.0),  # losses down to 6e-13
    ],
)
def test_other_laws_are_found_again(law):
    got = fit_scaling_law(make_curve(law, 1700))
    assert got.t0 == law.t0
    assert_same_law(got, law, rtol=1e-4)


def test_noisy_losses_give_nearly_the_law():
    law = ScalingLaw(L0=0.2, B=300.0, beta=0.6, t0=0, r2=1.0)
    fits = [fit_scaling_law(make_curve(law, 1500, 0.01, seed), t0=50) for seed in range(3)]
    for got in fits:
        np.testing.assert_allclose(got.beta, law.beta, rtol=0.1)
        np.testing.assert_allclose(got.B, law.B, rtol=0.1)
        assert 0.99 < got.r2 < 1 - 1e-5


def test_noise_lowers_r2_by_its_share_of_the_variance():
    law = ScalingLaw(L0=0.2, B=300.0, beta=0.6, t0=0, r2=1.0)
    curve = make_curve(law, 2000, noise=0.1)
    t = np.arange(101, 2001)
    correlation = np.corrcoef(np.log(t), np.log(curve[101:] - 0.2))[0, 1]
    got = fit_scaling_law(curve, L0=0.2, t0=100)
    np.testing.assert_allclose(got.r2, correlation**2, rtol=1e-10)
    slope, start = np.polyfit(np.log(t), np.log(curve[101:] - 0.2), 1)
    np.testing.assert_allclose([got.beta, math.log(got.B)], [-slope, start / -slope], rtol=1e-9)


def test_no_other_floor_correlates_better():
    """The search over L0 against brute force, on a curve that is no power law."""
    t = np.arange(0, 801)
    curve = 0.4 + np.exp(-t / 300) + 0.01 * np.random.default_rng(2).normal(size=801)
    got = fit_scaling_law(curve, t0=20)
    best = max(
        np.corrcoef(np.log(t[21:]), np.log(curve[21:] - floor))[0, 1] ** 2
        for floor in np.linspace(0, curve[21:].min(), 500, endpoint=False)
    )
    assert best < 0.999
    assert got.r2 >= best - 1e-9


def test_a_floor_below_zero_is_not_sought():
    curve = (2000 / np.arange(1, 901)) ** 0.3 - 0.2
    assert fit_scaling_law(curve, t0=10).L0 == 0


def test_the_start_of_the_law_is_searched_within_its_bound():
    law = ScalingLaw(L0=0.1, B=100.0, beta=0.8, t0=300, r2=1.0)
    curve = make_curve(law, 1000)
    assert fit_scaling_law(curve).t0 <= 100  # one decade, up to T = 1000
    got = fit_scaling_law(curve, min_decades=0.5)
    assert got.t0 == 300  # a later start fits as well: the smallest is taken
    assert_same_law(got, law, rtol=1e-4)


def test_fixed_floor_and_start_are_kept():
    got = fit_scaling_law(make_curve(CONVENTIONAL, 1000), L0=0.02, t0=123)
    assert (got.L0, got.t0) == (0.02, 123)
    only_start = fit_scaling_law(make_curve(CONVENTIONAL, 1000), t0=400)
    assert only_start.t0 == 400
    assert_same_law(only_start, CONVENTIONAL, rtol=1e-3)
    only_floor = fit_scaling_law(make_curve(CONVENTIONAL._replace(t0=40), 1000), L0=0.051)
    assert (only_floor.L0, only_floor.t0) == (0.051, 40)


def test_two_curves_share_floor_and_start():
    curves = [make_curve(law, 4000, noise=2e-4) for law in (CONVENTIONAL, OPTIMIZED)]
    laws = fit_scaling_laws(curves)
    assert laws[0].L0 == laws[1].L0
    assert laws[0].t0 == laws[1].t0
    for law, curve in zip(laws, curves, strict=True):
        alone = fit_scaling_law(curve, L0=law.L0, t0=law.t0)
        assert alone == law
    own = [fit_scaling_law(curve) for curve in curves]
    assert sum(law.r2 for law in laws) <= sum(law.r2 for law in own) + 1e-9
    other = [fit_scaling_law(curve, L0=own[0].L0, t0=own[0].t0) for curve in curves]
    assert sum(law.r2 for law in laws) >= sum(law.r2 for law in other) - 1e-9


def test_shared_laws_give_the_papers_improvement():
    laws = fit_scaling_laws([make_curve(law, 4000) for law in (CONVENTIONAL, OPTIMIZED)])
    np.testing.assert_allclose(
        scaling_law_improvement(*laws), [1 - 1.99e7 / 3.16e8, 0.02 / 0.12], rtol=1e-3
    )
    reverse = scaling_law_improvement(OPTIMIZED, CONVENTIONAL)
    np.testing.assert_allclose(reverse, [1 - 3.16 / 0.199, -0.02 / 0.14], rtol=1e-9)


def test_laws_on_different_floors_are_not_compared():
    with pytest.raises(ValueError, match=r"must share L0 and t0.*fit_scaling_laws"):
        scaling_law_improvement(CONVENTIONAL, OPTIMIZED._replace(L0=0.05))


def test_prediction_follows_the_law():
    t = np.array([[500, 1000], [2000, 4000]])
    expected = 0.051 + (3.16e8 / t) ** 0.12
    np.testing.assert_allclose(CONVENTIONAL.predict(t), expected, rtol=1e-12)
    np.testing.assert_allclose(CONVENTIONAL.predict(500), expected[0, 0], rtol=1e-12)
    huge = ScalingLaw(L0=0.0, B=1e300, beta=1.5, t0=0, r2=1.0)  # B^beta alone overflows
    np.testing.assert_allclose(huge.predict(1e200), 1e150, rtol=1e-9)


def test_float32_and_lists_are_taken():
    law = ScalingLaw(L0=0.3, B=20.0, beta=0.7, t0=0, r2=1.0)
    curve = make_curve(law, 300)
    reference = fit_scaling_law(curve, t0=10)
    assert fit_scaling_law(curve.tolist(), t0=10) == reference
    assert_same_law(fit_scaling_law(curve.astype(np.float32), t0=10), reference, rtol=1e-2)
    assert all(type(value) in (float, int) for value in reference.coefficients.values())


def test_the_order_of_curves_does_not_matter():
    curves = [make_curve(law, 600, 1e-3) for law in (CONVENTIONAL, OPTIMIZED)]
    forward = fit_scaling_laws(curves, t0=50)
    backward = fit_scaling_laws(curves[::-1], t0=50)[::-1]
    for law, same in zip(forward, backward, strict=True):
        np.testing.assert_allclose(law[:5], same[:5], rtol=1e-6)


FALLING = make_curve(ScalingLaw(L0=0.3, B=20.0, beta=0.7, t0=0, r2=1.0), 60)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        (FALLING[:10], "at least T = 10 steps"),
        (FALLING[None], r"shape \(T\+1,\); got \(1, 61\)"),
        (np.where(np.arange(61) == 7, np.nan, FALLING), "not finite at t = 7"),
        (np.where(np.arange(61) >= 9, np.inf, FALLING), r"not finite at t = 9 .*52 steps"),
        (np.where(np.arange(61) == 8, 0.0, FALLING), "not positive at t = 8"),
        (FALLING[::-1], "losses must fall"),
        (np.full(61, 0.3), "losses must fall"),
    ],
)
def test_curves_that_cannot_be_fitted_are_refused(curve, message):
    with pytest.raises(ValueError, match=message):
        fit_scaling_law(curve)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"L0": 0.9}, "`L0` = 0.9 must be below the losses"),
        ({"L0": -0.1}, "`L0` must be a finite loss of at least 0; got -0.1"),
        ({"L0": math.nan}, "`L0` must be a finite loss"),
        ({"t0": 51}, "T - 10 = 50; got 51"),
        ({"t0": -1}, "got -1"),
        ({"min_decades": -1}, "`min_decades` must be at least 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    fit_scaling_law(FALLING, L0=0.2, t0=50, min_decades=0)
    with pytest.raises(ValueError, match=message):
        fit_scaling_law(FALLING, **arguments)


def test_a_bad_curve_among_several_is_named():
    with pytest.raises(ValueError, match=r"`curves\[1\]` is not finite at t = 60"):
        fit_scaling_laws([FALLING, np.append(FALLING[:-1], np.nan)])
    with pytest.raises(ValueError, match="in every curve"):
        fit_scaling_laws([FALLING, FALLING[::-1]])
    with pytest.raises(ValueError, match="at least one loss curve"):
        fit_scaling_laws([])


STEPS = np.arange(401)
NOISE = np.random.default_rng(5).normal(size=401)
SHORT = ScalingLaw(L0=0.2, B=30.0, beta=0.6, t0=0, r2=1.0)


def perceptron_loss(num_steps):
    """Gradient descent on a logistic loss, which falls by a power law, and over-fitting."""
    margins, weight, losses = np.linspace(0.2, 2, 20), 0.0, []
    for _ in range(num_steps + 1):
        losses.append(0.06 + np.log1p(np.exp(-weight * margins)).mean())
        weight += 0.3 * (margins / (1 + np.exp(weight * margins))).mean()
    return np.array(losses) + 3e-4 * np.arange(num_steps + 1)


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.01])
@pytest.mark.parametrize(
    "laws", [(CONVENTIONAL, OPTIMIZED), (SHORT, SHORT._replace(B=10.0, beta=0.7))]
)
def test_a_power_law_is_a_fit_with_small_noise_too(laws, noise):
    laws = [law._replace(t0=law.t0 // 5) for law in laws]
    curves = [make_curve(law, 1000, noise, seed) for seed, law in enumerate(laws)]
    for law, curve in zip(fit_scaling_laws(curves), curves, strict=True):
        assert misfit(law, curve) is None


@pytest.mark.parametrize(
    ("curve", "reason"),
    [
        (0.4 + np.exp(-STEPS / 400), "do not follow the law"),
        (0.4 + np.exp(-STEPS / 120), "exponential decay"),
        (2 + np.exp(-STEPS / 130), "exponential decay"),  # r2 = 0.996
        (0.4 + np.exp(-STEPS / 80) + 1e-3 * NOISE, "exponential decay"),
        (0.4 + np.exp(-STEPS / 30), "do not follow the law"),
        (0.69 + 1e-3 * NOISE, "rise at the end|do not follow"),  # flat
        (0.69 - 1e-6 * STEPS, "do not follow the law"),
        (1 - STEPS / 500, "do not follow the law"),
        (0.5 + 0.2 * np.cos(STEPS) + 0.5 * np.exp(-STEPS / 100), "rise at the end|not follow"),
        (make_curve(SHORT, 400) * (1 + np.maximum(0, STEPS - 250) / 300), "rise at the end"),
        (8 - 0.3 * np.log(STEPS + 1), r"B = [\d.]+e\+\d+ steps is so far from the run's 400"),
        (perceptron_loss(400), "rise at the end"),
    ],
)
def test_a_curve_that_follows_no_power_law_is_no_fit(curve, reason):
    law = fit_scaling_law(curve)
    assert re.search(reason, law.misfit or "it is a fit"), law
    assert law.misfit == misfit(law, curve)


def test_an_improvement_of_what_is_no_power_law_is_given_with_a_word():
    curves = [0.4 + np.exp(-STEPS / tau) for tau in (120, 100)]
    laws = fit_scaling_laws(curves)
    with pytest.warns(
        UserWarning, match="say nothing: `(conventional|optimized)` does not"
    ) as said:
        scaling_law_improvement(*laws)
    assert len(said) == 2
    good = fit_scaling_laws([make_curve(law, 400) for law in (SHORT, SHORT._replace(B=10.0))])
    assert scaling_law_improvement(*good).B > 0.6  # without a word: warnings are errors here


def test_the_order_of_magnitude_of_a_remote_coefficient_is_not_known():
    """What the limit on the distance stands for."""
    curve = 8 - 0.3 * np.log(STEPS + 1)
    coefficients = [fit_scaling_law(curve, t0=40, L0=floor) for floor in (0.0, 0.5, 1.0)]
    assert all(law.r2 > 0.999 for law in coefficients)
    assert coefficients[0].B > 1000 * coefficients[2].B


def test_a_law_of_another_curve_is_no_fit():
    curve = make_curve(SHORT, 400)
    assert misfit(SHORT, curve) is None
    assert "do not follow" in misfit(SHORT._replace(beta=1.2), curve)
    assert "do not follow" in misfit(SHORT._replace(r2=0.5), curve)
    assert "do not fall" in misfit(SHORT._replace(L0=0.9), curve)
    assert "do not fall" in misfit(SHORT._replace(beta=-0.6), curve)
    with pytest.raises(ValueError, match="`losses` is not finite at t = 400"):
        misfit(SHORT, np.append(curve[:-1], np.nan))
