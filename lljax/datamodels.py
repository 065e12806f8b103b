"""The linear datamodeling score: predicted against actual changes when examples are left out."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lljax import checks
from lljax.attribution import Measure, measure_and_scores, measured
from lljax.step_inputs import as_step_inputs
from lljax.types import Batch, LossAuc, Params, StepInputs

NUM_RESAMPLES = 1000


class DatamodelingScore(NamedTuple):
    """What `linear_datamodeling_score` returns. S subsets."""

    lds: jax.Array  # [] rank correlation of predicted and actual changes, in [-1, 1]
    interval: jax.Array  # [2] of it, 95 %, by bootstrap over the subsets
    explained: jax.Array  # [] 1 - sum (actual - predicted)^2 / sum actual^2, at most 1
    predicted: jax.Array  # [S] changes of the outcome, nats
    actual: jax.Array  # [S]
    outcome: jax.Array  # [] of the run with all examples, nats


def linear_datamodeling_score(
    loss_auc: LossAuc,
    policy: jax.Array | StepInputs,
    params: Params,
    train: Batch,
    desired: Batch,
    constants: Any = None,
    *,
    key: jax.Array,
    num_subsets: int = 100,
    share: float = 0.05,
    of: Measure = "auc",
    batch_size: int = 1,
) -> DatamodelingScore:
    """How well the meta-gradient foretells what training without some examples comes to.

      predicted_s = sum_{n in S_s} score_n,  actual_s = f(v = 0 in S_s) - f(1),
      LDS = rank correlation of the two over s

    v_n scales the weights of example n at all steps, score_n = -df/dv_n as in
    `lljax.attribution_scores`, and the subsets S_s are drawn at random. What is left out is not
    made up for by the others.

    Args:
      loss_auc, policy, params, train, desired, constants: a run, as `build_loss_auc` has it.
      key: of jax.random, draws the subsets.
      num_subsets: S, at least 3. Of 100 the 95 % interval is about 0.1 wide at 0.9.
      share: of the examples, left out of each run.
      of: f, the AUC of the desired loss, or the "final" loss, after the last step.
      batch_size: retrainings at once, in one vmapped call.

    Returns:
      DatamodelingScore. Cost: one meta-gradient and S runs forward; memory: that of one meta-
      gradient, or of `batch_size` runs forward. Minutes of it are best called with fewer subsets
      first.

    Raises:
      ValueError: a shape does not fit or a number is out of range.

    Reference: S. M. Park et al., TRAK, arXiv:2303.14186 (the score); A. Ilyas and L. Engstrom,
    MAGIC, arXiv:2504.16430 (of meta-gradients).
    """
    checks.check_count("num_subsets", num_subsets, least=3)
    checks.check_count("batch_size", batch_size)
    of_subsets, of_bootstrap = jax.random.split(key)
    left_out = draw_subsets(of_subsets, checks.num_examples(train, "train"), num_subsets, share)
    data = params, train, desired
    value, scores = measure_and_scores(loss_auc, policy, *data, of=of, constants=constants)
    inputs = as_step_inputs(policy)

    def retrain(absent):
        return measured(*loss_auc(scaled(inputs, 1.0 - absent), *data, constants), of)

    actual = jax.lax.map(retrain, left_out, batch_size=min(batch_size, num_subsets)) - value
    return score_predictions(left_out @ scores, actual, value, of_bootstrap)


def draw_subsets(key: jax.Array, num_examples: int, num_subsets: int, share: float) -> jax.Array:
    """[S, N] of 0 and 1: which examples are left out, the same number of each subset."""
    checks.check_number("share", share, "a share in (0, 1)", lambda x: 0 < x < 1)
    size = round(share * num_examples)
    if not 1 <= size < num_examples:
        raise ValueError(
            f"`share` must leave out at least one example, and not all; got {share} of "
            f"{num_examples}."
        )
    first = jnp.where(jnp.arange(num_examples) < size, 1.0, 0.0)
    draw = jax.vmap(lambda key: jax.random.permutation(key, first))
    return draw(jax.random.split(key, num_subsets))


def score_predictions(
    predicted: jax.Array, actual: jax.Array, outcome: ArrayLike, key: jax.Array
) -> DatamodelingScore:
    """The score of predicted and actual changes [S] of an outcome []; `key` is the bootstrap's."""
    count = predicted.shape[0]
    chosen = jax.random.randint(key, (NUM_RESAMPLES, count), 0, count)
    resampled = jax.lax.map(lambda rows: rank_correlation(predicted[rows], actual[rows]), chosen)
    interval = jnp.nanpercentile(resampled, jnp.array([2.5, 97.5]))
    explained = 1 - jnp.sum((actual - predicted) ** 2) / jnp.sum(actual**2)
    score = rank_correlation(predicted, actual)
    return DatamodelingScore(score, interval, explained, predicted, actual, jnp.asarray(outcome))


def rank_correlation(first: jax.Array, second: jax.Array) -> jax.Array:
    """[] Spearman's, of two vectors [S]; NaN where one of them is constant or not finite."""

    def centred_ranks(values):
        ranks = jax.scipy.stats.rankdata(values)
        return ranks - ranks.mean()

    a, b = centred_ranks(first), centred_ranks(second)
    finite = jnp.isfinite(first).all() & jnp.isfinite(second).all()
    return jnp.where(finite, (a @ b) / jnp.sqrt((a @ a) * (b @ b)), jnp.nan)


def scaled(inputs: StepInputs, factors: jax.Array) -> StepInputs:
    """The inputs, of one run or of several side by side, with the weights of each example times its
    factor [N] at all steps."""
    index, weights = inputs.index, jnp.asarray(inputs.weights)
    at = jnp.broadcast_to(factors, weights.shape) if index is None else factors[index]
    weights = weights * at.astype(weights.dtype)
    return dataclasses.replace(inputs, weights=weights)
