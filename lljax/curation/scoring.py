"""`lljax score`: the weights of documents that a run has never seen, however many there are.

They are read twice, a batch at a time: to score them, and to write them with their rank. Between
that only a few numbers of each are held.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lljax.artifacts.schema import lookup
from lljax.curation.choice import COLUMNS, check_choice, choose
from lljax.curation.loaded import Run, load_run
from lljax.curation.scorer import LEAST, MOST, Scorer
from lljax.curation.writers import Format, named_format, open_writer
from lljax.data.files import Document
from lljax.data.ngrams import count_ngrams
from lljax.data.progress import Progress, log
from lljax.data.sequences import windows_of
from lljax.data.text import LeftOut, TextSettings, in_words, stream_documents
from lljax.data.tokenizer import Tokenizer
from lljax.errors import UserError
from lljax.field_types import check_fields

_BATCH = 512  # documents at once
_CHARACTERS = 1 << 20  # of them, about
_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class ScoreData:
    """What is scored. The settings are those of `lljax run`, with the run's values."""

    path: str | None = None
    """A file, a glob in quotes, a folder, the URL of a file, or tfds:NAME."""
    field: str = "text"
    """Of records, which field or column holds the text."""
    chat_template: str = TextSettings.chat_template
    """Of each message of a chat."""
    group: str | None = None
    """A field or column, or `file` or `folder`, that is written with each document."""
    encoding: str | None = None
    """Of plain text, JSON and CSV."""
    separator: str | None = None
    """What stands between documents of plain text."""
    cache_dir: str | None = None
    """For downloads."""

    def __post_init__(self) -> None:
        check_fields(self, "data")


class Scored(NamedTuple):
    """What was written."""

    path: Path
    read: int
    written: int
    quantiles: list[float]  # of the scores, 0, 10, .. 100 %


def default_data(workdir: Path) -> ScoreData:
    """The settings of a run's own data, but for the path."""
    config = load_run(workdir).config
    data = config.get("data") or {}
    names = {field.name for field in dataclasses.fields(ScoreData)} - {"path", "group"}
    return ScoreData(**{name: data[name] for name in names & {*data}})


def score(
    workdir: Path,
    data: ScoreData,
    path: Path,
    form: Format | None = None,
    keep: float | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> Scored:
    """Scores documents and writes them in their order, with rank, weight and probability.

    Args:
      workdir: of a finished run with a scorer.
      data: what to score.
      path: the file that is written.
      form: of the file; None: what its ending says, or JSON lines.
      keep: write only the best documents, this share of them.
      sample: write so many different documents, drawn by weight.
      seed: of that.

    Raises:
      UserError: the run has no scorer, the data cannot be read, the numbers do not fit, or `path`
        is a folder, what is to be scored, or of another format than `form`.
    """
    if data.path is None:
        raise UserError("--data.path must say what to score: a file, a folder, a URL or tfds:NAME.")
    check_choice(keep, sample)
    form = named_format(path, form)
    with contextlib.suppress(OSError):  # a URL, or a file that is not there yet
        if path.samefile(data.path):
            raise UserError(f"--out must not be what is to be scored; got {path} for both.")
    run = load_run(workdir)
    scorer, tokenizer, context = run.scorer(), _tokenizer(run), lookup(run.config, "data.context")
    settings = TextSettings(**dataclasses.asdict(data), context=context)
    left_out = LeftOut()
    with Progress("scoring", None, " documents") as progress:
        parts = [
            score_documents(scorer, tokenizer, context, [document.text for document, _ in batch])
            for batch in _counted(_batches(settings, left_out), progress)
        ]
    scores = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if not len(scores):
        raise UserError(f"--data.path: {data.path} holds no text.")
    if left_out.files:
        log(f"warning: {in_words(left_out.files)}")
    if left_out.too_long:
        log(
            f"warning: {left_out.too_long:,} documents are left out, each of more than "
            f"{settings.max_bytes / 2**20:.0f} MiB: check that their separator is the right one"
        )
    weights = np.clip(np.exp(scores.astype(np.float64)), LEAST, MOST)
    probabilities = weights / weights.sum()
    ranked = np.argsort(-scores, kind="stable")
    ranks = np.empty(len(scores), np.int64)
    ranks[ranked] = np.arange(1, len(scores) + 1)
    chosen = np.zeros(len(scores), bool)
    chosen[choose(ranked, probabilities, keep, sample, seed)] = True
    number = 0
    with (
        Progress("writing", len(scores), " documents") as progress,
        open_writer(path, form, COLUMNS) as write,
    ):
        rows: list[dict[str, Any]] = []
        for batch in _counted(_batches(settings, LeftOut()), progress):
            for document, source in batch:
                if number < len(scores) and chosen[number]:
                    rows.append(
                        {
                            "rank": int(ranks[number]),
                            "index": number,
                            "source": source,
                            "offset": document.offset,
                            "group": document.group,
                            "text": document.text,
                            "weight": float(weights[number]),
                            "score": float(scores[number]),
                            "probability": float(probabilities[number]),
                        }
                    )
                number += 1
            if len(rows) >= _ROWS:
                write(rows)
                rows = []
        write(rows)
        if number != len(scores):
            raise UserError(
                f"--data.path: {data.path} changed while it was scored, or can be read but once: "
                f"it held {len(scores)} documents at first and {number} then. Give a file."
            )
    quantiles = np.quantile(scores, np.linspace(0, 1, 11)).tolist()
    return Scored(path, len(scores), int(chosen.sum()), quantiles)


def score_documents(
    scorer: Scorer, tokenizer: Tokenizer, context: int, texts: list[str]
) -> np.ndarray:
    """The mean score of each text's sequences: [B] float32."""
    windows, owners = windows_of(tokenizer.encode_arrays(texts), context, every_document=True)
    scores = scorer(count_ngrams(windows))
    counts = np.bincount(owners, minlength=len(texts))
    return (np.bincount(owners, scores, len(texts)) / np.maximum(counts, 1)).astype(np.float32)


def _tokenizer(run: Run) -> Tokenizer:
    try:
        return Tokenizer.load(run.workdir)
    except FileNotFoundError as error:
        raise UserError(
            f"{run.workdir} has no tokenizer: `lljax score` is for runs on text. For others "
            f"lljax.load_run(...).scorer() gives the scores of features."
        ) from error


def _batches(settings: TextSettings, left_out: LeftOut) -> Iterator[list[tuple[Document, str]]]:
    batch, size = [], 0
    for item in stream_documents(settings, left_out):
        batch.append(item)
        size += len(item[0].text)
        if len(batch) == _BATCH or size > _CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _counted(batches: Iterator[Any], progress: Progress) -> Iterator[Any]:
    for batch in batches:
        yield batch
        progress.advance(len(batch))
