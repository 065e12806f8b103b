"""Whether states that are kept in the host's memory come back as they were."""

import dataclasses

import numpy as np

import lljax
from lljax.engine.memory_plan import MemoryPlan
from lljax.engine.meta_gradient import MetaGradient
from lljax.engine.placement import ONE_DEVICE, Placement
from lljax.tasks.config import InnerConfig
from lljax.tasks.problem import PolicyProblem


def verify_offload(
    problem: PolicyProblem,
    inner: InnerConfig,
    plan: MemoryPlan,
    placement: Placement = ONE_DEVICE,
) -> float:
    """The error that off-loading makes in the gradient through the first two segments.

    Memory has been moved wrongly by compilers before, so a run that off-loads asks first.

    Returns:
      The largest difference to the gradient from states on the device, over its largest entry; 0
      where nothing is wrong, NaN where one of the two is not finite.
    """
    short = dataclasses.replace(plan, segments=plan.segments[:2], policy_arrays=0)
    policy = placement.columns(lljax.uniform_policy(short.num_steps, problem.num_train))
    gradients = []
    for mode in ("store", "offload"):
        with_mode = dataclasses.replace(short, mode=mode)
        meta_gradient = MetaGradient(problem, inner, with_mode, placement=placement)
        sweep = meta_gradient.new_sweep()
        meta_gradient.run_forward(policy, sweep, lambda _: None)
        meta_gradient.run_backward(policy, sweep, lambda _: None)
        gradients.append(sweep.policy_grad)
    stored, offloaded = gradients
    return float(np.abs(offloaded - stored).max() / np.abs(stored).max())
