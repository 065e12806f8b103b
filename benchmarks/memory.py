"""Peak memory and time of one meta-gradient while T grows, under a fixed budget for states.

    python -m benchmarks.memory [--steps 100 1000 10000 100000] [--budget-mb 24] [--out FOLDER]

A small Transformer (8.5 thousand parameters), one process a measurement. "Peak" is the growth of
that process's memory while the gradient is computed; it holds the states, the activations of a
micro-batch, and the policy with its gradient, which grow with T by themselves.
"""

import argparse
import json
import subprocess
import sys
import time

from benchmarks.machine import PeakMemory, ratio, span
from benchmarks.output import Output

SIZES = {"num_train": 16, "num_desired": 4}
SHAPE = {"vocab_size": 64, "context": 8, "width": 16, "num_heads": 2}
BUDGETED, STORED = "budget", "stored"
MINUTES_LONG = 100_000  # such a T is measured once


def measure(num_steps: int, strategy: str, budget_mb: float) -> dict:
    """One measurement, in this process."""
    import jax
    import numpy as np

    import lljax
    from benchmarks.contenders import lljax_way
    from benchmarks.problems import transformer
    from lljax.memory import states_held

    problem = transformer(num_steps, **SIZES, **SHAPE)
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(problem.params))
    most = int(budget_mb * 1e6 // state_bytes)
    memory: lljax.MemoryStrategy = lljax.StoreStates()
    if strategy == BUDGETED and num_steps > most:
        memory = lljax.recompute_within(num_steps, most)
    way = lljax_way(memory=memory)(problem)
    started = time.perf_counter()
    with PeakMemory() as peak:
        grads = jax.block_until_ready(way.gradient())
    seconds = time.perf_counter() - started
    direction = np.random.default_rng(0).standard_normal(grads.shape)
    return {
        "num_steps": num_steps,
        "memory": str(memory),
        "states": states_held(memory, num_steps),
        "temporary_mb": (way.temporary_bytes or 0) / 1e6,
        "peak_mb": peak.bytes / 1e6,
        "seconds": seconds,
        "projection": float(np.vdot(direction, grads)),
        "norm": float(np.linalg.norm(grads)),
    }


def compare(num_steps: int, options: argparse.Namespace) -> dict:
    """Both strategies at one T, in turns, each time in a new process."""
    found: dict[str, dict] = {}
    for _ in range(options.repeats if num_steps < MINUTES_LONG else 1):
        for strategy in (STORED, BUDGETED):
            command = [sys.executable, "-m", "benchmarks.memory", "--measure", strategy]
            command += ["--budget-mb", str(options.budget_mb), "--steps", str(num_steps)]
            output = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
            if output.returncode:
                sys.exit(
                    f"T = {num_steps}, {strategy}: the process that measures it ended with status "
                    f"{output.returncode} (-9: killed, out of memory?). What was measured before "
                    f"is kept; smaller T: --steps"
                )
            one = json.loads(output.stdout)
            one["seconds"] = [*found.get(strategy, {"seconds": []})["seconds"], one["seconds"]]
            found[strategy] = one
    return found


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    lines = [
        "| T | | strategy | states | temporary MB | peak MB | seconds, min / median / max "
        "| time, to stored | gradients differ by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for found in results.values():
        stored = found[STORED]
        for name in (STORED, BUDGETED):
            one = found[name]
            slower = ratio(one["seconds"], stored["seconds"])
            apart = abs(one["projection"] - stored["projection"]) / stored["norm"]
            lines.append(
                f"| {one['num_steps']} | {name} | {one['memory']} | {one['states']} "
                f"| {one['temporary_mb']:.1f} | {one['peak_mb']:.1f} | {span(one['seconds'])} "
                f"| {slower:.2f} | {apart:.1e} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--budget-mb", type=float, default=24.0)
    Output.add_repeats(parser, 3)
    Output.add_option(parser)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        (num_steps,) = options.steps
        print(json.dumps(measure(num_steps, options.measure, options.budget_mb)))
        return
    output = Output("memory", options.out)
    print(f"budget for states: {options.budget_mb:g} MB; projections of both gradients on a random")
    print("direction are compared, relative to their norm", flush=True)
    for num_steps in options.steps:
        one = compare(num_steps, options)
        print(table({str(num_steps): one}), flush=True)
        output.add(f"T = {num_steps}", one)


if __name__ == "__main__":
    main()
