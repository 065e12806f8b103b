"""How a run is cut into segments, and what is kept of its states, within a memory budget."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import psutil

from lljax import cluster
from lljax.engine.placement import AXIS, ONE_DEVICE, Placement
from lljax.errors import UserError
from lljax.memory import (
    MemoryStrategy,
    OffloadStates,
    RecomputeStates,
    SpreadStates,
    StoreStates,
    recompute_within,
    states_held,
)
from lljax.tasks.config import InnerConfig
from lljax.tasks.problem import Problem
from lljax.update import record_shapes

Mode = Literal["store", "spread", "offload", "recompute"]
MODES: tuple[Mode, ...] = get_args(Mode)
GIGABYTE = 10**9


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """The decision, and the figures that it rests on.

    Attributes:
      mode: what is kept between the sweeps: every step's record on the device ("store"), a part of
        it on each of several devices ("spread"), in the host's memory ("offload"), or only the
        states in which segments start ("recompute").
      segments: the steps of each segment.
      within_segment: the strategy of the programs that run a segment.
      state_bytes: of one state (parameters and optimiser state), on a device.
      record_bytes: of what the backward sweep needs of one step, on a device.
      budget_bytes: device memory for kept states.
      spread_bytes: of a device's part of such a record.
      whole_state_bytes: of one state, on all devices together.
      num_local: devices of a process.
      policy_arrays: of the form [T, N] that the hosts hold in blocks of rows in the worst moment;
        0: the devices have the policy.
      policy_held_bytes: of one of them in a process's memory.
      starts_on_disk: the states in which segments start are on the disk.
    """

    mode: Mode
    segments: tuple[slice, ...]
    within_segment: MemoryStrategy
    state_bytes: int
    record_bytes: int
    budget_bytes: int
    spread_bytes: int
    whole_state_bytes: int
    num_local: int = 1
    policy_arrays: int = 0
    policy_held_bytes: int = 0
    starts_on_disk: bool = False

    @property
    def policy_in_hosts(self) -> bool:
        return self.policy_arrays > 0

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Those that there are on so many devices."""
        return tuple(m for m in MODES if m != "spread" or self.spread_bytes < self.record_bytes)

    @property
    def resident(self) -> bool:
        """Whether nothing has to be made again."""
        return self.mode != "recompute"

    @property
    def keeper(self) -> MemoryStrategy:
        """What puts aside what a forward sweep leaves for the backward one."""
        keepers: dict[Mode, MemoryStrategy] = {
            "offload": OffloadStates(),
            "spread": SpreadStates(AXIS),
        }
        return keepers.get(self.mode, StoreStates())

    @property
    def num_steps(self) -> int:
        return self.segments[-1].stop

    @property
    def segment_length(self) -> int:
        return self.segments[0].stop

    @property
    def remade_bytes(self) -> int:
        """Of the records that the backward program of a segment makes again and holds."""
        return sum(self.within_segment.split(self.segment_length)[1:]) * self.record_bytes

    def device_bytes(self, mode: Mode) -> int:
        """Device memory for kept records in the worst moment."""
        if mode == "store":
            return self.num_steps * self.record_bytes
        if mode == "spread":
            whole = self.segment_length * self.record_bytes
            return self.num_steps * self.spread_bytes + whole
        # One segment's records; off-loaded ones need room for a second one on its way.
        held = states_held(self.within_segment, self.segment_length)
        return held * self.record_bytes * (2 if mode == "offload" else 1)

    @property
    def starts_bytes(self) -> int:
        """Of the states in which the segments start and of the last one, which each process has
        whole in its memory, or all together have once on the disk."""
        return (len(self.segments) + 1) * self.whole_state_bytes

    def host_bytes(self, mode: Mode) -> int:
        """A process's memory for the segments' first states, for policies in blocks of rows, and
        for what is off-loaded."""
        starts = 2 * self.whole_state_bytes if self.starts_on_disk else self.starts_bytes
        policies = self.policy_arrays * self.policy_held_bytes
        kept = self.num_steps * self.record_bytes * self.num_local
        return starts + policies + (kept if mode == "offload" else 0)


