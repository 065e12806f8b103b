"""Figure 5: the loss curves of the conventional and the optimised policy."""

from matplotlib.figure import Figure

from lljax.artifacts.results import Results
from lljax.artifacts.schema import POLICIES, SETS
from lljax.report.sentences import match_sentence, steps_to_match
from lljax.report.spec import FigureSpec
from lljax.report.style import ORANGE, STROKES, panels, scale_losses


def _draw(results: Results) -> Figure:
    figure, axes = panels(3, 9.6, sharey=True)
    for axis, name in zip(axes, SETS, strict=True):
        curves = [results.arrays[f"{policy}_{name}_losses"] for policy in POLICIES]
        for policy, curve in zip(POLICIES, curves, strict=True):
            axis.plot(curve, **STROKES[policy])
        final, ratio = curves[0][-1], results.summary[name]["acceleration_ratio"]
        reached = steps_to_match(results.summary, name)
        if reached is not None:
            axis.annotate(
                "",
                xy=(reached, final),
                xytext=(results.num_steps, final),
                arrowprops={"arrowstyle": "<->", "color": ORANGE, "shrinkA": 0, "shrinkB": 0},
            )
        note = f"AR = {ratio:.2f}" if reached is not None else "AR: never reached"
        axis.set_title(name, loc="left")
        axis.set_title(note, loc="right", color=ORANGE)
        axis.set_xlabel("inner step $t$")
    scale_losses(axes[0], "y", [line.get_ydata() for axis in axes for line in axis.lines])
    axes[0].set_ylabel(r"loss $L(\theta_t)$ (nats)")
    axes[-1].legend(loc="upper right")
    return figure


def _caption(results: Results) -> str:
    return " ".join(match_sentence(results.summary, name) for name in reversed(SETS))


LOSS_CURVES = FigureSpec(
    "fig05_loss_curves",
    "Figure 5. Learning under the conventional and the optimised policy",
    tuple(f"{policy}_{name}_losses" for name in SETS for policy in POLICIES),
    _draw,
    _caption,
)
