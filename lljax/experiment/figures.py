"""The figures of a report and their captions; 4 to 11 have the paper's numbers (arXiv:2402.17759).

A figure is an entry of `FIGURES`: what it needs, how it is drawn, and a caption computed from the
run's numbers, which says so when an effect is absent or contrary. Nothing here touches global
matplotlib state: no pyplot, no display, the style is a context.
"""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

from lljax.experiment import captions
from lljax.experiment.results import POLICIES, SETS, Results

# Okabe and Ito's palette, which colour-blind readers tell apart; line styles differ as well.
GREY, BLUE, ORANGE, GREEN = "#5a5a5a", "#0072b2", "#d55e00", "#009e73"
STROKE: dict[str, dict[str, Any]] = {
    "conventional": {"color": GREY, "linestyle": (0, (4, 1.5)), "label": "conventional"},
    "optimized": {"color": BLUE, "linestyle": "-", "label": "optimised"},
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


@dataclasses.dataclass(frozen=True)
class FigureSpec:
    """One figure: `name` is its file's stem, `needs` the keys of analysis.npz that it draws.

    A figure whose keys are missing, or whose data `is_empty`, is left out, and `absent` says why.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    draw: Callable[[Results], Figure]
    caption: Callable[[Results], str]
    absent: str = "this run recorded no data for it."
    is_empty: Callable[[Results], bool] = lambda results: False

    def reason_left_out(self, results: Results) -> str | None:
        missing = not set(self.needs) <= results.arrays.keys()
        return self.absent if missing or self.is_empty(results) else None


def draw_figure(spec: FigureSpec, results: Results) -> Figure:
    """Draws one figure in the report's style."""
    with matplotlib.style.context(["default", STYLE]):
        return spec.draw(results)


def encode_figure(figure: Figure, kind: str) -> bytes:
    """The bytes of a figure; `kind` is "png" (200 dpi) or "pdf" (vectors)."""
    # Without a date the same data give the same file.
    metadata = {"CreationDate": None} if kind == "pdf" else None
    with matplotlib.style.context(["default", STYLE]), io.BytesIO() as buffer:
        figure.savefig(buffer, format=kind, metadata=metadata)
        return buffer.getvalue()


def _panels(count: int, width: float, height: float = 2.9, **options) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False, **options)
    return figure, list(axes[0])


def _scale(axes: Axes, which: str, losses: Any) -> None:
    """Logarithmic where the losses span much."""
    values = np.concatenate([np.ravel(loss) for loss in losses])
    values = values[np.isfinite(values) & (values > 0)]
    if values.size and values.max() > 4 * values.min():
        axes.set(**{f"{which}scale": "log"})
        _label_plainly(getattr(axes, f"{which}axis"))


def _label_plainly(axis: Axis) -> None:
    """0.2 on a logarithmic axis, not 2 x 10^-1."""
    low, high = axis.get_view_interval()
    # Losses of 8 down to 3 nats get more than one label, and weights over many orders of
    # magnitude no more than there is room for.
    span = high / low
    labels = (1, 1.5, 2, 3, 5, 7) if span < 10 else (1, 2, 5) if span < 1000 else (1,)
    axis.set_major_locator(LogLocator(subs=labels))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_formatter(NullFormatter())


def _draw_objective(results: Results) -> Figure:
    figure, (left, right) = _panels(2, 7.6)
    metrics, row = results.metrics, results.kept_row()
    steps, objective = metrics["outer_step"], results.num_steps * metrics["auc"]
    validation = results.num_steps * metrics["validation_auc"]
    # CR = T log|V| / J on either set, so the constant is taken from the desired set.
    constant = metrics["compression_ratio"] * objective
    for axis, label, curves in (
        (left, "objective $J$ (nats)", (objective, validation)),
        (right, "compression ratio CR", (constant / objective, constant / validation)),
    ):
        strokes = ((BLUE, "-", "desired"), (ORANGE, (0, (4, 1.5)), "validation"))
        for curve, (color, line, name) in zip(curves, strokes, strict=True):
            axis.plot(steps, curve, color=color, linestyle=line, label=name)
            if row is not None:
                axis.plot(steps[row], curve[row], "o", color=color, markersize=5)
        if row is not None:
            axis.axvline(steps[row], color=GREY, linewidth=0.9, linestyle=":", label="kept step")
        axis.set(xlabel="outer step", ylabel=label)
    left.legend()
    return figure


