"""What is measured of an outer step, for metrics.jsonl and in a line for people."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import lljax
from lljax.engine.analysis import Analysis
from lljax.engine.row_blocks import RowBlocks, by_rows
from lljax.engine.sweep_state import Sweep
from lljax.step_control import OuterState

Metrics = dict[str, Any]


def number(value: Any) -> float | None:
    """A JSON number; null for what JSON has no number for (never reached, undefined)."""
    value = float(value)
    return value if np.isfinite(value) else None


def mean_gap(policy: Any, policy_grad: Any, known: Any = None) -> float | None:
    """The optimality gap of a policy [T, N], mean over t; None where slopes are unknown."""
    if isinstance(policy, RowBlocks):
        return number(jnp.asarray(by_rows(_gaps, policy, policy_grad)).mean())
    return number(_mean_gap(policy, policy_grad, known))


_gaps = jax.jit(lljax.optimality_gap)


@jax.jit
def _mean_gap(policy: jax.Array, policy_grad: jax.Array, known: Any) -> jax.Array:
    return lljax.optimality_gap(policy, policy_grad, known).mean()


def measure(
    state: OuterState, sweep: Sweep, conventional: Analysis, num_symbols: int
) -> dict[str, float | None]:
    """What a meta-gradient says of the policy that it belongs to, against the conventional one."""
    desired, validation = map(jnp.asarray, (sweep.desired, sweep.curves["validation"]))
    ratios = {
        name: lljax.acceleration_ratio(jnp.asarray(conventional[name]), curve)
        for name, curve in (("desired", desired), ("validation", validation))
    }
    return {
        "desired_auc": number(desired[1:].mean()),
        "compression_ratio": number(lljax.compression_ratio(desired, num_symbols)),
        "validation_auc": number(validation[1:].mean()),
        "desired_acceleration_ratio": number(ratios["desired"]),
        "validation_acceleration_ratio": number(ratios["validation"]),
        "optimality_gap": mean_gap(state.policy, state.policy_grad, state.known),
    }


def metrics_of(
    step: int,
    state: OuterState,
    measured: Metrics,
    *,
    best: bool,
    learning_rate: float,
    seconds: float,
) -> Metrics:
    """The metrics of an outer step, as metrics.jsonl has them."""
    return measured | {
        "outer_step": step,
        "objective": number(state.objective),
        "step_size": number(state.scale * learning_rate),
        "accepted": bool(state.accepted),
        "trial_objective": number(state.trial_objective),
        "best": best,
        "seconds": round(seconds, 3),
    }


def beats_validation(metrics: Sequence[Metrics], measured: Metrics) -> bool:
    """Whether a policy has the lowest validation AUC so far."""
    # A policy under which validation diverges is never the best.
    before, new = (
        [np.inf if line["validation_auc"] is None else line["validation_auc"] for line in lines]
        for lines in (metrics, [measured])
    )
    return new[0] < min(before, default=np.inf)


def best_step(metrics: Sequence[Metrics]) -> int:
    """The outer step with the lowest validation AUC."""
    return max(line["outer_step"] for line in metrics if line["best"])


def is_out_of_patience(metrics: Sequence[Metrics], patience: int | None) -> bool:
    """Whether the last `patience` outer steps have brought no better validation AUC."""
    return bool(patience) and metrics[-1]["outer_step"] - best_step(metrics) >= patience


def in_words(metrics: Sequence[Metrics], total: int) -> str:
    """The last outer step as a line for people, with the time that is left.

    Args:
      metrics: of all outer steps so far.
      total: the outer steps that are wanted.
    """
    line = metrics[-1]
    recent = [earlier["seconds"] for earlier in metrics[1:][-10:]]
    step = line["outer_step"]
    left = tqdm.format_interval(np.mean(recent) * (total - step)) if recent else "--:--"
    note = "  best" if line["best"] else "" if line["accepted"] else _taken_back(line)
    return (
        f"outer {step:>{len(str(total))}}/{total}  AUC {_cell(line['desired_auc'], '.4f')}  "
        f"held-out AUC {_cell(line['validation_auc'], '.4f')} AR "
        f"{_cell(line['validation_acceleration_ratio'], '.2f'):>5}  gap "
        f"{_cell(line['optimality_gap'], '.1e')}  step {line['step_size']:.2g}  left {left}{note}"
    )


def _taken_back(line: Metrics) -> str:
    """Why a trial was taken back; what is not finite would else look like what is not better."""
    objective, trial = line["objective"], line["trial_objective"]
    if trial is None:
        return "  taken back: its loss is not finite"
    if objective is not None and trial < objective:
        return "  taken back: its gradient is not finite"
    return "  taken back"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
