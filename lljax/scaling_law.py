"""The scaling law of a loss curve, and what a policy does to its coefficients (§4.6, Eq. 8).

This is analysis after the run: eager NumPy in float64, not for use inside jit.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lljax.scaling_search import exponential_misfit, regress, search_floor, search_start

_MIN_POINTS = 10  # three coefficients run through three points exactly, whatever the curve

_MIN_R2 = 0.9  # of `misfit`, as the next ones; the paper takes 0.995 (Table 1) for a fit
_MAX_SYSTEMATIC = 0.01  # of the variance of ln(L - L0), beside independent noise
_MAX_RISE = 0.01  # at the end, of what the curve has fallen
# An error of beta by a tenth moves ln B by a tenth of its distance from the run's ln t, here by
# ln 10: B is not even known to a factor of ten. In Table 1 the distance is 12.
_MAX_DISTANCE = 10 * math.log(10)


class ScalingLaw(NamedTuple):
    """L(theta_t) = L0 + (B / t)^beta for t > t0, with the quality of its fit (Eq. 8)."""

    L0: float  # nats, the irreducible loss
    B: float  # steps; small is fast
    beta: float  # large is fast
    t0: int  # steps; the law holds after it
    r2: float  # squared correlation of ln(L - L0) with ln t over t = t0+1 .. T
    misfit: str | None = None  # why B and beta say nothing of the curve; None where they do

    @property
    def coefficients(self) -> dict[str, float]:
        """L0, B, beta, t0 and r2 by name."""
        return {name: getattr(self, name) for name in COEFFICIENTS}

    def predict(self, t: ArrayLike) -> np.ndarray:
        """The loss at inner step `t` > 0 (meant for t > t0), nats, float64, shaped like `t`."""
        # (B / t)^beta would overflow in B / t or the power long before their combination does.
        log_t = np.log(np.asarray(t, np.float64))
        return self.L0 + np.exp(self.beta * (math.log(self.B) - log_t))


COEFFICIENTS = ("L0", "B", "beta", "t0", "r2")


class ScalingLawImprovement(NamedTuple):
    """By which share a policy improves the two coefficients (Table 2)."""

    B: float  # (B_conventional - B_optimized) / B_conventional
    beta: float  # (beta_optimized - beta_conventional) / beta_conventional


def fit_scaling_law(
    desired_losses: ArrayLike,
    *,
    L0: float | None = None,
    t0: int | None = None,
    min_decades: float = 1.0,
) -> ScalingLaw:
    """Fits the scaling law to one loss curve.

      L(theta_t) = L0 + (B / t)^beta,  t > t0   (Eq. 8)

    As in footnote 5: ln(L - L0) is regressed on ln t, and L0 and t0 are searched for the highest
    correlation. L0 runs over [0, min L), by golden section after a grid that is even in
    ln(min L - L0). t0 runs over [0, T / 10^min_decades], on a geometric grid refined around its
    best: without that bound the search would end on the last few points, where every smooth curve
    is a line. Of equally good t0 the smallest is taken.

    >>> import numpy as np
    >>> from lljax.scaling_law import fit_scaling_law
    >>> steps = np.arange(1, 1001)
    >>> desired_losses = np.concatenate([[9.0], 0.5 + (200 / steps) ** 0.7])
    >>> law = fit_scaling_law(desired_losses)
    >>> round(law.L0, 4), round(law.B, 2), round(law.beta, 4), law.t0
    (0.5, 200.0, 0.7, 0)

    Args:
      desired_losses: [T+1], L(theta_0) .. L(theta_T), nats; L(theta_0) is not used.
      L0: fixes L0 instead of searching it, nats.
      t0: fixes t0 instead of searching it; `min_decades` does not apply then.
      min_decades: decades of t, from t0 to T, that the fit must cover.

    Returns:
      ScalingLaw; its `misfit` says whether the curve follows none. B and beta of noisy curves are
      strongly correlated: B spans orders of magnitude where beta is small. Cost: some 5000 passes
      over the curve, 0.2 s for T = 4000; 240 passes with a fixed t0.

    Raises:
      ValueError: losses that are not a vector, too few for a fit, not finite or not positive; an
        L0 or t0 out of range; a curve that is flat or rises.

    Reference: arXiv:2402.17759, section 4.6, footnote 5.
    """
    (law,) = fit_scaling_laws([desired_losses], L0=L0, t0=t0, min_decades=min_decades)
    return law


def fit_scaling_laws(
    curves: Sequence[ArrayLike],
    *,
    L0: float | None = None,
    t0: int | None = None,
    min_decades: float = 1.0,
) -> list[ScalingLaw]:
    """Fits several curves with one L0 and one t0, chosen for the highest sum of r2.

    This is how the paper compares two policies (Table 1: L0 = 0.051 and t0 = 400 for both); with
    an L0 of their own, B and beta of two curves cannot be compared.

    >>> import numpy as np, lljax
    >>> steps = np.arange(1, 1001)
    >>> curves = [np.append(9.0, 0.5 + (size / steps) ** 0.7) for size in (200, 100)]
    >>> [round(law.B) for law in lljax.fit_scaling_laws(curves)]
    [200, 100]

    Args:
      curves: loss curves [T+1], nats, as for `fit_scaling_law`.
      L0, t0, min_decades: as for `fit_scaling_law`, which also states cost and errors.

    Returns:
      A ScalingLaw for each curve, in order, each with its own B, beta and r2.

    Raises:
      ValueError: as `fit_scaling_law`, or there are no curves.

    Reference: arXiv:2402.17759, section 4.6, Table 1.
    """
    if len(curves) == 0:
        raise ValueError("`curves` must hold at least one loss curve; got none.")
    arrays = [
        _check_curve(curve, "desired_losses" if len(curves) == 1 else f"curves[{i}]")
        for i, curve in enumerate(curves)
    ]
    num_steps = min(len(curve) for curve in arrays) - 1
    if L0 is not None and not 0 <= L0 < math.inf:
        raise ValueError(f"`L0` must be a finite loss of at least 0; got {L0}.")
    if not min_decades >= 0:
        raise ValueError(f"`min_decades` must be at least 0; got {min_decades}.")
    largest = num_steps - _MIN_POINTS
    if t0 is not None and not 0 <= t0 <= largest:
        raise ValueError(
            f"`t0` must leave {_MIN_POINTS} steps for the fit, 0 <= t0 <= T - {_MIN_POINTS} = "
            f"{largest}; got {t0}."
        )

    if t0 is not None:
        start = int(t0)
        score, floor = search_floor(arrays, start, L0)
    else:
        latest = max(0, min(largest, int(num_steps / 10**min_decades)))
        start, score, floor = search_start(arrays, latest, L0)
    if score == math.inf:
        limit = min(curve[1:].min() for curve in arrays)
        cure = f" `L0` = {L0:g} must be below the losses, {limit:g}." if L0 is not None else ""
        raise ValueError(
            f"no scaling law fits: the losses must fall as t grows, from t0 to T = {num_steps}, "
            f"noticeably and in every curve.{cure}"
        )
    laws = []
    for curve in arrays:
        beta, log_B, unexplained = regress(curve, start, floor)
        law = ScalingLaw(floor, math.exp(log_B), beta, start, 1 - unexplained)
        laws.append(law._replace(misfit=misfit(law, curve)))
    return laws


def scaling_law_improvement(
    conventional: ScalingLaw, optimized: ScalingLaw
) -> ScalingLawImprovement:
    """How much a policy improves the scaling law; positive is better in both numbers.

      Delta B = (B_conv - B_opt) / B_conv,  Delta beta = (beta_opt - beta_conv) / beta_conv

    >>> from lljax.scaling_law import ScalingLaw, scaling_law_improvement
    >>> conventional = ScalingLaw(L0=0.051, B=3.16e8, beta=0.12, t0=400, r2=0.995)  # Table 1
    >>> optimized = ScalingLaw(L0=0.051, B=1.99e7, beta=0.14, t0=400, r2=0.999)
    >>> [round(share, 3) for share in scaling_law_improvement(conventional, optimized)]
    [0.937, 0.167]

    Args:
      conventional, optimized: laws with the same L0 and t0, as from `fit_scaling_laws`.

    Returns:
      ScalingLawImprovement, shares (1 is 100 %).

    Warns:
      UserWarning: a law is a misfit, so that its B and beta, and these numbers, say nothing.

    Raises:
      ValueError: L0 or t0 differ, which makes B and beta incomparable.

    Reference: arXiv:2402.17759, section 4.6, Table 2.
    """
    if (conventional.L0, conventional.t0) != (optimized.L0, optimized.t0):
        raise ValueError(
            f"the two laws must share L0 and t0; got L0 = {conventional.L0:g} and "
            f"{optimized.L0:g}, t0 = {conventional.t0} and {optimized.t0}. Fit both with "
            f"fit_scaling_laws."
        )
    for name, law in (("conventional", conventional), ("optimized", optimized)):
        if law.misfit is not None:
            warnings.warn(
                f"the improvements of B and beta say nothing: `{name}` does not describe its "
                f"losses ({law.misfit}).",
                stacklevel=2,
            )
    return ScalingLawImprovement(
        B=1 - math.exp(math.log(optimized.B) - math.log(conventional.B)),
        beta=(optimized.beta - conventional.beta) / conventional.beta,
    )


def misfit(law: ScalingLaw, losses: ArrayLike) -> str | None:
    """Why the coefficients of a fit say nothing of its curve [T+1]; None where they do.

    B and beta mean something where the losses fall to the end, follow the line in ln t without a
    systematic departure and better than an exponential decay (for which r2 can be 0.996), and
    where B is not extrapolated far beyond the run. L0 and t0 are taken as given.

    >>> import numpy as np
    >>> from lljax.scaling_law import fit_scaling_law, misfit
    >>> losses = 0.2 + np.exp(-np.arange(401) / 100)
    >>> misfit(fit_scaling_law(losses), losses)
    'an exponential decay fits the losses better'

    The reason is the end of a sentence, without its full stop. Cost: about 160 passes over the
    curve. ValueError as of `fit_scaling_law`, for the curve.
    """
    curve = _check_curve(losses, "losses")
    fitted = curve[law.t0 + 1 :]
    if fitted.min() <= law.L0 or not law.beta > 0:
        return "the losses do not fall towards L0"
    tenths = [part.mean() for part in np.array_split(fitted, 10)]
    if tenths[-1] - min(tenths) > _MAX_RISE * (tenths[0] - min(tenths)):
        return "the losses rise at the end"
    log_t, log_excess = np.log(np.arange(law.t0 + 1, len(curve))), np.log(fitted - law.L0)
    residual = log_excess - law.beta * (math.log(law.B) - log_t)
    # Independent noise lowers r2 and makes no law wrong; neighbouring residuals share none of it.
    systematic = residual[1:] @ residual[:-1] / (len(fitted) * log_excess.var())
    if law.r2 < _MIN_R2 or systematic > _MAX_SYSTEMATIC:
        return f"the losses do not follow the law (r2 = {law.r2:.3f})"
    if exponential_misfit(curve, law.t0) < search_floor([curve], law.t0, None)[0]:
        return "an exponential decay fits the losses better"
    if abs(math.log(law.B) - log_t.mean()) > _MAX_DISTANCE:
        return (
            f"B = {law.B:.3g} steps is so far from the run's {len(curve) - 1} that the slightest "
            f"change of the losses moves it by orders of magnitude"
        )
    return None


def _check_curve(losses: ArrayLike, name: str) -> np.ndarray:
    """A curve [T+1] in float64; ValueError when it cannot be fitted."""
    curve = np.asarray(losses, np.float64)
    if curve.ndim != 1:
        raise ValueError(f"`{name}` must have shape (T+1,); got {curve.shape}.")
    if len(curve) <= _MIN_POINTS:
        raise ValueError(
            f"`{name}` must cover at least T = {_MIN_POINTS} steps, shape (T+1,), for a fit that "
            f"means anything; got shape {curve.shape}."
        )
    for problem, bad in (("not finite", ~np.isfinite(curve)), ("not positive", curve <= 0)):
        if bad.any():
            step = int(np.argmax(bad))
            raise ValueError(
                f"`{name}` is {problem} at t = {step} ({curve[step]:g}; {bad.sum()} steps like "
                f"it): a scaling law needs losses above 0."
            )
    return curve
