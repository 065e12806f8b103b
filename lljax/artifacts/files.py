"""Writes the files of a workdir: each one is checked, then replaced in one go."""

import contextlib
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lljax.artifacts import schema
from lljax.artifacts.failures import cannot_write


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Writes summary.json.

    Raises:
      SchemaError: it does not have the form of `schema.SUMMARY`. Nothing is written.
    """
    schema.check_summary(summary)
    write_json(folder / schema.SUMMARY_FILE, summary)


def write_arrays(folder: Path, arrays: Mapping[str, np.ndarray], num_steps: int) -> None:
    """Writes analysis.npz.

    Args:
      folder: the workdir.
      arrays: some of `schema.ARRAYS`.
      num_steps: T.

    Raises:
      SchemaError: an array is not in the schema, or does not fit. Nothing is written.
    """
    schema.check_arrays(arrays, num_steps)
    write_npz(folder / schema.ARRAYS_FILE, arrays)


def write_samples(folder: Path, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Writes samples.json.

    Args:
      folder: the workdir.
      samples: a list of `schema.SAMPLE`s under each name of `schema.SAMPLE_LISTS`.

    Raises:
      SchemaError: they do not have that form. Nothing is written.
    """
    schema.check_samples(samples)
    write_json(folder / schema.SAMPLES_FILE, samples)


def metrics_line(line: Mapping[str, Any]) -> str:
    """The text of one line of metrics.jsonl, with its newline.

    Raises:
      SchemaError: the line does not have exactly the columns of `schema.METRICS`.
    """
    schema.check_metrics(line, complete=True)
    return json.dumps(line, allow_nan=False) + "\n"


def write_json(path: Path, tree: Any) -> None:
    """Writes a tree as JSON.

    Raises:
      ValueError: it holds a NaN or an infinity, for which JSON has no form.
    """
    write_atomically(path, (json.dumps(tree, indent=2, allow_nan=False) + "\n").encode())


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def write_npy(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def write_npy_rows(
    path: Path, shape: tuple[int, ...], dtype: Any, blocks: Iterable[np.ndarray]
) -> None:
    """The file that `write_npy` writes, of blocks of rows that come one after the other."""
    buffer = io.BytesIO()
    form = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(buffer, form | {"shape": shape})
    rows = (np.ascontiguousarray(block).data for block in blocks)
    write_atomically(path, itertools.chain([buffer.getvalue()], rows))


def write_atomically(path: Path, content: bytes | Iterable[Any]) -> None:
    """Replaces `path` by `content`, bytes or parts one after the other, so that a reader, or a
    kill, sees the old or the new file.

    Raises:
      RunFailed: the disk does not take it. The old file is as it was.
    """
    parts: Iterable[Any] = [content] if isinstance(content, bytes) else content
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            for part in parts:
                file.write(part)
        # mkstemp makes private files, but an artifact is as readable as any file the user makes.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):  # the first error says what is wrong
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
