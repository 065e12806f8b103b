"""The ways to one meta-gradient that a user of JAX could pick, and the registry of all ways.

A builder takes a Problem and gives a Contender; all compute the same gradient of the same AUC.
"""

import functools
import importlib.util
from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import lljax
from benchmarks import dataset_metagradients, peer_engines, torch_contenders
from benchmarks.checkouts import Sources, how_to_get
from benchmarks.contender import Contender, MissingError, compiled
from benchmarks.problems import Problem, take

INNER_GRADIENT = "inner gradient"


def lljax_way(**strategy) -> Callable[[Problem], Contender]:
    """`build_loss_auc` with these options."""

    def build(problem):
        loss_auc = lljax.build_loss_auc(
            problem.loss_fn, problem.optimizer, eval_every=problem.eval_every, **strategy
        )

        def of_weights(weights, params, train, desired, index=None):
            return loss_auc(lljax.StepInputs(weights, index), params, train, desired)

        return compiled(of_weights, problem)

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
        gradient_fn = (gradient_of or _plain_gradient)(problem.loss_fn)

        def loss_auc(policy, params, train, desired, index=None):
            def step(state, step):
                row, places = step
                gradient = gradient_fn(state[0], row, take(train, places))
                params, _ = state = problem.update(gradient, state)
                loss = None if problem.only_end else problem.loss_fn(params, desired).mean()
                return state, loss

            start = params, problem.optimizer.init(params)
            (params, _), losses = scan(step, start, (policy, index))
            if losses is None:
                losses = problem.loss_fn(params, desired)
            return losses.mean(), losses

        return compiled(loss_auc, problem)

    return build


def _plain_gradient(loss_fn):
    return lambda params, row, batch: jax.grad(lambda p: row @ loss_fn(p, batch))(params)


def _checkpointed_scan(step, state, steps, keep=None):
    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False, policy=keep), state, steps)


# With the inner gradients kept beside the states only the desired loss is computed twice.
_mixed_mode_scan = functools.partial(
    _checkpointed_scan, keep=jax.checkpoint_policies.save_only_these_names(INNER_GRADIENT)
)


def _equinox_scan(step, state, steps):
    import equinox.internal

    return equinox.internal.scan(step, state, steps, kind="checkpointed")


def _equinox(problem: Problem) -> Contender:
    if importlib.util.find_spec("equinox") is None:
        raise MissingError(how_to_get(packages=["equinox"]))
    return _scan(_equinox_scan)(problem)


def _mixed_mode_gradient(loss_fn):
    """The weighted gradient with a forward-mode pass as its reverse rule (arXiv:2505.00793)."""

    def gradient_and_losses(params, row, batch):
        losses, pull_back = jax.vjp(lambda p: loss_fn(p, batch), params)
        return pull_back(row)[0], losses

    @jax.custom_vjp
    def gradient(params, row, batch):
        return gradient_and_losses(params, row, batch)[0]

    def forward(*arguments):
        return gradient(*arguments), arguments

    def backward(arguments, direction):
        params, row, batch = arguments
        _, (curvature, slopes) = jax.jvp(
            lambda p: gradient_and_losses(p, row, batch), (params,), (direction,)
        )
        return curvature, slopes, None

    gradient.defvjp(forward, backward)
    return lambda *arguments: checkpoint_name(gradient(*arguments), INNER_GRADIENT)


def _without_sources(build: Callable[[Problem], Contender]):
    return lambda problem, sources: build(problem)


RECIPE = "dataset metagradients, recipe"
HOST_DEVICES = ", a device a core"  # ends the names of contenders that use them
CONTENDERS: dict[str, Callable[[Problem, Sources], Contender]] = {
    "lljax": _without_sources(lljax_way()),
    f"lljax{HOST_DEVICES}": _without_sources(_sharded(lljax_way())),
    "lljax, micro-batches of 8": _without_sources(lljax_way(microbatch_size=8)),
    "lljax, micro-batches of 16": _without_sources(lljax_way(microbatch_size=16)),
    "lljax, recomputed": _without_sources(lljax_way(memory=lljax.RecomputeStates())),
    "lljax, gradients kept": _without_sources(lljax_way(memory=lljax.KeepGradients())),
    "lljax, gradients kept, micro-batches of 8": _without_sources(
        lljax_way(memory=lljax.KeepGradients(), microbatch_size=8)
    ),
    "scan": _without_sources(_scan(jax.lax.scan)),
    f"scan{HOST_DEVICES}": _without_sources(_sharded(_scan(jax.lax.scan))),
    "scan, jax.checkpoint": _without_sources(_scan(_checkpointed_scan)),
    "equinox, checkpointed": _without_sources(_equinox),
    "mixed-mode VJP": _without_sources(_scan(_mixed_mode_scan, _mixed_mode_gradient)),
    RECIPE: _without_sources(dataset_metagradients.recipe()),
    f"{RECIPE}, micro-batches of 8": _without_sources(dataset_metagradients.recipe(8)),
    "dataset metagradients, engine": peer_engines.metagradients_engine,
    "bergson, all": peer_engines.bergson("all"),
    "bergson, sqrt": peer_engines.bergson("sqrt"),
    "bergson, log": peer_engines.bergson("log"),
    "PyTorch": torch_contenders.plain,
    "TorchOpt": torch_contenders.torchopt,
    "public code, one batch": torch_contenders.public_code(script_batches=False),
    "public code, its batches": torch_contenders.public_code(script_batches=True),
}
"""Name -> builder; it raises MissingError for what is not installed."""

IN_MINIBATCHES = (
    "lljax, gradients kept",
    "lljax, gradients kept, micro-batches of 8",
    RECIPE,
    f"{RECIPE}, micro-batches of 8",
    "dataset metagradients, engine",
    "bergson, all",
    "bergson, sqrt",
    "bergson, log",
)
"""What gains nothing from plain gradient descent, and the peers for the loss at the end."""

FULL_BATCH = (
    f"lljax{HOST_DEVICES}",
    f"scan{HOST_DEVICES}",
    "PyTorch",
    "TorchOpt",
    "public code, one batch",
    "public code, its batches",
)
"""The contenders that are written for all examples at every step of gradient descent."""


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def fits(name: str, problem: str) -> bool:
    """Whether a contender makes sense for a problem."""
    on_host_devices = name.endswith(HOST_DEVICES)
    model = problem.removeprefix("minibatch_")
    if name in (FULL_BATCH if model != problem else IN_MINIBATCHES):
        return False
    if model == "perceptron":
        reads_tokens = name == "dataset metagradients, engine" or "micro-batches" in name
        takes_minutes = name in ("bergson, all", "bergson, log")  # as does the one that is there
        return not (reads_tokens or takes_minutes or (on_host_devices and not _on_cpu()))
    if on_host_devices:
        return False  # its matrix products use all cores anyway
    return name != "public code, its batches"  # 64 examples are less than one of its batches
