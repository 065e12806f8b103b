"""The connections between the processes of a run: signs of life, and what the first one says.

A process that dies or hangs would leave the others in a collective that never ends. So each tells
the first one every few seconds that it lives, and is told so by it; when one is gone, all end.
"""

import contextlib
import math
import os
import queue
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from lljax.cluster.members import Member, Peer

BEAT_SECONDS = 3.0
SILENT_BEATS = 10  # without a sign of life: 30 s
_ALIVE, _VALUE, _END, _LEFT = b".", b"v", b"e", b"l"
_HEAD = struct.Struct("!cQ")
_CHUNK = 1 << 24  # bytes at once


class Channel:
    """Of this process to its peers, in the background."""

    def __init__(self, member: Member, peers: Sequence[Peer]):
        self._member, self._peers = member, peers
        self._locks = {peer.number: threading.Lock() for peer in peers}
        self._values: queue.SimpleQueue[bytearray] = queue.SimpleQueue()
        self._left = {peer.number: threading.Event() for peer in peers}
        self._ending = threading.Lock()
        # Beats are counted, not seconds: whoever stops the whole cluster may go on with it.
        self._idle, self._patience = 0, math.inf  # beats
        for peer in peers:
            peer.socket.settimeout(None)
            peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def send(self, values: Sequence[Any], only: int | None = None) -> None:
        """The first process tells all others, or one of them: values that have bytes."""
        for peer in self._peers:
            for value in values if only in (None, peer.number) else ():
                self._send(peer, _VALUE, value)

    def num_here(self) -> int:
        """This process and its peers on the same host."""
        return 1 + sum(peer.host == socket.gethostname() for peer in self._peers)

    def receive(self) -> bytearray:
        """The next value that the first process tells; waits for it."""
        return self._values.get()

    def note_progress(self) -> None:
        """The run goes on."""
        self._idle = 0

    def end_if_stuck(self, seconds: float) -> None:
        """From here on the run ends when `note_progress` is not called for so long."""
        self.note_progress()
        self._patience = seconds / BEAT_SECONDS

    def fail(self, status: int, message: str) -> None:
        """Tells the others that this process ends, and why."""
        if not self._ending.acquire(blocking=False):
            return  # it has told, or ends for another reason
        self._tell(status, f"{self._name(self._member.number)} has ended: {message}")

    def leave(self) -> None:
        """Ends in order: the first process when all others have, these when it lets them go."""
        self._patience = math.inf
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
                lock = self._locks[peer.number]
                if lock.acquire(blocking=False):  # else it is told something, and that is a sign
                    with contextlib.suppress(OSError):
                        peer.socket.send(_HEAD.pack(_ALIVE, 0), socket.MSG_DONTWAIT)
                    lock.release()
            self._idle += 1
            if self._idle > self._patience:
                minutes = self._patience * BEAT_SECONDS / 60
                self._end(1, f"the run has made no progress for {minutes:.3g} minutes")

    def _listen(self, peer: Peer) -> None:
        while self._read(peer):
            pass
        if not self._left[peer.number].is_set():
            self._end(1, f"{self._of(peer)} has died")

    def _of(self, peer: Peer) -> str:
        return f"{self._name(peer.number)}, on {peer.host},"

    def _read(self, peer: Peer) -> bool:
        """Whether there was a message."""
        head = self._read_bytes(peer, _HEAD.size)
        if head is None:
            return False
        kind, length = _HEAD.unpack(head)
        value = self._read_bytes(peer, length)
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

    def _read_bytes(self, peer: Peer, length: int) -> bytearray | None:
        """So many; None where the connection ends before. Ends all where nothing comes."""
        value = bytearray(length)
        rest, silent = memoryview(value), 0
        while rest:
            ready, _, _ = select.select([peer.socket], [], [], BEAT_SECONDS)
            if not ready:
                silent += 1
                if silent >= SILENT_BEATS:
                    seconds = BEAT_SECONDS * SILENT_BEATS
                    self._end(1, f"{self._of(peer)} gives no sign of life for {seconds:.0f} s")
                continue
            silent = 0
            try:
                count = peer.socket.recv_into(rest, min(len(rest), _CHUNK))
            except OSError:
                return None
            if not count:
                return None
            rest = rest[count:]
        return value

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

    def _send(self, peer: Peer, kind: bytes, value: Any) -> None:
        # One that is gone is noticed by its listener.
        with self._locks[peer.number], contextlib.suppress(OSError):
            content = memoryview(value).cast("B")
            peer.socket.sendall(_HEAD.pack(kind, len(content)))
            for start in range(0, len(content), _CHUNK):
                peer.socket.sendall(content[start : start + _CHUNK])
