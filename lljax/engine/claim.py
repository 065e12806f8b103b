"""Whose a workdir is: compared before anything is computed, and bound once that can begin."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lljax import cluster
from lljax.artifacts import schema
from lljax.artifacts.files import write_json
from lljax.artifacts.reading import Unreadable, cannot_read, check_absent, read_json
from lljax.engine.checkpoint_folder import UNFINISHED, CheckpointFolder
from lljax.engine.differences import ABSENT, differences, shown
from lljax.engine.progress import log
from lljax.engine.row_files import RowFiles
from lljax.engine.state_checkpoints import newest_record
from lljax.engine.workdir import Workdir
from lljax.errors import RunFailed, UserError
from lljax.safe_text import printable
from lljax.tasks.problem import Experiment

# Settings that change how a run goes, not what comes out of it.
FREE = (
    *("inner.memory", "inner.memory_budget_gb", "inner.starts", "policy.memory"),
    *("outer.checkpoint_seconds", "trackers"),
    *("mesh.devices", "mesh.params", "mesh.stuck_minutes"),  # to rounding
)
# Settings that say how far it goes: a run may be given others.
_HOW_FAR = ("outer.num_steps", "outer.patience")


class Claim:
    """The wish of an experiment to run in a workdir, after a look at what is there.

    The newest intact checkpoint says whose the workdir is; without one config.json and data.json
    do, and they bind only once an outer step was recorded.

    Attributes:
      record: of the newest intact checkpoint; None where there is none.
      settings: by dotted name, those that make a run what it is.
      is_dense: whether the policy is one of single steps.
      is_unchanged: whether config.json wants just what the experiment wants.
    """

    def __init__(self, experiment: Experiment, workdir: Workdir):
        """Only reads.

        Raises:
          UserError: the folder belongs to another config or to something else, or cannot be read.
        """
        self._workdir = workdir
        self._wanted = experiment.settings()
        self._hidden = experiment.hidden_digest()
        self._free = {*FREE, *experiment.task.free_settings}
        self._replaces: list[str] = []  # in what the run differs whose place this one takes
        self.settings = self._binding(self._wanted)
        self.is_dense = experiment.config.policy.is_dense
        self.record = newest_record(workdir)
        self.is_unchanged = False
        self._data_is_right = False
        if not self._is_empty():
            self._compare()

    def _is_empty(self) -> bool:
        try:
            paths = list(self._workdir.root.iterdir())
            return all(path.name.startswith(".") or self._is_remains(path) for path in paths)
        except FileNotFoundError:
            return True
        except NotADirectoryError as error:
            raise UserError(
                f"--workdir {self._workdir.root} is a file, and must be a folder. Give another "
                f"--workdir, or move the file away."
            ) from error
        except OSError as error:
            raise cannot_read(self._workdir.root, error) from error

    def _is_remains(self, path: Path) -> bool:
        """Whether it is what a run writes whose folder is taken away: checkpoints half written."""
        workdir = self._workdir
        folders = (workdir.checkpoints, *workdir.sweeps)
        if path not in folders or not path.is_dir():
            return False
        return all(UNFINISHED in part.name for part in path.iterdir())

    def _compare(self) -> None:
        root, config = self._workdir.root, self._read_config()
        if self.record is not None:
            there = self.record["run"]["settings"]
        else:
            there = self._binding(config or {})
        differing = differences(there, self.settings)
        if differing and (self.record is not None or self._workdir.has_results()):
            raise UserError(
                f"--workdir {root} belongs to a run of another config: {'; '.join(differing)}. "
                f"Give this run a --workdir of its own."
            )
        self._replaces = differing
        made = self.record["outer_step"] if self.record else 0
        if made > self._num_steps:
            raise UserError(
                f"outer.num_steps must be at least {made}, the outer steps that the run in "
                f"{root} has made already; got {self._num_steps}."
            )
        if config is not None:
            same = self._binding(config) == self.settings
            flat, wanted = schema.flatten(config), schema.flatten(self._wanted)
            as_far = all(flat.get(key) == wanted[key] for key in _HOW_FAR)
            # The parts of URLs that no file holds in clear, too.
            same_url = self._read_data().get("url") == self._hidden
            self.is_unchanged = same and as_far and same_url

    @property
    def _num_steps(self) -> int:
        return schema.lookup(self._wanted, "outer.num_steps")

    def _read_config(self) -> dict[str, Any] | None:
        """config.json; None where it is damaged and a checkpoint says whose the folder is."""
        path = self._workdir.config
        try:
            config = read_json(path)
            schema.check_config(config)
            return config
        except FileNotFoundError:
            problem = (
                f"--workdir {self._workdir.root} is not empty and has no config.json, so it is "
                f"not a run of lljax. Give a new or empty folder."
            )
        except (OSError, Unreadable) as error:
            check_absent(path, error)
            reason = error.strerror if isinstance(error, OSError) else error
            problem = (
                f"{path} cannot be read ({reason}): the workdir is damaged. Give a new or empty "
                f"folder."
            )
        except schema.SchemaError as error:
            problem = (
                f"{path} does not hold a config of lljax ({printable(str(error))}). Give a new or "
                f"empty folder."
            )
        if self.record is None:
            raise UserError(problem)
        return None

    def compare_data(self, digest: str, provenance: str) -> None:
        """Looks whether the run was begun with these data; only reads.

        Args:
          digest: of the data and the initial parameters.
          provenance: where they come from, in words.

        Raises:
          UserError: it was begun with other data.
          RunFailed: another process of the run has others.
        """
        self._digest = digest
        expected = cluster.from_first(lambda: digest)
        if digest != expected:
            raise RunFailed(
                f"this process and the first one have other data or initial parameters: look at "
                f"{provenance} and at the versions of packages on both hosts"
            )
        self._compare_data(digest, provenance)

    @cluster.on_first
    def _compare_data(self, digest: str, provenance: str) -> None:
        data = self._read_data()
        there = data.get("sha256")
        self._data_was_lost = there != digest
        self._data_is_right = there == digest and data.get("url") == self._hidden
        begun_with = there if self.record is None else self.record["run"]["data"]
        if begun_with == digest:
            return
        if self.record is None and (begun_with is None or not self._workdir.has_results()):
            if begun_with is not None and not self._replaces:
                self._replaces = ["its data were others"]
            return
        raise UserError(
            f"the data or initial parameters are not those that the run in {self._workdir.root} "
            f"was begun with: {provenance} or a library has changed. Put it back, or give a "
            f"--workdir of its own."
        )

    def _read_data(self) -> dict[str, Any]:
        """data.json; empty where it is lost or damaged."""
        try:
            return dict(read_json(self._workdir.data))
        except (OSError, Unreadable, TypeError, ValueError) as error:
            check_absent(self._workdir.data, error)
            return {}

    @property
    def run(self) -> dict[str, Any]:
        """The run's settings and data, for its checkpoints; after `compare_data`."""
        return {"settings": self.settings, "data": self._digest}

    @cluster.on_first
    def settle(self) -> None:
        """Makes the folder that of this run: writes config.json and data.json where they differ."""
        workdir = self._workdir
        if self._replaces:
            log(
                f"{workdir.root} held the beginning of another run, without an outer step: it is "
                f"replaced ({'; '.join(self._replaces)})"
            )
            workdir.begin()
            for folder in workdir.sweeps:
                CheckpointFolder(folder).clear()
            for folder in workdir.rows:
                RowFiles(folder).clear()
        if not self.is_unchanged:
            self._say_what_changes()
            try:
                write_json(workdir.config, self._wanted)
            except ValueError as error:
                raise UserError(f"config.json cannot hold these settings: {error}.") from error
        if not self._data_is_right:
            if self.record is not None and self._data_was_lost:
                log(f"warning: {workdir.data} was lost or damaged: it is written again")
            url = {} if self._hidden is None else {"url": self._hidden}
            write_json(workdir.data, {"sha256": self._digest, **url})

    def _say_what_changes(self) -> None:
        if self.record is None:
            return
        try:
            config = read_json(self._workdir.config)
            there = schema.flatten(config)
            damaged = self._binding(config) != self.settings
        except (OSError, Unreadable, AttributeError, RecursionError) as error:
            check_absent(self._workdir.config, error)
            there, damaged = {}, True
        if damaged:
            log(f"warning: {self._workdir.config} was lost or damaged: it is written again")
            return
        here = schema.flatten(self._wanted)
        changed = [
            f"{key} is {shown(here[key])} now and was {shown(was)}"
            for key in _HOW_FAR
            if here[key] != (was := there.get(key, ABSENT))
        ]
        if changed:
            log(f"the run goes on with other settings: {'; '.join(changed)}")

    def _binding(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        left_out = {*self._free, *_HOW_FAR}
        flat = schema.flatten(settings)
        return {key: value for key, value in flat.items() if key not in left_out}
