"""What the benchmarks' command lines share: the machine in words, a JSON file, a picture."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, in_words

DPI = 120


class Output:
    """Says what the figures are measured on, and keeps them where `--out` says."""

    def __init__(self, name: str, folder: Path | None):
        self._name, self._folder = name, folder
        self._machine = describe_machine()
        print(in_words(self._machine), flush=True)

    @staticmethod
    def add_option(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--out", type=Path, help="folder for the figures as JSON, and a plot")

    def write(self, results: Any, plot: Callable[[Any], Any] | None = None) -> None:
        """NAME.json and, where `plot` draws the results, NAME.png."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        found = {"machine": self._machine, "results": results}
        (self._folder / f"{self._name}.json").write_text(json.dumps(found, indent=1) + "\n")
        if plot:
            plot(results).savefig(self._folder / f"{self._name}.png", dpi=DPI)


def subplots(rows: int, columns: int, width: float, height: float):
    """(figure, axes [rows, columns]), every plot of this size in inches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    size = (width * columns, height * rows)
    return pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
