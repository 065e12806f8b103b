"""The settings that say which text is read, and how it becomes sequences of tokens."""

import dataclasses
from pathlib import Path

from lljax.data import fields, places
from lljax.data.decoding import check_encoding
from lljax.data.errors import TextError
from lljax.data.files import Reading

_SMALL_FILE = 1 << 18  # characters; among many files a plain one up to that is one document


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Which text, and how it becomes sequences of tokens.

    Raises:
      TextError: a value is outside its range.
    """

    path: str | None = None
    """What to train on: a file, a glob in quotes, a folder, the URL of a file, or tfds:NAME of the
    TensorFlow Datasets catalogue. Plain text, JSON lines, a JSON array, CSV, TSV, Parquet or Arrow,
    also packed by gzip, xz, bzip2, zstd or lz4; found by content. Without path and tfds it is the
    manual that ships with Python."""
    desired_path: str | None = None
    """What the model is to be good at, in the same forms: the text of the desired, validation and
    test sets. They are parts of data.path when not given."""
    tfds: str | None = None
    """A name in the TensorFlow Datasets catalogue, e.g. tiny_shakespeare; the same as a data.path
    of tfds:NAME."""
    field: str = "text"
    """Of records, which field or column holds the text; a.b is field b of field a. A list of chat
    messages is joined by chat_template."""
    chat_template: str = fields.CHAT_TEMPLATE
    """Of each message of a chat."""
    group: str | None = None
    """The domain of each document: a field or column of its record, or `file` or `folder`, the
    name of its file or folder."""
    encoding: str | None = None
    """Of plain text, JSON and CSV, e.g. cp1252; UTF-8, or what a byte order mark says, when not
    given."""
    separator: str | None = None
    r"""What stands between documents of plain text (\n and \t are understood); <|endoftext|> if
    that occurs in the text, else line ends, if each line is a document, else blank lines, when not
    given. Of many files each small one is a document."""
    max_bytes: int = 64 * 2**20
    """Read at most this much of each text, up to the last whole document; of many files each from
    its beginning."""
    vocab_size: int = 1000
    """Tokens, with those for padding and for unknown text."""
    tokenizer: str | None = None
    """A sentencepiece model file (tokenizer.model), cut to its vocab_size most frequent tokens, or
    the workdir of a run, whose tokenizer is taken as it is. One is trained on the text when not
    given."""
    context: int = 64
    """Tokens a model reads; a sequence has one more, the last to predict."""
    cache_dir: str | None = None
    """For downloads and tokenised text; $XDG_CACHE_HOME/lljax or ~/.cache/lljax when not given."""

    def __post_init__(self) -> None:
        if self.path is not None and self.tfds is not None:
            raise TextError(
                f"data.path and data.tfds both name a text ({places.shown(self.path)} and "
                f"{places.shown(self.tfds)}). Give one."
            )
        for name in ("separator", "field", "group"):
            if getattr(self, name) == "":
                raise TextError(f"data.{name} must not be empty. Leave it out for the default.")
        for name, least in (("max_bytes", 1), ("vocab_size", 16), ("context", 2)):
            value = getattr(self, name)
            if value < least:
                raise TextError(f"data.{name} must be at least {least}; got {value}.")
        check_encoding(self.encoding)
        fields.check_template(self.chat_template)

    @property
    def cache_folder(self) -> Path:
        return places.cache_folder(self.cache_dir)

    @property
    def sources(self) -> list[tuple[str, str | None]]:
        """(setting, value) of each text: data.path, then data.desired_path if it is given."""
        first = ("data.tfds", f"{places.CATALOGUE}{self.tfds}")
        if self.tfds is None:
            first = ("data.path", self.path)  # type: ignore[assignment]
        desired = [("data.desired_path", self.desired_path)] if self.desired_path else []
        return [first, *desired]

    def reading(self, setting: str, are_many: bool) -> Reading:
        """How the files of a setting are read: those of data.desired_path have no groups."""
        return Reading(
            self.field,
            self.chat_template,
            None if setting == "data.desired_path" else self.group,
            self.separator,
            self.encoding,
            self.context,
            self.max_bytes,
            _SMALL_FILE if are_many else 0,
        )
