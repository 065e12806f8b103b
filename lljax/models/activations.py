"""The activations of the models, by name."""

from collections.abc import Callable, Mapping
from typing import Literal

import jax

Activation = Literal["gelu", "relu", "tanh"]
"""gelu: by its approximation with tanh."""

ACTIVATIONS: Mapping[Activation, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,
    "relu": jax.nn.relu,
    "tanh": jax.nn.tanh,
}
