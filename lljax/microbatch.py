"""Micro-batches: the pieces in which a step passes over its examples."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lljax.types import Batch


@dataclasses.dataclass(frozen=True)
class MicroBatches:
    """Examples cut into M pieces of m, the unit in which a step passes over its data.

    The last piece is filled up with copies of the last example; every user of the losses gives
    those copies the weight 0 or cuts them off.
    """

    batch: Batch  # leaves [M, m, ...]
    num_examples: int

    def fold(self, body: Callable, init: Any, *values: jax.Array) -> tuple[Any, Any]:
        """`body(carry, batch of m, values [m] ..) -> (carry, leaves [m, ...])` over all pieces.

        Returns:
          (the last carry, what the body gave for each example, leaves [B, ...]).
        """

        def visit(carry, piece):
            return body(carry, *piece)

        pieces = (self.batch, *map(self.split, values))
        if self.shape[0] > 1:
            carry, found = jax.lax.scan(visit, init, pieces)
        else:
            carry, found = visit(init, jax.tree.map(lambda leaf: leaf[0], pieces))
            found = jax.tree.map(lambda leaf: leaf[None], found)
        return carry, self.join(found)

    @property
    def shape(self) -> tuple[int, int]:
        """(M, m)."""
        num_pieces, size = jax.tree.leaves(self.batch)[0].shape[:2]
        return num_pieces, size

    def split(self, values: jax.Array) -> jax.Array:
        """[B] -> [M, m], zero on the filling."""
        num_pieces, size = self.shape
        padded = jnp.pad(values, (0, num_pieces * size - self.num_examples))
        return padded.reshape(num_pieces, size)

    def join(self, values: Any) -> Any:
        """Leaves [M, m, ...] -> [B, ...]."""
        places = math.prod(self.shape)
        return jax.tree.map(
            lambda leaf: leaf.reshape(places, *leaf.shape[2:])[: self.num_examples], values
        )


@dataclasses.dataclass(frozen=True)
class ReorderedBatches:
    """Some micro-batches of examples in another order; the others are neither read nor computed.

    How many there are is known at run time only, so what is folded over them can be differentiated
    in forward mode, not in reverse mode.
    """

    examples: MicroBatches
    order: jax.Array  # [M, m] places in the M m examples, filling included
    first: jax.Array  # [] int
    end: jax.Array  # [] int

    def fold(self, body: Callable, init: Any, *values: jax.Array) -> tuple[Any, Any]:
        """As `MicroBatches.fold`, with 0 for the examples that are left out."""
        places = self.order.size  # not -1: an array [B, 0] does not tell how many
        flat = jax.tree.map(lambda leaf: leaf.reshape(places, *leaf.shape[2:]), self.examples.batch)
        pieces = (flat, *(self.examples.split(array).reshape(-1) for array in values))

        def piece(number):
            return jax.tree.map(lambda leaf: leaf[self.order[number]], pieces)

        def visit(number, state):
            carry, found = state
            carry, new = body(carry, *piece(number))
            return carry, jax.tree.map(
                lambda all, some: all.at[self.order[number]].set(some, unique_indices=True),
                found,
                new,
            )

        _, like = jax.eval_shape(body, init, *jax.eval_shape(piece, self.first))
        found = jax.tree.map(lambda new: jnp.zeros((places, *new.shape[1:]), new.dtype), like)
        carry, found = jax.lax.fori_loop(self.first, self.end, visit, (init, found))
        return carry, self._cut(found)

    def _cut(self, values: Any) -> Any:
        """Leaves [M m, ...] without the filling."""
        return jax.tree.map(lambda leaf: leaf[: self.examples.num_examples], values)


def known_slopes(weights: jax.Array, microbatch_size: int | None) -> jax.Array:
    """Where `zero_weight="omit"` computes slopes: in the fewest micro-batches with all weight.

    The other examples are neither read nor computed; the gradient is 0 there and means nothing.

    >>> import jax.numpy as jnp, lljax
    >>> lljax.known_slopes(jnp.array([[0.5, 0.0, 0.0, 0.5, 0.0]]), microbatch_size=3).tolist()
    [[True, True, False, True, False]]

    Args:
      weights: [..., B].
      microbatch_size: as in `build_loss_auc`.

    Returns:
      [..., B] bool.
    """
    count = weights.shape[-1]
    size = count if microbatch_size is None else min(microbatch_size, count)
    zero = weights == 0
    num_visited = -(-jnp.sum(~zero, axis=-1, keepdims=True) // size) * size
    room = num_visited - jnp.sum(~zero, axis=-1, keepdims=True)
    return ~zero | (jnp.cumsum(zero, axis=-1) <= room)


def split_by_weight(
    examples: MicroBatches, weights: jax.Array
) -> tuple[ReorderedBatches, ReorderedBatches]:
    """(the fewest micro-batches that hold all examples whose weight is not 0, the others)."""
    num_pieces, size = examples.shape
    zero = examples.split(weights).reshape(-1) == 0
    order = jnp.argsort(zero, stable=True).reshape(num_pieces, size)
    end = (jnp.sum(~zero) + size - 1) // size
    return (
        ReorderedBatches(examples, order, jnp.zeros_like(end), end),
        ReorderedBatches(examples, order, end, jnp.full_like(end, num_pieces)),
    )


def split_microbatches(batch: Batch, size: int | None) -> MicroBatches:
    """Cuts a batch of B examples into ceil(B / size) micro-batches; one when `size` is None."""
    num_examples = jax.tree.leaves(batch)[0].shape[0]
    size = num_examples if size is None else min(size, num_examples)
    num_pieces = -(-num_examples // size)
    filling = num_pieces * size - num_examples

    def cut(leaf: jax.Array) -> jax.Array:
        if filling:
            leaf = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], filling, axis=0)])
        return leaf.reshape(num_pieces, size, *leaf.shape[1:])

    return MicroBatches(jax.tree.map(cut, batch), num_examples)


Examples = MicroBatches | ReorderedBatches
"""B examples as a step passes over them."""
