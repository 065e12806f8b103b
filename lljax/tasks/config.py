"""The settings that every experiment has, and what they build.

Flags of the command line are made from these types: a field's docstring is its help text. Values
are checked where they are made, so that a wrong one is refused before anything is computed.
"""

import dataclasses
from typing import Any, Literal

import optax

import lljax
from lljax.errors import UserError
from lljax.field_types import check_fields

SMALLEST, LARGEST = 1.2e-38, 3.4e38  # what float32 holds
MOST = 10**9  # of anything that is counted, so that the bytes of an array have a number


def require(holds: bool, name: str, expected: str, value: Any) -> None:
    """UserError "NAME must be EXPECTED; got VALUE." unless it holds."""
    if not holds:
        raise UserError(f"{name} must be {expected}; got {value}.")


def require_positive(name: str, value: float) -> None:
    expected = f"a number > 0 that float32 holds ({SMALLEST} to {LARGEST})"
    require(SMALLEST <= value <= LARGEST, name, expected, value)


def require_counts(section: str, config: Any, *fields: str) -> None:
    """UserError unless each field of a config's section is None or from 1 to `MOST`."""
    for field in fields:
        value = getattr(config, field)
        name = f"{section}.{field}"
        require(value is None or value >= 1, name, "at least 1", value)
        require(value is None or value <= MOST, name, f"at most {MOST:,}", value)


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
    memory: Literal["auto", "store", "spread", "offload", "recompute"] = "auto"
    """What is kept of the T states for the backward sweep: all of them on the device, a part of
    each on every device, all in the host's memory, or the first of each segment; auto takes the
    first of these that fits. All give the same result, on a CPU to the bit."""
    memory_budget_gb: float | None = None
    """Device memory for kept states, in 10^9 bytes; half of what is free when not given."""
    starts: Literal["auto", "host", "disk"] = "auto"
    """Where the first state of each segment is kept: in the host's memory, or on the disk of the
    workdir, which reads it again when the backward sweep needs it; auto takes the disk where they
    are more than a quarter of the free memory."""
    segments: int | None = None
    """The T steps are cut into at most this many pieces, between which a run can be resumed; about
    sqrt(T) when not given, which needs the least memory when states are recomputed."""
    microbatch_size: int | None = None
    """Training examples handled at once inside a step; all of them when not given."""
    batch_size: int | None = None
    """B, training examples of a step, for a policy.family that is not dense; all when not given."""
    desired_batch_size: int | None = 64
    """Desired examples that are drawn for the objective at each step of a run on mini-batches; all
    of them when not given."""
    schedule: Literal["constant", "warmup_cosine"] = "constant"
    """The learning rate over the inner steps: constant, or up over the first tenth of the steps and
    then down to 0 along a cosine."""

    def __post_init__(self) -> None:
        check_fields(self, "inner")
        require_counts("inner", self, "num_steps", "segments", "microbatch_size")
        require_counts("inner", self, "batch_size", "desired_batch_size")
        require_positive("inner.learning_rate", self.learning_rate)
        norm = self.clip_norm  # its square has to be a number in float32
        fits = norm is None or 1e-18 <= norm <= 1e18
        require(fits, "inner.clip_norm", "a number > 0, from 1e-18 to 1e18", norm)
        budget = self.memory_budget_gb
        fits = budget is None or 0 < budget <= MOST
        require(fits, "inner.memory_budget_gb", f"above 0 and at most {MOST:,}", budget)
        require(
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
    """Look at the examples without weight only in outer steps that are a multiple of this, so that
    the cost follows the policy's support. When not given, every step looks at all examples."""
    grow: float = 1.2
    """Factor on the outer rate after a step that lowered the objective."""
    shrink: float = 0.5
    """Factor on it after a step that did not (and was taken back)."""
    train_share: float = 0.25
    """Share of the training set's own mean loss in the objective: it keeps the policy from
    over-fitting a small desired set. 0 is the paper's objective."""
    patience: int | None = 20
    """Stop when the validation AUC has not improved for this many outer steps."""
    runs: int = 4
    """R, of a policy.family that is not dense: training runs whose mean an outer step goes by, each
    with an initialisation and an order of its own, drawn anew at every outer step."""
    validation_runs: int = 4
    """Runs on which the policies are compared: the same for all of them."""
    validate_every: int = 4
    """Outer steps from one comparison to the next; the last one is compared too."""
    checkpoint_seconds: float = 60.0
    """Least seconds between two checkpoints inside an outer step; 0: after each segment."""

    def __post_init__(self) -> None:
        check_fields(self, "outer")
        require_counts("outer", self, "num_steps", "check_every", "patience")
        require_counts("outer", self, "runs", "validation_runs", "validate_every")
        # Files are named by six digits.
        require(self.num_steps < 10**6, "outer.num_steps", "below 1,000,000", self.num_steps)
        rate = self.learning_rate
        require(0 < rate <= 10**6, "outer.learning_rate", "> 0 and at most 1,000,000", rate)
        # Closer to 1 than that is 1 in float32, and a step has no end.
        require(0 <= self.momentum <= 0.9999, "outer.momentum", "in [0, 0.9999]", self.momentum)
        share = self.cutoff
        require(share == 0 or 1e-9 <= share < 1, "outer.cutoff", "0, or in [1e-9, 1)", share)
        passes = self.smoothing
        require(0 <= passes <= 10_000, "outer.smoothing", "at least 0 and at most 10,000", passes)
        every = self.check_every
        require(
            every is None or self.cutoff > 0 or self.method == "projected_gradient",
            "outer.cutoff",
            "above 0 with outer.check_every, or no weight becomes 0 and nothing can be left out",
            self.cutoff,
        )
        require(1 <= self.grow <= 100, "outer.grow", "in [1, 100]", self.grow)
        require(0.001 <= self.shrink < 1, "outer.shrink", "in [0.001, 1)", self.shrink)
        require(0 <= self.train_share < 1, "outer.train_share", "in [0, 1)", self.train_share)
        seconds = self.checkpoint_seconds
        fits = 0 <= seconds <= MOST
        require(fits, "outer.checkpoint_seconds", f"at least 0 and at most {MOST:,}", seconds)


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """What is optimised: the weights themselves, or fewer numbers that they are made of."""

    family: Literal["dense", "static", "group", "scheduled", "scorer"] = "dense"
    """dense: a weight for every example at every step, in one full-batch run, as in the paper. The
    others hold for any run: static, a weight an example; group, one a group (data.group);
    scheduled, rows of weights that are interpolated over the steps; scorer, a function of the
    example, which weighs unseen ones too."""
    rows: int = 4
    """Of scheduled: S rows of weights, by group where there are groups, else by example."""
    scorer: Literal["boosted", "distilled"] = "boosted"
    """A scorer is moved at every outer step by what of the slopes depends on how examples look, or
    it is fitted to static weights that are found first."""
    explore: float = 0.5
    """Share of each batch that is drawn uniformly while the policy is optimised, so that examples
    with little weight are seen too; the others are drawn by weight."""
    memory: Literal["auto", "device", "host"] = "auto"
    """Of dense: where the policy, its gradient and its momentum are kept: whole on the devices, or
    in the hosts' memory in blocks of rows, of which the devices have those of one segment at a
    time; auto takes the devices where five policies fit there. Both give the same result, on a CPU
    to the bit."""

    def __post_init__(self) -> None:
        check_fields(self, "policy")
        require_counts("policy", self, "rows")
        share = self.explore
        require(0.01 <= share <= 1, "policy.explore", "in [0.01, 1]", share)

    @property
    def is_dense(self) -> bool:
        return self.family == "dense"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The devices that share a run, of all processes that were started for it."""

    devices: int | None = None
    """Devices among which the training examples are divided; all that JAX has when not given."""
    params: Literal["replicate", "shard"] = "replicate"
    """Parameters and optimiser states: whole on every device, or divided too, which needs less
    memory and more communication."""

    stuck_minutes: float = 30.0
    """Of several processes: end the run when it makes no progress for so long."""

    def __post_init__(self) -> None:
        check_fields(self, "mesh")
        minutes = self.stuck_minutes
        require(0 < minutes <= MOST, "mesh.stuck_minutes", f"above 0, at most {MOST:,}", minutes)
        require_counts("mesh", self, "devices")


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """What every experiment has; a task's own config adds the rest, most often `data`."""

    seed: int = 0
    """Of data and initial parameters."""
    inner: InnerConfig = InnerConfig()
    outer: OuterConfig = OuterConfig()
    policy: PolicyConfig = PolicyConfig()
    mesh: MeshConfig = MeshConfig()
    trackers: tuple[str, ...] = ()
    """Where the metrics go beside metrics.jsonl: tensorboard, wandb (offline), or the MODULE:CLASS
    of a tracker of your own."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(0 <= self.seed < 2**31, "seed", "in [0, 2^31)", self.seed)
        require(
            self.outer.check_every is None or self.inner.microbatch_size is not None,
            "inner.microbatch_size",
            "given with outer.check_every, which leaves out whole micro-batches, e.g. 32",
            self.inner.microbatch_size,
        )
        self._check_family()

    def _check_family(self) -> None:
        family, batch_size = self.policy.family, self.inner.batch_size
        if self.policy.is_dense:
            require(
                batch_size is None,
                "policy.family",
                "static, group, scheduled or scorer with an inner.batch_size: a dense policy has a "
                "weight for all examples at every step of one full-batch run",
                family,
            )
            require(
                self.policy.memory != "host" or self.outer.check_every is None,
                "policy.memory",
                "auto or device with outer.check_every, whose masks of known slopes are as large "
                "as the policy and are not kept in blocks of rows",
                self.policy.memory,
            )
            return
        require(
            self.policy.memory == "auto",
            "policy.memory",
            f"auto with policy.family {family}: it is of dense policies",
            self.policy.memory,
        )
        require(
            self.outer.check_every is None,
            "outer.check_every",
            f"left out with policy.family {family}: it is of dense policies",
            self.outer.check_every,
        )
        require(
            self.outer.train_share == 0,
            "outer.train_share",
            f"0 with policy.family {family}: runs that were not optimised on choose the policy",
            self.outer.train_share,
        )
        require(
            not self.outer.smoothing,
            "outer.smoothing",
            f"0 with policy.family {family}, which has no weights of single steps",
            self.outer.smoothing,
        )
        rows = self.policy.rows
        require(
            family != "scheduled" or rows <= self.inner.num_steps,
            "policy.rows",
            f"at most inner.num_steps ({self.inner.num_steps})",
            rows,
        )


def inner_optimizer(config: InnerConfig, eps_root: float = 1e-6) -> optax.GradientTransformation:
    """The optimiser of the training run; `eps_root` of AdamW."""
    rate: optax.ScalarOrSchedule = config.learning_rate
    if config.schedule == "warmup_cosine":
        warm_up = max(1, config.num_steps // 10)
        rate = optax.warmup_cosine_decay_schedule(
            config.learning_rate / warm_up, config.learning_rate, warm_up, config.num_steps
        )
    match config.optimizer:
        case "sgd":
            optimizer = optax.sgd(rate)
        case "momentum":
            optimizer = optax.sgd(rate, momentum=0.9)
        case "adamw":
            # By default, of the values tried, the smallest whose meta-gradients predict everywhere.
            optimizer = optax.adamw(rate, eps_root=eps_root)
    if config.clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer


def meta_optimizer(config: OuterConfig, explore: float = 0.0) -> lljax.MetaOptimizer:
    """The method that improves the policy; `explore` of batches that are drawn by weight."""
    match config.method:
        case "projected_gradient":
            optimizer = lljax.projected_gradient(config.learning_rate)
        case "exponentiated_gradient":
            optimizer = lljax.exponentiated_gradient(
                config.learning_rate,
                momentum=config.momentum,
                cutoff=config.cutoff,
                explore=explore,
            )
    return lljax.smoothed(optimizer, config.smoothing) if config.smoothing else optimizer
