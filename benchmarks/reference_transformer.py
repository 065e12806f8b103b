"""The Transformer and its meta-gradient against the paper's public PyTorch code.

    python -m benchmarks.reference_transformer LMOps/learning_law/src

The argument is that folder of a clone of https://github.com/microsoft/LMOps. It needs torch, which
lljax does not install. One set of weights and tokens goes through both; the losses, their gradient
and the gradient of the area under the desired-loss curve in the policy are compared in float32,
relative to the largest entry. Exit status 1 if any differs by more than 1e-5.
"""

import argparse
import contextlib
import importlib.util
import io
import sys
import tempfile
import types
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lljax
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
THEIR_PAD = 1
UNUSED = ("cvxpy", "transformers", "wandb")  # imported by their files, not needed here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="learning_law/src of a clone of microsoft/LMOps")
    source = parser.parse_args().source
    if importlib.util.find_spec("torch") is None:
        sys.exit("This comparison needs PyTorch: pip install torch")
    if not (source / "opt_policy_trainer.py").is_file():
        sys.exit(f"{source} has no opt_policy_trainer.py. Give learning_law/src of a clone.")
    sys.path.insert(0, str(source.resolve()))
    reference = Reference()
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
    train, desired = random_tokens(rng, NUM_TRAIN), random_tokens(rng, NUM_DESIRED)
    policy = rng.dirichlet(np.ones(NUM_TRAIN), NUM_STEPS).astype(np.float32)
    reference.load(flatten(params))

    def losses_and_gradient(params):
        losses, pull_back = jax.vjp(lambda p: loss_fn(p, TokenSequences(train)), params)
        return losses, pull_back(jnp.asarray(policy[0]))[0]

    losses, gradient = jax.jit(losses_and_gradient)(params)
    their_losses, their_gradient = reference.losses_and_gradient(train, policy[0])
    yield "losses", relative(losses, their_losses)
    gradient = flatten(gradient)
    assert gradient.keys() == their_gradient.keys()
    yield (
        "gradient, the worst array",
        max(relative(gradient[name], their_gradient[name]) for name in gradient),
    )
    loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(RATE))
    batches = (TokenSequences(train), TokenSequences(desired))
    (_, info), meta = jax.jit(jax.value_and_grad(loss_auc, has_aux=True))(policy, params, *batches)
    their_curve, their_meta = reference.meta_gradient(policy, train, desired)
    yield f"desired losses, T = {NUM_STEPS}", relative(info.desired_losses, their_curve)
    yield f"meta-gradient, T = {NUM_STEPS}", relative(meta, their_meta)


def relative(actual, expected):
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


def flatten(params):
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {name: np.asarray(leaf) for name, leaf in flat.items()}


def with_random_norms(params):
    """Gains and biases that are not 1 and 0."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: (
            leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32) if leaf.ndim == 1 else leaf
        ),
        params,
    )


def random_tokens(rng, size):
    tokens = rng.integers(2, VOCAB, (size, CONTEXT + 1), np.int32)
    lengths = rng.integers(2, CONTEXT + 2, size)
    lengths[: size // 2] = CONTEXT + 1
    tokens[np.arange(CONTEXT + 1) >= lengths[:, None]] = PAD
    return tokens


class Reference:
    """Their model, loss and meta-gradient, unchanged; names, layouts and ids translated."""

    def __init__(self):
        for name in UNUSED:
            if importlib.util.find_spec(name) is None:
                sys.modules[name] = Anything(name)
        import opt_policy_trainer
        import torch
        import transformer_model

        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
        assert transformer_model.PAD_TOKEN_ID == THEIR_PAD
        self.torch, self.trainer = torch, opt_policy_trainer
        config = {
            "vocab_size": VOCAB,
            "max_len": CONTEXT,
            "hidden_size": WIDTH,
            "num_head": HEADS,
            "num_layers": LAYERS,
        }
        self.model = transformer_model.Transformer(None, config)
        # Their id of each of ours, and the reverse: the two paddings change places.
        self.ids = np.arange(VOCAB)
        self.ids[[PAD, THEIR_PAD]] = THEIR_PAD, PAD

    def load(self, params):
        arrays = {
            their_name: self.torch.tensor(self.to_theirs(name, params[name]))
            for name, their_name in their_names().items()
        }
        self.model.load_state_dict(arrays)

    def to_theirs(self, name, array):
        array = array.T if is_linear(name) else array
        return array[self.ids] if name in ("words", "head") else array

    def to_ours(self, name, array):
        array = array[self.ids] if name in ("words", "head") else array
        return array.T if is_linear(name) else array

    def inputs_and_labels(self, tokens):
        tokens = self.torch.tensor(self.ids[tokens])
        return tokens[:, :-1].clone(), tokens[:, 1:].clone()

    def losses_and_gradient(self, tokens, weights):
        self.model.zero_grad()
        total, losses = self.model.compute_loss(
            *self.inputs_and_labels(tokens), gamma=self.torch.tensor(weights)
        )
        total.backward()
        parameters = dict(self.model.named_parameters())
        gradient = {
            name: self.to_ours(name, parameters[their_name].grad.numpy())
            for name, their_name in their_names().items()
        }
        return losses.detach().numpy(), gradient

    def meta_gradient(self, policy, train, desired):
        """Their sum counts theta_0 too, which no policy changes, and is divided by T as ours."""
        with tempfile.TemporaryDirectory() as folder:
            settings = types.SimpleNamespace(
                batch_size=len(train),
                grad_batch_size=len(train),
                eval_batch_size=len(desired),
                clip_grad=-1,
                warmup_iters=0,
                toy_zero2=False,
                save=folder,
            )
            run = self.trainer.GammaModel(settings, policy.shape[1], policy.shape[0], 0)
            for parameter, row in zip(run.gamma, policy, strict=True):
                parameter.data = self.torch.tensor(row)
            theta = self.model.params_to_vector(
                {name: leaf.detach() for name, leaf in self.model.named_parameters()}
            )
            quiet = io.StringIO()
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                area, losses, _ = run(
                    theta,
                    self.model,
                    *self.inputs_and_labels(train),
                    *self.inputs_and_labels(desired),
                    RATE,
                )
                area.backward()
        return np.array(losses), np.stack([row.grad.numpy() for row in run.gamma])


def is_linear(name):
    """Their linear layers keep [out, in]."""
    return name == "head" or name.endswith("kernel")


class Anything(types.ModuleType):
    """Stands in for a module of which only names are imported."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def their_names():
    """Our name of each array -> theirs."""
    names = {
        "words": "word_embed.weight",
        "positions": "pos_embed.weight",
        "head": "lm_head.weight",
        "final_norm/gain": "ln_end.weight",
        "final_norm/bias": "ln_end.bias",
    }
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
            names[f"attentions_{layer}/{ours}/kernel"] = f"{block}.attn.w_{theirs}.weight"
        for number, ours in enumerate(("inner", "outer"), 1):
            names[f"feed_forwards_{layer}/{ours}/kernel"] = f"{block}.ffn.mlp_{number}.weight"
        for number, ours in enumerate(("attention", "feed_forward"), 1):
            names[f"{ours}_norms_{layer}/gain"] = f"{block}.ln_{number}.weight"
            names[f"{ours}_norms_{layer}/bias"] = f"{block}.ln_{number}.bias"
    return {ours: f"base_model.{theirs}" for ours, theirs in names.items()}


if __name__ == "__main__":
    main()
