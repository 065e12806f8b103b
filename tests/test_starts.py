"""The states in which segments start, on the disk: the bits of those in the host's memory."""

import numpy as np
import pytest
from command_line import (
    NOISY,
    RUN,
    assert_same_steps,
    call,
    kill_when,
    run_process,
    run_without_report,
)

from benchmarks.two_processes import finish
from lljax.engine.checkpoint_folder import CheckpointFolder
from lljax.engine.starts import DiskStarts, HostStarts
from lljax.errors import RunFailed

DISK = ("--inner.starts", "disk")
# States are made again in the backward sweep, so that it reads where segments start.
AGAIN = ("--inner.memory", "recompute", "--inner.segments", "4")


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    return run_without_report(tmp_path_factory.mktemp("runs") / "host", *AGAIN)


def test_a_run_is_the_same_and_writes_each_start_once(in_memory, tmp_path, monkeypatch):
    written, save = [], CheckpointFolder.save

    def noting(folder, number, arrays, record):
        written.append((folder.folder.name, record.get("outer_step"), number))
        save(folder, number, arrays, record)

    monkeypatch.setattr(CheckpointFolder, "save", noting)
    workdir = run_without_report(tmp_path / "disk", *AGAIN, *DISK, "--outer.checkpoint-seconds", 0)
    assert_same_steps(workdir, in_memory)
    starts = [of for of in written if of[0] == "sweep_starts"]
    assert len(starts) == len(set(starts))
    assert {number for _, step, number in starts if step == 2} == {0, 1, 2, 3, 4}
    assert not list(workdir.glob("sweep*"))


def test_so_are_runs_on_drawn_batches(tmp_path):
    flags = ("run", "noisy_labels", *NOISY, *AGAIN, "--workdir")
    for place in ("host", "disk"):
        result = call(*flags, tmp_path / place, "--inner.starts", place)
        assert result.returncode == 0, result.stderr
    assert_same_steps(tmp_path / "disk", tmp_path / "host")


def test_check_finds_the_same_with_both():
    found = [
        call("check", "perceptron", *RUN[2:-1], *AGAIN, "--seconds", 0, "--inner.starts", place)
        for place in ("host", "disk")
    ]
    assert [of.returncode for of in found] == [0, 0], found[1].stderr
    assert found[0].stdout == found[1].stdout
    assert "predicted over actual change of the AUC" in found[0].stdout


def test_only_the_newest_is_in_memory_too(tmp_path):
    leaves = [np.zeros((2, 3), np.float32), np.zeros((), np.int32)]
    starts, folder = DiskStarts(leaves, 4), CheckpointFolder(tmp_path / "starts")
    states = [[np.full((2, 3), i, np.float32), np.array(i, np.int32)] for i in range(4)]
    starts[0] = states[0]
    assert not folder.folder.exists()
    with pytest.raises(ValueError, match="no folder was opened"):
        starts[1]
    starts.open(folder, {"run": "a"})
    for index, state in enumerate(states):
        starts[index] = state
    in_host = HostStarts(leaves, 4)
    for index, state in enumerate(states):
        in_host[index] = state
        for found in (starts[index], in_host[index]):
            for leaf, expected in zip(found, state, strict=True):
                assert leaf.dtype == expected.dtype
                np.testing.assert_array_equal(leaf, expected)
    for file in (folder.path(1)).rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    with pytest.raises(RunFailed, match="1 is damaged: its record"):
        starts[1]
    starts.open(folder, {"run": "b"})
    with pytest.raises(RunFailed, match="the start of another sweep"):
        starts[2]


def test_auto_takes_the_disk_where_the_memory_is_short(tmp_path, monkeypatch):
    from lljax.engine import memory_plan

    assert "on the disk" not in call("plan", "perceptron", *RUN[2:-1]).stdout
    found = call("plan", "perceptron", *RUN[2:-1], *DISK, "--inner.segments", 5).stdout
    assert "  384 B on the disk: the states in which the segments start" in found
    monkeypatch.setattr(memory_plan, "free_host_memory", lambda: 700)
    flags = (*RUN[2:-1], "--inner.memory-budget-gb", 1e-3, "--inner.segments", 5)
    assert "  384 B on the disk" in call("plan", "perceptron", *flags).stdout


@pytest.mark.slow
@pytest.mark.parametrize("done", [2, 6], ids=["forward", "backward"])  # of 8
def test_killed_and_continued(in_memory, tmp_path, done):
    workdir = tmp_path / "killed"
    arguments = (*RUN, workdir, *AGAIN, *DISK, "--outer.checkpoint-seconds", "0")
    kill_when((workdir / "sweep" / str(2 * 10 + done)).exists, *arguments)
    assert (workdir / "sweep_starts" / "0").exists()
    result = run_process(*arguments)
    assert result.returncode == 0, result.stderr
    assert "continuing within outer step 2, after" in result.stderr
    assert_same_steps(workdir, in_memory)


@pytest.mark.slow
def test_a_start_that_was_damaged_meanwhile_is_made_again(in_memory, tmp_path, capsys):
    workdir = tmp_path / "damaged"
    arguments = (*RUN, workdir, *AGAIN, *DISK, "--outer.checkpoint-seconds", "0")
    kill_when((workdir / "sweep" / str(2 * 10 + 5)).exists, *arguments)
    for file in (workdir / "sweep_starts" / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    result = run_process(*arguments)
    assert result.returncode == 0, result.stderr
    assert f"{workdir / 'sweep_starts' / '1'} is damaged and is not used" in result.stderr
    assert_same_steps(workdir, in_memory)


@pytest.mark.slow
def test_two_processes_read_what_the_first_has_written(tmp_path):
    for place in ("host", "disk"):
        finish(tmp_path / place, 2, 2, *AGAIN, "--inner.starts", place)
    assert_same_steps(tmp_path / "disk", tmp_path / "host")
