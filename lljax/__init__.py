"""lljax differentiates a whole training run: data weights in, loss curve out."""

# isort: off
from lljax import process

if process.is_command():
    process.begin()
# isort: on

from typing import TYPE_CHECKING, Any

from lljax.attribution import attribution_of_each, attribution_scores, token_scores
from lljax.coding import Coder, build_coder
from lljax.compression import acceleration_ratio, compression_ratio
from lljax.draws import draw_batches
from lljax.learning_law import (
    contribution_similarity,
    contributions,
    learned_weight_counts,
    optimality_gap,
    redundant_share,
    zero_weight_share,
)
from lljax.loss_auc import build_loss_auc
from lljax.loss_check import check_loss_fn
from lljax.memory import (
    KeepGradients,
    MemoryStrategy,
    OffloadStates,
    RecomputeStates,
    SpreadStates,
    StoreStates,
    recompute_within,
)
from lljax.meta_optimizer import (
    exponentiated_gradient,
    from_optax,
    projected_gradient,
    smoothed,
)
from lljax.microbatch import known_slopes
from lljax.outer_loop import (
    OptimizedPolicy,
    OuterLoop,
    build_outer_loop,
    optimize_policy,
)
from lljax.policy import (
    group_weights,
    scheduled_weights,
    scorer_weights,
    static_weights,
    uniform_policy,
)
from lljax.scaling_law import (
    ScalingLaw,
    fit_scaling_law,
    fit_scaling_laws,
    scaling_law_improvement,
)
from lljax.segments import ForwardSegment, Segments, build_segments
from lljax.simplex import check_policy, effective_sample_size, entropy, project_simplex
from lljax.slopes import known_parameters
from lljax.step_control import (
    OuterState,
    StepControl,
    build_step_control,
    choose_on_host,
    try_policy,
)
from lljax.stochastic_loop import OptimizedOverRuns, optimize_over_runs
from lljax.types import LossAuc, LossAucInfo, LossFn, MetaOptimizer, StepInputs
from lljax.unroll import unroll

if TYPE_CHECKING:
    from lljax.curation.loaded import load_run

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load_run` comes when it is asked for: it is of the commands, not of the core."""
    if name == "load_run":
        from lljax.curation.loaded import load_run

        return load_run
    raise AttributeError(f"module 'lljax' has no attribute {name!r}")


__all__ = [
    "Coder",
    "ForwardSegment",
    "KeepGradients",
    "LossAuc",
    "LossAucInfo",
    "LossFn",
    "MemoryStrategy",
    "OffloadStates",
    "OptimizedOverRuns",
    "OptimizedPolicy",
    "OuterLoop",
    "OuterState",
    "MetaOptimizer",
    "RecomputeStates",
    "ScalingLaw",
    "Segments",
    "SpreadStates",
    "StepControl",
    "StepInputs",
    "StoreStates",
    "acceleration_ratio",
    "build_coder",
    "attribution_of_each",
    "attribution_scores",
    "build_loss_auc",
    "build_outer_loop",
    "build_segments",
    "build_step_control",
    "check_loss_fn",
    "check_policy",
    "choose_on_host",
    "compression_ratio",
    "contribution_similarity",
    "contributions",
    "draw_batches",
    "effective_sample_size",
    "entropy",
    "exponentiated_gradient",
    "fit_scaling_law",
    "fit_scaling_laws",
    "from_optax",
    "group_weights",
    "known_parameters",
    "known_slopes",
    "learned_weight_counts",
    "load_run",
    "optimality_gap",
    "optimize_over_runs",
    "optimize_policy",
    "project_simplex",
    "projected_gradient",
    "recompute_within",
    "redundant_share",
    "scaling_law_improvement",
    "scheduled_weights",
    "scorer_weights",
    "smoothed",
    "static_weights",
    "token_scores",
    "try_policy",
    "uniform_policy",
    "unroll",
    "zero_weight_share",
]
