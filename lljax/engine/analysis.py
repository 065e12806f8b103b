"""What is measured of a policy: its loss curves, and the Learning Law along its training run."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax.artifacts.schema import SETS
from lljax.engine.host_arrays import fetch
from lljax.engine.placement import ONE_DEVICE, Placement, anywhere, compiled_parts
from lljax.engine.row_blocks import by_rows
from lljax.microbatch import split_microbatches
from lljax.segments import OBJECTIVE
from lljax.shards import find_shards
from lljax.tasks.problem import PolicyProblem
from lljax.train_step import example_losses

# Not every method writes exact zeros, so "no weight" is a share of the uniform one.
ZERO_WEIGHT = 1e-3
LEARNED_EDGES = np.array([0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1.0])
LAW_STEPS = 100

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
    problem: PolicyProblem, microbatch_size: int | None, placement: Placement = ONE_DEVICE
) -> Callable[[Any, Callable[[int, int], None]], Analysis]:
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
        problem.loss_fn,
        problem.optimizer,
        desired_loss_fn=problem.desired_loss_fn,
        microbatch_size=microbatch_size,
        data_axis=placement.axis,
    )
    others = {name: getattr(problem, name) for name in SETS if name != "desired"}
    start = compiled_parts(segments.start, placement.state, anywhere)
    advance = compiled_parts(lambda *given: segments.forward(*given)[:2], placement.state, anywhere)
    share_of = jax.jit(lambda policy, chosen: jnp.sum(policy, axis=1, where=chosen[None]))

    @jax.jit
    def law(params, row, train, objective):
        contributions = lljax.contributions(
            problem.loss_fn,
            params,
            train,
            objective,
            desired_loss_fn=problem.objective_loss_fn,
            microbatch_size=microbatch_size,
            data_axis=placement.axis,
        )
        examples = split_microbatches(train, microbatch_size, find_shards(placement.axis, train))
        losses = example_losses(problem.loss_fn, params, examples)
        return {
            "similarity": lljax.contribution_similarity(contributions, row, threshold),
            "zero_weight": lljax.zero_weight_share(contributions, row, threshold),
            "redundant": lljax.redundant_share(contributions, row, threshold),
            "learned": lljax.learned_weight_counts(losses, row, jnp.asarray(LEARNED_EDGES[1:])),
            "contributive": placement.columns(contributions > 0),
        }

    def analyse(policy: Any, done: Callable[[int, int], None]) -> Analysis:
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
        laws = [fetch(part) for part in laws]
        measured |= {name: np.stack([part[name] for part in laws]) for name in laws[0]}
        measured["contributive"] = measured["contributive"].mean(axis=0)
        if problem.perturbed is not None:
            chosen = problem.perturbed
            measured["perturbed_share"] = by_rows(lambda rows: share_of(rows, chosen), policy)
        return measured

    return analyse
