"""Families of policies: what is optimised, and the distributions over examples that it makes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax import cluster
from lljax.curation.scorer import Columns, Seen, smooth
from lljax.errors import UserError
from lljax.tasks.config import ExperimentConfig, meta_optimizer
from lljax.tasks.problem import PolicyProblem


class Family(NamedTuple):
    """A family for one problem."""

    start: Any
    """psi of conventional training, a pytree of floating arrays."""
    shares: Callable[[Any], jax.Array]
    """psi -> [S, N], S distributions over the examples, interpolated over the steps; pure."""
    begin: Callable[[Any], Any]
    """psi -> the first state of what moves it."""
    move: Callable[[Any, Any, jax.Array], tuple[Any, Any]]
    """(psi, state, dAUC/dshares [S, N]) -> (psi, state)."""


def build_family(config: ExperimentConfig, problem: PolicyProblem) -> Family:
    """The family that a config names.

    Raises:
      UserError: the task has no groups, or nothing that a scorer could look at.
    """
    number, settings = problem.num_train, config.policy
    in_groups = settings.family == "group" or (
        settings.family == "scheduled" and problem.groups is not None
    )
    if settings.family == "scorer" and settings.scorer == "boosted":
        return _of_scorer(config, problem)
    if in_groups:
        return _of_groups(config, problem)
    if settings.family == "scheduled":
        rows = jnp.full((settings.rows, number), 1 / number, jnp.float32)
        return _along_gradient(config, rows, lambda rows: rows)
    weights = jnp.full(number, 1 / number, jnp.float32)
    return _along_gradient(config, weights, lambda weights: weights[None])


def _along_gradient(
    config: ExperimentConfig, start: jax.Array, shares: Callable[[Any], jax.Array]
) -> Family:
    """psi on simplices, moved by the meta-optimiser along its gradient."""
    optimizer = meta_optimizer(config.outer, config.policy.explore)

    def move(psi: Any, state: Any, slopes: jax.Array) -> tuple[Any, Any]:
        _, pull = jax.vjp(shares, psi)
        return optimizer.update(pull(slopes)[0], state, psi)

    return Family(start, shares, optimizer.init, jax.jit(move))


def _of_groups(config: ExperimentConfig, problem: PolicyProblem) -> Family:
    if problem.groups is None:
        raise UserError(
            "policy.family group needs the groups of the training examples: set data.group to a "
            "field of the records, or to `file` or `folder`."
        )
    groups = jnp.asarray(problem.groups)
    sizes = np.bincount(problem.groups, minlength=len(problem.group_names))
    num_rows = config.policy.rows if config.policy.family == "scheduled" else 1
    start = np.broadcast_to(sizes / sizes.sum(), (num_rows, len(sizes)))

    def shares(rows: jax.Array) -> jax.Array:
        return lljax.scheduled_weights(rows, groups=groups, num_steps=num_rows)

    return _along_gradient(config, jnp.asarray(start, jnp.float32), shares)


def _of_scorer(config: ExperimentConfig, problem: PolicyProblem) -> Family:
    """Scores f(x) = x . psi, moved by functional gradient descent: gradient boosting.

      v_s = ridge regression of the slopes dAUC/dw_n on the features x_n, of unit spread
      m_s = mu m_{s-1} + v_s,  psi_s = psi_{s-1} - epsilon m_s,  w = softmax_n[f(x_n)]

    A slope of one example is mostly noise, and alike documents share what is not: the regression
    of documents' mean slopes on their mean features keeps that. The gradient in psi itself would
    follow the features with the largest numbers.

    Reference: J. Friedman, Annals of Statistics 29 (2001).
    """
    settings = config.outer
    # Every process weighs all examples, by what the first one sees of them.
    seen = cluster.from_first(lambda: seen_of(problem))
    columns, document = Columns.of(seen.pieces), jnp.asarray(seen.document)
    counts = jnp.asarray(seen.counts, jnp.float32)
    where, values = jnp.asarray(columns.where), jnp.asarray(columns.values)
    number, explore = problem.num_train, config.policy.explore

    def shares(psi: jax.Array) -> jax.Array:
        of_pieces = jnp.sum(values * psi[where], axis=1)
        scores = jax.ops.segment_sum(of_pieces, document, len(counts)) / counts
        return jax.nn.softmax(scores[document])[None]

    def move(psi: jax.Array, momentum: jax.Array, slopes: jax.Array) -> tuple[Any, Any]:
        weights = np.asarray(shares(psi), np.float64)[0]
        slope = np.asarray(slopes, np.float64)[0]
        direction = smooth(seen, slope - weights @ slope)
        moved = (seen.features @ direction)[seen.document]
        moved = moved - weights @ moved
        spread = np.sqrt(((1 - explore) * weights + explore / number) @ np.square(moved))
        step = direction / spread if spread > 0 else direction
        momentum = settings.momentum * momentum + jnp.asarray(step, jnp.float32)
        return psi - settings.learning_rate * momentum, momentum

    return Family(jnp.zeros(columns.size, jnp.float32), shares, jnp.zeros_like, move)


def seen_of(problem: PolicyProblem) -> Seen:
    """What a scorer sees of the training examples.

    Raises:
      UserError: the task has none for it.
    """
    if problem.featurize is None:
        raise UserError(
            "policy.family scorer needs something to look at: the task has no `featurize`. Take "
            "static, or give its Problem one."
        )
    document = None if problem.origins is None else problem.origins.document
    return Seen.of(problem.featurize(problem.train), document)
