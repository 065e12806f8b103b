"""Where metrics go: metrics.jsonl always, and the trackers that a config names.

A tracker is an object with `log(step, metrics)` and `close()`, made by
`CLASS(workdir, settings, first_step)`. One of your own needs no change here: name it MODULE:CLASS
in `trackers`; in a config file, f"{__name__}:CLASS" is a class of that file.
"""

import difflib
import hashlib
import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from lljax import cluster
from lljax.artifacts.failures import cannot_write
from lljax.artifacts.files import metrics_line
from lljax.artifacts.schema import METRICS_FILE
from lljax.engine.progress import log
from lljax.errors import UserError


class Tracker(Protocol):
    """Takes the metrics of a run, outer step by outer step."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The metrics of an outer step: numbers, bools, and None for what is undefined."""
        ...

    def close(self) -> None:
        """No more metrics come; a run that is killed does not call it."""
        ...


class JsonLines:
    """metrics.jsonl, a line an outer step. A resumed run reads it, so its failure ends the run."""

    def __init__(self, path: Path):
        self._path = path

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        line = metrics_line(metrics)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        pass


class TensorBoard:
    """TensorBoard event files in WORKDIR/tensorboard."""

    def __init__(self, workdir: Path, settings: Mapping[str, Any], first_step: int):
        from tensorboardX import SummaryWriter

        # Steps that a killed run had logged, and that come again, are not shown twice.
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases in WORKDIR/wandb, offline; `wandb sync --append` uploads what is there.

    A run that was continued is one there too: its parts share an id made from the workdir.
    """

    def __init__(self, workdir: Path, settings: Mapping[str, Any], first_step: int):
        import wandb

        self._run = wandb.init(
            project="lljax",
            name=workdir.name,
            id=hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16],
            dir=str(workdir),
            config=dict(settings),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._run.log(_numbers(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


Maker = Callable[[Path, Mapping[str, Any], int], Tracker]
"""(workdir, what config.json holds, the outer step that comes next) -> a tracker."""

TRACKERS: dict[str, tuple[Maker, str]] = {
    "tensorboard": (TensorBoard, "tensorboardX"),
    "wandb": (WandB, "wandb"),
}
"""By name: the tracker, and the package that it needs, which `pip install 'lljax[NAME]'` brings."""


class Guarded:
    """A tracker that cannot stop a run: after its first failure it gets no more metrics."""

    def __init__(self, name: str, tracker: Tracker):
        self._name, self._tracker = name, tracker
        self._failed = False

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        if not self._failed:
            self._try(lambda: self._tracker.log(step, metrics))

    def close(self) -> None:
        self._try(self._tracker.close)  # a failed one too: it may hold files or threads

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            if not self._failed:
                log(
                    f"warning: the tracker {self._name} failed ({type(error).__name__}: {error}) "
                    f"and gets no more metrics; metrics.jsonl has all of them."
                )
            self._failed = True


class Trackers:
    """Several trackers as one; a context manager that closes them."""

    def __init__(self, trackers: Iterable[Tracker]):
        self._trackers = tuple(trackers)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_trackers(names: Iterable[str]) -> dict[str, Maker]:
    """The named trackers, not opened yet.

    Args:
      names: of TRACKERS, or MODULE:CLASS.

    Raises:
      UserError: no tracker has that name, or its package is not installed.
    """
    return {name: _find(name) for name in names}


def open_trackers(
    makers: Mapping[str, Maker], workdir: Path, settings: Mapping[str, Any], first_step: int
) -> Trackers:
    """metrics.jsonl and the trackers that were found; one that cannot start is skipped, with a
    warning."""
    if not cluster.is_first():
        return Trackers([])
    opened: list[Tracker] = [JsonLines(workdir / METRICS_FILE)]
    for name, make in makers.items():
        try:
            opened.append(Guarded(name, make(workdir, settings, first_step)))
        except Exception as error:
            log(f"warning: the tracker {name} cannot start ({type(error).__name__}: {error}).")
    return Trackers(opened)


def _find(name: str) -> Maker:
    if name in TRACKERS:
        make, package = TRACKERS[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"trackers: {name} needs the package {package}, which is not installed: "
                f"pip install 'lljax[{name}]'"
            )
        return make
    module, _, attribute = name.partition(":")
    if not attribute:
        near = difflib.get_close_matches(name, TRACKERS, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(
            f"trackers: there is no tracker {name}; there are {', '.join(TRACKERS)}, and your own "
            f"as MODULE:CLASS.{hint}"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever its import does
        raise UserError(
            f"trackers: {name} cannot be imported ({type(error).__name__}: {error}). Its module "
            f"must be installed, beside the config file, or in a folder that PYTHONPATH names."
        ) from error


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are numbers."""
    values = {name: float(value) for name, value in metrics.items() if value is not None}
    return {name: value for name, value in values.items() if math.isfinite(value)}
