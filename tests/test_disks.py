"""Disks that do not take what is written: one sentence, nothing lost, the same command goes on."""

import errno
import os
import subprocess

import pytest
from command_line import RUN, assert_refused, run_process

from lljax.artifacts import files
from lljax.artifacts.failures import cannot_write
from lljax.engine.checkpoint_folder import CheckpointFolder
from lljax.errors import RunFailed


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, ""), "No space left on device. Free space on its disk (or inodes"),
        (
            OSError(errno.EACCES, ""),
            "Permission denied. Make it readable and writable for you, and",
        ),
        (ValueError("RESOURCE_EXHAUSTED: x\n[os_error_code='28']"), "No space left on device."),
        (RuntimeError("odd \x1b[31m\nand long"), "RuntimeError: odd \ufffd[31m. Put that right"),
    ],
)
def test_what_a_disk_says_is_one_sentence(tmp_path, error, words):
    message = str(cannot_write(tmp_path / "file", error))
    assert message.startswith(f"{tmp_path / 'file'} cannot be written: {words}")
    assert message.endswith("the same command continues the run.")
    assert "\n" not in message


def test_the_cause_behind_an_error_is_found(tmp_path):
    error = ValueError("what a library makes of it")
    error.__cause__ = OSError(errno.EROFS, "")
    assert "Read-only file system" in str(cannot_write(tmp_path / "file", error))
    error = ValueError("what a library makes of a folder that is gone")
    assert "was moved or removed" in str(cannot_write(tmp_path / "gone" / "file", error))


def test_a_workdir_that_is_gone_is_not_made_again(tmp_path):
    gone = tmp_path / "gone"
    with pytest.raises(RunFailed, match="was moved or removed"):
        files.write_json(gone / "summary.json", {})
    with pytest.raises(RunFailed, match="was moved or removed"):
        CheckpointFolder(gone / "sweep").save(3, {}, {})
    assert not gone.exists()


def mount(folder, *options):
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The policy of a run to which nothing happened, in a process of its own."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    result = run_process(*RUN, workdir)
    assert result.returncode == 0, result.stderr
    return (workdir / "policy.npy").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("small", ["size=100k", "size=600k", "nr_inodes=90"])
def test_on_a_full_disk_a_run_ends_in_a_sentence_and_goes_on(undisturbed, tmp_path, small):
    mount(tmp_path, small)
    try:
        workdir = tmp_path / "run"
        command = (*RUN, workdir, "--outer.checkpoint-seconds", "0")
        result = run_process(*command)
        assert_refused(result, "cannot be written: No space left on device", status=1)
        assert len(result.stderr.splitlines()) <= 10
        larger = "remount,size=50m,nr_inodes=5000"
        subprocess.run(["mount", "-o", larger, str(tmp_path)], check=True)
        result = run_process(*command)
        assert result.returncode == 0, result.stderr
        assert "warning" not in result.stderr
        assert (workdir / "policy.npy").read_bytes() == undisturbed
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
