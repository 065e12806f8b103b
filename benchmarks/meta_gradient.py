"""One meta-gradient by every way a user could pick: time, memory, arithmetic speed and error.

    python -m benchmarks.meta_gradient [--problems perceptron transformer minibatch] [--repeats 5]
        [--public-code LMOps/learning_law/src] [--only NAME ...] [--steps T] [--out FOLDER]

Each way runs in a process of its own and they take turns, in every round in another random order,
so that a slow moment of the machine, or what a way leaves behind, hits all of them; ratios are
medians of ratios within a round. A product of square matrices runs before every turn: the share of
the peak is model FLOP/s (what an algorithm that keeps no activations needs, not what a way
repeats) over the median speed of the products of that round.
The error is the largest deviation from a float64 gradient, which a plain differentiated scan
computes, over the largest entry. Peers that are not installed are left out, with a line saying how
to get them.

Products are float32. On a GPU, JAX_DEFAULT_MATMUL_PRECISION=tensorfloat32 (or bfloat16) in the
environment sets those of all ways, PyTorch's too, and of the yardstick.
"""

import argparse
import contextlib
import random
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.checkouts import Sources, add_checkouts, given
from benchmarks.contenders import CONTENDERS, fits
from benchmarks.machine import ratio, span
from benchmarks.output import Output, subplots, use_log_scale
from benchmarks.problems import PROBLEMS
from benchmarks.worker import PRODUCT, Worker, WorkerEndedError

OURS = "lljax"
GROUPS = {"minibatch": [name for name in PROBLEMS if name.startswith("minibatch")]}
REFERENCE = "scan, jax.checkpoint"  # in float64


