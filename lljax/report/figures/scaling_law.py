"""Figure 11: the scaling law of the test loss."""

import numpy as np
from matplotlib.figure import Figure

from lljax.artifacts.results import Results
from lljax.artifacts.schema import POLICIES
from lljax.report.sentences import improvement, is_fit
from lljax.report.spec import FigureSpec
from lljax.report.style import STROKES, label_plainly, panels
from lljax.report.words import POLICY_NAMES, number, percent


def _fits(results: Results) -> dict[str, dict[str, float]]:
    fits = {policy: results.summary["scaling_law"][policy] for policy in POLICIES}
    return {policy: fit for policy, fit in fits.items() if is_fit(fit)}


def _draw(results: Results) -> Figure:
    figure, (axis,) = panels(1, 4.8, 3.5)
    steps = np.unique(np.geomspace(1, results.num_steps, 70).astype(int))
    for policy, fit in _fits(results).items():
        color, marker = STROKES[policy]["color"], "s" if policy == "conventional" else "o"
        rest = results.arrays[f"{policy}_test_losses"][steps] - fit["L0"]
        fitted = (rest > 0) & (steps > fit["t0"])
        for chosen, alpha in ((fitted, 0.75), ((rest > 0) & ~fitted, 0.2)):
            axis.plot(steps[chosen], rest[chosen], marker, color=color, alpha=alpha, markersize=3.5)
        line = np.geomspace(max(fit["t0"], 1), results.num_steps, 50)
        # In logarithms: B itself may be far outside float32.
        axis.plot(
            line,
            np.exp(fit["beta"] * (np.log(fit["B"]) - np.log(line))),
            color=color,
            label=(
                f"{STROKES[policy]['label']}: $L_0$ = {number(fit['L0'])}, "
                rf"$\beta$ = {fit['beta']:.3g}, $r^2$ = {fit['r2']:.4f}"
            ),
        )
    axis.set(xlabel="inner step $t$", ylabel=r"test $L(\theta_t) - L_0$")
    axis.set(xscale="log", yscale="log")
    label_plainly(axis.yaxis)
    axis.legend(loc="lower left")
    return figure


def _caption(results: Results) -> str:
    fits = results.summary["scaling_law"]
    for policy in POLICIES:
        if not is_fit(fits[policy]):
            return f"No scaling law could be fitted to the {POLICY_NAMES[policy]} test losses."
    before, after = (fits[policy] for policy in POLICIES)
    better, withheld = improvement(results)
    # The paper's two fits share L0 and t0; only then do B and beta tell the curves apart.
    if withheld:
        verdict = withheld
    elif better is None:
        verdict = "L0 and t0 differ between the fits, so B and β can only be compared roughly."
    else:
        verdict = f"So {_gain('B', better.B)} and {_gain('β', better.beta)}."
    return (
        f"L(t) = L0 + (B/t)^β for t > t0, fitted to the test losses. From the conventional to the "
        f"optimised policy, the coefficient B goes from {number(before['B'])} to "
        f"{number(after['B'])} and the exponent β from {number(before['beta'])} to "
        f"{number(after['beta'])}. {verdict} r² is {before['r2']:.4f} for the conventional policy "
        f"(t0 = {number(before['t0'])}) and {after['r2']:.4f} for the optimised one "
        f"(t0 = {number(after['t0'])}). Pale points are at t ≤ t0 and are not fitted."
    )


def _gain(name: str, gain: float) -> str:
    """How much better a coefficient is (Table 2); positive is better."""
    if abs(gain) < 5e-4:
        return f"{name} hardly changes"
    return f"{name} {'improves' if gain > 0 else 'gets worse'} by {percent(abs(gain))}"


SCALING_LAW = FigureSpec(
    "fig11_scaling_law",
    "Figure 11. Scaling law of the test loss",
    tuple(f"{policy}_test_losses" for policy in POLICIES),
    _draw,
    _caption,
    absent="no scaling law could be fitted to either test-loss curve.",
    is_empty=lambda results: not _fits(results),
)
