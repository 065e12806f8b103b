"""From a config to its problem, with all that is checked of a task."""

import dataclasses
import hashlib
import numbers
import sys
import traceback
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lljax import checks, cluster
from lljax.checks import num_examples
from lljax.errors import RunFailed, UserError, is_out_of_memory
from lljax.loss_check import evaluate_losses
from lljax.safe_text import printable, without_secrets
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import SETS, Experiment, PolicyProblem, Problem, WeightedExamples
from lljax.types import Batch, Params, SecondOrder


def build_problem(experiment: Experiment, on_host: bool = False) -> PolicyProblem:
    """Builds the problem of an experiment and checks it.

    Args:
      experiment: the task and its config.
      on_host: leave the examples in the host's memory, for `Placement.problem` to bring each
        device its own; else the first device has all of them.

    Raises:
      UserError: the data cannot be had, do not fit the loss, or hold a number that is not finite.
    """
    task, config = experiment
    try:
        problem = task.build(config)
    except (UserError, RunFailed, ModuleNotFoundError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # The last line of the task's own file says more than one inside a library.
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename == _file_of(task.build)]
        place = (own or frames)[-1]
        raise UserError(
            f"the task {task.name} cannot be built: {type(error).__name__}: "
            f"{printable(without_secrets(str(error)))} "
            f"({place.filename}, line {place.lineno})"
        ) from error
    if getattr(problem, "read_by_first", False):  # the others have nothing to look at
        cluster.from_first(lambda: _check(problem, task.name, config))
    else:
        _check(problem, task.name, config)
    # NumPy's arrays would go to the device again in every call.
    sets = {name: getattr(problem, name) for name in SETS}
    sets = jax.tree.map(_as_computed if on_host else jnp.asarray, sets)
    params = jax.tree.map(jnp.asarray, problem.params)
    count = int(problem.num_symbols)
    problem = dataclasses.replace(problem, **sets, params=params, num_symbols=count)
    share, desired_loss_fn = config.outer.train_share, problem.desired_loss_fn or problem.loss_fn
    if share and (problem.desired_loss_fn or _form(problem.train) != _form(problem.desired)):
        raise UserError(
            f"outer.train_share must be 0 for the task {task.name}: its desired examples have a "
            f"loss or a form of their own, so that no mean with training examples can be taken; "
            f"got {share}."
        )

    def weighted_loss_fn(params: Params, batch: WeightedExamples) -> jax.Array:
        return batch.weights * desired_loss_fn(params, batch.examples)

    more: dict[str, Any] = {
        "objective": problem.desired,
        "objective_loss_fn": desired_loss_fn,
        "desired_loss_fn": desired_loss_fn,
    }
    if share:
        both = _with_train_share(problem.desired, problem.train, share)
        more["objective"] = both if on_host else jax.tree.map(jnp.asarray, both)
        more["objective_loss_fn"] = weighted_loss_fn
    fields = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}
    return PolicyProblem(**fields | more)


def fingerprint(problem: Problem, with_params: bool = True) -> str:
    """A hash of all that a run is made of beside its config: the data and theta_0."""
    sets = [problem.train, problem.desired, problem.validation, problem.test]
    trees: list[Any] = [*sets, problem.params] if with_params else sets
    if not problem.read_by_first:
        return _digest(trees)
    # The data are the first one's, and theta_0 each process's own: one with another shows it.
    own = _digest(problem.params)
    found, of_first = cluster.from_first(lambda: (_digest(trees), own))
    return found if own == of_first or not with_params else f"{found}, theta_0 {own}"


def _digest(trees: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        array = np.asarray(leaf)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check(problem: Any, task_name: str, config: ExperimentConfig) -> None:
    """UserError unless the parts of a problem fit each other, and lljax."""
    try:
        _check_parts(problem)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"the task {task_name} does not fit together: {error}") from error
    _evaluate_losses(problem, task_name, config)


