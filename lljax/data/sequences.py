"""Tokenised text on disk, and its division into sets that share no document.

A document is cut into consecutive windows of context + 1 tokens. The windows and the tokenizer are
one TensorFlow Datasets data set, whose name holds a hash of all that they are made from: changed
text or settings never meet old windows.
"""

import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lljax.data import remote
from lljax.data.remote import TextError
from lljax.data.text import TextSettings, read_documents
from lljax.data.tokenizer import PAD, Tokenizer, load_tokenizer, read_model, train_tokenizer

_FORMAT = 1  # a change in how documents become windows needs a new number
_SPLIT = "windows"
_LARGEST_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of one document in a set; the first that works
_SETS = ("test", "validation", "desired", "train")


class Sequences(NamedTuple):
    """W windows of tokenised text."""

    tokens: np.ndarray  # [W, context + 1] int32, PAD behind the last token of a document
    document: np.ndarray  # [W] int32, which document a window is of; ascending
    tokenizer: Tokenizer


class SequenceSplit(NamedTuple):
    """Indices of windows, int64; no document has windows in two sets."""

    train: np.ndarray  # [num_train]
    desired: np.ndarray  # [num_desired]
    validation: np.ndarray  # [num_validation]
    test: np.ndarray  # [num_test]


def load_sequences(settings: TextSettings) -> Sequences:
    """Reads a text and returns its windows, from the cache when they are there.

    Raises:
      TextError: the text, a setting or the cache cannot be used.
    """
    documents = read_documents(settings)
    name = _fingerprint(documents, settings)

    def make(windows: Sequences | None = None) -> Any:
        import tensorflow_datasets as tfds

        return _builder_class()(
            context=settings.context,
            windows=windows,
            config=tfds.core.BuilderConfig(name=name),
            data_dir=settings.cache_folder,
            file_format="array_record",
        )

    try:
        builder = remote.make_builder(make)
    except (OSError, ValueError) as error:
        raise TextError(
            f"data.cache_dir: {settings.cache_folder} cannot be read ({error}). Delete its folder "
            f"{name}, or give another as data.cache_dir."
        ) from error
    if not builder.data_path.exists():
        windows = _make_windows(documents, settings)
        try:
            builder = remote.prepare(lambda: make(windows))
        except OSError as error:
            raise TextError(
                f"data.cache_dir: {settings.cache_folder} cannot be written ({error}). Make room, "
                f"or give another folder as data.cache_dir."
            ) from error
    return _read(builder)


def _fingerprint(documents: list[str], settings: TextSettings) -> str:
    """Of everything that determines the windows; how the documents were found does not."""
    digest = hashlib.sha256()
    if settings.tokenizer is not None:
        digest.update(read_model(Path(settings.tokenizer)))
    digest.update(f"|{_FORMAT}|{settings.tokenizer is not None}".encode())
    digest.update(f"|{settings.vocab_size}|{settings.context}".encode())
    for document in documents:
        encoded = document.encode()
        digest.update(f"|{len(encoded)}|".encode() + encoded)
    return digest.hexdigest()[:32]


