"""The Perceptron experiment over several seeds: minimum, median and maximum of the results.

    python -m benchmarks.perceptron_seeds [--seeds 0 1 2 3 4] [--workdir runs/seeds] [lljax flags]

Each seed is one `lljax run` (resumed or recognised where it stands already).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROWS = (
    ("desired AR", ("desired", "acceleration_ratio")),
    ("validation AR", ("validation", "acceleration_ratio")),
    ("test AR", ("test", "acceleration_ratio")),
    ("test AUC, conventional", ("test", "conventional", "auc")),
    ("test AUC, optimised", ("test", "optimized", "auc")),
    ("best outer step", ("best_outer_step",)),
    ("seconds of the run", ("seconds", "total")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/perceptron.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--workdir", type=Path, default=Path("runs/seeds"))
    options, flags = parser.parse_known_args()
    summaries = []
    for seed in options.seeds:
        workdir = options.workdir / f"seed{seed}"
        command = [sys.executable, "-m", "lljax", "run", options.config]
        command += ["--workdir", str(workdir), "--seed", str(seed), *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summaries.append(json.loads((workdir / "summary.json").read_text()))
    print(f"{options.config} {' '.join(flags)}: seeds {' '.join(map(str, options.seeds))}")
    print(f"{summaries[0]['device']}, load {os.getloadavg()[0]:.1f} at the end")
    print(f"{'':<24}{'min':>9}{'median':>9}{'max':>9}   each seed")
    for label, path in ROWS:
        values = [_get(summary, path) for summary in summaries]
        # An AR that is never reached is smaller than any that is.
        known = [0.0 if value is None else float(value) for value in values]
        cells = (min(known), statistics.median(known), max(known))
        print(f"{label:<24}" + "".join(f"{cell:>9.4g}" for cell in cells), end="   ")
        print(*("never" if value is None else f"{value:.4g}" for value in values))


def _get(tree, path):
    for key in path:
        tree = tree[key]
    return tree


if __name__ == "__main__":
    main()
