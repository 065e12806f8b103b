"""The flags of the commands that begin with a config, made from its type."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from lljax.errors import UserError
from lljax.flags import read_flags, without_tilde
from lljax.safe_text import printable, without_secrets

CONFIG_HELP = (
    "a Python file that defines get_config(), or the name of a shipped config; the file is code "
    "that is executed, so run only those that you trust"
)


def config_name(command: str, arguments: Sequence[str], function: str) -> str | None:
    """The config that a command's first argument names; None where only help is asked for."""
    from lljax.tasks.config_file import shipped_list

    if arguments and not arguments[0].startswith("-"):
        return arguments[0]
    if {"-h", "--help"} & set(arguments):
        return None
    raise UserError(
        f"`lljax {command}` needs a CONFIG first: a Python file that defines {function}(), or one "
        f"of those that lljax comes with:\n{shipped_list(function)}"
    )


def parse_config(
    command: str,
    purpose: Any,
    default: Any,
    arguments: Sequence[str],
    workdir: tuple[str, str] = ("", ""),
) -> tuple[Any, Any]:
    """The flags of `lljax COMMAND CONFIG`: a config like `default`, and one thing more.

    Args:
      command: run, sweep, plan or check.
      purpose: the function whose docstring the help shows.
      default: the config with the values that flags may change; the flags are made from its type.
      arguments: the command line behind the command.
      workdir: its default, and what the help says of it, for a command that has one.

    Returns:
      (config, the workdir, or of `check` the seconds, or None).
    """
    import tyro

    ConfigFile, Settings = first_arguments(default)
    place, place_help = workdir
    Place = Annotated[Path, tyro.conf.arg(help=place_help)]
    Seconds = Annotated[float, tyro.conf.arg(help="for retrainings, of which 6 to 100 are made")]

    def with_workdir(
        config_file: ConfigFile,  # type: ignore[valid-type]
        config: Settings = default,  # type: ignore[valid-type]
        workdir: Place = Path(place),  # type: ignore[valid-type]
    ) -> tuple[Any, Path]:
        return config, workdir

    def without_workdir(
        config_file: ConfigFile,  # type: ignore[valid-type]
        config: Settings = default,  # type: ignore[valid-type]
    ) -> tuple[Any, None]:
        return config, None

    def with_seconds(
        config_file: ConfigFile,  # type: ignore[valid-type]
        config: Settings = default,  # type: ignore[valid-type]
        seconds: Seconds = 45.0,  # type: ignore[valid-type]
    ) -> tuple[Any, float]:
        return config, seconds

    forms: dict[str, Any] = {"plan": without_workdir, "check": with_seconds}
    config, more = read_flags(
        forms.get(command, with_workdir),
        prog=usage(command, arguments),
        description=inspect.getdoc(purpose),
        arguments=arguments,
    )
    return config, _checked_place(more) if isinstance(more, Path) else more


def first_arguments(default: Any) -> tuple[Any, Any]:
    """What tyro is told of a command's CONFIG, and of the flags of a config like `default`."""
    import tyro

    file = tyro.conf.arg(metavar="CONFIG", help=CONFIG_HELP)
    return (
        Annotated[str, tyro.conf.Positional, file],
        Annotated[type(default), tyro.conf.arg(name="")],
    )


def usage(command: str, arguments: Sequence[str]) -> str:
    """The usage line names the config that the values shown belong to."""
    named = [] if arguments[0].startswith("-") else [arguments[0]]
    return printable(without_secrets(" ".join(["lljax", command, *named])))


def _checked_place(path: Path) -> Path:
    """A workdir as it is meant; UserError where checkpoints could not be written to it."""
    path = without_tilde(path)
    if str(path).encode(errors="replace") != os.fsencode(path):
        raise UserError(
            f"--workdir {path} is no UTF-8 text, which checkpoints need. Take another name; where "
            f"it is the locale that has no such letters, PYTHONUTF8=1 helps."
        )
    return path


def default_workdir(name: str | None) -> str:
    return f"runs/{'NAME' if name is None else Path(name).stem}"


def experiment_of(name: str | None) -> Any:
    """The experiment of a config; the first built-in one where only help is asked for."""
    from lljax.tasks.config_file import TASKS, load_experiment
    from lljax.tasks.problem import Experiment

    if name is None:
        return Experiment(TASKS[0], TASKS[0].config_type())
    return load_experiment(name)
