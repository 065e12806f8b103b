"""The runs that are disturbed: small ones, and what becomes of copies of their workdirs."""

import contextlib
import functools
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from command_line import ACTIVE, SMALL, kill_when
from texts import make_documents

from adversary.processes import finish, start
from adversary.results import Comparison, Contents, Reference, contents
from adversary.server import Server
from adversary.verdicts import Ordinary, Result, Verdict, judge, names_of

STEPS = 5
RUN = (
    *("run", "perceptron", *SMALL, *ACTIVE, "--outer.check-every", "3"),
    *("--outer.num-steps", str(STEPS), "--workdir"),
)
"""Of a run with an active set, whose last look at all examples is a computation of its own."""
OFTEN = ("--outer.checkpoint-seconds", "0")
"""Saved after every segment, which changes nothing in what comes out."""


class Runs:
    """Undisturbed runs of one command line, and the judge of what becomes of disturbed ones.

    Attributes:
      server: runs command lines.
      command: the command line; the workdir and other flags follow.
      ordinary: the lines that undisturbed runs print.
      finished: a finished workdir.
    """

    def __init__(self, folder: Path, server: Server, command: tuple[str, ...]):
        self.server, self.command, self.ordinary = server, command, Ordinary()
        self._folder, self._copies = folder, 0
        self.finished, another = folder / "finished", folder / "another"
        self._undisturbed(self.finished)
        self._undisturbed(another, *OFTEN, *self.with_a_cache(folder / "another_cache"))
        self._undisturbed(self.finished)  # it says that it is finished
        self._reference = Reference(self.finished, another, lambda: self._earlier)

    @functools.cached_property
    def in_sweep(self) -> Path:
        """The workdir of a run that was killed inside an outer step."""
        return self._killed("in_sweep", _is_inside_an_outer_step)

    @functools.cached_property
    def in_look(self) -> Path:
        """The workdir of a run that was killed inside its last look at all examples."""
        return self._killed("in_look", lambda workdir: lambda: any(_numbered(workdir / "look")))

    @functools.cached_property
    def seconds(self) -> float:
        """What an undisturbed run takes in a process of its own."""
        flags = self.with_a_cache(self._folder / "timed_cache")
        started = time.monotonic()
        result = finish(start(*self.command, self._folder / "timed", *flags))
        assert result.returncode == 0, result.stderr
        return time.monotonic() - started

    def with_a_cache(self, folder: Path) -> tuple[str, ...]:
        """Flags for a cache of text, which these runs do not need."""
        return ()

    @contextlib.contextmanager
    def copy(self, state: Path) -> Iterator[Path]:
        """A copy of a workdir; no two have the same path."""
        self._copies += 1
        workdir = self._folder / f"copy{self._copies}"
        shutil.copytree(state, workdir, symlinks=True)
        try:
            yield workdir
        finally:
            shutil.rmtree(workdir, ignore_errors=True)

    def run_and_judge(self, workdir: Path, target: Path, *, exactly: bool = False) -> Verdict:
        """The verdict of the command in a damaged workdir.

        Args:
          workdir: what is damaged.
          target: the damaged file or folder in it.
          exactly: whether the run was finished, so that no file may stay damaged.
        """
        damaged = contents(workdir) if exactly else None
        result = self.server.run(*self.command, workdir, figures=exactly)
        return self.judge(result, workdir, target, damaged=damaged)

    def judge(
        self,
        result: Result,
        workdir: Path,
        target: Path,
        *,
        flags: tuple[object, ...] = (),
        damaged: Contents | None = None,
    ) -> Verdict:
        """The verdict of a run, which must say the same when it is run again.

        Args:
          result: how it ended.
          workdir: its folder.
          target: what was damaged, for the refusal to name.
          flags: with which it is run again.
          damaged: what the files of a finished run said before it; None for an unfinished one.
        """
        lines = self.ordinary.others(result, workdir)
        comparison = None
        if result.returncode == 0 and damaged is None:
            comparison = self._reference.compare(workdir)
        elif result.returncode == 0:
            comparison = self._reference.compare_exactly(workdir, damaged)
        verdict = judge(result, lines, names_of(target), comparison)
        if verdict.is_fault or result.returncode != 0:
            return verdict
        before = contents(workdir)
        again = self.server.run(*self.command, workdir, *flags, figures=damaged is not None)
        if again.returncode != 0:
            return Verdict("dead end", again.stderr[-300:])
        if contents(workdir) != before:
            return Verdict("another result when asked again", verdict.reason)
        return verdict

    def draw_and_judge(self, workdir: Path, target: Path) -> Verdict:
        """Draws the report of a damaged finished workdir, and compares its page."""
        result = self.server.run("report", workdir)
        lines = self.ordinary.others(result, workdir)
        comparison = None
        if result.returncode == 0:
            same = _page(workdir) == self._drawn_page
            comparison = Comparison([] if same else ["report.html"], [])
        return judge(result, lines, names_of(target), comparison)

    @functools.cached_property
    def _drawn_page(self) -> str:
        with self.copy(self.finished) as undamaged:
            result = self.server.run("report", undamaged)
            assert result.returncode == 0, result.stderr
            return _page(undamaged)

    def _undisturbed(self, workdir: Path, *flags: str) -> None:
        result = self.server.run(*self.command, workdir, *flags)
        assert result.returncode == 0, result.stderr
        self.ordinary.learn(result, workdir)

    def _killed(self, name: str, moment: Callable[[Path], Callable[[], bool]]) -> Path:
        workdir = self._folder / name
        kill_when(moment(workdir), *self.command, workdir, *OFTEN)
        with self.copy(workdir) as undamaged:
            self._undisturbed(undamaged)
            comparison = self._reference.compare(undamaged)
            assert comparison == ([], []), comparison
        return workdir

    @functools.cached_property
    def _earlier(self) -> list[Contents]:
        """What undisturbed runs leave that end at earlier outer steps."""
        found = []
        for steps in range(1, STEPS):
            workdir = self._folder / f"steps{steps}"
            self._undisturbed(workdir, "--outer.num-steps", str(steps))
            found.append(contents(workdir))
        return found


