"""The two passes that take a cotangent of a step's gradient back to what the gradient is made of.

With g = grad_theta sum_b w_b l_b(theta, x_b, c) and the cotangent u of g, both give

    H u,   [grad l_b . u]_b,   and where they are wanted the derivatives of g . u in x and c.

Forward over reverse is a JVP of the gradient in the direction u. It is the faster one, and right
where the loss has a forward derivative and the gradient is that of a function: then d g/d theta is
symmetric, and the derivative of g . u in w_b is that of the loss in the direction u. Reverse over
reverse is a VJP of the gradient: right for every loss that JAX differentiates, among them those
with a backward rule of their own (custom_vjp kernels, gradient reversal).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, subjaxprs

from lljax.array_types import as_type_of
from lljax.microbatch import Examples
from lljax.train_step import example_losses, weighted_gradient
from lljax.types import Batch, Params, PassName, SecondOrder

SharedLossFn = Callable[[Params, Batch, Any], jax.Array]
"""(theta, B examples, c: what all examples share) -> losses [B]."""


class Rules(NamedTuple):
    """How the losses are differentiated."""

    train: PassName = "reverse_over_reverse"
    desired_has_rules: bool = True  # of its own: then its gradient may not be linear in a weight


class Wanted(NamedTuple):
    """Which leaves of examples and of what they share have a derivative that is asked for."""

    batch: tuple[bool, ...] = ()
    shared: tuple[bool, ...] = ()

    def __bool__(self) -> bool:
        return any(self.batch) or any(self.shared)


class Terms(NamedTuple):
    """What a pass gives."""

    params: Params  # H u
    slopes: jax.Array  # [B]
    batch: list[jax.Array]  # of the wanted leaves, [B, ...] each
    shared: list[jax.Array]  # of the wanted leaves


def choose_pass(second_order: SecondOrder, has_backward_rules: bool) -> PassName:
    """The pass that was asked for; "auto" is the fast one, unless the loss has rules of its own.

    Raises:
      ValueError: forward over reverse was asked for, and the loss has no forward derivative.
    """
    if second_order == "reverse_over_reverse" or (second_order == "auto" and has_backward_rules):
        return "reverse_over_reverse"
    if has_backward_rules:
        raise ValueError(
            "`second_order='forward_over_reverse'` needs a forward derivative of `loss_fn`, which "
            "calls a function with a backward rule of its own (jax.custom_vjp). Pass "
            "second_order='reverse_over_reverse', or leave it to 'auto'."
        )
    return "forward_over_reverse"


def has_backward_rules(loss: Jaxpr) -> bool:
    """Whether a `jax.custom_vjp` is in a loss.

    A JVP of the gradient would not tell: it goes through such a rule once, and then takes it for
    the derivative of the value.
    """
    names = (equation.primitive.name for equation in loss.eqns)
    return any(name.startswith("custom_vjp_call") for name in names) or any(
        map(has_backward_rules, subjaxprs(loss))
    )


def pull_back_gradient(
    which: PassName,
    loss_fn: SharedLossFn,
    params: Params,
    examples: Examples,
    shared: Any,
    weights: jax.Array,
    direction: Params,
    wanted: Wanted,
) -> Terms:
    """Pulls the cotangent u of a step's gradient back.

    Args:
      which: the pass.
      loss_fn: the loss.
      params: theta.
      examples: B examples.
      shared: c.
      weights: w [B].
      direction: u, like `params`.
      wanted: what is wanted beside H u and the slopes.

    Returns:
      Terms. Cost in forward passes of an example: 5 forward over reverse, 6 reverse over reverse.
    """
    if which == "forward_over_reverse" and not wanted:

        def gradient_and_losses(theta):
            return weighted_gradient(bind(loss_fn, shared), theta, examples, weights)

        _, (curvature, slopes) = jax.jvp(gradient_and_losses, (params,), (direction,))
        return Terms(curvature, slopes, [], [])
    pull_back = _forward_over_reverse if which == "forward_over_reverse" else _reverse_over_reverse

    def add(sums, batch, weights):
        data, constants = select(batch, wanted.batch), select(shared, wanted.shared)

        def losses(theta, data, constants):
            return loss_fn(
                theta, replace(batch, wanted.batch, data), replace(shared, wanted.shared, constants)
            )

        found = pull_back(losses, params, data, constants, weights, direction)
        return jax.tree.map(jnp.add, sums, (found.params, found.shared)), (
            found.slopes,
            found.batch,
        )

    zeros = jax.tree.map(jnp.zeros_like, (params, select(shared, wanted.shared)))
    (curvature, constants), (slopes, data) = examples.fold(add, zeros, weights)
    return Terms(curvature, slopes, data, constants)


def pull_back_slopes(
    which: PassName,
    loss_fn: SharedLossFn,
    params: Params,
    examples: Examples,
    shared: Any,
    direction: Params,
) -> jax.Array:
    """The slopes [B] alone, at the weight 0. Cost: 2 forward passes, or 3 in reverse."""
    if which == "forward_over_reverse":

        def losses(theta):
            return example_losses(bind(loss_fn, shared), theta, examples)

        _, slopes = jax.jvp(losses, (params,), (direction,))
        return slopes

    def visit(_, batch):
        losses, pull_back = jax.vjp(lambda theta: loss_fn(theta, batch, shared), params)
        _, pull_back_weights = jax.vjp(lambda w: pull_back(w)[0], jnp.zeros_like(losses))
        return None, pull_back_weights(direction)[0]

    return examples.fold(visit, None)[1]


def loss_gradient(
    loss_fn: SharedLossFn,
    params: Params,
    examples: Examples,
    shared: Any,
    weights: jax.Array,
    wanted: Wanted,
) -> tuple[Params, list[jax.Array], list[jax.Array]]:
    """The gradient of sum_b w_b l_b in theta, and in the leaves that are wanted."""
    if not wanted:
        return weighted_gradient(bind(loss_fn, shared), params, examples, weights)[0], [], []

    def add(sums, batch, weights):
        def losses(theta, data, constants):
            return loss_fn(
                theta, replace(batch, wanted.batch, data), replace(shared, wanted.shared, constants)
            )

        data, constants = select(batch, wanted.batch), select(shared, wanted.shared)
        losses, pull_back = jax.vjp(losses, params, data, constants)
        theta, data, constants = pull_back(as_type_of(weights.astype(losses.dtype), losses))
        return jax.tree.map(jnp.add, sums, (theta, constants)), data

    zeros = jax.tree.map(jnp.zeros_like, (params, select(shared, wanted.shared)))
    (gradient, constants), data = examples.fold(add, zeros, weights)
    return gradient, data, constants


def bind(loss_fn: SharedLossFn, shared: Any) -> Callable[[Params, Batch], jax.Array]:
    """The loss as a function of theta and a batch."""
    return lambda params, batch: loss_fn(params, batch, shared)


def select(tree: Any, wanted: tuple[bool, ...]) -> list[jax.Array]:
    """The wanted leaves."""
    if not any(wanted):
        return []
    pairs = zip(jax.tree.leaves(tree), wanted, strict=True)
    return [leaf for leaf, is_wanted in pairs if is_wanted]


def replace(tree: Any, wanted: tuple[bool, ...], leaves: list[jax.Array]) -> Any:
    """The tree with others in the place of the wanted leaves."""
    if not any(wanted):
        return tree
    others, given = jax.tree.leaves(tree), iter(leaves)
    pairs = zip(others, wanted, strict=True)
    return jax.tree.unflatten(
        jax.tree.structure(tree), [next(given) if is_wanted else leaf for leaf, is_wanted in pairs]
    )


def _forward_over_reverse(losses, params, data, constants, weights, direction) -> Terms:
    """A JVP in the direction u of the gradient in (theta, x, c): all mixed derivatives at once."""

    def gradients_and_losses(theta):
        values, pull_back = jax.vjp(losses, theta, data, constants)
        return pull_back(as_type_of(weights.astype(values.dtype), values)), values

    _, ((curvature, of_data, of_constants), slopes) = jax.jvp(
        gradients_and_losses, (params,), (direction,)
    )
    return Terms(curvature, slopes, of_data, of_constants)


def _reverse_over_reverse(losses, params, data, constants, weights, direction) -> Terms:
    """A VJP with u of the weighted gradient."""

    def gradient(theta, data, constants, weights):
        values, pull_back = jax.vjp(lambda theta: losses(theta, data, constants), theta)
        return pull_back(as_type_of(weights.astype(values.dtype), values))[0]

    _, pull_back = jax.vjp(gradient, params, data, constants, weights)
    curvature, of_data, of_constants, slopes = pull_back(direction)
    return Terms(curvature, slopes, of_data, of_constants)
