"""The part of a step that sees no data, s_{t+1} = Phi(s_t, g_t), and its pull-back.

Phi is an optax update. Its pull-back takes the cotangent of the next state to those of this state
and of the gradient; the adjoint (`adjoint`) goes on from there to the data.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lljax.hyperparams import Hyperparams, init_state
from lljax.train_step import apply_optimizer
from lljax.types import Params, TrainState


class Record(NamedTuple):
    """What the backward sweep needs of a step."""

    state: TrainState  # s_t
    gradient: Params | None  # g_t; None where Phi is linear in it


class Cotangent(NamedTuple):
    """The cotangent of a state."""

    params: Params  # lambda, like theta
    opt_state: list[jax.Array]  # mu, one for each real or complex leaf of o


def make_record(
    optimizer: optax.GradientTransformation, state: TrainState, gradient: Params
) -> Record:
    """The record of a step: the one place that knows what is kept of it."""
    return Record(state, gradient if needs_gradient(optimizer, state.params) else None)


def record_shapes(optimizer: optax.GradientTransformation, params: Params) -> Record:
    """The shapes of a step's state and record, without computing anything."""

    def record(params):
        return make_record(optimizer, TrainState(params, init_state(optimizer, params)), params)

    return jax.eval_shape(record, params)


def pull_back_update(
    optimizer: optax.GradientTransformation,
    record: Record,
    cotangent: Cotangent,
    hyperparams: Hyperparams | None = None,
) -> tuple[Cotangent, Params, Hyperparams | None]:
    """Pulls (lambda_{t+1}, mu_{t+1}) back through Phi, to (theta_t, o_t), g_t and hyperparameters.

    Where the gradient of a whole array is exactly zero, as under a row without weight, it is pulled
    back at the smallest numbers whose squares still count. Clipping and normalising take the root
    of a sum of squares, and its derivative at zero is infinite even where the result, such as that
    of a gradient too small to be clipped, has a plain derivative.
    """
    state, gradient = record
    if gradient is None:
        gradient = jax.tree.map(jnp.zeros_like, state.params)
    else:
        gradient = jax.tree.map(_beside_zero, gradient)

    def update(params, differentiable, gradient, hyperparams):
        opt_state = _with_differentiable(state.opt_state, differentiable)
        before = TrainState(params, opt_state)
        after = apply_optimizer(optimizer, before, gradient, hyperparams)
        return Cotangent(after.params, _differentiable(after.opt_state))

    primals = state.params, _differentiable(state.opt_state), gradient, hyperparams
    _, pull_back = jax.vjp(update, *primals)
    params, opt_state, direction, of_hyperparams = pull_back(cotangent)
    return Cotangent(params, opt_state), direction, of_hyperparams


def pull_back_init(
    optimizer: optax.GradientTransformation, params: Params, cotangent: Cotangent
) -> Params:
    """The cotangent of theta_0, from which o_0 is made too, given that of s_0."""
    _, pull_back = jax.vjp(lambda p: _differentiable(init_state(optimizer, p)), params)
    return jax.tree.map(jnp.add, cotangent.params, *pull_back(cotangent.opt_state))


def zeros_like(state: TrainState) -> Cotangent:
    """The cotangent of a state on which nothing depends."""
    return jax.tree.map(jnp.zeros_like, Cotangent(state.params, _differentiable(state.opt_state)))


def needs_gradient(optimizer: optax.GradientTransformation, params: Params) -> bool:
    """Whether Phi's pull-back depends on g_t; not where Phi is linear in it, as in plain SGD."""
    state = jax.eval_shape(lambda p: TrainState(p, init_state(optimizer, p)), params)
    cotangent = jax.eval_shape(zeros_like, state)

    def pull_back(gradient, state, cotangent):
        return pull_back_update(optimizer, Record(state, gradient), cotangent)[:2]

    jaxpr = jax.make_jaxpr(pull_back)(state.params, state, cotangent).jaxpr
    used = {id(variable) for variable in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if used & {id(variable) for variable in equation.outvars}:
            used |= {id(variable) for variable in equation.invars}
    count = len(jax.tree.leaves(params))
    return any(id(variable) in used for variable in jaxpr.invars[:count])


def _beside_zero(gradient: jax.Array) -> jax.Array:
    """The gradient of an array; where all of it is zero, numbers whose squares are just not."""
    info = jnp.finfo(gradient.dtype)
    # float16 has so few exponents that the inverse of the square must be thought of too.
    is_half = gradient.dtype == jnp.float16
    smallest = float(info.max) ** -0.5 if is_half else info.tiny**0.4
    return jnp.where(jnp.any(gradient != 0), gradient, jnp.asarray(smallest, gradient.dtype))


def _is_differentiable(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _differentiable(opt_state: Any) -> list[jax.Array]:
    """The leaves of an optimiser state that have a derivative: no counts, flags or random keys."""
    return [leaf for leaf in jax.tree.leaves(opt_state) if _is_differentiable(leaf)]


def _with_differentiable(opt_state: Any, leaves: list[jax.Array]) -> Any:
    """The optimiser state with those leaves replaced."""
    replacements = iter(leaves)
    return jax.tree.map(
        lambda leaf: next(replacements) if _is_differentiable(leaf) else leaf, opt_state
    )
