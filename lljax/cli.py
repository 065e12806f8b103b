"""The command line: `lljax run`, `sweep`, `plan`, `check`, `report`, and those of `curation_flags`.

Only reading the command line is here; `commands` has what the commands do. Packages are imported
where they are used, so that help is quick and a missing one is named.
"""

import contextlib
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import lljax
from lljax import cluster, completion, curation_flags, failures, interrupt, streams
from lljax.config_flags import config_name, default_workdir, experiment_of, parse_config
from lljax.errors import RunFailed, UserError
from lljax.failures import in_words
from lljax.flags import read_flags, without_tilde
from lljax.safe_text import printable, without_secrets

USAGE = """\
usage: lljax COMMAND ...

  lljax run CONFIG [--workdir DIR] [flags]   optimise a learning policy and report on it;
                                             the same command again continues or tells the result
  lljax sweep CONFIG [--workdir DIR] [flags] several runs, and the table that compares them
  lljax plan CONFIG [flags]                  what that run will need: memory, arithmetic, time
  lljax check CONFIG [flags]                 how far its meta-gradient can be trusted
  lljax attribute CONFIG --workdir DIR       score the training examples by one run's meta-gradient
  lljax report DIR [--pdf]                   draw the report of a finished run again
  lljax export DIR [--format F] [flags]      the documents of a run, ranked by weight or sampled
  lljax score DIR --data.path P [flags]      weigh documents that the run has not seen
  lljax transfer DIR [flags]                 does it help a larger model, fresh runs, other data?
  lljax help [COMMAND], lljax version        this text or a command's own, the version
  lljax completion SHELL                     what the Tab key completes in bash or zsh

CONFIG is a Python file, or the name of a config that lljax comes with: `lljax run` lists them. A
config file is code, and is executed: run only those that you trust.

Examples:
  lljax run perceptron
  lljax run perceptron --workdir runs/seed1 --seed 1 --outer.num-steps 40
  lljax plan transformer --data.path stories.txt
  lljax run perceptron --help                all flags, with this config's values

Exit status: 0 done, 1 the run failed, 2 the input is wrong. Ctrl-C stops a run at once, and the
same command continues it. LLJAX_TRACEBACK=1 in the environment shows where a failure comes from.
"""


OTHERS = ("help", "version")  # what is no command of its own


def main() -> None:
    """The `lljax` command, in a process of its own."""
    output = streams.Streams()
    with interrupt.stoppable():
        try:
            status = call(sys.argv[1:])
        except SystemExit as end:  # tyro's, after help or a wrong flag
            status = end.code if isinstance(end.code, int) else 0
        status = output.end(status)
        if status == 0:
            cluster.leave()
        else:
            cluster.fail(status, "its command line cannot be read, or its output be written")
    _leave(status)


def _leave(status: int) -> NoReturn:
    """Ends the process; after a failure at once, whatever its threads still wait for.

    A thread that writes a checkpoint waits minutes for a disk that is gone, and JAX for processes
    that have ended as well.
    """
    if status == 0 or (status != 1 and not cluster.has_peers()):
        sys.exit(status)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def call(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "run": _run,
        "sweep": _sweep,
        "plan": _plan,
        "check": _check,
        "attribute": curation_flags.attribute,
        "report": _report,
        "export": curation_flags.export,
        "score": curation_flags.score,
        "transfer": curation_flags.transfer,
        "completion": lambda rest: print(completion.script(rest, [*commands, *OTHERS], call)),
    }
    if arguments and arguments[0] == "help" and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    try:
        if command in ("-V", "--version", "version"):
            if rest:
                raise UserError(f"`lljax {command}` takes no arguments; got {' '.join(rest)}.")
            print(f"lljax {lljax.__version__}")
            return 0
        if command not in commands:
            near = difflib.get_close_matches(command, [*commands, *OTHERS], 1)
            guess = f" Did you mean `{near[0]}`?" if near else ""
            raise UserError(f"there is no command `{command}`: use {', '.join(commands)}.{guess}")
        with in_words(command):
            # Under a launcher of several processes, what is no run is done by one.
            if command in interrupt.CONTINUED or not cluster.leaves_to_first(command):
                commands[command](rest)
    except (UserError, RunFailed) as error:
        failures.show_traceback_if_wanted()
        status = 1 if isinstance(error, RunFailed) else 2
        cluster.fail(status, printable(without_secrets(str(error))))
        failed = "the run failed: " if status == 1 and command in interrupt.CONTINUED else ""
        print(f"lljax: {failed}{printable(without_secrets(str(error)))}", file=sys.stderr)
        return status
    return 0


def _run(arguments: Sequence[str]) -> None:
    """Optimise a learning policy: find the data weights under which a model learns fastest.

    Trains conventionally, improves the policy gamma[t, n] by exact meta-gradients, and reports on
    test data how fast the policy with the smallest loss AUC on validation data learns. Run again
    on the same workdir, it continues where it was.
    """
    name = config_name("run", arguments, "get_config")
    cluster.join(name)
    experiment = experiment_of(name)
    place = default_workdir(name), "folder of this run's checkpoints, metrics, policy and report"
    config, workdir = parse_config("run", _run, experiment.config, arguments, place)
    from lljax import commands

    with in_words("run", workdir):
        commands.run(experiment._replace(config=config), workdir)


def _sweep(arguments: Sequence[str]) -> None:
    """Run several configs, each in a folder of its own, and print the table of Table 2.

    The values shown are the first config's; a flag that is given applies to all of them. Run again
    on the same workdir, it continues where it was.
    """
    from lljax.tasks.config_file import load_experiments

    name = config_name("sweep", arguments, "get_configs")
    cluster.join(name)
    experiments = {"row": experiment_of(None)} if name is None else load_experiments(name)
    place = default_workdir(name), "folder of the runs' folders, table.txt and table.json"
    workdir = Path()
    for row, experiment in experiments.items():
        config, workdir = parse_config("sweep", _sweep, experiment.config, arguments, place)
        experiments[row] = experiment._replace(config=config)
    from lljax import commands

    with in_words("sweep", workdir):
        commands.sweep(experiments, workdir)


def _plan(arguments: Sequence[str]) -> None:
    """Tell what a run will need before it is run: memory, arithmetic, time, and the strategy."""
    experiment = experiment_of(config_name("plan", arguments, "get_config"))
    config, _ = parse_config("plan", _plan, experiment.config, arguments)
    from lljax import commands

    print(printable(commands.plan(experiment._replace(config=config))))


def _check(arguments: Sequence[str]) -> None:
    """Tell how far the meta-gradient of a config's training can be trusted.

    Compares it with finite differences, measures how smooth training is, and trains again without
    some examples to see whether what it predicts comes true. Writes nothing.
    """
    from lljax import commands

    experiment = experiment_of(config_name("check", arguments, "get_config"))
    config, seconds = parse_config("check", _check, experiment.config, arguments)
    print(printable(commands.check(experiment._replace(config=config), seconds)))


def _report(arguments: Sequence[str]) -> None:
    import tyro

    def read(
        workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
        pdf: bool = False,
    ) -> tuple[Path, bool]:
        """Draw the figures and report.html of a finished run again.

        Args:
            workdir: what `lljax run` wrote
            pdf: also write every figure as a vector PDF
        """
        return workdir, pdf

    workdir, pdf = read_flags(read, prog="lljax report", arguments=arguments)
    from lljax import commands

    workdir = without_tilde(workdir)
    with in_words("report", workdir):
        print(printable(str(commands.report(workdir, pdf))))
