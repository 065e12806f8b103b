"""From texts to documents: what stands between them is found, unless a setting says it."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lljax.data.files import Texts

END_OF_TEXT = "<|endoftext|>"
"""Between the documents of TinyStories and of many other corpora."""
# In bytes, because a str may take four bytes a character; the spaces are those of `str.isspace`.
_SPACE = (
    rb"[\t\x0b-\r\x1c-\x1f ]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]"
    rb"|\xe2\x81\x9f|\xe3\x80\x80"
)
_BLANK_LINES = re.compile(rb"\n(?:" + _SPACE + rb")*\n(?:\n|" + _SPACE + rb")*")
_SENTENCE_ENDS = tuple(".!?…\"'”’»)]。！？」』")  # noqa: RUF001
_LEAST_LINES = 20  # from here on lines can be told to be documents
_LINES_A_PIECE = 50  # between blank lines; fewer, and the blank lines divide the text
_SAMPLE = 2000  # lines that are looked at


class Documents(NamedTuple):
    """What a text was split into."""

    documents: list[str]
    divided_by: str
    """In words, e.g. "blank lines"."""
    repeated: int
    """Documents left out because they are exactly as one before."""
    empty: int


def split_documents(found: Texts, separator: str | None, context: int) -> Documents:
    """The documents of texts in their order, stripped, without empty and repeated ones.

    Exact repetitions are dropped because one copy could be trained on and the other tested on.
    Line ends become "\\n". The last document is dropped if it was cut short and is not the only
    one. Where no separator is given, <|endoftext|> divides the text if it occurs, else blank lines;
    a text with hardly any is divided by its lines if `_is_one_a_line` says so.
    """
    texts = found.texts
    for index, text in enumerate(texts):
        if b"\r" in text:
            texts[index] = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    mark: bytes | None = None
    if separator is not None:
        mark = separator.replace("\\n", "\n").replace("\\t", "\t").encode("utf-8", "replace")
        divided_by = "data.separator"
    elif found.are_documents:
        divided_by = "records"
    elif any(END_OF_TEXT.encode() in text for text in texts):
        mark, divided_by = END_OF_TEXT.encode(), END_OF_TEXT
    elif len(texts) == 1 and _is_one_a_line(texts[0], context):
        mark, divided_by = b"\n", "lines"
    else:
        divided_by = "blank lines"
    counted = mark != b"\n" and divided_by != "blank lines"  # there empty ones are no documents
    seen: dict[str, None] = {}
    repeated = empty = 0
    pieces = _pieces(texts, mark, divided_by)
    piece = next(pieces, None)
    first = True
    while piece is not None:
        following = next(pieces, None)
        if following is None and found.cut and not first:
            break
        if document := piece.strip().decode().strip():
            repeated += document in seen
            seen[document] = None
        elif not first and following is not None:  # an end behind the last one is no document
            empty += counted
        piece, first = following, False
    return Documents(list(seen), divided_by, repeated, empty)


def _pieces(texts: list[bytes], mark: bytes | None, divided_by: str) -> Iterator[bytes]:
    """Pieces of texts one by one; the texts are dropped on the way."""
    texts.reverse()
    while texts:
        text = texts.pop()
        if divided_by == "records":
            yield text
            continue
        ends = re.finditer(re.escape(mark), text) if mark else _BLANK_LINES.finditer(text)
        start = 0
        for end in ends:
            yield text[start : end.start()]
            start = end.end()
        yield text[start:]


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
