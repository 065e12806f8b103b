"""Time and memory of a mini-batch meta-gradient while N grows, at a fixed batch size.

    python -m benchmarks.data_size [--sizes 1000 10000 100000] [--repeats 5] [--out FOLDER]

`build_loss_auc` in mini-batches through AdamW, one process for each N; they take turns. "Temporary"
is what the compiler plans beside arguments and result, "peak" the growth of the process's memory
while a gradient is computed; the data themselves are in neither.
"""

import argparse
import contextlib
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks.machine import ratio, span
from benchmarks.meta_gradient import OURS
from benchmarks.output import Output
from benchmarks.worker import Worker

SIZES = {
    "minibatch_perceptron": {"num_steps": 500, "batch_size": 1024, "num_desired": 512},
    "minibatch_transformer": {"num_steps": 4, "batch_size": 32, "num_desired": 32},
}


def measure(problem: str, sizes: dict[str, int], nums_train: list[int], repeats: int) -> dict:
    """Figures by N, as a string."""
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = {}
        for num_train in tqdm(nums_train, desc=f"{problem}: compiling", leave=False):
            job = {"contender": OURS, "problem": problem, "sizes": sizes | {"num_train": num_train}}
            workers[str(num_train)] = worker = Worker(job)
            stack.callback(worker.close)
            ready = worker.read()
            peak = worker.ask(save=str(Path(folder) / "gradient.npy"))["peak_bytes"]
            found[str(num_train)] = ready | {"peak_bytes": peak, "seconds": []}
        for _ in tqdm(range(repeats), desc=f"{problem}: rounds", leave=False):
            for num_train, worker in workers.items():
                found[num_train]["seconds"].append(worker.ask()["seconds"])
    return {"sizes": sizes, "by_num_train": found}


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    lines = [
        "| | N | temporary MB | peak MB | seconds, min / median / max | times the first |",
        "|---|---|---|---|---|---|",
    ]
    for problem, result in results.items():
        sizes, by_num_train = result["sizes"], result["by_num_train"]
        what = f"{problem}, T = {sizes['num_steps']}, B = {sizes['batch_size']}"
        first = next(iter(by_num_train.values()))["seconds"]
        for num_train, one in by_num_train.items():
            lines.append(
                f"| {what} | {num_train} | {(one['temporary_bytes'] or 0) / 1e6:.2f} "
                f"| {one['peak_bytes'] / 1e6:.1f} | {span(one['seconds'])} "
                f"| {ratio(one['seconds'], first):.2f} |"
            )
            what = ""
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--problems", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--steps", type=int, help="T of a shorter run, to try it")
    Output.add_repeats(parser, 5)
    Output.add_option(parser)
    options = parser.parse_args()
    output = Output("data_size", options.out)
    shorter = {"num_steps": options.steps} if options.steps else {}
    for problem in options.problems:
        one = measure(problem, SIZES[problem] | shorter, options.sizes, options.repeats)
        output.add(problem, one)
    print(table(output.results))


if __name__ == "__main__":
    main()
