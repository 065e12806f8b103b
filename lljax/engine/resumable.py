"""One meta-gradient that shows its progress, is saved on its way, and continues where it was."""

from typing import Any

import jax

from lljax.engine.meta_gradient import MetaGradient
from lljax.engine.progress import Progress, log
from lljax.engine.sweep_checkpoints import OuterCheckpoints, SweepCheckpoints
from lljax.engine.sweep_state import Sweep


class SweepProgress(Progress):
    """Of one meta-gradient, weighted by what its two sweeps cost; or of the first of them alone."""

    def __init__(
        self, label: str, sweep: Sweep, meta_gradient: MetaGradient, forward_only: bool = False
    ):
        self._meta_gradient, self._forward_only = meta_gradient, forward_only
        super().__init__(label, self._share(sweep))

    def _share(self, sweep: Sweep) -> float:
        forward, backward = self._meta_gradient.cost
        backward = 0 if self._forward_only else backward
        done = forward * sweep.forward + backward * sweep.backward
        return done / ((forward + backward) * self._meta_gradient.num_segments)

    def update(self, sweep: Sweep) -> None:
        self.show(self._share(sweep))


class ResumableSweep:
    """The sweeps of one policy, forward and, where they are wanted, back.

    A context manager: leaving it frees what the forward sweep kept.

    Attributes:
      sweep: how far it is.
    """

    def __init__(
        self,
        meta_gradient: MetaGradient,
        saved: SweepCheckpoints,
        outer_step: int,
        policy: Any,
        checkpoints: OuterCheckpoints,
    ):
        """Continues the saved sweep of this outer step, or begins one.

        Args:
          meta_gradient: computes.
          saved: where the sweep is saved from time to time.
          outer_step: that it belongs to.
          policy: gamma [T, N], or what else the meta-gradient takes.
          checkpoints: of the outer steps, without which a saved sweep is of no use.
        """
        self._meta_gradient, self._saved, self._step = meta_gradient, saved, outer_step
        self._policy, self._checkpoints = policy, checkpoints
        self._label = f"{saved.label} {outer_step}"
        new = meta_gradient.new_sweep()
        restored = saved.restore(outer_step, policy, new, checkpoints)
        if restored is not None:
            done = restored.forward + restored.backward
            log(f"continuing within {self._label}, after {done} segments")
        self.sweep = new if restored is None else restored
        self._progress = SweepProgress(self._label, self.sweep, meta_gradient)

    def __enter__(self) -> "ResumableSweep":
        self._progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._meta_gradient.release()
        self._progress.__exit__()

    def forward(self) -> Sweep:
        """Completes the loss curves."""
        self._meta_gradient.run_forward(self._policy, self.sweep, self._after_segment)
        return self.sweep

    def backward(self, all_examples: bool = True) -> Sweep:
        """Completes the gradient; without `all_examples` only of those with weight."""
        self._meta_gradient.run_backward(
            self._policy, self.sweep, self._after_segment, all_examples
        )
        del self._policy  # the state that takes it makes it again
        return self.sweep

    def gradient(self, all_examples: bool = True) -> tuple[Any, jax.Array | None]:
        """As `backward`: (the gradient [T, N], which of its entries are slopes)."""
        known = self._meta_gradient.known_slopes(self._policy, all_examples)
        gradient = self.backward(all_examples).policy_grad
        return self._meta_gradient.policies.placed(gradient), known

    def _after_segment(self, sweep: Sweep) -> None:
        self._progress.update(sweep)
        self._saved.save_at_times(self._step, sweep, self._checkpoints)
