"""The table of a sweep, one row for each workdir, as in Table 2 of the paper (§4.6)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lljax.artifacts.results import configured_num_train, load_results, load_settings
from lljax.artifacts.schema import POLICIES, SUMMARY_FILE
from lljax.errors import UserError
from lljax.report.sentences import improvement
from lljax.report.words import is_number

NAME_WIDTH = 16


def rows(workdirs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The numbers of every run, ready for JSON: no NaN, null where there is no number.

    Args:
      workdirs: row name -> what `lljax run` wrote, or is still writing.

    Returns:
      A dictionary for each workdir, in order: `name`; `status`, which is "finished", "unfinished"
      or "unreadable"; `problem`, the sentence that says why it is not finished, or None; T and N if
      they are known. A finished run also has `vocab_size`, the acceleration ratios and test AUCs,
      the improvements of the scaling law and the perturbed examples' shares (1 is 100 %).
    """
    return [_row(name, Path(workdir)) for name, workdir in workdirs.items()]


def _row(name: str, workdir: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "status": "unreadable", "problem": None}
    try:
        settings = load_settings(workdir)
        row |= {"T": settings["inner"]["num_steps"], "N": configured_num_train(settings)}
        if not (workdir / SUMMARY_FILE).is_file():
            row["status"] = "unfinished"
        results = load_results(workdir)
    except UserError as error:
        return row | {"problem": str(error)}
    summary = results.summary
    better = improvement(summary)
    fits = {policy: summary["scaling_law"][policy] or {} for policy in POLICIES}
    perturbed = summary.get("perturbed") or {"examples": None, "weight_share": {}}
    numbers = {
        "N": results.num_train,
        "vocab_size": results.vocab_size,
        "test_acceleration_ratio": summary["test"]["acceleration_ratio"],
        "desired_acceleration_ratio": summary["desired"]["acceleration_ratio"],
        **{f"{policy}_test_auc": summary["test"][policy]["auc"] for policy in POLICIES},
        "improvement_B": better and better.B,
        "improvement_beta": better and better.beta,
        **{f"{policy}_r2": fits[policy].get("r2") for policy in POLICIES},
        "perturbed_examples": perturbed["examples"],
        "perturbed_weight_share": perturbed["weight_share"].get("optimized"),
    }
    return (
        row
        | {"status": "finished"}
        | {key: value if is_number(value) else None for key, value in numbers.items()}
    )


class _Column(NamedTuple):
    key: str
    head: str
    width: int  # with at least one space before the value
    form: str


# 84 columns in all, and NAME_WIDTH for the name: 100.
_GROUPS = {
    "": (
        _Column("T", "T", 6, ".0f"),
        _Column("N", "N", 7, ".0f"),
        _Column("vocab_size", "|V|", 6, ".0f"),
    ),
    "acceleration": (
        _Column("test_acceleration_ratio", "test", 7, ".2f"),
        _Column("desired_acceleration_ratio", "desired", 8, ".2f"),
    ),
    "test loss AUC": (
        _Column("conventional_test_auc", "conv.", 7, ".4f"),
        _Column("optimized_test_auc", "opt.", 7, ".4f"),
    ),
    "gain, %": (
        _Column("improvement_B", "B", 7, "%"),
        _Column("improvement_beta", "beta", 7, "%"),
    ),
    "r2 of fit": (
        _Column("conventional_r2", "conv.", 6, ".3f"),
        _Column("optimized_r2", "opt.", 6, ".3f"),
    ),
    "perturbed": (_Column("perturbed_weight_share", "weight, %", 10, "%"),),
}
_COLUMNS = tuple(column for columns in _GROUPS.values() for column in columns)


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a terminal: ASCII, at most 100 columns, no newline at the end.

    A run that has not finished, or cannot be read, is shown as such. The reason why a run cannot be
    read is given below the table.

    Args:
      rows: as from `rows`.
    """
    width = min(NAME_WIDTH, max([3, *(len(row["name"]) for row in rows)]))
    heads = (f"{head:>{sum(c.width for c in columns)}}" for head, columns in _GROUPS.items())
    lines = [
        " " * width + "".join(heads),
        f"{'run':<{width}}" + "".join(f"{column.head:>{column.width}}" for column in _COLUMNS),
    ]
    notes = []
    for row in rows:
        name, finished = row["name"], row["status"] == "finished"
        if len(name) > width:
            name = f"{name[: width - 2]}.."
        shown = _COLUMNS if finished else _COLUMNS[:2]
        line = f"{name:<{width}}" + "".join(f"{_cell(row, c):>{c.width}}" for c in shown)
        lines.append(line if finished else f"{line}  {row['status']}")
        if row["status"] == "unreadable":
            notes += ["", *textwrap.wrap(f"{row['name']}: {row['problem']}", 100)]
    return "\n".join([*lines, *notes]).encode("ascii", "replace").decode()


def _cell(row: Mapping[str, Any], column: _Column) -> str:
    value = row.get(column.key)
    if value is None:
        never = column.key.endswith("acceleration_ratio") and row["status"] == "finished"
        return "never" if never else "-"
    if column.form == "%":
        # A coefficient B may get worse by orders of magnitude.
        return f"{100 * value:z.1f}" if abs(value) < 10 else f"{100 * value:.0e}"
    return f"{value:{column.form}}"
