"""The form of the files in a workdir: documentation, and the checks of the writer and the reader.

A finished workdir holds

  config.json     the settings of the run, `CONFIG`
  data.json       a digest of the data, so that a resumed run recognises them
  metrics.jsonl   one line for each outer step, `METRICS`
  policy.npy      the best policy, float32: gamma [T, N]; of others weights [N], [G], or rows
  analysis.npz    the arrays that the figures show, `ARRAYS`
  samples.json    training examples with extreme weights, `SAMPLE`, if the task can show them
  summary.json    the results in numbers, `SUMMARY`
  documents.parquet, examples.parquet    of a policy that is not dense: the training documents,
                  where they come from, and the weights of their pieces
  scorer.npz, tokenizer.*    what `lljax score` weighs other data with
  smoothness.json how smooth the training is, measured before the first outer step, `SMOOTHNESS`
  transfer.json   what `lljax transfer` found
  figures/, report.html    what `lljax.report` makes of all this
  manifest.json   a SHA-256 of each of these files, written last: a run that fits it is finished

and what the engine needs to resume a run. The conventional policy gives all training examples the
same weight. The best one, "optimized" in names, has the smallest loss AUC on the validation set.

To store a new array, add a line to `ARRAYS`; for a number, to `SUMMARY` or `METRICS`. A file that
does not fit is refused when it is written and when it is read.
"""

import reprlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from lljax.artifacts.curation import OVER_RUNS
from lljax.artifacts.fields import (
    COUNT,
    NUMBER,
    NUMBERS,
    OBJECT,
    PNG,
    REAL,
    TEXT,
    TEXTS,
    TRUTH,
    WHOLE,
    Field,
    MissingField,
    SchemaError,
    check_fields,
    fields_below,
    optional,
)
from lljax.artifacts.fields import flatten as flatten
from lljax.artifacts.fields import lookup as lookup

CONFIG_FILE = "config.json"
DATA_FILE = "data.json"
METRICS_FILE = "metrics.jsonl"
POLICY_FILE = "policy.npy"
ARRAYS_FILE = "analysis.npz"
SAMPLES_FILE = "samples.json"
SUMMARY_FILE = "summary.json"
FIGURES_FOLDER = "figures"
REPORT_FILE = "report.html"
MANIFEST_FILE = "manifest.json"
DOCUMENTS_FILE = "documents.parquet"
EXAMPLES_FILE = "examples.parquet"
SCORER_FILE = "scorer.npz"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
TRANSFER_FILE = "transfer.json"
SMOOTHNESS_FILE = "smoothness.json"
RESULT_FILES = (
    CONFIG_FILE,
    DATA_FILE,
    METRICS_FILE,
    POLICY_FILE,
    ARRAYS_FILE,
    SAMPLES_FILE,
    SUMMARY_FILE,
    DOCUMENTS_FILE,
    EXAMPLES_FILE,
    SCORER_FILE,
    *TOKENIZER_FILES,
    SMOOTHNESS_FILE,
    TRANSFER_FILE,
)

POLICIES = ("conventional", "optimized")
SETS = ("desired", "validation", "test")
SAMPLE_LISTS = ("largest", "smallest")


class Array(NamedTuple):
    """An array in analysis.npz; `axes` are letters of `AXES`."""

    name: str
    axes: tuple[str, ...]
    meaning: str


# What a reader relies on. A task has more settings; the report lists them as they are.
CONFIG = (
    Field("task", TEXT, "the name of the task"),
    Field("seed", WHOLE, "of the data and the initial parameters"),
    Field("inner.num_steps", COUNT, "T, inner steps"),
    Field("outer.num_steps", COUNT, "outer steps at most"),
    optional("outer.train_share", NUMBER, "share of the training loss in the objective"),
)

# The optional columns are optional only for a reader: the writer writes all of them.
METRICS = (
    Field("outer_step", WHOLE, "0 is the conventional policy"),
    optional("objective", NUMBER, "what is minimised: a loss AUC, nats per inner step"),
    Field("desired_auc", NUMBER, "loss AUC on the desired set, nats per inner step"),
    Field("compression_ratio", NUMBER, "CR on the desired set"),
    Field("validation_auc", NUMBER, "loss AUC on the validation set, nats per inner step"),
    optional("desired_acceleration_ratio", NUMBER, "AR; null: never as low as conventional"),
    optional("validation_acceleration_ratio", NUMBER, "the same on the validation set"),
    optional("optimality_gap", NUMBER, "nats, mean over t; 0 at a stationary policy"),
    optional("step_size", NUMBER, "the outer learning rate after this step"),
    optional("accepted", TRUTH, "whether the trial policy lowered the objective"),
    optional("trial_objective", NUMBER, "the objective of the trial policy"),
    optional("best", TRUTH, "whether the validation AUC is the smallest so far"),
    optional("seconds", NUMBER, "that this outer step took"),
)

