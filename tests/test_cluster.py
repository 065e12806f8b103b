"""Runs of several processes: who must be there, what each does, and how all end."""

import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from command_line import NOISY, SMALL, call, read_metrics, run_without_report

from benchmarks.two_processes import LIMIT, Cluster, auc, disturb, finish, free_port
from lljax.cluster.members import (
    ADDRESS,
    COUNT,
    NUMBER,
    TIMEOUT,
    Member,
    call_all,
    find_member,
)
from lljax.errors import RunFailed, UserError

WANTED = {ADDRESS: "127.0.0.1:{port}", COUNT: "2", NUMBER: "0"}


@pytest.fixture
def environment(monkeypatch):
    """Sets the variables of a launcher; returns the port."""

    def set_all(**changes):
        port = free_port()
        for name, value in (WANTED | changes).items():
            if value is not None:
                monkeypatch.setenv(name, value.format(port=port))
        return port

    return set_all


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({NUMBER: None}, f"lacks {NUMBER}"),
        ({COUNT: None, NUMBER: None}, f"has {ADDRESS} and lacks {COUNT}, {NUMBER}"),
        ({ADDRESS: None}, f"lacks {ADDRESS}"),
        ({NUMBER: "2"}, f"{NUMBER} must be from 0 to 1"),
        ({COUNT: "two"}, f"{COUNT} must be a whole number; got 'two'"),
        ({ADDRESS: "here"}, f"{ADDRESS} must be HOST:PORT"),
    ],
)
def test_half_a_cluster_is_refused(tmp_path, environment, changes, words):
    environment(**changes)
    result = call("run", "perceptron", *SMALL, "--workdir", tmp_path / "run")
    assert result.returncode == 2
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("number", "words"),
    [("0", "process 1 of 2 did not come to 127.0.0.1"), ("1", "process 0 of 2 does not answer")],
)
def test_whoever_waits_in_vain_says_for_whom(tmp_path, environment, monkeypatch, number, words):
    monkeypatch.setenv(TIMEOUT, "1.5")
    environment(**{NUMBER: number})
    result = call("run", "perceptron", *SMALL, "--workdir", tmp_path / "run")
    assert result.returncode == 1
    assert words in result.stderr
    assert "Start all of them with the same command" in result.stderr
    assert not (tmp_path / "run").exists()


def test_one_process_is_no_cluster(tmp_path, environment):
    environment(**{COUNT: "1"})
    assert call("plan", "perceptron", *SMALL).returncode == 0


def test_what_is_no_run_is_done_by_the_first_process(tmp_path, environment):
    environment(**{NUMBER: "1"})
    result = call("report", tmp_path / "nothing")
    words = "this is process 1 of 2: `lljax report` is done by process 0 alone\n"
    assert result == (0, "", words)


SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (SLURM, Member("node07:61440", 16, 9, [1])),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}, None),  # without srun
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a pod for itself
        ({}, None),
    ],
)
def test_what_launchers_say(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_member() == expected


def test_an_indexed_job_needs_a_package_or_the_variables(monkeypatch, environment):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    with pytest.raises(UserError, match="pip install kubernetes"):
        find_member()
    port = environment()
    assert find_member() == Member(f"127.0.0.1:{port}", 2, 0)


def gather(*members):
    """What each member gets: its peers, or the words of an error."""
    found = {}

    def join(place, member):
        try:
            found[place] = call_all(member, lambda _: None)
        except RunFailed as error:
            found[place] = str(error)

    threads = [threading.Thread(target=join, args=pair) for pair in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for peer in (peer for peers in found.values() if isinstance(peers, list) for peer in peers):
        peer.socket.close()
    return [found[place] for place in range(len(members))]


def test_the_roll_call_connects_all_to_the_first():
    address = f"127.0.0.1:{free_port()}"
    first, *others = gather(*(Member(address, 4, number) for number in range(4)))
    assert [peer.number for peer in first] == [1, 2, 3]
    assert [[peer.number for peer in peers] for peers in others] == [[0]] * 3


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (((3, 1),), "process 1 on {host} counts 3 of them, process 0 4"),
        (((4, 1), (4, 1)), "two processes are number 1, on {host} and on {host}"),
    ],
)
def test_processes_that_do_not_belong_together(others, words):
    address = f"127.0.0.1:{free_port()}"
    members = [Member(address, count, number) for count, number in others]
    told = gather(Member(address, 4, 0), *members)
    words = words.format(host=socket.gethostname())
    assert told == [f"the processes do not belong together: {words}."] * len(told)


