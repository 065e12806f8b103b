"""Ctrl-C at random moments: the program stops at once, and the same command continues the run."""

import signal
import time

import pytest

from adversary.processes import finish, is_left, send, start
from adversary.runs import OFTEN
from adversary.verdicts import IDENTICAL, Verdict, fault_of_manners

_AT_ONCE = 10.0
"""Seconds, on a machine that does other things as well."""
_FIRST = 0.3  # before, Python itself is starting
_MOST_LINES = 5


@pytest.fixture(autouse=True)
def _processes_hear_ctrl_c():
    """A shell that starts the tests in the background lets them, and their children, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
def test_a_run(runs, cases, rng, repeats, tmp_path, times):
    with cases("Ctrl-C") as verdicts:
        for number, moment in enumerate(_moments(runs, rng, 5 * repeats)):
            workdir = tmp_path / f"interrupted{number}"
            verdict = _interrupt_and_continue(runs, workdir, rng, moment, times, OFTEN)
            verdicts.add(f"after {moment:.2f} s, {times} times", verdict)


def test_a_run_that_compiles(runs, cases, rng, repeats, tmp_path):
    """Without a cache of compiled programs most of the time is compilation."""
    with cases("Ctrl-C") as verdicts:
        for number, moment in enumerate(_moments(runs, rng, 4 * repeats)):
            workdir = tmp_path / f"interrupted{number}"
            no_cache = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
            verdict = _interrupt_and_continue(runs, workdir, rng, moment, 1, OFTEN, **no_cache)
            verdicts.add(f"after {moment:.2f} s, compiling", verdict)


def test_a_run_that_reads_text(text_runs, cases, rng, repeats, tmp_path):
    """Without a cache of sequences it first trains a tokenizer."""
    with cases("Ctrl-C") as verdicts:
        for number, moment in enumerate(_moments(text_runs, rng, 4 * repeats)):
            workdir = tmp_path / f"interrupted{number}"
            flags = text_runs.with_a_cache(tmp_path / f"cache{number}")
            verdict = _interrupt_and_continue(text_runs, workdir, rng, moment, 1, flags)
            verdicts.add(f"after {moment:.2f} s, language model", verdict)


def _moments(runs, rng, number) -> list[float]:
    """One in each part of the time that a process takes."""
    return [_FIRST + (k + rng.random()) / number * runs.seconds for k in range(number)]


def _interrupt_and_continue(runs, workdir, rng, moment, times, flags, **changes) -> Verdict:
    process = start(*runs.command, workdir, *flags, **changes)
    time.sleep(moment)
    for number in range(times):
        if number:
            time.sleep(rng.uniform(0, 0.5))
        send(process, signal.SIGINT)
    fault = _fault_of_stopping(runs, workdir, process)
    if fault is not None:
        return fault
    result = runs.server.run(*runs.command, workdir, *flags)
    return runs.judge(result, workdir, workdir, flags=flags).demand(IDENTICAL)


def _fault_of_stopping(runs, workdir, process) -> Verdict | None:
    result = finish(process, _AT_ONCE)
    lines = runs.ordinary.others(result, workdir)
    if result.returncode is None:
        return Verdict("not stopped", " ".join(result.stderr.splitlines()[-1:]))
    if result.returncode == 0:
        return None  # it was done before
    if result.returncode == -signal.SIGINT:
        result = result._replace(returncode=1)  # as it should
    elif result.returncode > 0:
        return Verdict("not ended by SIGINT", f"status {result.returncode}, {lines[-1:]}")
    fault = fault_of_manners(result, lines)
    if fault is not None:
        return fault
    if len(lines) > _MOST_LINES:
        return Verdict("too many lines", " ".join(lines))
    if is_left(process):
        return Verdict("a process is left")
    temporary = [path.name for path in workdir.glob(".*") if path.name != ".lock"]
    return Verdict("a file is left", ", ".join(temporary)) if temporary else None
