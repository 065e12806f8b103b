"""How smooth the training runs of a config are, measured before its policy is optimised."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lljax import cluster, trust
from lljax.artifacts.fields import check_fields
from lljax.artifacts.files import write_json
from lljax.artifacts.reading import check_absent, read_json
from lljax.artifacts.schema import SMOOTHNESS
from lljax.engine.meta_gradient import MetaGradient
from lljax.engine.metrics import number
from lljax.engine.progress import log
from lljax.engine.resumable import SweepProgress
from lljax.engine.starts import folder_of_one_sweep
from lljax.engine.sweep_state import Sweep
from lljax.engine.workdir import Workdir
from lljax.tasks.problem import PolicyProblem
from lljax.types import Params

STEP = 0.2
"""h of the measurement: as far as leaving out 5 % of the examples is, sqrt(0.05) = 0.22."""


class Base(NamedTuple):
    """The runs at uniform weights."""

    sweep: Sweep  # its starts may be gone
    end: list[np.ndarray]  # the leaves of theta_T
    slopes: np.ndarray  # [N], dAUC/d(factor of an example's weights)


@dataclasses.dataclass(frozen=True)
class Reruns:
    """A config's training at uniform weights, to be done again with the examples' weights scaled.

    Attributes:
      meta_gradient: of the runs.
      policy: what it is given at uniform weights.
      scaled: (policy, factors [N]) -> the policy with the weights of each example times its factor.
      slopes: (policy, its gradient) -> [N], the derivative in those factors.
      num_train: N.
      params: theta_0, for its shapes.
    """

    meta_gradient: MetaGradient
    policy: Any
    scaled: Callable[[Any, jax.Array], Any]
    slopes: Callable[[Any, np.ndarray], np.ndarray]
    num_train: int
    params: Params

    def run(self, factors: np.ndarray, label: str) -> Sweep:
        """The loss curves and states of the runs with these factors [N]."""
        policy = self.scaled(self.policy, jnp.asarray(factors, jnp.float32))
        sweep = self.meta_gradient.new_sweep()
        with SweepProgress(label, sweep, self.meta_gradient, forward_only=True) as progress:
            self.meta_gradient.run_forward(policy, sweep, progress.update)
            self.meta_gradient.release()
        return sweep

    def gradient(self, label: str) -> Base:
        """The runs with all factors 1, and the derivative of their mean AUC in these."""
        sweep = self.meta_gradient.new_sweep()
        with (
            folder_of_one_sweep(sweep.starts),
            SweepProgress(label, sweep, self.meta_gradient) as progress,
        ):
            self.meta_gradient.run_forward(self.policy, sweep, progress.update)
            end = self.end(sweep)
            self.meta_gradient.run_backward(self.policy, sweep, progress.update)
        return Base(sweep, end, self.slopes(self.policy, sweep.policy_grad))

    def end(self, sweep: Sweep) -> list[np.ndarray]:
        """The leaves of theta_T, copied from the states of the sweep, which are many."""
        leaves = sweep.starts[self.meta_gradient.num_segments]
        return [np.array(leaf) for leaf in leaves[: len(jax.tree.leaves(self.params))]]


def reruns_of_dense(meta_gradient: MetaGradient, problem: PolicyProblem) -> Reruns:
    """Of the one deterministic run of a dense policy."""
    policies = meta_gradient.policies

    def slopes(policy: Any, gradient: Any) -> np.ndarray:
        return policies.column_sums(gradient) / problem.num_train

    uniform, number = policies.uniform(), problem.num_train
    return Reruns(meta_gradient, uniform, policies.scaled, slopes, number, problem.params)


class Smoothness(NamedTuple):
    """What smoothness.json holds."""

    params: float | None  # metasmoothness of theta_T; None where a run diverges
    losses: float | None  # of the desired-loss curve
    step: float  # h
    least: float  # below it a gradient may mislead
    overshoot: float | None  # predicted change of the AUC over that of the runs; None: diverges
    most: float  # above it a gradient misleads

    @property
    def is_known(self) -> bool:
        """Whether no run diverges."""
        return self.params is not None and self.overshoot is not None

    @property
    def predicts(self) -> bool:
        """Whether nothing is known against the gradient."""
        if self.params is None or self.overshoot is None:
            return False
        return self.params >= self.least and self.overshoot <= self.most


def smoothness_of(reruns: Reruns, seed: int, base: Base) -> Smoothness:
    """Of the runs at uniform weights and of two along a random direction.

    Args:
      reruns, seed: of the runs and the direction.
      base: what `reruns.gradient` gives.
    """
    direction = np.asarray(trust.random_direction(jax.random.key(seed), reruns.num_train))

    def outcome(sweep: Sweep, end: list[np.ndarray]) -> tuple[Any, Any, Any]:
        return end, sweep.desired[1:], np.asarray(sweep.objective)

    outcomes = [outcome(base.sweep, base.end)]
    for number_of in (1, 2):
        factors = 1 + number_of * STEP * direction
        label = f"how smooth training is, run {number_of} of 2"
        sweep = reruns.run(factors, label)
        outcomes.append(outcome(sweep, reruns.end(sweep)))
    params, losses, aucs = jax.tree.map(lambda *leaves: np.stack(leaves), *outcomes)
    predicted = STEP * direction.astype(np.float64) @ np.asarray(base.slopes, np.float64)

    def known(score: Callable, *arguments: Any) -> float | None:
        return number(cluster.from_first(lambda: np.asarray(score(*arguments))))

    return Smoothness(
        known(trust.sign_agreement, params),
        known(trust.sign_agreement, losses),
        STEP,
        trust.SMOOTH,
        known(trust.overshoot, predicted, aucs),
        trust.OVERSHOOT,
    )


def keep_smoothness(workdir: Workdir, reruns: Callable[[], Reruns], seed: int) -> None:
    """Measures it and writes smoothness.json, if that is not there; warns of rough training."""
    if read_smoothness(workdir) is not None:
        return
    runs = reruns()
    found = smoothness_of(runs, seed, runs.gradient("how smooth training is, its meta-gradient"))
    _write(workdir, found)
    log(in_words(found))


@cluster.read_on_first
def read_smoothness(workdir: Workdir) -> Smoothness | None:
    """What was measured of a run; None where nothing was, or it cannot be read."""
    try:
        found = read_json(workdir.smoothness)
        check_fields(found, SMOOTHNESS)
        return Smoothness(*(found[name] for name in Smoothness._fields))
    except (OSError, ValueError) as error:
        check_absent(workdir.smoothness, error)
        return None


def smoothness_facts(workdir: Workdir) -> dict[str, Any]:
    """What summary.json says of it."""
    found = read_smoothness(workdir)
    return {} if found is None else {"smoothness": found._asdict()}


@cluster.on_first
def _write(workdir: Workdir, found: Smoothness) -> None:
    write_json(workdir.smoothness, found._asdict())


def in_words(found: Smoothness) -> str:
    """A line for people."""
    if found.params is None or found.overshoot is None:
        return "warning: metasmoothness cannot be measured: a training run diverges"
    score = f"metasmoothness {found.params:.2f}"
    if found.predicts:
        return f"{score}: training is smooth enough for its meta-gradient to predict"
    cure = (
        "A smooth activation (gelu for relu), a lower learning rate, a warm-up, larger batches or "
        "a larger eps_root help; `lljax check` on this config says what the gradient predicts."
    )
    if found.overshoot > found.most:
        return (
            f"warning: the meta-gradient foretells {found.overshoot:,.3g} times the change of the "
            f"AUC that training with other weights shows: it is exact and predicts nothing. {cure}"
        )
    return (
        f"warning: {score}, below {found.least}: training is so rough that its exact "
        f"meta-gradient may predict little. {cure}"
    )
