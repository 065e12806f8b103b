"""Figures 6 to 8: the Learning Law and what follows from it, along the optimisation."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lljax.artifacts.results import Results
from lljax.report.curation import is_of_steps
from lljax.report.sentences import is_success, law_steps_sentence
from lljax.report.spec import FigureSpec
from lljax.report.style import BLUE, GREY, count_in_whole, panels, path_strokes, scale_losses
from lljax.report.words import change, number, percent

_PATH_LINE, _PATH_DOTS = "#b0b0b0", "#8fbfdc"


def _dots(results: Results) -> dict[str, Any]:
    """If the law was measured at few inner steps, dots show at which ones."""
    sparse = results.arrays["law_steps"].size <= 50
    return {"marker": "." if sparse else "", "markersize": 4}


def _draw_similarity(results: Results) -> Figure:
    figure, (axis,) = panels(1, 4.8, 3.3)
    curves = results.arrays["path_similarity_curve"]
    losses = results.arrays["path_desired_losses"][:, results.arrays["law_steps"]]
    strokes = path_strokes(figure, axis, results)
    for loss, curve, stroke in zip(losses, curves, strokes, strict=True):
        axis.plot(loss, curve, **stroke, **_dots(results))
    # Training runs from left to right, as time does in the other figures.
    axis.set(xlabel=r"desired loss $L(\theta_t)$ (nats)", ylabel=r"SIM$_t$")
    scale_losses(axis, "x", losses)
    axis.invert_xaxis()
    axis.legend()
    return figure


def _similarity_caption(results: Results) -> str:
    """Compares the first and the last policy of the path at equal loss."""
    if not is_success(results.summary):
        return "No success: the best policy is the conventional one, so there is but one curve."
    losses = results.arrays["path_desired_losses"][[0, -1]][:, results.arrays["law_steps"]]
    curves = results.arrays["path_similarity_curve"][[0, -1]]
    finite = [np.isfinite(pair).all(axis=0) for pair in zip(losses, curves, strict=True)]
    incomparable = (
        "The conventional and the best policy have no range of losses in common, so they cannot be "
        "compared at equal loss."
    )
    if not all(good.any() for good in finite):
        return incomparable
    seen = [loss[good] for loss, good in zip(losses, finite, strict=True)]
    low, high = max(map(np.min, seen)), min(map(np.max, seen))
    if not low < high:
        return incomparable
    grid, values = np.linspace(low, high, 200), []
    for loss, curve, good in zip(seen, curves, finite, strict=True):
        order = np.argsort(loss)
        values.append(np.interp(grid, loss[order], curve[good][order]))
    share, (before, after) = np.mean(values[1] > values[0]), (v.mean() for v in values)
    return (
        f"At equal loss, SIM(t) is higher under the best policy than under the conventional one on "
        f"{percent(share)} of the losses that both reach ({number(high)} down to {number(low)}). "
        f"Its mean over these losses is {number(after)} against {number(before)}, so contributions "
        f"are {'more' if after > before else 'no more'} alike under the best policy."
        f"{_objective_sentence(results)}{law_steps_sentence(results)}"
    )


def _objective_sentence(results: Results) -> str:
    """What contributions are measured on, if that is not the desired loss alone."""
    share = results.config["outer"].get("train_share", 0)
    if not share:
        return ""
    return (
        f" Contributions are measured on the objective of this run: {percent(1 - share)} desired "
        f"loss and {percent(share)} training loss."
    )


def _draw_against_ratio(axis: Axes, results: Results, key: str, label: str) -> None:
    ratios, values = results.arrays["path_compression_ratio"], results.arrays[key]
    axis.plot(ratios, values, color=_PATH_LINE, linewidth=1, zorder=1)
    axis.plot(ratios[1:-1], values[1:-1], "o", color=_PATH_DOTS, markersize=5)
    axis.plot(ratios[0], values[0], "s", color=GREY, markersize=6.5, label="conventional")
    axis.plot(ratios[-1], values[-1], "o", color=BLUE, markersize=7.5, label="best")
    axis.set(xlabel="compression ratio CR (test)", ylabel=label)
    axis.margins(0.08)
    axis.legend()


def _path_caption(results: Results, key: str, what: str) -> str:
    """How a quantity and the compression ratio change along the optimisation."""
    values, ratios = results.arrays[key], results.arrays["path_compression_ratio"]
    text = (
        f"From the conventional to the best policy, the test CR {change(ratios[0], ratios[-1])} "
        f"and {what} {change(values[0], values[-1])}"
    )
    if len(values) > 2 and np.diff(values).any():
        together = np.sign(np.diff(values)) * np.sign(np.diff(ratios)) > 0
        text += f"; both move the same way in {together.sum()} of {together.size} intervals"
    return f"{text}.{law_steps_sentence(results)}"


def _draw_law(results: Results) -> Figure:
    figure, (axis,) = panels(1, 4.8, 3.3)
    _draw_against_ratio(axis, results, "path_similarity", "SIM, mean over $t$")
    return figure


def _draw_excluded(results: Results) -> Figure:
    figure, (left, right) = panels(2, 8.4, 3.1)
    label = "share of CT $\\leq 0$\nwith $\\gamma = 0$"
    _draw_against_ratio(left, results, "path_zero_weight_share", f"{label}, mean over $t$")
    strokes = path_strokes(figure, right, results)
    for curve, stroke in zip(results.arrays["path_zero_weight_curve"], strokes, strict=True):
        right.plot(results.arrays["law_steps"], curve, **stroke, **_dots(results))
    right.set(xlabel="inner step $t$", ylabel=label)
    right.legend()
    count_in_whole(right.xaxis)
    for axis in (left, right):
        # If all shares are zero, as with a low rate, matplotlib would centre the axis on zero.
        top = max(axis.get_ylim()[1], 0.1)
        axis.set_ylim(-0.04 * top, top)
    return figure


def _excluded_caption(results: Results) -> str:
    share = "the share of CT ≤ 0 examples without weight"
    text = _path_caption(results, "path_zero_weight_share", share)
    threshold = results.summary.get("zero_weight_threshold", 0)
    if threshold:
        text += f" A weight counts as zero if it is at most {number(threshold)} of the uniform one."
    return text


SIMILARITY_BY_LOSS = FigureSpec(
    "fig06_similarity_by_loss",
    "Figure 6. Similarity of contributions against the loss",
    ("path_similarity_curve", "path_desired_losses", "path_compression_ratio"),
    _draw_similarity,
    _similarity_caption,
    applies=is_of_steps,
)
SIMILARITY_BY_RATIO = FigureSpec(
    "fig07_similarity_by_ratio",
    "Figure 7. Similarity of contributions against the compression ratio",
    ("path_similarity", "path_compression_ratio"),
    _draw_law,
    lambda results: _path_caption(results, "path_similarity", "SIM"),
    applies=is_of_steps,
)
EXCLUDED_EXAMPLES = FigureSpec(
    "fig08_excluded_examples",
    "Figure 8. Non-contributive examples that get no weight",
    ("path_zero_weight_share", "path_zero_weight_curve", "path_compression_ratio"),
    _draw_excluded,
    _excluded_caption,
    applies=is_of_steps,
)
