"""Training examples whose losses are sums over tokens, with a weight for each token."""

import dataclasses
from collections.abc import Callable, Sequence

import jax

from lljax.types import Batch


@dataclasses.dataclass(frozen=True)
class TokenWeights:
    """N training examples of L tokens, each of which counts by a weight.

    Attributes:
      examples: the training examples with such weights: 1, and 0 where there is no token.
      read: the weights [N, L] of examples of this form.
      texts: the tokens of the n-th example, as they are shown; those that are there, L at most.
    """

    examples: Batch
    read: Callable[[Batch], jax.Array]
    texts: Callable[[int], Sequence[str]]
