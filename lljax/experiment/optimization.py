"""The outer steps of one experiment, resumable inside any of them."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import lljax
from lljax.experiment import evaluate
from lljax.experiment.checkpoints import Checkpoints, SweepCheckpoints
from lljax.experiment.config import ExperimentConfig
from lljax.experiment.errors import RunFailed
from lljax.experiment.evaluate import number
from lljax.experiment.memory_plan import MemoryPlan
from lljax.experiment.meta_gradient import MetaGradient, Sweep
from lljax.experiment.problem import Problem, policy_optimizer
from lljax.experiment.progress import AnalysisProgress, SweepProgress, log
from lljax.experiment.workdir import Workdir
from lljax.outer_loop import OuterState, StepControl, is_better

Metrics = dict[str, Any]
GoOn = Callable[[Sweep], bool]  # after the forward sweep: is the policy worth the backward one?

DIVERGED = 10  # times the initial loss


class Kept(NamedTuple):
    """The policy with the best validation AUC."""

    outer_step: int
    policy: jax.Array  # [T, N]
    optimality_gap: float | None  # over all examples, mean over t; None where it is not finite


@dataclasses.dataclass
class Optimization:
    """From the conventional policy to the kept one."""

    config: ExperimentConfig
    problem: Problem
    workdir: Workdir
    plan: MemoryPlan
    metrics: list[Metrics] = dataclasses.field(default_factory=list)  # of outer steps 0, 1, ...

    def __post_init__(self) -> None:
        inner, outer = self.config.inner, self.config.outer
        self.uniform = lljax.uniform_policy(inner.num_steps, self.problem.num_train)
        self.analyse = evaluate.build_analysis(self.problem, inner.microbatch_size)
        self.meta_gradient = MetaGradient(
            self.problem, inner, self.plan, active_set=outer.check_every is not None
        )
        control = lljax.build_step_control(
            policy_optimizer(outer), grow=outer.grow, shrink=outer.shrink
        )
        self.control = StepControl(*(jax.jit(function) for function in control))
        every = outer.checkpoint_seconds
        self.sweeps = SweepCheckpoints(self.workdir.sweep, every)
        self.looks = SweepCheckpoints(
            self.workdir.look, every, label="look at all examples, outer step"
        )
        self.snapshot_steps = evaluate.snapshot_steps(outer.num_steps)

    @property
    def best_step(self) -> int:
        return max(line["outer_step"] for line in self.metrics if line["best"])

    def checkpoints(self) -> Checkpoints:
        shape = jax.ShapeDtypeStruct(self.uniform.shape, self.uniform.dtype)
        auc = jax.ShapeDtypeStruct((), np.float32)
        template = jax.eval_shape(self.control.begin, shape, auc, shape)
        return Checkpoints(self.workdir.checkpoints, template)

    def optimize(self) -> None:
        """All outer steps that are not done yet."""
        outer = self.config.outer
        with self.checkpoints() as checkpoints:
            latest = checkpoints.latest_step()
        if latest is None:
            self.workdir.restart()
        with self.checkpoints() as checkpoints:
            if latest is None:
                latest, state = 0, self._begin(checkpoints)
            else:
                self.metrics = self.workdir.read_metrics(latest)
                state = checkpoints.restore(latest)
                log(f"continuing after outer step {latest}, from {self.workdir.checkpoints}")
            with tqdm(total=outer.num_steps, initial=latest, disable=None, unit="step") as bar:
                for step in range(latest + 1, outer.num_steps + 1):
                    if outer.patience and step - 1 - self.best_step >= outer.patience:
                        log(f"stopped: no better validation AUC since outer step {self.best_step}")
                        break
                    state = self._outer_step(step, state, checkpoints)
                    bar.update()
        self.sweeps.clear()

    def kept(self) -> Kept:
        """Once all outer steps are done."""
        step = self.best_step
        with self.checkpoints() as checkpoints:
            policy = checkpoints.restore(step).policy
            if self._looks_at_all(step):
                return Kept(step, policy, self.metrics[step]["optimality_gap"])
            after_the_last = self.metrics[-1]["outer_step"] + 1
            look = self._sweep(self.looks, after_the_last, policy, checkpoints)
        return Kept(step, policy, _gap(policy, look))

    def analysis(self, step: int, policy: jax.Array) -> evaluate.Analysis:
        """The analysis of the policy of an outer step, from the workdir if it was made before."""
        if not self.workdir.has_snapshot(step):
            with AnalysisProgress(f"analysis of outer step {step}") as progress:
                analysis = self.analyse(policy, progress.update)
            self.workdir.save_snapshot(step, analysis)
        return self.workdir.read_snapshot(step)

    def _begin(self, checkpoints: Checkpoints) -> OuterState:
        """Outer step 0: the conventional policy, its meta-gradient and its metrics."""
        started = time.monotonic()

        def check(sweep: Sweep) -> bool:
            self._check_conventional(sweep.desired)
            validation = sweep.curves["validation"]
            if not np.isfinite(validation).all():
                raise RunFailed(
                    f"the validation loss of the conventional policy is not finite from inner step "
                    f"{np.argmin(np.isfinite(validation))} on. Lower inner.learning_rate "
                    f"({self.config.inner.learning_rate:g})."
                )
            return True

        sweep = self._sweep(self.sweeps, 0, self.uniform, checkpoints, check)
        bad = ~np.isfinite(sweep.policy_grad).all(axis=1)
        if bad.any():
            raise RunFailed(
                f"the meta-gradient of the conventional policy is not finite at {bad.sum()} of "
                f"{bad.size} inner steps, first at step {np.argmax(bad)}: the training is "
                f"unstable. Lower inner.learning_rate ({self.config.inner.learning_rate})."
            )
        state = self.control.begin(self.uniform, sweep.auc, sweep.policy_grad)
        self._record(0, state, self._measure(state, sweep), started, checkpoints)
        return state

    def _outer_step(self, step: int, state: OuterState, checkpoints: Checkpoints) -> OuterState:
        started = time.monotonic()

        def sweep(policy: jax.Array, go_on: GoOn, all_examples: bool) -> Sweep:
            return self._sweep(self.sweeps, step, policy, checkpoints, go_on, all_examples)

        def look(policy: jax.Array) -> Sweep:
            return self._sweep(self.looks, step, policy, checkpoints)

        state, new = outer_step(self.control, state, sweep, look, self._looks_at_all(step))
        measured = dict(self.metrics[-1])
        if new and state.accepted:
            measured = self._measure(state, new)
        elif new:
            measured["optimality_gap"] = _gap(state.policy, new)
        self._record(step, state, measured, started, checkpoints)
        return state

    def _sweep(
        self,
        saved: SweepCheckpoints,
        step: int,
        policy: jax.Array,
        checkpoints: Checkpoints,
        go_on: GoOn = lambda _: True,
        all_examples: bool = True,
    ) -> Sweep:
        """The curves of a policy and, if they are worth it, its gradient; resumes a saved sweep."""
        label = f"{saved.label} {step}"
        new = self.meta_gradient.new_sweep()
        sweep = saved.restore(step, new)
        if sweep is not None:
            log(f"continuing within {label}, after {sweep.forward + sweep.backward} segments")
        sweep = sweep or new
        with SweepProgress(label, sweep, self.meta_gradient) as progress:

            def after_segment(sweep: Sweep) -> None:
                progress.update(sweep)
                saved.save_at_times(step, sweep, checkpoints)

            try:
                self.meta_gradient.run_forward(policy, sweep, after_segment)
                if go_on(sweep):
                    self.meta_gradient.run_backward(policy, sweep, after_segment, all_examples)
            finally:
                self.meta_gradient.release()
        return sweep

    def _looks_at_all(self, step: int) -> bool:
        """Whether an outer step's gradient holds the examples without weight too."""
        every = self.config.outer.check_every
        return every is None or step % every == 0

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
        # A policy under which validation diverges is never the best.
        aucs = [_or_infinite(line["validation_auc"]) for line in [*self.metrics, measured]]
        best = bool(state.accepted) and aucs[-1] < min(aucs[:-1], default=np.inf)
        line = {
            "outer_step": step,
            "objective": number(state.auc),
            **{key: measured[key] for key in _MEASURED},
            "step_size": number(state.scale * self.config.outer.learning_rate),
            "accepted": bool(state.accepted),
            "trial_objective": number(state.trial_auc),
            "best": best,
            "seconds": round(time.monotonic() - started, 3),
        }
        self.metrics.append(line)
        self.workdir.append_metrics(line)
        checkpoints.save(step, state, aucs[-1] if best else np.inf)
        self._log_step(line)

    def _measure(self, state: OuterState, sweep: Sweep) -> Metrics:
        conventional = self.analysis(0, self.uniform)
        desired, validation = map(jnp.asarray, (sweep.desired, sweep.curves["validation"]))
        ratios = {
            name: lljax.acceleration_ratio(jnp.asarray(conventional[name]), curve)
            for name, curve in (("desired", desired), ("validation", validation))
        }
        return {
            "auc": number(desired[1:].mean()),
            "compression_ratio": number(lljax.compression_ratio(desired, self.problem.vocab_size)),
            "validation_auc": number(validation[1:].mean()),
            "desired_acceleration_ratio": number(ratios["desired"]),
            "validation_acceleration_ratio": number(ratios["validation"]),
            # An example that was left out might widen it.
            "optimality_gap": _gap(state.policy, sweep) if state.complete else None,
        }

    def _log_step(self, line: Metrics) -> None:
        step, total = line["outer_step"], self.config.outer.num_steps
        recent = [earlier["seconds"] for earlier in self.metrics[1:][-10:]]
        left = tqdm.format_interval(np.mean(recent) * (total - step)) if recent else "--:--"
        note = "  kept" if line["best"] else "" if line["accepted"] else "  taken back"
        log(
            f"outer {step:>{len(str(total))}}/{total}  AUC {_cell(line['auc'], '.4f')}  held-out "
            f"AUC {_cell(line['validation_auc'], '.4f')} AR "
            f"{_cell(line['validation_acceleration_ratio'], '.2f'):>5}  gap "
            f"{_cell(line['optimality_gap'], '.1e')}  step {line['step_size']:.2g}  left "
            f"{left}{note}"
        )

    def _check_conventional(self, losses: np.ndarray) -> None:
        rate = f"inner.learning_rate ({self.config.inner.learning_rate:g})"
        # A few early steps may overshoot; a run that ends far above its start has diverged.
        beyond = ~(losses <= DIVERGED * losses[0])
        if beyond[-1]:
            step = int(np.argmax(beyond))
            raise RunFailed(
                f"conventional training diverges: the desired loss is {losses[0]:.4g} at inner "
                f"step 0, {losses[step]:.4g} at step {step} and {losses[-1]:.4g} at the end. The "
                f"likely cause is a too high {rate}: lower it. Nothing in the workdir was lost."
            )
        if losses[-1] >= losses[0]:
            log(
                f"warning: conventional training does not learn: the desired loss goes from "
                f"{losses[0]:.4g} to {losses[-1]:.4g}. {rate} may be too high."
            )


