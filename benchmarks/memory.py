"""Peak memory and time of one meta-gradient while T grows, under a fixed budget for states.

    python -m benchmarks.memory [--steps 100 1000 10000] [--budget-mb 40]

A small Transformer (42 thousand parameters), one process a measurement. "Peak" is the largest
resident memory of the process less that before the gradient was computed; it holds the states, the
activations of a micro-batch, and the policy with its gradient, which grow with T by themselves.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

SHAPE = {"vocab_size": 256, "context": 16, "width": 32, "num_heads": 4}
NUM_TRAIN, NUM_DESIRED = 8, 4
BUDGETED, STORED = "budget", "stored"


def measure(num_steps: int, strategy: str, budget_mb: float, repeats: int) -> dict:
    """One measurement, in this process."""
    import jax
    import numpy as np
    import optax
    import psutil

    import lljax
    from lljax.memory import states_held
    from lljax.models.transformer import TokenSequences, Transformer, init_params, sequence_loss

    model = Transformer(**SHAPE, initialization="torch")
    params = init_params(model, jax.random.key(0))
    shape = (NUM_TRAIN + NUM_DESIRED, SHAPE["context"] + 1)
    tokens = jax.random.randint(jax.random.key(1), shape, 2, SHAPE["vocab_size"])
    train, desired = TokenSequences(tokens[:NUM_TRAIN]), TokenSequences(tokens[NUM_TRAIN:])
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    most = int(budget_mb * 1e6 // state_bytes)
    memory = lljax.StoreStates()
    if strategy == BUDGETED and num_steps > most:
        memory = lljax.recompute_within(num_steps, most)
    loss_auc = lljax.build_loss_auc(sequence_loss(model), optax.sgd(0.1), memory=memory)
    gradient = jax.jit(jax.grad(loss_auc, has_aux=True))
    policy = lljax.uniform_policy(num_steps, NUM_TRAIN)
    program = gradient.lower(policy, params, train, desired).compile()
    before = psutil.Process().memory_info().rss
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        grads, _ = jax.block_until_ready(program(policy, params, train, desired))
        seconds.append(time.perf_counter() - started)
    # A high-water mark, so compilation, if it took more, hides what was computed.
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    direction = np.random.default_rng(0).standard_normal(grads.shape)
    return {
        "num_steps": num_steps,
        "memory": str(memory),
        "states": states_held(memory, num_steps),
        "temporary_mb": program.memory_analysis().temp_size_in_bytes / 1e6,
        "peak_mb": peak / 1e6,
        "seconds": seconds,
        "projection": float(np.vdot(direction, grads) / np.linalg.norm(grads)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--budget-mb", type=float, default=40.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        (num_steps,) = arguments.steps
        found = measure(num_steps, arguments.measure, arguments.budget_mb, arguments.repeats)
        print(json.dumps(found))
        return
    print(f"budget for states: {arguments.budget_mb:g} MB")
    print(
        f"{'T':>7} {'':<9}{'states':>7}{'temporary MB':>14}{'peak MB':>9}"
        f"{'s (min / median / max)':>26}{'ratio':>7}  strategy"
    )
    for num_steps in arguments.steps:
        medians = {}
        projections = []
        for strategy in (STORED, BUDGETED):
            command = [sys.executable, "-m", "benchmarks.memory", "--measure", strategy]
            for name in ("budget_mb", "repeats"):
                command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
            output = subprocess.run(
                [*command, "--steps", str(num_steps)], check=True, capture_output=True, text=True
            )
            found = json.loads(output.stdout)
            projections.append(found["projection"])
            medians[strategy] = statistics.median(found["seconds"])
            span = " / ".join(f"{f(found['seconds']):.2f}" for f in (min, statistics.median, max))
            print(
                f"{num_steps:>7} {strategy:<9}{found['states']:>7}{found['temporary_mb']:>14.1f}"
                f"{found['peak_mb']:>9.1f}{span:>26}{medians[strategy] / medians[STORED]:>7.2f}"
                f"  {found['memory']}",
                flush=True,
            )
        print(
            f"{'':>17}the gradients' projections on a random direction differ by "
            f"{abs(projections[1] - projections[0]):.1e} of their norm"
        )


if __name__ == "__main__":
    main()
