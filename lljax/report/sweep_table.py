"""The table of a sweep, one row for each workdir, as in Table 2 of the paper (§4.6)."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lljax.artifacts.curves import complete
from lljax.artifacts.results import configured_num_train, load_results, load_settings
from lljax.artifacts.schema import POLICIES, SUMMARY_FILE
from lljax.errors import UserError
from lljax.report.sentences import acceleration_of, early_end, improvement, is_success
from lljax.report.tables import in_ascii
from lljax.report.words import is_number

NAME_WIDTH = 16
_ACCELERATED = ("test", "desired")
_OVERSTATED = (
    "~ AR overstates: the conventional loss itself is at its final value earlier than after T steps"
)
_NO_SUCCESS = "no success: no policy has a smaller validation loss AUC than the conventional one"
_WITHHELD = "gain -: the losses follow no scaling law; `improvement_withheld` of the rows says why"


def rows(workdirs: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The numbers of every run, ready for JSON: no NaN, null where there is no number.

    Args:
      workdirs: row name -> what `lljax run` wrote, or is still writing.

    Returns:
      A dictionary for each workdir, in order: `name`; `status`, which is "finished", "unfinished"
      or "unreadable"; `problem`, the sentence that says why it is not finished, or None; T and N if
      they are known. A finished run also has `success`, whether a policy was better than the
      conventional one; `vocab_size`, the acceleration ratios and, where they overstate, the steps
      at which the conventional losses are at their end; the test AUCs, the improvements of the
      scaling law, a sentence where they are withheld, and the perturbed examples' shares (1 is
      100 %).
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
    summary = complete(results.summary, results.arrays)
    better, withheld = improvement(results)
    fits = {policy: summary["scaling_law"][policy] or {} for policy in POLICIES}
    perturbed = summary.get("perturbed") or {"examples": None, "weight_share": {}}
    numbers = {
        "N": results.num_train,
        "vocab_size": results.vocab_size,
        **{f"{of}_acceleration_ratio": acceleration_of(summary, of) for of in _ACCELERATED},
        **{f"{of}_conventional_reaches_at": early_end(summary, of) for of in _ACCELERATED},
        **{f"{policy}_test_auc": summary["test"][policy]["auc"] for policy in POLICIES},
        "improvement_B": better and better.B,
        "improvement_beta": better and better.beta,
        **{f"{policy}_r2": fits[policy].get("r2") for policy in POLICIES},
        "perturbed_examples": perturbed["examples"],
        "perturbed_weight_share": perturbed["weight_share"].get("optimized"),
    }
    return (
        row
        | {"status": "finished", "success": is_success(summary)}
        | {"improvement_withheld": withheld or None}
        | {key: value if is_number(value) else None for key, value in numbers.items()}
    )


class _Column(NamedTuple):
    key: str
    head: str
    width: int  # with at least one space before the value
    form: str


_GAIN = "gain, %"
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
    _GAIN: (
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

    A run that has not finished, or cannot be read, is shown as such. What marks in a row mean, and
    why a run cannot be read, is given below the table.

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
        name, finished = in_ascii(row["name"]), row["status"] == "finished"
        if len(name) > width:
            name = f"{name[: width - 2]}.."
        groups = _GROUPS.items() if finished else [("", _COLUMNS[:2])]
        line = f"{name:<{width}}" + "".join(_cells(row, *group) for group in groups)
        lines.append(line if finished else f"{line}  {row['status']}")
        if row["status"] == "unreadable":
            notes += ["", *textwrap.wrap(in_ascii(f"{row['name']}: {row['problem']}"), 100)]
    marks = (
        (_OVERSTATED, any("~" in line for line in lines)),
        (_NO_SUCCESS, any(row.get("success") is False for row in rows)),
        (_WITHHELD, any(row.get("improvement_withheld") for row in rows)),
    )
    legend = [text for text, present in marks if present]
    return "\n".join([*lines, *([""] if legend else []), *legend, *notes])


def _cells(row: Mapping[str, Any], group: str, columns: Sequence[_Column]) -> str:
    if group == _GAIN and row.get("success") is False:
        return f"{'no success':>{sum(column.width for column in columns)}}"
    return "".join(f"{_cell(row, column):>{column.width}}" for column in columns)


def _cell(row: Mapping[str, Any], column: _Column) -> str:
    value = row.get(column.key)
    is_acceleration = column.key.endswith("acceleration_ratio")
    if value is None:
        return "never" if is_acceleration and row["status"] == "finished" else "-"
    if column.form == "%":
        # A coefficient B may get worse by orders of magnitude.
        return f"{100 * value:z.1f}" if abs(value) < 10 else f"{100 * value:.0e}"
    text = f"{value:{column.form}}"
    early = column.key.replace("acceleration_ratio", "conventional_reaches_at")
    if is_acceleration and row.get("success") and row.get(early) is not None:
        text = f"~{text}" if len(text) < column.width - 1 else f"~{value:.0f}"
    return text
