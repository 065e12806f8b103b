"""What policies are worth: the loss curves of training runs that they were not optimised on.

Such runs draw their batches by weight, as one trains on curated data, and the conventional ones
uniformly. Losses are measured at some steps of a run only, on the first examples of a set.
"""

import functools
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import lljax
from lljax.curation.drawn import Runs, RunSource, run_keys
from lljax.engine.pieces import segments_of
from lljax.engine.placement import ONE_DEVICE, Placement
from lljax.engine.progress import AnalysisProgress
from lljax.segments import OBJECTIVE
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import PolicyProblem
from lljax.types import Batch

MOST_MEASURED = 25  # steps of a run at which losses are measured
_TIMED = 4  # stretches of steps that are timed
MOST_EXAMPLES = 512  # of a set on which they are
VALIDATION, TEST = 1, 2  # what the keys of such runs are made of, beside the seed


class Evaluation:
    """Measures policies of one problem.

    Attributes:
      steps: the P+1 inner steps at which losses are measured, 0 and T among them.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        problem: PolicyProblem,
        source: RunSource,
        placement: Placement = ONE_DEVICE,
    ):
        self._placement = placement
        inner = config.inner
        self._num_steps, self._seed = inner.num_steps, config.seed
        self._problem, self._source = problem, source
        self.steps = measured_steps(inner.num_steps)
        self._has_index = inner.batch_size is not None
        self._segments = functools.partial(segments_of, problem, inner, data_axis=placement.axis)
        self._start = jax.jit(jax.vmap(self._segments().start, in_axes=(0, None, None)))
        self._advances: dict[int, Any] = {}  # by the length of a stretch; two at most

    def _advance(self, length: int) -> Any:
        """(state, rows, data, watched) -> (state, losses after the last of so many steps)."""
        if length not in self._advances:
            segments = self._segments(eval_every=length)

            def advance(state: Any, rows: Any, data: Any, watched: Any) -> Any:
                state, losses, _ = segments.forward(state, rows, data, watched)
                return state, losses

            axes = lljax.StepInputs(1, 1 if self._has_index else None)  # type: ignore[arg-type]
            self._advances[length] = jax.jit(jax.vmap(advance, in_axes=(0, axes, None, None)))
        return self._advances[length]

    def keys(self, kind: int, count: int) -> jax.Array:
        """Of runs that no outer step draws."""
        return run_keys(jax.random.key(self._seed ^ 0x5EED), kind, count)

    def curves(
        self, shares: jax.Array, keys: jax.Array, sets: tuple[str, ...], label: str
    ) -> dict[str, np.ndarray]:
        """The mean loss on some of the problem's sets, at the measured steps, by run: [R, P+1]."""
        runs = self._source.draw(shares, keys, explore=0.0)
        state, advance, losses = self._begin(runs, sets)
        seen = [losses]
        with AnalysisProgress(label) as progress:
            for begin, end in zip(self.steps[:-1], self.steps[1:], strict=True):
                state, losses = advance(state, int(begin), int(end))
                seen.append(jax.tree.map(lambda leaf: np.asarray(leaf)[:, 0], losses))
                progress.update(int(end), self._num_steps)
        names = {OBJECTIVE: sets[0]}
        return {
            names.get(name, name): np.stack([np.asarray(at[name]) for at in seen], axis=1)
            for name in seen[0]
        }

    def _begin(self, runs: Runs, sets: tuple[str, ...]) -> tuple[Any, Any, Any]:
        """(first state, (state, begin, end) -> (state, losses), losses at the start)."""
        batches: Mapping[str, Batch] = {
            name: self._placement.examples(
                jax.tree.map(lambda leaf: leaf[:MOST_EXAMPLES], getattr(self._problem, name))
            )
            for name in sets
        }
        first, *_ = sets
        data = self._problem.train, batches[first]
        watched = {name: batch for name, batch in batches.items() if name != first}
        state, losses = self._start(runs.params, data, watched)
        inputs = lljax.StepInputs(runs.inputs.weights, runs.inputs.index)

        def advance(state: Any, begin: int, end: int) -> Any:
            rows = jax.tree.map(lambda leaf: leaf[begin:end], inputs)
            return self._advance(end - begin)(state, rows, data, watched)

        return state, advance, losses

    def seconds(self, shares: jax.Array, sets: tuple[str, ...]) -> float:
        """How long one run takes, by its first stretches of steps."""
        moments: list[float] = []
        runs = self._source.draw(shares, self.keys(TEST, 1), explore=0.0)
        state, advance, _ = self._begin(runs, sets)
        for begin, end in list(zip(self.steps[:-1], self.steps[1:], strict=True))[:_TIMED]:
            state, losses = advance(state, int(begin), int(end))
            jax.block_until_ready(losses)
            moments.append(time.monotonic())
        last = np.diff(moments) if len(moments) > 1 else np.array([0.0])
        return float(np.median(last)) * (len(self.steps) - 1)

    def auc(self, curve: np.ndarray) -> np.ndarray:
        """The mean over the steps 1 .. T of a curve [..., P+1], interpolated between them."""
        return self.at_all_steps(curve)[..., 1:].mean(axis=-1)

    def at_all_steps(self, curve: np.ndarray) -> np.ndarray:
        """A curve [..., P+1] at all T+1 steps, linear between those that were measured."""
        every = np.arange(self._num_steps + 1)
        flat = curve.reshape(-1, curve.shape[-1])
        rows = [np.interp(every, self.steps, row) for row in flat]
        return np.stack(rows).reshape(*curve.shape[:-1], len(every))


def measured_steps(num_steps: int) -> np.ndarray:
    """0, s, 2 s, ... and T, `MOST_MEASURED` of them beside 0 at most."""
    stride = math.ceil(num_steps / MOST_MEASURED)
    return np.append(np.arange(0, num_steps, stride), num_steps)
