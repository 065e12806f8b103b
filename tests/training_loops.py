"""The training run as a plain loop of JAX and optax: the reference for all derivatives."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lljax import StepInputs


class Problem(NamedTuple):
    inputs: StepInputs
    params: Any
    train: Any
    desired: Any
    constants: Any


def network_loss(params, batch, constants):
    """A small classifier with a frozen first bias; every argument has leaves that are integers."""
    hidden = jnp.tanh(batch["z"] @ params["in"] + constants["bias"][None])
    logits = (hidden @ params["out"])[:, constants["order"]]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def make_network(
    seed=0, *, num_steps=12, num_train=23, size=6, num_desired=9, dtype=jnp.float64
) -> Problem:
    """Mini-batches in which some examples are there twice, and some never."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    def examples(count):
        return {"z": normal(count, 5), "label": jnp.asarray(rng.integers(0, 3, count))}

    index = rng.integers(0, num_train - 2, (num_steps, size))
    index[:, 1] = index[:, 0]
    weights = jnp.asarray(rng.dirichlet(np.ones(size), num_steps), dtype)
    return Problem(
        StepInputs(weights, jnp.asarray(index)),
        {"in": 0.4 * normal(5, 8), "out": 0.4 * normal(8, 3)},
        examples(num_train),
        examples(num_desired),
        {"bias": normal(8), "order": jnp.array([2, 0, 1])},
    )


def plain_loss_auc(loss_fn, optimizer, *, desired_loss_fn=None, eval_every=1):
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


def split_floating(tree):
    """(the floating leaves, what joins others to the tree again)."""
    leaves, structure = jax.tree.flatten(tree)
    is_floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def join(floating):
        given = iter(floating)
        pairs = zip(leaves, is_floating, strict=True)
        return jax.tree.unflatten(structure, [next(given) if f else leaf for leaf, f in pairs])

    return [leaf for leaf, f in zip(leaves, is_floating, strict=True) if f], join


def gradient_in_everything(loss_auc, problem):
    """The compiled gradient in all floating leaves, by the name of the argument."""
    names = [name for name, tree in zip(Problem._fields, problem, strict=True) if tree is not None]
    parts = {name: split_floating(getattr(problem, name)) for name in names}

    def objective(floating):
        value = loss_auc(*(parts[name][1](floating[name]) for name in names))
        return value[0] if isinstance(value, tuple) else value

    floating = {name: part[0] for name, part in parts.items()}
    return jax.device_get(jax.jit(jax.grad(objective))(floating))


def largest_errors(found, expected):
    """By argument: the largest difference relative to the largest entry of its array."""

    def error(found, expected):
        return np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-300)

    return {
        name: max(error(*pair) for pair in zip(found[name], expected[name], strict=True))
        for name in expected
        if expected[name]
    }
