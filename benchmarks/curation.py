"""What curation gains: noisy labels, domains, graded quality, a scorer, transfer, horizon, scale.

    python -m benchmarks.curation [--stories FILE_OR_URL] [--seeds 10 11 12 13 14] [--only NAMES]

Every row is `lljax run` on real text or pictures, over seeds that no setting was tuned on, with a
random subset, a domain match and an oracle beside it. Stories are TinyStories: a file of them, or
the URL that `lljax run transformer` reads. Results go to benchmarks/CURATION.json and, as a table,
to stdout. A run that is finished in --work is not made again.
"""

import argparse
import functools
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import lljax
from benchmarks import curation_data, machine, output
from benchmarks.output import spread_table

RUNS = 5  # fresh ones, of each arm
RESULTS = Path(__file__).with_name("CURATION.json")
TEXT = (
    *("--data.path", "{corpus}", "--data.desired-path", "{wanted}"),
    *("--data.group", "domain", "--data.cache-dir", "{work}/cache"),
)


def command(*arguments: Any) -> str:
    """Runs `lljax` in a process of its own; its stdout."""
    line = [sys.executable, "-m", "lljax", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}: {done.stderr[-2000:]}")
    return done.stdout


def summary(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "summary.json").read_text(encoding="utf-8"))


def median(values: list[float | None]) -> float:
    """0 stands for what is never reached."""
    return statistics.median(0.0 if value is None else value for value in values)


def run(work: Path, config: str, seed: int, files: curation_data.Files | None, *flags: Any) -> Path:
    """A finished run; one that is there is recognised."""
    if files is not None:
        text = [part.format(corpus=files.corpus, wanted=files.wanted, work=work) for part in TEXT]
        flags = (*text, *flags)
    digest = hashlib.sha256(repr([str(flag) for flag in flags]).encode()).hexdigest()[:8]
    workdir = work / f"{config}-{seed}-{digest}"
    command("run", config, "--workdir", workdir, "--seed", seed, *flags)
    return workdir


def noisy_labels(work: Path, seed: int, stories: str) -> dict[str, float]:
    """Digits, 40 % of the labels flipped, static weights."""
    workdir = run(work, "noisy_labels", seed, None)
    found = summary(workdir)
    oracle = median(found["runs"]["oracle_acceleration_ratios"])
    return {
        "noisy_weight": found["perturbed"]["weight_share"]["optimized"],
        "ratio": median(found["runs"]["acceleration_ratios"]),
        "oracle": oracle,
        "of_oracle": median(found["runs"]["acceleration_ratios"]) / oracle,
        "seconds": found["seconds"]["total"],
    }


def domains(work: Path, seed: int, stories: str) -> dict[str, float]:
    """Stories desired among code, prose and shuffled stories: one weight a domain."""
    files = curation_data.mixture(work / "mixture", stories, seed)
    workdir = run(work, "domains", seed, files)
    found = summary(workdir)
    table = transfer(workdir, RUNS)
    oracle = curation_data.oracle_ratio(workdir, "stories", RUNS)
    ratio = table["curated"]
    share = dict(
        zip(found["groups"]["names"], found["groups"]["weight_share"]["optimized"], strict=True)
    )
    return {
        "stories_weight": share["stories"],
        "ratio": ratio,
        "random": table["random"],
        "match": table["match"],
        "oracle": oracle,
        "of_oracle": ratio / oracle,
        "outer_steps": found["best_outer_step"],
        "finding_seconds": found["seconds"]["optimize"],
        "seconds": found["seconds"]["total"],
    }


def graded(work: Path, seed: int, stories: str, frequent: bool = False) -> dict[str, float]:
    """Stories of which 0 to 100 % of the words are replaced; clean ones desired: a scorer."""
    from scipy.stats import spearmanr

    folder = work / ("graded_frequent" if frequent else "graded")
    files = curation_data.graded(folder, stories, seed, frequent)
    workdir = run(work, "curate", seed, files)
    quality = curation_data.qualities(workdir)
    documents = lljax.load_run(workdir).data
    table = transfer(workdir, RUNS)
    hard, hard_auc = curation_data.threshold(workdir, quality, RUNS)
    auc = {arm: of["auc"] for arm, of in transferred(workdir)["arms"].items()}
    return {
        "rank_correlation": float(
            spearmanr(documents.weights, np.array(documents.groups, float)).statistic
        ),
        "of_sequences": float(spearmanr(documents.example_weights, quality).statistic),
        "ratio": table["curated"],
        "random": table["random"],
        "match": table["match"],
        "hard_threshold": hard,
        "of_hard_threshold": table["curated"] / hard,
        # A ratio of steps is one of a few numbers; the AUC counts the whole curve.
        "auc_gain": auc["uniform"] - auc["curated"],
        "auc_gain_of_match": auc["uniform"] - auc["match"],
        "auc_gain_of_hard_threshold": auc["uniform"] - hard_auc,
    }


