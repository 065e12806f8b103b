"""Figure 5: the loss curves of the conventional and the optimised policy."""

from matplotlib.figure import Figure

from lljax.artifacts.results import Results
from lljax.artifacts.schema import POLICIES, SETS
from lljax.report.sentences import (
    acceleration_of,
    early_end,
    is_success,
    match_sentence,
    rise_sentence,
    steps_to_match,
)
from lljax.report.spec import FigureSpec
from lljax.report.style import ORANGE, STROKES, count_in_whole, panels, scale_losses


def _draw(results: Results) -> Figure:
    figure, axes = panels(3, 9.6, sharey=True)
    for axis, name in zip(axes, SETS, strict=True):
        curves = [results.arrays[f"{policy}_{name}_losses"] for policy in POLICIES]
        for policy, curve in zip(POLICIES, curves, strict=True):
            axis.plot(curve, **STROKES[policy])
        summary = results.summary
        final, ratio = curves[0][-1], acceleration_of(summary, name)
        reached = steps_to_match(summary, name)
        if reached is not None and is_success(summary):
            axis.annotate(
                "",
                xy=(reached, final),
                xytext=(results.num_steps, final),
                arrowprops={"arrowstyle": "<->", "color": ORANGE, "shrinkA": 0, "shrinkB": 0},
            )
        note = f"AR = {ratio:.2f}" if reached is not None else "AR: never reached"
        if is_success(summary) and reached is not None and early_end(summary, name) is not None:
            note += ", overstated"
        axis.set_title(name, loc="left")
        axis.set_title(note, loc="right", color=ORANGE)
        axis.set_xlabel("inner step $t$")
        count_in_whole(axis.xaxis)
    scale_losses(axes[0], "y", [line.get_ydata() for axis in axes for line in axis.lines])
    axes[0].set_ylabel(r"loss $L(\theta_t)$ (nats)")
    axes[-1].legend(loc="upper right")
    return figure


def _caption(results: Results) -> str:
    summary = results.summary
    sentences = [] if is_success(summary) else ["No success: both curves are the same, so AR is 1."]
    for name in reversed(SETS):
        sentences.append(match_sentence(summary, name))
        sentences += (rise_sentence(summary, name, policy) for policy in POLICIES)
    return " ".join(filter(None, sentences))


LOSS_CURVES = FigureSpec(
    "fig05_loss_curves",
    "Figure 5. Learning under the conventional and the optimised policy",
    tuple(f"{policy}_{name}_losses" for name in SETS for policy in POLICIES),
    _draw,
    _caption,
)
