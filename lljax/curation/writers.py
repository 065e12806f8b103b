"""Rows to a file, a batch at a time: JSON lines, CSV, Parquet or ArrayRecord.

The file appears under its name when all is written; what a kill leaves has another name.
"""

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from lljax.artifacts.failures import cannot_write
from lljax.errors import UserError

Format = Literal["jsonl", "csv", "parquet", "arrayrecord"]
ENDINGS: Mapping[Format, str] = {
    "jsonl": ".jsonl",
    "csv": ".csv",
    "parquet": ".parquet",
    "arrayrecord": ".array_record",
}


def named_format(path: Path, form: Format | None) -> Format:
    """The format of the file `--out`: as `--format` or its ending has it, or else JSON lines.

    Raises:
      UserError: the two name different formats, or the path is a folder.
    """
    if path.is_dir():
        raise UserError(
            f"--out must be a file, and {path} is a folder. Name a file in it, such as "
            f"{path / 'scored.jsonl'}."
        )
    by_ending = _by_ending(path)
    if form is not None and by_ending not in (None, form):
        raise UserError(
            f"--format must fit --out: got {form} and {path.name}, which ends like {by_ending}. "
            f"Leave --format out, or end the name with {ENDINGS[form]}."
        )
    return form or by_ending or "jsonl"


def check_folder(path: Path) -> None:
    """UserError where the `--out` of files with names of their own is a file, or looks like one."""
    if path.is_dir():
        return
    ending = _by_ending(path)
    if path.exists() or ending is not None:
        folder = path.with_suffix("")
        if folder.is_file():
            folder = folder.with_name(f"{folder.name}-export")
        raise UserError(
            f"--out must be a folder, for a file of documents and one of their pieces; got {path}, "
            f"which {'is a file' if path.exists() else 'ends like a file'}. For example: "
            f"--out {folder}{f' --format {ending}' if ending else ''}."
        )


def _by_ending(path: Path) -> Format | None:
    return next((form for form, ending in ENDINGS.items() if path.suffix == ending), None)


class Writer(Protocol):
    def __call__(self, rows: Sequence[Mapping[str, Any]], /) -> None:
        """Writes rows, all with the same columns."""
        ...


@contextlib.contextmanager
def open_writer(path: Path, form: Format, columns: Mapping[str, Any]) -> Iterator[Writer]:
    """A writer of rows.

    Args:
      path: the file, replaced when the context is left without an exception.
      form: its format; an ArrayRecord holds one JSON object a record.
      columns: the type of each, int, float or str; a value may be None. In Parquet and JSON also
        list[float] and list[str].

    Raises:
      RunFailed: the disk does not take it; the old file is as it was.
    """
    part = path.with_name(f".{path.name}.part")
    openers = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "arrayrecord": _array_record}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with openers[form](part, columns) as write:
            yield write
        os.replace(part, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def _jsonl(path: Path, columns: Mapping[str, Any]) -> Iterator[Writer]:
    with path.open("w", encoding="utf-8") as file:
        yield lambda rows: file.writelines(
            json.dumps(row, ensure_ascii=False) + "\n" for row in rows
        )


@contextlib.contextmanager
def _csv(path: Path, columns: Mapping[str, Any]) -> Iterator[Writer]:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        yield writer.writerows


@contextlib.contextmanager
def _parquet(path: Path, columns: Mapping[str, Any]) -> Iterator[Writer]:
    import pyarrow
    import pyarrow.parquet

    kinds: dict[Any, Any] = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    kinds[list[float]], kinds[list[str]] = map(pyarrow.list_, (kinds[float], kinds[str]))
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        yield lambda rows: writer.write_table(pyarrow.Table.from_pylist(list(rows), schema))


@contextlib.contextmanager
def _array_record(path: Path, columns: Mapping[str, Any]) -> Iterator[Writer]:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(os.fspath(path), "group_size:1")

    def write(rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            writer.write(json.dumps(row, ensure_ascii=False).encode())

    try:
        yield write
    finally:
        writer.close()