def _draw_curves(results: Results) -> Figure:
    figure, axes = _panels(3, 9.6, sharey=True)
    for axis, name in zip(axes, SETS, strict=True):
        curves = [results.arrays[f"{policy}_{name}_losses"] for policy in POLICIES]
        for policy, curve in zip(POLICIES, curves, strict=True):
            axis.plot(curve, **STROKE[policy])
        final, ratio = curves[0][-1], results.summary[name]["acceleration_ratio"]
        reached = captions.steps_to_match(results.summary, name)
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
    _scale(axes[0], "y", [line.get_ydata() for axis in axes for line in axis.lines])
    axes[0].set_ylabel(r"loss $L(\theta_t)$ (nats)")
    axes[-1].legend(loc="upper right")
    return figure


def _color_by_ratio(figure: Figure, axis: Axes, results: Results) -> list[Any]:
    """A colour bar of the compression ratio, and the colour of each path policy."""
    ratios = results.arrays["path_compression_ratio"].astype(float)
    finite = ratios[np.isfinite(ratios)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1e-6), PATH_COLORS)
    figure.colorbar(scale, ax=axis, label="CR (test)", aspect=28, pad=0.02).outline.set_visible(
        False
    )
    return [scale.to_rgba(np.nan_to_num(ratio, nan=low)) for ratio in ratios]


def _law_stroke(results: Results) -> dict[str, Any]:
    """A thin line; where the law is measured at few inner steps, dots show at which."""
    sparse = results.arrays["law_steps"].size <= 50
    return {"linewidth": 1.1, "marker": "." if sparse else "", "markersize": 4}


def _draw_similarity(results: Results) -> Figure:
    figure, (axis,) = _panels(1, 5.6, 3.5)
    curves = results.arrays["path_similarity_curve"]
    losses = results.arrays["path_desired_losses"][:, results.arrays["law_steps"]]
    for loss, curve, color in zip(
        losses, curves, _color_by_ratio(figure, axis, results), strict=True
    ):
        axis.plot(loss, curve, color=color, **_law_stroke(results))
    # Training runs from left to right, as time does in the other figures.
    axis.set(xlabel=r"desired loss $L(\theta_t)$ (nats)", ylabel=r"SIM$_t$")
    _scale(axis, "x", losses)
    axis.invert_xaxis()
    return figure


def _draw_against_ratio(axis: Axes, results: Results, key: str, label: str) -> None:
    ratios, values = results.arrays["path_compression_ratio"], results.arrays[key]
    axis.plot(ratios, values, color="#b0b0b0", linewidth=1, zorder=1)
    axis.plot(ratios[1:-1], values[1:-1], "o", color="#8fbfdc", markersize=5)
    axis.plot(ratios[0], values[0], "s", color=GREY, markersize=6.5, label="conventional")
    axis.plot(ratios[-1], values[-1], "o", color=BLUE, markersize=7.5, label="kept")
    axis.set(xlabel="compression ratio CR (test)", ylabel=label)
    axis.margins(0.08)
    axis.legend()


def _draw_law(results: Results) -> Figure:
    figure, (axis,) = _panels(1, 4.8, 3.3)
    _draw_against_ratio(axis, results, "path_similarity", "SIM, mean over $t$")
    return figure


def _draw_excluded(results: Results) -> Figure:
    figure, (left, right) = _panels(2, 8.4, 3.1)
    label = r"share of CT $\leq 0$ with $\gamma = 0$"
    _draw_against_ratio(left, results, "path_zero_weight_share", f"{label}, mean over $t$")
    colors = _color_by_ratio(figure, right, results)
    for curve, color in zip(results.arrays["path_zero_weight_curve"], colors, strict=True):
        right.plot(results.arrays["law_steps"], curve, color=color, **_law_stroke(results))
    right.set(xlabel="inner step $t$", ylabel=label)
    for axis in (left, right):
        # Shares that are all zero, as at a low rate, are not to be drawn around a negative axis.
        top = max(axis.get_ylim()[1], 0.1)
        axis.set_ylim(-0.04 * top, top)
    return figure


