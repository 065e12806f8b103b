"""What tells whether something is as it was: digests of arrays and of records."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lljax.artifacts.files import write_npz
from lljax.artifacts.reading import Unreadable, read_npz

_DIGEST = "sha256"  # of the other arrays in a file


def digest(tree: Any) -> str:
    """SHA-256 over the structure of a tree of arrays, their shapes, dtypes and bytes."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def digest_of_blocks(shape: tuple[int, ...], dtype: Any, blocks: Iterable[np.ndarray]) -> str:
    """`digest` of one array, of which blocks of rows come one after the other."""
    total = hashlib.sha256(f"{shape}{np.dtype(dtype)}".encode())
    for rows in blocks:
        total.update(np.ascontiguousarray(rows).data)
    return total.hexdigest()


def write_signed(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays into a file, with their digest.

    Raises:
      RunFailed: the disk does not take it.
    """
    known = np.frombuffer(bytes.fromhex(digest(arrays)), np.uint8)
    write_npz(path, {**arrays, _DIGEST: known})


def read_signed(path: Path) -> dict[str, np.ndarray]:
    """The arrays of such a file.

    Raises:
      OSError: it is not there or cannot be opened.
      Unreadable: it is damaged.
    """
    arrays = read_npz(path)
    known = arrays.pop(_DIGEST, np.empty(0))
    if known.tobytes().hex() != digest(arrays):
        raise Unreadable("it does not fit its digest")
    return arrays


def digest_of_json(tree: Any) -> str:
    """SHA-256 of what JSON can hold, whatever the order of keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
