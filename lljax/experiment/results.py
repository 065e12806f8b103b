"""Reads a finished workdir back, and refuses a damaged one in words."""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lljax.experiment.errors import UserError

SETS = ("desired", "validation", "test")
POLICIES = ("conventional", "optimized")
CURE = "The same `lljax run` command on this workdir continues the run and writes it again."

_CONFIG = ("task", "seed", "inner.num_steps", "outer.num_steps")
_METRICS = ("outer_step", "auc", "compression_ratio", "validation_auc")
_NUMBERS = (
    *("inner_steps", "outer_steps", "best_outer_step"),
    *(f"{s}.{p}.{k}" for s in SETS for p in POLICIES
      for k in ("auc", "final_loss", "compression_ratio")),
    *(f"{s}.acceleration_ratio" for s in SETS),
    *(f"learning_law.{p}.{k}" for p in POLICIES
      for k in ("similarity", "optimality_gap", "zero_weight_share_of_noncontributive")),
)  # fmt: skip
_TREES = ("versions", "seconds", *(f"scaling_law.{policy}" for policy in POLICIES))
_SUMMARY = ("task", "seed", "device", *_NUMBERS, *_TREES)
# Of analysis.npz. T is known, the other letters take the size they first have. No array is
# required: a task without one of them has a report without the figure that draws it.
_SHAPES: dict[str, tuple[str, ...]] = {
    **{f"{policy}_{name}_losses": ("T+1",) for policy in POLICIES for name in SETS},
    "path_outer_step": ("P",),
    "path_compression_ratio": ("P",),
    "path_similarity": ("P",),
    "path_similarity_curve": ("P", "T"),
    "path_desired_losses": ("P", "T+1"),
    "path_zero_weight_share": ("P",),
    "path_zero_weight_curve": ("P", "T"),
    "path_learned_counts": ("P", "G-1"),
    "learned_edges": ("G",),
    "heatmap_steps": ("S",),
    "heatmap_weights": ("S", "M"),
}


@dataclasses.dataclass(frozen=True)
class Results:
    """What a finished run left in its workdir.

    Attributes:
      config: config.json.
      metrics: the columns of metrics.jsonl, each [outer steps + 1]; null is NaN.
      summary: summary.json.
      arrays: analysis.npz. T inner steps; P policies along the optimisation, the first the
        conventional one, the last the one that is kept.
    """

    config: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    summary: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.summary["inner_steps"]

    def kept_row(self) -> int | None:
        """The row of `metrics` that holds the kept outer step."""
        rows = np.flatnonzero(self.metrics["outer_step"] == self.summary["best_outer_step"])
        return int(rows[0]) if rows.size else None


def load_results(workdir: Path) -> Results:
    """Reads config.json, metrics.jsonl, summary.json and analysis.npz of a workdir.

    Raises:
      UserError: `workdir` is none, or a file is missing, half-written or of the wrong form; the
        message names the file and the cure.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir} is not a directory.")
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} holds no config.json: it is not a workdir of `lljax run`.")
    if not (workdir / "summary.json").is_file():
        raise UserError(f"{workdir} holds no summary.json: the run has not finished. {CURE}")
    config = _read_object(workdir / "config.json", _CONFIG)
    summary = _read_object(workdir / "summary.json", _SUMMARY)
    for keys, kinds, what in (
        (_NUMBERS, (int, float), "a number or null"),
        (_TREES, dict, "an object or null"),
    ):
        for key in keys:
            value = _lookup(summary, key)
            if value is not None and not isinstance(value, kinds):
                raise UserError(
                    f"{workdir / 'summary.json'}: `{key}` must be {what}; got {value!r}. {CURE}"
                )
    num_steps = summary["inner_steps"]
    if not isinstance(num_steps, int) or num_steps < 1:
        raise UserError(
            f"{workdir / 'summary.json'}: `inner_steps` must be a positive integer; "
            f"got {num_steps!r}. {CURE}"
        )
    metrics = _read_metrics(workdir / "metrics.jsonl")
    return Results(config, metrics, summary, _read_arrays(workdir / "analysis.npz", num_steps))


def _lookup(tree: Any, key: str) -> Any:
    """The value under a dotted key; KeyError when there is none."""
    for part in key.split("."):
        if not isinstance(tree, dict):
            raise KeyError(key)
        tree = tree[part]
    return tree


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path} is missing. {CURE}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


def _parse_object(text: str, where: str, required: tuple[str, ...]) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is no valid JSON ({error.msg} at character {error.pos}): it is "
            f"half-written or damaged. {CURE}"
        ) from None
    for key in required:
        try:
            _lookup(value, key)
        except KeyError:
            raise UserError(
                f"{where} has no `{key}`: it is half-written or was written by another program. "
                f"{CURE}"
            ) from None
    return value


def _read_object(path: Path, required: tuple[str, ...]) -> dict[str, Any]:
    return _parse_object(_read_text(path), str(path), required)


def _read_metrics(path: Path) -> dict[str, np.ndarray]:
    rows = {}
    for index, line in enumerate(_read_text(path).splitlines(), start=1):
        row = _parse_object(line, f"{path}, line {index}", _METRICS)
        try:
            values = [float("nan") if row[key] is None else float(row[key]) for key in _METRICS]
        except (TypeError, ValueError):
            raise UserError(
                f"{path}, line {index}: {', '.join(_METRICS)} must be numbers or null. {CURE}"
            ) from None
        # A run that was killed may have written an outer step twice; the later line counts.
        rows[values[0]] = values
    if not rows:
        raise UserError(f"{path} is empty. {CURE}")
    columns = np.array([rows[step] for step in sorted(rows)]).T
    return dict(zip(_METRICS, columns, strict=True))


def _read_arrays(path: Path, num_steps: int) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path} is missing. {CURE}")
    try:
        # Reading every array now finds a truncated file here and not inside a figure.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is half-written or damaged ({error}). {CURE}") from None
    sizes = {"T": num_steps, "T+1": num_steps + 1}
    for key, letters in _SHAPES.items():
        if key not in arrays:
            continue
        shape = arrays[key].shape
        if len(shape) == len(letters):
            for letter, size in zip(letters, shape, strict=True):
                sizes.setdefault(letter, size)
            if "G-1" in letters:
                sizes.setdefault("G", sizes["G-1"] + 1)
        expected = tuple(sizes.get(letter, "any") for letter in letters)
        if shape != expected or not np.issubdtype(arrays[key].dtype, np.number):
            raise UserError(
                f"{path}: `{key}` must be numbers of shape ({', '.join(letters)}) = {expected}; "
                f"got {arrays[key].dtype} of shape {shape}. {CURE}"
            )
    return arrays
