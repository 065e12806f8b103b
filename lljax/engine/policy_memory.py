"""Where policies [T, N], their gradients and momentum are kept: on the devices, or in the hosts."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax import cluster
from lljax.artifacts.files import write_npy, write_npy_rows
from lljax.engine.host_arrays import fetch
from lljax.engine.memory_plan import MemoryPlan, choose_mode, free_device_memory, num_bytes
from lljax.engine.placement import Placement, bytes_on_a_device, compiled
from lljax.engine.row_blocks import RowBlocks, by_blocks, by_rows
from lljax.step_control import StepControl
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.size import host_memory, require_memory, require_memory_for_policies

Policy = Any  # jax.Array [T, N], or RowBlocks
ON_DEVICES = 5  # the uniform policy, the best one, a trial, its gradient, a momentum


class OnDevices:
    """Arrays [T, N] are in one piece, split by columns over the devices."""

    in_words, blocks = "", None

    def __init__(self, shape: tuple[int, ...], placement: Placement):
        self._shape, self._placement = shape, placement
        self.scaled = compiled(_scaled, placement.columns)

    def uniform(self) -> jax.Array:
        return self._placement.columns(lljax.uniform_policy(*self._shape))

    def new_gradient(self) -> np.ndarray:
        """In the host's memory, where a sweep collects it."""
        return np.zeros(self._shape, np.float32)

    def put(self, gradient: Any, steps: slice, slopes: jax.Array) -> None:
        """Adds the rows of a segment."""
        gradient[steps] = fetch(slopes)

    def placed(self, tree: Any) -> Any:
        """What was in the host's memory, where it is computed with."""
        return self._placement.columns(tree)

    def column_sums(self, gradient: np.ndarray) -> np.ndarray:
        """[N] float64, the sum over the steps of what a sweep has collected."""
        return gradient.sum(axis=0, dtype=np.float64)

    def write(self, path: Path, policy: Any) -> None:
        """Makes the first process write a file of a policy."""
        _write(path, fetch(policy).astype(np.float32, copy=False))

    def control(self, control: StepControl, halo: int) -> StepControl:
        """The rules of an outer step, compiled."""
        return StepControl(*[compiled(part, self._placement.columns) for part in control])


class InHosts:
    """Arrays [T, N] are `RowBlocks`, of the segments of the plan."""

    in_words = ", policies in the host's memory"

    def __init__(self, segments: Sequence[slice], num_train: int, placement: Placement):
        self._placement = placement
        self._scaled = compiled(_scaled, placement.columns)
        self.blocks = RowBlocks(segments, num_train, placement)

    def uniform(self) -> RowBlocks:
        return RowBlocks.uniform(self.blocks.segments, self.blocks.shape[1], self._placement)

    def new_gradient(self) -> RowBlocks:
        return self.blocks.empty()

    def put(self, gradient: Any, steps: slice, slopes: jax.Array) -> None:
        gradient[steps] = slopes

    def placed(self, tree: Any) -> Any:
        return tree

    def scaled(self, policy: RowBlocks, factors: jax.Array) -> RowBlocks:
        return by_blocks(self._scaled, policy, factors)

    def column_sums(self, gradient: RowBlocks) -> np.ndarray:
        sums = (fetch(gradient[steps].sum(axis=0)) for steps in gradient.segments)
        return np.sum([of.astype(np.float64) for of in sums], axis=0)

    def write(self, path: Path, policy: Any) -> None:
        blocks = policy.whole_blocks()  # which all processes bring together
        if cluster.is_first():
            write_npy_rows(path, policy.shape, policy.dtype, blocks)
        else:
            collections.deque(blocks, maxlen=0)

    def control(self, control: StepControl, halo: int) -> StepControl:
        """The rules, block by block: the step of a row goes by that row and by the gradients of
        `halo` rows on either side. What decides is the same for all blocks."""

        def part(function: Callable, **left_out: None) -> Callable:
            # What a caller has already is not made again.
            program = compiled(
                lambda *given: function(*given)._replace(**left_out), self._placement.columns
            )
            return lambda *given: by_blocks(program, *given, halo=halo)

        kept = {"policy": None, "policy_grad": None}
        begin_blocks, reject_blocks = (part(f, **kept) for f in (control.begin, control.reject))
        take_blocks = part(control.take, policy_grad=None)
        propose_rows = compiled(control.propose, self._placement.columns)

        def begin(policy, objective, policy_grad, known=None):
            state = begin_blocks(policy, objective, policy_grad)
            return state._replace(policy=policy, policy_grad=policy_grad)

        def take(state, objective, policy_grad, known=None):
            # The whole gradient decides, or one block would take what another one rejects.
            if not finite_rows(policy_grad).all():
                return reject(state, objective)
            return take_blocks(state, objective, policy_grad)._replace(policy_grad=policy_grad)

        def reject(state, objective):
            rejected = reject_blocks(state, objective)
            return rejected._replace(policy=state.policy, policy_grad=state.policy_grad)

        def refresh(state, policy_grad, known=None):
            is_finite = finite_rows(policy_grad).all()
            return state._replace(policy_grad=policy_grad) if is_finite else state

        def propose(state):
            return by_blocks(propose_rows, state, halo=halo)

        return StepControl(begin, propose, take, reject, refresh)


