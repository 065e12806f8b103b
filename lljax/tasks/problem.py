"""What a task is: from a config to a loss, an optimiser, parameters and four sets of examples."""

import dataclasses
import hashlib
import json
import numbers
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

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
from lljax.tasks.origins import Origins
from lljax.tasks.tokens import TokenWeights
from lljax.types import Batch, LossFn, Params, SecondOrder

Shown = str | np.ndarray | tuple[np.ndarray, str]
SETS = ("train", "desired", "validation", "test")
ConfigT = TypeVar("ConfigT", bound=ExperimentConfig)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """The mathematics of one experiment, as a task builds it.

    Attributes:
      loss_fn: training losses, (params, batch of B) -> [B], nats; pure and deterministic.
      optimizer: of the inner training; `config.inner_optimizer` makes the one that is configured.
      params: theta_0, a pytree of floating arrays.
      train: N examples, whose weights are optimised.
      desired: K examples that the model is to be good at; the objective is their mean loss.
      validation: desired examples that choose the best outer step.
      test: desired examples that are only reported.
      num_symbols: |V| of the compression ratio: tokens, classes, or 2 for binary labels.
      desired_loss_fn: losses of the desired, validation and test examples; `loss_fn` when None.
      second_order: how the gradient of `loss_fn` is differentiated, as in `build_loss_auc`.
      perturbed: [N] bool, the training examples that were damaged on purpose, if any were: the
        report tells what the policy did to them.
      init_params: draws other initial parameters like `params` from a key, for the families of
        policies that are optimised over many runs; None: all runs begin at `params`.
      groups: [N] int, the group of each training example, a domain for example; None: there are
        none.
      group_names: of the groups, in order.
      origins: where the training examples come from, for `lljax export`; None: not known.
      featurize: what a scorer sees of examples, (batch of B) -> [B, F], a NumPy array or a sparse
        matrix of SciPy; None: the task has no scorer.
      files: further files that a run keeps, by name: what other data are made into examples with.
      data_lines: what became of the data, in sentences: said first, in the plan and the report.
      show_example: how the n-th training example is shown in the report: its text, a picture as
        an array [H, W] or [H, W, 3], uint8 or floating in [0, 1], or (picture, text). None: not
        at all.
      tokens: makes what `lljax attribute --tokens` needs; None: the examples have no tokens.
      facts: what the report's first line says of the task, e.g. ("10 classes",).
      provenance: where the data come from, as a user would look for them; said when a run is
        continued with other data.
    """

    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    params: Params
    train: Batch
    desired: Batch
    validation: Batch
    test: Batch
    num_symbols: int
    desired_loss_fn: LossFn | None = None
    second_order: SecondOrder = "auto"
    perturbed: np.ndarray | None = None
    init_params: Callable[[jax.Array], Params] | None = None
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()
    origins: Origins | None = None
    featurize: Callable[[Batch], Any] | None = None
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    data_lines: tuple[str, ...] = ()
    show_example: Callable[[int], Shown] | None = None
    tokens: Callable[[], TokenWeights] | None = None
    facts: tuple[str, ...] = ()
    provenance: str = "the data that the task reads"

    @property
    def num_train(self) -> int:
        """N."""
        return num_examples(self.train, "train")


@dataclasses.dataclass(frozen=True)
class Task(Generic[ConfigT]):
    """A kind of experiment: `lljax run`, plan, resume and report need nothing else.

    Attributes:
      name: of config.json and of the report, e.g. "perceptron".
      config_type: a frozen dataclass derived from `ExperimentConfig`.
      build: draws the data and initial parameters; the same config must give the same problem.
      free_settings: dotted names of settings that change how a run goes, not what comes out of it,
        e.g. ("data.cache_dir",): a run may be continued with others.
    """

    name: str
    config_type: type[ConfigT]
    build: Callable[[ConfigT], Problem]
    free_settings: tuple[str, ...] = ()


class Experiment(NamedTuple):
    """A task and one config of it."""

    task: Task  # what kind of experiment
    config: Any  # of type task.config_type

    def settings(self) -> dict[str, Any]:
        """What config.json holds: a tuple as a list, what JSON has no form for in words, and URLs
        without passwords and tokens.
        """
        return _without_secrets(self._all_settings())

    def hidden_digest(self) -> str | None:
        """32 bits of a hash of the URLs of which `settings` leaves out a part; None without one.

        Too short to find a password by, and enough to see that it is another URL.
        """
        hidden = [text for text in _texts(self._all_settings()) if without_secrets(text) != text]
        if not hidden:
            return None
        return hashlib.sha256(json.dumps(hidden).encode()).hexdigest()[:8]

    def _all_settings(self) -> dict[str, Any]:
        settings = {"task": self.task.name, **dataclasses.asdict(self.config)}
        return json.loads(json.dumps(settings, default=str))


class WeightedExamples(NamedTuple):
    """Examples whose losses count `weights` times in a mean."""

    examples: Batch
    weights: jax.Array  # [B], mean 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyProblem(Problem):
    """A problem with the objective of its policy.

    Attributes:
      objective: the batch whose mean desired loss the policy is optimised for: the desired
        examples and, with a train share s > 0, the training examples too, weighted to
        (1 - s) L_desired + s L_train.
      objective_loss_fn: the losses of that batch, of its own form.
      desired_loss_fn: never None.
    """

    objective: Batch
    objective_loss_fn: LossFn
    desired_loss_fn: LossFn


def build_problem(experiment: Experiment) -> PolicyProblem:
    """Builds the problem of an experiment and checks it.

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
    try:
        _check(problem)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"the task {task.name} does not fit together: {error}") from error
    # NumPy's arrays would go to the device again in every call.
    arrays = {name: getattr(problem, name) for name in (*SETS, "params")}
    arrays = jax.tree.map(jnp.asarray, arrays)
    problem = dataclasses.replace(problem, **arrays, num_symbols=int(problem.num_symbols))
    _evaluate_losses(problem, task.name, config)
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
        more["objective"] = _with_train_share(problem.desired, problem.train, share)
        more["objective_loss_fn"] = weighted_loss_fn
    fields = {field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)}
    return PolicyProblem(**fields | more)


def fingerprint(problem: Problem, with_params: bool = True) -> str:
    """A hash of all that a run is made of beside its config: the data and theta_0."""
    digest = hashlib.sha256()
    sets: list[Any] = [problem.train, problem.desired, problem.validation, problem.test]
    if with_params:
        sets.append(problem.params)
    for leaf in jax.tree.leaves(sets):
        array = np.asarray(leaf)
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _check(problem: Any) -> None:
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


def _without_secrets(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {name: _without_secrets(value) for name, value in settings.items()}
    if isinstance(settings, list):
        return [_without_secrets(value) for value in settings]
    return without_secrets(settings) if isinstance(settings, str) else settings


def _texts(settings: Any) -> Iterator[str]:
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, dict | list):
        for part in settings.values() if isinstance(settings, dict) else settings:
            yield from _texts(part)


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
    weights = [
        jnp.full(count_desired, (1 - share) * total / count_desired),
        jnp.full(count_train, share * total / count_train),
    ]
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), desired, train)
    return WeightedExamples(both, jnp.concatenate(weights))
