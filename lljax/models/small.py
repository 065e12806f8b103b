"""Small models of arrays: linear, multilayer perceptron, convolutional network."""

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from lljax import checks
from lljax.models.activations import ACTIVATIONS, Activation
from lljax.types import LossFn, Params

Kind = Literal["linear", "mlp", "cnn"]


class Examples(NamedTuple):
    """A batch of arrays with what is to be predicted of them."""

    x: jax.Array  # [B, ...] floating
    y: jax.Array  # [B] integer classes, or [B] floating


class Small(nn.Module):
    """[B, ...] -> [B, outputs].

    Attributes:
      kind: "linear"; "mlp", hidden layers; "cnn", 3 x 3 convolutions and mean pooling by 2 on
        [B, H, W] or [B, H, W, C], then a linear layer.
      outputs: numbers that are predicted.
      width: of hidden layers; channels of convolutions.
      num_layers: hidden layers, or convolutions.
      activation: behind each of them. The gradient of a model with "relu" jumps where a unit is
        crossed, and a meta-gradient through many steps does not see these jumps.
    """

    kind: Kind
    outputs: int
    width: int
    num_layers: int
    activation: Activation = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        checks.check_choice("activation", self.activation, Activation)
        activation = ACTIVATIONS[self.activation]
        if self.kind == "cnn":
            x = x[..., None] if x.ndim == 3 else x
            for _ in range(self.num_layers):
                x = activation(nn.Conv(self.width, (3, 3))(x))
                if min(x.shape[1:3]) > 1:
                    x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(self.num_layers if self.kind == "mlp" else 0):
            x = activation(nn.Dense(self.width)(x))
        return nn.Dense(self.outputs)(x)


def loss_of(model: Small, is_classification: bool) -> LossFn:
    """(params, Examples [B]) -> [B]: the cross-entropy in nats, or half of the squared error."""

    def loss_fn(params: Params, batch: Examples) -> jax.Array:
        found = cast(jax.Array, model.apply({"params": params}, batch.x))
        if is_classification:
            return optax.softmax_cross_entropy_with_integer_labels(found, batch.y)
        return 0.5 * jnp.square(found[:, 0] - batch.y)

    return loss_fn


def build_init(model: Small, example: jax.Array) -> Callable[[jax.Array], Params]:
    """key -> theta_0; `example` is [1, ...]."""
    return lambda key: model.init(key, example)["params"]
