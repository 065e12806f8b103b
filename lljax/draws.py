"""Mini-batches drawn by the weights of examples, and the weights that make them exact.

Where weights differ much, batches that are drawn uniformly hold little that counts: few places
carry all of the weight, and the training run is one with a small batch. Drawn by weight, every
place counts alike. A share of the places is still drawn uniformly, so that an example without much
weight is seen, and its slope known.
"""

import jax
import jax.numpy as jnp

from lljax import checks
from lljax.policy import neighbours
from lljax.types import StepInputs


def draw_batches(
    shares: jax.Array, key: jax.Array, *, num_steps: int, batch_size: int, explore: float = 0.5
) -> StepInputs:
    """Batches of a training run, drawn from a distribution over the examples.

      w_t = (1 - a) shares_s + a shares_{s+1},  s + a = t (S - 1) / (T - 1)
      q_t = (1 - e) w_t + e / N,  n = index_{t,b} ~ q_t,  gamma_{t,b} = w_{t,n} / (B q_{t,n})

    A batch's gradient is an unbiased estimate of that of all examples with the weights w_t, and a
    batch sums to 1 in the mean. With `explore` 0 every weight is 1 / B: training as usual on data
    that are drawn by weight. With 1 the batches are uniform, and the weights those of
    `static_weights` or `scheduled_weights`. The derivative is that of the weights, at the batches
    that were drawn.

    >>> import jax, jax.numpy as jnp, lljax
    >>> shares = jnp.array([0.5, 0.5, 0.0])
    >>> inputs = lljax.draw_batches(shares, jax.random.key(0), num_steps=2, batch_size=4, explore=0)
    >>> inputs.weights[0].tolist(), bool((inputs.index < 2).all())
    ([0.25, 0.25, 0.25, 0.25], True)

    Args:
      shares: [N], or S rows [S, N] that are interpolated over the steps; floating, each on the
        simplex.
      key: of `jax.random`, draws the batches.
      num_steps: T.
      batch_size: B.
      explore: e in [0, 1], the share of the places that is drawn uniformly. No weight is above
        1 / ((1 - e) B), and the weight 0 has a slope only where e > 0.

    Returns:
      StepInputs(weights [T, B], index [T, B] int32). Memory: a few arrays [T, B] and [S, N]. With
      float32 and more than some 10^6 examples the smallest shares are drawn a little too often or
      too seldom.

    Raises:
      ValueError: a shape or dtype does not fit, or a number is out of range.
    """
    shares = checks.floating(shares, "shares")
    if shares.ndim == 1:
        shares = shares[None]
    if shares.ndim != 2 or shares.size == 0:
        raise ValueError(f"`shares` must have shape (N,) or (S, N); got {shares.shape}.")
    checks.check_count("num_steps", num_steps)
    checks.check_count("batch_size", batch_size)
    checks.check_number("explore", explore, "a number in [0, 1]", lambda x: 0 <= x <= 1)
    num_rows, num_examples = shares.shape
    if num_rows > num_steps:
        raise ValueError(
            f"`shares` must have at most as many rows as there are steps, {num_steps}: others "
            f"would have no effect; got {num_rows}."
        )
    which, where, explores, anywhere = jax.random.split(key, 4)
    shape = num_steps, batch_size
    (lower, _), (upper, upper_share) = neighbours(num_rows, num_steps)
    takes_upper = jax.random.uniform(which, shape) < upper_share.astype(shares.dtype)[:, None]
    row = jnp.where(takes_upper, upper[:, None], lower[:, None])
    by_weight = _draw(jax.lax.stop_gradient(shares), row, jax.random.uniform(where, shape))
    uniform = jax.random.randint(anywhere, shape, 0, num_examples)
    index = jnp.where(jax.random.uniform(explores, shape) < explore, uniform, by_weight)
    return StepInputs(draw_weights(shares, index, explore=explore), index)


def draw_weights(shares: jax.Array, index: jax.Array, *, explore: float) -> jax.Array:
    """The weights of `draw_batches` for batches that were drawn, for their derivative.

    Args:
      shares, explore: as in `draw_batches`; shares are [S, N].
      index: [T, B].

    Returns:
      [T, B], of the dtype of `shares`.
    """
    weight = jnp.zeros(index.shape, shares.dtype)
    for rows, share in neighbours(shares.shape[0], index.shape[0]):
        weight += share.astype(shares.dtype)[:, None] * shares[rows[:, None], index]
    drawn_at = (1 - explore) * jax.lax.stop_gradient(weight) + explore / shares.shape[1]
    # Of an example without weight that rounding drew all the same.
    tiny = jnp.finfo(shares.dtype).tiny
    return weight / (index.shape[1] * jnp.maximum(drawn_at, tiny))


def _draw(shares: jax.Array, row: jax.Array, uniform: jax.Array) -> jax.Array:
    """An example from the distribution of each place's row, by its inverse: [T, B] int32."""
    totals = jnp.cumsum(shares, axis=1)
    last = shares.shape[1] - 1 - jnp.argmax(shares[:, ::-1] > 0, axis=1)  # with any weight

    def of_row(total, last_one):
        found = jnp.searchsorted(total, uniform * total[-1], side="right")
        return jnp.minimum(found, last_one).astype(jnp.int32)

    if shares.shape[0] == 1:
        return of_row(totals[0], last[0])

    # One row after the other: [T, B] at a time.
    def take(drawn, item):
        number, total, last_one = item
        return jnp.where(row == number, of_row(total, last_one), drawn), None

    numbers = jnp.arange(shares.shape[0])
    return jax.lax.scan(take, jnp.zeros(row.shape, jnp.int32), (numbers, totals, last))[0]
