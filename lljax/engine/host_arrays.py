"""Between the hosts' memory and the devices: examples on their way there, results back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lljax import cluster

BLOCK_BYTES = 2**26  # of an array that is brought to a host whose devices have a part of it


def send_examples(leaf: Any, sharding: jax.NamedSharding) -> jax.Array:
    """The array of rows that the first process has, on the devices of all.

    Args:
      leaf: [B, ...]; in the other processes anything of its shape and dtype.
      sharding: over its rows. No process gets rows that are on none of its devices.
    """
    rows: dict[int, dict[int, slice]] = {}  # by process, by the number of their first row
    places: Mapping[Any, Any] = sharding.devices_indices_map(leaf.shape)
    for device, (part, *_) in places.items():
        rows.setdefault(device.process_index, {})[part.start or 0] = part
    own = rows[jax.process_index()]
    parts = {process: list(of.values()) for process, of in rows.items()}
    found = dict(zip(own, cluster.send_rows(leaf, parts), strict=True))
    return jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: found[_first_row(index)]
    )


def _first_row(index: Any) -> int:
    """Of a part of an array."""
    return index[0].start or 0


def fetch(tree: Any) -> Any:
    """Arrays in the host's memory, whole: of several processes, in each of them."""
    return jax.tree.map(_fetch, tree)


def _fetch(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    rows = max(1, BLOCK_BYTES * len(leaf) // max(1, leaf.nbytes))
    blocks = [
        multihost_utils.process_allgather(leaf[start : start + rows], tiled=True)
        for start in range(0, len(leaf), rows)
    ]
    return np.concatenate(blocks)
