"""Several runs of one kind, and the table that compares them."""

from collections.abc import Mapping
from pathlib import Path

from lljax.experiment import sweep_table
from lljax.experiment.config import ExperimentConfig
from lljax.experiment.errors import RunFailed, UserError
from lljax.experiment.progress import log
from lljax.experiment.run import run
from lljax.experiment.workdir import write_atomically, write_json


def run_sweep(configs: Mapping[str, ExperimentConfig], root: Path) -> None:
    """Runs every config in a folder of its name below `root`; prints and writes the table.

    A row that fails is shown as unfinished, and does not keep the others from running.

    Raises:
      UserError: the first row's input is wrong.
      RunFailed: a row failed; after the table.
    """
    failures: dict[str, Exception] = {}
    workdirs = {name: root / name for name in configs}
    for name, config in configs.items():
        log(f"--- {name}")
        try:
            run(config, workdirs[name])
        except (RunFailed, UserError) as error:
            if isinstance(error, UserError) and name == next(iter(configs)):
                raise  # most likely wrong for all of them
            failures[name] = error
            log(f"{name} failed: {error}")
    rows = sweep_table.rows(workdirs)
    table = sweep_table.text_table(rows)
    write_json(root / "table.json", rows)
    write_atomically(root / "table.txt", f"{table}\n".encode())
    print(table)
    if failures:
        raise RunFailed("; ".join(f"{name}: {error}" for name, error in failures.items()))
