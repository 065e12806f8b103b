"""From a plain text to documents: what stands between them is found, unless a setting says it."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

END_OF_TEXT = "<|endoftext|>"
"""Between the documents of TinyStories and of many other corpora."""
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE_ENDS = tuple(".!?…\"'”’»)]。！？」』")  # noqa: RUF001
_LEAST_LINES = 20  # from here on lines can be told to be documents
_LINES_A_PIECE = 50  # between blank lines; fewer, and the blank lines divide the text
_SAMPLE = 2000  # lines that are looked at
_LOOKED_AT = 1 << 24  # characters from which it is found what divides a text
_OVERLAP = 1 << 12  # characters of a separator that may begin in one block and end in the next


class Piece(NamedTuple):
    """What stands between two separators of a text; it may be empty."""

    text: str
    offset: int
    """Of its first character in the text."""
    size: int
    """Bytes of UTF-8 that the text has up to its end, from the end of the piece before."""
    is_last: bool
    is_whole: bool
    """Whether it ends there, and is not cut because it is too long."""


class PlainText:
    """The pieces of a text that comes in blocks; never much more is held than the longest piece.

    Of a piece that is too long its beginning is given.

    Where no separator is given, <|endoftext|> divides the text if it occurs, else its lines do if
    `_is_one_a_line` says so, else blank lines. What is not found in the first 16 million characters
    does not divide it.

    Attributes:
      divided_by: what stands between the pieces, in words.
      counts_empty: whether an empty piece is a document that holds nothing.
    """

    def __init__(
        self,
        blocks: Iterator[str],
        separator: str | None,
        context: int,
        longest: int,
        whole_up_to: int = 0,
    ):
        """Reads the beginning.

        Args:
          blocks: the characters, with "\\n" as line ends.
          separator: what divides the text, if that is known.
          context: tokens of a sequence, by which lines are judged.
          longest: characters after which a piece is cut.
          whole_up_to: a text of at most so many characters, in which <|endoftext|> does not occur
            and lines are no documents, is one piece.
        """
        self._blocks, self._longest = blocks, longest
        looked_at = 0
        waiting: list[str] = []
        for block in blocks:
            waiting.append(block)
            looked_at += len(block)
            if looked_at > min(_LOOKED_AT, longest):
                break
        head = "".join(waiting)
        self._head = head
        mark: str | None = None
        if separator is not None:
            mark, self.divided_by = separator, "data.separator"
        elif END_OF_TEXT in head:
            mark = self.divided_by = END_OF_TEXT
        elif _is_one_a_line(head.encode("utf-8", "replace"), context):
            mark, self.divided_by = "\n", "lines"
        elif len(head) <= whole_up_to:
            self.divided_by = "files"
        else:
            self.divided_by = "blank lines"
        self._pattern = re.compile(re.escape(mark)) if mark else _BLANK_LINES
        if self.divided_by == "files":
            self._pattern = re.compile("(?!)")  # matches nowhere
        self.counts_empty = mark not in (None, "\n")

    def __iter__(self) -> Iterator[Piece]:
        rest, offset, searched, skipped = self._head, 0, 0, 0
        self._head = ""
        more, is_cut = True, False
        while more:
            block = next(self._blocks, None)
            more = block is not None
            start = 0
            for found in self._pattern.finditer(rest, searched):
                if more and found.end() == len(rest):
                    break  # it may go on
                text = rest[start : found.start()]
                size = skipped + _num_bytes(text)
                if not is_cut:
                    yield Piece(text, offset + start, size, False, True)
                is_cut = False
                skipped = _num_bytes(found[0])
                start = found.end()
            offset += start
            rest = rest[start:]
            if len(rest) > self._longest and not is_cut:
                text = rest[: self._longest]
                yield Piece(text, offset, skipped + _num_bytes(text), not more, False)
                is_cut = True
            if is_cut:
                dropped = max(0, len(rest) - _OVERLAP)
                offset, rest, skipped = offset + dropped, rest[dropped:], 0
            searched = max(0, len(rest) - _OVERLAP)
            rest += block or ""
        if not is_cut:
            yield Piece(rest, offset, skipped + _num_bytes(rest), True, True)


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _is_one_a_line(text: bytes, context: int) -> bool:
    """Whether each line of a text is a document of its own.

    It is where there are at least 20 lines and hardly a blank one, the longest is a few times as
    long as a sequence of the model but no eighth of the text, and either
    - four of five lines end as a sentence does, or
    - half of the lines have 80 characters and more, and they were not wrapped at a margin: the
      next line's first word would have fitted behind most of them.
    Wrapped prose fails both (its lines end anywhere, where the next word does not fit), and so do
    verse, tables and code.
    """
    ends = np.append(np.flatnonzero(np.frombuffer(text, np.uint8) == 10), len(text))
    starts = np.append(0, ends[:-1] + 1)
    filled = np.flatnonzero(ends > starts)
    lengths = (ends - starts)[filled]
    count = len(lengths)
    if count < _LEAST_LINES or (len(ends) - count - 1) * _LINES_A_PIECE > count:
        return False
    if np.median(lengths) < max(20, context // 2) or lengths.max() < 3 * context:
        return False
    if 8 * lengths.max() > lengths.sum():
        return False
    chosen = np.unique(np.linspace(0, count - 2, _SAMPLE).astype(int))

    def line(index: int) -> str:
        return text[starts[filled[index]] : ends[filled[index]]].decode().strip()

    lines = [line(index) for index in chosen]
    next_words = [line(index + 1).split(maxsplit=1)[:1] for index in chosen]
    if np.mean([line.endswith(_SENTENCE_ENDS) for line in lines]) >= 0.8:
        return True
    sizes = np.array([len(line) for line in lines])
    margin = np.quantile(sizes, 0.95)  # not the longest: an address may stick out
    would_be = sizes + [1 + len("".join(word)) for word in next_words]
    return bool(np.median(sizes) >= 80 and np.mean(would_be > margin) < 0.5)
