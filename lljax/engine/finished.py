"""Whether a workdir holds a finished run whose files are all as they were written."""

from typing import Literal

import jax.numpy as jnp
import numpy as np

import lljax
from lljax.artifacts import manifest
from lljax.artifacts.reading import Unreadable, check_absent, map_npy
from lljax.artifacts.results import load_results
from lljax.engine.claim import Claim
from lljax.engine.progress import log
from lljax.engine.workdir import Workdir
from lljax.errors import CannotRead, UserError
from lljax.safe_text import printable

CHECKED_BYTES = 2**26
State = Literal["whole", "report is wrong", "unfinished"]


def state(claim: Claim, workdir: Workdir, in_words: bool = False) -> State:
    """How far the run of a claim is; only reads.

    Args:
      claim: on the workdir.
      workdir: where it is.
      in_words: whether to tell of damaged files.

    Returns:
      "whole"; "report is wrong": it only has to be drawn again; "unfinished": it has to go on, or
      a result has to be written again.
    """
    if not claim.is_unchanged:
        if in_words and (wrong := manifest.wrong_files(workdir.root)):
            _say_wrong(workdir, wrong, "written again from the checkpoints")
        return "unfinished"
    wrong = manifest.wrong_files(workdir.root)
    if wrong is None:
        # Without a manifest that can be read the checkpoints are believed, if there are any.
        if claim.record is None and workdir.report.is_file() and _can_be_read(claim, workdir):
            return "whole"
        if in_words and workdir.manifest.exists():
            log(
                f"warning: {workdir.manifest} is damaged: the results are written again from the "
                f"checkpoints"
            )
        return "unfinished"
    if not wrong:
        return "whole"
    only_report = all(map(manifest.is_of_report, wrong))
    if in_words:
        again = "drawn again" if only_report else "written again from the checkpoints"
        _say_wrong(workdir, wrong, again)
    return "report is wrong" if only_report else "unfinished"


def _say_wrong(workdir: Workdir, names: list[str], again: str) -> None:
    log(
        f"warning: of the finished run in {workdir.root} these files are lost or damaged, and are "
        f"{again}: {printable(', '.join(names[:5]))}{' ...' if names[5:] else ''}"
    )


def _can_be_read(claim: Claim, workdir: Workdir) -> bool:
    """Whether the files of a run without a manifest are of the right form."""
    try:
        num_steps = load_results(workdir.root).num_steps
        policy = map_npy(workdir.policy)
        if not claim.is_dense:
            return bool(np.isfinite(policy).all())
        if policy.ndim != 2 or len(policy) != num_steps:
            return False
        rows = max(1, CHECKED_BYTES // max(1, policy[:1].nbytes))  # at once
        for start in range(0, num_steps, rows):
            lljax.check_policy(jnp.asarray(policy[start : start + rows]))
    except CannotRead:
        raise
    except OSError as error:
        check_absent(workdir.policy, error)
        return False
    except (UserError, Unreadable, ValueError, TypeError):
        return False
    return True
