"""What is measured of a policy: its loss curves, and the Learning Law along its training run."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax.experiment.problem import Problem
from lljax.experiment.results import POLICIES, SETS
from lljax.segments import OBJECTIVE
from lljax.train_step import example_losses, split_microbatches

# Exponentiated gradient never writes an exact zero, so "no weight" is a share of the uniform one.
ZERO_WEIGHT = 1e-3
LEARNED_EDGES = np.array([0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0])
LAW_STEPS = 100
HEATMAP_STEPS = 200
HEATMAP_EXAMPLES = 2048
SAMPLES = 8

Analysis = dict[str, np.ndarray]


def law_steps(num_steps: int) -> np.ndarray:
    """The inner steps at which the Learning Law is measured: evenly spaced, LAW_STEPS at most."""
    least = math.ceil(num_steps / LAW_STEPS)
    # A divisor leaves no shorter last piece, which would have to be compiled as well.
    exact = (stride for stride in range(least, 2 * least + 1) if num_steps % stride == 0)
    return np.arange(0, num_steps, next(exact, least))


def snapshot_steps(num_outer_steps: int) -> set[int]:
    """The outer steps that figures 6 to 8 show: the optimisation gains most in its first ones."""
    halvings = (num_outer_steps >> k for k in range(1, 8))
    return {0, *halvings}


def build_analysis(
    problem: Problem, microbatch_size: int | None
) -> Callable[[jax.Array, Callable[[int, int], None]], Analysis]:
    """The full measurement of a policy: loss curves on all sets, and the Learning Law.

    Contributions are those to the objective, which the law speaks of: with a train share of 0 it
    is the desired loss.

    Returns:
      (policy [T, N], done) -> arrays: the mean losses [T+1] of the three SETS; at the S `law_steps`
      the law's numbers [S] and the counts of learned examples [S, G]; `contributive` [N], at which
      share of those steps an example had CT > 0; where examples are perturbed, `perturbed_share`
      [T], their weight. `done` is called with (inner steps done, T).
    """
    threshold = ZERO_WEIGHT / problem.num_train
    segments = lljax.build_segments(
        problem.loss_fn, problem.optimizer, microbatch_size=microbatch_size
    )
    others = {name: getattr(problem, name) for name in SETS if name != "desired"}
    start = jax.jit(segments.start)

    @jax.jit
    def advance(state, rows, data, others):
        return segments.forward(state, rows, data, others)[:2]

    @jax.jit
    def law(params, row, train, objective):
        contributions = lljax.contributions(
            problem.loss_fn, params, train, objective, microbatch_size=microbatch_size
        )
        examples = split_microbatches(train, microbatch_size)
        losses = example_losses(problem.loss_fn, params, examples)
        return {
            "similarity": lljax.contribution_similarity(contributions, row, threshold),
            "zero_weight": lljax.zero_weight_share(contributions, row, threshold),
            "redundant": lljax.redundant_share(contributions, row, threshold),
            "learned": lljax.learned_weight_counts(losses, row, jnp.asarray(LEARNED_EDGES[1:])),
            "contributive": contributions > 0,
        }

    def analyse(policy: jax.Array, done: Callable[[int, int], None]) -> Analysis:
        num_steps, data = len(policy), (problem.train, problem.desired)
        steps = law_steps(num_steps)
        state, first = start(problem.params, data, others)
        curves = {name: [np.asarray(loss)[None]] for name, loss in first.items()}
        laws = []
        for step, end in zip(steps, [*steps[1:], num_steps], strict=True):
            laws.append(law(state.params, policy[step], problem.train, problem.objective))
            state, losses = advance(state, policy[step:end], data, others)
            for name, loss in losses.items():
                curves[name].append(np.asarray(loss))
            done(int(end), num_steps)
        measured = {name: np.concatenate(parts) for name, parts in curves.items()}
        measured["desired"] = measured.pop(OBJECTIVE)
        measured |= {name: np.stack([part[name] for part in laws]) for name in laws[0]}
        measured["contributive"] = measured["contributive"].mean(axis=0)
        if problem.perturbed is not None:
            measured["perturbed_share"] = np.asarray(policy)[:, problem.perturbed].sum(axis=1)
        return measured

    return analyse


def learning_law(analysis: Analysis, gap: float | None) -> dict[str, float | None]:
    """The Learning Law's numbers of one policy, for summary.json: means over the law steps."""
    means = {name: _mean(analysis[name]) for name in ("similarity", "zero_weight", "redundant")}
    return {
        "similarity": number(means["similarity"]),
        "optimality_gap": gap,
        "zero_weight_share_of_noncontributive": number(means["zero_weight"]),
        "redundant_share_of_contributive": number(means["redundant"]),
    }


