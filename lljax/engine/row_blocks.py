"""Arrays [T, N] that no device has to hold: blocks of rows in the hosts' memory.

A block has the rows of a segment of the inner run. It comes to the devices when they need it, split
by columns as everything of the form [T, N] is. So of several processes each keeps the columns of
its own devices, and rows never travel between processes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax.engine.digests import digest_of_blocks
from lljax.engine.host_arrays import fetch
from lljax.engine.placement import Placement


class RowBlocks:
    """An array [T, N] in blocks.

    What is read of it, a step or a slice of steps, is an array on the devices; what is written, a
    whole block, comes from there. To JAX's functions of trees it is a leaf.
    """

    ndim = 2

    def __init__(
        self,
        segments: Sequence[slice],
        num_columns: int,
        placement: Placement,
        dtype: Any = np.float32,
    ):
        """One whose blocks, the steps of each of the segments, are still to be written."""
        self.segments, self.placement = tuple(segments), placement
        self.shape, self.dtype = (self.segments[-1].stop, num_columns), np.dtype(dtype)
        # Of each block the parts that this process has, by their first columns.
        self._blocks: list[dict[int, np.ndarray]] = [{} for _ in self.segments]

    @classmethod
    def uniform(cls, segments: Sequence[slice], num_columns: int, placement: Placement) -> Self:
        """The conventional policy. Blocks of one length are the same memory."""
        policy = cls(segments, num_columns, placement)
        made: dict[int, dict[int, np.ndarray]] = {}
        for index, steps in enumerate(policy.segments):
            length = steps.stop - steps.start
            if length not in made:
                made[length] = placement.to_host(lljax.uniform_policy(length, num_columns))
            policy._blocks[index] = made[length]
        return policy

    def empty(self, dtype: Any = None) -> "RowBlocks":
        """Another of the same form, still to be written."""
        dtype = self.dtype if dtype is None else dtype
        return RowBlocks(self.segments, self.shape[1], self.placement, dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, steps: Any) -> jax.Array:
        if not isinstance(steps, slice):
            index, row = divmod(int(steps), self.segments[0].stop)
            parts = {first: part[row] for first, part in self._blocks[index].items()}
            return self.placement.from_host(parts, self.shape[1:])
        start, stop, _ = steps.indices(len(self))
        pieces = [
            (block, slice(max(start - there.start, 0), stop - there.start))
            for there, block in zip(self.segments, self._blocks, strict=True)
            if there.start < stop and there.stop > start
        ]
        parts = {
            first: _joined([block[first][rows] for block, rows in pieces]) for first in pieces[0][0]
        }
        return self.placement.from_host(parts, (stop - start, self.shape[1]))

    def __setitem__(self, steps: slice, rows: Any) -> None:
        self._blocks[self.segments.index(steps)] = self.placement.to_host(rows)

    def __iter__(self) -> Iterator[jax.Array]:
        """Its blocks, one after the other on the devices."""
        return (self[steps] for steps in self.segments)

    def whole_blocks(self) -> Iterator[np.ndarray]:
        """Its blocks, one after the other in the host's memory: whole, in every process."""
        return map(fetch, self)

    def digest(self) -> str:
        """That of the same array in one piece."""
        return digest_of_blocks(self.shape, self.dtype, self.whole_blocks())


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def check_policy(policy: Any) -> None:
    """`lljax.check_policy` of a policy in one piece or in blocks."""
    if not isinstance(policy, RowBlocks):
        return lljax.check_policy(fetch(policy))  # the conventional one is still on the devices
    for steps, rows in zip(policy.segments, policy.whole_blocks(), strict=True):
        try:
            lljax.check_policy(jnp.asarray(rows))
        except ValueError as error:
            raise ValueError(f"from inner step {steps.start} on, {error}") from error


def by_rows(function: Callable, *arrays: Any) -> np.ndarray:
    """[T] in the host's memory: what a function gives for each row of arrays [T, N], which are in
    one piece or in blocks."""
    if not isinstance(arrays[0], RowBlocks):
        return fetch(function(*arrays))
    return np.concatenate([fetch(function(*rows)) for rows in zip(*arrays, strict=True)])


def by_blocks(function: Callable, *trees: Any, halo: int = 0) -> Any:
    """What a function gives of trees with arrays [T, N] in blocks, called for each block.

    Args:
      function: of the same trees with rows [m, N] on the devices. Rows that it returns are those of
        the block; whatever else it returns is the same for all blocks.
      trees: all their `RowBlocks` have the same blocks.
      halo: so many rows on either side of a block are given too, where there are any: those that
        its own rows depend on. What is returned for them is left out.
    """
    blocks = next(leaf for leaf in jax.tree.leaves(trees) if isinstance(leaf, RowBlocks))
    made = None
    for steps in blocks.segments:
        wide = slice(max(0, steps.start - halo), min(len(blocks), steps.stop + halo))
        rows = jax.tree.map(lambda x: x[wide] if isinstance(x, RowBlocks) else x, trees)  # noqa: B023
        found = function(*rows)
        if made is None:
            made = jax.tree.map(lambda x: blocks.empty(x.dtype) if x.ndim == 2 else x, found)
        for whole, leaf in zip(*map(jax.tree.leaves, (made, found)), strict=True):
            if isinstance(whole, RowBlocks):
                inner = slice(steps.start - wide.start, steps.stop - wide.start)
                whole[steps] = leaf[inner] if halo else leaf
        del rows, found, leaf  # or the next block's would stand beside them
    return made
