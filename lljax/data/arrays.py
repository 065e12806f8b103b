"""Arrays from files: features and labels from .npz or Parquet, or the digits of scikit-learn."""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lljax.data.errors import TextError
from lljax.data.places import find
from lljax.data.records import columns_of, moments_as_text
from lljax.safe_text import printable

DIGITS = "the digits of scikit-learn"


class Table(NamedTuple):
    """N examples."""

    x: np.ndarray  # [N, ...] float32
    y: np.ndarray  # [N], integers, floating, or texts
    groups: np.ndarray | None  # [N] texts
    source: str


def read_digits() -> Table:
    """1,797 pictures [8, 8] of hand-written digits, float32 in [0, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = (digits.images / 16).astype(np.float32)
    return Table(pictures, digits.target.astype(np.int64), None, DIGITS)


def read_table(
    path: str, setting: str, features: tuple[str, ...], labels: str, group: str | None, cache: Path
) -> Table:
    """The arrays of a file.

    Args:
      path: .npz or Parquet, a file or a URL.
      setting: its name, e.g. "data.path".
      features: an array [N, ...], or columns that are stacked; one that holds lists is an array.
      labels: an array or column [N].
      group: an array or column [N] that names groups.
      cache: where a URL's file goes.

    Raises:
      TextError: there is no such file, or it lacks an array, or they do not fit each other.
    """
    place = find(path, setting, cache / "downloads", 1 << 62)
    if len(place.files) != 1:
        raise TextError(f"{setting}: give one file of arrays; {printable(path)} are many.")
    file, where = place.files[0].path, f"{setting}: {place.files[0].name}"
    with file.open("rb") as opened:
        head = opened.read(4)
    if head == b"PAR1":
        columns, names = _parquet(file, where, [*features, labels, *([group] if group else [])])
    elif head == b"PK\x03\x04":
        columns = _npz(file, where)
        names = list(columns)
    else:
        raise TextError(
            f"{where} is neither an .npz file nor Parquet. Write the arrays with "
            f"numpy.savez(path, x=..., y=...)."
        )

    def column(name: str, flag: str) -> np.ndarray:
        if name not in columns:
            raise TextError(
                f"{where} has no {printable(name)}; it has {printable(', '.join(names))}. Set "
                f"data.{flag}."
            )
        return columns[name]

    parts = [_numbers(column(name, "features"), name, where) for name in features]
    x = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
    y = column(labels, "labels")
    groups = None if group is None else column(group, "group").astype(str)
    for name, array in ((labels, y), (group, groups)):
        if array is not None and array.shape != (len(x),):
            raise TextError(
                f"{where}: {name} must have one entry for each of the {len(x)} examples; got shape "
                f"{array.shape}."
            )
    return Table(x[:, None] if x.ndim == 1 else x, y, groups, where)


def _numbers(array: np.ndarray, name: str, where: str) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise TextError(f"{where}: {name} must hold numbers; it holds {array.dtype}.")
    found = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise TextError(f"{where}: {name} holds NaN or infinite numbers.")
    return found


def _npz(file: Path, where: str) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise TextError(
            f"{where} cannot be read as .npz: {printable(str(error))[:200]}. Objects are not read, "
            f"which could run code: save arrays of numbers."
        ) from error


def _parquet(file: Path, where: str, names: list[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """(the columns of these names that there are, the names of all columns)."""
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
        wanted = [name for name in columns_of(schema.names, names, where) if name in names]
        table = moments_as_text(pyarrow.parquet.read_table(file, columns=wanted))
    except (pyarrow.ArrowException, OSError) as error:
        raise TextError(
            f"{where} cannot be read as Parquet: {printable(str(error))[:200]}."
        ) from error
    columns: dict[str, np.ndarray] = {}
    for name in wanted:
        if table.column(name).null_count:
            raise TextError(f"{where}: {name} has empty (null) entries. Leave those rows out.")
        try:
            columns[name] = np.array(table.column(name).to_pylist())
        except ValueError as error:
            raise TextError(f"{where}: the lists in {name} differ in length.") from error
    return columns, list(schema.names)


def class_labels(y: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(labels of both tables, the names of their classes); no names where numbers are predicted."""
    as_texts = y.dtype.kind not in "biuf"
    if as_texts != (others.dtype.kind not in "biuf"):
        raise TextError("data.labels are texts in one of data.path and data.desired_path alone.")
    if not as_texts:
        both = np.concatenate([y, others]).astype(np.float64)
        if not np.isfinite(both).all():
            raise TextError("data.labels hold NaN or infinite numbers. Leave those rows out.")
        if (np.mod(both, 1) != 0).any():
            return y.astype(np.float32), others.astype(np.float32), []
    names = [of.astype(str) if as_texts else of.astype(np.int64) for of in (y, others)]
    classes, numbers = np.unique(np.concatenate(names), return_inverse=True)
    if len(classes) < 2:
        raise TextError(f"data.labels are all {classes[0]}: there is nothing to learn.")
    return numbers[: len(y)], numbers[len(y) :], [str(name) for name in classes]
