"""The peers for mini-batches themselves, unchanged, from checkouts that are not part of lljax.

Both go back over a training run step by step from the gradient of a loss at its end, and write the
states that they keep to files. What they import for other purposes is stood in for.
"""

import contextlib
import io
import tempfile
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.checkouts import Sources, how_to_get, import_without_init, stand_in
from benchmarks.contender import Contender, MissingError
from benchmarks.problems import Problem
from benchmarks.public_code import import_torch
from benchmarks.torch_contenders import require_packages, torch_problem

BERGSON_IMPORTS = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "huggingface_hub",
    "natsort",
    "pandas",
    "peft",
    "petname",
    "safetensors",
    "scipy",
    "simple_parsing",
    "transformers",
    "trl",
)


def metagradients_engine(problem: Problem, sources: Sources) -> Contender:
    """The JAX engine of arXiv:2604.08423, with our Transformer as its model.

    It traces its functions anew in every run, and takes what they compile to from JAX's cache on
    disk, which its own set-up turns on too. The derivatives are those in weights that are 1, of
    losses that it divides by B: times each other they are ours.
    """
    if "metagradients_code" not in sources:
        raise MissingError(how_to_get("metagradients_code"))
    from flax import nnx

    stand_in("wandb", "nvtx")
    import_without_init("dataset_metagradients_jax", sources["metagradients_code"] / "src")
    from dataset_metagradients_jax import memory_efficient_trainer, utils

    # What they ask of it means something else in newer versions of JAX.
    mesh_lib = types.SimpleNamespace(
        get_concrete_mesh=lambda: None,
        thread_resources=memory_efficient_trainer.mesh_lib.thread_resources,
    )
    memory_efficient_trainer.mesh_lib = utils.mesh_lib = mesh_lib
    folder = tempfile.TemporaryDirectory()  # lives as long as the function below
    jax.config.update("jax_compilation_cache_dir", f"{folder.name}/compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))

    class Model(nnx.Module):
        def __init__(self):
            self.params = nnx.data(jax.tree.map(nnx.Param, problem.params))
            self.dim = problem.model.width

        def __call__(self, inputs):
            def is_param(node):
                return isinstance(node, nnx.Param)

            params = jax.tree.map(lambda param: param[...], self.params, is_leaf=is_param)
            return problem.model.apply({"params": params}, inputs, method="logits")

    batches = _Batches(problem)
    last = jnp.asarray(problem.desired.tokens)

    def gradient():
        with mesh, contextlib.redirect_stdout(io.StringIO()):
            trainer = memory_efficient_trainer.MemoryEfficientTrainer(
                model=Model(),
                optimizer=problem.optimizer,
                pad_token_id=None,  # random tokens, no padding among them
                batch_size=problem.batch_size,
                checkpoint_dir=f"{folder.name}/states",
            )
            trainer.wandb_prefix = ""
            found = trainer.train(
                batches,
                lambda model: trainer._eval_step(model, last[:, :-1], last[:, 1:]),
                use_wandb=False,
            )
        return np.asarray(found["final_data_weights"]).reshape(problem.policy.shape)

    return Contender(gradient)


class _Batches:
    """The training examples as that engine reads them; every place of every batch has a weight."""

    def __init__(self, problem: Problem):
        self._tokens = np.asarray(problem.train.tokens)
        self._index = np.asarray(problem.batch_index)

    def __len__(self):
        return len(self._index)

    def __iter__(self):
        places = np.arange(self._index.size).reshape(self._index.shape)
        for index, place in zip(self._index, places, strict=True):
            tokens = jnp.asarray(self._tokens[index])
            yield {
                "input_ids": tokens[:, :-1],
                "labels": tokens[:, 1:],
                "index": jnp.asarray(place),
            }


def bergson(save_mode: str) -> Callable[[Problem, Sources], Contender]:
    """bergson's trainer: states are kept at "all" steps, at each "sqrt"(T), or in a "log" tree."""

    def build(problem, sources):
        require_packages("torch", "torchopt")
        if "bergson_code" not in sources:
            raise MissingError(how_to_get("bergson_code"))
        losses_of, module, train, desired, device = torch_problem(problem, sources)
        stand_in(*BERGSON_IMPORTS)
        import_without_init("bergson", sources["bergson_code"] / "bergson")
        torch = import_torch()
        import torchopt
        from bergson.magic.trainer import BackwardState, Trainer

        if torch.distributed.is_initialized():  # for the public code, whose model this may be
            torch.distributed.destroy_process_group()

        class Weighted(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.module = module

            def forward(self, input_ids, targets, example_weight):
                params = dict(self.module.named_parameters())
                return (losses_of(params, [input_ids, targets]) * example_weight).sum()

        class Stream:
            def __init__(self):
                weights = torch.tensor(np.asarray(problem.policy).reshape(-1), device=device)
                self.weights = torch.nn.Parameter(weights)
                self.device = torch.device(device)
                self._index = torch.tensor(np.asarray(problem.batch_index), device=device)

            @property
            def requires_grad(self):
                return self.weights.requires_grad

            @requires_grad.setter
            def requires_grad(self, value):
                self.weights.requires_grad = value

            def __len__(self):
                return len(self._index)

            def __getitem__(self, step):
                size = problem.batch_size
                return {
                    "input_ids": train[0][self._index[step]],
                    "targets": train[1][self._index[step]],
                    "example_weight": self.weights[step * size : (step + 1) * size],
                }

        rates = problem.rates._asdict()
        optimizer = torchopt.adamw(rates.pop("learning_rate"), **rates)
        model = Weighted()
        trainer, first = Trainer.initialize(model, optimizer)

        def at_end(state):
            """The gradient of the desired loss."""
            params = {name: leaf.detach().requires_grad_() for name, leaf in state.params.items()}
            plain = {name.removeprefix("module."): leaf for name, leaf in params.items()}
            loss = losses_of(plain, desired).mean()
            return dict(zip(params, torch.autograd.grad(loss, [*params.values()]), strict=True))

        def gradient():
            quiet = contextlib.redirect_stderr(io.StringIO())
            with tempfile.TemporaryDirectory() as folder, quiet:
                stream = Stream()
                options = {"inplace": True, "save_mode": save_mode}
                end = trainer.train(first.to(device), stream, save_dir=folder, **options)
                count = len(end.params)
                zeros = [torch.zeros_like(leaf) for leaf in end.differentiable_tensors()[count:]]
                cotangent = BackwardState(at_end(end), zeros, torch.zeros_like(stream.weights))
                found = trainer.backward(folder, stream, cotangent, end, **options)
            return found.weight_grads.detach().cpu().numpy().reshape(problem.policy.shape)

        return Contender(gradient)

    return build
