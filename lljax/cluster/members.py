"""Which processes make one run together, and that all of them are there before it begins.

JAX waits for processes that do not come and then ends without naming them, so they are called
first, on the address that JAX uses later. The connections stay: see `channel`.
"""

import contextlib
import dataclasses
import errno
import os
import socket
import time
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize asks, before it waits

from lljax.errors import RunFailed, UserError

TIMEOUT = "LLJAX_CLUSTER_SECONDS"
"""Environment variable: how long a process waits for the others at the start; 300 s without."""

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_NEWS_SECONDS = 30  # between two lines about who is waited for
_GREETING = b"lljax"


@dataclasses.dataclass(frozen=True)
class Member:
    """This process among those that make a run."""

    address: str  # HOST:PORT of the first one
    count: int
    number: int
    local_devices: Sequence[int] | None = None  # that JAX is to use, by the launcher


class Peer(NamedTuple):
    """A connection to another process."""

    number: int
    host: str
    socket: socket.socket


def find_member() -> Member | None:
    """What the launcher says of this process; None where it runs for itself.

    SLURM, Open MPI, TPU pods and Kubernetes' indexed jobs are recognised as JAX does it; else the
    three variables of the environment tell.

    Raises:
      UserError: only some of them are there, or they make no sense.
    """
    address = os.environ.get(ADDRESS)
    count, number = (_whole_number(name) for name in (COUNT, NUMBER))
    local = None
    if None in (address, count, number):
        address, count, number, local = _of_launcher(address, count, number)
    if (address is None and count is None and number is None) or count == 1:
        return None
    if address is None or count is None or number is None:
        given = {ADDRESS: address, COUNT: count, NUMBER: number}
        there = ", ".join(name for name, value in given.items() if value is not None)
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise UserError(
            f"the environment has {there} and lacks {missing}: a run of several processes needs "
            f"all three, and one process none of them."
        )
    if not 0 <= number < count:
        raise UserError(f"{NUMBER} must be from 0 to {count - 1}, below {COUNT}; got {number}.")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"{ADDRESS} must be HOST:PORT, of process 0; got {address}.")
    return Member(address, count, number, local)


