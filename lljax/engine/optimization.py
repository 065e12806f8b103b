"""The outer steps of one experiment, resumable inside any of them."""

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import lljax
from lljax.engine import divergence, metrics
from lljax.engine.analysis import Analysis, build_analysis, snapshot_steps
from lljax.engine.checkpoints import Checkpoints, SweepCheckpoints
from lljax.engine.memory_plan import MemoryPlan
from lljax.engine.meta_gradient import MetaGradient, Sweep
from lljax.engine.metrics import Metrics
from lljax.engine.progress import AnalysisProgress, log
from lljax.engine.resumable import ResumableSweep
from lljax.engine.trackers import Trackers
from lljax.engine.workdir import Workdir
from lljax.step_control import OuterState, StepControl
from lljax.tasks.config import ExperimentConfig, policy_optimizer
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
      snapshot_steps: the outer steps whose policy is analysed.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        problem: PolicyProblem,
        workdir: Workdir,
        plan: MemoryPlan,
        open_trackers: Callable[[int], Trackers],
    ):
        """`open_trackers` opens the run's trackers, given the outer step that comes next."""
        inner, outer = config.inner, config.outer
        self.metrics: list[Metrics] = []
        self.snapshot_steps = snapshot_steps(outer.num_steps)
        self._config, self._problem = config, problem
        self._workdir, self._open_trackers = workdir, open_trackers
        self._uniform = lljax.uniform_policy(inner.num_steps, problem.num_train)
        self._analyse = build_analysis(problem, inner.microbatch_size)
        self._meta_gradient = MetaGradient(
            problem, inner, plan, active_set=outer.check_every is not None
        )
        control = lljax.build_step_control(
            policy_optimizer(outer), grow=outer.grow, shrink=outer.shrink
        )
        self._control = StepControl(*(jax.jit(function) for function in control))
        every = outer.checkpoint_seconds
        self._sweeps = SweepCheckpoints(workdir.sweep, every)
        self._looks = SweepCheckpoints(
            workdir.look, every, label="look at all examples, outer step"
        )

    def optimize(self) -> None:
        """All outer steps that are not done yet."""
        outer = self._config.outer
        with self._open_checkpoints() as checkpoints:
            latest = checkpoints.latest_step()
        if latest is None:
            self._workdir.restart()
        next_step = 0 if latest is None else latest + 1
        with self._open_checkpoints() as checkpoints, self._open_trackers(next_step) as trackers:
            self._trackers = trackers
            if latest is None:
                latest, state = 0, self._begin(checkpoints)
            else:
                self.metrics = self._workdir.read_metrics(latest)
                state = checkpoints.restore(latest)
                log(f"continuing after outer step {latest}, from {self._workdir.checkpoints}")
            with tqdm(total=outer.num_steps, initial=latest, disable=None, unit="step") as bar:
                for step in range(latest + 1, outer.num_steps + 1):
                    if metrics.is_out_of_patience(self.metrics, outer.patience):
                        best = metrics.best_step(self.metrics)
                        log(f"stopped: no better validation AUC since outer step {best}")
                        break
                    state = self._outer_step(step, state, checkpoints)
                    bar.update()
        self._sweeps.clear()

    def best_policy(self) -> BestPolicy:
        """Once all outer steps are done."""
        step = metrics.best_step(self.metrics)
        with self._open_checkpoints() as checkpoints:
            policy = checkpoints.restore(step).policy
            if self._looks_at_all(step):
                return BestPolicy(step, policy, self.metrics[step]["optimality_gap"])
            after_the_last = self.metrics[-1]["outer_step"] + 1
            with self._sweep(self._looks, after_the_last, policy, checkpoints) as look:
                look.forward()
                gap = metrics.mean_gap(policy, look.backward().policy_grad)
        return BestPolicy(step, policy, gap)

    def clear(self) -> None:
        """Removes what only an unfinished run needs, once its results are written."""
        self._looks.clear()

    def analysis(self, step: int, policy: jax.Array) -> Analysis:
        """The analysis of the policy of an outer step, from the workdir if it was made before."""
        if not self._workdir.has_snapshot(step):
            with AnalysisProgress(f"analysis of outer step {step}") as progress:
                analysis = self._analyse(policy, progress.update)
            self._workdir.save_snapshot(step, analysis)
        return self._workdir.read_snapshot(step)

    def _open_checkpoints(self) -> Checkpoints:
        shape = jax.ShapeDtypeStruct(self._uniform.shape, self._uniform.dtype)
        objective = jax.ShapeDtypeStruct((), np.float32)
        template = jax.eval_shape(self._control.begin, shape, objective, shape)
        return Checkpoints(self._workdir.checkpoints, template)

    def _begin(self, checkpoints: Checkpoints) -> OuterState:
        """Outer step 0: the conventional policy, its meta-gradient and its metrics."""
        started, rate = time.monotonic(), self._config.inner.learning_rate
        with self._sweep(self._sweeps, 0, self._uniform, checkpoints) as first:
            divergence.check_losses(first.forward(), rate)
            sweep = first.backward()
        divergence.check_gradient(sweep, rate)
        state = self._control.begin(self._uniform, sweep.objective, sweep.policy_grad)
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
                return trial.sweep.objective, lambda: trial.backward(complete).policy_grad

            def look_at_all(policy):
                look = self._sweep(self._looks, step, policy, checkpoints)
                running.enter_context(look)
                look.forward()
                done["look"] = look.backward()
                return look.sweep.policy_grad

            def choose(predicate, if_true, if_false):
                if not predicate:
                    running.close()  # a losing trial frees its states before anything new is made
                return lljax.choose_on_host(predicate, if_true, if_false)

            state = lljax.try_policy(
                self._control, state, evaluate, look_at_all, complete=complete, choose=choose
            )
        measured = dict(self.metrics[-1])
        if "look" in done:
            measured["optimality_gap"] = metrics.mean_gap(state.policy, done["look"].policy_grad)
        elif state.accepted:
            measured = self._measure(state, done["trial"])
        self._record(step, state, measured, started, checkpoints)
        return state

    def _sweep(
        self, saved: SweepCheckpoints, step: int, policy: jax.Array, checkpoints: Checkpoints
    ) -> ResumableSweep:
        return ResumableSweep(self._meta_gradient, saved, step, policy, checkpoints)

    def _looks_at_all(self, step: int) -> bool:
        """Whether an outer step's gradient holds the examples without weight too."""
        every = self._config.outer.check_every
        return every is None or step % every == 0

    def _measure(self, state: OuterState, sweep: Sweep) -> Metrics:
        conventional = self.analysis(0, self._uniform)
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
        if step in self.snapshot_steps:
            self.analysis(step, state.policy)
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
        checkpoints.save(step, state, measured["validation_auc"] if best else np.inf)
        log(metrics.in_words(self.metrics, self._config.outer.num_steps))
