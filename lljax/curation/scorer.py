"""A scorer: log-weights as a linear function of what an example looks like.

It is fitted to the weights that were found for the training examples, and weighs unseen ones too.
"""

import dataclasses
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lljax.artifacts.files import write_atomically

LEAST, MOST = 0.02, 50.0
"""Of the weights that a scorer is fitted to, uniform being 1; beyond them differences are noise."""
_FEW = 20  # documents, too few to learn from how they look
_PENALTIES = 10.0 ** np.arange(-2, 4)


class Columns(NamedTuple):
    """A sparse matrix [N, F] with as many places in every row."""

    where: np.ndarray  # [N, M] int32, columns; those that are filled up have the value 0
    values: np.ndarray  # [N, M] float32
    size: int  # F

    @classmethod
    def of(cls, features: Any) -> "Columns":
        """From a NumPy array or a sparse matrix of SciPy."""
        import scipy.sparse

        matrix = scipy.sparse.csr_matrix(features)
        counts = np.diff(matrix.indptr)
        most = max(int(counts.max(initial=0)), 1)
        where = np.zeros((matrix.shape[0], most), np.int32)
        values = np.zeros((matrix.shape[0], most), np.float32)
        rows = np.repeat(np.arange(len(counts)), counts)
        places = np.arange(len(rows)) - np.repeat(matrix.indptr[:-1], counts)
        where[rows, places], values[rows, places] = matrix.indices, matrix.data
        return cls(where, values, matrix.shape[1])


@dataclasses.dataclass(frozen=True)
class Scorer:
    """score = features @ weights + bias; exp(score) is about the weight, uniform being 1."""

    weights: np.ndarray  # [F] float32
    bias: float  # what is added to every score

    def __call__(self, features: Any) -> np.ndarray:
        """[B, F] -> scores [B]."""
        return np.asarray(features @ self.weights, np.float32) + np.float32(self.bias)

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, weights=self.weights, bias=self.bias)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Scorer":
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["weights"], float(arrays["bias"]))


class Seen(NamedTuple):
    """What a scorer sees of N training examples: how their D documents look.

    An example is a few words, and its own look says little of its document's worth; so all pieces
    of a document have its mean features, and with them one weight. Where there are few documents
    each piece counts as one.
    """

    pieces: Any  # [N, F], of the examples
    features: Any  # [D, F], a NumPy array or a sparse matrix of SciPy: means over the pieces
    document: np.ndarray  # [N] int, of each example
    counts: np.ndarray  # [D], its examples

    @classmethod
    def of(cls, features: Any, document: np.ndarray | None = None) -> "Seen":
        """From the features [N, F] of examples and, where they are pieces, of which document."""
        number = features.shape[0]
        each = np.arange(number)
        pieces = cls(features, features, each, np.ones(number))
        if document is None:
            return pieces
        _, document, counts = np.unique(document, return_inverse=True, return_counts=True)
        if len(counts) < _FEW:
            return pieces
        import scipy.sparse

        mean = scipy.sparse.csr_matrix(
            (1 / counts[document], (document, each)), (len(counts), number)
        )
        return cls(features, mean @ features, document, counts.astype(np.float64))

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Of values [N], over each document: [D]."""
        return np.bincount(self.document, values, len(self.counts)) / self.counts

    def scores(self, scorer: "Scorer") -> np.ndarray:
        """[N] float32, of the examples."""
        return scorer(self.features)[self.document]


def fit_scorer(seen: Seen, shares: np.ndarray) -> Scorer:
    """Ridge regression of log-weights on what documents look like.

      min_v,b sum_n (v x_n + b - ln(N w_n))^2 + penalty |v|^2,  N w_n clipped to [LEAST, MOST]

    The penalty is the one with the smallest error on documents that are left out one at a time.

    Args:
      seen: what of the examples is seen.
      shares: [N], on the simplex.
    """
    from sklearn.linear_model import RidgeCV

    targets = seen.mean(log_weights(shares))
    ridge = RidgeCV(alphas=_PENALTIES).fit(seen.features, targets, sample_weight=seen.counts)
    return Scorer(np.asarray(ridge.coef_, np.float32), float(ridge.intercept_))


def smooth(seen: Seen, values: np.ndarray) -> np.ndarray:
    """What of the values of examples depends on how they look: weights [F] of a ridge regression.

    The penalty is the one with the smallest error on a fifth of the documents that is held out.

    Args:
      seen: what of the examples is seen.
      values: [N].
    """
    from sklearn.linear_model import Ridge

    means, counts, features = seen.mean(values), seen.counts, seen.features
    center = np.average(means, weights=counts)
    scale = np.sqrt(np.average(np.square(means - center), weights=counts))
    if not scale > 0:
        return np.zeros(features.shape[1])
    targets = (means - center) / scale
    # Their order may be that of files, with all of a kind in a row.
    held_out = np.random.default_rng(0).permutation(len(targets)) % 5 == 4
    kept = ~held_out if held_out.any() else held_out | True

    def fit(penalty: float, rows: np.ndarray) -> Any:
        ridge = Ridge(alpha=penalty, solver="lsqr", tol=1e-4)
        return ridge.fit(features[rows], targets[rows], sample_weight=counts[rows])

    def error(penalty: float) -> float:
        found = fit(penalty, kept).predict(features[held_out]) if held_out.any() else 0.0
        return float(counts[held_out] @ np.square(found - targets[held_out]))

    best = min(_PENALTIES, key=error)
    return np.asarray(fit(best, np.ones(len(targets), bool)).coef_, np.float64) * scale


def log_weights(shares: np.ndarray) -> np.ndarray:
    """ln(N w), clipped to what a scorer is fitted to: [N] float64."""
    relative = np.asarray(shares, np.float64) * len(shares)
    return np.log(np.clip(relative, LEAST, MOST))


def shares_of(scores: np.ndarray, least: float = 1.0) -> np.ndarray:
    """The distribution over examples that scores make: softmax, [N] float32.

    Args:
      scores: [N].
      least: effective sample size 1 / sum_n w_n^2. Where it would be smaller the weights are
        flattened, w_n to a power below 1, until it is this: a scorer that was found on more
        examples would train on too few of so few. Half of them at most are asked for.
    """
    scores = np.maximum(scores.astype(np.float64) - scores.max(), -700)  # no 0 times infinity
    wanted = min(least, len(scores) / 2)

    def powered(power: float) -> np.ndarray:
        weights = np.exp(power * scores)
        return weights / weights.sum()

    low, high = 0.0, 1.0
    if 1 / np.square(powered(high)).sum() < wanted:
        for _ in range(40):
            middle = (low + high) / 2
            fits = 1 / np.square(powered(middle)).sum() >= wanted
            low, high = (middle, high) if fits else (low, middle)
        high = low
    return powered(high).astype(np.float32)