def outer_step(
    control: StepControl,
    state: OuterState,
    sweep: Callable[[jax.Array, GoOn, bool], Sweep],
    look: Callable[[jax.Array], Sweep],
    complete: bool,
) -> tuple[OuterState, Sweep | None]:
    """One trial of a policy, by meta-gradients that the caller runs.

    Args:
      control: the rules.
      state: where the optimisation stands.
      sweep: of a policy; its backward part only if it may go on, over all examples or the active.
      look: a whole sweep of a policy over all examples.
      complete: whether this step is to end with a gradient that holds all examples.

    Returns:
      The state after it, and the sweep that its gradient is from; None where that is as before.
    """
    trial = sweep(control.propose(state), lambda done: bool(is_better(state, done.auc)), complete)
    if trial.backward:
        state = control.take(state, trial.auc, trial.policy_grad, complete)
        if state.accepted:
            return state, trial
    else:
        state = control.reject(state, trial.auc)
    if not complete or state.complete:
        return state, None
    looked = look(state.policy)
    return control.refresh(state, looked.policy_grad), looked


def _gap(policy: jax.Array, sweep: Sweep) -> float | None:
    """The optimality gap, mean over t."""
    return number(lljax.optimality_gap(policy, jnp.asarray(sweep.policy_grad)).mean())


def _or_infinite(value: float | None) -> float:
    return np.inf if value is None else value


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


_MEASURED = (
    *("auc", "compression_ratio", "validation_auc"),
    *("desired_acceleration_ratio", "validation_acceleration_ratio", "optimality_gap"),
)
