"""Over how many devices examples are split, and what that makes of a pass over them."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from lljax.array_types import is_explicit
from lljax.step_inputs import take
from lljax.types import Batch

Fill = Callable[[jax.Array, int, int], jax.Array]
"""(array, axis, how many) -> the array with as many entries more at the end of the axis."""

Pass = Callable[..., tuple[Any, Any]]
"""(zeros, arrays of examples ..) -> (a sum over the examples, something for each of them)."""


class Shards(Protocol):
    """How B examples are split: rows [B, ...] on one device, [D, B / D, ...] over D."""

    @property
    def lead(self) -> int:
        """How many axes are in front of those of a shard."""
        ...

    @property
    def number(self) -> int:
        """D."""
        ...

    def rows(self, leaf: jax.Array, fill: Fill) -> jax.Array:
        """[B, ...] -> rows, filled up to B / D in each."""
        ...

    def join(self, rows: jax.Array, num_examples: int) -> jax.Array:
        """Rows, which may be longer -> [B, ...]."""
        ...

    def run(self, one: Pass, zeros: Any, *rows: Any) -> tuple[Any, Any]:
        """A pass over the rows of all shards: (the sum over all, rows)."""
        ...

    def first(self, rows: jax.Array) -> jax.Array:
        """The rows of the first shard."""
        ...

    def take(self, batch: Batch, index: jax.Array) -> Batch:
        """The examples of these numbers [B]; others stand for those that are out of range."""
        ...


@dataclasses.dataclass(frozen=True)
class OneShard:
    """All examples on one device, or wherever the compiler puts them."""

    lead = 0
    number = 1

    def rows(self, leaf: jax.Array, fill: Fill) -> jax.Array:
        return leaf

    def join(self, rows: jax.Array, num_examples: int) -> jax.Array:
        return rows[:num_examples]

    def run(self, one: Pass, zeros: Any, *rows: Any) -> tuple[Any, Any]:
        return one(zeros, *rows)

    def first(self, rows: jax.Array) -> jax.Array:
        return rows

    def take(self, batch: Batch, index: jax.Array) -> Batch:
        return take(batch, index)


@dataclasses.dataclass(frozen=True)
class MeshShards:
    """A shard on each device along an axis of the mesh.

    Every device passes over its own rows and keeps a sum of its own; the sums are added once.
    """

    axis: str
    number: int
    is_explicit: bool  # whether the types of arrays say how they are split
    lead = 1

    def rows(self, leaf: jax.Array, fill: Fill) -> jax.Array:
        size = -(-len(leaf) // self.number)
        if size * self.number > len(leaf):
            leaf = fill(leaf, 0, size * self.number - len(leaf))
        return self._reshape(leaf, (self.number, size, *leaf.shape[1:]))

    def join(self, rows: jax.Array, num_examples: int) -> jax.Array:
        size = -(-num_examples // self.number)
        rows = rows if rows.shape[1] == size else rows[:, :size]
        leaf = self._reshape(rows, (self.number * size, *rows.shape[2:]))
        return leaf if len(leaf) == num_examples else leaf[:num_examples]

    def run(self, one: Pass, zeros: Any, *rows: Any) -> tuple[Any, Any]:
        sums = jax.tree.map(
            lambda leaf: self._place(jnp.zeros((self.number, *leaf.shape), leaf.dtype)), zeros
        )
        sums, found = jax.vmap(one, spmd_axis_name=self.axis)(sums, *rows)
        return jax.tree.map(lambda leaf: jnp.sum(self._place(leaf), axis=0), sums), found

    def first(self, rows: jax.Array) -> jax.Array:
        return (jax.sharding.reshard(rows, jax.P()) if self.is_explicit else rows)[0]

    def take(self, batch: Batch, index: jax.Array) -> Batch:
        """Each device gives those that it has; the data set stays where it is."""
        if any(size % self.number for size in (len(jax.tree.leaves(batch)[0]), len(index))):
            return take(batch, index)

        def give(leaf: jax.Array, index: jax.Array) -> jax.Array:
            place = index - jax.lax.axis_index(self.axis) * len(leaf)
            is_here = ((place >= 0) & (place < len(leaf))).reshape(-1, *[1] * (leaf.ndim - 1))
            found = jnp.where(is_here, jnp.take(leaf, place, axis=0, mode="clip"), 0)
            # One device has the example, and the others add zeros.
            return jax.lax.psum_scatter(found, self.axis, scatter_dimension=0, tiled=True)

        spec = jax.P(self.axis)
        give_all = jax.shard_map(give, in_specs=(spec, jax.P()), out_specs=spec)
        return jax.tree.map(lambda leaf: _of_numbers(give_all, leaf, index), batch)

    def _reshape(self, leaf: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        spec = jax.P(self.axis)
        if self.is_explicit:
            return jax.lax.reshape(leaf, shape, out_sharding=spec)
        return self._place(leaf.reshape(shape))

    def _place(self, leaf: jax.Array) -> jax.Array:
        return _placed(leaf, jax.P(self.axis))


def _of_numbers(give: Callable, leaf: jax.Array, index: jax.Array) -> jax.Array:
    """Flags have no sum."""
    if leaf.dtype != bool:
        return give(leaf, index)
    return give(leaf.astype(jnp.int8), index).astype(bool)


def find_shards(data_axis: str | None, batch: Batch) -> Shards:
    """How examples are split: as the types of their arrays say, or along an axis of the mesh.

    Raises:
      ValueError: the mesh that is set has no such axis.
    """
    split = jax.typeof(jax.tree.leaves(batch)[0]).sharding
    if is_explicit(split) and isinstance(axis := split.spec[0], str):
        return MeshShards(axis, split.mesh.shape[axis], True)
    if data_axis is None:
        return OneShard()
    mesh = _mesh_with(data_axis, "data_axis")
    number = mesh.shape[data_axis]
    is_auto = data_axis in mesh.auto_axes
    return MeshShards(data_axis, number, False) if number > 1 and is_auto else OneShard()


def cut_largest(leaf: jax.Array, axis: str) -> jax.Array:
    """An array that is split along its largest axis that the devices of the mesh axis divide.

    Raises:
      ValueError: the mesh that is set has no such axis.
    """
    spec = largest_cut(leaf.shape, axis, _mesh_with(axis, "axis").shape[axis])
    return _placed(leaf, spec) if spec else leaf


def largest_cut(shape: tuple[int, ...], axis: str, number: int) -> jax.P:
    """How an array is split along its largest axis that so many devices divide; not, without."""
    sizes = [size if size % number == 0 else 0 for size in shape]
    return jax.P(*[None] * sizes.index(max(sizes)), axis) if any(sizes) else jax.P()


def whole(leaf: jax.Array) -> jax.Array:
    """An array that every device has."""
    return _placed(leaf, jax.P())


def _placed(leaf: jax.Array, spec: jax.P) -> jax.Array:
    if is_explicit(jax.typeof(leaf).sharding):
        return jax.sharding.reshard(leaf, spec)
    return jax.lax.with_sharding_constraint(leaf, spec)


def _mesh_with(axis: str, argument: str) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    if axis not in mesh.axis_names:
        names = ", ".join(mesh.axis_names)
        got = f"the axes {names}" if names else "no mesh: call within `with jax.set_mesh(mesh):`"
        raise ValueError(
            f"`{argument}` must be an axis of the mesh that is set; got {axis!r} and {got}."
        )
    return mesh
