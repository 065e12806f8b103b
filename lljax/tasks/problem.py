"""What a task is: from a config to a loss, an optimiser, parameters and four sets of examples."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
import optax

from lljax.checks import num_examples
from lljax.safe_text import without_secrets
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
      read_by_first: whether of several processes the first alone has the examples, as
        `sharing.read_examples` reads them: each of the others is then sent those of its devices,
        and has `jax.ShapeDtypeStruct` in their place until then.
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
    read_by_first: bool = False

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
