"""The outer steps of one experiment, resumable inside any of them."""

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import lljax
from lljax.engine import divergence, metrics
from lljax.engine.analyses import Analyses
from lljax.engine.checkpoints import Checkpoints
from lljax.engine.memory_plan import MemoryPlan
from lljax.engine.meta_gradient import MetaGradient
from lljax.engine.metrics import Metrics
from lljax.engine.placement import Placement, compiled, device_name
from lljax.engine.progress import bar_of_steps, log
from lljax.engine.resumable import ResumableSweep
from lljax.engine.state_checkpoints import Restored
from lljax.engine.sweep_checkpoints import SweepCheckpoints
from lljax.engine.sweep_state import Sweep
from lljax.engine.trackers import Trackers
from lljax.engine.workdir import Workdir
from lljax.errors import RunFailed
from lljax.step_control import OuterState, StepControl
from lljax.tasks.config import ExperimentConfig, meta_optimizer
from lljax.tasks.problem import PolicyProblem


class BestPolicy(NamedTuple):
    """The policy with the lowest validation AUC."""

    outer_step: int
    policy: jax.Array  # [T, N]
    optimality_gap: float | None  # over all examples, mean over t; None where it is not finite


class Optimization:
    """From the conventional policy to the best one.

    Attributes:
      metrics: of outer steps 0, 1, ...
      device: what it computes on, in words.
      meta_gradient: computes its gradients.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        problem: PolicyProblem,
        workdir: Workdir,
        analyses: Analyses,
        run: Mapping[str, Any],
        plan: MemoryPlan,
        open_trackers: Callable[[int], Trackers],
        placement: Placement,
    ):
        """Prepares; nothing is written yet.

        Args:
          config, problem, workdir, analyses, plan, placement: of the run.
          run: the settings and data that its checkpoints belong to.
          open_trackers: opens its trackers, given the outer step that comes next.
        """
        inner, outer = config.inner, config.outer
        self.metrics: list[Metrics] = []
        self.device = device_name(placement)
        self._config, self._problem, self._run = config, problem, run
        self._workdir, self._open_trackers = workdir, open_trackers
        uniform = lljax.uniform_policy(inner.num_steps, problem.num_train)
        self._placement, self._uniform = placement, placement.columns(uniform)
        self._analyses = analyses
        active_set = outer.check_every is not None
        self.meta_gradient = MetaGradient(problem, inner, plan, active_set, placement)
        control = lljax.build_step_control(
            meta_optimizer(outer), grow=outer.grow, shrink=outer.shrink
        )
        self._control = StepControl(*[compiled(part, placement.columns) for part in control])
        every = outer.checkpoint_seconds
        self._sweeps = SweepCheckpoints(workdir.sweep, every, run)
        self._looks = SweepCheckpoints(
            workdir.look, every, run, label="look at all examples, outer step"
        )

    def find_start(self) -> Restored | None:
        """The newest outer step that can be continued from; None where there is none.

        Raises:
          UserError: an earlier lljax began the run, or all of its checkpoints are missing.
        """
        with self._open_checkpoints() as checkpoints:
            return checkpoints.find_start(self._workdir)

    def optimize(self, start: Restored | None) -> None:
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
                latest, self.metrics = start.step, start.metrics
                state = self.meta_gradient.with_known(self._placement.columns(start.state))
                self._workdir.write_metrics(self.metrics)
                log(f"continuing after outer step {latest}, from {self._workdir.checkpoints}")
                # Of a later lost one no policy is left, but of this one and of the first there is.
                self._analyses.of(0, self._uniform)
                if latest in self._analyses.steps:
                    self._analyses.of(latest, state.policy)
            del start
            with bar_of_steps(outer.num_steps, latest) as bar:
                for step in range(latest + 1, outer.num_steps + 1):
                    if metrics.is_out_of_patience(self.metrics, outer.patience):
                        best = metrics.best_step(self.metrics)
                        log(f"stopped: no better validation AUC since outer step {best}")
                        break
                    state = self._outer_step(step, state, checkpoints)
                    bar.update()
        self._sweeps.clear()

    def best_policy(self) -> BestPolicy:
        """The best one that can be read, once all outer steps are done.

        Raises:
          RunFailed: it is no policy.
        """
        wanted = metrics.best_step(self.metrics)
        with self._open_checkpoints() as checkpoints:
            step, policy = checkpoints.best(self.metrics) or (0, self._uniform)
            if step != wanted:
                log(
                    f"warning: the best policy, that of outer step {wanted}, is lost; the best of "
                    f"those that are left is that of outer step {step}, with a validation AUC of "
                    f"{self.metrics[step]['validation_auc']:.6g} instead of "
                    f"{self.metrics[wanted]['validation_auc']:.6g}"
                )
            try:
                lljax.check_policy(policy)
            except ValueError as error:
                raise RunFailed(f"the policy of outer step {step} is none: {error}") from error
            if self._looks_at_all(step):
                return BestPolicy(step, policy, self.metrics[step]["optimality_gap"])
            policy = self._placement.columns(policy)
            after_the_last = self.metrics[-1]["outer_step"] + 1
            with self._sweep(self._looks, after_the_last, policy, checkpoints) as look:
                look.forward()
                gap = metrics.mean_gap(policy, look.gradient()[0])
        return BestPolicy(step, policy, gap)

    def clear(self) -> None:
        """Removes what only an unfinished run needs, once its results are written."""
        self._looks.clear()

    def _open_checkpoints(self) -> Checkpoints:
        shape = jax.ShapeDtypeStruct(self._uniform.shape, self._uniform.dtype)
        objective = jax.ShapeDtypeStruct((), np.float32)
        template = jax.eval_shape(self._control.begin, shape, objective, shape)
        layout = self._placement.layout
        return Checkpoints(self._workdir.checkpoints, template, self._run, layout)

    def _begin(self, checkpoints: Checkpoints) -> OuterState:
        """Outer step 0: the conventional policy, its meta-gradient and its metrics."""
        started, rate = time.monotonic(), self._config.inner.learning_rate
        with self._sweep(self._sweeps, 0, self._uniform, checkpoints) as first:
            divergence.check_losses(first.forward(), rate)
            gradient, sweep = first.gradient(), first.sweep
        divergence.check_gradient(sweep, rate)
        state = self._control.begin(self._uniform, sweep.objective, *gradient)
        self._record(0, state, self._measure(state, sweep), started, checkpoints)
        return state

    def _outer_step(self, step: int, state: OuterState, checkpoints: Checkpoints) -> OuterState:
        started, complete = time.monotonic(), self._looks_at_all(step)
        done: dict[str, Sweep] = {}
        with contextlib.ExitStack() as running:

            def evaluate(policy):
                trial = self._sweep(self._sweeps, step, policy, checkpoints)
                running.enter_context(trial)
                done["trial"] = trial.forward()
                return trial.sweep.objective, lambda: trial.gradient(complete)

            def look_at_all(policy):
                look = self._sweep(self._looks, step, policy, checkpoints)
                running.enter_context(look)
                done["look"] = look.forward()
                return look.gradient()

            def choose(predicate, if_true, if_false):
                if not predicate:
                    running.close()  # a losing trial frees its states before anything new is made
                return lljax.choose_on_host(predicate, if_true, if_false)

            state = lljax.try_policy(
                self._control, state, evaluate, look_at_all, complete=complete, choose=choose
            )
        state = self.meta_gradient.with_known(state)
        measured = dict(self.metrics[-1])
        if "look" in done:
            gradient = self._placement.columns(done["look"].policy_grad)
            measured["optimality_gap"] = metrics.mean_gap(state.policy, gradient)
        elif state.accepted:
            measured = self._measure(state, done["trial"])
        self._record(step, state, measured, started, checkpoints)
        return state

    def _sweep(
        self, saved: SweepCheckpoints, step: int, policy: jax.Array, checkpoints: Checkpoints
    ) -> ResumableSweep:
        return ResumableSweep(self.meta_gradient, saved, step, policy, checkpoints)

    def _looks_at_all(self, step: int) -> bool:
        """Whether an outer step's gradient holds the examples without weight too."""
        every = self._config.outer.check_every
        return every is None or step % every == 0

    def _measure(self, state: OuterState, sweep: Sweep) -> Metrics:
        conventional = self._analyses.of(0, self._uniform)
        return metrics.measure(state, sweep, conventional, self._problem.num_symbols)

    def _record(
        self,
        step: int,
        state: OuterState,
        measured: Metrics,
        started: float,
        checkpoints: Checkpoints,
    ) -> None:
        """Writes an outer step's metrics, then its checkpoint, so that no metrics are missing."""
        if step in self._analyses.steps:
            self._analyses.of(step, state.policy)
        best = bool(state.accepted) and metrics.beats_validation(self.metrics, measured)
        line = metrics.metrics_of(
            step,
            state,
            measured,
            best=best,
            learning_rate=self._config.outer.learning_rate,
            seconds=time.monotonic() - started,
        )
        self.metrics.append(line)
        self._trackers.log(step, line)
        checkpoints.save(step, state, self.metrics)
        log(metrics.in_words(self.metrics, self._config.outer.num_steps))