def _draw_learned(results: Results) -> Figure:
    figure, (axis,) = _panels(1, 5.6, 3.4)
    edges, shares = results.arrays["learned_edges"], captions.learned_shares(results)
    for share, color in zip(shares, _color_by_ratio(figure, axis, results), strict=True):
        axis.plot(edges, share, color=color)
    if edges[0] >= 0 and not np.allclose(np.diff(edges), edges[1] - edges[0], rtol=1e-3):
        axis.set_xscale("log")
    axis.set(xlabel=r"$\gamma_{t,n}\, /\, \max_n \gamma_{t,n}$", ylabel="cumulative share")
    return figure


def _draw_heatmap(results: Results) -> Figure:
    figure, (axis,) = _panels(1, 6.2, 3.9)
    steps, values = results.arrays["heatmap_steps"], results.arrays["heatmap_weights"]
    # An image needs evenly spaced columns: each takes the sampled step next to it.
    even = np.linspace(steps[0], steps[-1], len(steps))
    columns = np.abs(steps[None, :] - even[:, None]).argmin(axis=1)
    # White is the uniform weight; a few huge weights shall not wash out the rest.
    high = float(np.clip(np.nanpercentile(values, 99.5), 3, 100))
    image = axis.imshow(
        np.clip(np.nan_to_num(values[columns].T), 1 / high, None),
        norm=LogNorm(1 / high, high),
        cmap="RdBu_r",
        aspect="auto",
        extent=(float(steps[0]), float(steps[-1]) + 1, values.shape[1], 0),
    )
    axis.grid(False)
    axis.set(xlabel="inner step $t$", ylabel="contributive example, by mean weight")
    bar = figure.colorbar(image, ax=axis, aspect=28, pad=0.02, extend="both")
    _label_plainly(bar.ax.yaxis)
    bar.set_label(r"$N \gamma_{t,n}$ (uniform: 1)")
    return figure


def _fits(results: Results) -> dict[str, dict[str, float]]:
    fits = {policy: results.summary["scaling_law"][policy] for policy in POLICIES}
    return {policy: fit for policy, fit in fits.items() if captions.is_fit(fit)}


def _draw_scaling(results: Results) -> Figure:
    figure, (axis,) = _panels(1, 5.6, 3.7)
    steps = np.unique(np.geomspace(1, results.num_steps, 70).astype(int))
    for policy, fit in _fits(results).items():
        color, marker = STROKE[policy]["color"], "s" if policy == "conventional" else "o"
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
                f"{STROKE[policy]['label']}: $L_0$ = {captions.number(fit['L0'])}, "
                rf"$\beta$ = {fit['beta']:.3g}, $r^2$ = {fit['r2']:.4f}"
            ),
        )
    axis.set(xlabel="inner step $t$", ylabel=r"test $L(\theta_t) - L_0$")
    axis.set(xscale="log", yscale="log")
    _label_plainly(axis.yaxis)
    axis.legend(loc="lower left")
    return figure


