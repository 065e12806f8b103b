"""The report of a finished run: figures, one self-contained HTML page, a table for the terminal."""

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2

from lljax.experiment import captions, figures
from lljax.experiment.captions import acceleration, is_number, number, percent
from lljax.experiment.config import flatten
from lljax.experiment.errors import UserError
from lljax.experiment.results import POLICIES, SAMPLE_LISTS, SETS, Results, load_results
from lljax.experiment.workdir import write_atomically

LAW_ROWS = (
    ("similarity", "Similarity of contributions, SIM (mean over t)"),
    ("optimality_gap", "Optimality gap, nats (mean over t; 0 at a stationary policy)"),
    ("zero_weight_share_of_noncontributive", "Share of examples with CT ≤ 0 that get no weight"),
)
SCALING_ROWS = (
    ("L0", "L0, nats"),
    ("t0", "t0, steps"),
    ("B", "B, steps"),
    ("beta", "β"),
    ("r2", "r²"),
)
LONGEST_TEXT = 600  # characters of a training text that are shown


def render(workdir: Path | str, pdf: bool = False) -> Path:
    """Writes figures/*.png and report.html into a finished workdir.

    Everything is drawn before the first file is touched, and each file is replaced in one go: an
    error or a kill leaves the old report or the new one, never half of one.

    Args:
      workdir: what `lljax run` wrote.
      pdf: also write each figure as a vector PDF beside its PNG.

    Returns:
      The path of report.html.

    Raises:
      UserError: the workdir is unfinished, unreadable or damaged, or cannot be written to.
    """
    workdir = Path(workdir)
    results = load_results(workdir)
    drawn: list[dict[str, Any]] = []
    left_out, files = [], {}
    for spec in figures.FIGURES:
        reason = spec.reason_left_out(results)
        if reason is not None:
            left_out.append({"name": spec.name, "sentence": f"{spec.title}: left out, {reason}"})
            continue
        figure = figures.draw_figure(spec, results)
        for kind in ("png", "pdf") if pdf else ("png",):
            files[f"{spec.name}.{kind}"] = figures.encode_figure(figure, kind)
        drawn.append(
            {
                "name": spec.name,
                "title": spec.title,
                "caption": spec.caption(results),
                # At one size in print, all figures have letters of one size.
                "width": round(90 * figure.get_figwidth()),
                "image": base64.b64encode(files[f"{spec.name}.png"]).decode("ascii"),
            }
        )
    page = _page(results, drawn, left_out)
    try:
        (workdir / "figures").mkdir(exist_ok=True)
        for spec in figures.FIGURES:
            # A figure of an earlier report that this one leaves out would contradict it.
            for kind in ("png", "pdf"):
                if f"{spec.name}.png" not in files:
                    (workdir / "figures" / f"{spec.name}.{kind}").unlink(missing_ok=True)
        for name, content in files.items():
            write_atomically(workdir / "figures" / name, content)
        write_atomically(workdir / "report.html", page.encode("utf-8"))
    except OSError as error:
        raise UserError(f"the report cannot be written to {workdir}: {error}.") from error
    return workdir / "report.html"


def summary_table(summary: Mapping[str, Any]) -> str:
    """The result of a run for a terminal: ASCII, at most 80 columns, no newline at the end.

    Args:
      summary: summary.json.
    """
    lines = [
        f"{summary['task']}, seed {summary['seed']}: T = {summary['inner_steps']} inner steps, "
        f"outer step {summary['best_outer_step']} of {summary['outer_steps']} kept",
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


def _page(results: Results, drawn: list[dict[str, Any]], left_out: list[dict[str, str]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    summary = results.summary
    return environment.get_template("report.html").render(
        summary=summary,
        title=summary["task"].replace("_", " "),
        key_facts=_key_facts(results),
        headline=captions.headline(results),
        sets=list(_set_rows(summary)),
        law=_pair_rows(summary["learning_law"], LAW_ROWS),
        law_steps=captions.law_steps_sentence(results),
        scaling=_scaling_rows(summary),
        figures=drawn,
        left_out=left_out,
        samples=_samples(results),
        facts=_facts(results),
    )


def _set_rows(summary: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name in SETS:
        for policy, label in zip(POLICIES, ("conventional", "optimised"), strict=True):
            values = summary[name][policy]
            ratio = summary[name]["acceleration_ratio"]
            yield {
                "set": name if policy == "conventional" else None,
                "policy": label,
                "cells": [number(values[k]) for k in ("auc", "final_loss", "compression_ratio")]
                + ["" if policy == "conventional" else acceleration(ratio)],
            }


def _pair_rows(
    pair: Mapping[str, Mapping[str, Any] | None], rows: tuple[tuple[str, str], ...]
) -> list[tuple[str, list[str]]]:
    """Rows of a table with one column a policy."""
    return [
        (label, [number((pair[policy] or {}).get(key)) for policy in POLICIES])
        for key, label in rows
    ]


def _scaling_rows(summary: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """As `_pair_rows`, with a column for the improvement of B and beta (paper, Table 2)."""
    rows = _pair_rows(summary["scaling_law"], SCALING_ROWS)
    better = captions.improvement(summary)
    for (key, _), (_, cells) in zip(SCALING_ROWS, rows, strict=True):
        gain = getattr(better, key, None)
        cells.append("" if gain is None else percent(gain))
    return rows


def _key_facts(results: Results) -> list[str]:
    """The run in a line, under the title."""
    summary, size = results.summary, (results.config.get("data") or {}).get("num_train")
    words = results.vocab_size
    return [
        f"seed {summary['seed']}",
        *([f"{size} training examples"] if size else []),
        # Two is the number of a binary label's values.
        *([f"vocabulary of {words}"] if words and words > 2 else []),
        f"{summary['inner_steps']} inner steps",
        f"{summary['outer_steps']} outer steps",
        str(summary["device"]),
    ]


def _samples(results: Results) -> list[tuple[str, list[dict[str, Any]]]]:
    """The columns of training texts: a title and what is shown of each."""
    return [
        (
            f"{key.capitalize()} weight",
            [
                {
                    "weight": f"{sample['weight']:.3g}×",  # noqa: RUF001
                    "example": sample["example"],
                    "perturbed": sample.get("perturbed"),
                    "text": _shown(sample["text"]),
                }
                for sample in results.samples[key]
            ],
        )
        for key in SAMPLE_LISTS
        if results.samples.get(key)
    ]


def _shown(text: str) -> str:
    """Anybody's text, fit to be shown: on one line, cut, without control characters.

    >>> _shown("Once\\n upon\\x07 a time")
    'Once upon\ufffd a time'
    """
    # Lone surrogates, which JSON can hold and UTF-8 cannot, are replaced as well.
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", " ".join(text.split()))
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT].rstrip()} …"


def _facts(results: Results) -> list[tuple[str, list[tuple[str, str]]]]:
    """What one needs to run this again: sections of (name, value)."""
    summary = results.summary
    seconds = [
        (key, f"{value:.1f} s" if is_number(value) else "-")
        for key, value in (summary["seconds"] or {}).items()
    ]
    return [
        ("Configuration", _settings(results.config)),
        ("Versions", _settings(summary["versions"] or {})),
        ("Device and time", [("device", str(summary["device"])), *seconds]),
    ]


def _settings(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, "none" if value is None else str(value)) for key, value in flatten(tree).items()]
