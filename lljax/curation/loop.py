"""The outer steps over drawn runs, resumable inside any of them.

An AUC of a run that is drawn is a number with noise, so no step is taken back: every step is a
plain one of the method, its iterates are averaged, and runs that no step was made on compare the
iterate and the average now and then, as in `lljax.optimize_over_runs`.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from lljax import cluster
from lljax.curation.drawn import DrawnGradient, RunSource, reruns_of_drawn, run_keys
from lljax.curation.evaluation import VALIDATION, Evaluation
from lljax.curation.families import Family
from lljax.engine import divergence, metrics
from lljax.engine.host_arrays import fetch
from lljax.engine.memory_plan import MemoryPlan
from lljax.engine.metrics import Metrics, number
from lljax.engine.placement import Placement
from lljax.engine.progress import bar_of_steps, log
from lljax.engine.resumable import ResumableSweep
from lljax.engine.smoothness import Reruns
from lljax.engine.state_checkpoints import Restored, StateCheckpoints
from lljax.engine.sweep_checkpoints import SweepCheckpoints
from lljax.engine.trackers import Trackers
from lljax.engine.workdir import Workdir
from lljax.slopes import is_finite
from lljax.stochastic_loop import running_average
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import PolicyProblem

AVERAGING = 3.0  # as in optimize_over_runs: half of the weight on the last 16 % of the iterates


class State(NamedTuple):
    """Between two outer steps."""

    psi: Any
    method: Any  # of the meta-optimiser
    average: Any  # of the iterates
    best: Any  # the candidate with the lowest mean AUC over the validation runs
    best_auc: jax.Array  # [] float32
    best_step: jax.Array  # [] int32, 0: conventional training


class Curation:
    """From conventional training to the best policy of a family.

    Attributes:
      metrics: of outer steps 0, 1, ...
    """

    def __init__(
        self,
        config: ExperimentConfig,
        problem: PolicyProblem,
        family: Family,
        source: RunSource,
        evaluation: Evaluation,
        workdir: Workdir,
        run: Mapping[str, Any],
        plan: MemoryPlan,
        open_trackers: Callable[[int], Trackers],
        placement: Placement,
    ):
        """Prepares; nothing is written yet. `run` says whose the checkpoints are."""
        self.metrics: list[Metrics] = []
        self._config, self._family, self._source = config, family, source
        self._workdir, self._run, self._open_trackers = workdir, run, open_trackers
        self._problem, self._num_symbols = problem, problem.num_symbols
        self._evaluation = evaluation
        self._layout = placement.layout
        self._gradient = DrawnGradient(problem, config, plan, source, placement)
        self._sweeps = SweepCheckpoints(workdir.sweep, config.outer.checkpoint_seconds, run)
        self._shares = jax.jit(family.shares)
        self._averaged = jax.jit(_averaged)
        self._key = jax.random.key(config.seed)

    def find_start(self) -> Restored | None:
        """The newest outer step that can be continued from; None where there is none.

        Raises:
          UserError: another lljax began the run, or all of its checkpoints are missing.
        """
        with self._open_checkpoints() as checkpoints:
            return checkpoints.find_start(self._workdir)

    def reruns(self) -> Reruns:
        """Conventional training, to be done again with other weights: runs of their own."""
        return reruns_of_drawn(self._gradient, self._config, self._problem, self._source)

    def optimize(self, start: Restored | None) -> State:
        """All outer steps that are not done yet, from what `find_start` found."""
        outer = self._config.outer
        if start is None:
            self._workdir.begin()
        next_step = 0 if start is None else start.step + 1
        with self._open_checkpoints() as checkpoints, self._open_trackers(next_step) as trackers:
            self._trackers = trackers
            checkpoints.tidy()
            if start is None:
                latest, state = 0, self._begin(checkpoints)
            else:
                latest, state, self.metrics = start.step, start.state, start.metrics
                self._workdir.write_metrics(self.metrics)
                log(f"continuing after outer step {latest}, from {self._workdir.checkpoints}")
            with bar_of_steps(outer.num_steps, latest) as bar:
                for step in range(latest + 1, outer.num_steps + 1):
                    if self._is_compared(step - 1) and metrics.is_out_of_patience(
                        self.metrics, outer.patience
                    ):
                        best = metrics.best_step(self.metrics)
                        log(f"stopped: no better validation AUC since outer step {best}")
                        break
                    state = self._outer_step(step, state, checkpoints)
                    bar.update()
        self._sweeps.clear()
        return self._compare_last(state)

    def _open_checkpoints(self) -> StateCheckpoints:
        template = jax.eval_shape(self._first_state, self._family.start, jnp.float32(0))
        return StateCheckpoints(self._workdir.checkpoints, template, self._run, self._layout)

    def _first_state(self, psi: Any, auc: jax.Array) -> State:
        return State(psi, self._family.begin(psi), psi, psi, auc, jnp.int32(0))

    def _begin(self, checkpoints: StateCheckpoints) -> State:
        """Outer step 0: conventional training, on the validation runs."""
        started, psi = time.monotonic(), self._family.start
        curve = self._validate(psi, "conventional training")
        steps, rate = self._evaluation.steps, self._config.inner.learning_rate
        divergence.check_curve(curve.mean(axis=0), steps, rate, "validation")
        auc = float(self._evaluation.auc(curve).mean())
        state = self._first_state(psi, jnp.float32(auc))
        self._record(0, state, np.nan, auc, True, started, checkpoints)
        return state

    def _outer_step(self, step: int, state: State, checkpoints: StateCheckpoints) -> State:
        started, outer = time.monotonic(), self._config.outer
        keys = run_keys(self._key, step, outer.runs)
        shares = self._shares(state.psi)
        runs = self._source.draw(shares, keys)
        with ResumableSweep(self._gradient, self._sweeps, step, runs, checkpoints) as sweep:
            sweep.forward()
            slopes = sweep.backward().policy_grad
            desired_auc = float(sweep.sweep.objective)
        gradient = self._source.to_shares(shares, runs.inputs.index, jnp.asarray(slopes))
        if bool(is_finite(gradient)) and np.isfinite(desired_auc):
            # Some families move on the host, whose rounding may be another on another host.
            before = fetch((state.psi, state.method, gradient))
            moved = cluster.from_first(lambda: self._family.move(*before))
            state = self._averaged(state, *moved, step)
        else:
            log(f"warning: outer step {step} is left out: its meta-gradient is not finite")
        validation, best = np.nan, False
        if self._is_compared(step):
            state, validation, best = self._compare(step, state)
        self._record(step, state, desired_auc, validation, best, started, checkpoints)
        return state

    def _compare(self, step: int, state: State) -> tuple[State, float, bool]:
        """Whether the iterate or the average is the best so far, and the lower AUC of the two."""
        found = []
        for name, psi in (("iterate", state.psi), ("average", state.average)):
            curve = self._validate(psi, f"validation of outer step {step}'s {name}")
            auc = float(self._evaluation.auc(curve).mean())
            found.append((auc if np.isfinite(auc) else np.inf, psi))
        auc, psi = min(found, key=lambda pair: pair[0])
        best = bool(np.float32(auc) < state.best_auc)
        if best:
            state = state._replace(best=psi, best_auc=jnp.float32(auc), best_step=jnp.int32(step))
        return state, auc, best

    def _compare_last(self, state: State) -> State:
        """The last iterate is a candidate too, whatever the number of outer steps is."""
        line = self.metrics[-1]
        step = line["outer_step"]
        if not self._is_compared(step):
            state, validation, best = self._compare(step, state)
            self.metrics[-1] = line | {"validation_auc": number(validation), "best": best}
        return state

    def _is_compared(self, step: int) -> bool:
        return step % self._config.outer.validate_every == 0

    def _validate(self, psi: Any, label: str) -> np.ndarray:
        """The validation losses at the measured steps, by validation run."""
        keys = self._evaluation.keys(VALIDATION, self._config.outer.validation_runs)
        return self._evaluation.curves(self._shares(psi), keys, ("validation",), label)[
            "validation"
        ]

    def _record(
        self,
        step: int,
        state: State,
        desired_auc: float,
        validation_auc: float,
        best: bool,
        started: float,
        checkpoints: StateCheckpoints,
    ) -> None:
        """Writes an outer step's metrics, then its checkpoint, so that no metrics are missing.

        An AUC that was not measured is NaN.
        """
        desired = number(desired_auc)
        line: Metrics = {
            "outer_step": step,
            "objective": desired,
            "desired_auc": desired,
            "compression_ratio": number(np.log(self._num_symbols) / desired_auc),
            "validation_auc": number(validation_auc),
            "desired_acceleration_ratio": None,
            "validation_acceleration_ratio": None,
            "optimality_gap": None,
            "step_size": self._config.outer.learning_rate,
            "accepted": True,
            "trial_objective": desired,
            "best": best,
            "seconds": round(time.monotonic() - started, 3),
        }
        self.metrics.append(line)
        self._trackers.log(step, line)
        checkpoints.save(step, state, self.metrics)
        log(_in_words(self.metrics, self._config.outer.num_steps))


def _averaged(state: State, psi: Any, method: Any, step: jax.Array) -> State:
    """The state after a step to psi."""
    average = jax.tree.map(
        lambda old, new: running_average(old, new, jnp.asarray(step), AVERAGING),
        state.average,
        psi,
    )
    return state._replace(psi=psi, method=method, average=average)


def _in_words(lines: list[Metrics], total: int) -> str:
    """The last outer step as a line for people, with the time that is left."""
    line = lines[-1]
    step = line["outer_step"]
    recent = [earlier["seconds"] for earlier in lines[1:][-8:]]
    left = tqdm.format_interval(float(np.mean(recent)) * (total - step)) if recent else "--:--"
    desired, held_out = line["desired_auc"], line["validation_auc"]
    parts = [f"outer {step:>{len(str(total))}}/{total}"]
    if desired is not None:
        parts.append(f"AUC of the drawn runs {desired:.4f}")
    if held_out is not None:
        parts.append(f"held-out AUC {held_out:.4f}")
    parts.append(f"left {left}")
    return "  ".join(parts) + ("  best" if line["best"] else "")