def collect_arrays(
    problem: Problem, policy: np.ndarray, path: dict[int, Analysis]
) -> dict[str, np.ndarray]:
    """What analysis.npz holds.

    Args:
      problem: what was optimised.
      policy: the kept one [T, N].
      path: analyses by outer step, the conventional policy's first, the kept one's last.
    """
    analyses = list(path.values())
    ends = dict(zip(POLICIES, (analyses[0], analyses[-1]), strict=True))
    arrays = {f"{p}_{name}_losses": ends[p][name] for p in POLICIES for name in SETS}
    entries = [_path_entry(analysis, problem.vocab_size) for analysis in analyses]
    arrays |= {f"path_{key}": np.stack([entry[key] for entry in entries]) for key in entries[0]}
    if problem.perturbed is not None:
        arrays |= {
            "perturbed": problem.perturbed.astype(np.uint8),
            "perturbed_share": np.stack([analysis["perturbed_share"] for analysis in analyses]),
            "total_weights": policy.mean(axis=0) * policy.shape[1],
        }
    return {
        **arrays,
        "path_outer_step": np.array(list(path)),
        "law_steps": law_steps(len(policy)),
        "learned_edges": LEARNED_EDGES,
        **_heatmap(policy, ends["optimized"]["contributive"]),
    }


def _path_entry(analysis: Analysis, vocab_size: int) -> dict[str, np.ndarray]:
    """The part of an analysis that figures 6 to 9 show of every policy along the optimisation."""
    ratio = lljax.compression_ratio(jnp.asarray(analysis["test"]), vocab_size)
    return {
        "compression_ratio": np.asarray(ratio),
        "similarity": _mean(analysis["similarity"]),
        "similarity_curve": analysis["similarity"],
        "desired_losses": analysis["desired"],
        "zero_weight_share": _mean(analysis["zero_weight"]),
        "zero_weight_curve": analysis["zero_weight"],
        "learned_counts": np.diff(analysis["learned"].sum(axis=0), prepend=0),
    }


def _heatmap(policy: np.ndarray, contributive: np.ndarray) -> dict[str, np.ndarray]:
    """Weights over time, in units of 1/N, of the examples that contribute at most steps.

    Nothing where there is no such example.
    """
    steps = np.unique(np.linspace(0, len(policy) - 1, HEATMAP_STEPS).round().astype(int))
    often = np.flatnonzero(contributive > 0.5)
    if not often.size:
        return {}
    chosen = often[np.unique(np.linspace(0, len(often) - 1, HEATMAP_EXAMPLES).astype(int))]
    weights = policy[np.ix_(steps, chosen)] * policy.shape[1]
    return {
        "heatmap_steps": steps,
        "heatmap_weights": weights[:, np.argsort(-weights.mean(axis=0), kind="stable")],
    }


def samples(problem: Problem, policy: np.ndarray) -> dict[str, list[dict[str, Any]]] | None:
    """What samples.json holds: the training examples with the largest and smallest total weight."""
    show = problem.show
    if show is None:
        return None
    totals = policy.mean(axis=0) * policy.shape[1]
    order = np.argsort(-totals, kind="stable")

    def describe(n: int) -> dict[str, Any]:
        sample = {"example": int(n), "weight": float(totals[n]), "text": show(int(n))}
        if problem.perturbed is not None:
            sample["perturbed"] = bool(problem.perturbed[n])
        return sample

    return {
        "largest": [describe(n) for n in order[:SAMPLES]],
        "smallest": [describe(n) for n in order[::-1][:SAMPLES]],
    }


def summarise(
    problem: Problem, analyses: dict[str, Analysis], gaps: dict[str, float | None]
) -> dict[str, Any]:
    """The results part of summary.json.

    Args:
      problem: what was optimised.
      analyses: of the conventional and the optimized policy.
      gaps: the mean optimality gap of both.
    """
    sets: dict[str, Any] = {}
    for name in SETS:
        curves = {policy: jnp.asarray(analyses[policy][name]) for policy in POLICIES}
        for policy, losses in curves.items():
            sets.setdefault(name, {})[policy] = {
                "auc": number(losses[1:].mean()),
                "final_loss": number(losses[-1]),
                "compression_ratio": number(lljax.compression_ratio(losses, problem.vocab_size)),
            }
        sets[name]["acceleration_ratio"] = number(lljax.acceleration_ratio(*curves.values()))
    law = {policy: learning_law(analyses[policy], gaps[policy]) for policy in POLICIES}
    summary = {**sets, "learning_law": law, "scaling_law": _scaling_law(analyses)}
    summary["vocab_size"] = problem.vocab_size
    if problem.perturbed is not None:
        shares = {p: number(analyses[p]["perturbed_share"].mean()) for p in POLICIES}
        summary["perturbed"] = {
            "examples": number(problem.perturbed.mean()),
            "weight_share": shares,
        }
    return summary


def number(value: Any) -> float | None:
    """A JSON number; null for what JSON has no number for (never reached, undefined)."""
    value = float(value)
    return value if np.isfinite(value) else None


def _scaling_law(analyses: dict[str, Analysis]) -> dict[str, Any]:
    try:
        laws = lljax.fit_scaling_laws([jnp.asarray(analyses[p]["test"]) for p in POLICIES])
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
