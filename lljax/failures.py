"""What ends a command, in words: exceptions that nobody has translated before.

A disk, a missing package and too little memory are told in a sentence with a cure. What is left is
a defect, of lljax or of a task's own code: its traceback goes to a file.
"""

import contextlib
import importlib.metadata
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from lljax import cluster
from lljax.artifacts.failures import NEEDED
from lljax.errors import RunFailed, StorageFailed, UserError, is_out_of_memory
from lljax.interrupt import CONTINUED
from lljax.safe_text import printable, without_secrets

TRACEBACK = "LLJAX_TRACEBACK"
"""Environment variable: 1 shows the traceback of every failure."""


@contextlib.contextmanager
def in_words(command: str, place: Path | None = None) -> Iterator[None]:
    """Turns every Exception inside into one of `lljax.errors`.

    Args:
      command: run, sweep, plan or report.
      place: the folder that is worked on; None where there is none yet.

    Raises:
      UserError, RunFailed: instead of what was raised, which is their cause.
    """
    try:
        yield
    except (UserError, RunFailed):
        raise
    except Exception as error:
        cluster.explain(error)
        raise _translated(error, command, place) from error


def show_traceback_if_wanted() -> None:
    """Inside an `except`: prints the traceback where the environment asks for it."""
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        print(printable(traceback.format_exc()), file=sys.stderr, end="")


def _translated(error: Exception, command: str, place: Path | None) -> Exception:
    again = " The same command then continues the run." if command in CONTINUED else ""
    for cause in _causes(error):
        if is_out_of_memory(cause):
            return RunFailed(
                f"there is not enough memory: {_first_line(cause)}. Take --inner.memory recompute, "
                f"a smaller --inner.memory-budget-gb or a smaller --inner.microbatch-size; `lljax "
                f"plan` tells what is needed.{again}"
            )
        storage = _storage_error(cause)
        if storage is not None:
            return StorageFailed(_of_storage(storage, place) + again)
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        package = _package_of(error.name)
        cure = f"package {package}, which is not installed: pip install {package}"
        missing = cure if package else f"module {error.name}, which is not installed."
        if error.name.split(".")[0] != "lljax":
            return UserError(f"`lljax {command}` needs the {missing}")
    module = _modules(error)[-1]
    if type(error) is ValueError and re.fullmatch(r"lljax\.\w+", module):
        # So the core refuses an argument, and those come from the task.
        return UserError(f"the task and its settings do not fit: {error}")
    return _defect(error, place)


def _modules(error: BaseException) -> list[str]:
    """The names of the modules that its traceback goes through."""
    return [
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)
    ]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and those that it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _storage_error(error: BaseException) -> OSError | None:
    """The error of the operating system that it is or, from orbax's arrays, tells of."""
    if isinstance(error, OSError):
        return error
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code is None:
        return None
    number, file = int(code[1]), re.search(r'"(/[^"]*)"', str(error))
    return OSError(number, os.strerror(number), file and file[1])


def _of_storage(error: OSError, place: Path | None) -> str:
    names = [
        os.fsdecode(name) if isinstance(name, bytes) else str(name)
        for name in (error.filename, error.filename2)
        if name is not None
    ]
    # Writing to an open file names none.
    where = " to ".join(names) or (f"a file in {place}" if place else "a file")
    needed = NEEDED.get(error.errno or 0, "Put that right")
    return f"{where} cannot be read or written: {error.strerror or _first_line(error)}. {needed}."


def _defect(error: Exception, place: Path | None) -> RunFailed:
    what = f"{type(error).__name__}: {_first_line(error)}".rstrip(": ")
    places = traceback.extract_tb(error.__traceback__)
    # `config_file` gives config files this name; what lljax calls in them is their own.
    own = [
        (frame.filename, frame.lineno)
        for frame, module in zip(places, _modules(error), strict=True)
        if module.startswith("lljax_config_")
    ]
    file, line = own[-1] if own else ("", 0)
    whose = f"{file}, line {line}, has failed" if own else "this is a defect of lljax"
    try:
        path = _write_traceback(error, place)
        kept = f"Its traceback is in {path}; {TRACEBACK}=1 shows it."
    except OSError:
        kept = f"{TRACEBACK}=1 shows its traceback."
    report = "" if own else " Please report it with that file."
    return RunFailed(f"{whose}: {what}. {kept}{report}")


def _write_traceback(error: Exception, place: Path | None) -> Path:
    """Into the workdir where there is one, else into the folder for temporary files."""
    text = without_secrets("".join(traceback.format_exception(error)))
    if place is not None and (place / "config.json").is_file():
        path = place / "traceback.txt"
    else:
        descriptor, name = tempfile.mkstemp(prefix="lljax-traceback-", suffix=".txt")
        os.close(descriptor)
        path = Path(name)
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def _first_line(error: BaseException) -> str:
    """The beginning of an exception's text, which may be pages long."""
    line = next(iter(str(error).strip().splitlines()), "").rstrip(".")
    return line if len(line) <= 300 else f"{line[:300]}..."


def _package_of(module: str) -> str | None:
    """The package that lljax depends on and that has the module; None if it is no such module."""
    try:
        requirements = importlib.metadata.requires("lljax") or []
    except importlib.metadata.PackageNotFoundError:  # run from its source, not installed
        return None
    packages = [re.split(r"[^\w.-]", line)[0] for line in requirements if "extra ==" not in line]
    names = {package.replace("-", "_").lower(): package for package in packages}
    names |= {"orbax": "orbax-checkpoint", "PIL": "pillow"}  # imported under another name
    return names.get(module.partition(".")[0])
