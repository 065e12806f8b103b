"""One inner step: the policy-weighted gradient, handed to an optax optimiser (paper, Eq. 1)."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from lljax.types import Batch, LossFn, Params, TrainState


@dataclasses.dataclass(frozen=True)
class MicroBatches:
    """Examples cut into M pieces of m, the unit in which a step passes over its data.

    The last piece is filled up with copies of the last example; every user of the losses gives
    those copies the weight 0 or cuts them off.
    """

    batch: Batch  # leaves [M, m, ...]
    num_examples: int

    def split(self, weights: jax.Array) -> jax.Array:
        """[B] -> [M, m], zero on the filling."""
        num_pieces, size = jax.tree.leaves(self.batch)[0].shape[:2]
        padded = jnp.pad(weights, (0, num_pieces * size - self.num_examples))
        return padded.reshape(num_pieces, size)

    def join(self, values: jax.Array) -> jax.Array:
        """[M, m] -> [B]."""
        return values.reshape(-1)[: self.num_examples]


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


def example_losses(loss_fn: LossFn, params: Params, examples: MicroBatches) -> jax.Array:
    """The loss of every example, [B]. Cost: one forward pass."""

    def losses_of(_, batch):
        return None, loss_fn(params, batch)

    _, losses = _scan_or_call(losses_of, None, examples.batch)
    return examples.join(losses)


def mean_loss(loss_fn: LossFn, params: Params, examples: MicroBatches) -> jax.Array:
    """L(theta), the mean loss of the examples (Eq. 2). Cost: one forward pass."""
    losses = example_losses(loss_fn, params, examples)
    # In 16 bits a mean is coarser than the gain of an outer step.
    wide = jnp.promote_types(losses.dtype, jnp.float32)
    return jnp.mean(losses, dtype=wide)


def weighted_gradient(
    loss_fn: LossFn, params: Params, examples: MicroBatches, weights: jax.Array
) -> tuple[Params, jax.Array]:
    """The gradient of sum_n w_n l_n(theta), and the losses l_n(theta) themselves.

    Its JVP in a direction u is the one pass that the adjoint needs: the Hessian-vector product
    H u and all directional derivatives (grad l_n) . u at once (paper, App. C).

    Args:
      loss_fn: per-example losses.
      params: theta.
      examples: B examples.
      weights: [B].

    Returns:
      (gradient, like `params`; losses [B]). Cost: three forward passes.
    """

    def add(gradient, piece):
        batch, piece_weights = piece
        losses, pull_back = jax.vjp(lambda p: loss_fn(p, batch), params)
        (piece_gradient,) = pull_back(piece_weights.astype(losses.dtype))
        return jax.tree.map(jnp.add, gradient, piece_gradient), losses

    pieces = (examples.batch, examples.split(weights))
    gradient, losses = _scan_or_call(add, jax.tree.map(jnp.zeros_like, params), pieces)
    return gradient, examples.join(losses)


def apply_optimizer(
    optimizer: optax.GradientTransformation, state: TrainState, gradient: Params
) -> TrainState:
    """(theta_{t+1}, o_{t+1}) = Phi(theta_t, o_t, g_t): the part of a step that sees no data."""
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state)


def _scan_or_call(body, init, pieces):
    """`lax.scan`, without the loop where there is only one micro-batch."""
    if jax.tree.leaves(pieces)[0].shape[0] > 1:
        return jax.lax.scan(body, init, pieces)
    carry, value = body(init, jax.tree.map(lambda leaf: leaf[0], pieces))
    return carry, value[None]
