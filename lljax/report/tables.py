"""The tables of one run: one for the terminal, and the rows of those on the page."""

from collections.abc import Iterator, Mapping
from typing import Any

from lljax.artifacts.schema import POLICIES, SETS
from lljax.report.sentences import improvement
from lljax.report.words import POLICY_NAMES, acceleration, number, percent

_LAW_ROWS = (
    ("similarity", "Similarity of contributions, SIM (mean over t)"),
    ("optimality_gap", "Optimality gap, nats (mean over t; 0 at a stationary policy)"),
    ("zero_weight_share_of_noncontributive", "Share of examples with CT ≤ 0 that get no weight"),
)
_SCALING_ROWS = (
    ("L0", "L0, nats"),
    ("t0", "t0, steps"),
    ("B", "B, steps"),
    ("beta", "β"),
    ("r2", "r²"),
)

Row = tuple[str, list[str]]


def summary_table(summary: Mapping[str, Any]) -> str:
    """The result of a run for a terminal: ASCII, at most 80 columns, no newline at the end.

    Args:
      summary: summary.json.
    """
    lines = [
        f"{summary['task']}, seed {summary['seed']}: T = {summary['inner_steps']} inner steps, "
        f"best outer step {summary['best_outer_step']} of {summary['outer_steps']}",
        "",
        f"{'':<12}{'loss AUC, nats per step':^26}{'final loss, nats':^26}{'':>14}",
        f"{'':<12}" + f"{'convent.':>12} {'optimised':>12} " * 2 + f"{'acceleration':>14}",
    ]
    for name in SETS:
        cells = [summary[name][policy][k] for k in ("auc", "final_loss") for policy in POLICIES]
        lines.append(
            f"{name:<12}"
            + "".join(f"{number(cell):>12} " for cell in cells)
            + f"{acceleration(summary[name]['acceleration_ratio'], times='x'):>14}"
        )
    lines.append("")
    for key, label in (("similarity", "similarity SIM"), ("optimality_gap", "optimality gap")):
        before, after = (number(summary["learning_law"][policy][key]) for policy in POLICIES)
        lines.append(f"{label:<16}{before} -> {after}")
    if summary.get("perturbed"):
        shares = (summary["perturbed"]["weight_share"][policy] for policy in POLICIES)
        before, after = (percent(share).replace("\u00a0", " ") for share in shares)
        lines.append(f"{'perturbed':<16}{before} -> {after} of the weight")
    return "\n".join(line.rstrip() for line in lines)


def set_rows(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The scores on every set, a row for each policy."""
    for name in SETS:
        for policy in POLICIES:
            values = summary[name][policy]
            ratio = summary[name]["acceleration_ratio"]
            yield {
                "set": name if policy == "conventional" else None,
                "policy": POLICY_NAMES[policy],
                "cells": [number(values[k]) for k in ("auc", "final_loss", "compression_ratio")]
                + ["" if policy == "conventional" else acceleration(ratio)],
            }


def law_rows(summary: Mapping[str, Any]) -> list[Row]:
    """The Learning Law, a column for each policy."""
    return _pair_rows(summary["learning_law"], _LAW_ROWS)


def scaling_rows(summary: Mapping[str, Any]) -> list[Row]:
    """The scaling law, a column for each policy and one for what B and beta gain (Table 2)."""
    rows = _pair_rows(summary["scaling_law"], _SCALING_ROWS)
    better = improvement(summary)
    for (key, _), (_, cells) in zip(_SCALING_ROWS, rows, strict=True):
        gain = getattr(better, key, None)
        cells.append("" if gain is None else percent(gain))
    return rows


def _pair_rows(
    pair: Mapping[str, Mapping[str, Any] | None], rows: tuple[tuple[str, str], ...]
) -> list[Row]:
    return [
        (label, [number((pair[policy] or {}).get(key)) for policy in POLICIES])
        for key, label in rows
    ]
