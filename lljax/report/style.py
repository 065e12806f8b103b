"""What all figures share: colours, fonts, panels and axes.

Nothing here touches the global state of matplotlib: no pyplot, no display, and the style is a
context.
"""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from lljax.artifacts.results import Results
from lljax.report.words import POLICY_NAMES

# The palette of Okabe and Ito, which colour-blind readers can tell apart; line styles differ too.
GREY, BLUE, ORANGE, GREEN = "#5a5a5a", "#0072b2", "#d55e00", "#009e73"
DASHED = (0, (4, 1.5))
STROKES: dict[str, dict[str, Any]] = {
    "conventional": {
        "color": GREY,
        "linestyle": DASHED,
        "label": POLICY_NAMES["conventional"],
    },
    "optimized": {"color": BLUE, "linestyle": "-", "label": POLICY_NAMES["optimized"]},
}
# The upper end of viridis is too pale for a thin line on white paper.
PATH_COLORS = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.88, 256)))
STYLE = {
    "font.family": "STIXGeneral",  # shipped with matplotlib, so every machine draws the same
    "mathtext.fontset": "stix",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType: publishers refuse matplotlib's default Type 3
}


def panels(count: int, width: float, height: float = 2.9, **options) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side; the size is in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False, **options)
    return figure, list(axes[0])


def stack(figure: Figure, width: float = 4.2) -> bool:
    """Puts the panels of a figure below each other; False if it has but one. `width`: inches."""
    # A colour bar has no place in the grid: it follows its panel.
    axes = [axis for axis in figure.axes if axis.get_subplotspec() is not None]
    if len(axes) < 2:
        return False
    grid = figure.add_gridspec(len(axes), 1)
    for row, axis in enumerate(axes):
        axis.set_subplotspec(grid[row, 0])
        # A panel may have left these to its neighbour.
        axis.tick_params(labelleft=True)
        axis.set_ylabel(axis.get_ylabel() or axes[0].get_ylabel())
    figure.set_size_inches(width, 2.6 * len(axes))
    figure.set_layout_engine("constrained", h_pad=0.1)
    if len(axes) < len(figure.axes):
        figure.draw_without_rendering()  # the second pass of the layout finds room for colour bars
    return True


def count_in_whole(axis: Axis) -> None:
    """Ticks of steps: there is no half a step."""
    axis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))


def scale_losses(axes: Axes, which: str, losses: Any) -> None:
    """Makes the axis `which`, "x" or "y", logarithmic if the losses span a wide range."""
    values = np.concatenate([np.ravel(loss) for loss in losses])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > 4 * values.min():
        axes.set(**{f"{which}scale": "log"})
        label_plainly(getattr(axes, f"{which}axis"))


def label_plainly(axis: Axis) -> None:
    """Writes 0.2 on a logarithmic axis, not 2 x 10^-1."""
    low, high = axis.get_view_interval()
    # Losses from 8 down to 3 nats need more than one label, and for weights over many orders of
    # magnitude there is little room.
    span = high / low
    labels = (1, 1.5, 2, 3, 5, 7) if span < 10 else (1, 2, 5) if span < 1000 else (1,)
    axis.set_major_locator(LogLocator(subs=labels))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def path_strokes(figure: Figure, axis: Axes, results: Results) -> list[dict[str, Any]]:
    """How the line of each policy of the path is drawn; adds a colour bar for its colour.

    The colour is the compression ratio. The conventional policy, which is the first, is dashed and
    the best one, the last, is thick, and both are named for a legend.
    """
    ratios = results.arrays["path_compression_ratio"].astype(float)
    finite = ratios[np.isfinite(ratios)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    # Of one policy alone, a span of a hundredth: a smaller one has no legible ticks.
    high = high if high > low else low + max(0.01 * abs(low), 1e-6)
    scale = ScalarMappable(Normalize(low, high), PATH_COLORS)
    bar = figure.colorbar(scale, ax=axis, label="CR (test)", aspect=28, pad=0.02)
    bar.outline.set_visible(False)
    strokes: list[dict[str, Any]] = [
        {"color": scale.to_rgba(np.nan_to_num(ratio, nan=low)), "linewidth": 1.0}
        for ratio in ratios
    ]
    strokes[-1] |= {"linewidth": 2.4, "label": "best"}
    name = "conventional" if len(strokes) > 1 else "conventional, also best"
    strokes[0] |= {"linewidth": 1.8, "linestyle": DASHED, "label": name}
    return strokes
