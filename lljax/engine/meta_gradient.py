"""One meta-gradient in segments: progress within it, and resuming a killed one where it was.

The T steps are cut into C segments. The first states of the segments are kept in the host's memory
(and in checkpoints), or on the disk alone. What the backward sweep needs of the steps between stays
on the device, goes to the host, or is thrown away and made again from the segment's first state, by
the same program. So where that program is deterministic, as on a CPU, all three give the same bits,
and so does a sweep that was resumed.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import lljax
from lljax.engine.host_arrays import fetch
from lljax.engine.memory_plan import MemoryPlan
from lljax.engine.pieces import segments_of, watched
from lljax.engine.placement import (
    ONE_DEVICE,
    Placement,
    anywhere,
    bytes_on_a_device,
    compiled,
    compiled_parts,
)
from lljax.engine.policy_memory import policy_memory
from lljax.engine.starts import DiskStarts, HostStarts
from lljax.engine.sweep_state import Sweep
from lljax.segments import OBJECTIVE, Data
from lljax.step_control import OuterState
from lljax.tasks.config import InnerConfig
from lljax.tasks.problem import PolicyProblem
from lljax.types import Batch, TrainState


class Programs(NamedTuple):
    """What a meta-gradient runs for every segment."""

    forward: jax.stages.Compiled
    backward: jax.stages.Compiled
    kept_bytes: int  # of what the forward program keeps for the backward one, on a device


class MetaGradient:
    """Meta-gradients of one problem; compiled once.

    Attributes:
      num_segments: C.
      policies: where policies and their gradients are.
      cost: forward passes of an example a step, of the forward and of the backward sweep.
    """

    def __init__(
        self,
        problem: PolicyProblem,
        inner: InnerConfig,
        plan: MemoryPlan,
        active_set: bool = False,
        placement: Placement = ONE_DEVICE,
    ):
        """With an `active_set`, examples without weight cost as little as they can."""
        self._placement = placement
        build = functools.partial(
            segments_of,
            problem,
            inner,
            desired_loss_fn=problem.objective_loss_fn,
            watched_loss_fn=problem.desired_loss_fn,
            memory=plan.within_segment,
            data_axis=placement.axis,
        )
        segments = build(zero_weight="slope_only" if active_set else "compute")
        of_state, columns = placement.state, placement.columns
        self._start = compiled_parts(segments.start, of_state, anywhere)
        self._forward = compiled_parts(segments.forward, of_state, anywhere, anywhere)
        self._start_backward = compiled(segments.start_backward, of_state)
        self._backward = compiled_parts(segments.backward, of_state, columns)
        active = build(zero_weight="omit").backward if active_set else segments.backward
        self._backward_active = compiled_parts(active, of_state, columns)
        known = functools.partial(
            lljax.known_slopes,
            microbatch_size=inner.microbatch_size,
            num_shards=placement.num_devices,
        )
        self._active_set, self._known = active_set, jax.jit(known)
        self._params = problem.params
        self._shape = plan.num_steps, problem.num_train
        data = problem.train, problem.objective
        self._set_up(plan, data, watched(problem), (plan.num_steps + 1,), self._shape)

    def _set_up(
        self,
        plan: MemoryPlan,
        data: Data,
        watched: dict[str, Batch],
        curve_shape: tuple[int, ...],
        grad_shape: tuple[int, ...],
    ) -> None:
        """What does not depend on how the programs are made; the shapes are those of a sweep."""
        self._plan, self._data, self._watched = plan, data, watched
        self._curve_shape = curve_shape
        self.policies = policy_memory(plan, grad_shape, self._placement)
        self._resident: dict[int, Any] = {}  # what `forward` kept, by segment
        self._keeper = plan.keeper
        self.num_segments = len(plan.segments)
        self.cost = (3, 8 if plan.resident else 11)

    def new_sweep(self) -> Sweep:
        """One that has not begun; also the template to restore a saved one."""
        state, cotangent = self._trees
        keep = DiskStarts if self._plan.starts_on_disk else HostStarts
        return Sweep(
            {n: np.zeros(self._curve_shape, np.float32) for n in (OBJECTIVE, *self._watched)},
            keep(jax.tree.leaves(state), self.num_segments + 1),
            [np.zeros(x.shape, x.dtype) for x in jax.tree.leaves(cotangent)],
            self.policies.new_gradient(),
        )

    def compile(self) -> Programs:
        """The programs of a segment's two sweeps, for their figures."""
        state, cotangent = map(self._placement.state, self._trees)
        shape = self._plan.segment_length, self._shape[1]
        rows = self._placement.columns(jax.ShapeDtypeStruct(shape, np.float32))
        loss_cotangents = jax.ShapeDtypeStruct(rows.shape[:1], np.float32)
        forward = self._forward.lower(state, rows, self._data, self._watched)
        kept = forward.out_info.kept
        backward = self._backward.lower(cotangent, kept, rows, loss_cotangents, self._data)
        programs = forward.compile(), backward.compile()
        # How the outputs are split is known once the program is compiled.
        split = programs[0].output_shardings.kept
        kept = jax.tree.map(lambda leaf, on: leaf.update(sharding=on), kept, split)
        return Programs(*programs, bytes_on_a_device(kept))

    def run_forward(self, policy: jax.Array, sweep: Sweep, done: Callable[[Sweep], None]) -> None:
        """Completes the curves of `sweep`; `done` is called after every segment."""
        if sweep.forward == 0:
            state, losses = self._begin(policy)
            sweep.put_start(0, state)
            for name, loss in losses.items():
                sweep.curves[name][0] = loss
        state = self._state(sweep, sweep.forward)
        for index in range(sweep.forward, self.num_segments):
            steps = self._plan.segments[index]
            rows = self._rows(policy, steps)
            state, curves, kept = self._forward(state, rows, self._data, self._watched)
            self._keep(index, kept)
            del kept  # or the next segment's would stand beside it
            for name, losses in curves.items():
                sweep.curves[name][steps.start + 1 : steps.stop + 1] = losses
            sweep.put_start(index + 1, state)
            sweep.forward = index + 1
            done(sweep)

    def run_backward(
        self,
        policy: jax.Array,
        sweep: Sweep,
        done: Callable[[Sweep], None],
        all_examples: bool = True,
    ) -> None:
        """Completes the policy's gradient after the forward sweep.

        Without `all_examples` an active set leaves out those without weight.
        """
        backward = self._backward if all_examples else self._backward_active
        num_steps = self._plan.num_steps
        loss_cotangents = np.full(num_steps, 1 / num_steps, np.float32)
        last, loss_cotangents[0] = loss_cotangents[-1], 0  # L(theta_0) is not in the AUC
        if sweep.backward == 0:
            state = self._state(sweep, self.num_segments)
            cotangent = self._end(policy, state, jnp.asarray(last))
        else:
            _, tree = self._trees
            cotangent = jax.tree.unflatten(jax.tree.structure(tree), sweep.cotangent)
            cotangent = self._placement.state(cotangent)
        for index in reversed(range(self.num_segments - sweep.backward)):
            steps = self._plan.segments[index]
            kept = self._fetch(index, policy, sweep)
            cotangent, slopes = backward(
                cotangent,
                kept,
                self._rows(policy, steps),
                jnp.asarray(loss_cotangents[steps]),
                self._data,
            )
            del kept
            self.policies.put(sweep.policy_grad, steps, slopes)
            sweep.cotangent = jax.tree.leaves(fetch(cotangent))
            sweep.backward += 1
            done(sweep)

    def known_slopes(self, policy: jax.Array, complete: ArrayLike) -> jax.Array | None:
        """[T, N] bool: where a gradient has slopes that is not complete; None where it has all."""
        if complete or not self._active_set:
            return None
        known = self._known(policy)
        return None if known.all() else known

    def with_known(self, state: OuterState) -> OuterState:
        """The state with the mask that follows from its policy, as its checkpoint has none."""
        return state._replace(known=self.known_slopes(state.policy, state.complete))

    def _begin(self, policy: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        """s_0 and the losses there."""
        return self._start(self._params, self._data, self._watched)

    def _rows(self, policy: Any, steps: slice) -> Any:
        """What a segment's steps are given."""
        return policy[steps]

    def _end(self, policy: Any, state: TrainState, loss_cotangent: jax.Array) -> Any:
        """The cotangent of s_T."""
        return self._start_backward(state, loss_cotangent, self._data)

    def release(self) -> None:
        """Frees what the forward sweep kept, which no backward sweep will want."""
        self._resident.clear()

    def _keep(self, index: int, kept: Any) -> None:
        if self._plan.resident:
            self._resident[index] = self._keeper.keep(kept)

    def _fetch(self, index: int, policy: jax.Array, sweep: Sweep) -> Any:
        """What the forward sweep kept of a segment; made again where it is not at hand."""
        if index in self._resident:
            return self._keeper.fetch(self._resident.pop(index))
        rows = self._rows(policy, self._plan.segments[index])
        return self._forward(self._state(sweep, index), rows, self._data, self._watched).kept

    @functools.cached_property
    def _trees(self) -> tuple[Any, Any]:
        """Shapes of a state and of its cotangent."""
        state, _ = jax.eval_shape(self._start, self._params, self._data, self._watched)
        return state, jax.eval_shape(self._start_backward, state, jnp.zeros(()), self._data)

    def _state(self, sweep: Sweep, index: int) -> TrainState:
        state, _ = self._trees
        leaves = [jnp.asarray(leaf) for leaf in sweep.starts[index]]
        return self._placement.state(jax.tree.unflatten(jax.tree.structure(state), leaves))
