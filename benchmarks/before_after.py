"""One meta-gradient by this checkout of lljax and by another one: the same bits, the same time?

    python -m benchmarks.before_after CHECKOUT [--problems perceptron transformer] [--repeats 9]

CHECKOUT is the folder of another version of this project; each computes with its own lljax and its
own benchmarks. They take turns in a random order, in a process each; ratios are medians of ratios
within a round. Exit status 1 where the bits differ.
"""

import argparse
import contextlib
import random
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks.machine import ratio, span
from benchmarks.output import Output
from benchmarks.worker import Worker

HERE = Path(__file__).parent.parent
BEFORE, AFTER = "before", "after"


def checkout(text: str) -> Path:
    """An argparse type."""
    root = Path(text).resolve()
    if not (root / "benchmarks" / "worker.py").is_file():
        raise argparse.ArgumentTypeError(f"{root} is no checkout of lljax.")
    return root


def measure(job: dict, other: Path, repeats: int) -> dict:
    """Figures of both."""
    roots = {BEFORE: other, AFTER: HERE}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers, found, files = {}, {}, {}
        for name, root in roots.items():
            workers[name] = worker = Worker(job, root)
            stack.callback(worker.close)
            files[name] = Path(folder) / f"{name}.npy"
            found[name] = worker.read() | worker.ask(save=str(files[name])) | {"seconds": []}
        same = files[BEFORE].read_bytes() == files[AFTER].read_bytes()
        shuffle = random.Random(0)
        for _ in tqdm(range(repeats), desc=job["problem"], leave=False):
            for name in shuffle.sample(list(workers), len(workers)):
                found[name]["seconds"].append(workers[name].ask()["seconds"])
    return {"contender": job["contender"], "same_bits": same} | found


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    lines = [
        "| | | seconds, min / median / max | time, to before | temporary MB | peak MB | bits |",
        "|---|---|---|---|---|---|---|",
    ]
    for problem, one in results.items():
        for name in (BEFORE, AFTER):
            figures = one[name]
            slower = ratio(figures["seconds"], one[BEFORE]["seconds"])
            lines.append(
                f"| {problem}, {one['contender']} | {name} | {span(figures['seconds'])} "
                f"| {slower:.3f} | {figures['temporary_bytes'] / 1e6:.2f} "
                f"| {figures['peak_bytes'] / 1e6:.1f} "
                f"| {'the same' if one['same_bits'] else 'others'} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=checkout)
    parser.add_argument("--problems", nargs="+", default=["perceptron", "transformer"])
    parser.add_argument("--contender", default="lljax")
    parser.add_argument("--steps", type=int, help="T of a shorter run")
    Output.add_repeats(parser, 9)
    options = parser.parse_args()
    output = Output("before_after", None)
    sizes = {"num_steps": options.steps} if options.steps else {}
    for problem in options.problems:
        job = {"contender": options.contender, "problem": problem, "sizes": sizes}
        output.add(problem, measure(job, options.checkout, options.repeats))
    print(table(output.results))
    if not all(one["same_bits"] for one in output.results.values()):
        sys.exit("the bits differ")


if __name__ == "__main__":
    main()
