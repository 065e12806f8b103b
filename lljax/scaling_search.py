"""The search for the L0 and t0 at which loss curves are closest to a scaling law (footnote 5)."""

import math
from collections.abc import Callable, Sequence

import numpy as np

_MAX_LOG = 700.0  # exp beyond it leaves float64
_TIE = 1e-12  # differences in r2 of this size are rounding


def regress(curve: np.ndarray, t0: int, L0: float) -> tuple[float, float, float]:
    """The line ln(L - L0) = beta ln B - beta ln t: (beta, ln B, 1 - r2)."""
    log_t = np.log(np.arange(t0 + 1, len(curve)))
    log_excess = np.log(curve[t0 + 1 :] - L0)
    x, y = log_t - log_t.mean(), log_excess - log_excess.mean()
    total = y @ y
    if total == 0:
        return 0.0, 0.0, 1.0
    beta = -(x @ y) / (x @ x)
    # The residuals keep the digits of 1 - r2 that 1 - r * r would lose near r = 1.
    residual = y + beta * x
    log_B = log_excess.mean() / beta + log_t.mean() if beta != 0 else math.inf
    return float(beta), float(log_B), float(residual @ residual / total)


def _score(curves: Sequence[np.ndarray], t0: int, L0: float) -> float:
    """sum over curves of 1 - r2, to be minimised; infinite where one does not fall."""
    score = 0.0
    for curve in curves:
        if curve[t0 + 1 :].min() <= L0:
            return math.inf
        beta, log_B, unexplained = regress(curve, t0, L0)
        if beta <= 0 or abs(log_B) > _MAX_LOG:
            return math.inf
        score += unexplained
    return score


def search_start(
    curves: Sequence[np.ndarray], latest: int, L0: float | None
) -> tuple[int, float, float]:
    """The best (t0, score, L0) with t0 in 0 .. latest; the smallest of equally good t0."""
    fits: dict[int, tuple[float, float]] = {}
    spread = np.geomspace(1, max(latest, 1), 32).round().astype(int)
    candidates = {0, *np.minimum(spread, latest).tolist()}
    while True:
        fits |= {start: search_floor(curves, start, L0) for start in candidates}
        best = min(score for score, _ in fits.values())
        chosen = min(start for start, (score, _) in fits.items() if score <= best + _TIE)
        tried = sorted(fits)
        place = tried.index(chosen)
        low, high = tried[max(place - 1, 0)], tried[min(place + 1, len(tried) - 1)]
        candidates = {*np.linspace(low, high, 16).round().astype(int).tolist()} - fits.keys()
        if not candidates:
            return chosen, *fits[chosen]


def search_floor(curves: Sequence[np.ndarray], t0: int, L0: float | None) -> tuple[float, float]:
    """The best (score, L0) at a given t0; `L0` itself when it is given."""
    if L0 is not None:
        return _score(curves, t0, float(L0)), float(L0)
    lowest = float(min(curve[t0 + 1 :].min() for curve in curves))
    return _minimise_over_floor(lambda floor: _score(curves, t0, floor), lowest)


def exponential_misfit(curve: np.ndarray, t0: int) -> float:
    """1 - r2 of the line ln(L - L0) = a - t / tau, at its best L0."""
    t, losses = np.arange(t0 + 1, len(curve)), curve[t0 + 1 :]

    def score(floor: float) -> float:
        return float(1 - np.corrcoef(t, np.log(losses - floor))[0, 1] ** 2)

    return _minimise_over_floor(score, float(losses.min()))[0]


def _minimise_over_floor(score_of: Callable[[float], float], lowest: float) -> tuple[float, float]:
    """The best (score, L0) with 0 <= L0 < `lowest`, the smallest loss."""

    # L0 = lowest (1 - e^-depth): where the curve has come close to its floor, the score changes
    # with the order of magnitude of lowest - L0.
    def floor(depth: float) -> float:
        return -lowest * math.expm1(-depth)

    def score(depth: float) -> float:
        return score_of(floor(depth))

    depths = np.linspace(0, 20, 41)
    scores = [score(depth) for depth in depths]
    place = int(np.argmin(scores))
    low, high = depths[max(place - 1, 0)], depths[min(place + 1, len(depths) - 1)]
    depth = _golden_section(score, float(low), float(high))
    # The search never tries its ends, and L0 = 0 is one.
    return min((scores[place], floor(depths[place])), (score(depth), floor(depth)))


def _golden_section(function: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a function with a single one between `low` and `high`, to 1e-9.

    Not scipy.optimize: importing that takes longer than all the fits of a report.
    """
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > 1e-9:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2
