"""What `lljax plan` says of a config against what a few real steps then measure.

    python -m benchmarks.plan_accuracy CONFIG [--steps 4] [flags as for `lljax run`]

The config's run is cut to a few inner steps in segments of two; batches and model keep their sizes.
One outer step of it is taken, then its plan is made: measured are the seconds of an inner step and
the peak of memory, on an accelerator what its allocator reports, on a CPU the growth of the process
during that step beside the arrays it had before.
"""

import argparse
import dataclasses
import statistics
import time

import jax
import numpy as np
import tyro

import lljax
from benchmarks.machine import PeakMemory
from lljax.engine.memory_plan import in_memory, plan_memory
from lljax.engine.meta_gradient import MetaGradient
from lljax.engine.placement import device_name
from lljax.engine.plan import describe, plan_run
from lljax.tasks import Experiment, meta_optimizer
from lljax.tasks.build import build_problem
from lljax.tasks.config_file import load_experiment


def cut(config, steps: int):
    inner = dataclasses.replace(config.inner, num_steps=steps, segments=max(2, steps // 2))
    outer = dataclasses.replace(config.outer, num_steps=1)
    return dataclasses.replace(config, inner=inner, outer=outer)


def measure(experiment: Experiment) -> tuple[float, float, float]:
    """Seconds of an inner step, forward and backward, and peak bytes, of an outer step."""
    config = experiment.config
    problem = build_problem(experiment)
    plan = in_memory(plan_memory(problem, config.inner))
    meta_gradient = MetaGradient(problem, config.inner, plan)
    control = lljax.build_step_control(meta_optimizer(config.outer))
    uniform = lljax.uniform_policy(config.inner.num_steps, problem.num_train)

    def outer_step(policy):
        sweep = meta_gradient.new_sweep()
        moments: dict[str, list[float]] = {"forward": [], "backward": []}
        for name, times in moments.items():
            run = getattr(meta_gradient, f"run_{name}")
            run(policy, sweep, lambda _, times=times: times.append(time.monotonic()))
        # The first segment of a sweep also holds what the sweep does but once.
        length = plan.segment_length
        return sweep, [statistics.median(np.diff(times)) / length for times in moments.values()]

    sweep, _ = outer_step(uniform)  # compiles
    state = control.begin(uniform, sweep.objective, sweep.policy_grad)
    propose, take = jax.jit(control.propose), jax.jit(control.take)
    jax.block_until_ready(take(state, sweep.objective, sweep.policy_grad))
    # An accelerator's allocator counts these too.
    arrays = 0 if jax.devices()[0].memory_stats() else sum(a.nbytes for a in jax.live_arrays())
    with PeakMemory() as peak:
        sweep, (forward, backward) = outer_step(propose(state))
        jax.block_until_ready(take(state, sweep.objective, sweep.policy_grad))
    return forward, backward, arrays + peak.bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a config file, or the name of a shipped one")
    parser.add_argument("--steps", type=int, default=4, help="inner steps, an even number >= 4")
    options, flags = parser.parse_known_args()
    experiment = load_experiment(options.config)
    config = tyro.cli(type(experiment.config), default=experiment.config, args=flags)
    experiment = experiment._replace(config=cut(config, options.steps))
    print(f"{device_name()}, jax {jax.__version__}", flush=True)
    forward, backward, peak = measure(experiment)  # first: an accelerator counts from its start
    plan = plan_run(experiment)
    print(describe(plan), flush=True)
    planned = plan.peak_bytes(plan.memory.mode)
    rows = {
        "forward, s a step": (plan.forward_seconds, forward),
        "backward, s a step": (plan.backward_seconds, backward),
        "both, s a step": (plan.forward_seconds + plan.backward_seconds, forward + backward),
        "peak memory, MB": (planned / 1e6, peak / 1e6),
    }
    print(f"\n{'':<20}{'planned':>12}{'measured':>12}{'planned / measured':>20}")
    for name, (said, found) in rows.items():
        print(f"{name:<20}{said:>12.4g}{found:>12.4g}{said / found:>20.2f}")


if __name__ == "__main__":
    main()
