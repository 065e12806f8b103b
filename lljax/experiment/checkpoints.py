"""Checkpoints of the outer loop through orbax: one an outer step, written behind its back."""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lljax.experiment.errors import UserError
from lljax.policy_optimizer import OuterState


class Checkpoints:
    """The newest two states of an outer loop, and the one with the best validation AUC.

    A context manager: leaving it waits for the writes under way.
    """

    def __init__(self, folder: Path, template: OuterState):
        """Opens or makes `folder`; `template` gives the shapes and dtypes to restore."""
        self._folder = folder
        # Without a device of its own orbax asks for the one that wrote the checkpoint.
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        self._template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), template
        )
        keep = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(2),
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics["validation_auc"], reverse=True, n=1
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            folder.resolve(), options=ocp.CheckpointManagerOptions(preservation_policy=keep)
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    def latest_step(self) -> int | None:
        """The newest outer step that is wholly on disk; None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: OuterState, validation_auc: float) -> None:
        """Copies the state and returns while it is being written.

        Args:
          step: the outer step that `state` is the result of.
          state: what to keep.
          validation_auc: decides which checkpoint is the best; infinite for a state whose policy
            an earlier checkpoint holds already.
        """
        metrics = {"validation_auc": validation_auc}
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    def restore(self, step: int) -> OuterState:
        """The state that was saved as `step`.

        Raises:
          UserError: the checkpoint is missing, damaged or of another shape.
        """
        self._manager.wait_until_finished()
        args: Any = ocp.args.StandardRestore(self._template)
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:
            raise UserError(
                f"the checkpoint of outer step {step} in {self._folder} cannot be read "
                f"({type(error).__name__}: {error}). Remove {self._folder / str(step)} to go on "
                f"from the checkpoint before it, or start again in a new --workdir."
            ) from error
