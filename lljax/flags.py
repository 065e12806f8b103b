"""Flags of the command line, read by tyro in lljax's words."""

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lljax.errors import UserError
from lljax.safe_text import printable, without_secrets


def read_flags(function: Any, arguments: Sequence[str], **settings: Any) -> Any:
    """What tyro reads from a command line.

    Raises:
      UserError: a value is refused by its config.
      SystemExit: after help, or tyro's own words on a wrong flag, which repeat nothing that must
        not be shown.
    """
    import tyro

    fit_to_show = [printable(without_secrets(argument)) for argument in arguments]
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            return tyro.cli(function, args=list(arguments), **settings)
    except SystemExit as end:
        refusal = end.__context__
        while refusal is not None:
            if isinstance(refusal, UserError):
                raise refusal from None
            refusal = refusal.__context__
        if not end.code or fit_to_show == list(arguments):
            print(words.getvalue(), end="", file=sys.stderr)
            raise
    return tyro.cli(function, args=fit_to_show, **settings)  # wrong in the same way


def without_tilde(path: Path) -> Path:
    """The path with ~ expanded, which a shell leaves alone in --workdir=~/x and within quotes."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(f"{path} cannot be found: {error}") from error
