"""Typed configurations. A config file defines `get_config()`; flags are made from these types.

Every field's docstring is its help text on the command line. Values are checked where they are
made, so that a wrong one is refused before anything is computed or written.
"""

import dataclasses
import difflib
import importlib.util
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lljax.data.remote import TextError
from lljax.data.text import TextSettings
from lljax.experiment.errors import UserError


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under the dotted names of the command line's flags."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_tree = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if is_tree else {f"{prefix}{key}": value}
    return flat


def _require(holds: bool, name: str, expected: str, value: Any) -> None:
    if not holds:
        raise UserError(f"{name} must be {expected}; got {value}.")


def _require_positive(name: str, value: float) -> None:
    _require(0 < value < math.inf, name, "a number > 0", value)


_SIZES = ("num_train", "num_desired", "num_validation", "num_test")


def _require_counts(section: str, config: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        _require(value >= 1, f"{section}.{field}", "at least 1", value)


@dataclasses.dataclass(frozen=True)
class InnerConfig:
    """The training run that is differentiated."""

    num_steps: int = 2000
    """T, the inner steps."""
    learning_rate: float = 0.1
    """eta, the inner learning rate."""
    optimizer: Literal["sgd", "momentum", "adamw"] = "sgd"
    """The inner optimiser: the paper's plain gradient descent, momentum 0.9, or AdamW."""
    clip_norm: float | None = None
    """Clip each inner gradient to this global norm (differentiated exactly)."""
    memory: Literal["auto", "store", "offload", "recompute"] = "auto"
    """What is kept of the T states for the backward sweep: all of them on the device, all in the
    host's memory, or the first of each segment; auto takes the first of these that fits. All give
    the same result, on a CPU to the bit."""
    memory_budget_gb: float | None = None
    """Device memory for kept states, in 10^9 bytes; half of what is free when not given."""
    segments: int | None = None
    """Into how many pieces at most the T steps are cut, between which a run can be resumed; about
    sqrt(T) when not given, which needs the least memory when states are recomputed."""
    microbatch_size: int | None = None
    """Training examples handled at once inside a step; all of them when not given."""

    def __post_init__(self) -> None:
        _require(self.num_steps >= 1, "inner.num_steps", "at least 1", self.num_steps)
        _require_positive("inner.learning_rate", self.learning_rate)
        for name in ("clip_norm", "memory_budget_gb", "segments", "microbatch_size"):
            if getattr(self, name) is not None:
                _require_positive(f"inner.{name}", getattr(self, name))
        _require(
            self.segments is None or self.segments <= self.num_steps,
            "inner.segments",
            f"at most inner.num_steps ({self.num_steps})",
            self.segments,
        )


@dataclasses.dataclass(frozen=True)
class OuterConfig:
    """The optimisation of the policy."""

    num_steps: int = 60
    """Outer steps, each one meta-gradient."""
    method: Literal["exponentiated_gradient", "projected_gradient"] = "exponentiated_gradient"
    """How a meta-gradient changes the policy; projected_gradient is the paper's way."""
    learning_rate: float = 0.1
    """The outer rate: of log-weights, or for projected_gradient of the AUC's gradient."""
    momentum: float = 0.8
    """Of exponentiated_gradient."""
    cutoff: float = 0.0
    """Of exponentiated_gradient: weights below this share of the uniform weight move in a straight
    line, so that they become exactly 0, until an example's slope wants it back."""
    smoothing: int = 0
    """Passes that average a meta-gradient over neighbouring inner steps, (1, 2, 1) / 4 each: for an
    inner training at the edge of stability, whose loss zig-zags from step to step."""
    check_every: int | None = None
    """Leave the examples without weight out of the meta-gradients, but for each so-many-th outer
    step, when all are looked at: the cost follows the policy's support. When not given, all of them
    are looked at in every step."""
    grow: float = 1.2
    """Factor on the outer rate after a step that lowered the objective."""
    shrink: float = 0.5
    """Factor on it after a step that did not (and was taken back)."""
    train_share: float = 0.25
    """Share of the training set's own mean loss in the objective: it keeps the policy from
    over-fitting a small desired set. 0 is the paper's objective."""
    patience: int | None = 20
    """Stop when the validation AUC has not improved for so many outer steps."""
    checkpoint_seconds: float = 60.0
    """Least time between two checkpoints inside an outer step; 0 writes one after each segment."""

    def __post_init__(self) -> None:
        _require(self.num_steps >= 1, "outer.num_steps", "at least 1", self.num_steps)
        _require_positive("outer.learning_rate", self.learning_rate)
        _require(0 <= self.momentum < 1, "outer.momentum", "in [0, 1)", self.momentum)
        _require(0 <= self.cutoff < 1, "outer.cutoff", "in [0, 1)", self.cutoff)
        _require(self.smoothing >= 0, "outer.smoothing", "at least 0", self.smoothing)
        every = self.check_every
        _require(every is None or every >= 1, "outer.check_every", "at least 1", every)
        _require(
            every is None or self.cutoff > 0 or self.method == "projected_gradient",
            "outer.cutoff",
            "above 0 with outer.check_every, or no weight becomes 0 and nothing can be left out",
            self.cutoff,
        )
        _require(self.grow >= 1, "outer.grow", "at least 1", self.grow)
        _require(0 < self.shrink < 1, "outer.shrink", "in (0, 1)", self.shrink)
        _require(0 <= self.train_share < 1, "outer.train_share", "in [0, 1)", self.train_share)
        patience = self.patience
        _require(patience is None or patience >= 1, "outer.patience", "at least 1", patience)
        seconds = self.checkpoint_seconds
        _require(0 <= seconds < math.inf, "outer.checkpoint_seconds", "a number >= 0", seconds)


@dataclasses.dataclass(frozen=True)
class PerceptronData:
    """Gaussian inputs labelled by a random linear teacher."""

    dim: int = 128
    """D, the input dimension."""
    num_train: int = 4096
    """N, training examples."""
    num_desired: int = 512
    """K, desired examples: those in the objective."""
    num_validation: int = 4096
    """Desired examples that choose which outer step is kept."""
    num_test: int = 4096
    """Desired examples that are only reported."""
    label_noise: float = 0.3
    """Noise of the training labels: standard deviation as a share of the teacher's output's."""

    def __post_init__(self) -> None:
        _require_counts("data", self, "dim", *_SIZES)
        noise = self.label_noise
        _require(0 <= noise < math.inf, "data.label_noise", "a number >= 0", noise)


@dataclasses.dataclass(frozen=True)
class TextData(TextSettings):
    """Sequences of a text, half of those to train on damaged."""

    num_train: int = 16384
    """N, training sequences."""
    num_desired: int = 512
    """K, desired sequences: those in the objective."""
    num_validation: int = 512
    """Desired sequences that choose which outer step is kept."""
    num_test: int = 512
    """Desired sequences that are only reported."""
    perturbed_share: float = 0.5
    """Share of the training sequences that is damaged."""
    perturbations: int = 20
    """Operations on each of those: replace a token, delete the last one, or repeat one."""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except TextError as error:
            raise UserError(str(error)) from error
        _require_counts("data", self, *_SIZES)
        share = self.perturbed_share
        _require(0 <= share <= 1, "data.perturbed_share", "in [0, 1]", share)
        count = self.perturbations
        _require(count >= 0, "data.perturbations", "at least 0", count)


@dataclasses.dataclass(frozen=True)
class TransformerModel:
    """The language model; the paper's shape unless said otherwise."""

    width: int = 128
    """D, of every layer."""
    num_layers: int = 2
    """Blocks of attention and feed-forward."""
    num_heads: int = 8
    """Attention heads; they divide the width."""
    attention_scale: Literal["head", "width"] = "head"
    """Attention scores are divided by the square root of the head's width, or of the whole width
    as in the public code."""
    initialization: Literal["scaled", "torch"] = "torch"
    """PyTorch's defaults, as in the public code, or kernels of variance 1 / fan-in and small
    embeddings."""
    loss_chunk: int | None = None
    """Positions whose logits are held at once; those of a micro-batch when not given."""

    def __post_init__(self) -> None:
        _require_counts("model", self, "width", "num_layers", "num_heads")
        _require(
            self.width % self.num_heads == 0,
            "model.width",
            f"a multiple of model.num_heads ({self.num_heads})",
            self.width,
        )
        chunk = self.loss_chunk
        _require(chunk is None or chunk >= 1, "model.loss_chunk", "at least 1", chunk)


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """What every experiment has; each task adds its `data`."""

    seed: int = 0
    """Of data and initial parameters."""
    inner: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()

    @property
    def task(self) -> str:
        raise NotImplementedError

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**31, "seed", "in [0, 2^31)", self.seed)
        _require(
            self.outer.check_every is None or self.inner.microbatch_size is not None,
            "inner.microbatch_size",
            "given with outer.check_every, which leaves out whole micro-batches, e.g. 32",
            self.inner.microbatch_size,
        )


