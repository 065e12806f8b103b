"""The paper's public PyTorch code, unchanged, behind our names, layouts and token ids.

It is not part of this project: give `learning_law/src` of a clone of
https://github.com/microsoft/LMOps. It needs torch; cvxpy only for its projection.
"""

import contextlib
import importlib.util
import io
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import numpy as np

from benchmarks.checkouts import stand_in
from lljax.data.tokenizer import PAD

THEIR_PAD = 1
UNUSED = ("cvxpy", "transformers", "wandb")  # imported by their files, not needed for gradients


class BatchSizes(NamedTuple):
    """Examples at once: in a training gradient, in per-example gradients, in the desired loss."""

    train: int
    per_example: int
    desired: int


def import_torch():
    """PyTorch, whose float32 products are then as precise as JAX's."""
    import torch

    precisions = {"tensorfloat32": "high", "bfloat16": "medium"}
    ours = jax.config.jax_default_matmul_precision
    torch.set_float32_matmul_precision(precisions.get(ours, "highest"))
    return torch


class PublicCode:
    """Their modules, imported from a checkout into this process, which can be done once.

    Raises:
      SystemExit: torch is missing; says how to get it.
    """

    def __init__(self, source: Path):
        if importlib.util.find_spec("torch") is None:
            sys.exit("This comparison needs PyTorch: pip install torch")
        self.source = source
        sys.path.insert(0, str(self.source))
        stand_in(*UNUSED)
        import opt_policy_trainer
        import perceptron_model
        import transformer_model

        torch = import_torch()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.distributed.init_process_group(
            "nccl" if self.device == "cuda" else "gloo",
            store=torch.distributed.HashStore(),
            rank=0,
            world_size=1,
        )
        assert transformer_model.PAD_TOKEN_ID == THEIR_PAD
        self.torch, self.trainer = torch, opt_policy_trainer
        self._perceptron_model = perceptron_model.PerceptronModel
        self._transformer_model = transformer_model.Transformer

    def perceptron(self, theta: np.ndarray):
        """Their linear model with the weights theta [D]."""
        model = self._perceptron_model({"hidden_size": theta.size})
        model.load_state_dict({"linear.weight": self.torch.tensor(theta)[None]})
        return model.to(self.device)

    def transformer(self, params, *, num_layers: int, num_heads: int):
        """Their Transformer with our parameters."""
        flat = flatten(params)
        vocab_size, width = flat["words"].shape
        config = {
            "vocab_size": vocab_size,
            "max_len": len(flat["positions"]),
            "hidden_size": width,
            "num_head": num_heads,
            "num_layers": num_layers,
        }
        model = self._transformer_model(None, config)
        arrays = {
            theirs: self.torch.tensor(_to_theirs(name, flat[name]))
            for name, theirs in their_names(num_layers).items()
        }
        model.load_state_dict(arrays)
        return model.to(self.device)

    def labelled(self, batch):
        """Our inputs and labels as theirs."""
        return [self.torch.tensor(np.asarray(leaf), device=self.device) for leaf in batch]

    def sequences(self, batch, vocab_size: int):
        """Our tokens [B, L+1] as their inputs and labels."""
        tokens = _their_ids(vocab_size)[np.asarray(batch.tokens)]
        tokens = self.torch.tensor(tokens, device=self.device)
        return [tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()]

    def losses_and_gradient(self, model, batch, weights, *, num_layers: int):
        """Per-example losses and the gradient of their weighted sum, under our names."""
        model.zero_grad()
        weights = self.torch.tensor(weights, device=self.device)
        total, losses = model.compute_loss(*batch, gamma=weights)
        total.backward()
        parameters = dict(model.named_parameters())
        gradient = {
            name: _to_ours(name, parameters[theirs].grad.cpu().numpy())
            for name, theirs in their_names(num_layers).items()
        }
        return losses.detach().cpu().numpy(), gradient

    def meta_gradient(self, model, policy, train, desired, learning_rate, sizes: BatchSizes):
        """(losses at theta_0 .. theta_T, d AUC / d gamma [T, N]).

        Their area counts theta_0 too, which no policy changes, and is divided by T as ours is.
        """
        with tempfile.TemporaryDirectory() as folder:
            settings = types.SimpleNamespace(
                batch_size=sizes.train,
                grad_batch_size=sizes.per_example,
                eval_batch_size=sizes.desired,
                clip_grad=-1,
                warmup_iters=0,
                toy_zero2=False,
                save=folder,
            )
            run = self.trainer.GammaModel(settings, policy.shape[1], policy.shape[0], 0)
            for parameter, row in zip(run.gamma, policy, strict=True):
                parameter.data = self.torch.tensor(row)
            run = run.to(self.device)
            named = {name: leaf.detach() for name, leaf in model.named_parameters()}
            theta = model.params_to_vector(named)
            quiet = io.StringIO()
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                area, losses, _ = run(theta, model, *train, *desired, learning_rate)
                area.backward()
        return np.array(losses), np.stack([row.grad.cpu().numpy() for row in run.gamma])

    def projection(self, rows: np.ndarray) -> tuple[np.ndarray, float]:
        """Their projection of rows [R, N] onto the simplex, by cvxpy, and seconds a row.

        They do the rows of a policy in a pool of processes, one row a process at a time.
        """
        solver = self.trainer.ProjSolver()
        solver.solve((0, self.torch.tensor(rows[0])))  # sets itself up
        started = time.perf_counter()
        projected = [solver.solve((0, self.torch.tensor(row)))[1].numpy() for row in rows]
        return np.stack(projected), (time.perf_counter() - started) / len(rows)


