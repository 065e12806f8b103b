"""`lljax export`: the documents and examples of a run with their weights, ranked or sampled."""

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lljax.curation.choice import COLUMNS, check_choice, choose
from lljax.curation.loaded import Data, load_run
from lljax.curation.writers import ENDINGS, Format, check_folder, open_writer
from lljax.data.progress import Progress

_ROWS = 1024  # at once
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
      UserError: the run has no weights of documents, the numbers do not fit, or the folder is
        the name of a file.
    """
    check_choice(keep, sample)
    if folder is not None:
        check_folder(folder)
    data = load_run(workdir).data
    ranked = np.argsort(-data.weights, kind="stable")
    chosen = choose(ranked, data.probabilities, keep, sample, seed)
    folder = workdir / "export" if folder is None else folder
    paths = [folder / f"{name}{ENDINGS[form]}" for name in ("documents", "examples")]
    is_chosen = np.zeros(len(ranked), bool)
    is_chosen[chosen] = True
    examples = np.argsort(-data.example_weights, kind="stable")
    examples = examples[is_chosen[data.example_document[examples]]]
    with Progress("exporting", len(chosen) + len(examples), " rows") as progress:
        for path, rows, columns in (
            (paths[0], _documents(data, chosen), COLUMNS),
            (paths[1], _examples(data, examples), EXAMPLE_COLUMNS),
        ):
            with open_writer(path, form, columns) as write:
                while some := list(itertools.islice(rows, _ROWS)):
                    write(some)
                    progress.advance(len(some))
    return Exported(paths[0], paths[1], len(chosen), len(examples))


def _documents(data: Data, chosen: np.ndarray) -> Iterator[dict[str, Any]]:
    scores = data.document_scores
    for rank, number in enumerate(chosen, start=1):
        yield {
            "rank": rank,
            "index": int(number),
            "source": data.sources[number],
            "offset": int(data.offsets[number]),
            "group": data.groups[number],
            "text": data.texts[number],
            "weight": float(data.weights[number]),
            "score": float(scores[number]),
            "probability": float(data.probabilities[number]),
        }


def _examples(data: Data, chosen: np.ndarray) -> Iterator[dict[str, Any]]:
    total = float(data.example_weights.sum(dtype=np.float64))
    for rank, number in enumerate(chosen, start=1):
        document = int(data.example_document[number])
        yield {
            "rank": rank,
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
