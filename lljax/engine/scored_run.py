"""One training run, swept forward once, and back for one measure of its desired loss or several.

The same segments as in `meta_gradient`, without what resuming inside them needs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lljax.attribution import Measure, loss_cotangents, scores_of
from lljax.engine.host_arrays import fetch
from lljax.engine.memory_plan import MemoryPlan
from lljax.engine.pieces import rows_of, segments_of
from lljax.engine.placement import Placement, anywhere, compiled, compiled_parts
from lljax.microbatch import split_microbatches
from lljax.segments import OBJECTIVE
from lljax.shards import find_shards
from lljax.tasks.config import InnerConfig
from lljax.tasks.problem import PolicyProblem
from lljax.train_step import example_losses
from lljax.types import Batch, Params, StepInputs

SIDE_BY_SIDE = 16  # backward sweeps, at most


class Scored(NamedTuple):
    """What a run says of its training examples."""

    scores: np.ndarray  # [M, N], of each measure
    of_train: Any  # derivatives of the measure in the training examples; None if not asked for
    losses: np.ndarray  # [T+1], of the desired examples as a whole
    train_losses: np.ndarray  # [N], of each training example at theta_T


class _Measured(NamedTuple):
    """Desired examples of a backward sweep, or [m, 1, ...] of m side by side."""

    at_end: Batch  # whose loss at theta_T counts
    before: Batch  # and at the other steps


class ScoredRun:
    """Scores the training examples of runs of one problem; compiled once.

    Attributes:
      num_parts: of the work of a run; progress is told after each.
    """

    def __init__(
        self,
        problem: PolicyProblem,
        inner: InnerConfig,
        plan: MemoryPlan,
        placement: Placement,
        template: StepInputs,
        *,
        of: Measure,
        each: int | None = None,
        to_train: bool = False,
    ):
        """The measure is of the desired loss, or of those of the first `each` desired examples.

        `to_train` asks for derivatives in the training examples too, of the desired loss alone.
        `template` has the form of what the runs are given.
        """
        segments = segments_of(problem, inner, memory=plan.within_segment, data_axis=placement.axis)
        self._problem, self._plan, self._placement, self._each = problem, plan, placement, each
        of_state, number = placement.state, problem.num_train
        self._train_losses = jax.jit(
            lambda params, train: example_losses(
                problem.loss_fn,
                params,
                split_microbatches(
                    train, inner.microbatch_size, find_shards(placement.axis, train)
                ),
            )
        )
        self._start = compiled_parts(segments.start, of_state, anywhere)
        self._forward = compiled_parts(segments.forward, of_state, anywhere, anywhere)
        self._last, self._before = loss_cotangents(of, plan.num_steps, jnp.float32)
        # Else a sweep has desired examples of its own, which are all measured.
        self._is_drawn = of == "auc" and each is None
        one = jax.tree.map(lambda leaf: leaf[:1], problem.desired)
        self._cheapest = problem.desired if self._is_drawn else one  # where no loss is asked for

        def back(cotangent: Any, kept: Any, rows: Any, before: Any, data: Any) -> Any:
            found = segments.backward(cotangent, kept, rows, before, data, to_train=to_train)
            cotangent, of_rows, *of_train = found
            return of_state(cotangent), scores_of(of_rows.weights, rows, number), of_train

        if each is None:
            self._end = compiled(segments.start_backward, of_state)
            self._back = jax.jit(back)
            self._groups = [_Measured(problem.desired, self._cheapest)]
        else:
            axes = (None, 0)  # of (train, desired)
            end = jax.vmap(segments.start_backward, in_axes=(None, None, axes, None))
            self._end = jax.jit(end)
            self._back = jax.jit(jax.vmap(back, in_axes=(0, None, None, None, axes)))
            self._groups = self._divide(each, template)
        self.num_parts = len(plan.segments) * (1 + len(self._groups))

    def run(self, params: Params, inputs: StepInputs, done: Callable[[], None]) -> Scored:
        """The scores that a run makes, whose weights are `inputs`; `done` after every part."""
        plan, data = self._plan, (self._problem.train, self._problem.desired)
        first = None if inputs.desired_index is None else inputs.desired_index[0]
        state, losses = self._start(params, data, {}, first)
        curve, starts, kept = [np.asarray(losses[OBJECTIVE])[None]], [], []
        for steps in plan.segments:
            starts.append(None if plan.resident else fetch(state))
            rows = rows_of(inputs, steps)
            state, losses, held = self._forward(state, rows, data, {})
            kept.append(plan.keeper.keep(held) if plan.resident else None)
            del held
            curve.append(fetch(losses[OBJECTIVE]))
            done()
        if not self._is_drawn:
            inputs = StepInputs(inputs.weights, inputs.index)
        found, of_train = [], None
        for group in self._groups:
            scores, of_train = self._sweep_back(group, state, inputs, starts, kept, done)
            found.append(scores)
        scores = np.concatenate(found)[: self._each]
        train_losses = fetch(self._train_losses(state.params, self._problem.train))
        return Scored(scores, of_train, np.concatenate(curve), train_losses)

    def _sweep_back(
        self,
        group: _Measured,
        state: Any,
        inputs: StepInputs,
        starts: list[Any],
        kept: list[Any],
        done: Callable[[], None],
    ) -> tuple[np.ndarray, Any]:
        """(the scores [m, N] of a group, the derivatives in the training examples)."""
        plan, train = self._plan, self._problem.train
        index = None if inputs.desired_index is None else inputs.desired_index[-1]
        cotangent = self._end(state, self._last, (train, group.at_end), index)
        total, of_train = 0.0, None
        for place in reversed(range(len(plan.segments))):
            steps = plan.segments[place]
            rows = rows_of(inputs, steps)
            if plan.resident:
                held = plan.keeper.fetch(kept[place])
            else:
                start = self._placement.state(jax.tree.map(jnp.asarray, starts[place]))
                held = self._forward(start, rows, (train, self._cheapest), {}).kept
            cotangent, scores, more = self._back(
                cotangent, held, rows, self._before[steps], (train, group.before)
            )
            del held
            total = total + fetch(scores).astype(np.float64)
            for tree in map(fetch, more):
                of_train = tree if of_train is None else jax.tree.map(np.add, of_train, tree)
            done()
        return np.atleast_2d(total), of_train

    def _divide(self, each: int, template: StepInputs) -> list[_Measured]:
        """As many sweeps side by side as there is memory for; the last group is filled up."""
        alone = jax.tree.map(lambda leaf: leaf[:each, None], self._problem.desired)

        def group(first: int, size: int) -> Batch:
            number = jnp.minimum(jnp.arange(first, first + size), each - 1)
            return jax.tree.map(lambda leaf: leaf[number], alone)

        size = min(each, SIDE_BY_SIDE)
        while size > 1 and self._needed(group(0, size), template) > self._plan.budget_bytes:
            size = -(-size // 2)
        groups = (group(first, size) for first in range(0, each, size))
        return [_Measured(desired, desired) for desired in groups]

    def _needed(self, desired: Batch, template: StepInputs) -> int:
        """Bytes that sweeps side by side take beside what the forward sweep kept."""
        train, length = self._problem.train, self._plan.segment_length
        rows = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((length, *leaf.shape[1:]), leaf.dtype),
            StepInputs(template.weights, template.index),
        )
        cheapest = train, self._cheapest
        state, _ = jax.eval_shape(self._start, self._problem.params, cheapest, {})
        kept = jax.eval_shape(self._forward, state, rows, cheapest, {}).kept
        data = train, desired
        cotangent = jax.eval_shape(self._end, state, self._last, data, None)
        before = self._before[:length]
        stats: Any = self._back.lower(cotangent, kept, rows, before, data).compile()
        stats = stats.memory_analysis()
        return stats.temp_size_in_bytes + stats.output_size_in_bytes
