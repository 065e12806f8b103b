"""Disks that are full, out of inodes or read-only, and a workdir that goes away, midway."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from adversary.processes import finish, lines_of, start, when
from adversary.runs import OFTEN
from adversary.verdicts import IDENTICAL, Result

_PAGE = 4096
_NAME = "disk_of_an_adversary"
# A disk in the memory, which goes with the last process in its namespace; first what is on it is
# copied to where there is room. Status 128 + n is how a shell tells of the signal n.
_ON_A_DISK = """
mount -t tmpfs -o "$0" tmpfs "$1" || exit 125
disk=$1 room=$2
shift 2
"$@"
status=$?
cp -a "$disk/." "$room/"
exit $status
"""


@pytest.fixture(scope="module")
def can_mount(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mount")
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if not shutil.which("unshare") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a disk of its own can be mounted only where user namespaces are allowed")


class Disk:
    """A small disk for a command, and a folder where there is room for what is on it after."""

    def __init__(self, folder: Path, options: str):
        self.path, self.room = folder / _NAME, folder / "room" / _NAME
        self._options = options
        for path in (self.path, self.room):
            path.mkdir(parents=True)

    def run(self, *arguments: object) -> Result:
        on_disk = ["unshare", "-rm", "sh", "-c", _ON_A_DISK, self._options]
        result = finish(start(*arguments, within=[*on_disk, str(self.path), str(self.room)]))
        code = result.returncode
        assert code != 125, result.stderr
        return result._replace(returncode=128 - code if code and code > 128 else code)


@pytest.mark.parametrize("flags", [(), OFTEN], ids=["seldom", "often"])
@pytest.mark.usefixtures("can_mount")
def test_a_workdir_on_a_small_disk(runs, cases, rng, repeats, tmp_path, flags):
    """Full at another moment of the run each time, from config.json to the report."""
    need = _pages(runs.finished)
    with cases("full disk, workdir") as verdicts:
        for k in range(number := 4 * repeats):
            pages = 1 + int(need * (k + rng.random()) / number)
            disk = Disk(tmp_path / str(k), f"size={pages * _PAGE}")
            result = disk.run(*runs.command, disk.path / "w", *flags)
            add_both(verdicts, f"{pages} of {need} pages", runs, result, disk.room / "w")


@pytest.mark.usefixtures("can_mount")
def test_a_disk_without_inodes(runs, cases, rng, repeats, tmp_path):
    need = sum(1 for _ in runs.finished.rglob("*"))
    with cases("full disk, inodes") as verdicts:
        for k in range(number := 3 * repeats):
            inodes = 2 + int(need * (k + rng.random()) / number)
            disk = Disk(tmp_path / str(k), f"nr_inodes={inodes}")
            result = disk.run(*runs.command, disk.path / "w")
            add_both(verdicts, f"{inodes} of {need} inodes", runs, result, disk.room / "w")


@pytest.mark.usefixtures("can_mount")
def test_a_cache_on_a_small_disk(text_runs, cases, rng, repeats, tmp_path):
    need = _pages(text_runs.cache)
    with cases("full disk, cache") as verdicts:
        for k in range(number := 3 * repeats):
            pages = 1 + int(need * (k + rng.random()) / number)
            disk, workdir = Disk(tmp_path / str(k), f"size={pages * _PAGE}"), tmp_path / f"w{k}"
            result = disk.run(*text_runs.command, workdir, *text_runs.with_a_cache(disk.path))
            room = text_runs.with_a_cache(disk.room)
            add_both(verdicts, f"{pages} of {need} pages", text_runs, result, workdir, room)


@pytest.mark.parametrize("kilobytes", [1, 8, 24])
def test_files_that_cannot_grow(runs, cases, tmp_path, kilobytes):
    """A limit of the user's on the size of files; works where nothing can be mounted."""
    with cases("full disk, size of files") as verdicts:
        workdir = tmp_path / _NAME
        limit = ["sh", "-c", 'ulimit -f "$0"; exec "$@"', str(2 * kilobytes)]
        result = finish(start(*runs.command, workdir, within=limit))
        add_both(verdicts, f"{kilobytes} kB", runs, result, workdir)


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_workdir_that_may_not_be_written_any_more(runs, cases, tmp_path, lines):
    with cases("permission lost") as verdicts:
        workdir = tmp_path / _NAME
        process = start(*runs.command, workdir, within=_without_power_over_files())
        when(lambda: _has_begun(workdir, lines), process, lambda: _allow(workdir, 0o500))
        result = finish(process)
        _allow(workdir, 0o700)
        add_both(verdicts, f"after {lines} lines", runs, result, workdir)


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_workdir_that_is_removed(runs, cases, tmp_path, lines):
    with cases("workdir removed") as verdicts:
        workdir = tmp_path / _NAME
        process = start(*runs.command, workdir, *OFTEN)
        when(lambda: _has_begun(workdir, lines), process, lambda: _remove(workdir))
        result = finish(process)
        add_both(verdicts, f"after {lines} lines", runs, result, workdir)


def add_both(verdicts, case, runs, result: Result, workdir: Path, flags=()) -> None:
    """The verdict of the disturbed run, and that of the same command once there is room."""
    target = Path(_NAME)
    verdicts.add(case, runs.judge(result, workdir, target, flags=flags))
    again = runs.server.run(*runs.command, workdir, *flags)
    judged = runs.judge(again, workdir, target, flags=flags)
    verdicts.add(f"{case}, then with room", judged.demand(IDENTICAL))


def _pages(folder: Path) -> int:
    """What its files take on a disk in the memory."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(-(-size // _PAGE) for size in sizes)


def _has_begun(workdir: Path, lines: int) -> bool:
    return (workdir / "config.json").exists() and lines_of(workdir / "metrics.jsonl") >= lines


def _without_power_over_files() -> list[str]:
    """What makes root obey permissions, as everybody else does."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("root may write anywhere, and there is no setpriv to change that")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def _allow(folder: Path, mode: int) -> None:
    for path, _, _ in os.walk(folder):
        with contextlib.suppress(FileNotFoundError):  # the run moves folders
            os.chmod(path, mode)


def _remove(folder: Path) -> None:
    while folder.exists():  # as long as the run writes into it
        shutil.rmtree(folder, ignore_errors=True)
