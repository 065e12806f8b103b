"""The corpora of `benchmarks.curation`, and what is known about them."""

import dataclasses
import json
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import lljax
from lljax.data.text import TextSettings, read_documents
from lljax.tasks.config_file import load_config

URL = load_config("transformer").data.path
STATIC = (
    *("--outer.num-steps", 16, "--outer.learning-rate", 0.1, "--data.num-train", 2048),
    *("--outer.runs", 12),
)
"""Of static weights: each sequence must be drawn often to be known. With 4 runs an outer step the
weights of two seeds have a rank correlation of 0.57, which bounds that with anything else."""
DOCUMENTS = 400  # of each domain
LENGTH = 900  # characters of a document that is cut from a longer text


class Files(NamedTuple):
    """A corpus of records with a `domain`, and what is wanted."""

    corpus: Path
    wanted: Path


def read_stories(stories: str) -> list[str]:
    """Of a file or URL, in its order."""
    return read_documents(TextSettings(path=stories, max_bytes=8 * 2**20))


def mixture(folder: Path, stories: str, seed: int) -> Files:
    """Stories, code, prose and shuffled stories, as many of each; stories are wanted."""
    rng = np.random.default_rng(seed)
    texts = shuffled(read_stories(stories), rng)
    wanted, texts = texts[:500], texts[500:]
    rows = [(text, "stories") for text in texts[:DOCUMENTS]]
    rows += [(shuffle_words(text, rng), "shuffled") for text in texts[DOCUMENTS : 2 * DOCUMENTS]]
    code = Path(sysconfig.get_path("stdlib")).glob("*.py")
    sources = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(code)]
    rows += [(text, "code") for text in shuffled(pieces(sources), rng)[:DOCUMENTS]]
    rows += [(text, "prose") for text in shuffled(pieces(topics.values()), rng)[:DOCUMENTS]]
    return write(folder / str(seed), shuffled(rows, rng), wanted)


def graded(folder: Path, stories: str, seed: int, frequent: bool = False) -> Files:
    """Stories with 0 to 100 % of the words replaced; `domain` is the share that is kept.

    What replaces a word is any word of the stories; with `frequent` one as frequent as there, so
    that only its neighbours tell that it is wrong.
    """
    rng = np.random.default_rng(seed)
    texts = shuffled(read_stories(stories), rng)
    wanted, texts = texts[:500], texts[500 : 500 + 2 * DOCUMENTS]
    words = [word for text in texts for word in text.split()]
    words = words if frequent else sorted(set(words))
    rows = []
    for text in texts:
        quality = rng.random()
        kept = [
            word if rng.random() < quality else words[rng.integers(len(words))]
            for word in text.split()
        ]
        rows.append((" ".join(kept), f"{quality:.4f}"))
    return write(folder / str(seed), rows, wanted)


def halves(folder: Path, stories: str, seed: int) -> tuple[Files, Files]:
    """The mixture in two halves of the documents."""
    whole = mixture(folder / "whole", stories, seed)
    rows = whole.corpus.read_text(encoding="utf-8").splitlines()
    both = []
    for half in range(2):
        path = folder / f"{seed}-{half}.jsonl"
        path.write_text("\n".join(rows[half::2]), encoding="utf-8")
        both.append(Files(path, whole.wanted))
    return both[0], both[1]


def million(path: Path, stories: str) -> Path:
    """1,000,000 documents: pieces of stories and shuffled ones, each with a number."""
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    texts = [text[:300] for text in read_stories(stories)]
    noise = [shuffle_words(text, rng) for text in texts]
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        for number in range(1_000_000):
            of = noise if number % 2 else texts
            text = f"{of[int(rng.integers(len(of)))]} {number}"
            file.write(json.dumps({"text": text, "domain": "x"}) + "\n")
    part.replace(path)
    return path


def pieces(texts: Any) -> list[str]:
    """Stretches of `LENGTH` characters."""
    return [
        text[start : start + LENGTH]
        for text in texts
        for start in range(0, len(text) - LENGTH, LENGTH)
    ]


def shuffle_words(text: str, rng: np.random.Generator) -> str:
    return " ".join(shuffled(text.split(), rng))


def shuffled(items: list[Any], rng: np.random.Generator) -> list[Any]:
    return [items[n] for n in rng.permutation(len(items))]