_SCORES = (
    Field("auc", NUMBER, "loss AUC: mean loss after inner steps 1 to T, nats per step"),
    Field("final_loss", NUMBER, "loss after T steps, nats"),
    Field("compression_ratio", NUMBER, "CR = log|V| / AUC"),
    optional("best_loss", NUMBER, "the smallest loss along the run, nats"),
    optional("best_loss_step", NUMBER, "the inner step at which it is met"),
)
_LAW = (
    Field("similarity", NUMBER, "SIM, mean over t"),
    Field("optimality_gap", NUMBER, "nats, mean over t; 0 at a stationary policy"),
    Field(
        "zero_weight_share_of_noncontributive",
        NUMBER,
        "share of the examples with CT <= 0 that have no weight, mean over t",
    ),
    optional(
        "redundant_share_of_contributive",
        NUMBER,
        "share of the examples with CT > 0 that have no weight, mean over t",
    ),
)
_FIT = (
    optional("L0", NUMBER, "nats"),
    optional("B", NUMBER, "steps; small is fast"),
    optional("beta", NUMBER, "large is fast"),
    optional("t0", NUMBER, "steps"),
    optional("r2", NUMBER, "quality of the fit"),
)
SMOOTHNESS = (
    Field("params", NUMBER, "metasmoothness of theta_T, at most 1; null: a run diverges"),
    Field("losses", NUMBER, "the same of the desired-loss curve"),
    Field("step", REAL, "h, how far the weights were changed"),
    Field("least", REAL, "a gradient of less smooth training may mislead"),
    Field("overshoot", NUMBER, "predicted change of the AUC over that of runs; null: one diverges"),
    Field("most", REAL, "a gradient that predicts more misleads"),
)
SUMMARY = (
    Field("task", TEXT, "the name of the task"),
    Field("seed", WHOLE, "of the data and the initial parameters"),
    Field("device", TEXT, "where the run was computed"),
    Field("versions", OBJECT, "version by package"),
    Field("seconds", NUMBERS, "time by part of the run"),
    Field("inner_steps", COUNT, "T"),
    Field("outer_steps", WHOLE, "outer steps that were made"),
    Field("best_outer_step", WHOLE, "whose policy is the best; 0 is the conventional policy"),
    optional("finished", TEXT, "when the run ended, in UTC"),
    optional("command", TEXT, "the command line that made it"),
    optional("num_train", WHOLE, "N, training examples"),
    *(optional(f"num_{of}", WHOLE, f"examples of the {of} set") for of in SETS),
    optional("facts", TEXTS, "what the task says of itself, for the line under the title"),
    optional("data", TEXTS, "what became of the data, in sentences"),
    *OVER_RUNS,
    optional("vocab_size", NUMBER, "|V|; 2 for a binary label"),
    optional("zero_weight_threshold", NUMBER, "a weight up to it counts as zero; uniform: 1"),
    *(
        field
        for of in SETS
        for policy in POLICIES
        for field in fields_below(f"{of}.{policy}", _SCORES)
    ),
    *(
        Field(f"{of}.acceleration_ratio", NUMBER, "AR; null: never as low as conventional")
        for of in SETS
    ),
    *(
        optional(
            f"{of}.conventional_reaches_at",
            NUMBER,
            "the first step at which the conventional loss is at its own final value",
        )
        for of in SETS
    ),
    *(field for policy in POLICIES for field in fields_below(f"learning_law.{policy}", _LAW)),
    *(
        Field(f"scaling_law.{policy}", OBJECT, "L(t) = L0 + (B/t)^beta, t > t0; null: no fit")
        for policy in POLICIES
    ),
    *(field for policy in POLICIES for field in fields_below(f"scaling_law.{policy}", _FIT)),
    optional("scaling_law.improvement", OBJECT, "of B and beta (Table 2); null: no fit of both"),
    *(optional(f"smoothness.{name}", kind, meaning) for name, kind, meaning, _ in SMOOTHNESS),
    optional("perturbed", OBJECT, "only if some training examples are perturbed"),
    Field("perturbed.examples", NUMBER, "their share of the training set"),
    *(
        Field(f"perturbed.weight_share.{policy}", NUMBER, "their share of the weight, mean over t")
        for policy in POLICIES
    ),
)

SAMPLE = (
    Field("example", WHOLE, "n, its index in the training set"),
    Field("weight", REAL, "under the best policy, mean over t; uniform: 1"),
    optional("perturbed", TRUTH, "whether it is a perturbed example"),
    # At least one of the two.
    optional("text", TEXT, "the example as a text"),
    optional("image", PNG, "the example as a picture, in base64"),
)

AXES = {
    "T": "inner steps",
    "T+1": "the parameters before each inner step, and after the last one",
    "S": "the inner steps at which the Learning Law is measured",
    "P": "policies along the optimisation: the conventional one first, the best one last",
    "G": "edges of the bins of relative weights",
    "G-1": "bins of relative weights",
    "H": "inner steps of the heatmap",
    "M": "contributive examples of the heatmap",
    "N": "training examples",
}

