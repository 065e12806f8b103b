"""The training run as a plain loop of JAX and optax: the reference for all derivatives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def plain_loss_auc(
    loss_fn: Callable,
    optimizer: optax.GradientTransformation,
    *,
    desired_loss_fn: Callable | None = None,
    eval_every: int = 1,
) -> Callable[..., jax.Array]:
    """(inputs, params, train, desired, constants) -> AUC, by a scan that JAX differentiates."""

    def loss_auc(inputs, params, train, desired, constants=None):
        rest = () if constants is None else (constants,)

        def desired_loss(params, index):
            batch = desired if index is None else jax.tree.map(lambda leaf: leaf[index], desired)
            return (desired_loss_fn or loss_fn)(params, batch, *rest).mean()

        def step(state, step):
            weights, index, hyperparams, desired_index = step
            params, opt_state = state
            batch = train if index is None else jax.tree.map(lambda leaf: leaf[index], train)

            def weighted(params):
                return jnp.sum(weights * loss_fn(params, batch, *rest))

            gradient = jax.grad(weighted)(params)
            if hyperparams is not None:
                opt_state = optax.tree_utils.tree_set(opt_state, **hyperparams)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), desired_loss(params, desired_index)

        after = None if inputs.desired_index is None else inputs.desired_index[1:]
        steps = inputs.weights, inputs.index, inputs.hyperparams, after
        _, losses = jax.lax.scan(step, (params, optimizer.init(params)), steps)
        return losses[eval_every - 1 :: eval_every].mean()

    return loss_auc


def split_floating(tree: Any) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """(the floating leaves, what joins others to the tree again)."""
    leaves, structure = jax.tree.flatten(tree)
    is_floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def join(floating):
        given = iter(floating)
        pairs = zip(leaves, is_floating, strict=True)
        return jax.tree.unflatten(structure, [next(given) if f else leaf for leaf, f in pairs])

    return [leaf for leaf, f in zip(leaves, is_floating, strict=True) if f], join


def largest_error(found: list[Any], expected: list[Any]) -> float:
    """The largest difference, relative to the largest entry of its array."""

    def error(found, expected):
        return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300)

    return float(max(error(*pair) for pair in zip(found, expected, strict=True)))
