"""What a run leaves of its measurements: in analysis.npz, samples.json and summary.json."""

import base64
import io
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import lljax
from lljax.artifacts import curves as curve_facts
from lljax.artifacts.schema import POLICIES, SETS
from lljax.checks import num_examples
from lljax.engine.analysis import LEARNED_EDGES, Analysis, law_steps
from lljax.engine.metrics import number
from lljax.safe_text import printable, without_secrets
from lljax.tasks.build import check_shown
from lljax.tasks.problem import Problem

HEATMAP_STEPS = 200
HEATMAP_EXAMPLES = 2048
SAMPLES = 8


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
      policy: the best one [T, N].
      path: analyses by outer step, the conventional policy's first, the best one's last.
    """
    analyses = list(path.values())
    ends = dict(zip(POLICIES, (analyses[0], analyses[-1]), strict=True))
    arrays = {f"{p}_{name}_losses": ends[p][name] for p in POLICIES for name in SETS}
    entries = [_path_entry(analysis, problem.num_symbols) for analysis in analyses]
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


def _path_entry(analysis: Analysis, num_symbols: int) -> dict[str, np.ndarray]:
    """The part of an analysis that figures 6 to 9 show of every policy along the optimisation."""
    ratio = lljax.compression_ratio(jnp.asarray(analysis["test"]), num_symbols)
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
    show = problem.show_example
    if show is None:
        return None
    totals = policy.mean(axis=0) * policy.shape[1]
    order = np.argsort(-totals, kind="stable")

    def sample_of(n: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"example": int(n), "weight": float(totals[n])}
        shown = show(int(n))
        check_shown(shown)
        for part in shown if isinstance(shown, tuple) else (shown,):
            sample |= {"text": part} if isinstance(part, str) else {"image": _png(part)}
        if problem.perturbed is not None:
            sample["perturbed"] = bool(problem.perturbed[n])
        return sample

    return {
        "largest": [sample_of(n) for n in order[:SAMPLES]],
        "smallest": [sample_of(n) for n in order[::-1][:SAMPLES]],
    }


def _png(picture: np.ndarray) -> str:
    """A picture [H, W] or [H, W, 3], uint8 or floating in [0, 1], as PNG in base64."""
    from PIL import Image

    values = np.asarray(picture)
    if values.dtype != np.uint8:
        values = (255 * np.clip(np.nan_to_num(values), 0, 1)).round().astype(np.uint8)
    with io.BytesIO() as buffer:
        Image.fromarray(values).save(buffer, format="PNG")
        return base64.b64encode(buffer.getvalue()).decode("ascii")


def summarise(
    problem: Problem, analyses: dict[str, Analysis], gaps: dict[str, float | None]
) -> dict[str, Any]:
    """The results part of summary.json.

    Args:
      problem: what was optimised.
      analyses: of the conventional and the optimized policy.
      gaps: the mean optimality gap of both.
    """
    sets = summarise_curves(problem, analyses)
    law = {policy: learning_law(analyses[policy], gaps[policy]) for policy in POLICIES}
    summary = {
        **sets,
        "learning_law": law,
        "scaling_law": fit_scaling_law({p: analyses[p]["test"] for p in POLICIES}),
    }
    summary |= describe(problem)
    if problem.perturbed is not None:
        shares = {p: number(analyses[p]["perturbed_share"].mean()) for p in POLICIES}
        summary["perturbed"] = {
            "examples": number(problem.perturbed.mean()),
            "weight_share": shares,
        }
    return summary


def describe(problem: Problem) -> dict[str, Any]:
    """What summary.json says of a problem itself."""
    sizes = {f"num_{name}": num_examples(getattr(problem, name), name) for name in SETS}
    return {
        "vocab_size": problem.num_symbols,
        "num_train": problem.num_train,
        **sizes,
        "facts": list(problem.facts),
        "data": list(problem.data_lines),
    }


def summarise_curves(
    problem: Problem, curves: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, Any]:
    """What summary.json says of each set: by set, of the loss curves [T+1] by policy and set."""
    sets: dict[str, Any] = {}
    for name in SETS:
        of_set = {policy: jnp.asarray(curves[policy][name]) for policy in POLICIES}
        for policy, losses in of_set.items():
            sets.setdefault(name, {})[policy] = {
                "auc": number(losses[1:].mean()),
                "final_loss": number(losses[-1]),
                "compression_ratio": number(lljax.compression_ratio(losses, problem.num_symbols)),
                **curve_facts.best(np.asarray(losses)),
            }
        sets[name]["acceleration_ratio"] = number(lljax.acceleration_ratio(*of_set.values()))
        own_end = curve_facts.own_end(np.asarray(of_set["conventional"]))
        sets[name]["conventional_reaches_at"] = own_end
    return sets


def fit_scaling_law(test: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The scaling laws of two test curves [T+1] by policy, for summary.json."""
    try:
        laws = lljax.fit_scaling_laws([jnp.asarray(test[p]) for p in POLICIES])
    except ValueError:
        # A test curve that rises follows no power law; the report says so.
        return dict.fromkeys((*POLICIES, "improvement"))
    fits: dict[str, Any] = {p: law.coefficients for p, law in zip(POLICIES, laws, strict=True)}
    if any(law.misfit for law in laws):
        return fits | {"improvement": None}
    return fits | {"improvement": lljax.scaling_law_improvement(*laws)._asdict()}


def made_by() -> dict[str, str]:
    """When and by which command a run was made, for summary.json."""
    made = {"finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    program = Path(*sys.argv[:1])
    # In another program that calls lljax, the arguments are not lljax's.
    if program.stem == "lljax" or program.parts[-2:] == ("lljax", "__main__.py"):
        arguments = (without_secrets(printable(argument)) for argument in sys.argv[1:])
        made["command"] = shlex.join(["lljax", *arguments])
    return made


def _mean(values: Any) -> np.ndarray:
    """Over the steps where it is defined."""
    values = np.asarray(values)
    finite = values[np.isfinite(values)]
    return np.asarray(finite.mean() if finite.size else np.nan, values.dtype)