# No array is required: without it, the report leaves out the figures that need it.
ARRAYS = {
    array.name: array
    for array in (
        Array("law_steps", ("S",), "which inner steps these are, rising; absent: all of them"),
        *(
            Array(f"{policy}_{of}_losses", ("T+1",), f"mean loss on the {of} set, nats")
            for policy in POLICIES
            for of in SETS
        ),
        Array("path_outer_step", ("P",), "the outer step of each policy"),
        Array("path_compression_ratio", ("P",), "CR on the test set"),
        Array("path_similarity", ("P",), "SIM, mean over t"),
        Array("path_similarity_curve", ("P", "S"), "SIM at each measured step"),
        Array("path_desired_losses", ("P", "T+1"), "mean loss on the desired set, nats"),
        Array("path_zero_weight_share", ("P",), "share of CT <= 0 without weight, mean over t"),
        Array("path_zero_weight_curve", ("P", "S"), "the same at each measured step"),
        Array("path_learned_counts", ("P", "G-1"), "learned examples by relative weight"),
        Array("learned_edges", ("G",), "of those bins: gamma[t, n] / max over n of gamma[t, n]"),
        Array("heatmap_steps", ("H",), "which inner steps these are, rising"),
        Array("heatmap_weights", ("H", "M"), "N gamma[t, n] under the best policy; uniform: 1"),
        Array("perturbed", ("N",), "1 for a perturbed example, 0 for a clean one"),
        Array("perturbed_share", ("P", "T"), "weight of the perturbed examples"),
        Array("total_weights", ("N",), "weight under the best policy, mean over t; uniform: 1"),
    )
}
STEP_ARRAYS = ("law_steps", "heatmap_steps")


def check_config(config: Any) -> None:
    """Checks what a reader needs of config.json; raises SchemaError."""
    check_fields(config, CONFIG)


def check_metrics(line: Any, complete: bool = False) -> None:
    """Checks one line of metrics.jsonl.

    Args:
      line: column -> value.
      complete: whether it must have exactly the columns of the schema, as the writer's lines do.

    Raises:
      SchemaError: the line does not fit.
    """
    check_fields(line, METRICS)
    if complete:
        names = [column.name for column in METRICS]
        for name in names:
            if name not in line:
                raise MissingField(name)
        _refuse_unknown(line, names, "column", "METRICS")


def check_summary(summary: Any) -> None:
    """Checks summary.json, which may hold more than the schema says; raises SchemaError."""
    check_fields(summary, SUMMARY)


def check_arrays(arrays: Mapping[str, np.ndarray], num_steps: int) -> None:
    """Checks the arrays of analysis.npz.

    Args:
      arrays: name -> array. Each axis but those of T has the size that it first has here.
      num_steps: T.

    Raises:
      SchemaError: an array is not in the schema, or does not fit.
    """
    _refuse_unknown(arrays, ARRAYS, "array", "ARRAYS")
    sizes = {"T": num_steps, "T+1": num_steps + 1}
    if "law_steps" not in arrays:
        sizes["S"] = num_steps
    for name, axes, _ in ARRAYS.values():
        if name not in arrays:
            continue
        shape, dtype = arrays[name].shape, arrays[name].dtype
        if len(shape) == len(axes):
            for letter, size in zip(axes, shape, strict=True):
                sizes.setdefault(letter, size)
            if "G-1" in axes:
                sizes.setdefault("G", sizes["G-1"] + 1)
        expected = tuple(sizes.get(letter, "any") for letter in axes)
        if shape != expected or dtype.kind not in "biuf":
            raise SchemaError(
                f"`{name}` must be numbers of shape ({', '.join(axes)}) = {expected}; "
                f"got {dtype} of shape {shape}"
            )
    for name in STEP_ARRAYS:
        steps = arrays.get(name, np.arange(1))
        inside = steps.size and steps[0] >= 0 and steps[-1] < num_steps
        if not inside or not (np.diff(steps) > 0).all():
            raise SchemaError(
                f"`{name}` must be rising inner steps in 0 .. T-1 = {num_steps - 1}; got {steps}"
            )


def check_samples(samples: Any) -> None:
    """Checks samples.json: lists of `SAMPLE`s under `SAMPLE_LISTS`; raises SchemaError."""
    for name in SAMPLE_LISTS:
        if not isinstance(samples, Mapping) or name not in samples:
            raise MissingField(name)
        if not isinstance(samples[name], list):
            raise SchemaError(f"`{name}` must be a list; got {reprlib.repr(samples[name])}")
        for index, sample in enumerate(samples[name]):
            where = f"{name}[{index}]"
            if not isinstance(sample, Mapping):
                raise SchemaError(f"`{where}` must be an object; got {reprlib.repr(sample)}")
            check_fields(sample, SAMPLE, f"{where}.")
            if "text" not in sample and "image" not in sample:
                raise SchemaError(f"`{where}` must have a `text` or an `image`")


def _refuse_unknown(names: Collection[str], known: Collection[str], what: str, where: str) -> None:
    for name in names:
        if name not in known:
            raise SchemaError(f"the schema has no {what} `{name}`: add it to {where} in {__name__}")
