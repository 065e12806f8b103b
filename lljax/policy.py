"""Learning policies gamma [T, N], and families: weights made of fewer numbers psi than T N (§2).

A policy is one probability distribution over the examples a step. A family is a pure function from
psi to the weights [T, B] of the batches `index` [T, B], for `StepInputs(weights, index)`, or, with
no index, to a policy [T, N]. Derivatives flow through it to psi:

    def objective(psi, params, train, desired):
        weights = static_weights(psi, index)
        return loss_auc(StepInputs(weights, index), params, train, desired)

What the weights of a batch sum to is part of a family. Where psi is a distribution over examples or
groups, a batch sums to 1 in the mean only: each weight is the example's share times N / B. Then
uniform shares give 1 / B, as in ordinary training; a batch's gradient is an unbiased estimate of
that of all examples; an example's weight does not depend on which others were drawn; and weights
are linear in psi, so that `optimality_gap` means what it says. Of a scorer a batch sums to 1.

Dense is the policy itself; of mini-batches, `scheduled_weights` with a row for every step. Nothing
of the size of all examples is made for a step: weights are gathered by index.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lljax import checks
from lljax.step_inputs import check_index, take
from lljax.types import Batch


def uniform_policy(num_steps: int, num_examples: int, dtype=jnp.float32) -> jax.Array:
    """The conventional policy, gamma_{t,n} = 1/N.

    >>> import lljax
    >>> lljax.uniform_policy(num_steps=2, num_examples=4)[0].tolist()
    [0.25, 0.25, 0.25, 0.25]

    Args:
      num_steps: T, at least 1.
      num_examples: N, at least 1.
      dtype: a floating dtype.

    Returns:
      [T, N].

    Raises:
      ValueError: T or N is not a whole number of at least 1, or `dtype` is not floating.
    """
    checks.check_count("num_steps", num_steps)
    checks.check_count("num_examples", num_examples)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`dtype` must be floating, e.g. float32; got {jnp.dtype(dtype)}.")
    return jnp.full((num_steps, num_examples), 1 / num_examples, dtype)


def static_weights(
    weights: jax.Array, index: jax.Array | None = None, *, num_steps: int | None = None
) -> jax.Array:
    """One weight an example, the same at every step.

      gamma_{t,b} = w_n N / B,  n = index_{t,b}

    >>> import jax.numpy as jnp, lljax
    >>> index = jnp.array([[0, 1], [2, 3], [3, 0]])
    >>> lljax.static_weights(jnp.array([0.25, 0.25, 0.5, 0.0]), index).tolist()
    [[0.5, 0.5], [1.0, 0.0], [0.0, 0.5]]

    Args:
      weights: w [N], floating, on the simplex. 1 / N in every entry is conventional training.
      index: [T, B], int in 0 .. N-1, the batches; None for all examples at every step.
      num_steps: T, where there is no index.

    Returns:
      [T, B], or [T, N] without an index (then B = N), of the dtype of `weights`. A batch sums to 1
      in the mean over uniformly drawn batches. The derivative in w_n is N / B times the sum of the
      slopes of all places where example n is; at the optimum it is equal for all examples with
      weight. Memory: [T, B].

    Raises:
      ValueError: a shape or dtype does not fit, or (outside jit) an index is out of range.
    """
    weights = _floating(weights, "weights", "(N,)", 1)
    return _weights(weights[None], None, index, num_steps)


def group_weights(
    weights: jax.Array,
    groups: jax.Array,
    index: jax.Array | None = None,
    *,
    num_steps: int | None = None,
) -> jax.Array:
    """One weight a group of examples: a domain, a source, a cluster.

      gamma_{t,b} = w_g / N_g N / B,  g = groups_n,  n = index_{t,b},  N_g examples in group g

    A group's weight is spread evenly over its examples, so that w is the share of the gradient that
    each group has, whatever their sizes.

    >>> import jax.numpy as jnp, lljax
    >>> groups, index = jnp.array([0, 0, 0, 1]), jnp.array([[0, 3], [1, 2]])
    >>> lljax.group_weights(jnp.array([0.75, 0.25]), groups, index).tolist()
    [[0.5, 0.5], [0.5, 0.5]]

    Args:
      weights: w [G], floating, on the simplex. N_g / N is conventional training.
      groups: [N], int in 0 .. G-1, the group of each example; no group is empty.
      index: [T, B], int in 0 .. N-1, the batches; None for all examples at every step.
      num_steps: T, where there is no index.

    Returns:
      [T, B], or [T, N] without an index (then B = N), of the dtype of `weights`. A batch sums to 1
      in the mean over uniformly drawn batches. Memory: [T, B] and [G].

    Raises:
      ValueError: a shape or dtype does not fit, or (outside jit) an index or a group is out of
        range, or a group is empty.
    """
    weights = _floating(weights, "weights", "(G,)", 1)
    return _weights(weights[None], groups, index, num_steps)


def scheduled_weights(
    rows: jax.Array,
    index: jax.Array | None = None,
    *,
    groups: jax.Array | None = None,
    num_steps: int | None = None,
) -> jax.Array:
    """Weights that change slowly: S rows, interpolated over the T steps.

      w_t = (1 - a) rows_s + a rows_{s+1},  s + a = t (S - 1) / (T - 1);  gamma_t from w_t as in
      `static_weights`, or with groups as in `group_weights`

    The first row is that of the first step, the last one that of the last step. As a convex
    combination of distributions every w_t is one. With S = T it is a dense policy, with S = 1 a
    static one.

    >>> import jax.numpy as jnp, lljax
    >>> rows = jnp.array([[0.5, 0.5], [1.0, 0.0]])
    >>> lljax.scheduled_weights(rows, num_steps=3).tolist()
    [[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]]

    Args:
      rows: [S, N], or [S, G] with groups; floating, each on the simplex, S <= T.
      index: [T, B], int in 0 .. N-1, the batches; None for all examples at every step.
      groups: [N], int in 0 .. G-1, the group of each example; no group is empty.
      num_steps: T, where there is no index.

    Returns:
      [T, B], or [T, N] without an index (then B = N), of the dtype of `rows`. A batch sums to 1 in
      the mean over uniformly drawn batches. Memory: two arrays [T, B].

    Raises:
      ValueError: a shape or dtype does not fit, S is above T, or (outside jit) an index or a group
        is out of range, or a group is empty.
    """
    rows = _floating(rows, "rows", "(S, N) or (S, G)", 2)
    return _weights(rows, groups, index, num_steps)


def scorer_weights(
    scorer: Callable[[Any, Batch], jax.Array],
    params: Any,
    train: Batch,
    index: jax.Array | None = None,
    *,
    num_steps: int | None = None,
) -> jax.Array:
    """Weights by what an example looks like: a function of it, such as a small network.

      gamma_t = softmax_b[f_psi(x_b)],  x_b = train[index_{t,b}]

    A logit has no scale over all N examples without all of them being scored at every step, so a
    batch is normalised by itself: its weights sum to 1.

    >>> import jax.numpy as jnp, lljax
    >>> train, index = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0, 1], [1, 1]])
    >>> scorer = lambda psi, batch: batch @ psi
    >>> lljax.scorer_weights(scorer, jnp.log(jnp.array([3.0])), train, index)[1].tolist()
    [0.5, 0.5]

    Args:
      scorer: f, (psi, batch of B) -> logits [B], floating. It may look at the whole batch.
      params: psi, any pytree.
      train: N training examples.
      index: [T, B], int in 0 .. N-1, the batches; None for all examples at every step.
      num_steps: T, where there is no index.

    Returns:
      [T, B], or [T, N] without an index, of the dtype of the logits. Each row sums to 1. Cost in
      passes of the scorer over a batch: T, and with the gradient 4 T, whose activations are held
      for one batch at a time; without an index one pass serves all steps.

    Raises:
      ValueError: a shape or dtype does not fit, or (outside jit) an index is out of range.
    """
    checks.check_callable(scorer, "scorer", "(psi, batch) -> logits [B]")
    num_examples = checks.num_examples(train, "train")
    steps = _steps(index, num_steps, num_examples)
    size = num_examples if index is None else index.shape[1]

    def score(batch):
        logits = scorer(params, batch)
        if getattr(logits, "shape", None) != (size,):
            raise ValueError(
                f"`scorer(params, batch)` must return one logit an example, shape ({size},); got "
                f"{getattr(logits, 'shape', type(logits).__name__)}."
            )
        return checks.floating(logits, "scorer(params, batch)")

    if index is None:
        row = jax.nn.softmax(score(train))
        return jnp.broadcast_to(row[None], (steps, size))
    # A backward pass scores a batch again, or it would keep what the scorer computed of all.
    logits = jax.lax.map(jax.checkpoint(lambda row: score(take(train, row))), index)
    return jax.nn.softmax(logits, axis=1)


def _weights(
    rows: jax.Array, groups: Any, index: jax.Array | None, num_steps: int | None
) -> jax.Array:
    """The weights [T, B] of batches, or [T, N], of S rows of shares; see `scheduled_weights`."""
    num_examples = rows.shape[1]
    if groups is not None:
        groups, sizes = _check_groups(groups, num_examples)
        num_examples = groups.shape[0]
        rows = rows / jnp.maximum(sizes, 1).astype(rows.dtype)[None]
    steps = _steps(index, num_steps, num_examples)
    columns = jnp.arange(num_examples)[None] if index is None else index
    if groups is not None:
        columns = groups[columns]
    if len(rows) > steps:
        raise ValueError(
            f"`rows` must be at most as many as the steps, S <= T = {steps}: others would have no "
            f"effect; got {len(rows)}."
        )
    if len(rows) == 1:
        shares = rows[0][columns]
    else:
        before, after = (
            share.astype(rows.dtype)[:, None] * rows[row[:, None], columns]
            for row, share in neighbours(len(rows), steps)
        )
        shares = before + after
    factor = 1.0 if index is None else num_examples / index.shape[1]
    return jnp.broadcast_to(factor * shares, (steps, columns.shape[1]))


def neighbours(num_rows: int, num_steps: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Twice (which row [T], its share [T]): those before and after each step, together 1.

    In whole numbers, so that a row that falls on a step has the share 1 there.
    """
    intervals = max(num_steps - 1, 1)
    lower, rest = np.divmod(np.arange(num_steps) * (num_rows - 1), intervals)
    share = rest / intervals
    return [(lower, 1 - share), (np.minimum(lower + 1, num_rows - 1), share)]


