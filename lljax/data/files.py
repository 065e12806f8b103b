"""From a file to the documents in it, whatever its form: one by one, so that memory is bounded."""

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from lljax.data import fields, records
from lljax.data.decoding import text_blocks
from lljax.data.documents import PlainText
from lljax.data.errors import TextError
from lljax.data.formats import HEAD_BYTES, form_of, json_object, what_it_is_not
from lljax.data.unpacking import PACKED_ENDINGS, NotUnpacked, unpack
from lljax.safe_text import printable

BY_FILE, BY_FOLDER = "file", "folder"
"""What `data.group` may be beside the name of a field."""


class Reading(NamedTuple):
    """How files are read: the settings of `TextSettings` that say so."""

    field: str = "text"
    template: str = fields.CHAT_TEMPLATE
    group: str | None = None
    separator: str | None = None
    encoding: str | None = None
    context: int = 64
    longest: int = 64 * 2**20
    """Bytes of one document at most."""
    whole_up_to: int = 0
    """A plain file of at most so many characters is one document."""

    @property
    def mark(self) -> str | None:
        """The separator with \\n and \\t understood."""
        if self.separator is None:
            return None
        return self.separator.replace("\\n", "\n").replace("\\t", "\t")


class Document(NamedTuple):
    """A document, or what stands between two separators and is empty."""

    text: str
    """Stripped."""
    offset: int
    """The number of its record in the file, from 0; in a plain text its first character's."""
    group: str | None
    size: int
    """Bytes of the file's text up to its end, from the end of the one before."""
    is_whole: bool = True
    """Whether it is not cut because it is too long."""
    counts: bool = True
    """Whether it is a document even where it is empty."""


class NotText(TextError):
    """A file holds something else than text; `kind` is what, in a few words."""

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