PEERS = """
import sys, threading, time
from lljax.cluster import channel
from lljax.cluster.members import Member, call_all
channel.BEAT_SECONDS = 0.2
members = [Member("127.0.0.1:{port}", 2, number) for number in (0, 1)]
peers = {{}}
def join(member):
    peers[member.number] = call_all(member, print)
threads = [threading.Thread(target=join, args=(member,)) for member in members]
[thread.start() for thread in threads], [thread.join() for thread in threads]
first = channel.Channel(members[0], peers[0])
{then}
time.sleep(60)
"""
NO_PROGRESS = """
other = channel.Channel(members[1], peers[1])
other._ending.acquire()  # it is in the same process, whose one line is the first one's
first.end_if_stuck(1.5)
for _ in range(8):  # as long as the run goes on, nothing happens
    time.sleep(0.5)
    first.note_progress()
print("goes on", flush=True)
"""
NEVER_READS = "first.send([bytes(1 << 28)])"
HALF_A_MESSAGE = "peers[1][0].socket.send(channel._HEAD.pack(b'v', 100) + bytes(50))"


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (NO_PROGRESS, "the run has made no progress for 0.025 minutes"),
        ("", "gives no sign of life for 2 s"),
        (NEVER_READS, "gives no sign of life for 2 s"),
        (HALF_A_MESSAGE, "gives no sign of life for 2 s"),
        ("peers[1][0].socket.close()", "has died"),
    ],
)
def test_whatever_happens_a_process_ends(then, words):
    """With status 1 and one line, also where a collective or a message never ends."""
    code = PEERS.format(port=free_port(), then=then)
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, result.stderr
    assert result.stdout == ("goes on\n" if then == NO_PROGRESS else "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("lljax: the run failed: ")
    assert words in line


def test_two_processes_make_the_run_of_one(tmp_path):
    """Four devices in two processes; only the first one writes and speaks."""
    flags = ("--inner.num-steps", "10", "--outer.num-steps", "2")
    cluster = Cluster(tmp_path / "two", 2, 2, *flags)
    assert cluster.wait() == [0, 0], cluster.log(0) + cluster.log(1)
    one = run_without_report(tmp_path / "one", "--mesh.devices", 4, *flags)
    policies = [np.load(tmp_path / name / "policy.npy") for name in ("two", "one")]
    np.testing.assert_allclose(*policies, rtol=0, atol=1e-6)
    assert len(read_metrics(one)) == len(read_metrics(tmp_path / "two")) == 3
    assert "x 4 in 2 processes" in cluster.log(0)
    said = [line for line in cluster.log(1).splitlines() if not line.startswith("[Gloo]")]
    assert said == []


def test_all_end_with_the_first_ones_error(tmp_path):
    """Bad input is told once a process, with the status of bad input."""
    cluster = Cluster(tmp_path / "run", 2, 1, "--mesh.devices", "1")
    assert cluster.wait() == [2, 2]
    first, second = cluster.last_lines()
    assert "mesh.devices must be left out" in first + second


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(workdir, 2, 2)
    return workdir


@pytest.mark.slow
def test_the_policy_of_one_process_and_the_same_bits_again(tmp_path, undisturbed):
    policy = np.load(undisturbed / "policy.npy")
    np.testing.assert_allclose(finish(tmp_path / "one", 1, 4), policy, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(finish(tmp_path / "again", 2, 2), policy)


@pytest.mark.slow
@pytest.mark.parametrize("which", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("number", [0, 1])
def test_a_death_ends_all_and_the_same_command_continues(tmp_path, undisturbed, which, number):
    statuses, lines, seconds = disturb(tmp_path / "run", number, which)
    assert statuses == [1]
    assert seconds < LIMIT
    how = "has died" if which == signal.SIGKILL else "gives no sign of life for 30 s"
    assert lines == [
        f"lljax: the run failed: process {number} of 2, on {socket.gethostname()}, {how}. The same "
        f"command, for all of them, continues the run."
    ]
    np.testing.assert_array_equal(
        finish(tmp_path / "run", 2, 2), np.load(undisturbed / "policy.npy")
    )


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(4, 2), (1, 1)])
def test_continued_by_more_and_by_fewer_processes(tmp_path, undisturbed, processes, devices):
    disturb(tmp_path / "run", 1, signal.SIGKILL)
    finish(tmp_path / "run", processes, devices)
    assert auc(tmp_path / "run") == pytest.approx(auc(undisturbed), abs=1e-4)


@pytest.mark.slow
def test_sigterm_stops_a_process_at_once(tmp_path):
    """JAX has a use of its own for it; SLURM and Kubernetes end tasks so."""
    cluster = Cluster(tmp_path / "run", 2, 2)
    cluster.wait_for("outer 1/8")
    cluster.signal(1, signal.SIGTERM)
    assert cluster.wait(seconds=30) == [1, -signal.SIGTERM]
    assert cluster.last_lines()[1] == "lljax: terminated; the same command continues the run"


@pytest.mark.slow
def test_processes_of_other_settings_are_no_cluster(tmp_path):
    cluster = Cluster(tmp_path / "run", 2, 2, own={1: ("--seed", "1")})
    assert cluster.wait() == [1, 1]
    assert "not started for the same run: seed is 0 there and 1 here" in cluster.last_lines()[1]


@pytest.mark.slow
def test_weights_over_drawn_runs(tmp_path):
    """A family that is moved by the first process, on runs that all compute."""
    flags = ("--inner.batch-size", "16", *NOISY)
    names = {"two": (2, 2), "one": (1, 4)}
    for name, layout in names.items():
        finish(tmp_path / name, *layout, *flags, config="noisy_labels", settings=())
    two, one = (np.load(tmp_path / name / "policy.npy") for name in names)
    assert one.std() > 0
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_a_process_of_another_run_is_refused(tmp_path):
    cluster = Cluster(tmp_path / "run", 2, 2)
    cluster.wait_for("outer 0/8")
    stranger = Cluster(tmp_path / "run", 1, 1)
    assert stranger.wait() == [2]
    assert "another process is running in" in stranger.last_lines()[0]
    assert cluster.wait() == [0, 0]
