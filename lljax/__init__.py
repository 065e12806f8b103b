"""lljax differentiates a whole training run: data weights in, loss curve out."""

from lljax.loss_auc import build_loss_auc
from lljax.memory import RecomputeStates, StoreStates
from lljax.policy import project_simplex, uniform_policy
from lljax.unroll import unroll