class SourceFile:
    """One file; a context manager.

    Attributes:
      divided_by: what stands between its documents, in words.
      size: bytes of its text, where that is known beforehand.
    """

    def __init__(self, path: Path, where: str, reading: Reading):
        """`where` is what messages call it. `__enter__` opens it."""
        self._path, self._where, self._reading = path, where, reading
        self._stack = contextlib.ExitStack()
        self.divided_by = "records"
        self.size: int | None = None

    def __enter__(self) -> "SourceFile":
        with _in_words(self._where):
            try:
                self._open()
            except BaseException:
                self._stack.close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Document]:
        """The documents, in the file's order; once.

        Raises:
          TextError: the file is not what its beginning promises, or is damaged.
        """
        with _in_words(self._where):
            if self._plain is not None:
                yield from plain_documents(self._plain, self._group())
            else:
                yield from self._record_documents()

    def _open(self) -> None:
        raw = self._stack.enter_context(self._path.open("rb"))
        name, reading = self._path.name.lower(), self._reading
        file, layers = unpack(raw, name)
        for ending in PACKED_ENDINGS if layers else ():
            name = name.removesuffix(ending)
        self._stack.enter_context(file)
        head = file.read(HEAD_BYTES)
        behind = cast(Any, _Behind(head, file))
        self._file: BinaryIO = self._stack.enter_context(io.BufferedReader(behind, 1 << 20))
        other = what_it_is_not(head, reading.encoding)
        if other is not None:
            raise NotText(f"{self._where} {other}", other.removeprefix("is ").partition(".")[0])
        self._form = form_of(head, len(head) < HEAD_BYTES, name, reading.field, reading.encoding)
        if self._form.kind in ("parquet", "arrow") and layers:
            kind = "a Parquet" if self._form.kind == "parquet" else "an Arrow"
            raise NotText(
                f"{self._where} is {kind} file within {' and '.join(layers)}, which cannot be read "
                f"in pieces. Unpack it first.",
                f"packed {self._form.kind}",
            )
        if self._form.kind == "plain" and json_object(head):
            raise NotText(
                f"{self._where} is JSON, but neither a JSON array nor one object a line. Write its "
                f"records one a line, e.g. with `jq -c`.",
                "a JSON object",
            )
        self._plain: PlainText | None = None
        if self._form.kind == "plain":
            status = os.fstat(raw.fileno())
            if stat.S_ISREG(status.st_mode) and not layers:
                self.size = status.st_size
            self._plain = PlainText(
                text_blocks(self._file, self._form.encoding, self._where),
                reading.mark,
                reading.context,
                reading.longest,
                reading.whole_up_to,
            )
            self.divided_by = self._plain.divided_by

    def _record_documents(self) -> Iterator[Document]:
        reading, by_file = self._reading, self._group()
        for place, value, at in self._records():
            if value is records.TOO_LONG:
                yield Document("", place, None, reading.longest + 1, is_whole=False, counts=False)
                continue
            where = f"{self._where}: {at}"
            text = fields.text_of(value, reading.field, reading.template, where)
            group = by_file
            if reading.group is not None and by_file is None:
                group = fields.group_of(value, reading.group, where)
            for part in [text] if reading.mark is None else text.split(reading.mark):
                # JSON can spell half of a surrogate pair, which no UTF-8 text holds.
                encoded = part.encode("utf-8", "replace")
                whole = len(encoded) <= reading.longest
                part = encoded[: reading.longest].decode("utf-8", "ignore").strip()
                yield Document(part, place, group, len(encoded), whole)

    def _records(self) -> Iterator[records.Record]:
        reading, where = self._reading, self._where
        kind, encoding, delimiter = self._form
        wanted = [reading.field]
        if reading.group not in (None, BY_FILE, BY_FOLDER):
            wanted.append(str(reading.group))
        if kind == "parquet":
            return records.parquet(os.fspath(self._path), wanted, where)
        if kind == "arrow":
            return records.arrow(os.fspath(self._path), wanted, where)
        if kind == "table":
            return records.table(self._file, encoding, wanted, where, delimiter)
        if kind == "json array":
            return records.json_array(self._file, encoding, where)
        # JSON may spell a byte of text in several, and there may be other fields.
        return records.json_lines(self._file, encoding, where, 2 * reading.longest + (1 << 16))

    def _group(self) -> str | None:
        """The group of the whole file; None where each record has its own, or there are none."""
        if self._reading.group == BY_FILE:
            return fields.as_text(self._path.name)
        if self._reading.group == BY_FOLDER:
            return fields.as_text(self._path.absolute().parent.name)
        if self._reading.group is not None and self._form.kind == "plain":
            raise TextError(
                f"data.group is {printable(self._reading.group)}, a field of records, but "
                f"{self._where} is plain text. Set data.group to {BY_FILE} or {BY_FOLDER}, or give "
                f"a file of records."
            )
        return None


def plain_documents(plain: PlainText, group: str | None) -> Iterator[Document]:
    """The documents of a plain text, and the empty places where others could be."""
    for number, piece in enumerate(plain):
        text = piece.text.strip()
        lead = len(piece.text) - len(piece.text.lstrip())
        # An end behind the last one is no document.
        counts = bool(text) or (plain.counts_empty and number > 0 and not piece.is_last)
        yield Document(text, piece.offset + lead, group, piece.size, piece.is_whole, counts)


class _Behind(io.RawIOBase):
    """A stream with bytes in front that were read from it already."""

    def __init__(self, head: bytes, file: BinaryIO):
        self._head, self._file = io.BytesIO(head), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._head.read(len(buffer)) or self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


@contextlib.contextmanager
def _in_words(where: str) -> Iterator[None]:
    """Makes a TextError of whatever the file system or a packing has against the file."""
    try:
        yield
    except NotUnpacked as error:
        kind = printable(str(error))
        raise TextError(
            f"{where} cannot be unpacked as {kind}: it is damaged, incomplete or not packed so. "
            f"Fetch it again, or take the ending off its name if it is plain text."
        ) from error
    except records.TooLong as error:
        raise TextError(
            f"{where}: line {error.line} has more than {error.longest:,} characters, which is too "
            f"much for data.max_bytes. Raise it, or check that the file has one document a line."
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, TextError):
            raise
        # E.g. a name longer than the file system allows, or with a character that none has.
        reason = getattr(error, "strerror", None) or error
        raise TextError(f"{where} cannot be read: {printable(str(reason))}.") from error
