"""Figures 9, 10 and 12: which examples get weight."""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lljax.artifacts.results import Results
from lljax.artifacts.schema import POLICIES
from lljax.report.curation import is_of_steps
from lljax.report.sentences import perturbed_verdict
from lljax.report.spec import FigureSpec
from lljax.report.style import (
    GREEN,
    GREY,
    ORANGE,
    STROKES,
    count_in_whole,
    label_plainly,
    panels,
    path_strokes,
)
from lljax.report.words import change, number, percent


def _learned_shares(results: Results) -> np.ndarray:
    """The cumulative distributions of Figure 9 at every edge, [P, G]; NaN without examples."""
    counts = results.arrays["path_learned_counts"].astype(float)
    sums = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0)))
    return np.divide(sums, sums[:, -1:], out=np.full_like(sums, np.nan), where=sums[:, -1:] > 0)


def _draw_learned(results: Results) -> Figure:
    figure, (axis,) = panels(1, 4.8, 3.2)
    edges, shares = results.arrays["learned_edges"], _learned_shares(results)
    for share, stroke in zip(shares, path_strokes(figure, axis, results), strict=True):
        axis.plot(edges, share, **stroke)
    axis.legend()
    if edges[0] >= 0 and not np.allclose(np.diff(edges), edges[1] - edges[0], rtol=1e-3):
        axis.set_xscale("log")
    axis.set(xlabel=r"$\gamma_{t,n}\, /\, \max_n \gamma_{t,n}$", ylabel="cumulative share")
    return figure


def _learned_caption(results: Results) -> str:
    total = results.arrays["path_learned_counts"][-1].sum()
    if not total > 0:
        return "Under the best policy no example is perfectly learned (loss below 1e-6)."
    first, last = (
        np.interp(0.1, results.arrays["learned_edges"], share)
        for share in _learned_shares(results)[[0, -1]]
    )
    return (
        f"Under the best policy there are {total:.0f} cases of an example that is already learned "
        f"(loss below 1e-6) at an inner step. In {percent(last)} of them the example has less than "
        f"a tenth of the largest weight of that step (conventional policy: {percent(first)})."
    )


def _draw_heatmap(results: Results) -> Figure:
    figure, (axis,) = panels(1, 4.8, 3.6)
    steps, values = results.arrays["heatmap_steps"], results.arrays["heatmap_weights"]
    # An image needs evenly spaced columns: each shows the sampled step that is nearest to it.
    even = np.linspace(steps[0], steps[-1], len(steps))
    columns = np.abs(steps[None, :] - even[:, None]).argmin(axis=1)
    # White is the uniform weight. A percentile, so that a few huge weights do not pale the rest.
    high = float(np.clip(np.nanpercentile(values, 99.5), 3, 100))
    image = axis.imshow(
        np.clip(np.nan_to_num(values[columns].T), 1 / high, None),
        norm=LogNorm(1 / high, high),
        cmap="RdBu_r",
        aspect="auto",
        # Blended rows have more colours than the data, and a file three times as large.
        interpolation="nearest" if values.shape[1] <= 500 else "auto",
        extent=(float(steps[0]), float(steps[-1]) + 1, values.shape[1], 0),
    )
    axis.grid(False)
    axis.set(xlabel="inner step $t$", ylabel="contributive example, by mean weight")
    count_in_whole(axis.xaxis)
    count_in_whole(axis.yaxis)
    bar = figure.colorbar(image, ax=axis, aspect=28, pad=0.02, extend="both")
    label_plainly(bar.ax.yaxis)
    bar.set_label(r"$N \gamma_{t,n}$ (uniform: 1)")
    return figure


