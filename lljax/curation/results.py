"""What a run over drawn runs leaves: policy, curves, documents with their weights, and numbers."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import lljax
from lljax.artifacts import schema
from lljax.artifacts.files import write_atomically
from lljax.engine import summary
from lljax.engine.metrics import number
from lljax.tasks.origins import Origins
from lljax.tasks.problem import PolicyProblem, Problem


class Measured(NamedTuple):
    """The loss curves of one policy over fresh runs: by set [R, T+1]."""

    curves: dict[str, np.ndarray]

    def mean(self) -> dict[str, np.ndarray]:
        """By set [T+1]."""
        return {name: curve.mean(axis=0) for name, curve in self.curves.items()}


def arrays(
    problem: PolicyProblem, shares: np.ndarray, measured: dict[str, Measured], num_steps: int
) -> dict[str, np.ndarray]:
    """What analysis.npz holds; `shares` are [S, N], by policy's name are curves."""
    found = {
        f"{policy}_{name}_losses": curve
        for policy in schema.POLICIES
        for name, curve in measured[policy].mean().items()
    }
    totals = shares.mean(axis=0) * shares.shape[1]
    found["total_weights"] = totals
    if problem.perturbed is not None:
        found["perturbed"] = problem.perturbed.astype(np.uint8)
    return found | {"law_steps": np.arange(1)}


def summarise(
    problem: PolicyProblem, shares: np.ndarray, measured: dict[str, Measured]
) -> dict[str, Any]:
    """The results part of summary.json; `shares` are [S, N]."""
    means = {policy: of.mean() for policy, of in measured.items()}
    law = dict.fromkeys(
        (
            "similarity",
            "optimality_gap",
            "zero_weight_share_of_noncontributive",
            "redundant_share_of_contributive",
        )
    )
    mean_share = shares.mean(axis=0)
    found: dict[str, Any] = {
        **summary.summarise_curves(problem, means),
        "learning_law": {policy: dict(law) for policy in schema.POLICIES},
        "scaling_law": summary.fit_scaling_law({p: means[p]["test"] for p in schema.POLICIES}),
        **summary.describe(problem),
        "runs": {
            "acceleration_ratios": ratios(measured["conventional"], measured["optimized"]),
            "effective_sample_size": number(lljax.effective_sample_size(mean_share)),
        },
    }
    if "oracle" in measured:
        of_oracle = ratios(measured["conventional"], measured["oracle"])
        found["runs"]["oracle_acceleration_ratios"] = of_oracle
    if problem.perturbed is not None:
        found["perturbed"] = {
            "examples": number(problem.perturbed.mean()),
            "weight_share": {
                "conventional": number(problem.perturbed.mean()),
                "optimized": number(mean_share[problem.perturbed].sum()),
            },
        }
    if problem.groups is not None:
        size = len(problem.group_names)
        of_groups = np.bincount(problem.groups, mean_share, size)
        conventional = np.bincount(problem.groups, minlength=size) / problem.num_train
        found["groups"] = {
            "names": list(problem.group_names),
            "weight_share": {
                "conventional": [number(share) for share in conventional],
                "optimized": [number(share) for share in of_groups],
            },
        }
    return found


def ratios(conventional: Measured, other: Measured) -> list[float | None]:
    """AR on the test set of each run, against the conventional run of the same key."""
    pairs = zip(conventional.curves["test"], other.curves["test"], strict=True)
    return [
        number(lljax.acceleration_ratio(jnp.asarray(ours), jnp.asarray(theirs)))
        for ours, theirs in pairs
    ]


def oracle_shares(problem: PolicyProblem) -> np.ndarray | None:
    """[1, N], uniform over the examples that are not damaged; None where that is not known."""
    if problem.perturbed is None or problem.perturbed.all():
        return None
    clean = ~problem.perturbed
    return (clean / clean.sum())[None].astype(np.float32)


def write_examples(
    root: Path, problem: PolicyProblem, shares: np.ndarray, scores: np.ndarray | None
) -> None:
    """Writes documents.parquet and examples.parquet.

    Args:
      root: the workdir.
      problem: of the run.
      shares: [S, N].
      scores: [N], of a scorer; the logarithms of the weights when None.
    """
    import pyarrow

    origins = problem.origins or own_origins(problem)
    weights = shares.mean(axis=0) * shares.shape[1]
    if scores is None:
        scores = np.log(np.maximum(weights, 1e-12))
    groups = pyarrow.array(list(origins.groups), pyarrow.string())
    texts = [None] * len(origins.sources) if origins.texts is None else list(origins.texts)
    _write_table(
        root / schema.DOCUMENTS_FILE,
        {
            "document": np.arange(len(origins.sources)),
            "source": pyarrow.array(list(origins.sources), pyarrow.string()),
            "offset": np.asarray(origins.offsets, np.int64),
            "group": groups,
            "text": pyarrow.array(texts, pyarrow.large_string()),
        },
    )
    shown = problem.show_example
    pieces = [shown(n) if shown else None for n in range(problem.num_train)]
    columns = {
        "example": np.arange(problem.num_train),
        "document": np.asarray(origins.document, np.int64),
        "place": np.asarray(origins.place, np.int64),
        "text": pyarrow.array(
            [p if isinstance(p, str) else None for p in pieces], pyarrow.string()
        ),
        "weight": weights.astype(np.float32),
        "score": np.asarray(scores, np.float32),
    }
    if problem.perturbed is not None:
        columns["perturbed"] = problem.perturbed
    _write_table(root / schema.EXAMPLES_FILE, columns)


def own_origins(problem: Problem) -> Origins:
    """Of a task that does not say where its examples come from: each is a document."""
    count = problem.num_train
    names = problem.group_names
    groups = [None] * count if problem.groups is None else [names[g] for g in problem.groups]
    return Origins(
        np.arange(count), np.zeros(count, int), None, ["train"] * count, np.arange(count), groups
    )


def _write_table(path: Path, columns: dict[str, Any]) -> None:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())
