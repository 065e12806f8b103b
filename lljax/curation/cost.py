"""Floating-point operations of training runs and of their meta-gradients.

Counted in forward passes of an example, whose own cost the compiler knows: 3 for a step of
training, 11 for one of a meta-gradient, 4 for a desired example.
"""

from typing import Any

import jax
import numpy as np

from lljax.tasks.config import ExperimentConfig, InnerConfig
from lljax.tasks.problem import Problem


def training_flops(problem: Problem, inner: InnerConfig) -> float:
    """Of one conventional run."""
    batch = inner.batch_size or problem.num_train
    return 3 * inner.num_steps * batch * _forward_flops(problem)


def finding_flops(problem: Problem, config: ExperimentConfig, num_outer_steps: int) -> float:
    """Of the meta-gradients of so many outer steps."""
    inner = config.inner
    size = inner.batch_size or problem.num_train
    desired = inner.desired_batch_size or len(jax.tree.leaves(problem.desired)[0])
    steps = num_outer_steps * config.outer.runs * inner.num_steps
    return steps * (11 * size + 4 * desired) * _forward_flops(problem)


def _forward_flops(problem: Problem) -> float:
    """Of one example, counted by the compiler."""
    batch = jax.tree.map(lambda leaf: leaf[:8], problem.train)
    compiled = jax.jit(problem.loss_fn).lower(problem.params, batch).compile()
    analysis: Any = compiled.cost_analysis() or {}
    return analysis.get("flops", np.nan) / len(jax.tree.leaves(batch)[0])
