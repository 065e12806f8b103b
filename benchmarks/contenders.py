"""The ways to one meta-gradient that a user of JAX could pick, and the registry of all ways.

A builder takes a Problem and gives a Contender; all compute the same gradient of the same AUC.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import jax
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lljax
from benchmarks import torch_contenders
from benchmarks.contender import Contender, MissingError, compiled
from benchmarks.problems import LEARNING_RATE, Problem

INNER_GRADIENT = "inner gradient"


def lljax_way(**strategy) -> Callable[[Problem], Contender]:
    """`build_loss_auc` with these options."""

    def build(problem):
        loss_auc = lljax.build_loss_auc(problem.loss_fn, optax.sgd(LEARNING_RATE), **strategy)
        return compiled(loss_auc, problem)

    return build


def _sharded(build: Callable[[Problem], Contender]) -> Callable[[Problem], Contender]:
    """The same with the training examples spread over all devices."""

    def build_sharded(problem):
        mesh = jax.make_mesh((jax.device_count(),), ("n",), axis_types=(AxisType.Auto,))

        def place(tree, *axes):
            return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))

        return build(
            problem._replace(
                policy=place(problem.policy, None, "n"),
                params=place(problem.params),
                train=place(problem.train, "n"),
                desired=place(problem.desired),
            )
        )

    return build_sharded


def _scan(scan: Callable, gradient_of: Callable | None = None) -> Callable[[Problem], Contender]:
    """The loss AUC as a user without lljax would write it, over the given kind of scan."""

    def build(problem):
        optimizer = optax.sgd(LEARNING_RATE)
        gradient = (gradient_of or _plain_gradient)(problem.loss_fn)

        def loss_auc(policy, params, train, desired):
            def step(state, row):
                params, opt_state = state
                updates, opt_state = optimizer.update(
                    gradient(params, row, train), opt_state, params
                )
                params = optax.apply_updates(params, updates)
                return (params, opt_state), problem.loss_fn(params, desired).mean()

            _, losses = scan(step, (params, optimizer.init(params)), policy)
            return losses.mean(), losses

        return compiled(loss_auc, problem)

    return build


def _plain_gradient(loss_fn):
    return lambda params, row, train: jax.grad(lambda p: row @ loss_fn(p, train))(params)


def _checkpointed_scan(step, state, policy, keep=None):
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False, policy=keep), state, policy)


# With the inner gradients kept beside the states only the desired loss is computed twice.
_mixed_mode_scan = functools.partial(
    _checkpointed_scan, keep=jax.checkpoint_policies.save_only_these_names(INNER_GRADIENT)
)


def _equinox_scan(step, state, policy):
    import equinox.internal

    return equinox.internal.scan(step, state, policy, kind="checkpointed")


def _equinox(problem: Problem) -> Contender:
    if importlib.util.find_spec("equinox") is None:
        raise MissingError("pip install equinox")
    return _scan(_equinox_scan)(problem)


def _mixed_mode_gradient(loss_fn):
    """The weighted gradient with a forward-mode pass as its reverse rule (arXiv:2505.00793)."""

    def gradient_and_losses(params, row, train):
        losses, pull_back = jax.vjp(lambda p: loss_fn(p, train), params)
        return pull_back(row)[0], losses

    @jax.custom_vjp
    def gradient(params, row, train):
        return gradient_and_losses(params, row, train)[0]

    def forward(*arguments):
        return gradient(*arguments), arguments

    def backward(arguments, direction):
        params, row, train = arguments
        _, (curvature, slopes) = jax.jvp(
            lambda p: gradient_and_losses(p, row, train), (params,), (direction,)
        )
        return curvature, slopes, None

    gradient.defvjp(forward, backward)
    return lambda *arguments: checkpoint_name(gradient(*arguments), INNER_GRADIENT)


def _without_source(build: Callable[[Problem], Contender]):
    return lambda problem, source: build(problem)


HOST_DEVICES = ", a device a core"  # ends the names of contenders that use them
CONTENDERS: dict[str, Callable[[Problem, Path | None], Contender]] = {
    "lljax": _without_source(lljax_way()),
    f"lljax{HOST_DEVICES}": _without_source(_sharded(lljax_way())),
    "lljax, micro-batches of 8": _without_source(lljax_way(microbatch_size=8)),
    "lljax, micro-batches of 16": _without_source(lljax_way(microbatch_size=16)),
    "lljax, recomputed": _without_source(lljax_way(memory=lljax.RecomputeStates())),
    "scan": _without_source(_scan(jax.lax.scan)),
    f"scan{HOST_DEVICES}": _without_source(_sharded(_scan(jax.lax.scan))),
    "scan, jax.checkpoint": _without_source(_scan(_checkpointed_scan)),
    "equinox, checkpointed": _without_source(_equinox),
    "mixed-mode VJP": _without_source(_scan(_mixed_mode_scan, _mixed_mode_gradient)),
    "PyTorch": torch_contenders.plain,
    "TorchOpt": torch_contenders.torchopt,
    "public code, one batch": torch_contenders.public_code(script_batches=False),
    "public code, its batches": torch_contenders.public_code(script_batches=True),
}
"""Name -> builder; it raises MissingError for what is not installed."""


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def fits(name: str, problem: str) -> bool:
    """Whether a contender makes sense for a problem."""
    on_host_devices = name.endswith(HOST_DEVICES)
    if problem == "perceptron":
        return "micro-batches" not in name and (not on_host_devices or _on_cpu())
    if on_host_devices:
        return False  # its matrix products use all cores anyway
    return name != "public code, its batches"  # 64 examples are less than one of its batches
