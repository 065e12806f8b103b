"""One experiment from config to report, resumable inside any outer step."""

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from lljax.experiment.memory_plan import MemoryPlan, plan_memory
from lljax.experiment.meta_gradient import MetaGradient, Sweep, verify_offload
from lljax.experiment.problem import Problem, build_problem, fingerprint, policy_optimizer
from lljax.experiment.progress import AnalysisProgress, SweepProgress, log
from lljax.experiment.results import load_results
from lljax.experiment.workdir import Workdir, write_json, write_npy, write_npz
from lljax.outer_loop import OuterState, StepControl, is_better

Metrics = dict[str, Any]

DIVERGED = 10  # times the initial loss
OFFLOAD_ERROR = 1e-5  # relative; more and off-loading is not trusted


def run(config: ExperimentConfig, root: Path) -> None:
    """Runs an experiment in the folder `root`, or continues or recognises the one there.

    Raises:
      UserError: the folder is another run's or damaged, or the data are unusable.
      RunFailed: the inner training diverges.
    """
    workdir = Workdir(root)
    workdir.claim(config)
    if workdir.report.exists():
        log(f"{root} holds this run already, finished. Its report: {workdir.report}")
        _print_table(workdir)
        return
    with workdir.lock():
        _run(config, workdir)


def _run(config: ExperimentConfig, workdir: Workdir) -> None:
    problem = build_problem(config)
    workdir.claim_data(fingerprint(problem))
    plan = plan_memory(problem, config.inner)
    if plan.mode == "offload":
        error = verify_offload(problem, config.inner, plan)
        if np.isnan(error):
            log("off-loading cannot be verified: the gradient of stored states is not finite or 0")
        elif error > OFFLOAD_ERROR:
            log(
                f"warning: off-loaded states give a gradient that differs by {error:.1e} from that "
                f"of stored states, so states are recomputed instead. This is a defect of the JAX "
                f"version or of its driver."
            )
            plan = dataclasses.replace(plan, mode="recompute")
    experiment = _Experiment(config, problem, workdir, plan)
    log(
        f"{config.task}: T = {config.inner.num_steps} inner steps in {len(plan.segments)} "
        f"segments ({plan.mode}), N = {problem.num_train} training examples, "
        f"{config.outer.num_steps} outer steps on {device_name()}; files in {workdir.root}"
    )
    experiment.optimize()
    experiment.evaluate()


def device_name() -> str:
    device = jax.devices()[0]
    if device.platform == "cpu":
        return f"cpu ({platform.machine()}, {os.cpu_count()} cores)"
    return f"{device.device_kind} x {jax.device_count()}"


