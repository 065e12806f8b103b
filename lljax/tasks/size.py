"""Settings that ask for more memory than the machine has, refused before anything is allocated."""

from pathlib import Path

import psutil

from lljax.errors import UserError

GIGABYTE = 10**9


def require_memory(num_bytes: int, what: str, arithmetic: str, flags: str) -> None:
    """UserError unless so many bytes could be held if all of the machine's memory were free.

    Args:
      num_bytes: the least that is needed.
      what: what needs it, e.g. "the data".
      arithmetic: how they were counted.
      flags: the settings that can be lowered.
    """
    there = host_memory()
    if num_bytes > there:
        raise UserError(
            f"{what} would take {num_bytes / GIGABYTE:,.1f} GB ({arithmetic}), and this machine "
            f"has {there / GIGABYTE:,.1f} GB. Lower {flags}."
        )


def require_memory_for_policies(num_steps: int, num_train: int) -> None:
    """As `require_memory` for what a run holds of the form [T, N]."""
    require_memory(
        5 * 4 * num_steps * num_train,  # the uniform one, the best, a trial, gradient, momentum
        "five policies",
        f"each {num_steps:,} inner steps x {num_train:,} training examples x 4 bytes",
        "inner.num_steps or the number of training examples (data.num_train)",
    )


def host_memory() -> int:
    """Bytes of memory, a container's limit included."""
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no container, or none with a limit
        return psutil.virtual_memory().total
    return min(limit, psutil.virtual_memory().total)
