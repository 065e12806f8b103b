"""Files of records: JSON lines, JSON arrays, CSV, Parquet and Arrow, a record at a time.

A record is a dictionary by field, or a text alone; each comes with its place in the file, counted
from 0. Of columns only those that are wanted are read, and never more than a batch at once.
"""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, cast

from lljax.data.decoding import text_blocks
from lljax.data.errors import TextError
from lljax.safe_text import printable

_ROWS = 1024  # of Parquet and Arrow that are read at once
_LONGEST_CELL = 1 << 30
TOO_LONG = object()
"""The value of a record that is not read because it is too long."""


class Record(NamedTuple):
    """One record of a file."""

    place: int
    value: Any
    """A dictionary, or what stands there instead."""
    at: str
    """Where it is, for messages, e.g. "line 3"."""


def lines(
    file: BinaryIO, encoding: str, where: str, longest: float = math.inf
) -> Iterator[str | None]:
    """The lines of a text, without their ends; None for one of more than `longest` characters."""
    begun: list[str] = []  # parts of a line
    length = 0
    for block in text_blocks(file, encoding, where):
        *ended, rest = block.split("\n")
        for part in ended:
            yield None if length + len(part) > longest else "".join([*begun, part])
            begun, length = [], 0
        length += len(rest)
        begun = [] if length > longest else [*begun, rest]
    if length:
        yield None if length > longest else "".join(begun)


class TooLong(Exception):
    """The first line has more than so many characters; `line` is its number."""

    def __init__(self, line: int, longest: float):
        super().__init__(line, longest)
        self.line, self.longest = line, longest


def json_lines(file: BinaryIO, encoding: str, where: str, longest: int) -> Iterator[Record]:
    """The values of a file with one JSON value a line; empty lines are left out.

    The value of a line that has more than `longest` characters is `TOO_LONG`.

    Raises:
      TooLong: the first one has.
    """
    place = 0
    for number, line in enumerate(lines(file, encoding, where, longest), start=1):
        if line is None:
            if place == 0:
                raise TooLong(number, longest)
            yield Record(place, TOO_LONG, f"line {number}")
            place += 1
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextError(
                f"{where}: line {number} is not JSON ({printable(str(error))}). Each line must be "
                f'an object with a text, such as {{"text": "Once upon a time"}}.'
            ) from error
        yield Record(place, value, f"line {number}")
        place += 1


def json_array(file: BinaryIO, encoding: str, where: str) -> Iterator[Record]:
    """The elements of a JSON array, one by one."""
    import ijson

    if encoding != "utf-8":
        file = cast(BinaryIO, _Recoded(text_blocks(file, encoding, where)))
    try:
        for place, value in enumerate(ijson.items(file, "item", use_float=True)):
            yield Record(place, value, f"element {place + 1}")
    except ijson.JSONError as error:
        raise TextError(
            f"{where} is a JSON array that is damaged or incomplete: {printable(str(error))[:200]}."
        ) from error
    except UnicodeDecodeError as error:
        raise TextError(
            f"{where} is a JSON array, but not in UTF-8: set data.encoding to what it is in."
        ) from error


class _Recoded:
    """Blocks of text as a file of UTF-8."""

    def __init__(self, blocks: Iterator[str]):
        self._blocks = blocks

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""
        return next(self._blocks, "").encode("utf-8", "replace")


def table(
    file: BinaryIO, encoding: str, fields: Sequence[str], where: str, delimiter: str
) -> Iterator[Record]:
    """The rows of a CSV file with a header, as RFC 4180 has them: a cell may hold line ends."""
    csv.field_size_limit(_LONGEST_CELL)

    ended = (f"{line}\n" for line in lines(file, encoding, where))
    reader = csv.reader(ended, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        columns_of(header, fields, where)
        place = 0
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise TextError(
                    f"{where}: line {reader.line_num} has {len(row)} cells, and the header has "
                    f"{len(header)}. A cell with a delimiter or a line end needs quotes around it."
                )
            yield Record(place, dict(zip(header, row, strict=True)), f"row {place + 1}")
            place += 1
    except csv.Error as error:
        raise TextError(f"{where}: line {reader.line_num}: {printable(str(error))}.") from error


def parquet(path: str, fields: Sequence[str], where: str) -> Iterator[Record]:
    """The rows of a Parquet file, with those of its columns that hold the fields."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = columns_of(file.schema_arrow.names, fields, where)
            batches = file.iter_batches(batch_size=_ROWS, columns=columns)
            yield from _rows(batches, file.schema_arrow.names)
    except (pyarrow.ArrowException, OSError, OverflowError) as error:
        raise _damaged(where, "a Parquet file", error) from error


def arrow(path: str, fields: Sequence[str], where: str) -> Iterator[Record]:
    """The rows of an Arrow file, in the form of a file or of a stream."""
    import pyarrow

    try:
        with pyarrow.memory_map(path) as source:
            try:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            except pyarrow.ArrowInvalid:
                source.seek(0)
                reader = batches = pyarrow.ipc.open_stream(source)
            names = reader.schema.names
            columns = columns_of(names, fields, where)
            pieces = (
                batch.select(columns).slice(start, _ROWS)
                for batch in batches
                for start in range(0, batch.num_rows, _ROWS)
            )
            yield from _rows(pieces, names)
    except (pyarrow.ArrowException, OSError, OverflowError) as error:
        raise _damaged(where, "an Arrow file", error) from error


def columns_of(names: Sequence[str], fields: Sequence[str], where: str) -> list[str]:
    """The columns that hold the fields; a field may be nested in one."""
    heads = {*fields, *(field.partition(".")[0] for field in fields)}
    found = [name for name in names if name in heads]
    for name in found:
        if found.count(name) > 1:
            raise TextError(
                f"{where} has {found.count(name)} columns of the name {printable(name)}, and it is "
                f"not known which of them is meant. Give each a name of its own."
            )
    return found


def _rows(batches: Any, names: Sequence[str]) -> Iterator[Record]:
    place = 0
    others = dict.fromkeys(names)  # so that a message can name what is there
    for batch in batches:
        for row in moments_as_text(batch).to_pylist():
            yield Record(place, others | row, f"row {place + 1}")
            place += 1


def moments_as_text(rows: Any) -> Any:
    """A table or batch of Arrow; its moments may lie beyond those that Python has a form for."""
    import pyarrow

    for column, field in enumerate(rows.schema):
        if pyarrow.types.is_timestamp(field.type) or pyarrow.types.is_date(field.type):
            as_text = rows.column(column).cast(pyarrow.string())
            rows = rows.set_column(column, field.name, as_text)
    return rows


def _damaged(where: str, kind: str, error: Exception) -> TextError:
    first = printable(str(error)).strip().splitlines() or [type(error).__name__]
    return TextError(f"{where} is {kind} that is damaged or incomplete: {first[0][:200]}.")
