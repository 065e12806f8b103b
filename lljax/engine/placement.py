"""Which devices hold what of a run: examples, and the policy's columns, a part on each."""

import contextlib
import dataclasses
import math
import os
import platform
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lljax.engine.host_arrays import send_examples
from lljax.errors import UserError
from lljax.shards import largest_cut
from lljax.tasks.config import MeshConfig
from lljax.tasks.problem import SETS, PolicyProblem

AXIS = "data"


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a run.

    Attributes:
      mesh: of one axis, over which examples are split; None: there is one device, and nothing is
        placed.
      splits_params: whether parameters and optimiser states are split too, along their largest
        axis that the devices divide; else every device has them whole.
    """

    mesh: jax.sharding.Mesh | None = None
    splits_params: bool = False

    @property
    def axis(self) -> str | None:
        """What `data_axis=` of the core takes."""
        return None if self.mesh is None else AXIS

    @property
    def num_devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def layout(self) -> str:
        """In words, for whoever continues a run on another."""
        split = " that split the parameters" if self.splits_params else ""
        return in_processes(f"{self.num_devices} device{'s'[: self.num_devices - 1]}{split}")

    @property
    def num_local(self) -> int:
        """Devices of the run that this process has."""
        return 1 if self.mesh is None else self.mesh.local_mesh.size

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """Within it the programs of the run are traced and called."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def problem(self, problem: PolicyProblem) -> PolicyProblem:
        """The same problem, each device with its share of the examples."""
        place = self._send if problem.read_by_first else self.examples
        # By name, so that all processes send and receive the same ones in the same order.
        sets = {name: place(getattr(problem, name)) for name in SETS}
        is_desired = problem.objective is problem.desired  # and stays so
        sets["objective"] = sets["desired"] if is_desired else place(problem.objective)
        return dataclasses.replace(problem, **sets, params=self.state(problem.params))

    def columns(self, tree: Any) -> Any:
        """Arrays [..., N], those with an entry for each training example, split by example."""
        return self._put(tree, self._of_columns)

    def to_host(self, rows: Any) -> dict[int, np.ndarray]:
        """The columns of an array [..., N] that this process has, by the first of each part."""
        if self.mesh is None:
            return {0: _own(rows)}
        parts: dict[int, np.ndarray] = {}
        for shard in self.columns(rows).addressable_shards:
            first = _first_column(shard.index)
            if first not in parts:  # where N cannot be split, every device has all
                parts[first] = _own(shard.data)
        return parts

    def from_host(self, parts: Mapping[int, np.ndarray], shape: tuple[int, ...]) -> jax.Array:
        """The array [..., N] of which the processes have such parts."""
        if self.mesh is None:
            return jnp.asarray(parts[0])
        sharding = jax.NamedSharding(self.mesh, self._of_columns(shape))
        return jax.make_array_from_callback(
            shape, sharding, lambda index: parts[_first_column(index)]
        )

    def state(self, tree: Any) -> Any:
        """Parameters, and what a training run makes of them: whole, or split with the parameters.

        Also inside a compiled function, whose outputs are to be so, and for shapes of arrays.
        """
        return self._put(tree, self._of_state)

    def share(self, tree: Any) -> int:
        """Bytes that a device has of parameters, or of arrays of such shapes."""
        return bytes_on_a_device(self.state(jax.eval_shape(lambda: tree)))

    def examples(self, batch: Any) -> Any:
        """Examples, arrays [B, ...], split where B can be; else every device has them."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, batch)
        return self._put(batch, self._of_rows)

    def _send(self, batch: Any) -> Any:
        """The same where only the first process has them."""

        def send(leaf: Any) -> jax.Array:
            assert self.mesh is not None
            return send_examples(leaf, jax.NamedSharding(self.mesh, self._of_rows(leaf.shape)))

        return jax.tree.map(send, batch)

    def _of_rows(self, shape: tuple[int, ...]) -> jax.P:
        return jax.P(AXIS) if shape and shape[0] % self.num_devices == 0 else jax.P()

    def _of_columns(self, shape: tuple[int, ...]) -> jax.P:
        fits = shape and shape[-1] % self.num_devices == 0
        return jax.P(*[None] * (len(shape) - 1), AXIS) if fits else jax.P()

    def _of_state(self, shape: tuple[int, ...]) -> jax.P:
        return largest_cut(shape, AXIS, self.num_devices) if self.splits_params else jax.P()

    def _put(self, tree: Any, spec: Callable[[tuple[int, ...]], jax.P]) -> Any:
        mesh = self.mesh
        if mesh is None:
            return tree

        def put(leaf: Any) -> Any:
            sharding = jax.NamedSharding(mesh, spec(np.shape(leaf)))
            if isinstance(leaf, jax.ShapeDtypeStruct):
                return leaf.update(sharding=sharding)
            if isinstance(leaf, jax.core.Tracer):
                return jax.lax.with_sharding_constraint(leaf, sharding)
            if jax.process_count() == 1 or not getattr(leaf, "is_fully_addressable", True):
                return jax.device_put(leaf, sharding)
            # Every process has the whole array; `device_put` would send it about to compare.
            host = np.asarray(leaf)
            return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

        return jax.tree.map(put, tree)


def _first_column(index: Any) -> int:
    """Of a part of an array [..., N]."""
    return index[-1].start or 0


def _own(rows: Any) -> np.ndarray:
    """Rows in memory of NumPy's."""
    array = np.asarray(rows)
    # On a CPU that is JAX's own buffer. Among its short-lived ones, those that stay would leave
    # gaps which nothing fits into: half as much memory again.
    return array.copy() if jax.devices()[0].platform == "cpu" else array


