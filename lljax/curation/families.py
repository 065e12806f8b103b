"""Families of policies: what is optimised, and the distributions over examples that it makes."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax.curation.scorer import Columns, smooth
from lljax.errors import UserError
from lljax.tasks.config import ExperimentConfig, meta_optimizer
from lljax.tasks.problem import PolicyProblem


class Improve(Protocol):
    def __call__(self, psi: Any, method: Any, slopes: np.ndarray, /) -> tuple[Any, Any]:
        """(psi, the method's state, dAUC/dshares [S, N]) -> (psi, state), on the host."""
        ...


class Family(NamedTuple):
    """A family for one problem."""

    start: Any
    """psi of conventional training, a pytree of floating arrays."""
    shares: Callable[[Any], jax.Array]
    """psi -> [S, N], S distributions over the examples, interpolated over the steps; pure."""
    optimizer: lljax.MetaOptimizer
    """What moves psi along its gradient, and the state of whatever moves it."""
    improve: Improve | None = None
    """Moves psi in the place of the optimiser's update."""


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
        case "scorer" if settings.scorer == "boosted":
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
    """Scores f(x) = x . psi, moved by functional gradient descent: gradient boosting.

      v_s = ridge regression of the slopes dAUC/dw_n on the features x_n, of unit spread
      m_s = mu m_{s-1} + v_s,  psi_s = psi_{s-1} - epsilon m_s,  w = softmax_n[f(x_n)]

    A slope of one example is mostly noise, and alike examples share what is not: the regression
    keeps that. The gradient in psi itself would follow the features with the largest numbers.

    Reference: J. Friedman, Annals of Statistics 29 (2001).
    """
    features, settings = features_of(problem), config.outer
    columns = Columns.of(features)
    where, values = jnp.asarray(columns.where), jnp.asarray(columns.values)
    number, explore = problem.num_train, config.policy.explore

    def shares(psi: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.sum(values * psi[where], axis=1))[None]

    def improve(psi: jax.Array, method: jax.Array, slopes: np.ndarray) -> tuple[Any, Any]:
        weights = np.asarray(shares(psi), np.float64)[0]
        slope = np.asarray(slopes, np.float64)[0]
        direction = smooth(features, slope - weights @ slope)
        moved = features @ direction
        moved = moved - weights @ moved
        spread = np.sqrt(((1 - explore) * weights + explore / number) @ np.square(moved))
        step = direction / spread if spread > 0 else direction
        method = settings.momentum * method + jnp.asarray(step, jnp.float32)
        return psi - settings.learning_rate * method, method

    state = lljax.MetaOptimizer(jnp.zeros_like, _no_update)
    return Family(jnp.zeros(columns.size, jnp.float32), shares, state, improve)


def _no_update(
    policy_grad: Any, state: Any, policy: Any, scale: Any = 1.0, known: Any = None
) -> tuple[Any, Any]:
    raise AssertionError("a scorer is moved by its own `improve`")


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
