"""Tokenised text on disk: windows of documents, made once and then read.

A document is cut into consecutive windows of context + 1 tokens. The windows and the tokenizer are
one TensorFlow Datasets data set, whose name holds a hash of all that they are made from: changed
text or settings never meet old windows. Windows that are not what was written are made again.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lljax.data import cache, catalogue, remote
from lljax.data.account import TokenCounts
from lljax.data.errors import TextError
from lljax.data.places import expanded
from lljax.data.progress import Progress, log
from lljax.data.splits import SequenceSplit, deal, split_sequences
from lljax.data.text import Text, TextSettings, read_text
from lljax.data.tokenizer import PAD, UNK, Tokenizer, load_tokenizer, read_model, train_tokenizer
from lljax.safe_text import printable

__all__ = [
    "SequenceSplit",
    "Sequences",
    "TextSettings",
    "deal",
    "load_sequences",
    "split_sequences",
    "windows_of",
]

_FORMAT = 2  # a change in how documents become windows, or are stored, needs a new number
_SPLIT = "windows"
_BLOCK = 64  # windows that are stored as one example: each on its own takes 0.1 ms
_COUNTS_FILE = "counts.json"


class Sequences(NamedTuple):
    """W windows of tokenised text."""

    tokens: np.ndarray  # [W, context + 1] int32, PAD behind the last token of a document
    document: np.ndarray  # [W] int32, which document a window is of; ascending
    tokenizer: Tokenizer
    text: Text
    counts: TokenCounts


def load_sequences(settings: TextSettings) -> Sequences:
    """Reads a text and returns its windows, from the cache when they are there and sound.

    Raises:
      TextError: the text, a setting or the cache cannot be used.
    """
    text = read_text(settings)
    name = _fingerprint(text.documents, settings)
    folder = settings.cache_folder / "lljax_sequences" / name / f"{_FORMAT}.0.0"

    def make(windows: Sequences | None = None) -> Any:
        import tensorflow_datasets as tfds

        return _builder_class()(
            context=settings.context,
            windows=windows,
            config=tfds.core.BuilderConfig(name=name),
            data_dir=settings.cache_folder,
            file_format="array_record",
        )

    if (found := _read(folder, make, text)) is not None:
        return found
    made = _make_windows(text, settings)
    with cache.writable(folder.parent):
        # Another process may have made them meanwhile; else what is there is damaged.
        if (found := _read(folder, make, text)) is not None:
            return found
        if folder.exists():
            log(f"warning: {printable(str(folder))} is damaged and is made again.")
        cache.remove(folder)
        _write(made, make)
    return made


def _write(windows: Sequences, make: Any) -> None:
    try:
        catalogue.prepare(catalogue.make_builder(lambda: make(windows)))
    except (OSError, TextError, MemoryError):
        raise
    except Exception as error:  # whatever array_record makes of a disk that is full
        reason = OSError(0, remote.shown(error).partition(";")[0])
        raise cache.unwritable(Path(make().data_path).parent, reason) from error


def _fingerprint(documents: list[str], settings: TextSettings) -> str:
    """Of everything that determines the windows; how the documents were found does not."""
    digest = hashlib.sha256()
    if settings.tokenizer is not None:
        if (own := _of_a_run(settings)) is not None:
            digest.update(json.dumps(own.kept).encode() + own.model)
        else:
            digest.update(read_model(Path(settings.tokenizer)))
    digest.update(f"|{_FORMAT}|{settings.tokenizer is not None}".encode())
    digest.update(f"|{settings.vocab_size}|{settings.context}".encode())
    for document in documents:
        encoded = document.encode()
        digest.update(f"|{len(encoded)}|".encode() + encoded)
    return digest.hexdigest()[:32]


def _of_a_run(settings: TextSettings) -> Tokenizer | None:
    """The tokenizer that a run left in its workdir; None where data.tokenizer names no folder.

    Raises:
      TextError: there is none in the folder, or it has another number of tokens.
    """
    if settings.tokenizer is None:
        return None
    folder = expanded(settings.tokenizer, "data.tokenizer")
    if not folder.is_dir():
        return None
    try:
        tokenizer = Tokenizer.load(folder)
    except (OSError, ValueError, LookupError) as error:
        raise TextError(
            f"data.tokenizer: the folder {printable(str(folder))} holds no tokenizer of a run. "
            f"Give the workdir of one, or a file such as tokenizer.model."
        ) from error
    if tokenizer.vocab_size != settings.vocab_size:
        raise TextError(
            f"data.vocab_size is {settings.vocab_size}, but the tokenizer of "
            f"{printable(str(folder))} has {tokenizer.vocab_size} tokens. Set data.vocab_size to "
            f"that."
        )
    return tokenizer


def _make_windows(text: Text, settings: TextSettings) -> Sequences:
    documents = text.documents
    tokenizer = _of_a_run(settings)
    if tokenizer is None and settings.tokenizer is not None:
        path = Path(settings.tokenizer)
        tokenizer = load_tokenizer(path, settings.vocab_size, documents)
    elif tokenizer is None:
        tokenizer = train_tokenizer(documents, settings.vocab_size)
    width = settings.context + 1
    sizes = _Sizes()
    with Progress("tokenising", sum(map(len, documents)), " characters") as progress:
        encoded = sizes.watch(tokenizer.encode_arrays(documents, progress.advance))
        stacked, owners = windows_of(encoded, settings.context)
    longest, tokens = sizes.longest, sizes.tokens
    if longest < width:
        raise TextError(
            f"data.context is {settings.context}, so a sequence has {width} tokens, but the "
            f"longest document of {text.parts[0].source} has {longest}. Lower data.context, or "
            f"check data.separator if the documents should be longer."
        )
    kept = int(np.count_nonzero(stacked != PAD))
    counts = TokenCounts(
        tokens=tokens,
        unknown=sizes.unknown,
        dropped=tokens - kept,
        padding=stacked.size - kept,
        sequences=len(stacked),
        length=width,
    )
    return Sequences(stacked, owners, tokenizer, text, counts)


class _Sizes:
    """What is counted of documents on their way."""

    longest = tokens = unknown = 0

    def watch(self, encoded: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for ids in encoded:
            self.longest = max(self.longest, len(ids))
            self.tokens += len(ids)
            self.unknown += int(np.count_nonzero(ids == UNK))
            yield ids


def windows_of(
    encoded: Iterable[np.ndarray], context: int, every_document: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Consecutive windows of documents.

    Args:
      encoded: the ids of each document's tokens.
      context: a window has one token more.
      every_document: whether a document too short for a window gets one all the same.

    Returns:
      (windows [W, context + 1] int32, PAD behind the last token; the document of each [W] int32).
    """
    width = context + 1
    least = max(2, width // 4)  # a shorter tail is mostly padding
    windows: list[np.ndarray] = [np.empty((0, width), np.int32)]
    owners: list[np.ndarray] = [np.empty(0, np.int32)]
    for index, ids in enumerate(encoded):
        whole, tail = divmod(len(ids), width)
        rows = whole + (tail >= least)
        if every_document and not rows and len(ids):
            rows = 1
        padded = np.full(rows * width, PAD, np.int32)
        used = ids[: rows * width]
        padded[: len(used)] = used
        windows.append(padded.reshape(rows, width))
        owners.append(np.full(rows, index, np.int32))
    return np.concatenate(windows), np.concatenate(owners)


@functools.cache
def _builder_class() -> Any:
    """Defined here because its base is imported late: `import lljax` stays light."""
    import tensorflow_datasets as tfds

    class LljaxSequences(tfds.core.GeneratorBasedBuilder):
        """Windows of tokenised text, with the tokenizer's files beside them."""

        VERSION = tfds.core.Version(f"{_FORMAT}.0.0")

        def __init__(self, *, context: int = 0, windows: Sequences | None = None, **kwargs: Any):
            self.context = context
            self.windows = windows
            super().__init__(**kwargs)

        def _info(self) -> Any:
            def integers(*shape: int | None) -> Any:
                return tfds.features.Tensor(shape=shape, dtype=np.int32, encoding="bytes")

            features = {"tokens": integers(None, self.context + 1), "document": integers(None)}
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            assert self.windows is not None
            # data_path is the folder that becomes the data set when all is written.
            folder = Path(self.data_path)
            self.windows.tokenizer.save(folder)
            cache.write_record(folder / _COUNTS_FILE, dataclasses.asdict(self.windows.counts))
            return {_SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Any:
            assert self.windows is not None
            for start in range(0, len(self.windows.tokens), _BLOCK):
                block = slice(start, start + _BLOCK)
                document = self.windows.document[block]
                yield start, {"tokens": self.windows.tokens[block], "document": document}

    return LljaxSequences


def _read(folder: Path, make: Any, text: Text) -> Sequences | None:
    """What is in the cache; None where it is not there, or is not what was written."""
    if not folder.is_dir() or cache.damage(folder):
        return None
    try:
        builder = catalogue.make_builder(make)
        counts = TokenCounts(**(cache.read_record(folder / _COUNTS_FILE) or {}))
        tokens = np.empty((counts.sequences, counts.length), np.int32)
        document = np.empty(counts.sequences, np.int32)
        row = 0
        for block in catalogue.read_batched(builder.as_data_source(_SPLIT)):
            rows = slice(row, row + len(block["document"]))
            tokens[rows], document[rows] = block["tokens"], block["document"]
            row = rows.stop
        return Sequences(tokens, document, Tokenizer.load(folder), text, counts)
    except (MemoryError, ModuleNotFoundError):
        raise
    except Exception:  # whatever a library makes of a file that went while it was read
        return None
