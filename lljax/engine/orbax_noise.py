"""Keeps from the terminal what orbax's threads print of errors that orbax raises as well."""

import functools
import logging
import sys
from typing import Any


@functools.cache
def silence() -> None:
    """For the rest of the process; the errors themselves are raised as before."""
    logging.getLogger("absl").addFilter(_is_no_traceback)
    print_error = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # TensorStore's threads still answer when orbax has given up after the first error.
        if str(unraisable.exc_value) != "Event loop is closed":
            print_error(unraisable)

    sys.unraisablehook = hook


def _is_no_traceback(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)