def measure(
    problem_name: str, sizes: dict, names: list[str], repeats: int, sources: Sources
) -> dict:
    """Figures of all ways in `names` that can be had; plain values, for a JSON file."""
    problem = PROBLEMS[problem_name](**sizes)
    job = {
        "problem": problem_name,
        "sizes": sizes,
        "sources": {source: str(path) for source, path in sources.items()},
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

        def start(name, **more):
            worker = Worker(job | {"contender": name} | more)
            stack.callback(worker.close)
            return worker

        reference = start(REFERENCE, float64=True)
        reference.read()
        expected = _ask_gradient(reference, folder)[0]
        reference.close()
        product = start(PRODUCT)
        product_flops = product.read()["flops"]
        workers, results = {}, {}
        for name in tqdm(names, desc=f"{problem_name}: compiling", leave=False):
            try:
                worker = start(name)
                ready = worker.read()
                if "missing" in ready:
                    print(f"{name}: left out. To have it: {ready['missing']}", file=sys.stderr)
                    continue
                gradient, peak = _ask_gradient(worker, folder)
            except WorkerEndedError as ended:
                print(f"{ended}; left out", file=sys.stderr)
                continue
            error = float(np.abs(gradient - expected).max() / np.abs(expected).max())
            figures = {"peak_bytes": peak, "error": error, "seconds": []}
            results[name], workers[name] = ready | figures, worker
        shuffle, product_seconds = random.Random(0), []
        for _ in tqdm(range(repeats), desc=f"{problem_name}: rounds", leave=False):
            if not results:
                break
            of_round = []
            for name in shuffle.sample(list(results), len(results)):
                of_round.append(product.ask()["seconds"])
                try:
                    results[name]["seconds"].append(workers[name].ask()["seconds"])
                except WorkerEndedError as ended:
                    print(f"{ended}; left out", file=sys.stderr)
                    del results[name]
            product_seconds.append(statistics.median(of_round))
    speed = [product_flops / seconds for seconds in product_seconds]
    for result in results.values():
        achieved = [problem.flops / seconds for seconds in result["seconds"]]
        result["flops_per_second"] = statistics.median(achieved)
        result["share_of_peak"] = ratio(achieved, speed)
    return {
        "num_steps": problem.num_steps,
        "num_train": problem.num_train,
        "batch_size": problem.batch_size,
        "num_desired": problem.num_desired,
        "tokens": problem.tokens,
        "flops": problem.flops,
        "product_flops": product_flops,
        "product_seconds": product_seconds,
        "contenders": results,
    }


def _ask_gradient(worker: Worker, folder: str) -> tuple[np.ndarray, int]:
    path = str(Path(folder) / "gradient.npy")
    peak = worker.ask(save=path)["peak_bytes"]
    return np.load(path), peak


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    return "\n\n".join(_table_of_problem(name, one) for name, one in results.items())


def _table_of_problem(problem: str, result: dict) -> str:
    steps, examples = result["num_steps"], result["num_train"]
    batch = result.get("batch_size", examples)
    sizes = f"N = {examples}" if batch == examples else f"B = {batch} of N = {examples}"
    product_speed = [
        result["product_flops"] / seconds / 1e9 for seconds in result["product_seconds"]
    ]
    lines = [
        f"{problem}: T = {steps}, {sizes}, K = {result['num_desired']}; "
        f"{result['flops'] / steps / 1e9:.3g} GFLOP a step; the square matrix product does "
        f"{span(product_speed)} GFLOP/s; {len(product_speed)} rounds",
        "",
        "| | compile s | ms a step, min / median / max | lljax is faster by | examples/s "
        "| tokens/s | GFLOP/s | of peak | peak MB | error |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    ours = result["contenders"].get(OURS)
    for name, one in result["contenders"].items():
        per_step = [1e3 * seconds / steps for seconds in one["seconds"]]
        faster = f"{ratio(one['seconds'], ours['seconds']):.2f}" if ours else ""
        compiling = f"{one['compile_seconds']:.1f}" if one["compile_seconds"] else "none"
        rate = batch * 1e3 / statistics.median(per_step)
        lines.append(
            f"| {name} | {compiling} | {span(per_step)} | {faster} "
            f"| {rate:.3g} | {rate * result['tokens']:.3g} "
            f"| {one['flops_per_second'] / 1e9:.3g} | {100 * one['share_of_peak']:.0f} % "
            f"| {one['peak_bytes'] / 1e6:.0f} | {one['error']:.1e} |"
        )
    return "\n".join(lines)


def plot(results: dict[str, dict]):
    """A matplotlib figure."""
    figure, axes = subplots(1, len(results), 6.4, 3.8)
    for axis, (problem, result) in zip(axes[0], results.items(), strict=True):
        names = list(result["contenders"])
        for place, (name, one) in enumerate(result["contenders"].items()):
            times = [1e3 * seconds / result["num_steps"] for seconds in one["seconds"]]
            middle, color = statistics.median(times), "C0" if name.startswith(OURS) else "0.4"
            axis.plot([min(times), max(times)], [place, place], color=color)
            axis.plot(middle, place, "o", color=color)
            words = f"  {one['peak_bytes'] / 1e6:.0f} MB"
            axis.text(max(times), place, words, va="center", fontsize=8, color=color)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        use_log_scale(axis)
        axis.set_xlabel("milliseconds an inner step (median, min to max), peak memory")
        axis.set_title(problem)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choices = [*PROBLEMS, *GROUPS]
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=choices)
    Output.add_repeats(parser, 5)
    add_checkouts(parser)
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--steps", type=int, help="T; 2000, 8, 500 and 32 when left out")
    Output.add_option(parser)
    options = parser.parse_args()
    output = Output("meta_gradient", options.out)
    sizes = {"num_steps": options.steps} if options.steps else {}
    groups = (GROUPS.get(choice, [choice]) for choice in options.problems)
    for name in (name for group in groups for name in group):
        ways = [way for way in options.only or CONTENDERS if fits(way, name)]
        if not ways:
            print(f"{name}: none of --only is for it; left out", file=sys.stderr)
            continue
        one = measure(name, sizes, ways, options.repeats, given(options))
        if one["contenders"]:
            print(f"\n{table({name: one})}", flush=True)
            output.add(name, one)
    if output.results:
        output.draw(plot)


if __name__ == "__main__":
    main()
