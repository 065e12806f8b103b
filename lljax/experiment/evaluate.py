"""What is measured of a policy: its loss curves, and the Learning Law along its training run."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import lljax
from lljax.experiment.problem import Problem
from lljax.experiment.results import POLICIES, SETS

# Exponentiated gradient never writes an exact zero, so "no weight" is a share of the uniform one.
ZERO_WEIGHT = 1e-3
LEARNED_EDGES = np.array([0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0])
HEATMAP_STEPS = 200
HEATMAP_EXAMPLES = 2048

Analysis = dict[str, jax.Array]


def build_monitor(problem: Problem, microbatch_size: int | None) -> Callable[[jax.Array], Analysis]:
    """The function that an outer step is judged by: policy -> desired and validation losses [T+1].

    The test set is not among them: nothing that steers the run sees it.
    """

    def monitor(policy: jax.Array) -> Analysis:
        def observe(params, _):
            return {
                "desired": problem.loss_fn(params, problem.desired).mean(),
                "validation": problem.loss_fn(params, problem.validation).mean(),
            }

        return _unroll(problem, policy, observe, microbatch_size)

    return jax.jit(monitor)


def build_analysis(
    problem: Problem, microbatch_size: int | None
) -> Callable[[jax.Array], Analysis]:
    """The full measurement of a policy: loss curves on all sets and the Learning Law, [T+1, ...].

    Contributions are those to the objective, which the law speaks of: with a train share of 0 it
    is the desired loss.
    """
    threshold = ZERO_WEIGHT / problem.num_train

    def analyse(policy: jax.Array) -> Analysis:
        def observe(params, row):
            losses = {name: problem.loss_fn(params, getattr(problem, name)).mean() for name in SETS}
            contributions = lljax.contributions(
                problem.loss_fn,
                params,
                problem.train,
                problem.objective,
                microbatch_size=microbatch_size,
            )
            train_losses = problem.loss_fn(params, problem.train)
            return losses | {
                "similarity": lljax.contribution_similarity(contributions, row, threshold),
                "zero_weight": lljax.zero_weight_share(contributions, row, threshold),
                "redundant": lljax.redundant_share(contributions, row, threshold),
                "learned": lljax.learned_weight_counts(train_losses, row, LEARNED_EDGES[1:]),
                "contributive": contributions > 0,
            }

        return _unroll(problem, policy, observe, microbatch_size)

    return jax.jit(analyse)


def _unroll(problem: Problem, policy: jax.Array, observe, microbatch_size: int | None) -> Analysis:
    _, seen = lljax.unroll(
        problem.loss_fn,
        problem.optimizer,
        policy,
        problem.params,
        problem.train,
        observe,
        microbatch_size=microbatch_size,
    )
    return seen


def snapshot(analysis: Analysis, vocab_size: int) -> dict[str, np.ndarray]:
    """The part of an analysis that figures 6 to 9 show of every policy along the optimisation."""
    # The last entry belongs to theta_T, which starts no step.
    similarity, zero_weight = (
        np.asarray(analysis[name])[:-1] for name in ("similarity", "zero_weight")
    )
    return {
        "compression_ratio": np.asarray(lljax.compression_ratio(analysis["test"], vocab_size)),
        "similarity": _mean(similarity),
        "similarity_curve": similarity,
        "desired_losses": np.asarray(analysis["desired"]),
        "zero_weight_share": _mean(zero_weight),
        "zero_weight_curve": zero_weight,
        "learned_counts": np.diff(np.asarray(analysis["learned"])[:-1].sum(axis=0), prepend=0),
    }


def learning_law(analysis: Analysis, gap: float | None) -> dict[str, float | None]:
    """The Learning Law's numbers of one policy, for summary.json: means over the inner steps."""
    means = {
        name: _mean(analysis[name][:-1]) for name in ("similarity", "zero_weight", "redundant")
    }
    return {
        "similarity": number(means["similarity"]),
        "optimality_gap": gap,
        "zero_weight_share_of_noncontributive": number(means["zero_weight"]),
        "redundant_share_of_contributive": number(means["redundant"]),
    }


def collect_arrays(
    analyses: dict[str, Analysis],
    policy: np.ndarray,
    path: dict[int, dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """What analysis.npz holds.

    Args:
      analyses: of the conventional and the kept policy.
      policy: the kept one [T, N].
      path: snapshots by outer step, the conventional policy's first, the kept one's last.
    """
    arrays = {
        f"{p}_{name}_losses": np.asarray(analyses[p][name]) for p in POLICIES for name in SETS
    }
    for key in next(iter(path.values())):
        arrays[f"path_{key}"] = np.stack([part[key] for part in path.values()])
    contributive = np.asarray(analyses["optimized"]["contributive"])
    return {
        **arrays,
        "path_outer_step": np.array(list(path)),
        "learned_edges": LEARNED_EDGES,
        **_heatmap(policy, contributive),
    }


def _heatmap(policy: np.ndarray, contributive: np.ndarray) -> dict[str, np.ndarray]:
    """Weights over time, in units of 1/N, of the examples that contribute at most steps.

    Nothing where there is no such example.
    """
    steps = np.unique(np.linspace(0, len(policy) - 1, HEATMAP_STEPS).round().astype(int))
    often = np.flatnonzero(contributive[:-1].mean(axis=0) > 0.5)
    if not often.size:
        return {}
    chosen = often[np.unique(np.linspace(0, len(often) - 1, HEATMAP_EXAMPLES).astype(int))]
    weights = policy[np.ix_(steps, chosen)] * policy.shape[1]
    return {
        "heatmap_steps": steps,
        "heatmap_weights": weights[:, np.argsort(-weights.mean(axis=0), kind="stable")],
    }


def summarise(
    analyses: dict[str, Analysis],
    gaps: dict[str, float | None],
    vocab_size: int,
) -> dict[str, Any]:
    """The results part of summary.json.

    Args:
      analyses: of the conventional and the optimized policy.
      gaps: the mean optimality gap of both.
      vocab_size: |V| of the compression ratio.
    """
    sets: dict[str, Any] = {}
    for name in SETS:
        for policy in POLICIES:
            losses = analyses[policy][name]
            sets.setdefault(name, {})[policy] = {
                "auc": number(losses[1:].mean()),
                "final_loss": number(losses[-1]),
                "compression_ratio": number(lljax.compression_ratio(losses, vocab_size)),
            }
        ratio = lljax.acceleration_ratio(*(analyses[policy][name] for policy in POLICIES))
        sets[name]["acceleration_ratio"] = number(ratio)
    law = {policy: learning_law(analyses[policy], gaps[policy]) for policy in POLICIES}
    return {**sets, "learning_law": law, "scaling_law": _scaling_law(analyses)}


def number(value: Any) -> float | None:
    """A JSON number; null for what JSON has no number for (never reached, undefined)."""
    value = float(value)
    return value if np.isfinite(value) else None


def _scaling_law(analyses: dict[str, Analysis]) -> dict[str, Any]:
    try:
        laws = lljax.fit_scaling_laws([analyses[policy]["test"] for policy in POLICIES])
    except ValueError:
        # A test curve that rises follows no power law; the report says so.
        return dict.fromkeys((*POLICIES, "improvement"))
    improvement = lljax.scaling_law_improvement(*laws)
    fits = {policy: law._asdict() for policy, law in zip(POLICIES, laws, strict=True)}
    return fits | {"improvement": improvement._asdict()}


def _mean(values: Any) -> np.ndarray:
    """Over the steps where it is defined."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)]
    return np.asarray(finite.mean() if finite.size else np.nan, values.dtype)
