"""The connections between the processes of a run: signs of life, and what the first one says.

A process that dies or hangs would leave the others in a collective that never ends. So each tells
the first one every few seconds that it lives, and is told so by it; when one is gone, all end.
"""

import contextlib
import os
import queue
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

from lljax.cluster.members import Member, Peer

BEAT_SECONDS = 3.0
SILENT_BEATS = 10  # without a sign of life: 30 s
_ALIVE, _VALUE, _END, _LEFT = b".", b"v", b"e", b"l"
_HEAD = struct.Struct("!cQ")


class Channel:
    """Of this process to its peers, in the background."""

    def __init__(self, member: Member, peers: Sequence[Peer]):
        self._member, self._peers = member, peers
        self._locks = {peer.number: threading.Lock() for peer in peers}
        self._values: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._left = {peer.number: threading.Event() for peer in peers}
        self._ending = threading.Lock()
        self._progress = time.monotonic()
        self._patience = float("inf")
        for peer in peers:
            peer.socket.settimeout(None)
            peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, value: bytes) -> None:
        """The first process tells all others."""
        for peer in self._peers:
            self._send(peer, _VALUE, value)

    def receive(self) -> bytes:
        """What the first process tells; waits for it."""
        return self._values.get()

    def note_progress(self) -> None:
        """The run goes on."""
        self._progress = time.monotonic()

    def end_if_stuck(self, seconds: float) -> None:
        """From here on the run ends when `note_progress` is not called for so long."""
        self.note_progress()
        self._patience = seconds

    def fail(self, status: int, message: str) -> None:
        """Tells the others that this process ends, and why."""
        if not self._ending.acquire(blocking=False):
            return  # it has told, or ends for another reason
        self._tell(status, f"{self._name(self._member.number)} has ended: {message}")

    def leave(self) -> None:
        """Ends in order: the first process when all others have, these when it lets them go."""
        self._patience = float("inf")
        if self._member.number != 0:
            self._send(self._peers[0], _LEFT, b"")
        for peer in self._peers:
            self._left[peer.number].wait()
        for peer in self._peers if self._member.number == 0 else ():
            self._send(peer, _LEFT, b"")

    def wait_for_news(self) -> None:
        """Returns if no peer has died in the time in which that is noticed."""
        time.sleep(BEAT_SECONDS * (SILENT_BEATS + 2))

    def _name(self, number: int) -> str:
        return f"process {number} of {self._member.count}"

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            for peer in self._peers:
                if self._locks[peer.number].acquire(blocking=False):  # else it is told something
                    self._locks[peer.number].release()
                    self._send(peer, _ALIVE, b"")
            if time.monotonic() - self._progress > self._patience:
                minutes = self._patience / 60
                self._end(1, f"the run has made no progress for {minutes:.3g} minutes")

    def _listen(self, peer: Peer) -> None:
        name = f"{self._name(peer.number)}, on {peer.host},"
        silent = 0
        while True:
            # Beats are counted, not seconds: whoever stops the whole cluster may go on with it.
            ready, _, _ = select.select([peer.socket], [], [], BEAT_SECONDS)
            silent = 0 if ready else silent + 1
            if silent >= SILENT_BEATS:
                seconds = BEAT_SECONDS * SILENT_BEATS
                self._end(1, f"{name} gives no sign of life for {seconds:.0f} s")
            if ready and not self._read(peer):
                if self._left[peer.number].is_set():
                    return
                self._end(1, f"{name} has died")

    def _read(self, peer: Peer) -> bool:
        """Whether there was a message."""
        head = _read_bytes(peer.socket, _HEAD.size)
        if head is None:
            return False
        kind, length = _HEAD.unpack(head)
        value = _read_bytes(peer.socket, length)
        if value is None:
            return False
        if kind == _VALUE:
            self._values.put(value)
        elif kind == _LEFT:
            self._left[peer.number].set()
        elif kind == _END:
            status, _, message = value.decode(errors="replace").partition(" ")
            self._end(int(status), message)
        return True

    def _end(self, status: int, message: str) -> NoReturn:
        """Ends this process, and all others; the one line that is written says why."""
        if not self._ending.acquire(blocking=False):
            while True:
                time.sleep(1)  # this process ends already, for a reason of its own
        self._tell(status, message)
        failed = "the run failed: " if status == 1 else ""
        again = " The same command, for all of them, continues the run." if status == 1 else ""
        line = f"lljax: {failed}{message.rstrip('.')}.{again}\n"
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
            os.write(2, line.encode(errors="backslashreplace"))
        os._exit(status)

    def _tell(self, status: int, message: str) -> None:
        """Tells the peers, and through the first process all, without waiting for any of them.

        One that hangs takes nothing, and another thread may still be telling it something.
        """
        value = f"{status} {message}".encode()
        for peer in self._peers:
            if self._locks[peer.number].acquire(timeout=1):
                with contextlib.suppress(OSError):
                    frame = _HEAD.pack(_END, len(value)) + value
                    peer.socket.send(frame, socket.MSG_DONTWAIT)

    def _send(self, peer: Peer, kind: bytes, value: bytes) -> None:
        # One that is gone is noticed by its listener.
        with self._locks[peer.number], contextlib.suppress(OSError):
            peer.socket.sendall(_HEAD.pack(kind, len(value)) + value)


def _read_bytes(connection: socket.socket, length: int) -> bytes | None:
    """So many; None where the connection ends before."""
    parts, missing = [], length
    while missing:
        try:
            part = connection.recv(min(missing, 1 << 20))
        except OSError:
            return None
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
