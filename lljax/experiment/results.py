"""Reads a finished workdir back, and refuses a damaged one in words."""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
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
# Only of a run whose training data are perturbed in part.
_PERTURBED = ("perturbed.examples", *(f"perturbed.weight_share.{p}" for p in POLICIES))
# Of analysis.npz. T is known, the other letters take the size they first have. No array is
# required: a task without one of them has a report without the figure that draws it.
_SHAPES: dict[str, tuple[str, ...]] = {
    "law_steps": ("S",),
    **{f"{policy}_{name}_losses": ("T+1",) for policy in POLICIES for name in SETS},
    "path_outer_step": ("P",),
    "path_compression_ratio": ("P",),
    "path_similarity": ("P",),
    "path_similarity_curve": ("P", "S"),
    "path_desired_losses": ("P", "T+1"),
    "path_zero_weight_share": ("P",),
    "path_zero_weight_curve": ("P", "S"),
    "path_learned_counts": ("P", "G-1"),
    "learned_edges": ("G",),
    "heatmap_steps": ("H",),
    "heatmap_weights": ("H", "M"),
    "perturbed": ("N",),
    "perturbed_share": ("P", "T"),
    "total_weights": ("N",),
}
SAMPLE_LISTS = ("largest", "smallest")
_SAMPLE: dict[str, Any] = {"example": int, "weight": (int, float), "text": str}


@dataclasses.dataclass(frozen=True)
class Results:
    """What a finished run left in its workdir.

    Attributes:
      config: config.json.
      metrics: the columns of metrics.jsonl, each [outer steps + 1]; null is NaN.
      summary: summary.json.
      arrays: analysis.npz. T inner steps, of which the Learning Law is measured at S, the
        `law_steps`; P policies along the optimisation, the first the conventional one, the last
        the one that is kept.
      samples: samples.json, lists of {example, weight, perturbed, text} under SAMPLE_LISTS; empty
        where the training examples are no texts.
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
    def vocab_size(self) -> int | None:
        """|V| of a language model, where the run recorded it."""
        return self.summary.get("vocab_size")

    def kept_row(self) -> int | None:
        """The row of `metrics` that holds the kept outer step."""
        rows = np.flatnonzero(self.metrics["outer_step"] == self.summary["best_outer_step"])
        return int(rows[0]) if rows.size else None


def load_results(workdir: Path) -> Results:
    """Reads config.json, metrics.jsonl, summary.json, analysis.npz and any samples.json.

    Raises:
      UserError: `workdir` is none, or a file is missing, half-written or of the wrong form; the
        message names the file and the cure.
    """
    config = load_settings(workdir)
    if not (workdir / "summary.json").is_file():
        raise UserError(f"{workdir} holds no summary.json: the run has not finished. {CURE}")
    summary = _read_summary(workdir / "summary.json")
    return Results(
        config,
        _read_metrics(workdir / "metrics.jsonl"),
        summary,
        _read_arrays(workdir / "analysis.npz", summary["inner_steps"]),
        _read_samples(workdir / "samples.json"),
    )


def load_settings(workdir: Path) -> dict[str, Any]:
    """Reads config.json of a workdir, finished or not.

    Raises:
      UserError: `workdir` is none, or the file is unreadable; the message names it.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir} is not a directory.")
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} holds no config.json: it is not a workdir of `lljax run`.")
    return _read_object(workdir / "config.json", _CONFIG)


def _read_summary(path: Path) -> dict[str, Any]:
    summary = _read_object(path, _SUMMARY)
    numbers = _NUMBERS
    if summary.get("perturbed") is not None:
        _require_keys(summary, str(path), _PERTURBED)
        numbers += _PERTURBED
    if "vocab_size" in summary:
        numbers += ("vocab_size",)
    for keys, kinds, what in (
        (numbers, (int, float), "a number or null"),
        (_TREES, dict, "an object or null"),
    ):
        for key in keys:
            value = _lookup(summary, key)
            if value is not None and not isinstance(value, kinds):
                raise UserError(f"{path}: `{key}` must be {what}; got {value!r}. {CURE}")
    num_steps = summary["inner_steps"]
    if not isinstance(num_steps, int) or num_steps < 1:
        raise UserError(
            f"{path}: `inner_steps` must be a positive integer; got {num_steps!r}. {CURE}"
        )
    return summary


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
    _require_keys(value, where, required)
    return value


def _require_keys(tree: Any, where: str, required: tuple[str, ...]) -> None:
    for key in required:
        try:
            _lookup(tree, key)
        except KeyError:
            raise UserError(
                f"{where} has no `{key}`: it is half-written or was written by another program. "
                f"{CURE}"
            ) from None


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
    # Runs that measured the Learning Law at every step need not list the steps.
    arrays.setdefault("law_steps", np.arange(num_steps))
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
        if shape != expected or arrays[key].dtype.kind not in "biuf":
            raise UserError(
                f"{path}: `{key}` must be numbers of shape ({', '.join(letters)}) = {expected}; "
                f"got {arrays[key].dtype} of shape {shape}. {CURE}"
            )
    for key in ("law_steps", "heatmap_steps"):
        steps = arrays.get(key, np.arange(1))
        inside = steps.size and steps[0] >= 0 and steps[-1] < num_steps
        if not inside or not (np.diff(steps) > 0).all():
            raise UserError(
                f"{path}: `{key}` must be rising inner steps in 0 .. T-1 = {num_steps - 1}; "
                f"got {steps}. {CURE}"
            )
    arrays["law_steps"] = arrays["law_steps"].astype(int)
    return arrays


def _read_samples(path: Path) -> dict[str, list[dict[str, Any]]]:
    if not path.is_file():
        return {}
    samples = _read_object(path, SAMPLE_LISTS)
    for key in SAMPLE_LISTS:
        if not isinstance(samples[key], list) or not all(map(_is_sample, samples[key])):
            raise UserError(
                f"{path}: `{key}` must be a list of objects with the numbers `example` and "
                f"`weight` and the string `text`. {CURE}"
            )
    return samples


def _is_sample(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kinds) for name, kinds in _SAMPLE.items()
    )
