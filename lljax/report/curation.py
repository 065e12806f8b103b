"""What a policy over many runs shows: fresh runs, groups, a scorer, transfer to other models."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lljax.artifacts.schema import POLICIES
from lljax.report.words import acceleration, is_number, number, percent

ARMS = {
    "uniform": "all data alike",
    "curated": "curated data",
    "random": "random subset",
    "match": "best match",
    "oracle": "oracle",
}
MOST_GROUPS = 20


def is_over_runs(summary: Mapping[str, Any]) -> bool:
    """Whether the policy is one over many runs, and not one of single steps."""
    return summary.get("runs") is not None


def is_of_steps(summary: Mapping[str, Any]) -> bool:
    """Whether the policy is one of single steps."""
    return not is_over_runs(summary)


def runs_sentences(summary: Mapping[str, Any]) -> list[str]:
    """What fresh runs show beside the mean: their spread, the oracle, the weights, the scorer."""
    runs = summary["runs"]
    ratios = runs["acceleration_ratios"]
    sentences = [f"In {len(ratios)} fresh runs {_reached(ratios)}."]
    if oracle := runs.get("oracle_acceleration_ratios"):
        sentences.append(f"With weights that know which examples are damaged, {_reached(oracle)}.")
    size = runs.get("effective_sample_size")
    if is_number(size) and summary.get("num_train"):
        sentences.append(
            f"The weights are as uneven as if {size:.0f} of the {summary['num_train']} training "
            f"examples had all of it (effective sample size)."
        )
    correlation = runs.get("scorer_correlation")
    if is_number(correlation):
        sentences.append(
            f"The scorer's correlation with the logarithms of the weights that it was fitted to is "
            f"{correlation:.2f}."
        )
    return sentences


def _reached(ratios: list[float | None]) -> str:
    if not any(map(is_number, ratios)):
        return "the conventional final loss on the test set is never reached"
    return f"the acceleration on the test set is {spread(ratios)}"


def spread(ratios: list[float | None]) -> str:
    """Several accelerations: "3.1x to 4.0x, median 3.5x"."""
    reached = sorted(ratio for ratio in ratios if is_number(ratio))
    if not reached:
        return "never"
    text = f"{acceleration(reached[0])} to {acceleration(reached[-1])}"
    if len(reached) < len(ratios):
        return f"{text}, and in {len(ratios) - len(reached)} it is never reached"
    return f"{text}, median {acceleration(float(np.median(reached)))}"


def group_rows(summary: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The groups, by weight: their share of the examples and of the weight."""
    groups = summary.get("groups")
    if not groups:
        return []
    shares = zip(
        groups["names"], *(groups["weight_share"][policy] for policy in POLICIES), strict=True
    )
    ranked = sorted(shares, key=lambda row: -(row[2] or 0))
    return [
        (name or "(none)", [percent(before), percent(after)])
        for name, before, after in ranked[:MOST_GROUPS]
    ]


def transfer_rows(transfer: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What models were trained on: AR in the mean, over single runs, and the final test loss."""
    rows = []
    for arm, name in ARMS.items():
        of = transfer.get("arms", {}).get(arm)
        if of is None:
            continue
        losses = [loss for loss in of["final_losses"] if is_number(loss)]
        final = number(float(np.mean(losses))) if losses else "-"
        known = is_number(of["acceleration_ratio"])
        ratio = acceleration(of["acceleration_ratio"]) if known else "never"
        rows.append((name, [ratio, spread(of["acceleration_ratios"]), final]))
    return rows


def transfer_sentence(transfer: Mapping[str, Any]) -> str:
    """Whether the curated data help other models, and when finding them pays."""
    data = (
        "on data that the policy has not seen" if transfer["unseen_data"] else "on the run's data"
    )
    setting = (
        f"Models of {transfer['num_params']:,} parameters, trained conventionally for "
        f"{transfer['inner_steps']} steps {data}."
    )
    curated, random = (
        transfer["arms"][arm]["acceleration_ratios"] for arm in ("curated", "random")
    )
    pairs = [(ours or 0.0, theirs or 0.0) for ours, theirs in zip(curated, random, strict=True)]
    wins, above = sum(a > b for a, b in pairs), sum(a > 1 for a, _ in pairs)
    ratio = transfer["arms"]["curated"]["acceleration_ratio"]
    if not is_number(ratio) or above < len(pairs) or ratio <= 1:
        return (
            f"{setting} The curated data do not help here: in {above} of {len(pairs)} fresh runs "
            f"they are learnt faster than all data alike, in {wins} faster than a random subset."
        )
    flops = transfer["flops"]
    text = (
        f"{setting} The curated data help in all {len(pairs)} fresh runs, and more than a random "
        f"subset of the same effective size in {wins}."
    )
    if not is_number(flops["break_even_runs"]):
        return text
    return (
        f"{text} Finding them took {flops['finding']:.2g} FLOPs, and one such training run saves "
        f"{flops['saved']:.2g} of {flops['training']:.2g}: it pays from "
        f"{flops['break_even_runs']:.3g} runs of this size on."
    )


def transfer_table(transfer: Mapping[str, Any]) -> str:
    """The same for a terminal."""
    lines = [f"{'trained on':<16}{'test AR':>9}  {'in single runs':<34}{'final test loss':>15}"]
    for name, (ratio, of_runs, final) in transfer_rows(transfer):
        lines.append(f"{name:<16}{ratio:>9}  {of_runs:<34}{final:>15}")
    text = "\n".join([*lines, "", transfer_sentence(transfer)])
    return text.replace("\u00d7", "x").replace("\u00a0", " ")


def table_lines(summary: Mapping[str, Any]) -> list[str]:
    """The same of a run for a terminal, in at most 80 columns."""
    runs = summary["runs"]
    lines = [f"fresh runs      test AR {spread(runs['acceleration_ratios'])}"]
    if oracle := runs.get("oracle_acceleration_ratios"):
        lines.append(f"an oracle       test AR {spread(oracle)}")
    for name, (before, after) in group_rows(summary)[:8]:
        lines.append(f"group {name[:30]:<32}{before} -> {after} of the weight")
    return [line.replace("\u00d7", "x").replace("\u00a0", " ") for line in lines]