def plan_memory(
    problem: Problem,
    inner: InnerConfig,
    num_runs: int = 1,
    placement: Placement = ONE_DEVICE,
) -> MemoryPlan:
    """Cuts the run, or `num_runs` at once, into segments; takes the fastest strategy that fits.

    Raises:
      UserError: nothing fits into the budget, or the strategy that was asked for does not.
    """
    record = record_shapes(problem.optimizer, problem.params)
    state_bytes, record_bytes = (num_runs * placement.share(of) for of in (record.state, record))
    spread_bytes = num_runs * dataclasses.replace(placement, splits_params=True).share(record)
    budget = free_device_memory(placement.num_local) // 2
    if inner.memory_budget_gb is not None:
        budget = int(inner.memory_budget_gb * GIGABYTE)
    count = inner.segments or RecomputeStates().split(inner.num_steps)[0]
    length = math.ceil(inner.num_steps / count)
    segments = tuple(
        slice(start, min(start + length, inner.num_steps))
        for start in range(0, inner.num_steps, length)
    )
    within: MemoryStrategy = StoreStates()
    if length * record_bytes > budget:
        try:
            within = recompute_within(length, budget // record_bytes)
        except ValueError as error:
            raise UserError(
                f"inner.memory_budget_gb: {budget / GIGABYTE:.3g} GB do not hold the states of the "
                f"backward sweep, {record_bytes / GIGABYTE:.3g} GB each ({error}) Give it more, "
                f"cut the run into more inner.segments (now {count}), or take a smaller model."
            ) from error
    plan = MemoryPlan(
        "recompute",
        segments,
        within,
        state_bytes,
        record_bytes,
        budget,
        spread_bytes,
        num_runs * num_bytes(record.state),
        placement.num_local,
    )
    on_disk = inner.starts == "disk"
    if inner.starts == "auto":
        # A trial and a look may hold them at once, in each process of this host.
        on_disk = 2 * plan.starts_bytes * cluster.num_here() > free_host_memory() // 2
    plan = dataclasses.replace(plan, starts_on_disk=on_disk)
    return dataclasses.replace(plan, mode=choose_mode(plan, inner))


def in_memory(plan: MemoryPlan) -> MemoryPlan:
    """The same for what writes nothing, and so has no disk to keep states on."""
    return dataclasses.replace(plan, starts_on_disk=False)


def choose_mode(plan: MemoryPlan, inner: InnerConfig) -> Mode:
    """The mode that was asked for, or the fastest that fits.

    Raises:
      UserError: the one that was asked for does not fit.
    """
    if inner.memory != "auto":
        if inner.memory not in plan.modes:
            raise UserError(
                "inner.memory must not be spread where one device, or each of several, has its "
                "own part of the parameters: there is nothing to spread. Leave it at auto."
            )
        needed = plan.device_bytes(inner.memory)
        if needed > plan.budget_bytes:
            raise UserError(
                f"inner.memory = {inner.memory} needs {needed / GIGABYTE:.3g} GB for kept states; "
                f"inner.memory_budget_gb allows {plan.budget_bytes / GIGABYTE:.3g}. Raise it, or "
                f"leave inner.memory at auto."
            )
        return inner.memory
    for mode in ("store", "spread"):
        if mode in plan.modes and plan.device_bytes(mode) <= plan.budget_bytes:
            return mode
    separate = jax.devices()[0].platform != "cpu"  # else the host's memory is the device's
    room = free_host_memory() // 2
    fits = plan.device_bytes("offload") <= plan.budget_bytes
    if separate and fits and plan.host_bytes("offload") <= room:
        return "offload"
    return "recompute"


def free_device_memory(num_local: int = 1) -> int:
    """Bytes that a device can still allocate, one of so many that this process uses."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return free_host_memory() // num_local  # they have it together


def free_host_memory() -> int:
    """Bytes that this process can still allocate, a container's limit included."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass  # no container, or none with a limit
    return free


def num_bytes(tree: Any) -> int:
    """Of all arrays in a tree, or of arrays of such shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
