"""Ctrl-C and SIGTERM, in real processes: an end at once, with a word, as of a killed program."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command_line import ROOT, RUN, call, read_metrics, run_process, start_to_be_killed

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
QUICK = 5.0  # seconds that an end may take on a busy machine, of which one is granted to clean up
TEMPORARY = ("*.part", "*.tmp", ".*.json.*", ".*.np*.*", ".*.jsonl.*", ".*.html.*")


@pytest.fixture(autouse=True)
def heard_signals():
    """A shell's background job ignores SIGINT, and what it starts would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stop(process, number=signal.SIGINT, times=1):
    """Sends a signal, as a terminal does to all processes of a command; returns stderr."""
    started = time.monotonic()
    for _ in range(times):
        os.killpg(process.pid, number)
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - started < QUICK
    return err


def assert_stopped(process, err, number=signal.SIGINT):
    assert process.returncode == -number, err
    assert err.splitlines()[-1] == f"lljax: {WORDS[number]}; the same command continues the run"
    assert err.count("the same command") == 1
    assert "Traceback" not in err
    assert "ignored" not in err


def leftovers(workdir):
    return [path for pattern in TEMPORARY for path in workdir.rglob(pattern)]


def test_while_importing_and_a_second_time(tmp_path):
    with start_to_be_killed(*RUN, tmp_path / "w") as process:
        time.sleep(0.5)
        err = stop(process, times=3)
    assert_stopped(process, err)
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "w").exists()


def test_while_computing(tmp_path):
    workdir = tmp_path / "w"
    with start_to_be_killed(*RUN, workdir, "--outer.num-steps", "900") as process:
        for line in process.stderr:
            if line.startswith("perceptron:"):  # the first sweep is compiled now
                break
        err = stop(process)
    assert_stopped(process, err)
    assert not leftovers(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("number", WORDS)
def test_at_fifteen_moments_until_it_is_done(tmp_path, number):
    """From the first import to the report: each time at once, and the end is the same."""
    workdir, rng = tmp_path / "w", np.random.default_rng(time.time_ns())
    arguments, stopped = (*RUN, workdir, "--outer.checkpoint-seconds", "0"), 0
    while stopped < 15 and not (workdir / "report.html").exists():
        with start_to_be_killed(*arguments) as process:
            time.sleep(rng.uniform(0.2, 12))
            err = stop(process, number) if process.poll() is None else process.stderr.read()
        # Once all is done and said, a process on its way out has nothing to say of its end.
        done = (workdir / "manifest.json").exists() and err.splitlines()[-1].startswith("report: ")
        if process.returncode != 0 and not done:
            assert_stopped(process, err, number)
            assert not leftovers(workdir)
            stopped += 1
    again = run_process(*arguments)
    assert again.returncode == 0, again.stderr
    whole = tmp_path / "whole"
    assert run_process(*RUN, whole).returncode == 0
    assert (workdir / "policy.npy").read_bytes() == (whole / "policy.npy").read_bytes()
    lines = [[line | {"seconds": 0} for line in read_metrics(path)] for path in (workdir, whole)]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_shells_loop_ends(tmp_path):
    run = f"{sys.executable} -m lljax {' '.join(map(str, (*RUN, tmp_path)))}"
    loop = f"for s in 0 1 2; do {run}/$s --outer.num-steps 900; done; echo went on"
    with subprocess.Popen(
        ["bash", "-c", loop],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    ) as shell:
        next(line for line in shell.stderr if line.startswith("outer "))
        os.killpg(shell.pid, signal.SIGINT)
        out, _ = shell.communicate(timeout=60)
    assert shell.returncode == -signal.SIGINT
    assert out == ""
    assert not (tmp_path / "1").exists()


@pytest.mark.slow
def test_where_the_signal_is_ignored_it_stays_so(tmp_path):
    """As after nohup, or for a job that a script puts into the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with start_to_be_killed(*RUN, tmp_path / "w") as process:
        for _ in range(4):
            time.sleep(1)
            os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert "interrupted" not in err


FORKING = """
import multiprocessing
from lljax.tasks import *

def get_config():
    with multiprocessing.get_context("fork").Pool(2) as pool:  # which it ends by SIGTERM
        assert pool.map(abs, [-1]) == [1]
    return 3
"""


@pytest.mark.slow
def test_processes_that_a_config_forks_and_ends_do_not_end_the_run(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(FORKING)
    result = run_process("run", config)
    assert result.returncode == 2
    assert "got int" in result.stderr
    assert "terminated" not in result.stderr


def test_a_call_in_a_program_of_ones_own_leaves_its_signals_alone():
    before = {number: signal.getsignal(number) for number in WORDS}
    assert call("version").returncode == 0
    assert {number: signal.getsignal(number) for number in WORDS} == before