def scorer(work: Path, seed: int, stories: str) -> dict[str, float]:
    """A scorer from one half of the documents on the other, against static weights found there."""
    from scipy.stats import spearmanr

    first, second = curation_data.halves(work / "halves", stories, seed)
    workdir = run(work, "curate", seed, first)
    other = run(work, "curate", seed, second, "--policy.family", "static", *curation_data.STATIC)
    scores = curation_data.scores_there(workdir, other)
    gains = curation_data.gains(workdir, other, scores, RUNS)
    return {
        "rank_correlation": curation_data.of_documents(other, scores),
        "of_sequences": float(spearmanr(scores, curation_data.example_weights(other)).statistic),
        "ratio": gains["scorer"],
        "static": gains["static"],
        "of_static_gain": gains["share"],
        "of_static_auc_gain": gains["share_of_auc"],
    }


def larger(work: Path, seed: int, stories: str) -> dict[str, float]:
    """Transfer to a model of ten times the parameters, on documents that the policy never saw."""
    first, second = curation_data.halves(work / "halves", stories, seed)
    workdir = run(work, "curate", seed, first)
    own = transfer(workdir, RUNS)
    flags = ("--model.width", 128, "--model.num-layers", 2, "--inner.learning-rate", 0.01)
    there = transfer(workdir, RUNS, "--data.path", second.corpus, *flags)
    return {
        "ratio": there["curated"],
        "random": there["random"],
        "match": there["match"],
        "own_model": own["curated"],
        "of_own": there["curated"] / own["curated"],
        "above_random": float(there["curated"] > there["random"]),
    }


def horizon(work: Path, seed: int, stories: str) -> dict[str, float]:
    """Policies found over runs of 2, 16 and all 100 steps, judged in runs of 100."""
    files = curation_data.mixture(work / "mixture", stories, seed)
    row = {}
    for steps in (2, 16, 100):
        flags = () if steps == 100 else ("--inner.num-steps", steps)
        workdir = run(work, "curate", seed, files, *flags)
        row[f"T{steps}"] = transfer(workdir, RUNS, "--inner.num-steps", 100)["curated"]
    return row


def million(work: Path, seed: int, stories: str) -> dict[str, float]:
    """1,000,000 documents on disk, scored and written."""
    files = curation_data.mixture(work / "mixture", stories, seed)
    workdir = run(work, "curate", seed, files)
    corpus = curation_data.million(work / "million.jsonl", stories)
    started = time.monotonic()
    line = [sys.executable, "-m", "lljax", "score", str(workdir), "--data.path", str(corpus)]
    line += ["--format", "parquet", "--out", str(work / "scored.parquet"), "--data.field", "text"]
    with (work / "million.log").open("wb") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    if status:
        raise RuntimeError((work / "million.log").read_text(encoding="utf-8")[-2000:])
    return {
        "documents_per_second": 1_000_000 / seconds,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "corpus_gb": corpus.stat().st_size / 1e9,
        "seconds": seconds,
    }


def transfer(workdir: Path, seeds: int, *flags: Any) -> dict[str, float]:
    """The acceleration of each arm's mean curve; 0 where it is never reached."""
    command("transfer", workdir, "--seeds", seeds, *flags)
    found = transferred(workdir)
    return {arm: of["acceleration_ratio"] or 0.0 for arm, of in found["arms"].items()}


def transferred(workdir: Path) -> dict[str, Any]:
    """What the last `lljax transfer` has left."""
    return json.loads((workdir / "transfer.json").read_text(encoding="utf-8"))


EXPERIMENTS: dict[str, Callable[[Path, int, str], dict[str, float]]] = {
    "noisy_labels": noisy_labels,
    "domains": domains,
    "graded": graded,
    "graded_frequent": functools.partial(graded, frequent=True),
    "scorer": scorer,
    "larger": larger,
    "horizon": horizon,
    "million": million,
}


def table(rows: dict[str, Any]) -> str:
    """Minimum, median and maximum of every figure over the seeds."""
    parts = {}
    for name, by_seed in rows.items():
        found = list(by_seed.values())
        took = sum(row["took"] for row in found)
        figures = {of: [row["figures"][of] for row in found] for of in found[0]["figures"]}
        parts[f"{name}, seeds {', '.join(by_seed)}, {took:.0f} s"] = figures
    return spread_table(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stories", default=curation_data.URL)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--work", type=Path, default=Path("runs/curation"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        # The corpus of a million is one, whatever the seed.
        for seed in options.seeds[: 1 if name == "million" else None]:
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            where = machine.in_words(machine.describe_machine())
            started = time.monotonic()
            figures = EXPERIMENTS[name](options.work, seed, options.stories)
            took = time.monotonic() - started
            rows = output.read(RESULTS)  # another process may have added some
            of_name = rows.setdefault(name, {})
            of_name[str(seed)] = {"figures": figures, "took": took, "machine": where}
            output.write(RESULTS, rows)
        print(table({name: output.read(RESULTS)[name]}), flush=True)
    rows = output.read(RESULTS)
    print(f"\n{table({name: rows[name] for name in options.only})}")


if __name__ == "__main__":
    main()