def flatten(params) -> dict[str, np.ndarray]:
    """A tree of parameters as one dict, names joined by slashes."""
    flat = flax.traverse_util.flatten_dict(jax.tree.map(np.asarray, params), sep="/")
    return dict(flat)


def their_names(num_layers: int) -> dict[str, str]:
    """Our name of each array of the Transformer -> theirs."""
    names = {
        "words": "word_embed.weight",
        "positions": "pos_embed.weight",
        "head": "lm_head.weight",
        "final_norm/gain": "ln_end.weight",
        "final_norm/bias": "ln_end.bias",
    }
    for layer in range(num_layers):
        block = f"blocks.{layer}"
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
            names[f"attentions_{layer}/{ours}/kernel"] = f"{block}.attn.w_{theirs}.weight"
        for number, ours in enumerate(("inner", "outer"), 1):
            names[f"feed_forwards_{layer}/{ours}/kernel"] = f"{block}.ffn.mlp_{number}.weight"
        for number, ours in enumerate(("attention", "feed_forward"), 1):
            names[f"{ours}_norms_{layer}/gain"] = f"{block}.ln_{number}.weight"
            names[f"{ours}_norms_{layer}/bias"] = f"{block}.ln_{number}.bias"
    return {ours: f"base_model.{theirs}" for ours, theirs in names.items()}


def _to_theirs(name: str, array: np.ndarray) -> np.ndarray:
    array = array.T if _is_linear(name) else array
    return array[_their_ids(len(array))] if name in ("words", "head") else array


def _to_ours(name: str, array: np.ndarray) -> np.ndarray:
    array = array[_their_ids(len(array))] if name in ("words", "head") else array
    return array.T if _is_linear(name) else array


def _is_linear(name: str) -> bool:
    """Their linear layers keep [out, in]."""
    return name == "head" or name.endswith("kernel")


def _their_ids(vocab_size: int) -> np.ndarray:
    """Their id of each of ours, and the reverse: the two paddings change places."""
    ids = np.arange(vocab_size)
    ids[[PAD, THEIR_PAD]] = THEIR_PAD, PAD
    return ids
