"""Learning policies gamma [T, N]: one probability distribution over the examples a step (§2)."""

import jax
import jax.numpy as jnp

from lljax import checks


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