def _heatmap_caption(results: Results) -> str:
    values = results.arrays["heatmap_weights"].astype(float)
    totals = np.sort(np.nansum(values, axis=0))
    top = totals[-max(1, len(totals) // 10) :].sum() / max(totals.sum(), 1e-30)
    return (
        f"Of the weights of these {values.shape[1]} contributive examples, "
        f"{percent(np.mean(values < 0.01))} are below a hundredth of the uniform weight. The tenth "
        f"of the examples with the largest mean weight holds {percent(top)} of the total weight "
        f"of all {values.shape[1]} (10 % under the conventional policy)."
    )


def _draw_perturbed(results: Results) -> Figure:
    figure, (left, right) = panels(2, 8.4, 3.1)
    perturbed = results.arrays["perturbed"] > 0
    # Broad and pale: it lies under the conventional line, which has the same height.
    left.axhline(perturbed.mean(), color=ORANGE, linewidth=5, alpha=0.3, label="share of examples")
    for policy, row in zip(POLICIES, (0, -1), strict=True):
        left.plot(results.arrays["perturbed_share"][row], **STROKES[policy])
    left.set(xlabel="inner step $t$", ylabel="weight share of\nperturbed examples")
    left.set_ylim(bottom=0)
    count_in_whole(left.xaxis)
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
    label_plainly(right.xaxis)
    right.legend()
    return figure


def _perturbed_caption(results: Results) -> str:
    perturbed = results.arrays["perturbed"] > 0
    shares = results.arrays["perturbed_share"].astype(float)
    before, after = shares[[0, -1]].mean(axis=1)
    tenth = -(-results.num_steps // 10)
    hit, clean = (
        results.arrays["total_weights"][of].astype(float) for of in (perturbed, ~perturbed)
    )
    # The share of pairs in which the perturbed example has less weight; a tie is half a pair.
    below, upto = (np.searchsorted(np.sort(clean), hit, side) for side in ("left", "right"))
    ranks = (below + upto) / 2
    return (
        f"{perturbed.sum()} of the {perturbed.size} training examples ({percent(perturbed.mean())})"
        f" are perturbed. Left: their share of the weight (mean over t) "
        f"{change(before, after, show=percent)}. Under the best policy it is "
        f"{percent(shares[-1, :tenth].mean())} over the first tenth of the inner steps and "
        f"{percent(shares[-1, -tenth:].mean())} over the last: "
        f"{perturbed_verdict(before, after)}. Right: the weight of each example under the best "
        f"policy, mean over t. {percent(np.mean(hit < 0.01))} of the perturbed and "
        f"{percent(np.mean(clean < 0.01))} of the clean examples have less than a hundredth of the "
        f"uniform weight; the medians are {number(np.median(hit))} and "
        f"{number(np.median(clean))}. If one perturbed and one clean example are drawn at random, "
        f"the perturbed one has less weight in {percent(1 - ranks.mean() / clean.size)} of cases."
    )


LEARNED_EXAMPLES = FigureSpec(
    "fig09_learned_examples",
    "Figure 9. Weight of perfectly learned examples",
    ("learned_edges", "path_learned_counts", "path_compression_ratio"),
    _draw_learned,
    _learned_caption,
    absent="no training example is perfectly learned (loss below 1e-6), as is usual for text.",
    is_empty=lambda results: not np.any(results.arrays["path_learned_counts"] > 0),
    applies=is_of_steps,
)
POLICY_HEATMAP = FigureSpec(
    "fig10_policy_heatmap",
    "Figure 10. The best policy over time",
    ("heatmap_steps", "heatmap_weights"),
    _draw_heatmap,
    _heatmap_caption,
    absent="no training example is contributive (CT > 0), or the run recorded none.",
    is_empty=lambda results: results.arrays["heatmap_weights"].size == 0,
    applies=is_of_steps,
)
PERTURBED = FigureSpec(
    "fig12_perturbed",
    "Figure 12. Weight of perturbed examples",
    ("perturbed", "perturbed_share", "total_weights"),
    _draw_perturbed,
    _perturbed_caption,
    absent="the training set does not have both perturbed and clean examples.",
    is_empty=lambda results: len(np.unique(results.arrays["perturbed"] > 0)) < 2,
    applies=is_of_steps,
)
