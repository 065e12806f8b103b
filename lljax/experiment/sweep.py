"""Several runs of one kind, and the table that compares them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lljax.experiment import sweep_table
from lljax.experiment.config import ExperimentConfig
from lljax.experiment.errors import RunFailed
from lljax.experiment.progress import log
from lljax.experiment.run import run
from lljax.experiment.workdir import write_atomically, write_json


def run_sweep(configs: Mapping[str, ExperimentConfig], root: Path) -> None:
    """Runs every config in a folder of its name below `root`; prints and writes the table.

    A row that fails is shown as unfinished, and does not keep the others from running.

    Raises:
      UserError: the input of a row is wrong.
      RunFailed: a row failed; after the table.
    """
    failures = {}
    workdirs = {name: root / name for name in configs}
    for name, config in configs.items():
        log(f"--- {name}")
        try:
            run(config, workdirs[name])
        except RunFailed as error:
            failures[name] = error
            log(f"{name} failed: {error}")
    rows = sweep_table.rows(workdirs)
    table = sweep_table.text_table(rows)
    write_json(root / "table.json", rows)
    write_atomically(root / "table.txt", f"{table}\n".encode())
    print(table)
    if failures:
        raise RunFailed("; ".join(f"{name}: {error}" for name, error in failures.items()))


def override(
    configs: Mapping[str, ExperimentConfig], default: Any, changed: Any
) -> dict[str, ExperimentConfig]:
    """Applies to every config what differs between `default` and `changed`."""
    return {name: _override(config, default, changed) for name, config in configs.items()}


def _override(config: Any, default: Any, changed: Any) -> Any:
    values = {}
    for field in dataclasses.fields(default):
        before, after = (getattr(tree, field.name) for tree in (default, changed))
        if dataclasses.is_dataclass(before):
            values[field.name] = _override(getattr(config, field.name), before, after)
        elif before != after:
            values[field.name] = after
    return dataclasses.replace(config, **values)
