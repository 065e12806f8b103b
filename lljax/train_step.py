"""One inner step: the policy-weighted gradient, handed to an optax optimiser (paper, Eq. 1)."""

import jax
import jax.numpy as jnp
import optax

from lljax.array_types import as_type_of
from lljax.hyperparams import Hyperparams, write_hyperparams
from lljax.microbatch import Examples
from lljax.types import LossFn, Params, TrainState, at_least_32_bits


def train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    examples: Examples,
    weights: jax.Array,
    hyperparams: Hyperparams | None = None,
) -> tuple[TrainState, Params]:
    """One step of training: (s_t, gamma_t [B]) -> (s_{t+1}, g_t). Cost: three forward passes."""
    gradient, _ = weighted_gradient(loss_fn, state.params, examples, weights)
    return apply_optimizer(optimizer, state, gradient, hyperparams), gradient


def example_losses(loss_fn: LossFn, params: Params, examples: Examples) -> jax.Array:
    """The loss of every example, [B]. Cost: one forward pass."""
    _, losses = examples.fold(lambda _, batch: (None, loss_fn(params, batch)), None)
    return losses


def mean_loss(loss_fn: LossFn, params: Params, examples: Examples) -> jax.Array:
    """L(theta), the mean loss of the examples (Eq. 2). Cost: one forward pass."""
    losses = example_losses(loss_fn, params, examples)
    # In 16 bits a mean is coarser than the gain of an outer step.
    return jnp.mean(losses, dtype=at_least_32_bits(losses.dtype))


def weighted_gradient(
    loss_fn: LossFn,
    params: Params,
    examples: Examples,
    weights: jax.Array,
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

    def add(gradient, batch, weights):
        losses, pull_back = jax.vjp(lambda p: loss_fn(p, batch), params)
        (piece_gradient,) = pull_back(as_type_of(weights.astype(losses.dtype), losses))
        return jax.tree.map(jnp.add, gradient, piece_gradient), losses

    return examples.fold(add, jax.tree.map(jnp.zeros_like, params), weights)


def apply_optimizer(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradient: Params,
    hyperparams: Hyperparams | None = None,
) -> TrainState:
    """(theta_{t+1}, o_{t+1}) = Phi(theta_t, o_t, g_t): the part of a step that sees no data.

    Hyperparameters are written into o_t first.

    optax mixes dtypes, so that a user's strict promotion, meant for their own code, cannot hold.
    """
    with jax.numpy_dtype_promotion("standard"):
        before = write_hyperparams(state.opt_state, hyperparams)
        updates, opt_state = optimizer.update(gradient, before, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state)