@dataclasses.dataclass(frozen=True)
class PerceptronConfig(ExperimentConfig):
    """The paper's linear classification (§4.1)."""

    data: PerceptronData = PerceptronData()

    @property
    def task(self) -> str:
        return "perceptron"


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ExperimentConfig):
    """The paper's language modelling (§4.1)."""

    model: TransformerModel = TransformerModel()
    data: TextData = TextData()

    @property
    def task(self) -> str:
        return "transformer"


def load_config(path: Path) -> Any:
    """Runs a config file and returns what its `get_config()` returns, an ExperimentConfig.

    Raises:
      UserError: no such file, it does not run, or it does not define a config.
    """
    return _check_config(_call(path, "get_config"), f"get_config() of {path} must return")


def load_configs(path: Path) -> dict[str, ExperimentConfig]:
    """As `load_config` for the `get_configs()` of a sweep: configs by name, all of one type."""
    configs = _call(path, "get_configs")
    if not isinstance(configs, dict) or not configs:
        raise UserError(
            f"get_configs() of {path} must return a dictionary of configs by name; got "
            f"{type(configs).__name__ if not isinstance(configs, dict) else 'an empty one'}."
        )
    for name, config in configs.items():
        _check_config(config, f"get_configs()[{name!r}] of {path} must be")
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise UserError(f"{path}: the name {name!r} in get_configs() must be a folder's name.")
    kinds = {type(config).__name__ for config in configs.values()}
    if len(kinds) > 1:
        raise UserError(f"the configs of {path} must be of one type; got {', '.join(kinds)}.")
    return configs


def _check_config(config: Any, where: str) -> Any:
    if not isinstance(config, ExperimentConfig):
        raise UserError(
            f"{where} a PerceptronConfig or a TransformerConfig; got {type(config).__name__}."
        )
    return config


def _call(path: Path, function: str) -> Any:
    """What a function of a config file returns."""
    if not path.is_file():
        folder = path.parent if path.parent.is_dir() else Path()
        near = difflib.get_close_matches(path.name, [file.name for file in folder.glob("*.py")], 1)
        hint = f" Did you mean {folder / near[0]}?" if near else ""
        raise UserError(f"CONFIG: there is no file {path}.{hint}")
    name = f"lljax_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"CONFIG must be a Python file (*.py) with {function}(); got {path}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses that the file defines look themselves up there
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            other = {"get_config": "run", "get_configs": "sweep"}
            others = [f"`lljax {verb}`" for known, verb in other.items() if hasattr(module, known)]
            hint = f" It is one for {others[0]}." if others else ""
            raise UserError(f"{path} defines no {function}().{hint}")
        return getattr(module, function)()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def config_to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """What config.json holds."""
    return {"task": config.task, **dataclasses.asdict(config)}