def _scaled(rows: jax.Array, factors: jax.Array) -> jax.Array:
    """Rows of a policy with the weights of each example times its factor [N]."""
    return rows * factors[None]


@cluster.on_first
def _write(path: Path, policy: np.ndarray) -> None:
    write_npy(path, policy)


@jax.jit
def _finite_rows(rows: jax.Array) -> jax.Array:
    return jnp.isfinite(rows).all(axis=1)


def finite_rows(array: Any) -> np.ndarray:
    """[T] bool: which rows of an array [T, N], in the host's memory or in blocks, are finite."""
    if isinstance(array, RowBlocks):
        return by_rows(_finite_rows, array)
    return np.isfinite(array).all(axis=1)


def policy_memory(
    plan: MemoryPlan, shape: tuple[int, ...], placement: Placement
) -> OnDevices | InHosts:
    """As the plan has it, for policies of a shape."""
    if plan.policy_in_hosts:
        return InHosts(plan.segments, shape[-1], placement)
    return OnDevices(shape, placement)


def place_policy(
    plan: MemoryPlan, config: ExperimentConfig, num_train: int, placement: Placement
) -> MemoryPlan:
    """The plan of a run of a dense policy, with the decision where that is kept."""
    shape = jax.ShapeDtypeStruct((plan.num_steps, num_train), np.float32)
    part, whole = bytes_on_a_device(placement.columns(shape)), num_bytes(shape)
    if not _in_hosts(plan, config, part, whole, placement):
        return plan
    outer = config.outer
    has_momentum = outer.method == "exponentiated_gradient" and outer.momentum > 0
    # The policy, its gradient and momentum; those of a trial are made beside them.
    number = 2 * (3 if has_momentum else 2)
    held = min(placement.num_local * part, whole)
    plan = dataclasses.replace(plan, policy_arrays=number, policy_held_bytes=held)
    return dataclasses.replace(plan, mode=choose_mode(plan, config.inner))


def _in_hosts(
    plan: MemoryPlan, config: ExperimentConfig, part: int, whole: int, placement: Placement
) -> bool:
    if config.policy.memory != "auto":
        return config.policy.memory == "host"
    is_alone = jax.process_count() == 1
    if config.outer.check_every is not None:
        return False
    if is_alone and jax.devices()[0].platform == "cpu":
        return False  # it is the same memory
    free = free_device_memory(placement.num_local)
    on_a_device = ON_DEVICES * part + plan.device_bytes(plan.mode)
    return on_a_device > free or ON_DEVICES * whole > host_memory()


def require_policy_memory(plan: MemoryPlan, num_train: int) -> None:
    """UserError unless this process's host could hold what it is to hold of the form [T, N]."""
    if not plan.policy_in_hosts:
        require_memory_for_policies(plan.num_steps, num_train)
        return
    share = plan.policy_held_bytes / (4 * plan.num_steps * num_train)
    of_process = "" if share == 1 else f", of which this process has {share:.3g}"
    require_memory(
        plan.policy_arrays * plan.policy_held_bytes,
        f"{plan.policy_arrays} policies in blocks of rows",
        f"each {plan.num_steps:,} inner steps x {num_train:,} training examples x 4 bytes"
        f"{of_process}",
        "inner.num_steps or the number of training examples (data.num_train), or start more "
        "processes, each on a host of its own; of several, the number of training examples must be "
        "a multiple of the number of devices to be shared out",
    )
