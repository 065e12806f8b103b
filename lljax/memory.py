"""Which states of the unroll are kept for the backward sweep, and where.

A strategy is an argument, not a mode: each one gives the same gradient to rounding, at another
price in memory and time. The unit is a state s_t = (theta_t, o_t), parameters and optimiser
state; activations are never kept. Where the optimiser's update is not linear in the gradient (Adam,
clipping), the gradient is kept beside the state.

Every strategy splits the T steps into a tree, `split(T) = (b_1, .., b_d)` with b_1 ... b_d >= T:
b_1 segments of b_2 segments ... of b_d steps. The states in which the segments of a level start
are kept while that level is worked on, so b_1 + ... + b_d states at most, and each level but the
first costs one more forward sweep.
"""

import dataclasses
import math
from typing import Any, Protocol

import jax

from lljax.checks import check_count
from lljax.shards import cut_largest, whole


class MemoryStrategy(Protocol):
    """What `memory=` takes; any immutable object of this form will do."""

    def split(self, num_steps: int) -> tuple[int, ...]:
        """T -> (b_1, .., b_d), the tree of kept states: b_1 ... b_d >= T."""
        ...

    def keep(self, states: Any) -> Any:
        """What is put aside of a step's record."""
        ...

    def fetch(self, kept: Any) -> Any:
        """The record again, in the backward sweep."""
        ...


class _OnDevice:
    """Kept states stay where they are."""

    def keep(self, states: Any) -> Any:
        return states

    def fetch(self, kept: Any) -> Any:
        return kept


@dataclasses.dataclass(frozen=True)
class StoreStates(_OnDevice):
    """Keep all T states: the fastest way, where they fit. Time: 11 forward passes a step."""

    def split(self, num_steps: int) -> tuple[int, ...]:
        return (num_steps,)


@dataclasses.dataclass(frozen=True)
class OffloadStates(StoreStates):
    """Keep all T states in the host's memory, where the device's is too small for them.

    Time: 11 forward passes a step, and each state over the bus twice, beside the computation. It
    needs a device with the memory kind "pinned_host" (GPU, TPU, CPU) and cannot be differentiated
    a second time by reverse mode. Compilers have moved memory wrongly before: compare the gradient
    of a few steps with that of `StoreStates` before you trust it on a new machine, as `lljax run`
    does.
    """

    def keep(self, states: Any) -> Any:
        return jax.device_put(states, jax.memory.Space.Host)

    def fetch(self, kept: Any) -> Any:
        return jax.device_put(kept, jax.memory.Space.Device)


@dataclasses.dataclass(frozen=True)
class SpreadStates(StoreStates):
    """Keep all T states, a part of each on every device of a mesh axis (as ZeRO does).

    For parameters that every device holds whole: D devices keep D times as many steps. An array is
    cut along its largest axis that D divides; without one it stays whole. Time: 11 forward passes a
    step, and each state is gathered once, a step at a time. Parameters that are split already are
    kept so by `StoreStates`.

    Attributes:
      axis: of the mesh that is set (`jax.set_mesh`).
      on_host: keep the parts in the hosts' memory, as `OffloadStates` does.
    """

    axis: str = "data"
    on_host: bool = False

    def keep(self, states: Any) -> Any:
        spread = jax.tree.map(lambda leaf: cut_largest(leaf, self.axis), states)
        return jax.device_put(spread, jax.memory.Space.Host) if self.on_host else spread

    def fetch(self, kept: Any) -> Any:
        if self.on_host:
            kept = jax.device_put(kept, jax.memory.Space.Device)
        return jax.tree.map(whole, kept)


@dataclasses.dataclass(frozen=True)
class RecomputeStates(_OnDevice):
    """Keep k states, evenly spaced, and recompute the others a segment at a time; nested or not.

    Memory: k + ceil(T / k) states at depth 1, k depth + ceil(T / k^depth) in general; by default
    (depth + 1) T^(1 / (depth + 1)), so O(log T) at a depth of log T.
    Time: 11 + 3 depth forward passes of an example a step.

    Attributes:
      num_kept: k >= 1, the states kept at each level; the least memory when None. A k above T
        keeps every state.
      depth: how often a state is recomputed at most, >= 1.
    """

    num_kept: int | None = None
    depth: int = 1

    def __post_init__(self) -> None:
        cure = " (leave both out for the least memory with one recomputation)"
        if self.num_kept is not None:
            check_count("num_kept", self.num_kept, cure=cure)
        check_count("depth", self.depth, cure=cure)

    def split(self, num_steps: int) -> tuple[int, ...]:
        if self.num_kept is None:
            return _even_split(num_steps, self.depth + 1)
        counts = []
        for _ in range(self.depth):
            counts.append(min(self.num_kept, num_steps))
            num_steps = math.ceil(num_steps / counts[-1])
        return (*counts, num_steps)


@dataclasses.dataclass(frozen=True)
class KeepGradients(_OnDevice):
    """Keep the gradients of all T steps and the states of few; make the others again from these.

    An update sees no data: from a state and the gradient of its step the optimiser alone makes the
    next one, without a pass over examples. Memory: T gradients, and 2 sqrt(T) states beside; with
    AdamW a gradient is a quarter of what `StoreStates` keeps of a step, theta, both moments and
    the gradient. Time: 11 forward passes a step, as `StoreStates`, and one more update. With plain
    SGD, whose states are no larger than gradients, nothing is gained.
    """

    keeps_gradients = True

    def split(self, num_steps: int) -> tuple[int, ...]:
        return _even_split(num_steps, 2)


def keeps_gradients(memory: MemoryStrategy) -> bool:
    """Whether the gradients of all steps are kept, and states made again from them."""
    return getattr(memory, "keeps_gradients", False)


def states_held(memory: MemoryStrategy, num_steps: int) -> int:
    """The states that are held at once in the worst moment of a backward sweep, b_1 + ... + b_d."""
    return sum(memory.split(num_steps))


def recompute_within(num_steps: int, max_states: int) -> RecomputeStates:
    """The fastest `RecomputeStates` that holds at most `max_states` states at once.

    >>> import lljax
    >>> lljax.recompute_within(10_000, max_states=300)
    RecomputeStates(num_kept=None, depth=1)

    Args:
      num_steps: T.
      max_states: the budget, e.g. bytes of memory to spare over bytes of a state.

    Returns:
      RecomputeStates, of the least depth that fits: each level costs 3 forward passes a step.

    Raises:
      ValueError: a number is below 1, or no depth fits; about 2 log2(T) states are the least.
    """
    check_count("num_steps", num_steps)
    check_count("max_states", max_states)
    deepest = max(1, math.ceil(math.log2(num_steps)))
    trees = [RecomputeStates(depth=depth) for depth in range(1, deepest + 1)]
    for memory in trees:
        if states_held(memory, num_steps) <= max_states:
            return memory
    least = min(states_held(memory, num_steps) for memory in trees)
    raise ValueError(
        f"{num_steps} steps need room for at least {least} states; `max_states` is {max_states}."
    )


def _even_split(num_steps: int, parts: int) -> tuple[int, ...]:
    """About equal factors; exact ones where there are such nearby, which spares idle steps."""
    if parts == 1:
        return (num_steps,)
    ideal = num_steps ** (1 / parts)
    near = range(math.ceil(ideal / 1.3), math.floor(ideal * 1.3) + 1)
    exact = [count for count in near if num_steps % count == 0]
    count = min(exact, key=lambda c: abs(c - ideal)) if exact else math.ceil(ideal)
    return (count, *_even_split(math.ceil(num_steps / count), parts - 1))