ONE_DEVICE = Placement()


def find_placement(config: MeshConfig) -> Placement:
    """The placement that a config asks for.

    Raises:
      UserError: there are not so many devices, or processes with devices would have nothing to do.
    """
    # Someone who has chosen JAX's device wants the run there.
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    if isinstance(chosen, str):  # of a platform
        chosen = jax.local_devices(backend=chosen)[0]
    is_alone = jax.process_count() == 1
    devices = [chosen] if chosen and is_alone and not config.devices else jax.devices()
    number = config.devices or len(devices)
    if number > len(devices):
        raise UserError(
            f"mesh.devices must be at most {len(devices)}, the devices that JAX has "
            f"({devices[0].platform}); got {number}."
        )
    devices = devices[:number]
    if len({device.process_index for device in devices}) < jax.process_count():
        raise UserError(
            f"mesh.devices must be left out, or be all {len(devices)} devices of the "
            f"{jax.process_count()} processes that were started together; got {number}."
        )
    if number == 1:
        return ONE_DEVICE
    types = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((number,), (AXIS,), axis_types=types, devices=devices)
    return Placement(mesh, config.params == "shard")


def anywhere(found: Any) -> Any:
    """Wherever the compiler has it."""
    return found


def compiled(function: Callable, place: Callable[[Any], Any]) -> jax.stages.Wrapped:
    """A function whose output goes to a place."""
    return jax.jit(lambda *given: place(function(*given)))


def compiled_parts(function: Callable, *places: Callable[[Any], Any]) -> jax.stages.Wrapped:
    """A function of several outputs, each of which goes to a place of its own."""

    def placed(*given):
        found = function(*given)
        parts = [place(part) for place, part in zip(places, found, strict=True)]
        return type(found)(*parts) if hasattr(found, "_fields") else tuple(parts)

    return jax.jit(placed)


def device_name(placement: Placement = ONE_DEVICE) -> str:
    """What a run uses, in words."""
    device, number = jax.devices()[0], placement.num_devices
    is_cpu = device.platform == "cpu"
    kind = f"cpu ({platform.machine()}, {os.cpu_count()} cores)" if is_cpu else device.device_kind
    return in_processes(f"{kind} x {number}" if number > 1 else kind)


def in_processes(what: str) -> str:
    """With the number of processes where there are several."""
    number = jax.process_count()
    return f"{what} in {number} processes" if number > 1 else what


def bytes_on_a_device(tree: Any) -> int:
    """Of all arrays in a tree, or of arrays of such shapes, the part that a device has."""

    def size(leaf: Any) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(map(size, jax.tree.leaves(tree)))
