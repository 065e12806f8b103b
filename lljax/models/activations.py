"""The activations of our models, by name."""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
from flax import linen as nn

Activation = Literal["gelu", "relu", "tanh"]

ACTIVATIONS: Mapping[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu": nn.gelu,
    "relu": nn.relu,
    "tanh": nn.tanh,
}