def _whole_number(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdecimal():
        raise UserError(f"{name} must be a whole number; got {value!r}.")
    return int(value)


def _of_launcher(
    address: str | None, count: int | None, number: int | None
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """What JAX's detection of clusters adds."""
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    if in_pod and not {"JOB_COMPLETION_INDEX", "TPU_WORKER_ID"} & set(os.environ):
        return address, count, number, None  # a pod for itself
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = ClusterEnv.auto_detect_unset_distributed_params(
            address, count, number, None, None, int(timeout())
        )
    if said and in_pod:
        raise UserError(
            "this is an indexed job of Kubernetes, and JAX needs the package kubernetes to find "
            f"its other pods: pip install kubernetes, or set {ADDRESS}, {COUNT} and {NUMBER}."
        )
    return found


def timeout() -> float:
    """Seconds that a process waits for the others."""
    value = os.environ.get(TIMEOUT, "300")
    try:
        return float(value)
    except ValueError:
        raise UserError(f"{TIMEOUT} must be a number of seconds; got {value!r}.") from None


class _Wait:
    """For other processes: says now and then for whom, and ends."""

    def __init__(self, say: Callable[[str], None]):
        self.limit, self._say = timeout(), say
        self._begun = self._said = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds."""
        return self.limit - (time.monotonic() - self._begun)

    def go_on(self, news: str, problem: str) -> None:
        """RunFailed with the problem when it has taken too long."""
        if self.left < 0:
            raise RunFailed(f"the cluster is not complete: {problem}")
        if time.monotonic() - self._said > _NEWS_SECONDS:
            self._said = time.monotonic()
            self._say(news)


def call_all(member: Member, say: Callable[[str], None]) -> list[Peer]:
    """Connects the processes: the first one to all others, these to it.

    Args:
      member: this process.
      say: is given a line for people, who may wait.

    Raises:
      RunFailed: not all of them came in time, or they do not belong together.
    """
    return _gather(member, say) if member.number == 0 else [_go_to_first(member, say)]


def _gather(member: Member, say: Callable[[str], None]) -> list[Peer]:
    """The first process: waits until all others are there, and tells them."""
    came: dict[int, Peer] = {}
    wait = _Wait(say)
    port = int(member.address.rpartition(":")[2])
    try:
        with _listen(port) as server:
            while len(came) < member.count - 1:
                missing = [n for n in range(1, member.count) if n not in came]
                who = f"{_numbers(missing)} of {member.count}"
                wait.go_on(
                    f"waiting for {who} at {member.address}",
                    f"{who} did not come to {member.address} within {wait.limit:.0f} s. Start all "
                    f"of them with the same command.",
                )
                peer = _accept(server, member, came)
                if peer is not None:
                    came[peer.number] = peer
    except RunFailed as error:
        for peer in came.values():
            _refuse(peer.socket, error)
        raise
    for peer in came.values():
        _send(peer.socket, f"go {socket.gethostname()}")
    return [came[number] for number in sorted(came)]


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RunFailed(
                f"port {port}, at which the processes are to meet, is in use: another run, or a "
                f"second process {NUMBER}=0. Take another {ADDRESS}."
            ) from error
        raise
    server.settimeout(1)
    return server


def _accept(server: socket.socket, member: Member, came: dict[int, Peer]) -> Peer | None:
    """A process that has come; None where nobody has, or a stranger."""
    try:
        connection, _ = server.accept()
    except TimeoutError:
        return None
    connection.settimeout(5)
    words = _receive(connection).split()
    is_ours = len(words) == 4 and words[0] == _GREETING.decode()
    if not (is_ours and words[1].isdecimal() and words[2].isdecimal()):
        connection.close()
        return None
    number, count, host = int(words[1]), int(words[2]), words[3]
    problem = None
    if count != member.count:
        problem = f"process {number} on {host} counts {count} of them, process 0 {member.count}"
    elif number in came:
        problem = f"two processes are number {number}, on {came[number].host} and on {host}"
    if problem is not None:
        error = RunFailed(f"the processes do not belong together: {problem}.")
        _refuse(connection, error)
        raise error
    return Peer(number, host, connection)


def _go_to_first(member: Member, say: Callable[[str], None]) -> Peer:
    """Another process: waits until the first one is there and has all."""
    host, _, port = member.address.rpartition(":")
    wait = _Wait(say)
    while True:
        answer, connection = "", None
        try:
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
            greeting = f"{_GREETING.decode()} {member.number} {member.count} {socket.gethostname()}"
            _send(connection, greeting)
            connection.settimeout(max(1.0, wait.left))
            answer = _receive(connection)
        except OSError:
            pass  # it is not there yet, or another program is
        word, _, rest = answer.partition(" ")
        if connection is not None and word == "go":
            return Peer(0, rest, connection)
        if connection is not None:
            connection.close()
        if word == "no":
            raise RunFailed(rest)
        wait.go_on(
            f"process {member.number} waits for process 0 at {member.address}",
            f"process 0 of {member.count} does not answer at {member.address}, within "
            f"{wait.limit:.0f} s. Start all of them with the same command, and look whether that "
            f"host can be reached.",
        )
        time.sleep(0.5)


def _numbers(missing: list[int]) -> str:
    shown = ", ".join(map(str, missing[:8])) + (", ..." if missing[8:] else "")
    return f"{'process' if len(missing) == 1 else 'processes'} {shown}"


def _send(connection: socket.socket, line: str) -> None:
    with contextlib.suppress(OSError):  # it is gone
        connection.sendall(line.encode() + b"\n")


def _refuse(connection: socket.socket, error: RunFailed) -> None:
    _send(connection, f"no {error}")
    connection.close()


def _receive(connection: socket.socket) -> str:
    """A line; what there is of it where the connection ends."""
    line = b""
    while not line.endswith(b"\n") and len(line) < 4096:
        try:
            byte = connection.recv(1)
        except OSError:
            break
        if not byte:
            break
        line += byte
    return line.decode(errors="replace").strip()
