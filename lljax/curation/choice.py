"""What `lljax export` and `lljax score` write: all rows, the best, or a sample; their columns."""

from collections.abc import Mapping

import numpy as np

from lljax.errors import UserError

COLUMNS: Mapping[str, type] = {
    "rank": int,
    "index": int,
    "source": str,
    "offset": int,
    "group": str,
    "text": str,
    "weight": float,
    "score": float,
    "probability": float,
}
"""Of a document: its rank, its number, where it comes from, its weight (uniform is 1), its score,
and the probability with which one draw by weight takes it."""


def check_choice(keep: float | None, sample: int | None) -> None:
    """UserError unless at most one of them is given, and the share is one."""
    if keep is not None and sample is not None:
        raise UserError("--keep and --sample both say how many documents are written. Give one.")
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"--keep must be a share in (0, 1]; got {keep}.")


def choose(
    ranked: np.ndarray, probabilities: np.ndarray, keep: float | None, sample: int | None, seed: int
) -> np.ndarray:
    """The numbers of the documents that are written.

    Args:
      ranked: the numbers of all, best first.
      probabilities: of each document.
      keep: the best ones, this share of them.
      sample: so many different ones, drawn by their probabilities; in the order of the draws.
      seed: of that.

    Raises:
      UserError: more are asked for than have a probability.
    """
    if sample is None:
        return ranked if keep is None else ranked[: max(1, round(keep * len(ranked)))]
    with_weight = int(np.count_nonzero(probabilities))
    if not 1 <= sample <= with_weight:
        raise UserError(
            f"--sample must be from 1 to {with_weight}, the documents with weight; got {sample}."
        )
    # Gumbel's trick: the largest of ln p + noise are draws without replacement.
    rng = np.random.Generator(np.random.PCG64(seed))
    with np.errstate(divide="ignore"):
        keys = np.log(probabilities) + rng.gumbel(size=len(probabilities))
    return np.argsort(-keys, kind="stable")[:sample]
