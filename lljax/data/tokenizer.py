"""From text to token ids and back: a sentencepiece model, trained here or given and cut down.

Ids are the same in both ways: 0 pads, 1 stands for text the vocabulary lacks, tokens follow. There
are no marks for the start or end of a document: a sequence never holds text of two.
"""

import bisect
import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lljax.data.encoding import BATCH, encode_in_pieces, load_model
from lljax.data.errors import TextError
from lljax.data.progress import Progress
from lljax.data.train_worker import PAD, UNK
from lljax.data.training import train_model
from lljax.safe_text import printable

NUM_SPECIAL = 2
"""Ids below are special; those of tokens run from here to the vocabulary's size."""

_ALL_BYTES_FROM = 2048  # from here on the 256 pieces for bytes take at most an eighth
_SPELLED = "\u2585\0"  # sentencepiece's mark for the unknown, and what it trains on no line with
_RESERVED = "\u2581" + _SPELLED  # its space too
_MODEL_FILE = "tokenizer.model"
_KEPT_FILE = "tokenizer.json"
_MOST_WITHOUT_SPACES = 4_000_000  # characters of such lines that a tokenizer is trained on, about


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A sentencepiece model and the tokens of it that are used.

    Where no token is UNK, `decode` inverts `encode` exactly, but for the character U+2581, by which
    sentencepiece writes a space: it comes back as one.
    """

    model: bytes
    """A serialised sentencepiece model."""
    kept: tuple[int, ...]
    """The model's own id of each of our ids from NUM_SPECIAL on."""

    @property
    def vocab_size(self) -> int:
        """With PAD and UNK."""
        return NUM_SPECIAL + len(self.kept)

    @functools.cached_property
    def _processor(self) -> Any:
        return load_model(self.model)

    @functools.cached_property
    def _our_ids(self) -> np.ndarray:
        ours = np.full(self._processor.vocab_size(), UNK, np.int32)
        ours[list(self.kept)] = np.arange(NUM_SPECIAL, self.vocab_size, dtype=np.int32)
        return ours

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Ids of each document's tokens; UNK for those that are not kept."""
        return [ids.tolist() for ids in self.encode_arrays(documents)]

    def encode_arrays(
        self, documents: list[str], advance: Callable[[int], None] = lambda characters: None
    ) -> Iterator[np.ndarray]:
        """The same as int32 arrays, document by document; `advance` hears how far it is."""
        for ids in encode_in_pieces(self._processor, documents, advance):
            yield self._our_ids[ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without padding; UNK shows as U+2047, a double question mark."""
        unknown = self._processor.unk_id()
        theirs = [
            unknown if token == UNK else self.kept[token - NUM_SPECIAL]
            for token in map(int, ids)
            if token != PAD
        ]
        return str(self._processor.decode(theirs))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token apart; of PAD none, and of UNK as `decode` shows it."""
        texts = []
        for token in map(int, ids):
            if token in (PAD, UNK):
                texts.append("" if token == PAD else "\u2047")
                continue
            piece = self._processor.id_to_piece(self.kept[token - NUM_SPECIAL])
            texts.append(piece.replace("\u2581", " "))
        return texts

    def save(self, folder: Path) -> None:
        """Writes two files into an existing folder."""
        for name, content in self.files().items():
            (folder / name).write_bytes(content)

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by name."""
        return {_MODEL_FILE: self.model, _KEPT_FILE: json.dumps({"kept": self.kept}).encode()}

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """What `save` wrote."""
        kept = json.loads((folder / _KEPT_FILE).read_text(encoding="utf-8"))["kept"]
        return cls((folder / _MODEL_FILE).read_bytes(), tuple(kept))


def train_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding of exactly `vocab_size` tokens; the same documents give the same one.

    Characters for which the vocabulary has no room are spelled in bytes, so that nothing is lost:
    from 2048 tokens on those of any text, in a smaller vocabulary those of these documents, for
    which it gives up as few tokens as it can. Only in one of less than some 120 tokens there may be
    no room for that, and rare characters are UNK. Each line end is a token of its own.

    Raises:
      TextError: the documents do not hold enough different tokens.
    """
    tokenizer = _train(documents, vocab_size)
    size = largest = tokenizer.vocab_size
    if size < vocab_size:
        # Without the pieces for bytes, which a small vocabulary lacks, fewer may be possible.
        while (size := _train(documents, largest).vocab_size) < largest:
            largest = size
        raise _too_large(vocab_size, largest)
    return tokenizer


def _too_large(vocab_size: int, largest: int) -> TextError:
    return TextError(
        f"data.vocab_size is {vocab_size}, but the text supports at most {largest} tokens. Lower "
        f"data.vocab_size or give more text."
    )


def _characters(documents: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for document in documents:
        for part in _parts(document):
            counts.update(part)
    if not counts.keys() - {"\n", *_RESERVED}:
        raise TextError("data.path: the text has no characters that a tokenizer can be trained on.")
    return counts


def _parts(document: str) -> Iterator[str]:
    """Short enough that no call into C with one of them keeps Ctrl-C waiting."""
    return (document[start : start + BATCH] for start in range(0, len(document), BATCH))


def _training_lines(documents: list[str], pieces: list[str], left_out: list[str]) -> Iterator[str]:
    """The lines to train on: all, but of those without spaces a sample where there are many.

    Training needs some 40 bytes for every character of a word that it has not met before, so a
    large text in which all words are long, such as one in Chinese, would not fit into memory.
    """
    ends = str.maketrans(dict.fromkeys(left_out, "\n"))
    step = -(-sum(map(len, documents)) // _MOST_WITHOUT_SPACES)
    without_spaces = 0
    if step > 1:
        yield "".join(pieces)  # a rare one may be in no line of the sample
    for document in documents:
        for part in _parts(document):
            for line in part.translate(ends).split("\n"):
                # A word of more than 65,535 characters would end the process.
                for start in range(0, len(line), 4000):
                    short = line[start : start + 4000]
                    if len(short) > 64 * (1 + short.count(" ")):
                        without_spaces += 1
                        if without_spaces % step:
                            continue
                    yield short


class _Alphabet(NamedTuple):
    """How the characters of a text are spelled."""

    pieces: int
    """So many of the most frequent ones are tokens themselves; others are spelled in bytes."""
    spelled: frozenset[int] | None
    """The bytes that are tokens; None: none, and others are unknown."""


def _bytes_of(characters: Iterable[str]) -> frozenset[int]:
    return frozenset("".join(characters).encode())


def _alphabets(counts: Counter[str], vocab_size: int) -> tuple[list[str], list[_Alphabet]]:
    """Characters by frequency, and ways to spell them; the first that works is best."""
    ranked = [c for c, _ in counts.most_common() if c not in ("\n", *_RESERVED)]
    room = vocab_size - NUM_SPECIAL - 1  # 1: the line end
    if vocab_size >= _ALL_BYTES_FROM:
        seen = list(itertools.accumulate(counts[c] for c in ranked))
        enough = 1 + bisect.bisect_left(seen, 0.9995 * seen[-1])
        every = frozenset(range(256))
        half, most = (max(1, min(enough, n)) for n in ((room - 256) // 2, room - 256))
        return ranked, [_Alphabet(half, every), _Alphabet(most, every)]
    # How many tokens it takes when only the first n characters are tokens themselves.
    spelled = set(_bytes_of(c for c in _SPELLED if counts[c]))
    takes = [len(ranked) + len(spelled)]
    for number in reversed(range(len(ranked))):
        spelled.update(ranked[number].encode())
        takes.append(number + len(spelled))
    takes.reverse()
    least = min(takes[1:])
    if least > room:
        half, most = (max(1, min(len(ranked), n)) for n in (room // 2, room))
        return ranked, [_Alphabet(half, None), _Alphabet(most, None)]
    # A text of many characters (Chinese, say) would leave no room for longer tokens: they take half
    # of the room, and more only where there is not enough else.
    chosen = []
    for limit in (max(room // 2, least), room):
        pieces = max(n for n in range(1, len(takes)) if takes[n] <= limit)
        others = [*ranked[pieces:], *(c for c in _SPELLED if counts[c])]
        chosen.append(_Alphabet(pieces, _bytes_of(others) or None))
    return ranked, chosen


def _train(documents: list[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of `vocab_size` tokens, or of fewer if the text has fewer."""
    counts = _characters(documents)
    characters = counts.total()
    ranked, alphabets = _alphabets(counts, vocab_size)
    for pieces, spelled in dict.fromkeys(alphabets):
        unused = 256 - len(spelled) if spelled else 0  # a model has all pieces for bytes or none
        lines = _training_lines(documents, ranked[:pieces], [*ranked[pieces:], *_RESERVED])
        model = train_model(lines, characters, vocab_size + unused, spelled is not None)
        processor = load_model(model)
        kept = [
            i
            for i in range(NUM_SPECIAL, processor.vocab_size())
            if not processor.is_byte(i)
            or (spelled is not None and int(processor.id_to_piece(i)[1:-1], 16) in spelled)
        ]
        tokenizer = Tokenizer(model, tuple(kept))
        if tokenizer.vocab_size == vocab_size:
            break
    return tokenizer


def read_model(path: Path) -> bytes:
    """The content of a model file.

    Raises:
      TextError: it cannot be read.
    """
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        name = printable(str(path))
        raise TextError(f"data.tokenizer: {name} cannot be read: {error.strerror}.") from error
    except RuntimeError as error:
        raise TextError(f"data.tokenizer: {printable(str(path))}: {error}") from error


def load_tokenizer(path: Path, vocab_size: int, documents: list[str]) -> Tokenizer:
    """A sentencepiece model file, cut to the tokens most frequent in `documents`.

    All others are UNK, as in the paper (§4.1), which cut the tokenizer of Mistral to 5,000.

    Raises:
      TextError: no such file, it is no sentencepiece model, or fewer tokens occur.
    """
    model = read_model(path)
    try:
        if not model:
            raise RuntimeError("it is empty")
        processor = load_model(model)
    except RuntimeError as error:
        raise TextError(
            f"data.tokenizer: {printable(str(path))} is not a sentencepiece model. Give a file "
            f"such as Mistral's tokenizer.model; a tokenizer.json is of another kind."
        ) from error
    size = processor.vocab_size()
    counts = np.zeros(size, np.int64)
    with Progress("counting tokens", sum(map(len, documents)), " characters") as progress:
        for ids in encode_in_pieces(processor, documents, progress.advance):
            counts += np.bincount(ids, minlength=size)
    counts[[i for i in range(size) if processor.is_unknown(i) or processor.is_control(i)]] = 0
    kept = np.argsort(-counts, kind="stable")[: vocab_size - NUM_SPECIAL]
    occurring = int(np.count_nonzero(counts))
    if occurring < vocab_size - NUM_SPECIAL:
        raise _too_large(vocab_size, NUM_SPECIAL + occurring)
    return Tokenizer(model, tuple(kept.tolist()))
