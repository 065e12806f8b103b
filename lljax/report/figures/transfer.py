"""Figure 13: test loss of other models on curated and other data."""

from matplotlib.figure import Figure

from lljax.artifacts.results import Results
from lljax.report.curation import ARMS, is_over_runs, transfer_sentence
from lljax.report.spec import FigureSpec
from lljax.report.style import count_in_whole, panels, scale_losses

_LINES = {"uniform": "-", "curated": "-", "random": ":", "match": "-.", "oracle": "--"}
_COLOURS = {
    "uniform": "#666666",
    "curated": "#d55e00",
    "random": "#666666",
    "match": "#009e73",
    "oracle": "#0072b2",
}


def _draw(results: Results) -> Figure:
    figure, (axis,) = panels(1, 5.2)
    transfer = results.transfer
    for arm, name in ARMS.items():
        if arm not in transfer["arms"]:
            continue
        curve = [float("nan") if y is None else y for y in transfer["arms"][arm]["curve"]]
        axis.plot(transfer["steps"], curve, _LINES[arm], color=_COLOURS[arm], label=name)
    axis.set_xlabel("step")
    axis.set_ylabel("test loss (nats)")
    count_in_whole(axis.xaxis)
    scale_losses(axis, "y", [line.get_ydata() for line in axis.lines])
    axis.legend(loc="upper right")
    return figure


TRANSFER = FigureSpec(
    "fig13_transfer",
    "Figure 13. Training other models on what was found",
    (),
    _draw,
    lambda results: transfer_sentence(results.transfer),
    absent="`lljax transfer` was not run on it.",
    is_empty=lambda results: not results.transfer,
    applies=is_over_runs,
)
