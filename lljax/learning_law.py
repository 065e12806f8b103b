"""The Learning Law: at an optimal policy every example with weight contributes alike (§3.2, §4.5).

All functions are pure and act on one inner step, so they can be called in the observer of
`lljax.unroll` and under jit, vmap and scan. `weights` is a policy row gamma_t [N] throughout.

The paper does not say which weight counts as zero, so `threshold` is an argument: a weight is
zero when weight <= threshold. The default 0.0 fits methods that write exact zeros: projected
gradient, and exponentiated gradient with a cutoff. Without a cutoff the latter only comes close to
zero: pass, e.g., 1e-3 / N there.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lljax import checks
from lljax.loss_check import check_losses
from lljax.microbatch import split_microbatches
from lljax.passes import choose_pass, has_backward_rules, pull_back_slopes
from lljax.shards import find_shards
from lljax.slopes import check_mask
from lljax.train_step import weighted_gradient
from lljax.types import Batch, LossFn, Params


def contributions(
    loss_fn: LossFn,
    params: Params,
    train: Batch,
    desired: Batch,
    *,
    desired_loss_fn: LossFn | None = None,
    constants: Any = None,
    microbatch_size: int | None = None,
    data_axis: str | None = None,
) -> jax.Array:
    """How fast a step on each training example lowers the desired loss.

      CT_n = grad L(theta) . grad l_n(theta),  L(theta) = 1/K sum_k l_k(theta)   (§3.2)

    The gradient of L is a direction, and one JVP of the training losses along it gives all N
    products: no gradient of a single example is formed.

    >>> import jax.numpy as jnp
    >>> from lljax.learning_law import contributions
    >>> loss_fn = lambda params, batch: batch @ params
    >>> train = jnp.array([[1.0, 0.0], [-1.0, 2.0], [0.0, 0.0]])
    >>> contributions(loss_fn, jnp.zeros(2), train, jnp.array([[2.0, 3.0]])).tolist()
    [2.0, 4.0, 0.0]

    Args:
      loss_fn: per-example losses, (params, batch of B) -> [B], nats.
      params: theta.
      train: N training examples.
      desired: K desired examples.
      desired_loss_fn: the losses l_k of the desired examples; `loss_fn` when None.
      constants: the third argument of the losses, where they have one.
      microbatch_size: examples handled at once; all of them when None. It bounds the memory of
        activations and, where the loss of an example does not depend on the others of its batch,
        changes nothing but rounding.
      data_axis: the axis of the mesh whose devices share the examples, as in `build_loss_auc`.

    Returns:
      [N], the dtype of the losses, squared nats per squared unit of theta. Cost: 3 forward passes
      over the desired and 2 over the training examples; memory of one gradient.

    Raises:
      ValueError: a shape or dtype does not fit, `microbatch_size` is below 1, or (outside jit) it
        is given and a loss mixes the examples of a batch.

    Reference: arXiv:2402.17759, section 3.2.
    """
    checks.check_microbatch_size(microbatch_size)
    checks.check_data_axis(data_axis)
    rest = () if constants is None else (constants,)
    check_losses(
        loss_fn, desired_loss_fn, params, train, {"desired": desired}, microbatch_size, rest
    )
    wanted = split_microbatches(desired, microbatch_size, find_shards(data_axis, desired))
    mean = jnp.full(wanted.num_examples, 1 / wanted.num_examples)

    def desired_losses(params, batch):
        return (desired_loss_fn or loss_fn)(params, batch, *rest)

    direction, _ = weighted_gradient(desired_losses, params, wanted, mean)
    examples = split_microbatches(train, microbatch_size, find_shards(data_axis, train))
    piece = jax.tree.map(lambda leaf: examples.shards.first(leaf)[0], examples.batch)
    loss = jax.make_jaxpr(loss_fn)(params, piece, *rest).jaxpr
    which = choose_pass("auto", has_backward_rules(loss))
    return pull_back_slopes(
        which, lambda p, b, rest: loss_fn(p, b, *rest), params, examples, rest, direction
    )


def contribution_similarity(
    contributions: jax.Array, weights: jax.Array, threshold: jax.typing.ArrayLike = 0.0
) -> jax.Array:
    """How alike the contributions of the examples in use are; the Learning Law wants infinity.

      SIM_t = m / sqrt(1/(S-1) sum_{n in use} (CT_n - m)^2),  m = sum_n gamma_{t,n} CT_n   (Eq. 7)

    The sum of squares runs over the S examples whose weight is above `threshold`; the mean m over
    all of them, weighted. The paper's SIM is the mean of SIM_t over t.

    >>> import jax.numpy as jnp
    >>> from lljax.learning_law import contribution_similarity
    >>> policy_row = jnp.array([0.5, 0.5, 0.0])
    >>> round(float(contribution_similarity(jnp.array([3.0, 5.0, -9.0]), policy_row)), 4)
    2.8284

    Args:
      contributions: CT_t [N], as from `contributions`.
      weights: gamma_t [N].
      threshold: [], weights up to here count as zero.

    Returns:
      [], a pure number. With S < 2 there is no spread and it is NaN; with S >= 2 equal
      contributions it is +inf or -inf, the sign being that of m, and NaN where all are zero.
      Equal up to rounding gives a huge finite number. Cost: O(N).

    Raises:
      ValueError: the arguments are not two floating vectors of the same length.

    Reference: arXiv:2402.17759, section 4.2.
    """
    contributions, weights = _check_rows(contributions=contributions, weights=weights)
    in_use = weights > threshold
    # SIM does not depend on the scale of CT, but late in training the squares of CT would
    # underflow in float32.
    scale = jnp.max(jnp.abs(contributions), initial=0.0, where=in_use)
    scaled = contributions / jnp.where(scale == 0, 1, scale)
    mean = jnp.sum(weights * scaled)
    count = jnp.sum(in_use)
    squares = jnp.sum((scaled - mean) ** 2, where=in_use)
    deviation = jnp.sqrt(squares / jnp.maximum(count - 1, 1).astype(squares.dtype))
    return jnp.where(count < 2, jnp.nan, mean / deviation)


def optimality_gap(
    policy: jax.Array, policy_grad: jax.Array, known: jax.Array | None = None
) -> jax.Array:
    """The Frank-Wolfe gap of every policy row: the discrete, exact form of the Learning Law.

      gap_t = sum_n gamma_{t,n} g_{t,n} - min_n g_{t,n},  g = d AUC / d gamma

    It is zero exactly where the policy is stationary, that is where every example with weight has
    the same, smallest derivative. The sum over t bounds, to first order, what is left to gain.

    The same holds for what weights are linear in. For one simplex w [N] that serves all steps
    (`static_weights`), g_n is the sum over the steps of the slopes of example n, and at the optimum
    these sums are equal for all examples with weight; for groups, their means over a group.

    >>> import jax.numpy as jnp
    >>> from lljax.learning_law import optimality_gap
    >>> policy = jnp.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5]])
    >>> policy_grad = jnp.array([[1.0, 1.0, 4.0], [1.0, 1.0, 4.0]])
    >>> optimality_gap(policy, policy_grad).tolist()
    [0.0, 1.5]

    Args:
      policy: gamma [T, N], or one simplex [N], or more axes of rows [..., N].
      policy_grad: of the same shape, the gradient of the AUC (or any other objective), nats.
      known: bool, of the same shape: which entries of the gradient are slopes, as from
        `zero_weight="omit"`; None where all are.

    Returns:
      [T], or [...] for [..., N], in the unit of `policy_grad`, never negative for rows >= 0. NaN
      for a row with a slope that is unknown: it might be the smallest. Cost: O(T N).

    Raises:
      ValueError: the arguments are not floating or do not share a shape.

    Reference: arXiv:2402.17759, section 3.2; M. Jaggi, ICML 2013 (the gap).
    """
    policy = checks.floating(policy, "policy")
    policy_grad = checks.floating(policy_grad, "policy_grad")
    if policy.ndim == 0 or policy.shape != policy_grad.shape or policy.size == 0:
        raise ValueError(
            f"`policy` and `policy_grad` must share a shape (..., N), such as (T, N); got "
            f"{policy.shape} and {policy_grad.shape}."
        )
    # Subtracting the minimum first keeps the gap >= 0 where the row sums to 1 only to rounding.
    excess = policy_grad - jnp.min(policy_grad, axis=-1, keepdims=True)
    gap = jnp.sum(policy * excess, axis=-1)
    if known is None:
        return gap
    check_mask(known, policy)
    return jnp.where(jnp.all(known, axis=-1), gap, jnp.nan)


def zero_weight_share(
    contributions: jax.Array, weights: jax.Array, threshold: jax.typing.ArrayLike = 0.0
) -> jax.Array:
    """Property 4.1, noisy examples are excluded: how many with CT <= 0 have no weight.

      #{n : CT_n <= 0, gamma_{t,n} <= threshold} / #{n : CT_n <= 0}   (Fig. 8)

    >>> import jax.numpy as jnp
    >>> from lljax.learning_law import zero_weight_share
    >>> policy_row = jnp.array([0.7, 0.3, 0.0])
    >>> float(zero_weight_share(jnp.array([3.0, -5.0, -9.0]), policy_row))
    0.5

    Args:
      contributions: CT_t [N].
      weights: gamma_t [N].
      threshold: [], weights up to here count as zero.

    Returns:
      [], between 0 and 1; 1 is what the property predicts, NaN when no example has CT <= 0.
      Cost: O(N).

    Raises:
      ValueError: the arguments are not two floating vectors of the same length.

    Reference: arXiv:2402.17759, section 4.5.
    """
    contributions, weights = _check_rows(contributions=contributions, weights=weights)
    return _share(weights <= threshold, contributions <= 0, weights.dtype)


def redundant_share(
    contributions: jax.Array, weights: jax.Array, threshold: jax.typing.ArrayLike = 0.0
) -> jax.Array:
    """Property 4.3, redundant examples are discarded: how many with CT > 0 have no weight.

      #{n : CT_n > 0, gamma_{t,n} <= threshold} / #{n : CT_n > 0}   (Fig. 10, as one number)

    The paper only draws a heat map of gamma over such contributive examples; this is the share of
    it that is empty at step t. A conventional row gives 0.

    >>> import jax.numpy as jnp, lljax
    >>> float(lljax.redundant_share(jnp.array([3.0, 5.0, -9.0]), jnp.array([1.0, 0.0, 0.0])))
    0.5

    Args:
      contributions: CT_t [N].
      weights: gamma_t [N].
      threshold: [], weights up to here count as zero.

    Returns:
      [], between 0 and 1; NaN when no example has CT > 0. Cost: O(N).

    Raises:
      ValueError: the arguments are not two floating vectors of the same length.

    Reference: arXiv:2402.17759, section 4.5.
    """
    contributions, weights = _check_rows(contributions=contributions, weights=weights)
    return _share(weights <= threshold, contributions > 0, weights.dtype)


def learned_weight_counts(
    losses: jax.Array,
    weights: jax.Array,
    edges: jax.Array,
    learned_loss: jax.typing.ArrayLike = 1e-6,
) -> jax.Array:
    """Property 4.2, perfectly learned examples lose their weight: a distribution of weights.

      counts_e = #{n : l_n(theta_t) < learned_loss, gamma_{t,n} / max_m gamma_{t,m} <= edge_e}

    Counts add up over steps, and with a last edge of 1 the sum divided by its last entry is the
    cumulative distribution of Fig. 9. Count in windows of steps to see it change.

    >>> import jax.numpy as jnp
    >>> from lljax.learning_law import learned_weight_counts
    >>> losses = jnp.array([1e-8, 1e-9, 0.3, 1e-7])
    >>> policy_row = jnp.array([0.0, 0.1, 0.7, 0.2])
    >>> learned_weight_counts(losses, policy_row, edges=jnp.array([0.0, 0.15, 1.0])).tolist()
    [1, 2, 3]

    Args:
      losses: l_n(theta_t) [N], nats.
      weights: gamma_t [N]. Its maximum is over all examples, learned or not.
      edges: [E], relative weights between 0 and 1.
      learned_loss: [], nats; examples below it are perfectly learned.

    Returns:
      [E], integer. Cost: O(N E).

    Raises:
      ValueError: `losses` and `weights` are not two floating vectors of the same length, or
        `edges` is not a vector.

    Reference: arXiv:2402.17759, section 4.5.
    """
    losses, weights = _check_rows(losses=losses, weights=weights)
    edges = jnp.asarray(edges)
    if edges.ndim != 1:
        raise ValueError(f"`edges` must be a vector (E,); got shape {edges.shape}.")
    # Multiplied out, a row without any weight needs no special case.
    within = weights[:, None] <= (edges * jnp.max(weights))[None, :]
    learned = losses < learned_loss
    return jnp.sum(learned[:, None] & within, axis=0)


def _share(hits: jax.Array, among: jax.Array, dtype) -> jax.Array:
    """#(hits and among) / #among, NaN when there are none."""
    count = jnp.sum(among)
    share = jnp.sum(hits & among).astype(dtype) / jnp.maximum(count, 1).astype(dtype)
    return jnp.where(count > 0, share, jnp.nan)


def _check_rows(**named) -> tuple[jax.Array, jax.Array]:
    """Two floating vectors [N] as arrays; ValueError when they are anything else."""
    (first, a), (second, b) = (
        (name, checks.floating(value, name)) for name, value in named.items()
    )
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        cure = " Use jax.vmap over inner steps." if 2 in (a.ndim, b.ndim) else ""
        raise ValueError(
            f"`{first}` and `{second}` must share a shape (N,), those of one inner step; got "
            f"{a.shape} and {b.shape}.{cure}"
        )
    return a, b
