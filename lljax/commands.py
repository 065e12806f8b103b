"""What the commands of the command line do, once their flags are read: engine, then report."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lljax import cluster
from lljax.artifacts.curves import complete
from lljax.artifacts.files import write_atomically, write_json
from lljax.artifacts.manifest import renew_report
from lljax.artifacts.results import load_results
from lljax.errors import RunFailed, StorageFailed, UserError
from lljax.failures import in_words
from lljax.report import sweep_table
from lljax.report.curation import transfer_table
from lljax.report.tables import summary_table
from lljax.safe_text import printable, without_secrets
from lljax.tasks.problem import Experiment


def run(experiment: Experiment, root: Path) -> None:
    """`lljax run`: an experiment in the folder `root`, its report, and its table on stdout.

    Raises:
      UserError: the folder is another run's or damaged, or the data are unusable.
      RunFailed: the inner training diverges.
    """
    from lljax.curation.run import execute as execute_over_runs
    from lljax.engine.run import execute  # orbax, and JAX's device
    from lljax.engine.run import run as run_experiment

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_without_traceback)
    is_dense = experiment.config.policy.is_dense
    run_experiment(experiment, root, _draw, execute if is_dense else execute_over_runs)
    if not cluster.is_first():
        return
    results = load_results(root)
    print(printable(summary_table(complete(results.summary, results.arrays))))


def _without_traceback(record: logging.LogRecord) -> bool:
    """What orbax logs with a traceback it raises too, where it is told in a sentence."""
    return not record.exc_info


def report(root: Path, pdf: bool = False) -> Path:
    """`lljax report`: draws the figures and report.html of a finished run; returns its path."""
    page = _draw(root, pdf)
    renew_report(root)
    return page


def plan(experiment: Experiment) -> str:
    """`lljax plan`: what a run will need, in words."""
    if experiment.config.policy.is_dense:
        from lljax.engine.plan import describe, plan_run

        return describe(plan_run(experiment))
    from lljax.curation import plan as over_runs

    return over_runs.describe(over_runs.plan_run(experiment))


def check(experiment: Experiment, seconds: float) -> str:
    """`lljax check`: how far the meta-gradient of a run can be trusted, in words.

    Raises:
      UserError: the config or its data are unusable.
      RunFailed: training diverges.
    """
    from lljax.curation.check import check as check_over_runs
    from lljax.engine.check import check as check_dense
    from lljax.engine.check import describe

    found = check_dense if experiment.config.policy.is_dense else check_over_runs
    return describe(found(experiment, seconds))


def attribute(experiment: Experiment, folder: Path, **choice: Any) -> str:
    """`lljax attribute`: scores the training examples of a config; where they are, and a table.

    Raises:
      UserError: the folder holds something else, or the settings or data do not fit.
      RunFailed: the training diverges.
    """
    from lljax.curation.attribution import attribute as score_examples
    from lljax.curation.attribution_files import Choice

    done = score_examples(experiment, folder, Choice(**choice))
    return f"{done.table}\n\n{done.path}"


def transfer(root: Path, experiment: Experiment, seeds: int) -> str:
    """`lljax transfer`: trains other models on what a run found, draws its report again; a table.

    Raises:
      UserError: the run has no weights for these data.
    """
    from lljax.curation import transfer as by_transfer

    found = by_transfer.transfer(root, experiment, seeds)
    report(root)
    return transfer_table(found)


def _draw(root: Path, pdf: bool = False) -> Path:
    from lljax.report.page import render  # matplotlib, jinja2: not needed before

    return render(root, pdf)


def sweep(experiments: Mapping[str, Experiment], root: Path) -> None:
    """`lljax sweep`: every experiment in a folder of its name below `root`, then the table.

    A row that fails is shown as unfinished, and does not keep the others from running; of several
    processes it ends all.

    Raises:
      UserError: the first row's input is wrong.
      RunFailed: a row failed; after the table.
      StorageFailed: a row cannot be written; at once.
    """
    failures: dict[str, Exception] = {}
    workdirs = {name: root / name for name in experiments}
    for name, experiment in experiments.items():
        if cluster.is_first():
            print(f"--- {printable(name)}", file=sys.stderr, flush=True)
        try:
            with in_words("sweep", workdirs[name]):
                run(experiment, workdirs[name])
        except StorageFailed:
            raise  # the others write to the same disk
        except (RunFailed, UserError) as error:
            if isinstance(error, UserError) and name == next(iter(experiments)):
                raise  # most likely wrong for all of them
            if cluster.has_peers():
                raise  # it may be one process's alone, and they have to go on together
            failures[name] = error
            words = printable(without_secrets(f"{name} failed: {error}"))
            print(words, file=sys.stderr, flush=True)
    _write_table(root, workdirs)
    if failures:
        raise RunFailed("; ".join(f"{name}: {error}" for name, error in failures.items()))


@cluster.on_first
def _write_table(root: Path, workdirs: Mapping[str, Path]) -> None:
    rows = sweep_table.rows(workdirs)
    table = sweep_table.text_table(rows)
    write_json(root / "table.json", rows)
    write_atomically(root / "table.txt", f"{table}\n".encode())
    print(printable(table))
