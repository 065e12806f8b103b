"""What became of a text, in words: what was read, dropped, cut and used.

Nobody looks into the sequences, so whatever would surprise is said, with the setting that changes
it.
"""

import dataclasses
from collections.abc import Mapping

from lljax.data.text import EMBEDDED, Text

_MOST_UNKNOWN = 0.01  # of the tokens; above that it is warned of
_MOST_UNUSED = 0.5  # of the sequences
_MOST_DROPPED = 0.1  # of the tokens
_MOST_PADDING = 0.5  # of the places


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """How a text's tokens became sequences."""

    tokens: int
    """Of all documents."""
    unknown: int
    """Of these, the ones that the vocabulary lacks."""
    dropped: int
    """Tokens in ends of documents, and in short documents, that are too short for a sequence."""
    padding: int
    """Places of the sequences that hold no token."""
    sequences: int
    length: int
    """Tokens of a sequence."""


@dataclasses.dataclass(frozen=True)
class TextAccount:
    """What became of a text, up to the sequences of each set."""

    source: str
    bytes_read: int
    size: int | None
    """Bytes of the whole text, where it is known though not all was read."""
    cut: bool
    """There was more than `max_bytes`."""
    divided_by: str
    """What stands between the documents, in words."""
    documents: int
    repeated: int
    empty: int
    counts: TokenCounts
    cut_documents: int = 0
    """Documents whose pieces may be in different sets."""
    piece: int = 0
    """Sequences of such a piece at most."""
    used: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Sequences of each set; none before the sets are filled."""

    @classmethod
    def of(cls, text: Text, counts: TokenCounts) -> "TextAccount":
        """What is known before the sets are filled."""
        read = text._asdict()
        documents = len(read.pop("documents"))
        return cls(**read, documents=documents, counts=counts)

    def with_sets(self, used: Mapping[str, int], cut_documents: int, piece: int) -> "TextAccount":
        """The same with the sequences of each set."""
        return dataclasses.replace(self, used=used, cut_documents=cut_documents, piece=piece)

    @property
    def short(self) -> str:
        """A few words for a heading."""
        return f"{sum(self.used.values()):,} of {self.counts.sequences:,} sequences of the text"

    def lines(self) -> list[str]:
        """What is said before anything is computed."""
        counts, used = self.counts, sum(self.used.values())
        dropped = [f"{n:,} {name}" for n, name in self._left_out()]
        left_out = f" ({' and '.join(dropped)} left out)" if dropped else ""
        cut = ""
        if self.cut_documents:
            cut = (
                f"; so that every set can be filled, {self.cut_documents:,} long "
                f"{_plural(self.cut_documents, 'document', 'documents')} cut into pieces of at "
                f"most {self.piece:,} {_plural(self.piece, 'sequence', 'sequences')}"
            )
        documents = "one document"
        if self.documents > 1:
            documents = f"{self.documents:,} documents divided by {self.divided_by}"
        sets = ", ".join(f"{name} {number:,}" for name, number in self.used.items())
        return [
            f"text: {self.bytes_read:,} bytes of {self.source}, {documents}{left_out}{cut}",
            f"sequences: {used:,} of {counts.sequences:,} used ({sets}); {counts.length} tokens "
            f"each, {_share(counts.padding, self._places)} padding, "
            f"{_share(counts.unknown, counts.tokens)} unknown; "
            f"{_share(counts.dropped, counts.tokens)} of the text in ends too short for one",
        ]

    def warnings(self) -> list[str]:
        """What would surprise, each with what changes it."""
        counts, used = self.counts, sum(self.used.values())
        found = []
        if self.cut:
            share = f" of {self.size:,} ({_share(self.bytes_read, self.size)})" if self.size else ""
            found.append(
                f"only the first {self.bytes_read:,} bytes{share} of the text are read. Raise "
                f"data.max_bytes for more."
            )
        if self.source != EMBEDDED and (dropped := self._left_out()):
            numbers = " and ".join(f"{number:,} {name} documents" for number, name in dropped)
            found.append(
                f"{numbers} are left out. Set data.separator if the text is divided otherwise than "
                f"by {self.divided_by}."
            )
        if self._unknown > _MOST_UNKNOWN:
            found.append(
                f"{_share(counts.unknown, counts.tokens)} of the tokens are unknown, which the "
                f"model cannot tell apart. Raise data.vocab_size."
            )
        if 0 < used < (1 - _MOST_UNUSED) * counts.sequences:
            found.append(
                f"only {used:,} of the text's {counts.sequences:,} sequences are used. Raise "
                f"data.num_train to train on more."
            )
        if counts.dropped > _MOST_DROPPED * counts.tokens:
            found.append(
                f"{_share(counts.dropped, counts.tokens)} of the tokens are in ends of documents "
                f"too short for a sequence. Lower data.context, or set data.separator for longer "
                f"documents."
            )
        if counts.padding > _MOST_PADDING * self._places:
            found.append(
                f"{_share(counts.padding, self._places)} of the sequences is padding. Lower "
                f"data.context, or set data.separator for longer documents."
            )
        return [f"warning: {sentence}" for sentence in found]

    @property
    def _places(self) -> int:
        return max(self.counts.sequences * self.counts.length, 1)

    @property
    def _unknown(self) -> float:
        return self.counts.unknown / max(self.counts.tokens, 1)

    def _left_out(self) -> list[tuple[int, str]]:
        both = ((self.repeated, "repeated"), (self.empty, "empty"))
        return [(number, name) for number, name in both if number]


def _share(part: int, whole: int) -> str:
    """In per cent; never 0 or 100 where it is a little more or less.

    >>> _share(1, 3), _share(0, 7), _share(7, 7), _share(1, 5000), _share(4999, 5000)
    ('33.3%', '0%', '100%', 'under 0.1%', 'over 99.9%')
    """
    if part <= 0 or part >= whole:
        return "0%" if part <= 0 else "100%"
    if 1000 * part < whole:
        return "under 0.1%"
    return "over 99.9%" if 1000 * (whole - part) < whole else f"{part / whole:.1%}"


def _plural(number: int, one: str, more: str) -> str:
    return one if number == 1 else more
