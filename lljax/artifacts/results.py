"""Reads a finished workdir back, and refuses a damaged one in words."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lljax.artifacts import schema
from lljax.artifacts.curation import check_transfer
from lljax.artifacts.manifest import wrong_files
from lljax.artifacts.reading import (
    Unreadable,
    check_absent,
    parse_json,
    read_npz,
    read_text,
)
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
      transfer: transfer.json; empty where there is none.
      samples: samples.json; empty if the task does not show its training examples.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    summary: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    transfer: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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
      UserError: there is no such workdir, or a file is missing, half-written, of the wrong form or
        not the one that the manifest knows. The message names the file and the cure.
    """
    config = load_settings(workdir)
    summary_path = workdir / schema.SUMMARY_FILE
    if not summary_path.is_file():
        lost = (workdir / schema.MANIFEST_FILE).exists()
        state = "it was lost" if lost else "the run has not finished"
        raise UserError(f"{workdir} holds no summary.json: {state}. {CURE}")
    summary = _read_json(summary_path, schema.check_summary)
    samples_path = workdir / schema.SAMPLES_FILE
    transfer_path = workdir / schema.TRANSFER_FILE
    results = Results(
        config,
        _read_metrics(workdir / schema.METRICS_FILE),
        summary,
        _read_arrays(workdir / schema.ARRAYS_FILE, summary["inner_steps"]),
        _read_json(samples_path, schema.check_samples) if samples_path.exists() else {},
        _read_json(transfer_path, check_transfer) if transfer_path.exists() else {},
    )
    # After the form of each file, whose faults say more.
    for name in wrong_files(workdir, schema.RESULT_FILES) or ():
        raise UserError(f"{workdir / name} is not as it was written: it is damaged. {CURE}")
    return results


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


def _read_json(path: Path, check: Callable[[Any], None]) -> dict[str, Any]:
    return _parse(_read(path, read_text), str(path), check)


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing. {CURE}") from None
    except OSError as error:
        check_absent(path, error)
        raise UserError(f"{path} cannot be read: {error.strerror}. {CURE}") from None
    except Unreadable as error:
        raise UserError(f"{path} is half-written or damaged ({error}). {CURE}") from None


def _parse(text: str, where: str, check: Callable[[Any], None]) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except Unreadable as error:
        raise UserError(f"{where} is {error}: it is half-written or damaged. {CURE}") from None
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
    for index, text in enumerate(_read(path, read_text).splitlines(), start=1):
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
    found = _read(path, read_npz)
    # Another version of lljax may have written arrays that this one does not know.
    arrays = {name: array for name, array in found.items() if name in schema.ARRAYS}
    _apply(lambda: schema.check_arrays(arrays, num_steps), str(path))
    # A run that measured the Learning Law at every step need not list the steps.
    arrays["law_steps"] = arrays.get("law_steps", np.arange(num_steps)).astype(int)
    return arrays
