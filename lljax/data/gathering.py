"""The documents of many files, up to an amount that is wanted of each, and what is left out."""

import collections
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from lljax.data import catalogue, places, remote
from lljax.data.documents import PlainText
from lljax.data.errors import TextError
from lljax.data.files import Document, NotText, SourceFile, plain_documents
from lljax.data.progress import Progress, log
from lljax.data.settings import TextSettings
from lljax.data.unpacking import PACKED_ENDINGS

_DAMAGED = "damaged or in another encoding"
_MOST_TOLD = 3  # of damaged files, whose damage is told
_PACKED_SHARE = 4  # how many times as large a packed file is taken to be unpacked


class Origin(NamedTuple):
    """Where a document comes from."""

    source: str
    """A file's name, or "manual"."""
    offset: int
    """The number of its record in the file, from 0; in a plain text its first character's."""
    group: str | None


class Taken:
    """What was read of a text so far."""

    def __init__(self, max_bytes: int, seen: set[str], desired: set[str]):
        self._left, self._seen, self._desired = max_bytes, seen, desired
        self.documents: list[str] = []
        self.origins: list[Origin] = []
        self.bytes_read = self.repeated = self.also_desired = self.empty = self.files = 0
        self.size: int | None = 0
        self.cut = False
        self.may_cut = True  # its first document, if that is too large
        self.divided_by: dict[str, None] = {}
        self.left_out: collections.Counter[str] = collections.Counter()
        self.progress: Progress | None = None
        self.fetched: remote.Fetched | None = None

    @property
    def left(self) -> int:
        return self._left - self.bytes_read

    def take(self, document: Document, name: str, budget: int) -> int:
        """Takes a document if the budget of bytes allows it.

        Returns:
          What is left of the budget; below 0: no, the text is cut here.
        """
        text, left = document.text, budget - document.size
        if left < 0 or not document.is_whole:
            self.cut = True
            if self.documents or budget < 1 or not self.may_cut:
                return -1
            # The only document there is: its beginning is better than nothing.
            lead = document.size - len(text.encode("utf-8", "replace"))
            encoded = text.encode("utf-8", "replace")[: max(0, budget - max(lead, 0))]
            text, left = encoded.decode("utf-8", "ignore").strip(), -1
        used = budget - max(left, 0)
        self.bytes_read += used
        if self.progress is not None:
            self.progress.advance(used)
        if not text:
            self.empty += document.counts
        elif text in self._desired:
            self.also_desired += 1
        elif text in self._seen:
            self.repeated += 1
        else:
            self._seen.add(text)
            self.documents.append(text)
            self.origins.append(Origin(name, document.offset, document.group))
        return left


def take_files(setting: str, value: str, settings: TextSettings, taken: Taken) -> None:
    folder = settings.cache_folder / "downloads"
    found = places.find(value, setting, folder, settings.max_bytes)
    taken.fetched, taken.may_cut = found.fetched, not found.are_many
    reading = settings.reading(setting, found.are_many)
    budgets = _budgets(found.files, settings.max_bytes)
    carried = 0
    for place, budget in zip(found.files, budgets, strict=True):
        name = place.name if found.are_many else places.shown(value)
        where = f"{setting}: {place.name}"
        left = min(budget + carried, taken.left)
        try:
            with SourceFile(place.path, where, reading) as file:
                taken.files += 1
                taken.divided_by[file.divided_by] = None
                size = place.size if place.size is not None else file.size
                taken.size = None if size is None or taken.size is None else taken.size + size
                for document in file:
                    before, left = left, taken.take(document, name, left)
                    if left < 0:
                        left = before  # for the files that follow
                        break
        except TextError as error:
            if not found.are_many:
                raise
            leave_out(error, taken.left_out)
            if not isinstance(error, NotText) and taken.left_out[_DAMAGED] <= _MOST_TOLD:
                log(f"warning: {error}")
        carried = max(left, 0)


def leave_out(error: TextError, counter: dict[str, int]) -> None:
    kind = error.kind if isinstance(error, NotText) else _DAMAGED
    counter[kind] = counter.get(kind, 0) + 1


def _budgets(files: list[places.Place], max_bytes: int) -> list[int]:
    """How many bytes of each file are read: small ones whole, of the others as much of each."""
    sizes = [
        place.path.stat().st_size
        * (_PACKED_SHARE if place.path.name.lower().endswith(PACKED_ENDINGS) else 1)
        for place in files
    ]
    if len(files) == 1:
        return [max_bytes]
    left = max_bytes
    for number, size in enumerate(sorted(sizes)):
        level = left // (len(sizes) - number)
        if size > level:
            return [max(1, min(size, level)) for size in sizes]
        left -= size
    return [max_bytes] * len(sizes)  # there is room for all, whatever packed ones turn out to be


def take_texts(setting: str, value: str | None, settings: TextSettings, taken: Taken) -> None:
    """The same for plain texts that a library gives one by one."""
    budget = taken.left
    for document, name, divided_by in library_documents(setting, value, settings):
        taken.divided_by[divided_by] = None
        budget = taken.take(document, name, budget)
        if budget < 0:
            return


def library_documents(
    setting: str, value: str | None, settings: TextSettings
) -> Iterator[tuple[Document, str, str]]:
    """(document, name of the text, what divides it) of the manual or a data set."""
    name = "manual" if value is None else value.removeprefix(places.CATALOGUE)
    separator = settings.reading(setting, are_many=False).mark
    for number, text in enumerate(_library_texts(setting, value, settings)):
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        plain = PlainText(iter([text]), separator, settings.context, settings.max_bytes)
        for document in plain_documents(plain, None):
            yield document._replace(offset=number), name, plain.divided_by


def _library_texts(setting: str, value: str | None, settings: TextSettings) -> Iterator[str]:
    """A prepared data set that turns out to be damaged is prepared and read once more."""
    if value is None:
        yield from _python_manual()
        return
    name, done = value.removeprefix(places.CATALOGUE), 0
    for last in (False, True):
        try:
            texts = catalogue.read_catalogue(name, settings.cache_folder)
            for text in itertools.islice(texts, done, None):
                yield text
                done += 1
            return
        except catalogue.Damaged as error:
            if last:
                raise TextError(
                    f"{setting}: {name} is damaged again just after it was prepared. Check the "
                    f"disk of data.cache_dir."
                ) from error


def _python_manual() -> list[str]:
    """Some 460,000 characters of English and code; they differ a little between versions."""
    from pydoc_data.topics import topics

    return [text for _, text in sorted(topics.items())]
