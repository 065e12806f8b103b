"""`lljax export`: the documents and examples of a run with their weights, ranked or sampled."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lljax.curation.loaded import Data, load_run
from lljax.curation.writers import ENDINGS, Format, open_writer
from lljax.data.progress import Progress
from lljax.errors import UserError

_ROWS = 1024  # at once
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
"""Of a document, best first: its number in the run's data, where it comes from, its weight (uniform
is 1), its score, and the probability with which one draw by weight takes it."""
EXAMPLE_COLUMNS: Mapping[str, type] = {**COLUMNS, "document": int, "place": int}
"""Of an example: also its document and which piece of it, counted from 0."""


class Exported(NamedTuple):
    """What was written."""

    documents: Path
    examples: Path
    num_documents: int
    num_examples: int


def export(
    workdir: Path,
    form: Format,
    folder: Path | None = None,
    keep: float | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Exported:
    """Writes documents and examples of a finished run, best first.

    Args:
      workdir: the run's.
      form: of the files.
      folder: where they go; WORKDIR/export when None.
      keep: only the best documents, this share of them.
      sample: so many different documents, drawn by weight, in the order in which they were drawn.
      seed: of that.

    Raises:
      UserError: the run has no weights of documents, or the numbers do not fit.
    """
    data = load_run(workdir).data
    number = len(data.sources)
    chosen = _choose(data, keep, sample, seed)
    folder = workdir / "export" if folder is None else folder
    paths = [folder / f"{name}{ENDINGS[form]}" for name in ("documents", "examples")]
    with (
        Progress("exporting", None, " rows") as progress,
        open_writer(paths[0], form, COLUMNS) as write,
    ):
        for start in range(0, len(chosen), _ROWS):
            rows = list(_documents(data, chosen[start : start + _ROWS], start))
            write(rows)
            progress.advance(len(rows))
    is_chosen = np.zeros(number, bool)
    is_chosen[chosen] = True
    examples = np.argsort(-data.example_weights, kind="stable")
    examples = examples[is_chosen[data.example_document[examples]]]
    with open_writer(paths[1], form, EXAMPLE_COLUMNS) as write:
        for start in range(0, len(examples), _ROWS):
            write(list(_examples(data, examples[start : start + _ROWS], start)))
    return Exported(paths[0], paths[1], len(chosen), len(examples))


def _choose(data: Data, keep: float | None, sample: int | None, seed: int) -> np.ndarray:
    """The numbers of the documents that are written, in their order."""
    number = len(data.sources)
    if keep is not None and sample is not None:
        raise UserError("--keep and --sample both say how many documents are written. Give one.")
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"--keep must be a share in (0, 1]; got {keep}.")
    if sample is None:
        ranked = np.argsort(-data.weights, kind="stable")
        return ranked if keep is None else ranked[: max(1, round(keep * number))]
    with_weight = int(np.count_nonzero(data.probabilities))
    if not 1 <= sample <= with_weight:
        raise UserError(
            f"--sample must be from 1 to {with_weight}, the documents with weight; got {sample}."
        )
    return draw_without_replacement(data.probabilities, sample, seed)


def draw_without_replacement(probabilities: np.ndarray, count: int, seed: int) -> np.ndarray:
    """So many different entries, one after the other by their probabilities among those left.

    By the Gumbel-top-k trick: the largest of ln p + noise.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    with np.errstate(divide="ignore"):
        keys = np.log(probabilities) + rng.gumbel(size=len(probabilities))
    return np.argsort(-keys, kind="stable")[:count]


def _documents(data: Data, chosen: np.ndarray, rank: int) -> Iterator[dict[str, Any]]:
    scores = data.document_scores
    for place, number in enumerate(chosen):
        yield {
            "rank": rank + place + 1,
            "index": int(number),
            "source": data.sources[number],
            "offset": int(data.offsets[number]),
            "group": data.groups[number],
            "text": data.texts[number],
            "weight": float(data.weights[number]),
            "score": float(scores[number]),
            "probability": float(data.probabilities[number]),
        }


def _examples(data: Data, chosen: np.ndarray, rank: int) -> Iterator[dict[str, Any]]:
    total = float(data.example_weights.sum(dtype=np.float64))
    for place, number in enumerate(chosen):
        document = int(data.example_document[number])
        yield {
            "rank": rank + place + 1,
            "index": int(number),
            "source": data.sources[document],
            "offset": int(data.offsets[document]),
            "group": data.groups[document],
            "text": data.example_texts[number],
            "weight": float(data.example_weights[number]),
            "score": float(data.example_scores[number]),
            "probability": float(data.example_weights[number]) / total,
            "document": document,
            "place": int(data.example_place[number]),
        }
