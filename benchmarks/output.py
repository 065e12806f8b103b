"""Where the benchmarks' figures go: a JSON file that grows part by part, and a plot of it."""

import argparse
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.machine import describe_machine, in_words

DPI = 120


class Output:
    """Says what the figures are measured on, and keeps each part as soon as it is there.

    Attributes:
      results: the parts measured in this run, by name.
    """

    def __init__(self, name: str, folder: Path | None):
        self._path = folder / f"{name}.json" if folder else None
        self._machine = describe_machine()
        self.results: dict[str, dict] = {}
        print(in_words(self._machine), flush=True)

    @staticmethod
    def add_option(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--out",
            type=Path,
            help="folder for a JSON file, where parts not run now stay, and a plot",
        )

    @staticmethod
    def add_repeats(parser: argparse.ArgumentParser, default: int) -> None:
        def positive(text):
            if (count := int(text)) < 1:
                raise ValueError(text)
            return count

        parser.add_argument("--repeats", type=positive, default=default)

    def add(self, part: str, result: dict) -> None:
        self.results[part] = result | {"machine": self._machine}
        if self._path is None:
            return
        write(self._path, read(self._path) | self.results)

    def draw(self, plot: Callable) -> None:
        """All parts in the file, those of earlier runs too."""
        if self._path:
            draw(self._path, plot)


def draw(path: Path, plot: Callable) -> None:
    """What `plot` makes of all parts of a JSON file, beside it."""
    plot(read(path)).savefig(path.with_suffix(".png"), dpi=DPI)


def read(path: Path) -> dict[str, dict]:
    """The parts that a benchmark has measured there, by name; none without a file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, parts: dict[str, dict]) -> None:
    """The opposite of `read`, in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(parts, indent=1) + "\n")
    os.replace(unfinished, path)


def spread_table(parts: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Minimum, median and maximum of every figure, below the title of its part."""
    width = 4 + max((len(figure) for figures in parts.values() for figure in figures), default=0)
    lines = [f"{'':<{width}}{'min':>10}{'median':>10}{'max':>10}"]
    for title, figures in parts.items():
        lines.append(title)
        for figure, values in figures.items():
            cells = min(values), statistics.median(values), max(values)
            lines.append(f"  {figure:<{width - 2}}" + "".join(f"{cell:>10.4g}" for cell in cells))
    return "\n".join(lines)


def subplots(rows: int, columns: int, width: float, height: float):
    """(figure, axes [rows, columns]), every plot of this size in inches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    size = (width * columns, height * rows)
    return pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def use_log_scale(axis) -> None:
    """Of the x axis of a plot that is drawn, its ticks as plain numbers that have room."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 3000 * low else (1,)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter("{x:g}")
