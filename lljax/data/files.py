"""From a file to the texts in it: plain or JSON lines, either also as gzip."""

import codecs
import contextlib
import difflib
import gzip
import io
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from lljax.data.errors import TextError
from lljax.data.formats import HEAD_BYTES, json_kind, not_utf8, what_it_is
from lljax.data.progress import Progress
from lljax.safe_text import printable

JSON_LINES = (".jsonl", ".ndjson")
_BLOCK = 1 << 20


class Texts(NamedTuple):
    """What a source holds, before it is split into documents."""

    texts: list[bytes]
    """UTF-8."""
    cut: bool
    """There is more text, or the last one was cut short, to keep to `max_bytes`."""
    are_documents: bool = False
    """Each is one document already, so that only a separator that was asked for splits it."""
    size: int | None = None
    """Bytes of the whole text, where that is known though not all is read."""


def take_bytes(texts: Iterable[bytes], max_bytes: int) -> Texts:
    """Texts up to `max_bytes`, the last cut short if need be."""
    taken: list[bytes] = []
    with Progress("reading the text", None) as progress:
        for text in texts:
            if len(text) > max_bytes:
                taken.append(text[:max_bytes].decode(errors="ignore").encode())
                return Texts(taken, cut=True)
            taken.append(text)
            max_bytes -= len(text)
            progress.advance(len(text))
    return Texts(taken, cut=False)


def read_file(path: Path, where: str, max_bytes: int) -> Texts:
    """The text of a file.

    Args:
      path: its name says only whether it is JSON lines; gzip is found by content.
      where: what messages call it.
      max_bytes: of text that is read at most.

    Raises:
      TextError: there is no such file, it cannot be read, or it holds something else than text.
    """
    try:
        if path.is_dir():
            raise TextError(f"{where} is a folder. Give a file in it (.txt or .jsonl).")
        if not path.exists():
            name = where.removeprefix("data.path: ")
            raise TextError(f"data.path: there is no file {name}.{_near(path)}")
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(path.open("rb"))
            status = os.fstat(raw.fileno())
            size = status.st_size if stat.S_ISREG(status.st_mode) else None
            file: BinaryIO = raw
            if raw.peek(2)[:2] == b"\x1f\x8b" or path.suffix == ".gz":
                file, size = cast(BinaryIO, stack.enter_context(gzip.open(raw, "rb"))), None
                path = path.with_name(path.name.removesuffix(".gz"))
            file = cast(BinaryIO, stack.enter_context(io.BufferedReader(file)))  # type: ignore[type-var]
            return _read(file, where, max_bytes, size, path.name.endswith(JSON_LINES))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TextError(
            f"{where} cannot be unpacked as gzip ({printable(str(error))}): it is damaged, "
            f"incomplete or no gzip file. Fetch it again, or drop the .gz if it is plain text."
        ) from error
    except (OSError, ValueError) as error:
        if isinstance(error, TextError):
            raise
        # E.g. a name longer than the file system allows, or with a character that none has.
        reason = getattr(error, "strerror", None) or error
        raise TextError(f"{where} cannot be read: {printable(str(reason))}.") from error


def _near(path: Path) -> str:
    folder = path.parent
    names = [file.name for file in folder.iterdir()] if os.access(folder, os.R_OK) else []
    near = difflib.get_close_matches(path.name, names, 1)
    return f" Did you mean {printable(str(folder / near[0]))}?" if near else ""


def _read(
    file: BinaryIO, where: str, max_bytes: int, size: int | None, is_json_lines: bool
) -> Texts:
    head = file.peek(HEAD_BYTES)[:HEAD_BYTES]  # type: ignore[attr-defined]
    other = what_it_is(head) or (None if is_json_lines else json_kind(head))
    if other is not None:
        raise TextError(f"{where} {other}")
    if is_json_lines:
        lines = _JsonLines(file, where, max_bytes)
        found = take_bytes(lines.texts(), max_bytes)
        return found._replace(are_documents=True, cut=found.cut or lines.cut)
    return _read_plain(file, where, max_bytes, size)


def _read_plain(file: BinaryIO, where: str, max_bytes: int, size: int | None) -> Texts:
    content = bytearray()
    # A cut may go through a character: an incremental decoder leaves its first bytes out.
    decoder = codecs.getincrementaldecoder("utf-8")()
    total = max_bytes if size is None else min(size, max_bytes)
    with Progress("reading the text", total) as progress:
        while block := file.read(min(_BLOCK, max_bytes + 1 - len(content))):
            waiting = len(decoder.getstate()[0])
            content += block
            _check_utf8(decoder, content, len(content) - len(block) - waiting, block, where)
            progress.advance(len(block))
    cut = len(content) > max_bytes
    if cut:
        del content[max_bytes:]
        del content[_whole_characters(content) :]
    elif decoder.getstate()[0]:
        raise TextError(f"{where} is not UTF-8 text, or is incomplete: it ends within a character.")
    if content.startswith(codecs.BOM_UTF8):
        del content[: len(codecs.BOM_UTF8)]
    return Texts([bytes(content)], cut, size=size if cut else None)


def _check_utf8(
    decoder: codecs.IncrementalDecoder, content: bytearray, start: int, block: bytes, where: str
) -> None:
    """TextError if a block is not UTF-8; `start` is where its first character begins."""
    try:
        decoder.decode(block)
    except UnicodeDecodeError as error:
        place = start + error.start
        line = content.count(b"\n", 0, place) + 1
        raise TextError(f"{where} {not_utf8(line, content[place])}") from error


def _whole_characters(content: bytearray) -> int:
    """How many of the bytes are whole characters of UTF-8 text that was cut anywhere."""
    end = len(content)
    for start in range(end - 1, max(end - 5, -1), -1):
        byte = content[start]
        if byte & 0xC0 != 0x80:  # the first byte of the last character
            length = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return end if start + length <= end else start
    return end


class _JsonLines:
    """The texts of JSON lines, and whether they were ended early."""

    def __init__(self, file: BinaryIO, where: str, max_bytes: int):
        self._file, self._where = file, where
        # JSON may spell a byte of text in several, and there may be other fields.
        self._longest = 2 * max_bytes + (1 << 16)
        self.cut = False

    def texts(self) -> Iterator[bytes]:
        number = 0
        while line := self._file.readline(self._longest + 1):
            number += 1
            if len(line) > self._longest:
                if number == 1:
                    raise TextError(
                        f"{self._where}: line 1 has more than {self._longest:,} bytes, which is "
                        f"too much for data.max_bytes. Raise it, or check that the file has one "
                        f"document a line."
                    )
                self.cut = True
                return
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield self._text(number, line)

    def _text(self, number: int, line: bytes) -> bytes:
        where = f"{self._where}: line {number}"
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise TextError(f"{self._where} {not_utf8(number, line[error.start])}") from error
        except (ValueError, RecursionError) as error:
            array = number == 1 and line.lstrip().startswith(b"[")
            hint = " It begins a JSON array: write one element a line." if array else ""
            raise TextError(
                f"{where} is not JSON ({printable(str(error))}).{hint} Each line must be an object "
                f'with a text, such as {{"text": "Once upon a time"}}.'
            ) from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            fields = f"the fields {', '.join(record)[:200]}" if isinstance(record, dict) else ""
            got = fields or "no object"
            hint = " but a JSON array: write one element a line" if isinstance(record, list) else ""
            raise TextError(
                f"{where} must have a string in the field `text`; it has {printable(got)}{hint}."
            )
        # JSON can spell half of a surrogate pair, which no UTF-8 text holds.
        return text.encode("utf-8", "replace")
