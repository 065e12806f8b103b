"""One experiment from config to report, resumable after any outer step."""

import dataclasses
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import lljax
from lljax.experiment import evaluate
from lljax.experiment.checkpoints import Checkpoints
from lljax.experiment.config import ExperimentConfig
from lljax.experiment.errors import RunFailed
from lljax.experiment.evaluate import number
from lljax.experiment.problem import Problem, build_problem, memory_strategy, policy_optimizer
from lljax.experiment.results import load_results
from lljax.experiment.workdir import Workdir, write_json, write_npy, write_npz
from lljax.policy_optimizer import OuterLoop, OuterState

Metrics = dict[str, Any]

DIVERGED = 10  # times the initial loss


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
    experiment = _Experiment(config, build_problem(config), workdir)
    log(
        f"{config.task}: T = {config.inner.num_steps} inner steps, N = "
        f"{experiment.problem.num_train} training examples, {config.outer.num_steps} outer steps "
        f"on {device_name()}; files in {workdir.root}"
    )
    experiment.optimize()
    experiment.evaluate()


def log(message: str) -> None:
    """A line for people, that does not tear a progress bar."""
    tqdm.write(message, file=sys.stderr)
    sys.stderr.flush()


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
    metrics: list[Metrics] = dataclasses.field(default_factory=list)  # of outer steps 0, 1, ...

    def __post_init__(self) -> None:
        inner, outer = self.config.inner, self.config.outer
        problem = self.problem
        self.uniform = lljax.uniform_policy(inner.num_steps, problem.num_train)
        self.monitor = evaluate.build_monitor(problem, inner.microbatch_size)
        self.analyse = evaluate.build_analysis(problem, inner.microbatch_size)
        loss_auc = lljax.build_loss_auc(
            problem.loss_fn,
            problem.optimizer,
            memory=memory_strategy(inner),
            microbatch_size=inner.microbatch_size,
        )
        loop = lljax.build_outer_loop(
            loss_auc, policy_optimizer(outer), grow=outer.grow, shrink=outer.shrink
        )
        self.loop = OuterLoop(jax.jit(loop.init), jax.jit(loop.step))
        # Figures 6 to 8 follow the optimisation, which gains most in its first steps.
        halvings = (outer.num_steps >> k for k in range(outer.num_steps.bit_length()))
        self.snapshot_steps = {0, *list(halvings)[1:8]}

    @property
    def best_step(self) -> int:
        return max(line["outer_step"] for line in self.metrics if line["best"])

    def data(self) -> tuple[Any, Any, Any]:
        return self.problem.params, self.problem.train, self.problem.objective

    def checkpoints(self) -> Checkpoints:
        template = jax.eval_shape(self.loop.init, self.uniform, *self.data())
        return Checkpoints(self.workdir.checkpoints, template)

    def optimize(self) -> None:
        """All outer steps that are not done yet."""
        outer = self.config.outer
        self.conventional = self.monitor(self.uniform)
        self._check_conventional()
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

    def _begin(self, checkpoints: Checkpoints) -> OuterState:
        """Outer step 0: the conventional policy, its meta-gradient and its metrics."""
        started = time.monotonic()
        state = self.loop.init(self.uniform, *self.data())
        bad = ~np.isfinite(np.asarray(state.policy_grad)).all(axis=1)
        if bad.any():
            raise RunFailed(
                f"the meta-gradient of the conventional policy is not finite at {bad.sum()} of "
                f"{bad.size} inner steps, first at step {np.argmax(bad)}: the training is "
                f"unstable. Lower inner.learning_rate ({self.config.inner.learning_rate})."
            )
        self._record(0, state, self.conventional, started, checkpoints)
        return state

    def _outer_step(self, step: int, state: OuterState, checkpoints: Checkpoints) -> OuterState:
        started = time.monotonic()
        state = jax.block_until_ready(self.loop.step(state, *self.data()))
        curves = self.monitor(state.policy) if state.accepted else None
        self._record(step, state, curves, started, checkpoints)
        return state

    def _record(
        self,
        step: int,
        state: OuterState,
        curves: evaluate.Analysis | None,
        started: float,
        checkpoints: Checkpoints,
    ) -> None:
        """Writes an outer step's metrics, then its checkpoint, so that no metrics are missing."""
        if curves is None:
            measured = {key: self.metrics[-1][key] for key in _MEASURED}
        else:
            measured = self._measure(curves)
        # A policy under which validation diverges is never the best.
        aucs = [_or_infinite(line["validation_auc"]) for line in [*self.metrics, measured]]
        best = curves is not None and aucs[-1] < min(aucs[:-1], default=np.inf)
        if step in self.snapshot_steps:
            self._save_snapshot(step, state.policy)
        gap = lljax.optimality_gap(state.policy, state.policy_grad).mean()
        line = {
            "outer_step": step,
            "objective": number(state.auc),
            **measured,
            "optimality_gap": number(gap),
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

    def _measure(self, curves: evaluate.Analysis) -> Metrics:
        desired, validation = curves["desired"], curves["validation"]
        ratios = {
            name: lljax.acceleration_ratio(self.conventional[name], curves[name])
            for name in ("desired", "validation")
        }
        return {
            "auc": number(desired[1:].mean()),
            "compression_ratio": number(lljax.compression_ratio(desired, self.problem.vocab_size)),
            "validation_auc": number(validation[1:].mean()),
            "desired_acceleration_ratio": number(ratios["desired"]),
            "validation_acceleration_ratio": number(ratios["validation"]),
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

    def _check_conventional(self) -> None:
        losses = np.asarray(self.conventional["desired"])
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

    def _save_snapshot(self, step: int, policy: jax.Array) -> None:
        arrays = evaluate.snapshot(self.analyse(policy), self.problem.vocab_size)
        self.workdir.save_snapshot(step, arrays)

    def evaluate(self) -> None:
        """Measures the kept policy against the conventional one; writes every result and report."""
        from lljax.experiment import report  # matplotlib, jinja2: not needed before

        started, best = time.monotonic(), self.best_step
        with self.checkpoints() as checkpoints:
            kept = checkpoints.restore(best)
        policies = {"conventional": self.uniform, "optimized": kept.policy}
        analyses = {name: self.analyse(policy) for name, policy in policies.items()}
        path = {s: self.workdir.read_snapshot(s) for s in sorted(self.snapshot_steps) if s < best}
        path[best] = evaluate.snapshot(analyses["optimized"], self.problem.vocab_size)
        gaps = {
            "conventional": self.metrics[0]["optimality_gap"],
            "optimized": self.metrics[best]["optimality_gap"],
        }
        policy = np.asarray(kept.policy, np.float32)
        write_npy(self.workdir.policy, policy)
        write_npz(self.workdir.analysis, evaluate.collect_arrays(analyses, policy, path))
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
            **evaluate.summarise(analyses, gaps, self.problem.vocab_size),
        }
        write_json(self.workdir.summary, summary)
        log(f"report: {report.render(self.workdir.root)}")
        _print_table(self.workdir)

    def _compile_seconds(self) -> float:
        """What the first outer step took longer than the typical one."""
        seconds = [line["seconds"] for line in self.metrics[1:]]
        return max(0.0, seconds[0] - float(np.median(seconds))) if seconds else 0.0


def _or_infinite(value: float | None) -> float:
    return np.inf if value is None else value


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _print_table(workdir: Workdir) -> None:
    from lljax.experiment import report

    print(report.summary_table(load_results(workdir.root).summary))


_MEASURED = (
    *("auc", "compression_ratio", "validation_auc"),
    *("desired_acceleration_ratio", "validation_acceleration_ratio"),
)


def versions() -> dict[str, str]:
    packages = ("lljax", "jax", "jaxlib", "optax", "orbax-checkpoint", "numpy")
    found = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version(), **found}
