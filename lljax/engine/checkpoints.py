"""Checkpoints through orbax: of the outer loop, one a step, and of a meta-gradient on its way."""

import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from lljax.engine.meta_gradient import Sweep
from lljax.engine.progress import log
from lljax.errors import UserError
from lljax.step_control import OuterState


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

    def __exit__(self, *_: object) -> None:
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

    def wait(self) -> None:
        """Until everything saved so far is on disk."""
        self._manager.wait_until_finished()

    def restore(self, step: int) -> OuterState:
        """The state that was saved as `step`.

        Raises:
          UserError: the checkpoint is missing, damaged or of another shape.
        """
        self.wait()
        args: Any = ocp.args.StandardRestore(self._template)
        try:
            state = self._manager.restore(step, args=args)
            # Arrays bound to a device, as orbax makes them, would compile every program again.
            return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), state)
        except Exception as error:
            raise UserError(
                f"the checkpoint of outer step {step} in {self._folder} cannot be read "
                f"({type(error).__name__}: {error}). Remove {self._folder / str(step)} to go on "
                f"from the checkpoint before it, or start again in a new --workdir."
            ) from error


class SweepCheckpoints:
    """The newest state of the meta-gradient that an outer step is computing.

    Written at most every `every` seconds, and seldom enough that writing takes under a twentieth of
    the time; after each segment where `every` is 0. `label` names such meta-gradients to people.
    """

    def __init__(self, folder: Path, every: float, label: str = "outer step"):
        self._folder, self._every, self.label = folder, every, label
        self._last, self._took = time.monotonic(), 0.0

    def _open(self) -> ocp.CheckpointManager:
        # What is written changes while the sweep goes on, so it must be written before.
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self._folder.resolve(), options=options)

    def save_at_times(self, outer_step: int, sweep: Sweep, outer: Checkpoints) -> None:
        """Saves the sweep when it is time to."""
        started = time.monotonic()
        wait = max(self._every, 20 * self._took) if self._every else 0
        if started - self._last < wait:
            return
        outer.wait()  # the sweep is of no use without the outer step before it
        with self._open() as manager:
            number = _number(outer_step, sweep)
            saved = manager.save(number, args=ocp.args.StandardSave(vars(sweep)))
        if not saved:
            raise RuntimeError(f"orbax did not save {self._folder / str(number)}")
        self._last = time.monotonic()
        self._took = self._last - started

    def restore(self, outer_step: int, template: Sweep) -> Sweep | None:
        """The saved sweep of this outer step; None when there is none that can be read."""
        self._last = time.monotonic()  # a sweep that is over sooner needs no file
        if not self._folder.exists():
            return None
        with self._open() as manager:
            number = manager.latest_step()
            if number is not None and number // _numbers_a_step(template) == outer_step:
                try:
                    args: Any = ocp.args.StandardRestore(vars(template))
                    return Sweep(**manager.restore(number, args=args))
                except Exception as error:
                    log(
                        f"warning: {self._folder / str(number)} cannot be read "
                        f"({type(error).__name__}); {self.label} {outer_step} begins again"
                    )
        self.clear()  # orbax would save nothing below the number of what is there
        return None

    def clear(self) -> None:
        """Forgets the sweep, which is over."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._last = time.monotonic()


def _numbers_a_step(sweep: Sweep) -> int:
    return 2 * len(sweep.starts[0])


def _number(outer_step: int, sweep: Sweep) -> int:
    """Ascends as an optimisation goes on, as orbax wants it."""
    return outer_step * _numbers_a_step(sweep) + sweep.forward + sweep.backward
