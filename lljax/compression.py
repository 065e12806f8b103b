"""What a desired-loss curve is worth: as a lossless compressor, and as time saved (§4.3, Eq. 9)."""

import math

import jax
import jax.numpy as jnp

from lljax import checks


def compression_ratio(desired_losses: jax.Array, vocab_size: int) -> jax.Array:
    """How many times shorter the desired data become when the model in training encodes them.

      CR = T log|V| / sum_{t=1..T} L(theta_t) = log|V| / AUC   (§4.3, both in the same unit)

    Numerator and denominator are in nats here, which is bits over bits. Figure 4 of the paper
    fits log2|V| over a loss in nats instead (inferred), so its numbers are larger by
    1 / ln 2 = 1.4427. `build_coder` makes the compressor: bytes, and what they are coded from.

    >>> import jax.numpy as jnp
    >>> from lljax.compression import compression_ratio
    >>> desired_losses = jnp.log(jnp.array([8.0, 4.0, 2.0, 2.0]))  # 3 bits, then 2, 1 and 1
    >>> round(float(compression_ratio(desired_losses, vocab_size=8)), 4)
    2.25

    Args:
      desired_losses: [T+1], L(theta_0) .. L(theta_T), nats a token; L(theta_0) is not counted.
      vocab_size: |V|, at least 2; the number of classes where the data are no text.

    Returns:
      [], a pure number. Cost: O(T).

    Raises:
      ValueError: `desired_losses` is not a vector with T >= 1, or `vocab_size` is below 2.

    Reference: arXiv:2402.17759, section 4.3.
    """
    desired_losses = _check_curve(desired_losses, "desired_losses")
    checks.check_count("vocab_size", vocab_size, least=2, cure=" (or log|V| is 0)")
    return math.log(vocab_size) / jnp.mean(desired_losses[1:])


def acceleration_ratio(conventional: jax.Array, accelerated: jax.Array) -> jax.Array:
    """How many times fewer steps a policy needs to reach conventional learning's final loss.

      AR = T / min{t >= 1 : L_accelerated(theta_t) <= L_conventional(theta_T)}   (Eq. 9)

    >>> import jax.numpy as jnp
    >>> from lljax.compression import acceleration_ratio
    >>> conventional = jnp.array([5.0, 4.0, 3.0, 2.5, 2.0])
    >>> accelerated = jnp.array([5.0, 3.0, 2.0, 1.5, 1.2])
    >>> float(acceleration_ratio(conventional, accelerated))
    2.0

    Args:
      conventional: [T+1], L(theta_0) .. L(theta_T) of conventional learning, nats.
      accelerated: [T+1], the same of the policy in question.

    Returns:
      [], between 1 and T. NaN where the loss is never reached, and where the conventional run
      does not end in a finite loss. 1 for two curves that are the same at every step. Else the
      search starts at t = 1: where the untrained model is already as good, which means that
      conventional training gained nothing, AR is T if one step keeps it so. A dip below counts
      even where the loss rises again, of the conventional curve too. Cost: O(T).

    Raises:
      ValueError: the arguments are not two vectors of the same length, T >= 1.

    Reference: arXiv:2402.17759, section 4.4.
    """
    conventional = _check_curve(conventional, "conventional")
    accelerated = _check_curve(accelerated, "accelerated")
    if conventional.shape != accelerated.shape:
        raise ValueError(
            f"`conventional` and `accelerated` must cover the same T steps, shape (T+1,); got "
            f"{conventional.shape} and {accelerated.shape}."
        )
    target = conventional[-1]
    reached = (accelerated[1:] <= target) & jnp.isfinite(target)
    num_steps = reached.size
    # A curve that rises at its end would accelerate itself.
    same = jnp.all(conventional == accelerated)
    first = jnp.where(same, num_steps, 1 + jnp.argmax(reached))
    return jnp.where(jnp.any(reached), num_steps / first.astype(target.dtype), jnp.nan)


def _check_curve(losses: jax.Array, name: str) -> jax.Array:
    """A floating curve [T+1] with T >= 1; ValueError when it is anything else."""
    losses = checks.floating(losses, name)
    if losses.ndim != 1 or losses.size < 2:
        cure = " Use jax.vmap over runs." if losses.ndim == 2 else ""
        raise ValueError(
            f"`{name}` must have shape (T+1,) with T >= 1, the losses at t = 0 .. T; got "
            f"{losses.shape}.{cure}"
        )
    return losses
