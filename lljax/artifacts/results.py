"""Reads a finished workdir back, and refuses a damaged one in words."""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lljax.artifacts import schema
from lljax.errors import UserError

CURE = "The same `lljax run` command on this workdir continues the run and writes it again."


@dataclasses.dataclass(frozen=True)
class Results:
    """What a finished run left in its workdir; the form is that of `lljax.artifacts.schema`.

    Attributes:
      config: config.json.
      metrics: the columns of metrics.jsonl, each [outer steps + 1]. NaN stands for null and for a
        column that a line does not have; true is 1 and false is 0.
      summary: summary.json.
      arrays: analysis.npz. `law_steps` is always there.
      samples: samples.json; empty if the task does not show its training examples.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    summary: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.summary["inner_steps"]

    @property
    def num_train(self) -> int | None:
        """N, if the run recorded it."""
        recorded = self.summary.get("num_train")
        return configured_num_train(self.config) if recorded is None else recorded

    @property
    def vocab_size(self) -> int | None:
        """|V|, if the run recorded it."""
        return self.summary.get("vocab_size")

    def best_row(self) -> int | None:
        """The row of `metrics` that holds the best outer step."""
        rows = np.flatnonzero(self.metrics["outer_step"] == self.summary["best_outer_step"])
        return int(rows[0]) if rows.size else None


def configured_num_train(config: Mapping[str, Any]) -> int | None:
    """N as config.json has it, if the data of the task have such a setting."""
    try:
        value = schema.lookup(config, "data.num_train")
    except KeyError:
        return None
    return value if schema.WHOLE.fits(value) else None


def load_results(workdir: Path) -> Results:
    """Reads config.json, metrics.jsonl, summary.json, analysis.npz and any samples.json.

    Raises:
      UserError: there is no such workdir, or a file is missing, half-written or of the wrong form.
        The message names the file and the cure.
    """
    config = load_settings(workdir)
    summary_path = workdir / schema.SUMMARY_FILE
    if not summary_path.is_file():
        raise UserError(f"{workdir} holds no summary.json: the run has not finished. {CURE}")
    summary = _read_json(summary_path, schema.check_summary)
    samples_path = workdir / schema.SAMPLES_FILE
    return Results(
        config,
        _read_metrics(workdir / schema.METRICS_FILE),
        summary,
        _read_arrays(workdir / schema.ARRAYS_FILE, summary["inner_steps"]),
        _read_json(samples_path, schema.check_samples) if samples_path.is_file() else {},
    )


def load_settings(workdir: Path) -> dict[str, Any]:
    """Reads config.json of a workdir, finished or not.

    Raises:
      UserError: there is no such workdir, or the file is unreadable. The message names it.
    """
    path = workdir / schema.CONFIG_FILE
    if not workdir.is_dir():
        raise UserError(f"{workdir} is not a directory.")
    if not path.is_file():
        raise UserError(f"{workdir} holds no config.json: it is not a workdir of `lljax run`.")
    return _read_json(path, schema.check_config)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing. {CURE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


def _read_json(path: Path, check: Callable[[Any], None]) -> dict[str, Any]:
    return _parse(_read_text(path), str(path), check)


def _parse(text: str, where: str, check: Callable[[Any], None]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is no valid JSON ({error.msg} at character {error.pos}): it is "
            f"half-written or damaged. {CURE}"
        ) from None
    _apply(lambda: check(value), where)
    return value


def _apply(check: Callable[[], None], where: str) -> None:
    """Turns what a check of the schema finds into words for the user."""
    try:
        check()
    except schema.MissingField as error:
        raise UserError(
            f"{where} has no `{error.key}`: it is half-written or was written by another program. "
            f"{CURE}"
        ) from None
    except schema.SchemaError as error:
        raise UserError(f"{where}: {error}. {CURE}") from None


def _check_metrics(line: Any) -> None:
    if isinstance(line, dict) and "auc" in line:  # as runs before 0.1.0 called it
        line.setdefault("desired_auc", line.pop("auc"))
    schema.check_metrics(line)


def _read_metrics(path: Path) -> dict[str, np.ndarray]:
    names = [column.name for column in schema.METRICS]
    rows = {}
    for index, text in enumerate(_read_text(path).splitlines(), start=1):
        line = _parse(text, f"{path}, line {index}", _check_metrics)
        # A run that was killed may have written an outer step twice; the later line counts.
        rows[line["outer_step"]] = [
            float("nan") if line.get(name) is None else float(line[name]) for name in names
        ]
    if not rows:
        raise UserError(f"{path} is empty. {CURE}")
    columns = np.array([rows[step] for step in sorted(rows)]).T
    return dict(zip(names, columns, strict=True))


def _read_arrays(path: Path, num_steps: int) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path} is missing. {CURE}")
    try:
        # Reading every array now finds a truncated file here and not inside a figure.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is half-written or damaged ({error}). {CURE}") from None
    # Another version of lljax may have written arrays that this one does not know.
    arrays = {name: array for name, array in found.items() if name in schema.ARRAYS}
    _apply(lambda: schema.check_arrays(arrays, num_steps), str(path))
    # A run that measured the Learning Law at every step need not list the steps.
    arrays["law_steps"] = arrays.get("law_steps", np.arange(num_steps)).astype(int)
    return arrays
