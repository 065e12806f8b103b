"""Runs that are killed, in real processes: continued, they end in the same bytes."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from command_line import (
    ACTIVE,
    ROOT,
    RUN,
    assert_refused,
    command,
    kill_when,
    run_process,
    start_to_be_killed,
)

pytestmark = pytest.mark.xdist_group("perceptron")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The workdir of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    result = run_process(*RUN, workdir)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.mark.parametrize(
    "segments",  # of 12
    [pytest.param(3, marks=pytest.mark.slow, id="forward"), pytest.param(9, id="backward")],
)
def test_killed_inside_an_outer_step_it_goes_on_inside(undisturbed, tmp_path, segments):
    workdir = tmp_path / "killed"
    arguments = (*RUN, workdir, "--outer.checkpoint-seconds", "0")
    wanted = workdir / "sweep" / str(2 * 14 + segments)  # C + 1 = 7 states, twice a step
    kill_when(wanted.exists, *arguments)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    result = run_process(*arguments)
    assert result.returncode == 0, result.stderr
    assert "continuing within outer step 2, after" in result.stderr
    assert (workdir / "policy.npy").read_bytes() == (undisturbed / "policy.npy").read_bytes()
    assert not (workdir / "sweep").exists()


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("outer 0/8", marks=pytest.mark.slow),
        "outer 6/8",
        pytest.param("outer 8/8", marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again_the_policy_is_the_same_to_the_byte(undisturbed, tmp_path, line):
    workdir = tmp_path / "killed"
    arguments = (*RUN, workdir)
    with start_to_be_killed(*arguments) as process:
        for printed in process.stderr:
            if printed.startswith(line):
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
        assert process.wait() == -signal.SIGKILL
    assert not (workdir / "policy.npy").exists() or line == "outer 8/8"
    result = run_process(*arguments)
    assert result.returncode == 0, result.stderr
    if line == "outer 6/8":
        # At most the outer step whose checkpoint was being written is done again.
        assert "continuing after outer step" in result.stderr
        done_again = [row for row in result.stderr.splitlines() if row.startswith("outer ")]
        assert len(done_again) <= 4
    for name in ("policy.npy", "config.json"):
        assert (workdir / name).read_bytes() == (undisturbed / name).read_bytes()
    lines = [
        [
            json.loads(row) | {"seconds": 0}
            for row in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (workdir, undisturbed)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("memory", [pytest.param("offload", marks=pytest.mark.slow), "recompute"])
def test_where_states_are_kept_changes_no_bit(undisturbed, tmp_path, memory):
    workdir = tmp_path / memory
    arguments = (*RUN, workdir, "--inner.memory", memory)
    result = run_process(*arguments)
    assert result.returncode == 0, result.stderr
    assert f"({memory})" in result.stderr
    assert (workdir / "policy.npy").read_bytes() == (undisturbed / "policy.npy").read_bytes()


@pytest.mark.slow
def test_killed_at_random_moments_until_it_is_done(undisturbed, tmp_path):
    workdir, rng = tmp_path / "unlucky", np.random.default_rng(time.time_ns())
    often = ("--outer.checkpoint-seconds", "0")
    arguments = (*RUN, workdir, *often)
    for _ in range(12):
        with start_to_be_killed(*arguments, stderr=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0.5, 8))
            process.kill()
    assert run_process(*arguments).returncode == 0
    assert (workdir / "policy.npy").read_bytes() == (undisturbed / "policy.npy").read_bytes()


def test_two_processes_do_not_share_a_workdir(tmp_path):
    arguments = (*RUN, tmp_path / "w", "--outer.num-steps", "2000")
    with subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        for printed in process.stderr:
            if printed.startswith("outer"):
                break
        assert_refused(run_process(*arguments), "another process")
        process.kill()


def test_killed_while_it_looks_at_all_examples_it_goes_on_there(tmp_path):
    workdirs = killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    flags = (*ACTIVE, "--outer.check-every", "3")
    to_kill = (*RUN, killed, *flags, "--outer.checkpoint-seconds", "0")
    assert run_process(*RUN, undisturbed, *flags).returncode == 0
    kill_when(lambda: any(path.name.isdigit() for path in killed.glob("look/*")), *to_kill)
    result = run_process(*to_kill)
    assert result.returncode == 0, result.stderr
    assert "continuing within look at all examples, outer step 9, after" in result.stderr
    assert (killed / "policy.npy").read_bytes() == (undisturbed / "policy.npy").read_bytes()
    laws = [
        json.loads((folder / "summary.json").read_text())["learning_law"] for folder in workdirs
    ]
    assert laws[0] == laws[1]
