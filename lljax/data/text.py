"""Where text comes from: files, URLs, the TensorFlow Datasets catalogue, or Python's own manual.

`read_documents` turns any of them into a list of documents. Messages of `TextError` name the
settings as on the command line (`data.path`), so that a caller can pass them on as they are.
"""

import codecs
import contextlib
import dataclasses
import difflib
import gzip
import json
import os
import re
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from lljax.data.remote import TextError, download, read_catalogue

END_OF_TEXT = "<|endoftext|>"
"""Between the documents of TinyStories and of many other corpora."""
_JSON_LINES = (".jsonl", ".ndjson")
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Which text, and how it becomes sequences of tokens.

    Raises:
      TextError: a value is outside its range.
    """

    path: str | None = None
    """A file (.txt, or .jsonl with a field `text`; either also as .gz), or the URL of one. Without
    path and tfds it is the manual that ships with Python."""
    tfds: str | None = None
    """A name in the TensorFlow Datasets catalogue, e.g. tiny_shakespeare."""
    separator: str | None = None
    r"""What stands between documents (\n and \t are understood); <|endoftext|> if that occurs in
    the text, else blank lines, when not given. Each line of a .jsonl is a document."""
    max_bytes: int = 64 * 2**20
    """Read at most this much of the text, up to the last whole document."""
    vocab_size: int = 1000
    """Tokens, with those for padding and for unknown text."""
    tokenizer: str | None = None
    """A sentencepiece model file (tokenizer.model), cut to its vocab_size most frequent tokens. One
    is trained on the text when not given."""
    context: int = 64
    """Tokens a model reads; a sequence has one more, the last to predict."""
    cache_dir: str | None = None
    """For downloads and tokenised text; $XDG_CACHE_HOME/lljax or ~/.cache/lljax when not given."""

    def __post_init__(self) -> None:
        if self.path is not None and self.tfds is not None:
            raise TextError(
                f"data.path and data.tfds both name a text ({self.path} and {self.tfds}). Give one."
            )
        if self.separator == "":
            raise TextError("data.separator must not be empty. Leave it out for the default.")
        for name, least in (("max_bytes", 1), ("vocab_size", 16), ("context", 2)):
            value = getattr(self, name)
            if value < least:
                raise TextError(f"data.{name} must be at least {least}; got {value}.")

    @property
    def cache_folder(self) -> Path:
        if self.cache_dir is not None:
            return Path(self.cache_dir).expanduser()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "lljax"

    @property
    def source(self) -> str:
        """Setting and value, for messages."""
        if self.path is not None:
            return f"data.path: {self.path}"
        return f"data.tfds: {self.tfds}" if self.tfds is not None else "the embedded text"


class _Texts(NamedTuple):
    """What a source holds, before it is split into documents."""

    texts: list[str]
    cut: bool
    """The last text was cut short, to keep to `max_bytes`."""
    are_documents: bool = False
    """Each is one document already, so that only a separator that was asked for splits it."""


def read_documents(settings: TextSettings) -> list[str]:
    """The documents of a text, in its order, stripped, without empty and repeated ones.

    Exact repetitions are dropped because one copy could be trained on and the other tested on.
    Line ends become "\\n".

    Raises:
      TextError: there is no such text, or it is damaged, empty or out of reach.
    """
    if settings.path is not None:
        found = _read_file(_local_path(settings), settings)
    elif settings.tfds is not None:
        found = _take_bytes(
            read_catalogue(settings.tfds, settings.cache_folder), settings.max_bytes
        )
    else:
        found = _take_bytes(_python_manual(), settings.max_bytes)
    documents = _split(found, settings.separator)
    if not documents:
        raise TextError(f"{settings.source} holds no text. Give a file with some.")
    return documents


def _local_path(settings: TextSettings) -> Path:
    path = settings.path or ""
    if not path.startswith(("http://", "https://")):
        return Path(path).expanduser()
    # Only of plain text is it known beforehand how much has to be fetched.
    packed = urllib.parse.urlsplit(path).path.endswith((".gz", *_JSON_LINES))
    limit = None if packed else settings.max_bytes + 1
    return download(path, settings.cache_folder / "downloads", limit)


def _python_manual() -> list[str]:
    """Some 460,000 characters of English and code; they differ a little between versions."""
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items())]


def _split(found: _Texts, separator: str | None) -> list[str]:
    texts = [text.replace("\r\n", "\n").replace("\r", "\n") for text in found.texts]
    if separator is not None:
        separator = separator.replace("\\n", "\n").replace("\\t", "\t")
    elif not found.are_documents and any(END_OF_TEXT in text for text in texts):
        separator = END_OF_TEXT
    if separator is not None:
        pieces = [piece for text in texts for piece in text.split(separator)]
    elif found.are_documents:
        pieces = texts
    else:
        pieces = [piece for text in texts for piece in _BLANK_LINES.split(text)]
    if found.cut and len(pieces) > 1:
        pieces.pop()
    stripped = (piece.strip() for piece in pieces)
    return list(dict.fromkeys(piece for piece in stripped if piece))


def _take_bytes(texts: Iterable[str], max_bytes: int) -> _Texts:
    """Texts up to `max_bytes` of UTF-8, the last cut short if need be."""
    taken: list[str] = []
    for text in texts:
        encoded = text.encode()
        if len(encoded) > max_bytes:
            taken.append(encoded[:max_bytes].decode(errors="ignore"))
            return _Texts(taken, cut=True)
        taken.append(text)
        max_bytes -= len(encoded)
    return _Texts(taken, cut=False)


def _read_file(path: Path, settings: TextSettings) -> _Texts:
    where = settings.source
    if path.is_dir():
        raise TextError(f"{where} is a folder. Give a file in it (.txt or .jsonl).")
    try:
        exists = path.exists()
    except OSError as error:  # e.g. a name longer than the file system allows
        raise TextError(f"{where} cannot be read: {error.strerror}.") from error
    if not exists:
        folder = path.parent
        names = [file.name for file in folder.iterdir()] if os.access(folder, os.R_OK) else []
        near = difflib.get_close_matches(path.name, names, 1)
        hint = f" Did you mean {folder / near[0]}?" if near else ""
        raise TextError(f"data.path: there is no file {settings.path}.{hint}")
    name = path.name.removesuffix(".gz")
    try:
        with contextlib.ExitStack() as stack:
            if path.suffix == ".gz":
                file = cast(BinaryIO, stack.enter_context(gzip.open(path, "rb")))
            else:
                file = stack.enter_context(path.open("rb"))
            if name.endswith(_JSON_LINES):
                found = _take_bytes(_read_json_lines(file, where), settings.max_bytes)
                return found._replace(are_documents=True)
            return _read_plain(file, where, settings.max_bytes)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TextError(
            f"{where} cannot be unpacked as gzip ({error}): it is damaged, incomplete or no gzip "
            f"file. Fetch it again, or drop the .gz if it is plain text."
        ) from error
    except OSError as error:
        raise TextError(f"{where} cannot be read: {error.strerror or error}.") from error


def _read_plain(file: BinaryIO, where: str, max_bytes: int) -> _Texts:
    content = file.read(max_bytes + 1)
    cut = len(content) > max_bytes
    content = content[:max_bytes].removeprefix(codecs.BOM_UTF8)
    try:
        # A cut may go through a character: an incremental decoder leaves its first bytes out.
        text = codecs.getincrementaldecoder("utf-8")().decode(content, final=not cut)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TextError(_not_utf8(where, line, content[error.start])) from error
    return _Texts([text], cut)


def _not_utf8(where: str, line: int, byte: int) -> str:
    return (
        f"{where} is not UTF-8 text: byte 0x{byte:02x} in line {line}. Convert it, e.g. with "
        f"`iconv -f latin1 -t utf-8`."
    )


def _read_json_lines(file: BinaryIO, where: str) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise TextError(_not_utf8(where, number, line[error.start])) from error
        except (ValueError, RecursionError) as error:
            raise TextError(
                f"{where}: line {number} is not JSON ({error}). Each line must be an object with a "
                f'text, such as {{"text": "Once upon a time"}}.'
            ) from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            got = f"the fields {', '.join(record)}" if isinstance(record, dict) else "no object"
            raise TextError(
                f"{where}: line {number} must have a string in the field `text`; it has {got}."
            )
        # JSON can spell half of a surrogate pair, which no UTF-8 text holds.
        yield text.encode("utf-8", "replace").decode()
