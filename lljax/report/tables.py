"""The tables of one run: one for the terminal, and the rows of those on the page."""

from collections.abc import Iterator, Mapping
from typing import Any

from lljax.artifacts.results import Results
from lljax.artifacts.schema import POLICIES, SETS
from lljax.report.curation import is_over_runs, table_lines
from lljax.report.sentences import (
    acceleration_of,
    early_end,
    improvement,
    is_rough,
    is_success,
    overshoots,
    rise,
)
from lljax.report.words import POLICY_NAMES, acceleration, number, percent
from lljax.safe_text import printable

SCORES = ("auc", "final_loss", "best_loss", "compression_ratio")
_LAW_ROWS = (
    ("similarity", "Similarity of contributions, SIM"),
    ("optimality_gap", "Optimality gap, nats"),
    ("zero_weight_share_of_noncontributive", "Share of examples with CT ≤ 0 that get no weight"),
)
_SCALING_ROWS = (
    ("L0", "L0, nats"),
    ("t0", "t0, steps"),
    ("B", "B, steps"),
    ("beta", "β"),
    ("r2", "r²"),
)

_LAW_LINES = (
    ("similarity", "similarity SIM", "mean / deviation of the contributions"),
    ("optimality_gap", "optimality gap", "nats, 0 at a stationary policy"),
)

Row = tuple[str, list[str]]


def summary_table(summary: Mapping[str, Any]) -> str:
    """The result of a run for a terminal: ASCII, at most 80 columns, no newline at the end.

    Args:
      summary: summary.json.
    """
    task = in_ascii(summary["task"])
    lines = [
        f"{task}, seed {summary['seed']}: T = {summary['inner_steps']} inner steps, "
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
            + f"{acceleration(acceleration_of(summary, name), times='x'):>14}"
        )
    lines += [
        "AUC: mean loss over inner steps 1 to T",
        "acceleration AR: T / the first inner step at the conventional final loss",
        *_warnings(summary),
        "",
    ]
    for key, label, meaning in () if is_over_runs(summary) else _LAW_LINES:
        before, after = (number(summary["learning_law"][policy][key]) for policy in POLICIES)
        lines.append(f"{label:<16}{f'{before} -> {after}':<26}{meaning}")
    if summary.get("perturbed"):
        shares = (summary["perturbed"]["weight_share"][policy] for policy in POLICIES)
        before, after = (percent(share).replace("\u00a0", " ") for share in shares)
        lines.append(f"{'perturbed':<16}{before} -> {after} of the weight")
    if is_over_runs(summary):
        lines += map(in_ascii, table_lines(summary))
    return "\n".join(line.rstrip() for line in lines)


def _warnings(summary: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers above do not say: ASCII lines of at most 80 columns."""
    if not is_success(summary):
        yield "No success: no outer step has a smaller validation loss AUC than conventional"
    for name in SETS:
        step = early_end(summary, name)
        if step is not None:
            verdict = "AR overstates" if is_success(summary) else "Note"
            yield f"{verdict}: conventional {name} loss is as low as its end at step {step}"
    for policy in POLICIES if is_success(summary) else POLICIES[:1]:
        rising = rise(summary, "test", policy)
        if rising is not None:
            best, step, final = rising
            yield (
                f"{POLICY_NAMES[policy].capitalize()} test loss rises: {number(best)} at step "
                f"{step}, {number(final)} at the end"
            )
    if is_rough(summary):
        score, least = (summary["smoothness"][key] for key in ("params", "least"))
        found = f"metasmoothness {score:.2f}, below {least}"
        if overshoots(summary):
            times = f"{summary['smoothness']['overshoot']:,.3g}"
            found = f"the gradient foretells {times} times the change of the AUC that happens"
        yield f"Rough training: {found}; see `lljax check`"


def in_ascii(text: str) -> str:
    """A text of a file for a terminal: no character that moves the cursor, or is not ASCII."""
    return printable(text).encode("ascii", "replace").decode()


def set_rows(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The scores on every set: its acceleration, and the cells of each policy."""
    for name in SETS:
        yield {
            "set": name,
            "acceleration": acceleration(acceleration_of(summary, name)),
            "overstated": is_success(summary) and early_end(summary, name) is not None,
            "policies": [
                (
                    POLICY_NAMES[policy],
                    [number(summary[name][policy].get(key)) for key in SCORES],
                )
                for policy in POLICIES
            ],
        }


def law_rows(summary: Mapping[str, Any]) -> list[Row]:
    """The Learning Law, a column for each policy."""
    return _pair_rows(summary["learning_law"], _LAW_ROWS)


def scaling_rows(results: Results) -> list[Row]:
    """The scaling law, a column for each policy and one for what B and beta gain (Table 2)."""
    rows = _pair_rows(results.summary["scaling_law"], _SCALING_ROWS)
    better, withheld = improvement(results)
    for (key, _), (_, cells) in zip(_SCALING_ROWS, rows, strict=True):
        gain = getattr(better, key, None)
        none = "-" if withheld and key in ("B", "beta") else ""
        cells.append(none if gain is None else percent(gain))
    return rows


def _pair_rows(
    pair: Mapping[str, Mapping[str, Any] | None], rows: tuple[tuple[str, str], ...]
) -> list[Row]:
    return [
        (label, [number((pair[policy] or {}).get(key)) for policy in POLICIES])
        for key, label in rows
    ]
