"""The division of sequences into sets that share no document."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from lljax.data.errors import TextError

_LARGEST_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of one document in a set; the first that works
_SETS = ("test", "validation", "desired", "train")
DESIRED_SHARES = {"test": 0.25, "validation": 0.25, "desired": 0.5}
"""Of the desired text, where numbers are not given; where there is one text, of a quarter of it."""
MOST_DESIRED = {"test": 512, "validation": 256, "desired": 512}
"""More is not taken without being asked for."""


class _Windows(Protocol):
    @property
    def document(self) -> np.ndarray: ...


class SequenceSplit(NamedTuple):
    """Indices of windows, int64; no document, or piece of one, has windows in two sets."""

    train: np.ndarray  # [num_train]
    desired: np.ndarray  # [num_desired]
    validation: np.ndarray  # [num_validation]
    test: np.ndarray  # [num_test]


class Deal(NamedTuple):
    """A split, and what had to be cut for it."""

    split: SequenceSplit
    cut_documents: int
    piece: int  # windows of a piece at most; 0 where no document was cut


def split_sequences(
    sequences: _Windows,
    *,
    seed: int,
    num_train: int | None,
    num_desired: int | None,
    num_validation: int | None,
    num_test: int | None,
    num_train_documents: int | None = None,
) -> SequenceSplit:
    """Deals shuffled documents to test, validation, desired and train, in that order.

    A set takes documents until it has enough windows; no other set takes windows of those. A
    document gives at most a sixteenth of a set, so that one long table does not decide what the
    set is like; more only where the text has too few documents for that. Where whole documents
    cannot fill every set, long ones are cut into pieces of consecutive windows, as long as the sets
    allow, and the pieces are dealt instead: any text with enough windows can fill the sets.

    Where there is a desired text, the training set takes windows of the other one at random, all
    of them where there are no more than are asked for.

    Args:
      sequences: what `load_sequences` returns.
      seed: of the order of the documents.
      num_train: windows of the training set, at least 0; all that are left when None.
      num_desired: of the desired set; `DESIRED_SHARES` of the text when None; the others alike.
      num_train_documents: the documents before this one are to train on, and the others for the
        three other sets; None: all are for all.

    Raises:
      TextError: there are not enough windows.
    """
    numbers = {"num_train": num_train, "num_desired": num_desired}
    numbers |= {"num_validation": num_validation, "num_test": num_test}
    return deal(sequences, num_train_documents, seed=seed, **numbers).split


def deal(
    sequences: _Windows, num_train_documents: int | None = None, *, seed: int, **numbers: int | None
) -> Deal:
    """As `split_sequences`, with what had to be cut."""
    counts = np.bincount(sequences.document)
    starts = np.cumsum(counts) - counts  # windows of a document stand together
    wanted = {name: numbers[f"num_{name}"] for name in _SETS}
    if num_train_documents is None:
        total = int(counts.sum())
        sizes = {name: int(total * share / 4) for name, share in DESIRED_SHARES.items()}
        return _deal_all(starts, counts, _given(wanted, sizes), seed, "the text")
    is_train = np.arange(len(counts)) < num_train_documents
    of_desired = np.where(is_train, 0, counts)
    total = int(of_desired.sum())
    sizes = {name: int(total * share) for name, share in DESIRED_SHARES.items()}
    desired = {name: wanted[name] for name in DESIRED_SHARES}
    others = _deal_all(
        starts, of_desired, _given(desired, sizes), seed, "the text of data.desired_path"
    )
    windows = np.flatnonzero(is_train[sequences.document])
    number = wanted["train"]
    if not len(windows) and number != 0:
        counts_of_train = np.where(is_train, counts, 0)
        raise _too_few({}, counts_of_train, {"train": number}, "the text of data.path")
    # Any of them, so that the set is as the text is, whatever its documents' lengths are.
    rng = np.random.Generator(np.random.PCG64([seed, 2]))
    train = rng.permutation(windows)[:number]
    return others._replace(split=others.split._replace(train=train))


def _given(wanted: Mapping[str, int | None], sizes: Mapping[str, int]) -> dict[str, int | None]:
    """The numbers that are wanted, with others where none is given."""
    return {
        name: max(1, min(sizes[name], MOST_DESIRED[name]))
        if number is None and name in sizes
        else number
        for name, number in wanted.items()
    }


def _deal_all(
    starts: np.ndarray,
    counts: np.ndarray,
    wanted: Mapping[str, int | None],
    seed: int,
    text: str,
) -> Deal:
    for share in _LARGEST_SHARES:
        sets = _deal(starts, counts, wanted, share, seed)
        if set(sets) == set(wanted):
            return Deal(_split(sets), 0, 0)
    piece = max(1, min((number for number in wanted.values() if number), default=1) // 16)
    while True:
        sets = _deal(*_pieces(starts, counts, piece), wanted, 1, seed)
        if set(sets) == set(wanted):
            return Deal(_split(sets), int(np.count_nonzero(counts > piece)), piece)
        if piece == 1:
            raise _too_few(sets, counts, wanted, text)
        piece //= 2


def _split(sets: Mapping[str, np.ndarray]) -> SequenceSplit:
    return SequenceSplit(**{name: sets.get(name, np.empty(0, np.int64)) for name in _SETS})


def _pieces(starts: np.ndarray, counts: np.ndarray, piece: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs of at most `piece` windows of one document: where they begin, and how long they are."""
    number = -(-counts // piece)
    first = np.repeat(starts, number)
    place = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
    left = np.repeat(counts, number) - place * piece
    return first + place * piece, np.minimum(left, piece)


def _deal(
    starts: np.ndarray,
    counts: np.ndarray,
    wanted: Mapping[str, int | None],
    share: float,
    seed: int,
) -> dict[str, np.ndarray]:
    """The windows of each set, as far as the documents last."""
    documents = np.flatnonzero(counts)
    np.random.Generator(np.random.PCG64(seed)).shuffle(documents)
    sets: dict[str, np.ndarray] = {}
    for name, number in wanted.items():
        most = counts[documents]
        used = len(documents)
        if number is not None:
            most = np.minimum(most, max(1, int(number * share)))
            used = int(np.searchsorted(np.cumsum(most), number)) + 1 if number else 0
        if used > len(documents) or (number is None and not used):
            break
        windows = [starts[d] + np.arange(m) for d, m in zip(documents[:used], most, strict=False)]
        sets[name] = np.concatenate([np.empty(0, np.int64), *windows])[:number]
        documents = documents[used:]
    return sets


def _too_few(
    sets: Mapping[str, np.ndarray], counts: np.ndarray, wanted: Mapping[str, int | None], text: str
) -> TextError:
    """What to say where `sets` are all that single windows could fill."""
    name = next(name for name in wanted if name not in sets)
    total = int(counts.sum())
    left = total - sum(map(len, sets.values()))
    others = [f"data.num_{other}" for other in sets if wanted[other]]
    taken = f" after {', '.join(others)} took theirs" if others else ""
    lower = " or ".join([f"data.num_{name}", *others])
    number = "all" if wanted[name] is None else wanted[name]
    return TextError(
        f"data.num_{name} is {number}, but {text} has only {left} sequences left{taken}; "
        f"it has {total} in {np.count_nonzero(counts)} documents. Lower {lower}, or data.context "
        f"for more and shorter sequences, or give more text."
    )
