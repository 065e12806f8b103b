"""The Transformer and its meta-gradient against the paper's public PyTorch code.

    python -m benchmarks.reference_transformer --public-code LMOps/learning_law/src

The option names that folder of a clone of https://github.com/microsoft/LMOps. It needs torch, which
lljax does not install. One set of weights and tokens goes through both; the losses, their gradient
and the gradient of the area under the desired-loss curve in the policy are compared in float32,
relative to the largest entry. Exit status 1 if any differs by more than 1e-5.
"""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lljax
from benchmarks.checkouts import add_checkouts
from benchmarks.public_code import BatchSizes, PublicCode, flatten
from lljax.models.transformer import (
    PAD,
    TokenSequences,
    Transformer,
    init_params,
    sequence_loss,
)

TOLERANCE = 1e-5
VOCAB, CONTEXT, WIDTH, HEADS, LAYERS = 199, 16, 32, 4, 2
NUM_TRAIN, NUM_DESIRED, NUM_STEPS, RATE = 16, 8, 10, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_checkouts(parser, ["public_code"], required=True)
    reference = PublicCode(parser.parse_args().public_code)
    print(f"lljax (jax {jax.__version__}) against torch {reference.torch.__version__}, float32")
    missed = False
    for initialization in ("torch", "scaled"):
        for name, difference in compare(reference, initialization):
            print(f"{initialization:<8}{name:<36}{difference:.1e}", flush=True)
            missed |= not difference <= TOLERANCE
    sys.exit(f"more than {TOLERANCE:.0e}" if missed else 0)


def compare(reference, initialization):
    """Yields what was compared, and the largest relative difference."""
    model = Transformer(
        VOCAB,
        CONTEXT,
        width=WIDTH,
        num_layers=LAYERS,
        num_heads=HEADS,
        attention_scale="width",
        initialization=initialization,
    )
    loss_fn = sequence_loss(model)
    params = with_random_norms(init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    train, desired = random_sequences(rng, NUM_TRAIN), random_sequences(rng, NUM_DESIRED)
    policy = rng.dirichlet(np.ones(NUM_TRAIN), NUM_STEPS).astype(np.float32)
    their_model = reference.transformer(params, num_layers=LAYERS, num_heads=HEADS)
    their_train, their_desired = (reference.sequences(b, VOCAB) for b in (train, desired))

    def losses_and_gradient(params):
        losses, pull_back = jax.vjp(lambda p: loss_fn(p, train), params)
        return losses, pull_back(jnp.asarray(policy[0]))[0]

    losses, gradient = jax.jit(losses_and_gradient)(params)
    their_losses, their_gradient = reference.losses_and_gradient(
        their_model, their_train, policy[0], num_layers=LAYERS
    )
    yield "losses", relative(losses, their_losses)
    gradient = flatten(gradient)
    assert gradient.keys() == their_gradient.keys()
    yield (
        "gradient, the worst array",
        max(relative(gradient[name], their_gradient[name]) for name in gradient),
    )
    loss_auc = jax.value_and_grad(lljax.build_loss_auc(loss_fn, optax.sgd(RATE)), has_aux=True)
    (_, info), meta = jax.jit(loss_auc)(policy, params, train, desired)
    sizes = BatchSizes(NUM_TRAIN, NUM_TRAIN, NUM_DESIRED)
    their_curve, their_meta = reference.meta_gradient(
        their_model, policy, their_train, their_desired, RATE, sizes
    )
    yield f"desired losses, T = {NUM_STEPS}", relative(info.desired_losses, their_curve)
    yield f"meta-gradient, T = {NUM_STEPS}", relative(meta, their_meta)


def relative(actual, expected):
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


def with_random_norms(params):
    """Gains and biases that are not 1 and 0."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: (
            leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32) if leaf.ndim == 1 else leaf
        ),
        params,
    )


def random_sequences(rng, size):
    tokens = rng.integers(2, VOCAB, (size, CONTEXT + 1), np.int32)
    lengths = rng.integers(2, CONTEXT + 2, size)
    lengths[: size // 2] = CONTEXT + 1
    tokens[np.arange(CONTEXT + 1) >= lengths[:, None]] = PAD
    return TokenSequences(tokens)


if __name__ == "__main__":
    main()
