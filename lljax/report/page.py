"""The page of a finished run: report.html, which needs no other file, and figures/."""

import base64
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from lljax.artifacts.curves import complete
from lljax.artifacts.files import write_atomically
from lljax.artifacts.results import Results, load_results
from lljax.artifacts.schema import (
    DATA_FILE,
    FIGURES_FOLDER,
    POLICIES,
    REPORT_FILE,
    SAMPLE_LISTS,
    SETS,
    flatten,
)
from lljax.errors import UserError
from lljax.report import figures
from lljax.report.curation import group_rows, is_over_runs, transfer_rows, transfer_sentence
from lljax.report.sentences import (
    early_end_sentence,
    headline,
    improvement,
    law_steps_sentence,
    rise_sentence,
    smoothness_sentence,
)
from lljax.report.tables import law_rows, scaling_rows, set_rows
from lljax.report.words import is_number
from lljax.safe_text import printable, without_secrets

LONGEST_TEXT = 600  # characters of a training example that are shown


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
    summary = complete(results.summary, results.arrays)
    results = dataclasses.replace(results, summary=summary)
    drawn: list[dict[str, Any]] = []
    left_out, files = [], {}
    for spec in figures.FIGURES:
        if not spec.applies(summary):
            continue
        reason = spec.reason_left_out(results)
        if reason is not None:
            left_out.append({"name": spec.name, "sentence": f"{spec.title}: left out, {reason}"})
            continue
        for kind in ("pdf", "png") if pdf else ("png",):
            # A new one for each kind: saving a figure moves its panels by fractions of a point.
            figure = figures.draw_figure(spec, results)
            files[f"{spec.name}.{kind}"] = figures.encode_figure(figure, kind)
        shown = {
            "name": spec.name,
            "title": spec.title,
            "caption": spec.caption(results),
            "width": _pixels(figure),
            "image": _base64(files[f"{spec.name}.png"]),
        }
        # Panels side by side could not be read on a phone.
        if figures.stack_figure(figure):
            stacked = _base64(figures.encode_figure(figure, "png"))
            shown |= {"stacked": stacked, "stacked_width": _pixels(figure)}
        drawn.append(shown)
    page = _fill_template(results, drawn, left_out, _data_digest(workdir))
    folder = workdir / FIGURES_FOLDER
    try:
        folder.mkdir(exist_ok=True)
        for spec in figures.FIGURES:
            # A figure of an earlier report that this one leaves out would contradict it.
            for kind in ("png", "pdf"):
                if f"{spec.name}.png" not in files:
                    (folder / f"{spec.name}.{kind}").unlink(missing_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
        write_atomically(workdir / REPORT_FILE, page.encode("utf-8"))
    except OSError as error:
        raise UserError(f"the report cannot be written to {workdir}: {error}.") from error
    return workdir / REPORT_FILE


def _pixels(figure: Figure) -> int:
    """In proportion to the figure, so that letters have one size in all figures."""
    return round(90 * figure.get_figwidth())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _data_digest(workdir: Path) -> str | None:
    """The beginning of the digest of the data in data.json, if there is one to be read."""
    try:
        return str(json.loads((workdir / DATA_FILE).read_text(encoding="utf-8"))["sha256"])[:16]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fill_template(
    results: Results,
    drawn: list[dict[str, Any]],
    left_out: list[dict[str, str]],
    digest: str | None,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    summary = results.summary
    return environment.get_template("page.html").render(
        summary=summary,
        title=_shown(summary["task"].replace("_", " ")),
        key_facts=_key_facts(results),
        headline=headline(results),
        sets=list(set_rows(summary)),
        set_notes=_set_notes(summary),
        smoothness=smoothness_sentence(summary),
        law=[] if is_over_runs(summary) else law_rows(summary),
        groups=group_rows(summary),
        data_lines=[without_secrets(_shown(line)) for line in summary.get("data") or []],
        transfer=transfer_rows(results.transfer),
        transfer_sentence=transfer_sentence(results.transfer) if results.transfer else "",
        law_steps=law_steps_sentence(results),
        scaling=scaling_rows(results),
        withheld=improvement(results)[1],
        figures=drawn,
        left_out=left_out,
        samples=_samples(results),
        details=_details(results, digest),
    )


def _set_notes(summary: Mapping[str, Any]) -> list[str]:
    """In which way the numbers of each set are less than they seem."""
    notes = []
    for name in SETS:
        found = [
            early_end_sentence(summary, name),
            *(rise_sentence(summary, name, policy) for policy in POLICIES),
        ]
        notes.append(" ".join(filter(None, found)))
    return list(filter(None, notes))


def _key_facts(results: Results) -> list[str]:
    """The run in one line, under the title."""
    summary, size = results.summary, results.num_train
    counts = [f"{summary[f'num_{of}']} {of}" for of in SETS if summary.get(f"num_{of}")]
    return [
        f"seed {summary['seed']}",
        *([f"{size} training examples"] if size else []),
        *([f"{', '.join(counts)} examples"] if counts else []),
        *(without_secrets(_shown(fact)) for fact in summary.get("facts", [])),
        f"{summary['inner_steps']} inner steps",
        f"{summary['outer_steps']} outer steps",
        _shown(summary["device"]),
        *([_shown(summary["finished"])] if summary.get("finished") else []),
    ]


def _samples(results: Results) -> list[tuple[str, list[dict[str, Any]]]]:
    """The columns of training examples: a title, and what is shown of each example."""
    return [
        (
            f"{key.capitalize()} weight",
            [
                {
                    "weight": f"{sample['weight']:.3g}×",  # noqa: RUF001
                    "example": sample["example"],
                    "perturbed": sample.get("perturbed"),
                    "text": _shown(sample.get("text", "")),
                    "image": sample.get("image"),
                }
                for sample in results.samples[key]
            ],
        )
        for key in SAMPLE_LISTS
        if results.samples.get(key)
    ]


def _shown(text: str) -> str:
    """A text from anywhere, made fit to be shown: one line, cut, without control characters.

    >>> _shown("Once\\n upon\\x07 a time")
    'Once upon\ufffd a time'
    """
    text = printable(" ".join(text.split()))
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT].rstrip()} …"


def _details(results: Results, digest: str | None) -> list[tuple[str, list[tuple[str, str]]]]:
    """What is needed to run this again: sections of (name, value)."""
    summary = results.summary
    seconds = [
        (key, f"{value:.1f} s" if is_number(value) else "-")
        for key, value in (summary["seconds"] or {}).items()
    ]
    counts = {"training": results.num_train} | {of: summary.get(f"num_{of}") for of in SETS}
    origin = {
        "command": summary.get("command"),
        "finished": summary.get("finished"),
        "examples": ", ".join(f"{count} {of}" for of, count in counts.items() if count) or None,
        "data, sha256": digest,
    }
    return [
        ("Origin", _settings({key: value for key, value in origin.items() if value})),
        ("Configuration", _settings(results.config)),
        ("Versions", _settings(summary["versions"] or {})),
        ("Device and time", _settings({"device": summary["device"], **dict(seconds)})),
    ]


def _settings(tree: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values, fit to be shown: an earlier lljax kept the secrets of URLs in them."""
    values = {key: "none" if value is None else str(value) for key, value in flatten(tree).items()}
    return [(printable(key), without_secrets(printable(value))) for key, value in values.items()]
