"""Sentencepiece on texts of any length: in pieces, so that memory and time stay in bounds."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_PIECE = 1 << 15  # characters that are encoded as one; longer takes more memory and time for each
BATCH = 1 << 20  # characters between two moments at which Ctrl-C gets in
_SPACE_BETWEEN = re.compile(r"(?<=\S) (?=\S)")


def load_model(model: bytes) -> Any:
    """A processor of a serialised model; RuntimeError if it is none."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


def encode_in_pieces(
    processor: Any, documents: list[str], advance: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """A model's own ids of documents; long ones are cut where that does not change them.

    That is at a space between two words; only in 4,000 characters without one it is behind a line
    end, or anywhere.
    """
    # Whether a piece begins with the space it was cut at: a model may put one in front itself.
    whole, first = processor.encode("a b"), processor.encode("a")
    keeps_space = whole != first + processor.encode("b")
    waiting: list[np.ndarray] = []
    for batch in _batches(documents, keeps_space):
        encoded = processor.encode([piece for piece, _ in batch])
        for ids, (_, is_last) in zip(encoded, batch, strict=True):
            waiting.append(np.asarray(ids, np.int32))
            if is_last:
                yield np.concatenate(waiting)
                waiting = []
        advance(sum(len(piece) for piece, _ in batch))


def _batches(documents: list[str], keeps_space: bool) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents, and whether each is the last of its document, many at once."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        start, end = 0, len(document)
        while end - start > _PIECE:
            cut, following = _cut(document, start + _PIECE, keeps_space)
            batch.append((document[start:cut], False))
            size += cut - start
            start = following
            if size >= BATCH:
                yield batch
                batch, size = [], 0
        batch.append((document[start:], True))
        size += end - start
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cut(document: str, end: int, keeps_space: bool) -> tuple[int, int]:
    """Where a piece that may go up to `end` ends, and where the next one begins."""
    start = end - 4000
    spaces = [match.start() for match in _SPACE_BETWEEN.finditer(document, start, end)]
    if spaces:
        return spaces[-1], spaces[-1] + (not keeps_space)
    line_end = document.rfind("\n", start, end) + 1
    return (line_end, line_end) if line_end else (end, end)