def _make_windows(documents: list[str], settings: TextSettings) -> Sequences:
    if settings.tokenizer is not None:
        path = Path(settings.tokenizer)
        tokenizer = load_tokenizer(path, settings.vocab_size, documents)
    else:
        tokenizer = train_tokenizer(documents, settings.vocab_size)
    width = settings.context + 1
    least = max(2, width // 4)  # a shorter tail is mostly padding
    windows: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    longest = 0
    for index, ids in enumerate(tokenizer.encode(documents)):
        longest = max(longest, len(ids))
        whole, tail = divmod(len(ids), width)
        rows = whole + (tail >= least)
        padded = np.full(rows * width, PAD, np.int32)
        kept = ids[: rows * width]
        padded[: len(kept)] = kept
        windows.append(padded.reshape(rows, width))
        owners.append(np.full(rows, index, np.int32))
    if longest < width:
        raise TextError(
            f"data.context is {settings.context}, so a sequence has {width} tokens, but the "
            f"longest document of {settings.source} has {longest}. Lower data.context, or check "
            f"data.separator if the documents should be longer."
        )
    return Sequences(np.concatenate(windows), np.concatenate(owners), tokenizer)


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
            tokens = tfds.features.Tensor(
                shape=(self.context + 1,), dtype=np.int32, encoding="bytes"
            )
            features = {"tokens": tokens, "document": tfds.features.Scalar(dtype=np.int32)}
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            assert self.windows is not None
            # data_path is the folder that becomes the data set when all is written.
            self.windows.tokenizer.save(Path(self.data_path))
            return {_SPLIT: self._generate_examples()}

        def _generate_examples(self) -> Any:
            assert self.windows is not None
            for index, window in enumerate(self.windows.tokens):
                yield index, {"tokens": window, "document": self.windows.document[index]}

    return LljaxSequences


def _read(builder: Any) -> Sequences:
    folder = Path(builder.data_path)
    try:
        examples = builder.as_data_source(_SPLIT)
        tokens = np.empty((len(examples), builder.context + 1), np.int32)
        document = np.empty(len(examples), np.int32)
        for row, example in enumerate(remote.read_batched(examples)):
            tokens[row] = example["tokens"]
            document[row] = example["document"]
        return Sequences(tokens, document, Tokenizer.load(folder))
    except Exception as error:  # whatever array_record makes of a damaged file
        raise TextError(
            f"data.cache_dir: {folder} cannot be read ({type(error).__name__}: {error}). Delete "
            f"that folder; it will be made again."
        ) from error


def split_sequences(
    sequences: Sequences,
    *,
    seed: int,
    num_train: int,
    num_desired: int,
    num_validation: int,
    num_test: int,
) -> SequenceSplit:
    """Deals shuffled documents to test, validation, desired and train, in that order.

    A set takes documents until it has enough windows; no other set takes windows of those. A
    document gives at most a sixteenth of a set, so that one long table does not decide what the
    set is like; more only where the text has too few documents for that.

    Args:
      sequences: what `load_sequences` returns.
      seed: of the order of the documents.
      num_train: windows of the training set, at least 0; the others alike.

    Raises:
      TextError: there are not enough windows.
    """
    counts = np.bincount(sequences.document)
    documents = np.flatnonzero(counts)
    np.random.Generator(np.random.PCG64(seed)).shuffle(documents)
    wanted = dict(zip(_SETS, (num_test, num_validation, num_desired, num_train), strict=True))
    for share in _LARGEST_SHARES:
        sets = _deal(counts, documents, wanted, share)
        if set(sets) == set(wanted):
            return SequenceSplit(**sets)
    raise _too_few(sets, counts, documents, wanted)


def _deal(
    counts: np.ndarray, documents: np.ndarray, wanted: dict[str, int], share: float
) -> dict[str, np.ndarray]:
    """The windows of each set, as far as the documents last."""
    starts = np.cumsum(counts) - counts  # windows of a document stand together
    sets: dict[str, np.ndarray] = {}
    for name, number in wanted.items():
        most = np.minimum(counts[documents], max(1, int(number * share)))
        used = int(np.searchsorted(np.cumsum(most), number)) + 1 if number else 0
        if used > len(documents):
            break
        windows = [starts[d] + np.arange(m) for d, m in zip(documents[:used], most, strict=False)]
        sets[name] = np.concatenate([np.empty(0, np.int64), *windows])[:number]
        documents = documents[used:]
    return sets


def _too_few(
    sets: dict[str, np.ndarray], counts: np.ndarray, documents: np.ndarray, wanted: dict[str, int]
) -> TextError:
    """What to say where `sets` are all that could be filled, without a largest share."""
    name = next(name for name in wanted if name not in sets)
    used = np.searchsorted(
        np.cumsum(counts), np.concatenate([np.empty(0, np.int64), *sets.values()]), side="right"
    )
    left = int(counts.sum() - counts[np.unique(used)].sum())
    others = [f"data.num_{other}" for other in sets if wanted[other]]
    taken = f" after {', '.join(others)} took theirs (whole documents)" if others else ""
    lower = " or ".join([f"data.num_{name}", *others])
    return TextError(
        f"data.num_{name} is {wanted[name]}, but the text has only {left} sequences left{taken}; "
        f"it has {int(counts.sum())} in {len(documents)} documents. Lower {lower}, or data.context "
        f"for more and shorter sequences, or give more text."
    )
