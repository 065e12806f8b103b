"""Families of policies: what is optimised, and the distributions over examples that it makes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lljax
from lljax.curation.scorer import Columns
from lljax.errors import UserError
from lljax.tasks.config import ExperimentConfig, meta_optimizer
from lljax.tasks.problem import PolicyProblem


class Family(NamedTuple):
    """A family for one problem."""

    start: Any
    """psi of conventional training, a pytree of floating arrays."""
    shares: Callable[[Any], jax.Array]
    """psi -> [S, N], S distributions over the examples, interpolated over the steps; pure."""
    optimizer: lljax.MetaOptimizer


def build_family(config: ExperimentConfig, problem: PolicyProblem) -> Family:
    """The family that a config names.

    Raises:
      UserError: the task has no groups, or nothing that a scorer could look at.
    """
    number, settings = problem.num_train, config.policy
    match settings.family:
        case "group":
            return _of_groups(config, problem, 1)
        case "scheduled" if problem.groups is not None:
            return _of_groups(config, problem, settings.rows)
        case "scheduled":
            rows = jnp.full((settings.rows, number), 1 / number, jnp.float32)
            return Family(
                rows, lambda rows: rows, meta_optimizer(config.outer, config.policy.explore)
            )
        case "scorer" if settings.scorer == "end_to_end":
            return _of_scorer(config, problem)
    weights = jnp.full(number, 1 / number, jnp.float32)
    return Family(
        weights, lambda weights: weights[None], meta_optimizer(config.outer, config.policy.explore)
    )


def _of_groups(config: ExperimentConfig, problem: PolicyProblem, num_rows: int) -> Family:
    if problem.groups is None:
        raise UserError(
            "policy.family group needs the groups of the training examples: set data.group to a "
            "field of the records, or to `file` or `folder`."
        )
    groups = jnp.asarray(problem.groups)
    sizes = np.bincount(problem.groups, minlength=len(problem.group_names))
    start = np.broadcast_to(sizes / sizes.sum(), (num_rows, len(sizes)))
    of_each = jnp.asarray(1 / np.maximum(sizes, 1), jnp.float32)[groups]

    def shares(weights: jax.Array) -> jax.Array:
        return weights[:, groups] * of_each[None]

    return Family(
        jnp.asarray(start, jnp.float32), shares, meta_optimizer(config.outer, config.policy.explore)
    )


def _of_scorer(config: ExperimentConfig, problem: PolicyProblem) -> Family:
    columns = Columns.of(features_of(problem))
    where, values = jnp.asarray(columns.where), jnp.asarray(columns.values)

    def shares(psi: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.sum(values * psi[where], axis=1))[None]

    adam = lljax.from_optax(optax.adam(config.outer.learning_rate, eps_root=1e-12))
    return Family(jnp.zeros(columns.size, jnp.float32), shares, adam)


def features_of(problem: PolicyProblem) -> Any:
    """What a scorer sees of the training examples.

    Raises:
      UserError: the task has none for it.
    """
    if problem.featurize is None:
        raise UserError(
            "policy.family scorer needs something to look at: the task has no `featurize`. Take "
            "static, or give its Problem one."
        )
    return problem.featurize(problem.train)
