"""Where text comes from: files, URLs, the TensorFlow Datasets catalogue, or Python's own manual.

`read_text` turns any of them into documents. Messages of `TextError` name the settings as on the
command line (`data.path`), so that a caller can pass them on as they are.
"""

import dataclasses
import re
from pathlib import Path
from typing import NamedTuple

from lljax.data import cache, catalogue, remote
from lljax.data.documents import Documents, split_documents
from lljax.data.errors import TextError
from lljax.data.files import JSON_LINES, Texts, read_file, take_bytes
from lljax.safe_text import printable, without_secrets

__all__ = ["EMBEDDED", "Text", "TextError", "TextSettings", "read_documents", "read_text"]

EMBEDDED = "the embedded text"
"""What messages call Python's manual."""


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Which text, and how it becomes sequences of tokens.

    Raises:
      TextError: a value is outside its range.
    """

    path: str | None = None
    """A file (.txt, or .jsonl with a field `text`; either also as gzip), or the URL of one. Without
    path and tfds it is the manual that ships with Python."""
    tfds: str | None = None
    """A name in the TensorFlow Datasets catalogue, e.g. tiny_shakespeare."""
    separator: str | None = None
    r"""What stands between documents (\n and \t are understood); <|endoftext|> if that occurs in
    the text, else blank lines, when not given; where there are none either, line ends, if each line
    is a document. Each line of a .jsonl is one."""
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
                f"data.path and data.tfds both name a text ({_shown(self.path)} and "
                f"{_shown(self.tfds)}). Give one."
            )
        if self.separator == "":
            raise TextError("data.separator must not be empty. Leave it out for the default.")
        for name, least in (("max_bytes", 1), ("vocab_size", 16), ("context", 2)):
            value = getattr(self, name)
            if value < least:
                raise TextError(f"data.{name} must be at least {least}; got {value}.")

    @property
    def cache_folder(self) -> Path:
        if self.cache_dir is None:
            return cache.default_folder()
        return _expanded(self.cache_dir, "data.cache_dir")

    @property
    def source(self) -> str:
        """Setting and value, for messages: without secrets of a URL."""
        if self.path is not None:
            return f"data.path: {_shown(self.path)}"
        if self.tfds is not None:
            return f"data.tfds: {_shown(self.tfds)}"
        return EMBEDDED


def _shown(text: str) -> str:
    return printable(without_secrets(text))


def _expanded(path: str, setting: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise TextError(
            f"{setting}: {_shown(path)} begins with the home folder of a user that is not known. "
            f"Write the path out."
        ) from error


class Text(NamedTuple):
    """A text that was read."""

    documents: list[str]
    source: str
    """Setting and value."""
    bytes_read: int
    size: int | None
    """Bytes of the whole text, where it is known though not all was read."""
    cut: bool
    """There was more than `max_bytes`."""
    divided_by: str
    """What stands between documents, in words."""
    repeated: int
    empty: int


def read_documents(settings: TextSettings) -> list[str]:
    """The documents that `read_text` finds."""
    return read_text(settings).documents


def read_text(settings: TextSettings) -> Text:
    """The documents of a text, in its order, stripped, without empty and repeated ones.

    Raises:
      TextError: there is no such text, or it is damaged, empty or out of reach.
    """
    if settings.path is not None:
        scheme = re.match("([A-Za-z][A-Za-z0-9+.-]*)://", settings.path)
        if scheme and scheme[1].lower() in ("http", "https"):
            return _read_url(settings.path, settings)
        if scheme:
            raise TextError(
                f"{settings.source} cannot be fetched: only http:// and https:// can. Fetch the "
                f"file and give its path as data.path."
            )
        path = _expanded(settings.path, "data.path")
        return _text(read_file(path, settings.source, settings.max_bytes), settings)
    if settings.tfds is not None:
        return _text(_read_catalogue(settings.tfds, settings), settings)
    texts = (text.encode() for text in _python_manual())
    return _text(take_bytes(texts, settings.max_bytes), settings)


def _read_url(url: str, settings: TextSettings) -> Text:
    # Only of plain text is it known beforehand how much has to be fetched.
    packed = url.partition("#")[0].partition("?")[0].endswith((".gz", *JSON_LINES))
    limit = None if packed else settings.max_bytes + 1
    fetched = remote.download(url, settings.cache_folder / "downloads", limit)
    try:
        found = read_file(fetched.path, settings.source, settings.max_bytes)
        if found.cut and not packed:
            found = found._replace(size=fetched.size)
        return _text(found, settings)
    except TextError:
        remote.forget(fetched)
        raise


def _read_catalogue(name: str, settings: TextSettings) -> Texts:
    """A prepared data set that turns out to be damaged is prepared and read once more."""
    for last in (False, True):
        texts = catalogue.read_catalogue(name, settings.cache_folder)
        try:
            return take_bytes(
                (text.encode("utf-8", "replace") for text in texts), settings.max_bytes
            )
        except catalogue.Damaged as error:
            if last:
                raise TextError(
                    f"data.tfds: {name} is damaged again just after it was prepared. Check the "
                    f"disk of data.cache_dir."
                ) from error
    raise AssertionError("not reached")


def _python_manual() -> list[str]:
    """Some 460,000 characters of English and code; they differ a little between versions."""
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items())]


def _text(found: Texts, settings: TextSettings) -> Text:
    bytes_read = sum(map(len, found.texts))
    split: Documents = split_documents(found, settings.separator, settings.context)
    if not split.documents:
        raise TextError(f"{settings.source} holds no text. Give a file with some.")
    return Text(
        split.documents,
        settings.source,
        bytes_read,
        found.size,
        found.cut,
        split.divided_by,
        split.repeated,
        split.empty,
    )
