"""The figures of the report; 4 to 11 have the numbers of the paper (arXiv:2402.17759).

Each module of this package defines one `FigureSpec`, or a few that belong together: how a figure is
drawn, and a caption from the numbers of the run. All of them are found here by themselves, so a new
figure is a new module and no other edit.
"""

import importlib
import io
import pkgutil

import matplotlib.style
from matplotlib.figure import Figure

from lljax.artifacts.results import Results
from lljax.report.spec import FigureSpec
from lljax.report.style import STYLE, stack


def find_figures() -> tuple[FigureSpec, ...]:
    """Every `FigureSpec` of every module in this package, sorted by name.

    Raises:
      ValueError: two figures have the same name, so one would overwrite the files of the other.
    """
    found: dict[str, FigureSpec] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for value in vars(module).values():
            if not isinstance(value, FigureSpec):
                continue
            if found.setdefault(value.name, value) is not value:
                raise ValueError(f"two figures are called {value.name}, one in {module.__name__}")
    return tuple(found[name] for name in sorted(found))


def draw_figure(spec: FigureSpec, results: Results) -> Figure:
    """Draws one figure in the report's style."""
    with matplotlib.style.context(["default", STYLE]):
        return spec.draw(results)


def stack_figure(figure: Figure) -> bool:
    """Puts the panels of a figure below each other; False if it has but one."""
    with matplotlib.style.context(["default", STYLE]):
        return stack(figure)


def encode_figure(figure: Figure, kind: str) -> bytes:
    """The bytes of a figure; `kind` is "png" (200 dpi) or "pdf" (vectors)."""
    # Without a date the same data give the same file.
    metadata = {"CreationDate": None} if kind == "pdf" else None
    with matplotlib.style.context(["default", STYLE]), io.BytesIO() as buffer:
        figure.savefig(buffer, format=kind, metadata=metadata)
        return buffer.getvalue()


FIGURES = find_figures()
