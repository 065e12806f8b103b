"""Runs that are killed, in real processes: continued, they end in the same bytes."""

import functools
import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from command_line import (
    ACTIVE,
    RUN,
    assert_refused,
    assert_same_steps,
    call,
    kill_when,
    run_process,
    start,
    start_to_be_killed,
)

FLAGS = (*ACTIVE, "--outer.check-every", "3")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The workdir of a run with an active set, to which nothing happened."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    result = run_process(*RUN, workdir, *FLAGS)
    assert result.returncode == 0, result.stderr
    return workdir


def kill_after_line(line, *arguments):
    """Starts a command and kills it once it has printed a line that begins so."""
    with start_to_be_killed(*arguments) as process:
        next(text for text in process.stderr if text.startswith(line))
        os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
        assert process.wait() == -signal.SIGKILL


def assert_same_ends(workdir, undisturbed):
    assert_same_steps(workdir, undisturbed)
    summaries = [(folder / "summary.json").read_text() for folder in (workdir, undisturbed)]
    laws = [json.loads(summary)["learning_law"] for summary in summaries]
    assert laws[0] == laws[1]
    assert not (workdir / "sweep").exists()
    assert not (workdir / "look").exists()


@pytest.mark.slow
def test_killed_at_two_moments_a_run_ends_in_the_same_bytes(undisturbed, tmp_path):
    """Inside a backward sweep, and inside the last look at all examples; nobody else gets in."""
    workdir = tmp_path / "killed"
    arguments = (*RUN, workdir, *FLAGS, "--outer.checkpoint-seconds", "0")
    # Twelve segments of two outer steps, and nine of the next: C + 1 = 7 states, twice a step.
    kill_when((workdir / "sweep" / str(2 * 14 + 9)).exists, *arguments)
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 2
    kill_when(lambda: any(path.name.isdigit() for path in workdir.glob("look/*")), *arguments)
    assert not (workdir / "policy.npy").exists()
    with start(*arguments) as process:
        line = next(text for text in process.stderr if "continuing within" in text)
        assert_refused(call(*arguments), "another process")
        process.communicate()
    assert process.returncode == 0
    assert "continuing within look at all examples, outer step 9, after" in line
    assert_same_ends(workdir, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("segments", [3, 9], ids=["forward", "backward"])  # of 12
def test_killed_inside_an_outer_step_it_goes_on_inside(undisturbed, tmp_path, segments):
    workdir = tmp_path / "killed"
    arguments = (*RUN, workdir, *FLAGS, "--outer.checkpoint-seconds", "0")
    kill_when((workdir / "sweep" / str(2 * 14 + segments)).exists, *arguments)
    result = run_process(*arguments)
    assert result.returncode == 0, result.stderr
    assert "continuing within outer step 2, after" in result.stderr
    assert_same_ends(workdir, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("line", ["outer 0/8", "outer 6/8", "outer 8/8"])
def test_killed_between_two_outer_steps(undisturbed, tmp_path, line):
    workdir = tmp_path / "killed"
    kill_after_line(line, *RUN, workdir, *FLAGS)
    assert not (workdir / "policy.npy").exists() or line == "outer 8/8"
    result = run_process(*RUN, workdir, *FLAGS)
    assert result.returncode == 0, result.stderr
    if line == "outer 6/8":
        # At most the outer step whose checkpoint was being written is done again.
        assert "continuing after outer step" in result.stderr
        done_again = [row for row in result.stderr.splitlines() if row.startswith("outer ")]
        assert len(done_again) <= 4
    assert_same_ends(workdir, undisturbed)


@pytest.mark.slow
def test_killed_before_the_checkpoint_of_a_step_has_arrived_its_sweep_is_left(
    undisturbed, tmp_path
):
    """The sweep that led to an outer step goes only when the result of the step is on disk."""
    workdir = tmp_path / "killed"
    arguments = (*RUN, workdir, *FLAGS, "--outer.checkpoint-seconds", "0")

    def is_over(step):
        lines = (workdir / "metrics.jsonl").read_bytes().count(b"\n")
        try:
            names = os.listdir(workdir / "sweep")
        except FileNotFoundError:
            names = []
        return lines > step and not any(
            name.isdigit() and int(name) // 14 == step for name in names
        )

    kill_when((workdir / "checkpoints" / "0").exists, *arguments)
    for step in range(1, 5):
        kill_when(functools.partial(is_over, step), *arguments)
        assert (workdir / "checkpoints" / str(step)).is_dir()
    result = run_process(*arguments)
    assert result.returncode == 0, result.stderr
    assert_same_ends(workdir, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["store", "offload", "recompute"])
def test_where_states_are_kept_changes_no_bit(undisturbed, tmp_path, memory):
    result = run_process(*RUN, tmp_path / memory, *FLAGS, "--inner.memory", memory)
    assert result.returncode == 0, result.stderr
    assert f"({memory})" in result.stderr
    assert_same_ends(tmp_path / memory, undisturbed)


@pytest.mark.slow
def test_killed_at_random_moments_until_it_is_done(undisturbed, tmp_path):
    workdir, rng = tmp_path / "unlucky", np.random.default_rng(time.time_ns())
    arguments = (*RUN, workdir, *FLAGS, "--outer.checkpoint-seconds", "0")
    for _ in range(12):
        with start_to_be_killed(*arguments, stderr=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0.5, 8))
            process.kill()
    assert run_process(*arguments).returncode == 0
    assert_same_ends(workdir, undisturbed)
