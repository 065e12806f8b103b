"""Micro-batches: the pieces in which a step passes over its examples."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lljax.array_types import as_type_of, largest_over_devices, start_of
from lljax.shards import Fill, OneShard, Shards
from lljax.types import Batch


@dataclasses.dataclass(frozen=True)
class MicroBatches:
    """Examples cut into M pieces of m, the unit in which a step passes over its data.

    The last piece is filled up with copies of the last example; every user of the losses gives
    those copies the weight 0 or cuts them off. Over D devices a piece has m / D examples of each
    shard, so that in every piece each device works on examples that it has.
    """

    batch: Batch  # leaves [M, m, ...]; over devices [D, M, m / D, ...]
    num_examples: int
    shards: Shards

    def fold(self, body: Callable, init: Any, *values: jax.Array) -> tuple[Any, Any]:
        """`body(sum, batch of m, values [m] ..) -> (sum, leaves [m, ...])` over all pieces.

        Args:
          body: adds what a piece gives to the sum.
          init: zeros, in the form of the sum.
          values: [B] each.

        Returns:
          (the sum, what the body gave for each example, leaves [B, ...]).
        """

        def over_pieces(carry, pieces):
            first = jax.tree.map(lambda leaf: leaf[0], pieces)
            if self.shape[0] > 1:
                carry = start_of(carry, body, *first)
                return jax.lax.scan(lambda carry, piece: body(carry, *piece), carry, pieces)
            carry, found = body(carry, *first)
            return carry, jax.tree.map(lambda leaf: leaf[None], found)

        pieces = (self.batch, *map(self.split, values))
        carry, found = self.shards.run(over_pieces, init, pieces)
        return carry, jax.tree.map(lambda leaf: self.join(self.flat(leaf)), found)

    @property
    def shape(self) -> tuple[int, int]:
        """(M, m), or (M, m / D)."""
        num_pieces, size = jax.tree.leaves(self.batch)[0].shape[self.shards.lead :][:2]
        return num_pieces, size

    def split(self, values: jax.Array) -> jax.Array:
        """[B] -> in the form of `batch`, zero on the filling."""
        return _cut(values, self.shape, self.shards, _with_zeros)

    def flat(self, leaf: jax.Array) -> jax.Array:
        """[M, m, ...] -> [M m, ...], of each shard; an array [B, 0] does not tell how many."""
        lead = self.shards.lead
        return leaf.reshape(*leaf.shape[:lead], math.prod(self.shape), *leaf.shape[lead + 2 :])

    def join(self, leaf: jax.Array) -> jax.Array:
        """What `flat` gives -> [B, ...], without the filling."""
        return self.shards.join(leaf, self.num_examples)


@dataclasses.dataclass(frozen=True)
class ReorderedBatches:
    """Some micro-batches of examples in another order; the others are neither read nor computed.

    How many there are is known at run time only, so what is folded over them can be differentiated
    in forward mode, not in reverse mode.
    """

    examples: MicroBatches
    order: jax.Array  # [M, m] places in the M m examples, filling included; of each shard
    first: jax.Array  # [] int
    end: jax.Array  # [] int

    def fold(self, body: Callable, init: Any, *values: jax.Array) -> tuple[Any, Any]:
        """As `MicroBatches.fold`, with 0 for the examples that are left out."""
        examples = self.examples

        def over_pieces(carry, pieces, order):
            def piece(number):
                return jax.tree.map(lambda leaf: leaf[order[number]], pieces)

            def visit(number, state):
                carry, found = state
                carry, new = body(carry, *piece(number))
                return carry, jax.tree.map(
                    lambda all, some: all.at[order[number]].set(some, unique_indices=True),
                    found,
                    new,
                )

            total, like = jax.eval_shape(body, carry, *jax.eval_shape(piece, self.first))
            places = (order.size,)
            found = jax.tree.map(
                lambda new: as_type_of(jnp.zeros(places + new.shape[1:], new.dtype), new), like
            )
            start = jax.tree.map(as_type_of, carry, total), found
            return jax.lax.fori_loop(self.first, self.end, visit, start)

        pieces = jax.tree.map(examples.flat, (examples.batch, *map(examples.split, values)))
        carry, found = examples.shards.run(over_pieces, init, pieces, self.order)
        return carry, jax.tree.map(examples.join, found)


def known_slopes(weights: jax.Array, microbatch_size: int | None, num_shards: int = 1) -> jax.Array:
    """Where `zero_weight="omit"` computes slopes: in the fewest micro-batches with all weight.

    The other examples are neither read nor computed; the gradient is 0 there and means nothing.

    >>> import jax.numpy as jnp, lljax
    >>> lljax.known_slopes(jnp.array([[0.5, 0.0, 0.0, 0.5, 0.0]]), microbatch_size=3).tolist()
    [[True, True, False, True, False]]

    Args:
      weights: [..., B].
      microbatch_size: as in `build_loss_auc`.
      num_shards: D, the devices that the examples are split over by its `data_axis`.

    Returns:
      [..., B] bool. Cost: O(T B). It checks nothing, and so raises nothing of its own.
    """
    count = weights.shape[-1]
    size = count if microbatch_size is None else min(microbatch_size, count)
    of_shard, size = -(-count // num_shards), -(-size // num_shards)
    filling = [(0, 0)] * (weights.ndim - 1) + [(0, of_shard * num_shards - count)]
    zero = jnp.pad(weights, filling).reshape(*weights.shape[:-1], num_shards, of_shard) == 0
    num_others = jnp.sum(~zero, axis=-1, keepdims=True)
    most = largest_over_devices(jnp.max(num_others, axis=-2, keepdims=True))
    num_visited = -(-most // size) * size
    known = ~zero | (jnp.cumsum(zero, axis=-1) <= num_visited - num_others)
    return known.reshape(*weights.shape[:-1], num_shards * of_shard)[..., :count]


def split_by_weight(
    examples: MicroBatches, weights: jax.Array
) -> tuple[ReorderedBatches, ReorderedBatches]:
    """(the fewest micro-batches that hold all examples whose weight is not 0, the others)."""
    num_pieces, size = examples.shape
    zero = examples.flat(examples.split(weights)) == 0
    order = jnp.argsort(zero, axis=-1, stable=True).reshape(*zero.shape[:-1], num_pieces, size)
    # As many everywhere: devices that add up a sum go through a loop together.
    end = (largest_over_devices(jnp.max(jnp.sum(~zero, axis=-1))) + size - 1) // size
    return (
        ReorderedBatches(examples, order, jnp.zeros_like(end), end),
        ReorderedBatches(examples, order, end, jnp.full_like(end, num_pieces)),
    )


def split_microbatches(batch: Batch, size: int | None, shards: Shards = OneShard()) -> MicroBatches:
    """Cuts a batch of B examples into ceil(B / size) micro-batches; one when `size` is None."""
    num_examples = jax.tree.leaves(batch)[0].shape[0]
    size = num_examples if size is None else min(size, num_examples)
    of_shard, size = (-(-number // shards.number) for number in (num_examples, size))
    shape = -(-of_shard // size), size
    pieces = jax.tree.map(lambda leaf: _cut(leaf, shape, shards, _with_copies), batch)
    return MicroBatches(pieces, num_examples, shards)


def _cut(leaf: jax.Array, shape: tuple[int, int], shards: Shards, fill: Fill) -> jax.Array:
    """[B, ...] -> [M, m, ...], of each shard, each filled up apart."""
    lead, rows = shards.lead, shards.rows(leaf, fill)
    filling = math.prod(shape) - rows.shape[lead]
    if filling:
        rows = fill(rows, lead, filling)
    return rows.reshape(*rows.shape[:lead], *shape, *rows.shape[lead + 1 :])


def _with_zeros(leaf: jax.Array, axis: int, number: int) -> jax.Array:
    return jnp.pad(leaf, [(0, number if a == axis else 0) for a in range(leaf.ndim)])


def _with_copies(leaf: jax.Array, axis: int, number: int) -> jax.Array:
    last = jax.lax.slice_in_dim(leaf, leaf.shape[axis] - 1, leaf.shape[axis], axis=axis)
    return jnp.concatenate([leaf, jnp.repeat(last, number, axis=axis)], axis=axis)


Examples = MicroBatches | ReorderedBatches
"""B examples as a step passes over them."""
