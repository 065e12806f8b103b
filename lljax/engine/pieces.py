"""A problem's training runs in pieces, and the sets whose losses they follow."""

from typing import Any

import lljax
from lljax.tasks.config import InnerConfig
from lljax.tasks.problem import PolicyProblem
from lljax.types import Batch, StepInputs


def segments_of(problem: PolicyProblem, inner: InnerConfig, **more: Any) -> lljax.Segments:
    """The pieces of a problem's training runs; `more` of `lljax.build_segments`."""
    given = {
        "desired_loss_fn": problem.desired_loss_fn,
        "microbatch_size": inner.microbatch_size,
        "second_order": problem.second_order,
    }
    return lljax.build_segments(problem.loss_fn, problem.optimizer, **(given | more))


def watched(problem: PolicyProblem) -> dict[str, Batch]:
    """The sets whose loss a sweep follows beside the objective, which may be the desired set."""
    is_desired = problem.objective is problem.desired  # then it is followed as the objective
    others = ("validation",) if is_desired else ("desired", "validation")
    return {name: getattr(problem, name) for name in others}


def rows_of(inputs: StepInputs, steps: slice) -> StepInputs:
    """What the steps of a segment are given, of one run or of several side by side."""
    desired = inputs.desired_index
    return StepInputs(
        inputs.weights[steps],
        None if inputs.index is None else inputs.index[steps],
        desired_index=None if desired is None else desired[steps.start : steps.stop + 1],
    )
