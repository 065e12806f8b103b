"""The command line: `lljax run`, `sweep`, `plan` and `report`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from lljax.experiment.config import (
    ExperimentConfig,
    PerceptronConfig,
    load_config,
    load_configs,
)
from lljax.experiment.errors import RunFailed, UserError

USAGE = """\
usage: lljax COMMAND ...

  lljax run CONFIG [--workdir DIR] [flags]   optimise a learning policy and report on it;
                                             the same command again continues or tells the result
  lljax sweep CONFIG [--workdir DIR] [flags] several runs, and the table that compares them
  lljax plan CONFIG [flags]                  what that run will need: memory, arithmetic, time
  lljax report DIR [--pdf]                   draw the report of a finished run again

Examples:
  lljax run configs/perceptron.py
  lljax run configs/perceptron.py --workdir runs/seed1 --seed 1 --outer.num-steps 40
  lljax plan configs/transformer.py --data.path stories.txt
  lljax run configs/perceptron.py --help     all flags, with this config's values

Exit status: 0 done, 1 the run failed, 2 the input is wrong.
"""


ConfigFile = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]


def main() -> None:
    """The `lljax` command."""
    sys.exit(call(sys.argv[1:]))


def call(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    command, *rest = arguments
    try:
        match command:
            case "run":
                _run(rest)
            case "sweep":
                _sweep(rest)
            case "plan":
                _plan(rest)
            case "report":
                _report(rest)
            case _:
                raise UserError(f"there is no command `{command}`: use run, sweep, plan or report.")
    except UserError as error:
        print(f"lljax: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        print(f"lljax: the run failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlljax: interrupted; the same command continues the run", file=sys.stderr)
        return 1
    return 0


def _config_file(command: str, arguments: Sequence[str], example: str) -> Path | None:
    """The file that a command's first argument names; None where only help is asked for."""
    if arguments and not arguments[0].startswith("-"):
        return Path(arguments[0])
    if {"-h", "--help"} & set(arguments):
        return None
    raise UserError(f"`lljax {command}` needs a CONFIG first, such as {example}.")


def _read_config(command: str, arguments: Sequence[str]) -> tuple[ExperimentConfig, Path]:
    """The config that a command's first argument names, and a default workdir for it."""
    # The flags are made from the config's type, so its file is read before they are parsed.
    path = _config_file(command, arguments, "configs/perceptron.py")
    return load_config(path) if path else PerceptronConfig(), _default_workdir(path)


def _default_workdir(path: Path | None) -> Path:
    return Path("runs") / (path.stem if path else "NAME")


def _program(command: str, arguments: Sequence[str]) -> str:
    """For the usage line: names the config that the values shown belong to."""
    named = [] if arguments[0].startswith("-") else [arguments[0]]
    return " ".join(["lljax", command, *named])


def _run(arguments: Sequence[str]) -> None:
    default, default_workdir = _read_config("run", arguments)
    Config = type(default)

    def command(
        config_file: ConfigFile,
        config: Annotated[Config, tyro.conf.arg(name="")] = default,  # type: ignore[valid-type]
        workdir: Path = default_workdir,
    ) -> tuple[ExperimentConfig, Path]:
        """Optimise a learning policy: find the data weights under which a model learns fastest.

        Trains conventionally, improves the policy gamma[t, n] by exact meta-gradients, keeps the
        one with the smallest loss AUC on validation data, and reports on test data. Run again on
        the same workdir, it continues where it was.

        Args:
            config_file: a Python file that defines get_config(), e.g. configs/perceptron.py
            config: everything below
            workdir: folder of this run's checkpoints, metrics, policy.npy and report.html
        """
        return config, workdir

    config, workdir = tyro.cli(command, prog=_program("run", arguments), args=list(arguments))
    from lljax.experiment.run import run  # loads JAX's whole surroundings: not for --help

    run(config, workdir)


def _sweep(arguments: Sequence[str]) -> None:
    path = _config_file("sweep", arguments, "configs/transformer_table2.py")
    configs = load_configs(path) if path else {"row": PerceptronConfig()}
    default_workdir = _default_workdir(path)

    def parse(default: ExperimentConfig) -> tuple[ExperimentConfig, Path]:
        Config = type(default)

        def command(
            config_file: ConfigFile,
            config: Annotated[Config, tyro.conf.arg(name="")] = default,  # type: ignore[valid-type]
            workdir: Path = default_workdir,
        ) -> tuple[ExperimentConfig, Path]:
            """Run several configs, each in a folder of its own, and print the table of Table 2.

            The values shown are the first config's; a flag that is given applies to all of them.
            Run again on the same workdir, it continues where it was.

            Args:
                config_file: a Python file that defines get_configs(), a config for each row's name
                config: everything below
                workdir: folder of the runs' folders, table.txt and table.json
            """
            return config, workdir

        return tyro.cli(command, prog=_program("sweep", arguments), args=list(arguments))

    parsed = {name: parse(config) for name, config in configs.items()}
    from lljax.experiment.sweep import run_sweep

    workdir = next(iter(parsed.values()))[1]
    run_sweep({name: config for name, (config, _) in parsed.items()}, workdir)


def _plan(arguments: Sequence[str]) -> None:
    default, _ = _read_config("plan", arguments)
    Config = type(default)

    def command(
        config_file: ConfigFile,
        config: Annotated[Config, tyro.conf.arg(name="")] = default,  # type: ignore[valid-type]
    ) -> ExperimentConfig:
        """Tell what a run will need before it is run: memory, arithmetic, time, and the strategy.

        Args:
            config_file: a Python file that defines get_config(), e.g. configs/transformer.py
            config: everything below, as for `lljax run`
        """
        return config

    config = tyro.cli(command, prog=_program("plan", arguments), args=list(arguments))
    from lljax.experiment.plan import describe, plan_run

    print(describe(plan_run(config)))


def _report(arguments: Sequence[str]) -> None:
    def command(
        workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
        pdf: bool = False,
    ) -> tuple[Path, bool]:
        """Draw the figures and report.html of a finished run again.

        Args:
            workdir: what `lljax run` wrote
            pdf: also write every figure as a vector PDF
        """
        return workdir, pdf

    workdir, pdf = tyro.cli(command, prog="lljax report", args=list(arguments))
    from lljax.experiment import report

    print(report.render(workdir, pdf))


if __name__ == "__main__":
    main()