class TextRuns(Runs):
    """Those of a language model.

    Attributes:
      cache: the folder of its tokenised text.
    """

    def __init__(self, folder: Path, server: Server):
        self.cache = folder / "cache"
        text = folder / "text.txt"
        text.write_text("<|endoftext|>".join(make_documents(3_000)), encoding="utf-8")
        command = (
            *("run", "transformer_small", "--data.path", str(text)),
            *(*self.with_a_cache(self.cache), "--data.vocab-size", "96"),
            *("--data.context", "12", "--data.num-train", "24", "--data.num-desired", "16"),
            *("--data.num-validation", "16", "--data.num-test", "16", "--model.width", "8"),
            *("--model.num-heads", "2", "--inner.microbatch-size", "16"),
            *("--inner.num-steps", "12", "--inner.learning-rate", "0.5"),
            *("--outer.num-steps", "2", "--workdir"),
        )
        super().__init__(folder, server, command)

    def with_a_cache(self, folder: Path) -> tuple[str, ...]:
        """Flags with which the text is tokenised into this folder."""
        return "--data.cache-dir", str(folder)


def _page(workdir: Path) -> str:
    """The report without the name of its folder and the time at which it was drawn."""
    text = (workdir / "report.html").read_text(encoding="utf-8", errors="replace")
    return re.sub(r"\d{4}-\d\d-\d\d.\d\d:\d\d(:\d\d)?", "", text.replace(str(workdir), ""))


def _numbered(folder: Path) -> set[str]:
    """The checkpoints in a folder that are whole."""
    return {path.name for path in folder.glob("*") if path.name.isdigit()}


def _is_inside_an_outer_step(workdir: Path) -> Callable[[], bool]:
    """Holds inside the backward sweep of an outer step that is not one of the first."""
    # Six segments lead forward and six back; the number is 14 times the outer step, and theirs.
    least = 14 * (STEPS - 1) + 8
    return lambda: any(int(name) >= least for name in _numbered(workdir / "sweep"))
