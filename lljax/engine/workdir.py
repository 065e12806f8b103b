"""The folder of a run: whom it belongs to, where its files are, and how they are read again."""

import json
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from lljax.artifacts import schema
from lljax.artifacts.files import metrics_line, write_atomically, write_json, write_npz
from lljax.errors import UserError

# Settings that change how a run goes, not what comes out of it.
_FREE = ("inner.memory", "inner.memory_budget_gb", "outer.checkpoint_seconds", "trackers")


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
        self.snapshots = root / "snapshots"
        self.policy = root / schema.POLICY_FILE
        self.report = root / schema.REPORT_FILE

    def lock(self) -> filelock.BaseFileLock:
        """Keeps a second process out of the folder; ends with the process, however it ends.

        Raises:
          UserError: another process has it.
        """
        lock = filelock.FileLock(self.root / ".lock")
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            raise UserError(
                f"another process is running in --workdir {self.root}. Wait for it, or give this "
                f"run a --workdir of its own."
            ) from None
        return lock

    def claim(self, wanted: dict[str, Any], free: tuple[str, ...] = ()) -> None:
        """Makes the folder that of these settings, or recognises it as such.

        Args:
          wanted: what config.json is to hold.
          free: settings of the task that may differ in a run that is continued.

        Raises:
          UserError: the folder belongs to another config or to something else, or cannot be
            read or written. Nothing was changed.
        """
        try:
            found = [path for path in self.root.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            found = []
        except OSError as error:
            raise UserError(f"--workdir {self.root} cannot be read: {error}.") from error
        if not found:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                write_json(self.config, wanted)
            except OSError as error:
                raise UserError(f"--workdir {self.root} cannot be written: {error}.") from error
            return
        ignored = {*_FREE, *free}
        there, here = (
            {key: value for key, value in schema.flatten(tree).items() if key not in ignored}
            for tree in (self._read_config(), wanted)
        )
        differences = [
            f"{key} is {there.get(key, 'absent')} there and {here.get(key, 'absent')} here"
            for key in sorted({*there, *here})
            if there.get(key, "absent") != here.get(key, "absent")
        ]
        if differences:
            raise UserError(
                f"--workdir {self.root} belongs to a run of another config: "
                f"{'; '.join(differences)}. Give this run a --workdir of its own."
            )

    def claim_data(self, digest: str, provenance: str) -> None:
        """Makes the folder that of these data, or recognises them.

        Args:
          digest: of the data and the initial parameters.
          provenance: where they come from, in words.

        Raises:
          UserError: the run was begun with other data.
        """
        if not self.data.exists():
            write_json(self.data, {"sha256": digest})
            return
        try:
            known = json.loads(self.data.read_text(encoding="utf-8"))["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.data} cannot be read ({error}). Start in a new workdir."
            ) from error
        if known != digest:
            raise UserError(
                f"the data or initial parameters are not those that the run in {self.root} was "
                f"begun with: {provenance} or a library has changed. Put it back, or give a "
                f"--workdir of its own."
            )

    def _read_config(self) -> dict[str, Any]:
        try:
            there = json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"--workdir {self.root} is not empty and has no config.json, so it is not a run "
                f"of lljax. Give a new or empty folder."
            ) from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.config} cannot be read ({error}): the workdir is damaged. Give a new or "
                f"empty folder."
            ) from error
        if not isinstance(there, dict):
            raise UserError(f"{self.config} does not hold a config. Give a new or empty folder.")
        return there

    def read_metrics(self, last_step: int) -> list[dict[str, Any]]:
        """The lines of outer steps 0 .. last_step; later ones (never checkpointed) are dropped.

        Raises:
          UserError: a line is missing or unreadable.
        """
        lines: list[dict[str, Any]] = []
        try:
            text = self.metrics.read_text(encoding="utf-8")
            for line in text.splitlines()[: last_step + 1]:
                lines.append(json.loads(line))
            content = "".join(map(metrics_line, lines)).encode()
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.metrics} cannot be read: {error}. If an earlier lljax began this run, let "
                f"that one finish it; else start again in a new --workdir."
            ) from error
        if [line.get("outer_step") for line in lines] != list(range(last_step + 1)):
            raise UserError(
                f"{self.metrics} does not hold the outer steps 0 to {last_step} that the "
                f"checkpoints continue from: the workdir is damaged. Start again in a new one."
            )
        write_atomically(self.metrics, content)
        return lines

    def restart(self) -> None:
        """Drops what a run left that was killed before its first checkpoint was complete.

        Raises:
          UserError: the run was further than that, so its checkpoints have been lost.
        """
        # Saving step 1 waits for checkpoint 0, so a third line proves that there was one.
        if self.metrics.exists() and len(self.metrics.read_bytes().splitlines()) > 2:
            raise UserError(
                f"{self.metrics} tells of a run whose checkpoints are missing from "
                f"{self.checkpoints}. Put them back, or start again in a new --workdir."
            )
        self.metrics.unlink(missing_ok=True)
        for folder in (self.snapshots, self.checkpoints):
            shutil.rmtree(folder, ignore_errors=True)

    def save_snapshot(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        self.snapshots.mkdir(exist_ok=True)
        write_npz(self.snapshots / f"{step:06d}.npz", arrays)

    def has_snapshot(self, step: int) -> bool:
        return (self.snapshots / f"{step:06d}.npz").exists()

    def read_snapshot(self, step: int) -> dict[str, np.ndarray]:
        path = self.snapshots / f"{step:06d}.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"{path} cannot be read: {error}. Remove it, and the same command makes it again."
            ) from error
