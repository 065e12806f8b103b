"""What came of a disturbed command: one of three verdicts, or a fault.

  identical              all results are as undisturbed, byte for byte where they are deterministic
  continued with a word  something is lacking or was made again, and a line of stderr says so; the
                         policy is one of the undisturbed optimisation, and no number is wrong
  refused                at most ten lines that name what is damaged, status 1 or 2

Everything else is a fault: a difference without a word, a wrong number with or without one, a
traceback, a hang, an end by a signal, too many words, a refusal that names nothing, and a dead end:
a run that said it was done, and fails when it is asked again.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from adversary.results import Comparison

IDENTICAL = "identical"
CONTINUED = "continued with a word"
REFUSED = "refused"
VERDICTS = (IDENTICAL, CONTINUED, REFUSED)

MOST_LINES = 10
# How a sentence says that something was damaged, is lacking, or was made again.
_WORD = re.compile(
    r"warning|damaged|cannot be|could not|unreadable|corrupt|broken|missing|lost|gone|lacks?\b"
    r"|left out|no longer|again|anew|afresh|begins? with|instead|removed|set aside|does not",
    re.IGNORECASE,
)
# Lines of libraries, which no user can make anything of.
_FOREIGN = re.compile(r"^(WARNING|ERROR|INFO):absl|^[WEI]\d{4} |Warning: |^\s")


class Result(NamedTuple):
    """How a command ended."""

    returncode: int | None  # None: not within the time limit
    stdout: str
    stderr: str


class Verdict(NamedTuple):
    verdict: str
    reason: str = ""

    @property
    def is_fault(self) -> bool:
        return self.verdict not in VERDICTS

    def demand(self, wanted: str) -> "Verdict":
        """This verdict where only one, or a fault, can be right."""
        if self.is_fault or self.verdict == wanted:
            return self
        return Verdict(f"not {wanted}", f"{self.verdict}: {self.reason}")


def ordinary_form(line: str, folder: Path | None) -> str:
    """A line of stderr without what differs from run to run."""
    if re.match(r"outer +\d+/\d+ ", line):
        return "outer"
    if folder is not None:
        line = line.replace(str(folder.resolve()), "FOLDER").replace(str(folder), "FOLDER")
    return re.sub(r"\d+", "N", line)


class Ordinary:
    """The lines that undisturbed commands print; every other line is counted and read."""

    def __init__(self) -> None:
        self._lines: set[str] = set()

    def learn(self, result: Result, folder: Path) -> None:
        self._lines |= {ordinary_form(line, folder) for line in result.stderr.splitlines()}

    def others(self, result: Result, folder: Path) -> list[str]:
        """The lines of a result that no undisturbed command printed."""
        lines = filter(str.strip, result.stderr.splitlines())
        return [line for line in lines if ordinary_form(line, folder) not in self._lines]


def fault_of_manners(result: Result, lines: list[str]) -> Verdict | None:
    """What no command may do, whatever it was given."""
    last = lines[-1] if lines else ""
    if result.returncode is None:
        return Verdict("hang", last)
    if "Traceback (most recent call last)" in result.stderr:
        return Verdict("traceback", last)
    if result.returncode < 0:
        return Verdict("ended by a signal", f"{-result.returncode} {last}")
    if len(lines) > MOST_LINES:
        return Verdict("too many lines", f"{len(lines)}: {lines[0]}")
    if result.returncode not in (0, 1, 2):
        return Verdict("strange exit status", f"{result.returncode} {last}")
    return None


def judge_refusal(result: Result, lines: list[str], names: Iterable[str]) -> Verdict:
    """A refusal is one if it names what is wrong."""
    text = " ".join(lines)
    if any(name in text for name in names):
        return Verdict(REFUSED, lines[-1])
    return Verdict("refused without a name", text[-300:] or "in silence")


def judge(
    result: Result, lines: list[str], names: Iterable[str], comparison: Comparison | None
) -> Verdict:
    """The verdict of a command.

    Args:
      result: how it ended.
      lines: of its stderr, those that are not ordinary.
      names: a refusal has to hold one of them.
      comparison: of what it left with what is left undisturbed; only used if it ended well.
    """
    fault = fault_of_manners(result, lines)
    if fault is not None:
        return fault
    if result.returncode != 0:
        return judge_refusal(result, lines, names)
    assert comparison is not None
    words = [line for line in lines if _WORD.search(line) and not _FOREIGN.search(line)]
    if comparison.wrong:
        spoken = "wrong in spite of a word" if words else "silent difference"
        return Verdict(spoken, ", ".join(comparison.wrong[:3]))
    if not comparison.lacking:
        return Verdict(IDENTICAL)
    if words:
        return Verdict(CONTINUED, words[0])
    return Verdict("silent lack", ", ".join(comparison.lacking[:3]))


def names_of(target: Path) -> list[str]:
    """What a refusal may call a damaged file: its name, or that of a folder that it is in."""
    return [part for part in target.parts if not part.isdigit() and len(part) > 1]
