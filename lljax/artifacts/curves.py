"""What summary.json says of a loss curve beside its AUC and its end."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lljax.artifacts.schema import POLICIES, SETS


def best(losses: np.ndarray) -> dict[str, float | int | None]:
    """The smallest finite loss along the curve [T+1], and the inner step at which it is met.

    >>> best(np.array([3.0, 1.0, 2.0, np.nan]))
    {'best_loss': 1.0, 'best_loss_step': 1}
    """
    finite = np.where(np.isfinite(losses), losses, np.inf)
    step = int(np.argmin(finite))
    if finite[step] == np.inf:
        return {"best_loss": None, "best_loss_step": None}
    return {"best_loss": float(finite[step]), "best_loss_step": step}


def own_end(losses: np.ndarray) -> int | None:
    """The first step t >= 1 at which a curve [T+1] is as low as at its own end.

    T where it falls to the end; earlier where it oscillates, rises or has come to rest.

    >>> own_end(np.array([4.0, 3.0, 1.0, 2.0])), own_end(np.array([4.0, 3.0, 2.0, 1.0]))
    (2, 3)
    """
    if not np.isfinite(losses[-1]):
        return None
    return 1 + int(np.argmax(losses[1:] <= losses[-1]))


def complete(summary: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The summary with the numbers above, where an earlier lljax wrote it without them."""
    added = {}
    for name in SETS:
        scores = added[name] = dict(summary[name])
        for policy in POLICIES:
            losses = arrays.get(f"{policy}_{name}_losses")
            if losses is None:
                continue
            scores[policy] = best(losses) | scores[policy]
            if policy == "conventional":
                scores.setdefault("conventional_reaches_at", own_end(losses))
    return {**summary, **added}