def _draw_perturbed(results: Results) -> Figure:
    figure, (left, right) = _panels(2, 8.4, 3.1)
    perturbed = results.arrays["perturbed"] > 0
    # Broad and pale: it lies under the conventional line, which has the same height.
    left.axhline(perturbed.mean(), color=ORANGE, linewidth=5, alpha=0.3, label="share of examples")
    for policy, row in zip(POLICIES, (0, -1), strict=True):
        left.plot(results.arrays["perturbed_share"][row], **STROKE[policy])
    left.set(xlabel="inner step $t$", ylabel="weight share of perturbed examples")
    left.set_ylim(bottom=0)
    left.legend()

    weights = results.arrays["total_weights"].astype(float)
    positive = weights[np.isfinite(weights) & (weights > 0)]
    # Exponentiated gradient leaves weights of any order of magnitude near zero: one bar for them.
    low = float(np.clip(positive.min(initial=1), 1e-3, 0.5))
    count = int(np.clip(np.sqrt(min(perturbed.sum(), (~perturbed).sum())), 8, 30))
    bins = np.geomspace(low, positive.max(initial=2), count + 1).tolist()
    for chosen, color, label in ((~perturbed, GREEN, "clean"), (perturbed, ORANGE, "perturbed")):
        group = np.clip(np.nan_to_num(weights[chosen]), low, None)
        right.hist(
            group,
            bins,
            weights=np.full(group.size, 1 / group.size),
            histtype="stepfilled",
            facecolor=(color, 0.35),
            edgecolor=color,
            label=label,
        )
    right.axvline(1, color=GREY, linewidth=0.9, linestyle=":")
    right.set(xscale="log", ylabel="share of the examples")
    rest = f"; first bar: up to {low:.3g}" if (weights < low).any() else ""
    right.set_xlabel(rf"$N\,\overline{{\gamma}}_n$, mean over $t$ (uniform: 1{rest})")
    _label_plainly(right.xaxis)
    right.legend()
    return figure


FIGURES: tuple[FigureSpec, ...] = (
    FigureSpec(
        "fig04_objective",
        "Figure 4. Objective and compression ratio along the optimisation",
        (),
        _draw_objective,
        captions.objective_caption,
    ),
    FigureSpec(
        "fig05_loss_curves",
        "Figure 5. Learning under the conventional and the optimised policy",
        tuple(f"{policy}_{name}_losses" for name in SETS for policy in POLICIES),
        _draw_curves,
        captions.curves_caption,
    ),
    FigureSpec(
        "fig06_similarity_by_loss",
        "Figure 6. Similarity of contributions against the loss",
        ("path_similarity_curve", "path_desired_losses", "path_compression_ratio"),
        _draw_similarity,
        captions.similarity_caption,
    ),
    FigureSpec(
        "fig07_similarity_by_ratio",
        "Figure 7. Similarity of contributions against the compression ratio",
        ("path_similarity", "path_compression_ratio"),
        _draw_law,
        lambda results: captions.path_caption(results, "path_similarity", "SIM"),
    ),
    FigureSpec(
        "fig08_excluded_examples",
        "Figure 8. Non-contributive examples that get no weight",
        ("path_zero_weight_share", "path_zero_weight_curve", "path_compression_ratio"),
        _draw_excluded,
        captions.excluded_caption,
    ),
    FigureSpec(
        "fig09_learned_examples",
        "Figure 9. Weight of perfectly learned examples",
        ("learned_edges", "path_learned_counts", "path_compression_ratio"),
        _draw_learned,
        captions.learned_caption,
        absent="no training example is perfectly learned (loss below 1e-6), as is usual for text.",
        is_empty=lambda results: not np.any(results.arrays["path_learned_counts"] > 0),
    ),
    FigureSpec(
        "fig10_policy_heatmap",
        "Figure 10. The kept policy over time",
        ("heatmap_steps", "heatmap_weights"),
        _draw_heatmap,
        captions.heatmap_caption,
        absent="no training example is contributive (CT > 0), or the run recorded none.",
        is_empty=lambda results: results.arrays["heatmap_weights"].size == 0,
    ),
    FigureSpec(
        "fig11_scaling_law",
        "Figure 11. Scaling law of the test loss",
        tuple(f"{policy}_test_losses" for policy in POLICIES),
        _draw_scaling,
        captions.scaling_caption,
        absent="no scaling law could be fitted to either test-loss curve.",
        is_empty=lambda results: not _fits(results),
    ),
    FigureSpec(
        "fig12_perturbed",
        "Figure 12. Weight of perturbed examples",
        ("perturbed", "perturbed_share", "total_weights"),
        _draw_perturbed,
        captions.perturbed_caption,
        absent="the training set is not one of perturbed and of clean examples.",
        is_empty=lambda results: len(np.unique(results.arrays["perturbed"] > 0)) < 2,
    ),
)
