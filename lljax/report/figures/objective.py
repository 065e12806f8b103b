"""Figure 4: what the outer steps do to the objective."""

import numpy as np
from matplotlib.figure import Figure

from lljax.artifacts.results import Results
from lljax.report.spec import FigureSpec
from lljax.report.style import BLUE, DASHED, GREY, ORANGE, count_in_whole, panels
from lljax.report.words import change, number


def _draw(results: Results) -> Figure:
    figure, (left, right) = panels(2, 7.6)
    metrics, row = results.metrics, results.best_row()
    steps, objective = metrics["outer_step"], results.num_steps * metrics["desired_auc"]
    validation = results.num_steps * metrics["validation_auc"]
    # CR = T log|V| / J on either set, so the constant is taken from the desired set.
    constant = np.nanmedian(metrics["compression_ratio"] * objective)
    for axis, label, curves in (
        (left, "objective $J$ (nats)", (objective, validation)),
        (right, "compression ratio CR", (constant / objective, constant / validation)),
    ):
        strokes = ((BLUE, "-", "desired"), (ORANGE, DASHED, "validation"))
        for curve, (color, line, name) in zip(curves, strokes, strict=True):
            known = np.isfinite(curve)  # not every step is validated
            axis.plot(steps[known], curve[known], color=color, linestyle=line, label=name)
            if row is not None:
                axis.plot(steps[row], curve[row], "o", color=color, markersize=5)
        if row is not None:
            axis.axvline(steps[row], color=GREY, linewidth=0.9, linestyle=":", label="best step")
        axis.set(xlabel="outer step", ylabel=label)
        count_in_whole(axis.xaxis)
    left.legend()
    return figure


def _caption(results: Results) -> str:
    metrics, row = results.metrics, results.best_row()
    row = -1 if row is None else row
    objective, validation = (
        results.num_steps * metrics[key] for key in ("desired_auc", "validation_auc")
    )
    best = results.summary["best_outer_step"]
    text = (
        f"J is the sum of the losses over the inner steps, T times the loss AUC. Over "
        f"{len(objective) - 1} outer steps, J on the desired set "
        f"{change(_first(objective), objective[-1], ' nats')}. From the conventional policy to "
        f"that of the best outer step, {best}, J on the validation set "
        f"{change(validation[0], validation[row], ' nats')}."
    )
    last = _first(validation[::-1])
    if last > 1.001 * validation[row]:
        text += (
            f" It then rises to {number(last)} at the end: after the best step the "
            "policy over-fits the desired examples."
        )
    return text


def _first(curve: np.ndarray) -> float:
    """The first value that is known."""
    known = curve[np.isfinite(curve)]
    return float(known[0]) if known.size else float("nan")


OBJECTIVE = FigureSpec(
    "fig04_objective",
    "Figure 4. Objective and compression ratio along the optimisation",
    (),
    _draw,
    _caption,
)
