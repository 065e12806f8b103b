"""What `lljax attribute` writes: scores, a table of the training examples, and what they are of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from lljax.artifacts import schema
from lljax.artifacts.failures import cannot_write
from lljax.artifacts.files import write_json, write_npy
from lljax.artifacts.reading import Unreadable, read_json
from lljax.attribution import Measure
from lljax.curation.results import own_origins
from lljax.curation.writers import ENDINGS, open_writer
from lljax.engine.claim import FREE
from lljax.engine.differences import differences
from lljax.engine.metrics import number
from lljax.engine.summary import made_by
from lljax.errors import UserError
from lljax.tasks.problem import Problem
from lljax.tasks.tokens import TokenWeights

Form = Literal["parquet", "jsonl"]
NAME = "attribution"  # of its files
ENDS, WIDTH = 10, 60  # examples of either end in the table, and letters of each
_ROWS = 1024  # that are written at once
SCORES_FILE, TOKENS_FILE, ABOUT_FILE = "scores.npy", "token_scores.npy", f"{NAME}.json"

COLUMNS: Mapping[str, Any] = {
    "rank": int,
    "index": int,
    "score": float,
    "loss": float,
    "source": str,
    "document": int,
    "place": int,
    "group": str,
    "text": str,
    "perturbed": int,
}
"""Of a training example: its rank, 1 for the highest score, and its number; its score in nats;
its loss after the last step, by which wrong labels are found as well, without desired examples;
where its document comes from, its document's number, which piece of it, and its group; and whether
it was damaged on purpose, 0 or 1, where that is known."""
TOKEN_COLUMNS: Mapping[str, Any] = {"tokens": list[str], "token_scores": list[float]}
"""Also the tokens that are predicted, and the score of each."""


class Choice(NamedTuple):
    """What is asked for beside the config."""

    of: Measure = "auc"
    each: int | None = None
    tokens: bool = False
    format: Form = "parquet"

    @property
    def measured(self) -> str:
        """What the scores are of, in words."""
        what = "AUC of the desired loss" if self.of == "auc" else "final desired loss"
        return what if self.each is None else f"{what} of each of {self.each} desired examples"


class Attributed(NamedTuple):
    """What was written."""

    path: Path
    table: str


class Found(NamedTuple):
    """Means over the runs."""

    scores: np.ndarray  # [N], or [M, N] of each desired example
    tokens: np.ndarray | None  # [N, L]
    losses: np.ndarray  # [T+1], of the desired examples
    train_losses: np.ndarray  # [N], of the training examples after the last step


def check_folder(folder: Path, about: Mapping[str, Any]) -> None:
    """UserError if a folder holds anything but what the same command has written."""
    path = folder / ABOUT_FILE
    try:
        there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--workdir {cannot_write(folder, error)}") from error
    if not there:
        return
    ours = {ABOUT_FILE, SCORES_FILE, TOKENS_FILE, *(f"{NAME}{end}" for end in ENDINGS.values())}
    others = [name for name in there if name not in ours]
    if others or ABOUT_FILE not in there:
        raise UserError(
            f"--workdir {folder} holds {(others or there)[0]}, which `lljax attribute` has not "
            f"written. Give it a folder of its own."
        )
    try:
        before = read_json(path)["settings"]
    except (OSError, Unreadable, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Give another --workdir.") from error
    free = {f"config.{name}" for name in FREE}
    both = (
        {name: value for name, value in schema.flatten(of).items() if name not in free}
        for of in (before, about)
    )
    if differing := differences(*both):
        raise UserError(
            f"--workdir {folder} holds scores of another command: {'; '.join(differing)}. Give a "
            f"--workdir of its own."
        )


def write(
    problem: Problem,
    folder: Path,
    choice: Choice,
    about: Mapping[str, Any],
    found: Found,
    tokens: TokenWeights | None,
) -> Attributed:
    """Writes everything, each file in one go, and makes a table of both ends."""
    scores = found.scores.astype(np.float64)
    scores = scores if scores.ndim == 1 else scores.mean(axis=0)
    order = np.argsort(-scores, kind="stable")
    rows = [_row(problem, scores, found, rank, int(n)) for rank, n in enumerate(order, start=1)]
    columns = COLUMNS
    if tokens is not None and found.tokens is not None:
        columns = {**COLUMNS, **TOKEN_COLUMNS}
        for row in rows:
            texts = list(tokens.texts(row["index"]))
            of = found.tokens[row["index"]][: len(texts)]
            row |= {"tokens": texts, "token_scores": [float(score) for score in of]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir {cannot_write(folder, error)}") from error
    auc, final = found.losses[1:].mean(), found.losses[-1]
    facts = {"desired_auc": number(auc), "desired_final_loss": number(final)}
    # First, so that the folder is known by it.
    write_json(folder / ABOUT_FILE, {**made_by(), **facts, "settings": about})
    write_npy(folder / SCORES_FILE, found.scores)
    if found.tokens is not None:
        write_npy(folder / TOKENS_FILE, found.tokens)
    path = folder / f"{NAME}{ENDINGS[choice.format]}"
    with open_writer(path, choice.format, columns) as write_rows:
        for first in range(0, len(rows), _ROWS):
            write_rows(rows[first : first + _ROWS])
    return Attributed(path, _table(problem, choice, scores, rows, facts))


def _row(problem: Problem, scores: np.ndarray, found: Found, rank: int, n: int) -> dict[str, Any]:
    origins = problem.origins or own_origins(problem)
    document = int(origins.document[n])
    return {
        "rank": rank,
        "index": n,
        "score": float(scores[n]),
        "loss": float(found.train_losses[n]),
        "source": origins.sources[document],
        "document": document,
        "place": int(origins.place[n]),
        "group": origins.groups[document],
        "text": _text(problem, n),
        "perturbed": None if problem.perturbed is None else int(problem.perturbed[n]),
    }


def _text(problem: Problem, n: int) -> str | None:
    """What is shown of an example, but for its picture."""
    if problem.show_example is None:
        return None
    shown = problem.show_example(n)
    parts = shown if isinstance(shown, tuple) else (shown,)
    return next((part for part in parts if isinstance(part, str)), None)


def _table(
    problem: Problem,
    choice: Choice,
    scores: np.ndarray,
    rows: list[dict[str, Any]],
    facts: Mapping[str, float | None],
) -> str:
    """For a terminal: the examples with the highest and with the lowest scores."""
    count = len(rows)
    auc, final = facts["desired_auc"], facts["desired_final_loss"]
    lines = [
        f"scores by the {choice.measured}, nats: how much it falls when an example counts twice;",
        "losses of the training examples, nats, after the last step",
        f"of the run at uniform weights: AUC {auc:.4g}, final loss {final:.4g}",
        "",
        f"{'rank':>8}  {'example':>8}  {'score':>10}  {'loss':>8}",
    ]
    ends = rows if count <= 2 * ENDS else [*rows[:ENDS], None, *rows[-ENDS:]]
    for row in ends:
        if row is None:
            lines.append(f"{'...':>8}")
            continue
        text = " ".join(str(row["text"] or row["group"] or "").split())
        mark = "damaged  " if row["perturbed"] else ""
        cut = text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
        numbers = f"{row['score']:>10.3e}  {row['loss']:>8.4g}"
        lines.append(f"{row['rank']:>8}  {row['index']:>8}  {numbers}  {mark}{cut}".rstrip())
    if problem.perturbed is not None and (planted := int(problem.perturbed.sum())):
        by_loss = sorted(rows, key=lambda row: row["loss"])
        lowest, largest = (sum(r["perturbed"] for r in of[-planted:]) for of in (rows, by_loss))
        lines += [
            "",
            f"of {planted:,} damaged examples {lowest:,} are among the {planted:,} lowest scores, "
            f"{largest:,} among the {planted:,} largest losses",
        ]
    return "\n".join(lines)
