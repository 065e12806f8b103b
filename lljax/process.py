"""The process of the `lljax` command: what it does before all else."""

import itertools
import sys
from pathlib import Path


def is_command() -> bool:
    """Whether this process was started as `lljax ...` or `python -m lljax ...`."""
    # While Python looks for the module of `-m`, which imports the package around it.
    if sys.argv[:1] == ["-m"]:
        return ("-m", "lljax") in itertools.pairwise(sys.orig_argv)
    return bool(sys.argv) and Path(sys.argv[0]).stem == "lljax"


def begin() -> None:
    """Makes Ctrl-C quiet from here on, before JAX is imported, which takes a second."""
    from lljax import interrupt, streams

    streams.open_all()
    interrupt.install()
