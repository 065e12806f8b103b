"""From a corpus to a better one, through the real command line: run, export, score, transfer."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import tyro
from array_record.python.array_record_module import ArrayRecordReader
from command_line import (
    assert_refused,
    call,
    kill_when,
    read_metrics,
    run_process,
    settings_of_a_user,
)
from texts import make_documents

import lljax
from lljax.curation.run import execute
from lljax.engine.run import run
from lljax.tasks import Experiment, arrays
from lljax.tasks.arrays import ArraysConfig

STEPS = ("--inner.num-steps", "20", "--outer.num-steps", "4", "--outer.validate-every", "1")
RUNS = ("--outer.runs", "2", "--outer.validation-runs", "2", "--inner.batch-size", "8")
MODEL = (
    "--inner.learning-rate",
    "0.05",
    "--model.width",
    "8",
    "--model.num-heads",
    "1",
    "--data.vocab-size",
    "120",
)
SIZES = ("--data.context", "8", "--data.num-train", "128", "--inner.desired-batch-size", "16")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with a corpus of two domains, and what is wanted: the one of them."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    wanted = make_documents(160)
    other = ["".join(rng.permutation(list(text))) for text in make_documents(100, seed=1)]
    rows = [{"text": text, "domain": "good"} for text in wanted[:100]]
    rows += [{"text": text, "domain": "bad"} for text in other]
    rng.shuffle(rows)
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "wanted.txt").write_text("<|endoftext|>".join(wanted[100:]))
    return folder


def read(path):
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def flags(corpus, cache, family):
    return (
        *("--policy.family", family, "--data.path", corpus / "corpus.jsonl"),
        *("--data.desired-path", corpus / "wanted.txt", "--data.group", "domain"),
        *("--data.cache-dir", cache, *STEPS, *RUNS, *MODEL, *SIZES),
    )


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """The workdir of a run with a scorer, and its flags."""
    folder = tmp_path_factory.mktemp("runs")
    given = flags(corpus, folder / "cache", "scorer")
    result = call("run", "curate", "--workdir", folder / "run", *given)
    assert result.returncode == 0, result.stderr
    assert "text to train on: " in result.stderr
    assert "groups: training sequences of" in result.stderr
    assert "fresh runs" in result.stdout
    return folder / "run", given


def test_a_finished_run_has_what_it_promises(finished):
    workdir, given = finished
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["family"] == "scorer"
    assert summary["groups"]["names"] == ["bad", "good"] or summary["groups"]["names"] == [
        "good",
        "bad",
    ]
    assert len(summary["runs"]["acceleration_ratios"]) == 5
    assert any("desired text: " in line for line in summary["data"])
    assert [line["outer_step"] for line in read_metrics(workdir)] == [0, 1, 2, 3, 4]
    page = (workdir / "report.html").read_text()
    assert "Groups" in page
    assert "desired text: " in page
    assert "Learning Law</h2>" not in page
    again = call("run", "curate", "--workdir", workdir, *given)
    assert "finished" in again.stderr


def test_load_run_gives_policy_and_documents(finished):
    workdir, _ = finished
    run = lljax.load_run(workdir)
    data = run.data
    assert run.config["policy"]["family"] == "scorer"
    assert run.policy.shape == data.example_weights.shape == (128,)
    np.testing.assert_allclose(data.example_weights, 128 * run.policy, rtol=1e-5)
    np.testing.assert_allclose(data.probabilities.sum(), 1)
    for number in range(len(data.texts)):
        of_it = np.flatnonzero(data.example_document == number)
        assert all(data.example_texts[n] in data.texts[number] for n in of_it)
    rows = read(Path(run.config["data"]["path"]))
    for text, source, offset, group in zip(
        data.texts, data.sources, data.offsets, data.groups, strict=True
    ):
        assert source == run.config["data"]["path"]
        assert (rows[offset]["text"].strip(), rows[offset]["domain"]) == (text, group)
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        lljax.load_runs  # noqa: B018


def test_export_ranks_and_samples(finished, tmp_path):
    workdir, _ = finished
    tables = {}
    for form in ("jsonl", "csv", "parquet", "arrayrecord"):
        result = call("export", workdir, "--format", form, "--out", tmp_path)
        assert result.returncode == 0, result.stderr
    tables["jsonl"] = read(tmp_path / "documents.jsonl")
    tables["parquet"] = pyarrow.parquet.read_table(tmp_path / "documents.parquet").to_pylist()
    reader = ArrayRecordReader(str(tmp_path / "documents.array_record"))
    tables["arrayrecord"] = [json.loads(record) for record in reader.read_all()]
    assert tables["jsonl"] == tables["parquet"] == tables["arrayrecord"]
    rows = tables["jsonl"]
    assert [row["rank"] for row in rows] == [*range(1, len(rows) + 1)]
    weights = [row["weight"] for row in rows]
    assert weights == sorted(weights, reverse=True)
    assert sum(row["probability"] for row in rows) == pytest.approx(1)
    examples = read(tmp_path / "examples.jsonl")
    assert len(examples) == 128
    call("export", workdir, "--keep", "0.25", "--out", tmp_path)
    kept = read(tmp_path / "documents.jsonl")
    assert kept == rows[: round(len(rows) / 4)]
    samples = []
    for seed in (0, 0, 1):
        call("export", workdir, "--sample", "20", "--seed", seed, "--out", tmp_path)
        samples.append([row["index"] for row in read(tmp_path / "documents.jsonl")])
    assert samples[0] == samples[1] != samples[2]
    assert len(set(samples[0])) == 20
    assert_refused(call("export", workdir, "--sample", "9999"), "--sample must be from 1 to")
    assert_refused(call("export", workdir, "--keep", "2"), "--keep must be a share in (0, 1]")
    assert_refused(call("export", tmp_path), "holds no config.json")
    like_a_file = call("export", workdir, "--out", tmp_path / "kept.csv")
    assert_refused(like_a_file, "--out must be a folder", f"--out {tmp_path / 'kept'} --format csv")
    (tmp_path / "kept").write_text("mine")
    assert_refused(call("export", workdir, "--out", tmp_path / "kept"), "which is a file")
    assert (tmp_path / "kept").read_text() == "mine"


def test_score_weighs_what_the_run_has_not_seen(finished, tmp_path):
    workdir, _ = finished
    unseen = make_documents(30, seed=5)
    rng = np.random.default_rng(1)
    noise = ["".join(rng.permutation(list(text))) for text in unseen]
    path = tmp_path / "more.parquet"
    table = pyarrow.table({"text": [*unseen, *noise, ""], "kind": ["good"] * 30 + ["bad"] * 31})
    pyarrow.parquet.write_table(table, path)
    out = tmp_path / "scored.jsonl"
    result = call("score", workdir, "--data.path", path, "--data.group", "kind", "--out", out)
    assert result.returncode == 0, result.stderr
    rows = read(out)
    assert [row["text"] for row in rows] == [text.strip() for text in [*unseen, *noise]]
    assert [row["offset"] for row in rows] == [*range(60)]
    assert sorted(row["rank"] for row in rows) == [*range(1, 61)]
    good, bad = (np.mean([r["score"] for r in rows if r["group"] == of]) for of in ("good", "bad"))
    assert good > bad
    by_rank = [row["score"] for row in sorted(rows, key=lambda row: row["rank"])]
    assert by_rank == sorted(by_rank, reverse=True)
    call("score", workdir, "--data.path", path, "--out", out, "--keep", "0.1")
    kept = read(out)
    assert sorted(row["rank"] for row in kept) == [*range(1, 7)]
    given = ("score", workdir, "--data.path", path)
    assert call(*given, "--out", tmp_path / "scored.csv").returncode == 0
    assert (tmp_path / "scored.csv").read_text(encoding="utf-8").startswith("rank,index,")
    differing = call(*given, "--out", out, "--format", "parquet")
    assert_refused(differing, "--format must fit --out: got parquet and scored.jsonl")
    assert_refused(call(*given, "--out", tmp_path), "--out must be a file", "is a folder")
    assert_refused(call(*given, "--out", path), "--out must not be what is to be scored")
    assert_refused(call("score", workdir), "--data.path must say what to score")
    assert_refused(call("score", workdir, "--data.path", tmp_path / "no.txt"), "there is no file")


def test_transfer_trains_other_models(finished, corpus):
    workdir, _ = finished
    result = call("transfer", workdir, "--model.width", "16", "--seeds", "2")
    assert result.returncode == 0, result.stderr
    found = json.loads((workdir / "transfer.json").read_text())
    assert set(found["arms"]) == {"uniform", "curated", "random", "match"}
    assert found["arms"]["uniform"]["acceleration_ratios"] == [1.0, 1.0]
    assert not found["unseen_data"]
    assert "curated data" in result.stdout
    assert "Transfer</h2>" in (workdir / "report.html").read_text()
    # The scorer weighs other data.
    flags = ("--data.path", corpus / "wanted.txt", "--data.num-train", "64", "--seeds", "1")
    result = call("transfer", workdir, *flags, "--data.group", "file")
    assert_refused(result, "all of its documents are in the desired text")
    assert call("report", workdir).returncode == 0


def test_plan_tells_what_a_run_needs(corpus, tmp_path):
    result = call("plan", "curate", *flags(corpus, tmp_path, "static"))
    assert result.returncode == 0, result.stderr
    for words in ("desired text: ", "128 of the policy", "2 runs at once", "whole run"):
        assert words in result.stdout
    more = (*flags(corpus, tmp_path, "static"), "--data.num-train", "99999")
    result = call("plan", "curate", *more)
    assert "data.num_train is 99,999. Give more text" in result.stdout


@pytest.mark.parametrize(
    "family",
    ["scheduled", *(pytest.param(name, marks=pytest.mark.slow) for name in ("static", "scorer"))],
)
def test_a_run_that_is_continued_ends_in_the_same_bytes(tmp_path, family):
    given = ("--policy.family", family, "--data.num-train", "100", *STEPS, *RUNS)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    with settings_of_a_user():
        for workdir, steps in ((whole, "4"), (parts, "2"), (parts, "4")):
            config = tyro.cli(ArraysConfig, args=[*given, "--outer.num-steps", steps])
            experiment = Experiment(arrays.TASK, config)
            run(experiment, workdir, lambda root: root, execute)
    assert [line["outer_step"] for line in read_metrics(parts)] == [0, 1, 2, 3, 4]
    for name in ("policy.npy", "analysis.npz", "examples.parquet", "documents.parquet"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bytes(corpus, tmp_path):
    given = (*flags(corpus, tmp_path / "cache", "scorer"), "--outer.checkpoint-seconds", "0")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_process("run", "curate", "--workdir", whole, *given).returncode == 0
    command = ("run", "curate", "--workdir", killed, *given)
    kill_when(lambda: any(killed.glob("sweep/*/record")), *command)
    kill_when(lambda: (killed / "checkpoints" / "3" / "record").exists(), *command)
    assert run_process(*command).returncode == 0
    for name in ("policy.npy", "analysis.npz", "scorer.npz", "examples.parquet"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
