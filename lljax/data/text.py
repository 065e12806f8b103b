"""Which text: its settings, and the documents that they name.

`read_text` gathers documents to train on; `stream_documents` gives those of any amount of text one
by one. Messages of `TextError` name the settings as on the command line (`data.path`), so that a
caller can pass them on as they are.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lljax.data import places, remote
from lljax.data.errors import TextError
from lljax.data.files import Document, SourceFile
from lljax.data.gathering import Origin, Taken, leave_out, library_documents, take_files, take_texts
from lljax.data.progress import Progress
from lljax.data.settings import TextSettings

__all__ = [
    "EMBEDDED",
    "LeftOut",
    "Origin",
    "Part",
    "Text",
    "TextError",
    "TextSettings",
    "read_documents",
    "read_text",
    "stream_documents",
]

EMBEDDED = "the embedded text"
"""What messages call Python's manual."""
_MOST_KINDS = 6  # of files that are left out, that are named


class Part(NamedTuple):
    """What became of one text: of data.path or of data.desired_path."""

    source: str
    """Setting and value."""
    documents: int
    bytes_read: int
    size: int | None
    """Bytes of the whole text, where it is known though not all was read."""
    cut: bool
    """There was more than `max_bytes`."""
    divided_by: str
    """What stands between documents, in words."""
    repeated: int
    also_desired: int
    """Documents left out because they are in the desired text."""
    empty: int
    files: int
    left_out: dict[str, int]
    """Files that are no text or damaged, by what they are."""


class Text(NamedTuple):
    """Texts that were read."""

    documents: list[str]
    """Of data.path, then those of data.desired_path."""
    origins: list[Origin]
    parts: tuple[Part, ...]

    @property
    def num_train(self) -> int | None:
        """Documents of data.path; None where there is no other text."""
        return self.parts[0].documents if len(self.parts) > 1 else None


def read_documents(settings: TextSettings) -> list[str]:
    """The documents that `read_text` finds."""
    return read_text(settings).documents


def read_text(settings: TextSettings) -> Text:
    """The documents of a text, in its order, stripped, without empty and repeated ones.

    Exact repetitions are dropped because one copy could be trained on and the other tested on; of a
    document that is in both texts the one of data.desired_path is kept.

    Raises:
      TextError: there is no such text, or it is damaged, empty or out of reach.
    """
    seen: set[str] = set()
    desired: set[str] = set()
    found: list[tuple[list[str], list[Origin], Part]] = []
    for setting, value in reversed(settings.sources):
        found.append(_gather(setting, value, settings, seen, desired))
        desired = set(found[-1][0])
    found.reverse()
    documents = [document for texts, _, _ in found for document in texts]
    origins = [origin for _, origins, _ in found for origin in origins]
    return Text(documents, origins, tuple(part for _, _, part in found))


@dataclasses.dataclass
class LeftOut:
    """What `stream_documents` leaves out.

    Attributes:
      files: those of many that are no text or damaged, by what they are.
      too_long: documents of more than `max_bytes`.
    """

    files: dict[str, int] = dataclasses.field(default_factory=dict)
    too_long: int = 0


def stream_documents(settings: TextSettings, left_out: LeftOut) -> Iterator[tuple[Document, str]]:
    """The documents of data.path one by one, with their file's name; however many there are.

    Repetitions are not found. `left_out` is told what is left out.

    Raises:
      TextError: as `read_text`.
    """
    ((setting, value), *_) = settings.sources
    if value is None or value.startswith(places.CATALOGUE):
        for document, name, _ in library_documents(setting, value, settings):
            if document.text:
                yield document, name
        return
    found = places.find(value, setting, settings.cache_folder / "downloads", 1 << 62)
    reading = settings.reading(setting, found.are_many)
    for place in found.files:
        where = f"{setting}: {place.name}"
        try:
            with SourceFile(place.path, where, reading) as file:
                for document in file:
                    left_out.too_long += not document.is_whole
                    if document.is_whole and document.text:
                        yield document, place.name
        except TextError as error:
            if not found.are_many:
                raise
            leave_out(error, left_out.files)


def _gather(
    setting: str, value: str | None, settings: TextSettings, seen: set[str], desired: set[str]
) -> tuple[list[str], list[Origin], Part]:
    source = EMBEDDED if value is None else f"{setting}: {places.shown(value)}"
    if setting == "data.tfds":
        source = source.replace(places.CATALOGUE, "", 1)
    taken = Taken(settings.max_bytes, seen, desired)
    try:
        with Progress("reading the text", None) as progress:
            taken.progress = progress
            if value is None or value.startswith(places.CATALOGUE):
                take_texts(setting, value, settings, taken)
            else:
                take_files(setting, value, settings, taken)
        if not taken.documents:
            if taken.also_desired:
                raise TextError(
                    f"{source}: all of its documents are in the desired text too, where they are "
                    f"needed for judging. Give others to train on."
                )
            left_out = f" ({in_words(taken.left_out)})" if taken.left_out else ""
            raise TextError(f"{source} holds no text{left_out}. Give a file with some.")
    except TextError:
        if taken.fetched is not None:
            remote.forget(taken.fetched)
        raise
    part = Part(
        source=source,
        documents=len(taken.documents),
        bytes_read=taken.bytes_read,
        size=taken.size if taken.cut else None,
        cut=taken.cut,
        divided_by=" or ".join(taken.divided_by),
        repeated=taken.repeated,
        also_desired=taken.also_desired,
        empty=taken.empty,
        files=taken.files,
        left_out=dict(taken.left_out),
    )
    return taken.documents, taken.origins, part


def in_words(left_out: Mapping[str, int]) -> str:
    """Which files are left out: "3 files are left out: a PNG image (2), a PDF file (1)"; empty
    where none is."""
    if not left_out:
        return ""
    total = sum(left_out.values())
    kinds = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    parts = ", ".join(f"{kind} ({count:,})" for kind, count in kinds[:_MOST_KINDS])
    more = ", ..." if len(kinds) > _MOST_KINDS else ""
    return f"{total:,} {'file is' if total == 1 else 'files are'} left out: {parts}{more}"
