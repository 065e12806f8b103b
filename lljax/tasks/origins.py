"""Where training examples come from."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Origins:
    """Where training examples come from: each is a piece of a document. D documents.

    Attributes:
      document: [N] int, which document each example is of.
      place: [N] int, which of its pieces, counted from 0.
      texts: the texts of the documents; None where they are no texts.
      sources: a file's name for each document.
      offsets: [D] int, the number of its record in the file, or its first character's.
      groups: the group's name for each document; None where there is none.
    """

    document: np.ndarray
    place: np.ndarray
    texts: Sequence[str] | None
    sources: Sequence[str]
    offsets: np.ndarray
    groups: Sequence[str | None]
