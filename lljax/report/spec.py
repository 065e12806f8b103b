"""What a figure of the report is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.figure import Figure

from lljax.artifacts.results import Results


@dataclasses.dataclass(frozen=True)
class FigureSpec:
    """One figure. It is left out if an array that it needs is missing or its data are empty.

    Attributes:
      name: the stem of its files; figures are shown in the order of their names.
      title: shown before the caption.
      needs: names of arrays in `lljax.artifacts.schema.ARRAYS`.
      draw: makes the figure, within the report's style.
      caption: says what this run shows, in sentences.
      absent: why it is left out, as the end of a sentence.
      applies: whether it is one of such a run, by its summary.json; else nothing is said of it.
      is_empty: whether the arrays are there but hold nothing to draw.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    draw: Callable[[Results], Figure]
    caption: Callable[[Results], str]
    absent: str = "this run recorded no data for it."
    is_empty: Callable[[Results], bool] = lambda results: False
    applies: Callable[[Mapping[str, Any]], bool] = lambda summary: True

    def reason_left_out(self, results: Results) -> str | None:
        missing = not set(self.needs) <= results.arrays.keys()
        return self.absent if missing or self.is_empty(results) else None
