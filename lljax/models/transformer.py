"""The paper's Transformer language model, and its loss as one number a sequence (§4.1).

A causal pre-norm decoder: RMS norms with gain and bias, multi-head attention, feed-forward layers
of four times the width, learned positions, an output head of its own, no other bias. The
public code divides attention scores by the square root of the width instead of the head's width
and initialises as PyTorch does; both can be chosen.

Axis letters beside those of `lljax.types`: L positions, D width, H heads, V vocabulary.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from lljax import checks
from lljax.data.tokenizer import PAD
from lljax.models.activations import ACTIVATIONS, Activation
from lljax.types import LossFn, Params

AttentionScale = Literal["head", "width"]
Initialization = Literal["scaled", "torch"]


class TokenSequences(NamedTuple):
    """A batch of sequences: every token but the first is a target."""

    tokens: jax.Array  # [B, L+1] integer, PAD behind the last one
    weights: jax.Array | None = None  # [B, L] floating, by which the targets' losses are multiplied


class RMSNorm(nn.Module):
    """x / rms(x), with a gain and a bias: [B, L, D] -> [B, L, D]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gain = self.param("gain", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        mean_square = jnp.mean(x**2, axis=-1, keepdims=True)
        # Only a vector of zeros, where the root has no derivative, feels the tiny number.
        return gain[None, None] * x * jax.lax.rsqrt(mean_square + 1e-12) + bias[None, None]


class Attention(nn.Module):
    """Causal multi-head attention, scores divided by sqrt(scale): [B, L, D] -> [B, L, D]."""

    num_heads: int
    scale: int
    kernel: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, length = x.shape[-1], x.shape[-2]

        def project(name: str, inputs: jax.Array) -> jax.Array:
            return nn.Dense(width, use_bias=False, kernel_init=self.kernel, name=name)(inputs)

        query, key, value = (
            project(name, x).reshape(*x.shape[:-1], self.num_heads, -1)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * self.scale**-0.5
        past = jnp.tril(jnp.ones((1, 1, length, length), bool))
        weights = jax.nn.softmax(jnp.where(past, scores, jnp.finfo(x.dtype).min))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return project("output", mixed.reshape(x.shape))


class FeedForward(nn.Module):
    """Two layers with an activation between, four times as wide inside."""

    kernel: nn.initializers.Initializer
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        inside = nn.Dense(4 * width, use_bias=False, kernel_init=self.kernel, name="inner")(x)
        return nn.Dense(width, use_bias=False, kernel_init=self.kernel, name="outer")(
            self.activation(inside)
        )


class Transformer(nn.Module):
    """Tokens [B, L+1] -> the losses [B, L] of predicting each one from those before it, nats.

    Attributes:
      vocab_size: V.
      context: the largest L.
      width: D, a multiple of `num_heads`.
      num_layers: blocks of attention and feed-forward.
      num_heads: H.
      attention_scale: scores are divided by the square root of the width of a "head" (D / H), or
        of the whole "width" as in the public code.
      initialization: "scaled" (kernels of variance 1 / fan-in, embeddings of deviation 0.02), or
        "torch": PyTorch's defaults, as in the public code (a third of that variance, uniform;
        embeddings of deviation 1).
      loss_chunk: positions whose V logits are held at once; those of the whole batch when None.
      activation: of the feed-forward layers; "relu" in the paper.
    """

    vocab_size: int
    context: int
    width: int = 128
    num_layers: int = 2
    num_heads: int = 8
    attention_scale: AttentionScale = "head"
    initialization: Initialization = "scaled"
    loss_chunk: int | None = None
    activation: Activation = "relu"

    def setup(self) -> None:
        self._check_attributes()
        if self.initialization == "torch":
            kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
            embedding = nn.initializers.normal(1.0)
        else:
            kernel = nn.initializers.lecun_normal()
            embedding = nn.initializers.normal(0.02)
        scale = self.width // (self.num_heads if self.attention_scale == "head" else 1)
        self.words = self.param("words", embedding, (self.vocab_size, self.width), jnp.float32)
        self.positions = self.param("positions", embedding, (self.context, self.width), jnp.float32)
        self.attention_norms = [RMSNorm() for _ in range(self.num_layers)]
        self.attentions = [Attention(self.num_heads, scale, kernel) for _ in range(self.num_layers)]
        self.feed_forward_norms = [RMSNorm() for _ in range(self.num_layers)]
        self.feed_forwards = [
            FeedForward(kernel, ACTIVATIONS[self.activation]) for _ in range(self.num_layers)
        ]
        self.final_norm = RMSNorm()
        self.head = self.param("head", kernel, (self.width, self.vocab_size), jnp.float32)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        hidden = self.hidden(inputs).reshape(-1, self.width)
        losses = token_losses(hidden, self.head, targets.reshape(-1), self.loss_chunk)
        return losses.reshape(targets.shape)

    def logits(self, inputs: jax.Array) -> jax.Array:
        """[B, L] -> [B, L, V]."""
        return self.hidden(inputs) @ self.head

    def hidden(self, inputs: jax.Array) -> jax.Array:
        """[B, L] -> [B, L, D]."""
        length = inputs.shape[-1]
        if length > self.context:
            raise ValueError(
                f"`tokens` have {length} inputs a sequence (all but the last token), but the "
                f"model's `context` is {self.context}."
            )
        x = self.words[inputs] + self.positions[None, :length]
        for layer in range(self.num_layers):
            x = x + self.attentions[layer](self.attention_norms[layer](x))
            x = x + self.feed_forwards[layer](self.feed_forward_norms[layer](x))
        return self.final_norm(x)

    def _check_attributes(self) -> None:
        for name in ("vocab_size", "context", "width", "num_heads", "loss_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        if self.width % self.num_heads:
            raise ValueError(
                f"`width` must be a multiple of `num_heads`; got {self.width} and {self.num_heads}."
            )
        choices = {
            "attention_scale": AttentionScale,
            "initialization": Initialization,
            "activation": Activation,
        }
        for name, choice in choices.items():
            checks.check_choice(name, getattr(self, name), choice)


def token_losses(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, chunk: int | None = None
) -> jax.Array:
    """Cross-entropies of softmax(hidden @ head) at the targets.

    With a chunk size at most `chunk` V logits exist at once, in the derivatives too, for the price
    of computing them twice.

    Args:
      hidden: [M, D].
      head: [D, V].
      targets: [M] integer.
      chunk: positions at once; M when None.

    Returns:
      [M], nats.
    """

    def losses_of(piece):
        hidden, targets = piece
        # The targets' logits are computed again: D numbers each, where reading them from the
        # product would be one more pass over V numbers, in every derivative.
        at_targets = jnp.sum(hidden * head.T[targets], axis=-1)
        return jax.nn.logsumexp(hidden @ head, axis=-1) - at_targets

    count = hidden.shape[0]
    if chunk is None or chunk >= count:
        return losses_of((hidden, targets))
    filling = -count % chunk
    pieces = (
        jnp.pad(hidden, ((0, filling), (0, 0))).reshape(-1, chunk, hidden.shape[1]),
        jnp.pad(targets, (0, filling)).reshape(-1, chunk),
    )
    return jax.lax.map(jax.checkpoint(losses_of), pieces).reshape(-1)[:count]


def sequence_loss(model: Transformer) -> LossFn:
    """The loss function of a model: the mean over each sequence's targets that are not PAD.

      l_n(theta) = 1/|x_n| sum_l -log p(x_{n,l} | x_{n,<l})   (§4.1)

    Returns:
      (params, TokenSequences [B, L+1]) -> [B], nats a token; 0 for a sequence without targets.
    """

    def loss_fn(params: Params, batch: TokenSequences) -> jax.Array:
        losses = cast(jax.Array, model.apply({"params": params}, batch.tokens))
        present = (batch.tokens[:, 1:] != PAD).astype(losses.dtype)
        if batch.weights is not None:
            losses = losses * batch.weights.astype(losses.dtype)
        return jnp.sum(losses * present, axis=-1) / jnp.maximum(jnp.sum(present, axis=-1), 1)

    return loss_fn


def init_params(model: Transformer, key: jax.Array) -> Params:
    """theta_0, float32: a dict of arrays."""
    tokens = jnp.zeros((1, model.context + 1), jnp.int32)
    return jax.jit(model.init)(key, tokens)["params"]