def _steps(index: jax.Array | None, num_steps: int | None, num_examples: int) -> int:
    """T; ValueError unless exactly one of the two tells it, and the index fits."""
    if index is None and num_steps is not None:
        checks.check_count("num_steps", num_steps)
        return num_steps
    if index is None or num_steps is not None:
        raise ValueError(
            "give the batches `index` [T, B], or `num_steps` for all examples at every step; got "
            f"{'neither' if index is None else 'both'}."
        )
    check_index("index", index, "(T, B)", num_examples)
    if 0 in index.shape:
        raise ValueError(f"`index` must have shape (T, B) with T, B >= 1; got {index.shape}.")
    return index.shape[0]


def _check_groups(groups: Any, num_groups: int) -> tuple[jax.Array, jax.Array]:
    """(the groups [N], their sizes [G]); ValueError unless they are those of some examples."""
    dtype = getattr(groups, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or groups.ndim != 1:
        got = type(groups).__name__ if dtype is None else f"{dtype} of shape {groups.shape}"
        raise ValueError(f"`groups` must be an array of integers (N,); got {got}.")
    if not isinstance(groups, jax.core.Tracer):
        found = np.asarray(groups)
        if found.size == 0 or found.min() < 0 or found.max() >= num_groups:
            raise ValueError(
                f"`groups` must be in 0 .. {num_groups - 1}, for {num_groups} weights; got "
                f"{'nothing' if found.size == 0 else f'{found.min()} .. {found.max()}'}."
            )
        empty = np.flatnonzero(np.bincount(found, minlength=num_groups) == 0)
        if empty.size:
            raise ValueError(
                f"every group must have examples, or its weight would be lost; {empty.size} of "
                f"{num_groups} have none, first group {empty[0]}."
            )
    groups = jnp.asarray(groups)
    return groups, jnp.zeros(num_groups, jnp.int32).at[groups].add(1)


def _floating(value: Any, name: str, form: str, ndim: int) -> jax.Array:
    """An array of so many axes; ValueError where it is another or has no entries."""
    array = checks.floating(value, name)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"`{name}` must have shape {form}, without empty axes; got {array.shape}.")
    return array