@dataclasses.dataclass
class _Experiment:
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
        self.sweeps = SweepCheckpoints(self.workdir.sweep, outer.checkpoint_seconds)
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

        sweep = self._sweep(0, self.uniform, check, checkpoints)
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

        def better(sweep: Sweep) -> bool:
            return bool(is_better(state, sweep.auc))

        sweep = self._sweep(step, self.control.propose(state), better, checkpoints)
        if sweep.backward:
            complete = self._looks_at_all(step)
            state = self.control.take(state, sweep.auc, sweep.policy_grad, complete)
        else:
            state = self.control.reject(state, sweep.auc)
        measured = dict(self.metrics[-1])
        if state.accepted:
            measured = self._measure(state, sweep)
        elif self._looks_at_all(step) and not state.complete:
            look = self._look("all examples", state.policy)
            state = self.control.refresh(state, look.policy_grad)
            measured["optimality_gap"] = _gap(state.policy, look)
        self._record(step, state, measured, started, checkpoints)
        return state

    def _sweep(
        self,
        step: int,
        policy: jax.Array,
        go_on: Callable[[Sweep], bool],
        checkpoints: Checkpoints,
    ) -> Sweep:
        """The curves of a policy and, if they are worth it, its gradient; resumes a saved sweep."""
        sweep = self.meta_gradient.new_sweep()
        saved = self.sweeps.restore(step, sweep)
        if saved is not None:
            segments = saved.forward + saved.backward
            log(f"continuing within outer step {step}, after {segments} segments")
        sweep = saved or sweep
        with SweepProgress(f"outer step {step}", sweep, self.meta_gradient) as progress:

            def after_segment(sweep: Sweep) -> None:
                progress.update(sweep)
                self.sweeps.save_at_times(step, sweep, checkpoints)

            try:
                self.meta_gradient.run_forward(policy, sweep, after_segment)
                if go_on(sweep):
                    self.meta_gradient.run_backward(
                        policy, sweep, after_segment, self._looks_at_all(step)
                    )
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
            self._analysis(step, state.policy)
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
        conventional = self._analysis(0, self.uniform)
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

    def _analysis(self, step: int, policy: jax.Array) -> evaluate.Analysis:
        """The analysis of the policy of an outer step, from the workdir if it was made before."""
        if not self.workdir.has_snapshot(step):
            with AnalysisProgress(f"analysis of outer step {step}") as progress:
                analysis = self.analyse(policy, progress.update)
            self.workdir.save_snapshot(step, analysis)
        return self.workdir.read_snapshot(step)

    def evaluate(self) -> None:
        """Measures the kept policy against the conventional one; writes every result and report."""
        from lljax.experiment import report  # matplotlib, jinja2: not needed before

        started, best = time.monotonic(), self.best_step
        with self.checkpoints() as checkpoints:
            kept = checkpoints.restore(best)
        steps = [step for step in sorted(self.snapshot_steps) if step < best]
        path = {step: self.workdir.read_snapshot(step) for step in steps}
        path[best] = self._analysis(best, kept.policy)
        # Where no outer step was an improvement the conventional policy is the kept one.
        analyses = {"conventional": path[0], "optimized": path[best]}
        gaps = {
            "conventional": self.metrics[0]["optimality_gap"],
            "optimized": self._kept_gap(best, kept.policy),
        }
        policy = np.asarray(kept.policy, np.float32)
        write_npy(self.workdir.policy, policy)
        arrays = evaluate.collect_arrays(self.problem, policy, path)
        write_npz(self.workdir.analysis, arrays)
        samples = evaluate.samples(self.problem, policy)
        if samples is not None:
            write_json(self.workdir.samples, samples)
        optimize = sum(line["seconds"] for line in self.metrics)
        evaluation = time.monotonic() - started
        seconds = {
            "compile": self._compile_seconds(),
            "optimize": optimize,
            "evaluate": evaluation,
            # Of all the sessions that a resumed run took.
            "total": optimize + evaluation,
        }
        summary = {
            "task": self.config.task,
            "seed": self.config.seed,
            "device": device_name(),
            "versions": versions(),
            "inner_steps": self.config.inner.num_steps,
            "outer_steps": self.metrics[-1]["outer_step"],
            "best_outer_step": best,
            "zero_weight_threshold": evaluate.ZERO_WEIGHT,
            "seconds": {key: round(value, 2) for key, value in seconds.items()},
            **evaluate.summarise(self.problem, analyses, gaps),
        }
        write_json(self.workdir.summary, summary)
        log(f"report: {report.render(self.workdir.root)}")
        _print_table(self.workdir)

    def _kept_gap(self, step: int, policy: jax.Array) -> float | None:
        """The mean optimality gap of the kept policy, over all examples."""
        if self._looks_at_all(step):
            return self.metrics[step]["optimality_gap"]
        return _gap(policy, self._look("optimality gap", policy))

    def _look(self, title: str, policy: jax.Array) -> Sweep:
        """The meta-gradient of a policy over all examples; begun again if it is interrupted."""
        sweep = self.meta_gradient.new_sweep()
        with SweepProgress(title, sweep, self.meta_gradient) as progress:
            self.meta_gradient.run_forward(policy, sweep, progress.update)
            self.meta_gradient.run_backward(policy, sweep, progress.update)
        return sweep

    def _compile_seconds(self) -> float:
        """What the first outer step took longer than the typical one."""
        seconds = [line["seconds"] for line in self.metrics[1:]]
        return max(0.0, seconds[0] - float(np.median(seconds))) if seconds else 0.0


def _gap(policy: jax.Array, sweep: Sweep) -> float | None:
    """The optimality gap, mean over t."""
    return number(lljax.optimality_gap(policy, jnp.asarray(sweep.policy_grad)).mean())


def _or_infinite(value: float | None) -> float:
    return np.inf if value is None else value


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _print_table(workdir: Workdir) -> None:
    from lljax.experiment import report

    print(report.summary_table(load_results(workdir.root).summary))


_MEASURED = (
    *("auc", "compression_ratio", "validation_auc"),
    *("desired_acceleration_ratio", "validation_acceleration_ratio", "optimality_gap"),
)


def versions() -> dict[str, str]:
    packages = ("lljax", "jax", "jaxlib", "optax", "orbax-checkpoint", "numpy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}
