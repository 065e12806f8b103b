"""A finished run, read back: its config, policy, documents with their weights, and numbers."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lljax.artifacts import schema
from lljax.artifacts.reading import Unreadable, read_npy
from lljax.artifacts.results import CURE, load_results
from lljax.curation.scorer import Scorer
from lljax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Data:
    """The training data of a run. D documents, N training examples: pieces of them.

    Attributes:
      texts: the text of each document; None where it has none.
      sources: a file's name for each document.
      offsets: [D] int64, the number of its record in the file; in a plain text its first
        character's.
      groups: the group of each document, or None.
      weights: [D] float64, the mean weight of a document's examples, uniform being 1.
      probabilities: [D] float64, the share of the weight that the whole document has: by which one
        samples.
      example_document: [N] int64, which document each example is of.
      example_place: [N] int64, which of its pieces, counted from 0.
      example_texts: the text of each example; None where it has none.
      example_weights: [N] float32, uniform being 1.
      example_scores: [N] float32, of a scorer; else the logarithm of the weight.
      perturbed: [N] bool, the examples that were damaged on purpose; None where none were.
    """

    texts: list[str | None]
    sources: list[str]
    offsets: np.ndarray
    groups: list[str | None]
    weights: np.ndarray
    probabilities: np.ndarray
    example_document: np.ndarray
    example_place: np.ndarray
    example_texts: list[str | None]
    example_weights: np.ndarray
    example_scores: np.ndarray
    perturbed: np.ndarray | None

    @property
    def document_scores(self) -> np.ndarray:
        """[D] float64, the mean score of a document's examples."""
        return _means(self.example_document, self.example_scores, len(self.sources))


@dataclasses.dataclass(frozen=True)
class Run:
    """What `load_run` returns.

    Attributes:
      workdir: where it is.
      config: config.json, nested.
      policy: policy.npy, float32: weights [N] of static policies and scorers (uniform is 1 / N), of
        groups [G], rows of either [S, N] or [S, G], or gamma [T, N] of a dense policy.
      summary: summary.json: the figures of the report.
    """

    workdir: Path
    config: Mapping[str, Any]
    policy: np.ndarray
    summary: Mapping[str, Any]

    @functools.cached_property
    def data(self) -> Data:
        """The training documents and examples, with their weights.

        Raises:
          UserError: the run is of a dense policy, which has none, or a file is damaged.
        """
        documents = self._table(schema.DOCUMENTS_FILE)
        examples = self._table(schema.EXAMPLES_FILE)
        of = examples["document"].to_numpy()
        weights = examples["weight"].to_numpy().astype(np.float64)
        number = len(documents["source"])
        totals = np.bincount(of, weights, number)
        return Data(
            texts=documents["text"].to_pylist(),
            sources=documents["source"].to_pylist(),
            offsets=documents["offset"].to_numpy(),
            groups=documents["group"].to_pylist(),
            weights=_means(of, weights, number),
            probabilities=totals / totals.sum(),
            example_document=of,
            example_place=examples["place"].to_numpy(),
            example_texts=examples["text"].to_pylist(),
            example_weights=examples["weight"].to_numpy(),
            example_scores=examples["score"].to_numpy(),
            perturbed=examples["perturbed"].to_numpy() if "perturbed" in examples else None,
        )

    def scorer(self) -> Scorer:
        """The scorer of a policy of this family.

        Raises:
          UserError: it has none.
        """
        path = self.workdir / schema.SCORER_FILE
        if not path.is_file():
            family = self.summary.get("family", "dense")
            raise UserError(
                f"{self.workdir} has no scorer: its policy.family is {family}. Run with "
                f"--policy.family scorer to weigh data that the run has not seen."
            )
        try:
            return Scorer.load(path)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}). {CURE}") from error

    def _table(self, name: str) -> dict[str, Any]:
        import pyarrow
        import pyarrow.parquet

        path = self.workdir / name
        if not path.is_file():
            raise UserError(
                f"{self.workdir} has no {name}: only runs with a policy.family of static, group, "
                f"scheduled or scorer have weights of documents."
            )
        try:
            table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path} is damaged ({error}). {CURE}") from error
        return {column: table.column(column) for column in table.column_names}


def load_run(workdir: Path | str) -> Run:
    """Reads a finished run.

    Args:
      workdir: what `lljax run` wrote.

    Returns:
      Run. Only policy and settings are read at once; documents are when they are asked for.

    Raises:
      UserError: it is unfinished, or a file is missing or damaged.
    """
    workdir = Path(workdir)
    results = load_results(workdir)
    path = workdir / schema.POLICY_FILE
    try:
        policy = read_npy(path)
    except (OSError, Unreadable) as error:
        raise UserError(f"{path} cannot be read ({error}). {CURE}") from error
    return Run(workdir, results.config, policy, results.summary)


def _means(of: np.ndarray, values: np.ndarray, number: int) -> np.ndarray:
    counts = np.bincount(of, minlength=number)
    return np.bincount(of, values, number) / np.maximum(counts, 1)
