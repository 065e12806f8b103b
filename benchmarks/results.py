"""Runs all benchmarks and writes benchmarks/RESULTS.md from what they measured.

    python -m benchmarks.results [--public-code LMOps/learning_law/src] [--only NAME ...]

Three to four hours on two CPU cores with every peer installed. Figures, plots and versions lie in
benchmarks/results/; what `--only` does not name (with no name: nothing is run) keeps its own.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import memory, meta_gradient, scaling, time_to_auc
from benchmarks.checkouts import CHECKOUTS, Sources, add_checkouts, given, option
from benchmarks.machine import in_words
from benchmarks.output import draw, read

HERE = Path(__file__).parent
FOLDER = HERE / "results"


CHAPTERS = {
    "meta_gradient": meta_gradient,
    "time_to_auc": time_to_auc,
    "scaling": scaling,
    "memory": memory,
}
TAKES = {"meta_gradient": tuple(CHECKOUTS), "time_to_auc": ("public_code",)}
"""The checkouts that a benchmark makes use of."""


def run(name: str, sources: Sources) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(FOLDER)]
    for source in TAKES.get(name, ()):
        if source in sources:
            command += [option(source), str(sources[source])]
    print(f"\n$ {' '.join(command[1:])}", flush=True)
    subprocess.run(command, check=True, cwd=HERE.parent)


def machines(found: dict[str, dict]) -> list[str]:
    """What each part was measured on, parts of one run together."""
    runs: dict[str, list[str]] = {}
    for part, result in found.items():
        runs.setdefault(in_words(result["machine"]), []).append(part)
    return [f"Machine ({'; '.join(of)}): {machine}." for machine, of in runs.items()]


def render() -> str:
    parts = ["# Results", "Written by `python -m benchmarks.results`; not to be edited by hand."]
    for name, module in CHAPTERS.items():
        found = read(FOLDER / f"{name}.json")
        if not found:
            continue
        about, _, how = (module.__doc__ or "").partition("\n\n    ")
        explanation = how.partition("\n\n")[2].strip()
        parts += [f"## {about}", explanation, *machines(found), module.table(found)]
        if hasattr(module, "plot"):
            draw(FOLDER / f"{name}.json", module.plot)
            parts.append(f"![{name}](results/{name}.png)")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_checkouts(parser)
    parser.add_argument("--only", nargs="*", choices=list(CHAPTERS), default=list(CHAPTERS))
    options = parser.parse_args()
    try:
        for name in options.only:
            run(name, given(options))
    finally:
        (HERE / "RESULTS.md").write_text(render())
        print(f"wrote {HERE / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
