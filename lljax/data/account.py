"""What became of a text, in words: what was read, dropped, cut and used.

Nobody looks into the sequences, so whatever would surprise is said, with the setting that changes
it.
"""

import dataclasses
from collections.abc import Mapping

from lljax.data.text import EMBEDDED, Part, in_words
from lljax.safe_text import printable

_MOST_UNKNOWN = 0.01  # of the tokens; above that it is warned of
_MOST_UNUSED = 0.5  # of the sequences
_MOST_DROPPED = 0.1  # of the tokens
_MOST_PADDING = 0.5  # of the places
_MOST_GROUPS = 10  # that are named
_ALSO_DESIRED = "in the desired text too"


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
    """What became of texts, up to the sequences of each set."""

    parts: tuple[Part, ...]
    counts: TokenCounts
    cut_documents: int = 0
    """Documents whose pieces may be in different sets."""
    piece: int = 0
    """Sequences of such a piece at most."""
    groups: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Training sequences of each group."""
    used: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Sequences of each set; none before the sets are filled."""
    num_train: int | None = None
    """Training sequences that were asked for."""

    @property
    def short(self) -> str:
        """A few words for a heading."""
        return f"{sum(self.used.values()):,} of {self.counts.sequences:,} sequences of the text"

    def lines(self) -> list[str]:
        """What is said before anything is computed."""
        counts, used = self.counts, sum(self.used.values())
        cut = ""
        if self.cut_documents:
            cut = (
                f"; so that every set can be filled, {self.cut_documents:,} long "
                f"{_plural(self.cut_documents, 'document', 'documents')} cut into pieces of at "
                f"most {self.piece:,} {_plural(self.piece, 'sequence', 'sequences')}"
            )
        names = ["text"] if len(self.parts) == 1 else ["text to train on", "desired text"]
        texts = [
            f"{name}: {_text(part)}{cut if part is self.parts[0] else ''}"
            for name, part in zip(names, self.parts, strict=True)
        ]
        sets = ", ".join(f"{name} {number:,}" for name, number in self.used.items())
        lines = [
            *texts,
            f"sequences: {used:,} of {counts.sequences:,} used ({sets}); {counts.length} tokens "
            f"each, {_share(counts.padding, self._places)} padding, "
            f"{counts.tokens:,} tokens, {_share(counts.unknown, counts.tokens)} unknown; "
            f"{_share(counts.dropped, counts.tokens)} of the text in ends too short for one",
        ]
        if self.groups:
            largest = sorted(self.groups.items(), key=lambda item: -item[1])
            shown = ", ".join(f"{name} {count:,}" for name, count in largest[:_MOST_GROUPS])
            more = (
                f", and {len(largest) - _MOST_GROUPS} more" if len(largest) > _MOST_GROUPS else ""
            )
            lines.append(f"groups: training sequences of {printable(shown)}{more}")
        return lines

    def warnings(self) -> list[str]:
        """What would surprise, each with what changes it."""
        counts, train = self.counts, self.used.get("train", 0)
        found = [sentence for part in self.parts for sentence in _part_warnings(part)]
        if self._unknown > _MOST_UNKNOWN:
            found.append(
                f"{_share(counts.unknown, counts.tokens)} of the tokens are unknown, which the "
                f"model cannot tell apart. Raise data.vocab_size."
            )
        used = sum(self.used.values())
        if train and self.num_train is not None and train < self.num_train:
            found.append(
                f"the text to train on has but {train:,} sequences, all of which are used, and "
                f"data.num_train is {self.num_train:,}. Give more text, or lower data.context."
            )
        if train and used < (1 - _MOST_UNUSED) * counts.sequences:
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


def _text(part: Part) -> str:
    """A text in words: what was read, how it was divided, and what was left out."""
    dropped = [f"{n:,} {name}" for n, name in _left_out(part)]
    left_out = f" ({' and '.join(dropped)} left out)" if dropped else ""
    documents = "one document"
    if part.documents > 1:
        documents = f"{part.documents:,} documents divided by {part.divided_by}"
    files = f" in {part.files:,} files" if part.files > 1 else ""
    others = f"; {in_words(part.left_out)}" if part.left_out else ""
    return f"{part.bytes_read:,} bytes of {part.source}{files}, {documents}{left_out}{others}"


def _part_warnings(part: Part) -> list[str]:
    found = []
    if part.cut:
        share = f" of {part.size:,} ({_share(part.bytes_read, part.size)})" if part.size else ""
        which = "the first " if part.files <= 1 else ""
        found.append(
            f"only {which}{part.bytes_read:,} bytes{share} of {_of(part)} are read. Raise "
            f"data.max_bytes for more."
        )
    dropped = [(n, name) for n, name in _left_out(part) if name != _ALSO_DESIRED]
    if part.source != EMBEDDED and dropped:
        numbers = " and ".join(f"{number:,} {name} documents" for number, name in dropped)
        found.append(
            f"{numbers} are left out. Set data.separator if the text is divided otherwise than "
            f"by {part.divided_by}."
        )
    return found


def _of(part: Part) -> str:
    return "the desired text" if part.source.startswith("data.desired_path") else "the text"


def _left_out(part: Part) -> list[tuple[int, str]]:
    every = (
        (part.repeated, "repeated"),
        (part.empty, "empty"),
        (part.also_desired, _ALSO_DESIRED),
    )
    return [(number, name) for number, name in every if number]


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