def write(folder: Path, rows: list[tuple[str, str]], wanted: list[str]) -> Files:
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(folder / "corpus.jsonl", folder / "wanted.jsonl")
    lines = (json.dumps({"text": text, "domain": domain}) for text, domain in rows)
    files.corpus.write_text("\n".join(lines), encoding="utf-8")
    lines = (json.dumps({"text": text}) for text in wanted)
    files.wanted.write_text("\n".join(lines), encoding="utf-8")
    return files


def example_weights(workdir: Path) -> np.ndarray:
    return lljax.load_run(workdir).data.example_weights


def groups_of_examples(workdir: Path) -> np.ndarray:
    data = lljax.load_run(workdir).data
    return np.array([data.groups[n] for n in data.example_document])


def qualities(workdir: Path) -> np.ndarray:
    """The share of words that is kept, of each training example's document."""
    return groups_of_examples(workdir).astype(float)


def oracle_ratio(workdir: Path, domain: str, seeds: int) -> float:
    """The acceleration of all of a domain's documents and no others."""
    _, (ratio, _) = measured(workdir, [groups_of_examples(workdir) == domain], seeds)
    return ratio


def threshold(workdir: Path, quality: np.ndarray, seeds: int) -> tuple[float, float]:
    """(the best acceleration, the lowest AUC) of cuts that know the quality."""
    _, *found = measured(workdir, [quality >= cut for cut in (0.25, 0.5, 0.75)], seeds)
    return max(ratio for ratio, _ in found), min(auc for _, auc in found)


def measured(workdir: Path, weights: list[np.ndarray], seeds: int) -> list[tuple[float, float]]:
    """Of the mean curves of fresh runs of the workdir's own model, under uniform weights and then
    under others: the acceleration, 0 where the conventional loss is never reached, and the AUC."""
    from lljax.curation import transfer
    from lljax.curation.drawn import RunSource
    from lljax.curation.evaluation import Evaluation
    from lljax.tasks.build import build_problem

    experiment = transfer.default_experiment(workdir)
    config, problem = experiment.config, build_problem(experiment)
    evaluation = Evaluation(config, problem, RunSource(config, problem))
    keys = evaluation.keys(transfer.KIND, seeds)

    def curve(weights: np.ndarray) -> jnp.ndarray:
        shares = (weights / weights.sum(dtype=np.float64))[None].astype(np.float32)
        runs = transfer.train(evaluation, [shares] * seeds, keys, "known weights")
        return jnp.asarray(runs.mean()["test"])

    curves = [curve(of) for of in (np.ones(problem.num_train), *weights)]
    ratios = [float(lljax.acceleration_ratio(curves[0], losses)) for losses in curves]
    return [
        (ratio if np.isfinite(ratio) else 0.0, float(losses[1:].mean()))
        for ratio, losses in zip(ratios, curves, strict=True)
    ]


def scores_there(workdir: Path, other: Path) -> np.ndarray:
    """A run's scorer on the training examples of another one: of each the score of its document."""
    from lljax.curation.scoring import score_documents
    from lljax.data.tokenizer import Tokenizer

    run, there = lljax.load_run(workdir), lljax.load_run(other)
    texts = [text or "" for text in there.data.example_texts]
    context = run.config["data"]["context"]
    scores = score_documents(run.scorer(), Tokenizer.load(workdir), context, texts)
    data = dataclasses.replace(there.data, example_scores=scores)
    return data.document_scores[data.example_document]


def of_documents(workdir: Path, scores: np.ndarray) -> float:
    """The rank correlation of a run's weights of documents with the mean scores of theirs."""
    from scipy.stats import spearmanr

    data = dataclasses.replace(lljax.load_run(workdir).data, example_scores=scores)
    return float(spearmanr(data.document_scores, data.weights).statistic)


def gains(workdir: Path, other: Path, scores: np.ndarray, seeds: int) -> dict[str, float]:
    """Of the scorer's and of the static weights, on the other run's examples: AR, share of gain."""
    from lljax.curation.scorer import shares_of

    own = example_weights(workdir)  # as `lljax transfer` has it
    effective = float(lljax.effective_sample_size(own / own.sum()))
    weights = [shares_of(scores, effective), example_weights(other)]
    (_, conventional), (by_scorer, auc), (by_static, static_auc) = measured(other, weights, seeds)
    share = (by_scorer - 1) / max(by_static - 1, 1e-9)
    of_auc = (conventional - auc) / max(conventional - static_auc, 1e-9)
    return {"scorer": by_scorer, "static": by_static, "share": share, "share_of_auc": of_auc}
