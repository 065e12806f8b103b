"""Runs of several processes, one on each host: the first one has the files, all compute.

Every process runs the same program. What one of them alone may do, reading and writing the
workdir, is done by the first: `on_first` and `from_first`. In a run of one process it is that one.
"""

import ctypes
import functools
import pickle
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np

from lljax.cluster.channel import Channel
from lljax.cluster.members import Member, call_all, find_member, timeout
from lljax.errors import UserError, is_out_of_memory

P = ParamSpec("P")
T = TypeVar("T")

JAX_HEARTBEAT_SECONDS = 100  # the channel notices sooner, and its words are clearer


class _Here:
    """The state of this process; there is one."""

    member: Member | None = None
    channel: Channel | None = None
    depth = 0  # of calls that only the first process makes


def is_first() -> bool:
    """Whether this is the first process, or the only one."""
    return _Here.member is None or _Here.member.number == 0


def hide_bar() -> bool | None:
    """tqdm's `disable`: no bar where there is no terminal, and one of several processes."""
    return None if is_first() else True


def has_peers() -> bool:
    """Whether this process has joined others."""
    return _Here.channel is not None


def num_here() -> int:
    """Processes of the run on this host, asked by the first one; 1 without others."""
    return 1 if _Here.channel is None else _Here.channel.num_here()


def leaves_to_first(command: str) -> bool:
    """Whether a launcher has started others for a command that one process does; says so."""
    try:
        member = find_member()
    except UserError:
        return False
    if member is None or member.number == 0:
        return False
    who = f"this is process {member.number} of {member.count}"
    print(f"{who}: `lljax {command}` is done by process 0 alone", file=sys.stderr, flush=True)
    return True


def join(config: str | None) -> None:
    """Waits for the other processes that a launcher has started, if it has; before JAX's devices.

    Does nothing for a command that only shows its help: one without a config.

    Raises:
      UserError: the environment is half of what a cluster needs.
      RunFailed: the others do not come.
    """
    member = None if config is None else find_member()
    if member is None or _Here.member is not None:
        return
    peers = call_all(member, lambda line: print(line, file=sys.stderr, flush=True))
    _Here.member, _Here.channel = member, Channel(member, peers)
    _delay_abort()
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself
    jax.distributed.initialize(
        member.address,
        member.count,
        member.number,
        local_device_ids=member.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=int(timeout()),
        heartbeat_timeout_seconds=JAX_HEARTBEAT_SECONDS,
    )
    jax.devices()  # here, where all processes are: each waits for the others' devices


def _delay_abort() -> None:
    """JAX aborts the process when the first one is gone, while the channel ends it in order.

    So an abort first waits: the handler is C's own `sleep`, which takes the signal's number, 6, for
    seconds. No code of Python could run there.
    """
    wait = ctypes.cast(ctypes.CDLL(None).sleep, ctypes.c_void_p)
    ctypes.pythonapi.PyOS_setsig(ctypes.c_int(signal.SIGABRT), wait)


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; it alone calls `make`.

    `make` is given arrays of the host's memory: others it would compute with all processes.
    What it raises is raised in all. Cost: the value is sent to each.
    """
    channel = _Here.channel
    if channel is None or _Here.depth:
        return make()
    if is_first():
        value: Any
        value, parts, own = _alone(lambda: _packed(make))
        channel.send([len(parts).to_bytes(8, "big"), value, *parts])
        if own is not None:
            raise own  # with its traceback
    else:
        # From this run's own first process, over a connection that it made: no stranger's bytes.
        count = int.from_bytes(channel.receive(), "big")
        value, parts = channel.receive(), [channel.receive() for _ in range(count)]
    made, error = pickle.loads(value, buffers=parts)
    if error is not None:
        raise error
    return made


def send_rows(rows: Any, parts: Mapping[int, Sequence[slice]]) -> list[np.ndarray]:
    """Parts of an array that only the first process has: this process's own.

    Args:
      rows: [B, ...]; in the other processes anything of its shape and dtype.
      parts: of each process, the same in all.
    """
    channel = _Here.channel
    assert channel is not None
    number = jax.process_index()
    if number == 0:
        for peer, wanted in sorted(parts.items()):
            if peer:
                parts_of_peer = (np.ascontiguousarray(rows[part]) for part in wanted)
                channel.send([part.reshape(-1).view(np.uint8) for part in parts_of_peer], peer)
        return [rows[part] for part in parts[0]]
    found = []
    for part in parts[number]:
        start, stop, _ = part.indices(rows.shape[0])
        content = np.frombuffer(channel.receive(), rows.dtype)
        found.append(content.reshape(stop - start, *rows.shape[1:]))
    return found


def _packed(make: Callable[[], Any]) -> tuple[bytes, list[Any], Exception | None]:
    """What a function returns or raises, with the contents of arrays apart, which may be large;
    and what it raises once more."""
    parts: list[Any] = []
    made, error = None, None
    try:
        made = make()
    except Exception as caught:
        error = caught
    value = pickle.dumps((made, error), protocol=5, buffer_callback=parts.append)
    return value, [part.raw() for part in parts], error


def _alone(make: Callable[[], T]) -> T:
    """Calls what the others do not call: inside nothing is sent to them or computed with them."""
    if _Here.channel is None:
        return make()
    types = (jax.sharding.AxisType.Auto,)
    here = jax.make_mesh((1,), ("here",), axis_types=types, devices=jax.local_devices()[:1])
    _Here.depth += 1
    try:
        with jax.set_mesh(here):
            return make()
    finally:
        _Here.depth -= 1


def on_first(function: Callable[P, None]) -> Callable[P, None]:
    """Makes a function that writes files: only the first process calls it."""

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> None:
        if is_first():
            _alone(lambda: function(*arguments, **named))

    return call


def read_on_first(function: Callable[P, T]) -> Callable[P, T]:
    """Makes a function that reads files: the first process calls it, all have what it returns."""

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        return from_first(lambda: function(*arguments, **named))

    return call


def end_if_stuck(minutes: float) -> None:
    """From here on a run of several processes ends when it makes no progress for so long.

    Infinity: it never does.
    """
    if _Here.channel is not None:
        _Here.channel.end_if_stuck(60 * minutes)


def note_progress() -> None:
    """The run goes on."""
    if _Here.channel is not None:
        _Here.channel.note_progress()


def fail(status: int, message: str) -> None:
    """Before this process ends: tells the others why."""
    if _Here.channel is not None:
        _Here.channel.fail(status, message)


def leave() -> None:
    """At the end of a command: waits until all others have come to it."""
    if _Here.channel is not None:
        _Here.channel.leave()


def explain(error: BaseException) -> None:
    """Where an error may come of another process's death: ends this one with a word about that."""
    is_lost = isinstance(error, jax.errors.JaxRuntimeError) and not is_out_of_memory(error)
    if _Here.channel is not None and is_lost:
        _Here.channel.wait_for_news()
