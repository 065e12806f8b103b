"""From text to token ids and back: a sentencepiece model, trained here or given and cut down.

Ids are the same in both ways: 0 pads, 1 stands for text the vocabulary lacks, tokens follow. There
are no marks for the start or end of a document: a sequence never holds text of two.
"""

import bisect
import dataclasses
import functools
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lljax.data.remote import TextError

PAD = 0
UNK = 1
NUM_SPECIAL = 2
"""Ids below are special; those of tokens run from here to the vocabulary's size."""

_BYTE_FALLBACK_FROM = 2048  # from here on the 256 pieces for bytes take at most an eighth
_RESERVED = "\u2581\u2585"  # sentencepiece's space and its mark for the unknown
_MODEL_FILE = "tokenizer.model"
_KEPT_FILE = "tokenizer.json"


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
        return _load_model(self.model)

    @functools.cached_property
    def _our_ids(self) -> np.ndarray:
        ours = np.full(self._processor.vocab_size(), UNK, np.int32)
        ours[list(self.kept)] = np.arange(NUM_SPECIAL, self.vocab_size, dtype=np.int32)
        return ours

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Ids of each document's tokens; UNK for those that are not kept."""
        encoded = self._processor.encode(documents)
        return [self._our_ids[np.asarray(ids, np.int32)].tolist() for ids in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without padding; UNK shows as U+2047, a double question mark."""
        unknown = self._processor.unk_id()
        theirs = [
            unknown if token == UNK else self.kept[token - NUM_SPECIAL]
            for token in map(int, ids)
            if token != PAD
        ]
        return str(self._processor.decode(theirs))

    def save(self, folder: Path) -> None:
        """Writes two files into an existing folder."""
        (folder / _MODEL_FILE).write_bytes(self.model)
        (folder / _KEPT_FILE).write_text(json.dumps({"kept": self.kept}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """What `save` wrote."""
        kept = json.loads((folder / _KEPT_FILE).read_text(encoding="utf-8"))["kept"]
        return cls((folder / _MODEL_FILE).read_bytes(), tuple(kept))


def _load_model(model: bytes) -> Any:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    return processor


def train_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """Byte-pair encoding of exactly `vocab_size` tokens; the same documents give the same one.

    From 2048 tokens on, text that the vocabulary lacks is spelled in bytes, so that nothing is
    lost; in a smaller one it is UNK. Each line end is a token of its own.

    Raises:
      TextError: the documents do not hold enough different tokens.
    """
    model = _train(documents, vocab_size)
    size = largest = _load_model(model).vocab_size()
    if size < vocab_size:
        # Without the pieces for bytes, which a small vocabulary lacks, fewer may be possible.
        while (size := _load_model(_train(documents, largest)).vocab_size()) < largest:
            largest = size
        raise _too_large(vocab_size, largest)
    return Tokenizer(model, tuple(range(NUM_SPECIAL, vocab_size)))


def _too_large(vocab_size: int, largest: int) -> TextError:
    return TextError(
        f"data.vocab_size is {vocab_size}, but the text supports at most {largest} tokens. Lower "
        f"data.vocab_size or give more text."
    )


def _characters(documents: list[str], share: float) -> tuple[list[str], int]:
    """Characters by frequency, and how many of them make up a share of the text."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(document)
    for reserved in ("\n", *_RESERVED):
        del counts[reserved]
    if not counts:
        raise TextError("data.path: the text has no characters that a tokenizer can be trained on.")
    ranked = counts.most_common()
    seen = list(itertools.accumulate(count for _, count in ranked))
    enough = 1 + bisect.bisect_left(seen, share * seen[-1])
    return [character for character, _ in ranked], enough


def _training_lines(documents: list[str], left_out: list[str]) -> Iterator[str]:
    ends = str.maketrans(dict.fromkeys(left_out, "\n"))
    for document in documents:
        for line in document.translate(ends).split("\n"):
            # A word of more than 65,535 characters would end the process.
            yield from (line[start : start + 4000] for start in range(0, len(line), 4000))


def _train(documents: list[str], vocab_size: int) -> bytes:
    """A model of `vocab_size` tokens, or of fewer if the text has fewer."""
    byte_fallback = vocab_size >= _BYTE_FALLBACK_FROM
    room = vocab_size - NUM_SPECIAL - 1 - 256 * byte_fallback  # 1: the line end
    characters, enough = _characters(documents, share=0.9995 if byte_fallback else 1.0)
    model = b""
    # A text of many characters (Chinese, say) would leave no room for longer tokens, or not even
    # fit: they take half of the room, and more only where there is not enough else.
    for number in sorted({max(1, min(enough, room // 2)), max(1, min(enough, room))}):
        model = _train_model(documents, vocab_size, byte_fallback, characters[number:])
        if _load_model(model).vocab_size() == vocab_size:
            break
    return model


def _train_model(
    documents: list[str], vocab_size: int, byte_fallback: bool, left_out: list[str]
) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_training_lines(documents, [*left_out, *_RESERVED]),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        character_coverage=1.0,  # below 0.98 is refused, so rare ones are left out of the lines
        # Text comes back as it was: nothing is normalised, trimmed or put in front.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["\n"],
        max_sentence_length=1 << 16,
        pad_id=PAD,
        unk_id=UNK,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def read_model(path: Path) -> bytes:
    """The content of a model file.

    Raises:
      TextError: it cannot be read.
    """
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise TextError(f"data.tokenizer: {path} cannot be read: {error.strerror}.") from error


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
        processor = _load_model(model)
    except RuntimeError as error:
        raise TextError(
            f"data.tokenizer: {path} is not a sentencepiece model. Give a file such as Mistral's "
            f"tokenizer.model; a tokenizer.json is of another kind."
        ) from error
    tokens = itertools.chain.from_iterable(processor.encode(documents))
    size = processor.vocab_size()
    counts = np.bincount(np.fromiter(tokens, np.int64), minlength=size)
    counts[[i for i in range(size) if processor.is_unknown(i) or processor.is_control(i)]] = 0
    kept = np.argsort(-counts, kind="stable")[: vocab_size - NUM_SPECIAL]
    occurring = int(np.count_nonzero(counts))
    if occurring < vocab_size - NUM_SPECIAL:
        raise _too_large(vocab_size, NUM_SPECIAL + occurring)
    return Tokenizer(model, tuple(kept.tolist()))