def _check_parts(problem: Any) -> None:
    """ValueError unless the parts of a problem fit each other."""
    if not isinstance(problem, Problem):
        raise ValueError(f"`build` must return a Problem; got {type(problem).__name__}.")
    for name in SETS:
        batch = getattr(problem, name)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
            if not np.isfinite(leaf).all():
                where = f"{name}{jax.tree_util.keystr(path)}"
                raise UserError(f"the data hold NaN or infinite numbers, in {where}.")
        if name == "train":
            checks.check_loss_fn(problem.loss_fn, problem.params, batch, name)
        else:
            checks.check_desired_loss_fn(
                problem.desired_loss_fn, problem.loss_fn, problem.params, batch, name
            )
    checks.check_choice("second_order", problem.second_order, SecondOrder)
    count = problem.num_symbols
    if not isinstance(count, numbers.Integral) or count < 2:
        raise ValueError(f"`num_symbols` must be a whole number, at least 2; got {count!r}.")
    if not isinstance(problem.optimizer, optax.GradientTransformation):
        kind = type(problem.optimizer).__name__
        raise ValueError(f"`optimizer` must be an optax optimiser; got {kind}.")
    facts = problem.facts
    if not isinstance(facts, tuple) or not all(isinstance(fact, str) for fact in facts):
        raise ValueError(f"`facts` must be a tuple of texts; got {facts!r}.")
    if problem.show_example is not None:
        check_shown(problem.show_example(0))
    perturbed = problem.perturbed
    if perturbed is not None and (
        perturbed.shape != (problem.num_train,) or perturbed.dtype != bool
    ):
        raise ValueError(
            f"`perturbed` must be a bool array of shape ({problem.num_train},), an entry for each "
            f"training example; got {perturbed.dtype} of shape {perturbed.shape}."
        )


def _evaluate_losses(problem: Problem, task_name: str, config: ExperimentConfig) -> None:
    """UserError or a warning where the loss of an example depends on those beside it, UserError
    where the training loss has a backward rule that the pass does not take."""
    cures = {
        "leave inner.microbatch_size out": config.inner.microbatch_size,
        "set outer.train_share to 0": config.outer.train_share,  # both sets in one batch
    }
    cut_by = " and ".join(cure for cure, value in cures.items() if value) or None
    found: list[str] = []
    try:
        evaluate_losses(
            problem.loss_fn,
            problem.desired_loss_fn,
            problem.params,
            problem.train,
            {"desired": problem.desired},
            problem.second_order,
            cut_by,
            warn=found.append,
        )
    except ValueError as error:
        raise UserError(f"the task {task_name} does not fit together: {error}") from error
    if found and cluster.is_first():
        print(f"warning: {found[0]}", file=sys.stderr, flush=True)


def check_shown(shown: Any) -> None:
    """UserError unless it is what `Problem.show_example` may return."""
    if isinstance(shown, str):
        return
    picture, text = shown if isinstance(shown, tuple) and len(shown) == 2 else (shown, "")
    shape = np.shape(picture)
    is_picture = len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
    if not is_picture or not isinstance(text, str):
        raise UserError(
            f"`show_example` must return a text, a picture of shape (H, W) or (H, W, 3), or both "
            f"as (picture, text); got {type(shown).__name__} with shape {shape}."
        )


def _file_of(function: Any) -> str | None:
    return getattr(getattr(function, "__code__", None), "co_filename", None)


def _form(batch: Batch) -> Any:
    """The structure of a batch, and the shapes and dtypes of one example."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, [(np.shape(leaf)[1:], jnp.result_type(leaf)) for leaf in leaves]


def _with_train_share(desired: Batch, train: Batch, share: float) -> WeightedExamples:
    count_desired = num_examples(desired, "desired")
    count_train = num_examples(train, "train")
    total = count_desired + count_train
    weights: Any = np.concatenate(
        [
            np.full(count_desired, (1 - share) * total / count_desired),
            np.full(count_train, share * total / count_train),
        ]
    )
    both = jax.tree.map(_together, desired, train)
    return WeightedExamples(both, weights.astype(jnp.result_type(float)))


def _as_computed(leaf: Any) -> Any:
    """An array in the host's memory, or its shape, of the dtype that it has on a device."""
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):  # else another number of bytes would be awaited
        return leaf.update(dtype=jax.dtypes.canonicalize_dtype(leaf.dtype))
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _together(first: Any, second: Any) -> Any:
    """Both, one after the other: on the device, in the host's memory, or their shape alone."""
    if isinstance(first, jax.ShapeDtypeStruct):
        return jax.eval_shape(lambda a, b: jnp.concatenate([a, b]), first, second)
    library = jnp if isinstance(first, jax.Array) else np
    return library.concatenate([first, second])
