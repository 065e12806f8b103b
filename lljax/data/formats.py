"""What a file is, found by its content, so that nothing but text is read as text."""

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
from typing import Literal, NamedTuple

from lljax.data.decoding import encoding_of

_MAGIC = (
    (b"PK\x03\x04", "a zip archive (or a file made of one, such as .docx, .xlsx, .npz or .pt)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"FEA1", "a Feather file of version 1"),
    (b"Obj\x01", "an Avro file"),
    (b"%PDF-", "a PDF file"),
    (b"%!PS", "a PostScript file"),
    (b"{\\rtf", "an RTF file"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"RIFF", "a RIFF file (WebP, WAV or AVI)"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"version https://git-lfs.github.com/spec/", "not the text but a Git LFS pointer to it"),
)
_CONFIRMED = {
    b"ID3": re.compile(rb"ID3[\x02-\x04]\x00"),
    b"RIFF": re.compile(rb"RIFF.{4}(WEBP|WAVE|AVI )", re.DOTALL),
}
"""What else must stand there where the first letters could begin a text."""
_MARKUP_BEFORE = rb"(\s|<\?xml[^>]*\?>|<!--.*?-->)*"
_HTML = re.compile(_MARKUP_BEFORE + rb"<(!doctype\s+html|html[\s>])", re.IGNORECASE | re.DOTALL)
_CURES = {
    "a web page": "Give a file with the page's text.",
    "not the text but a Git LFS pointer to it": "Fetch the file itself, e.g. with `git lfs pull`.",
    "a Feather file of version 1": "Write it anew, as Parquet or Arrow.",
}
HEAD_BYTES = 1 << 16
READABLE = "plain text, JSON lines, a JSON array, CSV, Parquet or Arrow"
_JSON_LINES, _TABLES = (".jsonl", ".ndjson"), {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_COLUMN = re.compile(r"[^\W\d][\w.-]{0,40}")
_DELIMITERS = ",\t;|"


class Form(NamedTuple):
    """How a file is read."""

    kind: Literal["plain", "json lines", "json array", "table", "parquet", "arrow"]
    encoding: str = "utf-8"
    delimiter: str = ""  # of a table


def what_it_is_not(head: bytes, encoding: str | None = None) -> str | None:
    """What a file is that is no text, and how to make text of it; None if it may be text.

    Args:
      head: up to `HEAD_BYTES`, unpacked.
      encoding: the one that was asked for.
    """
    if _table_file(head) is not None:
        return None
    kind = _kind(head, encoding)
    if kind is None:
        return None
    return f"is {kind}. {_CURES.get(kind, f'Give {READABLE}.')}"


def _kind(head: bytes, encoding: str | None) -> str | None:
    for magic, kind in _MAGIC:
        if head.startswith(magic) and (magic not in _CONFIRMED or _CONFIRMED[magic].match(head)):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[4:8] == b"ftyp":
        return "a video or HEIF image"
    if _HTML.match(head.removeprefix(codecs.BOM_UTF8)):
        return "a web page"
    is_bytewise = (encoding or encoding_of(head)).startswith(("utf-8", "utf_8"))
    return (
        "a binary file" if is_bytewise and 100 * head[:4096].count(0) > len(head[:4096]) else None
    )


def form_of(head: bytes, is_whole: bool, name: str, field: str, encoding: str | None) -> Form:
    """How to read a file that is text, or a table of one of the binary kinds.

    The content decides. The name does where the content may be either: `.jsonl`, `.csv`, `.tsv`.

    Args:
      head: up to `HEAD_BYTES`, unpacked.
      is_whole: whether that is all.
      name: without the endings of packings.
      field: of a record, that holds the text.
      encoding: the one that was asked for.
    """
    if form := _table_file(head):
        return form
    encoding = encoding or encoding_of(head)
    text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head)
    start = text.lstrip()
    if start.startswith("[") and _begins_array(start, is_whole):
        return Form("json array", encoding)
    lines = text.split("\n")
    if not is_whole and len(lines) > 1:
        del lines[-1]  # it is cut off
    filled = [line for line in lines if line.strip()]
    objects = [_is_object(line) for line in filled[:3]]
    if name.endswith(_JSON_LINES) or (objects and all(objects)):
        return Form("json lines", encoding)
    if not is_whole and len(lines) == 1 and re.match(r'\s*\{\s*"[^"\n]{0,80}"\s*:', text):
        return Form("json lines", encoding)  # one line, longer than the head
    ending = next((ending for ending in _TABLES if name.endswith(ending)), None)
    delimiter = _delimiter(text, is_whole, field, None if ending is None else _TABLES[ending])
    if delimiter is not None:
        return Form("table", encoding, delimiter)
    return Form("plain", encoding)


def json_object(head: bytes) -> bool:
    """Whether a file that is no JSON lines is one JSON object over many lines."""
    return bool(re.match(rb'\s*\{\s*"([^"\\\n]|\\.)*"\s*:', head.removeprefix(codecs.BOM_UTF8)))


def _table_file(head: bytes) -> Form | None:
    """Parquet and Arrow; an Arrow stream begins with a mark and the length of a message."""
    if head.startswith(b"PAR1"):
        return Form("parquet")
    is_stream = (
        head[:4] == b"\xff\xff\xff\xff" and 0 < int.from_bytes(head[4:8], "little") < 1 << 28
    )
    return Form("arrow") if is_stream or head.startswith(b"ARROW1") else None


def _begins_array(start: str, is_whole: bool) -> bool:
    """Whether a text is a JSON array of objects or texts."""
    if is_whole:
        try:
            values = json.loads(start)
        except (ValueError, RecursionError):
            values = None
        if values is not None:
            return bool(values) and isinstance(values[0], dict | str)
    inside = start[1:].lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(inside)
    except (ValueError, RecursionError):
        return re.match(r'(\{\s*"[^"\n]{0,80}"\s*:)', inside) is not None
    behind = inside[end:].lstrip()[:1]
    return isinstance(value, dict | str) and behind in ("", ",", "]")


def _is_object(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _delimiter(text: str, is_whole: bool, field: str, named: str | None) -> str | None:
    """What divides the cells of a table; None where a text is none.

    A name such as .csv says that it is one. Without it the header must name the field, or be of
    words without spaces, and the first rows must have as many cells, but for one in ten.
    """
    header = text.partition("\n")[0]
    if named is not None:
        counts = {d: header.count(d) for d in (named, *_DELIMITERS)}
        return named if counts[named] else max(counts, key=lambda d: counts[d])
    for delimiter in _DELIMITERS:
        cells = next(csv.reader([header], delimiter=delimiter), [])
        names_field = field.partition(".")[0] in cells
        if len(cells) < 2 or not (names_field or all(map(_COLUMN.fullmatch, cells))):
            continue
        rows = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
        with contextlib.suppress(csv.Error):
            sizes = [len(row) for row in itertools.islice(rows, 50) if row]
            sizes = sizes if is_whole or len(sizes) == 50 else sizes[:-1]
            if len(sizes) > 1 and sizes.count(len(cells)) >= 0.9 * len(sizes):
                return delimiter
    return None
