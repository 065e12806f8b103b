"""The folder of a run: where its files are, and how they are read again."""

import errno
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from lljax import cluster
from lljax.artifacts import schema
from lljax.artifacts.failures import cannot_write
from lljax.artifacts.files import metrics_line, write_atomically, write_npz
from lljax.artifacts.reading import Unreadable, check_absent, read_npz
from lljax.engine.checkpoint_folder import CheckpointFolder
from lljax.engine.digests import digest
from lljax.engine.progress import log
from lljax.errors import UserError
from lljax.safe_text import printable

_SNAPSHOT = re.compile(r"(\d{6,})\.npz")
STARTS = "_starts"  # behind the name of a meta-gradient's folder
_DIGEST = "sha256"  # of the other arrays in a snapshot


class Workdir:
    """Paths and atomic reads and writes of one run's folder.

    Everything but `checkpoints/` is small and is either replaced in one go or, for metrics.jsonl,
    appended to a line at a time.
    """

    def __init__(self, root: Path):
        self.root = root
        self.config = root / schema.CONFIG_FILE
        self.data = root / schema.DATA_FILE
        self.metrics = root / schema.METRICS_FILE
        self.checkpoints = root / "checkpoints"
        self.sweep = root / "sweep"
        self.look = root / "look"
        # Of meta-gradients on their way, each beside the states in which its segments start.
        self.sweeps = [
            root / f"{name}{part}" for name in ("sweep", "look") for part in ("", STARTS)
        ]
        self.snapshots = root / "snapshots"
        self.smoothness = root / schema.SMOOTHNESS_FILE
        self.policy = root / schema.POLICY_FILE
        self.summary = root / schema.SUMMARY_FILE
        self.report = root / schema.REPORT_FILE
        self.manifest = root / schema.MANIFEST_FILE

    def lock(self) -> filelock.BaseFileLock:
        """Makes the folder and keeps a second process out; ends with the process, however it ends.

        Raises:
          UserError: another process has it, or it cannot be written.
        """
        path = self.root / ".lock"
        lock = filelock.FileLock(path)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise UserError(
                f"another process is running in --workdir {self.root}. Wait for it, or give this "
                f"run a --workdir of its own."
            ) from None
        except OSError as error:
            place = path if path.is_dir() else self.root
            raise UserError(f"--workdir {cannot_write(place, error)}") from error
        return lock

    def has_results(self) -> bool:
        """Whether it holds anything of an outer step that was made."""
        files = (self.policy, self.summary, self.report, self.manifest)
        return (
            any(path.exists() for path in files)
            or bool(CheckpointFolder(self.checkpoints).numbers())
            or self._tells_of_a_checkpoint()
        )

    def check_begin(self) -> None:
        """UserError if the run was further than its first checkpoint, and has none any more."""
        if self._tells_of_a_checkpoint():
            raise UserError(
                f"{self.metrics} tells of a run whose checkpoints are missing from "
                f"{self.checkpoints}. Put them back, or start again in a new --workdir."
            )

    @cluster.on_first
    def begin(self) -> None:
        """Drops what a run left that cannot be continued: all but the meta-gradient on its way."""
        try:
            self.metrics.unlink(missing_ok=True)
            for step in self.snapshot_steps():
                self._snapshot(step).unlink()
            CheckpointFolder(self.checkpoints).clear()
        except OSError as error:
            raise cannot_write(self.root, error) from error

    @cluster.on_first
    def reopen(self) -> None:
        """Takes back that the run is finished, as long as its results are written again."""
        for path in (self.manifest, self.summary):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(path, error) from error

    @cluster.on_first
    def check_present(self) -> None:
        """RunFailed if the folder was removed while the run was at work, which may make it anew."""
        if not self.config.exists():
            raise cannot_write(self.config, FileNotFoundError(errno.ENOENT, ""))

    @cluster.on_first
    def write_metrics(self, lines: Sequence[dict[str, Any]]) -> None:
        """Makes metrics.jsonl hold just these lines; a word where one of them was not there."""
        content = "".join(map(metrics_line, lines)).encode()
        there = self._metrics_bytes()
        if there == content:
            return
        # A killed run may have written lines that no checkpoint holds.
        if not there.startswith(content):
            log(
                f"warning: {self.metrics} was lost, cut or damaged: it is written again, with "
                f"outer steps 0 to {lines[-1]['outer_step']}"
            )
        write_atomically(self.metrics, content)

    @cluster.on_first
    def save_snapshot(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Keeps the analysis of an outer step's policy, with a digest."""
        try:
            if not self.snapshots.is_dir():
                self.snapshots.unlink(missing_ok=True)
                self.snapshots.mkdir()
        except OSError as error:
            raise cannot_write(self.snapshots, error) from error
        known = np.frombuffer(bytes.fromhex(digest(arrays)), np.uint8)
        write_npz(self._snapshot(step), {**arrays, _DIGEST: known})

    @cluster.read_on_first
    def read_snapshot(self, step: int) -> dict[str, np.ndarray] | None:
        """An analysis that was kept; None where there is none that is intact, with a word."""
        path = self._snapshot(step)
        try:
            arrays = read_npz(path)
            known = arrays.pop(_DIGEST, np.empty(0))
            if known.tobytes().hex() == digest(arrays):
                return arrays
            reason = "it does not fit its digest"
        except FileNotFoundError:
            return None
        except OSError as error:
            check_absent(path, error)
            reason = error.strerror or type(error).__name__
        except Unreadable as error:
            reason = str(error)
        log(f"warning: {path} is damaged and is not used: {reason}")
        return None

    @cluster.read_on_first
    def snapshot_steps(self) -> list[int]:
        """The outer steps whose analysis was kept, ascending."""
        steps = []
        for path in sorted(self.snapshots.iterdir()) if self.snapshots.is_dir() else ():
            if found := _SNAPSHOT.fullmatch(path.name):
                steps.append(int(found[1]))
            elif not path.name.startswith("."):
                log(f"warning: {printable(str(path))} is no analysis: it is ignored")
        return sorted(steps)

    def _snapshot(self, step: int) -> Path:
        return self.snapshots / f"{step:06d}.npz"

    def _tells_of_a_checkpoint(self) -> bool:
        """Saving step 1 waits for checkpoint 0, so a third line proves that there was one."""
        return len(self._metrics_bytes().splitlines()) > 2

    def _metrics_bytes(self) -> bytes:
        """Empty where there is no such file."""
        try:
            return self.metrics.read_bytes()
        except OSError as error:
            check_absent(self.metrics, error)
            return b""
