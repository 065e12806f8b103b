"""Language-model experiments through the real command line: runs, plans, sweeps, bad text."""

import json
import re

import numpy as np
import pytest
from command_line import call

CONFIG = "transformer_small"
TINY = (
    *("--inner.num-steps", "12", "--inner.learning-rate", "0.5", "--outer.num-steps", "2"),
    *("--data.num-train", "24", "--data.num-desired", "16", "--data.num-validation", "16"),
    *("--data.num-test", "16", "--data.context", "12", "--data.vocab-size", "96"),
    *("--model.width", "8", "--model.num-heads", "2", "--inner.microbatch-size", "16"),
)

SMALL_SWEEP = (
    *("--inner.num-steps", "20", "--outer.num-steps", "2", "--data.dim", "16"),
    *("--data.num-train", "64", "--data.num-desired", "32"),
    *("--data.num-validation", "64", "--data.num-test", "64"),
)

ACCOUNT = ("text: ", "sequences: ", "warning: ")
"""How lines begin that tell what became of a text."""

# Many documents, with letters enough for the vocabulary, none of them as long as the context.
SHORT = "\n\n".join(f"{chr(97 + k % 26)}{chr(97 + k // 26)}{k}" for k in range(600)).encode()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return "--data.cache-dir", str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    result = call("run", CONFIG, "--workdir", workdir, *TINY, *cache)
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_from_text_to_report(finished):
    workdir, result = finished
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["task"] == "transformer"
    assert summary["vocab_size"] == 96
    # Untrained, every token is about equally likely.
    assert 0.9 < summary["test"]["conventional"]["compression_ratio"] < 1.3
    policy = np.load(workdir / "policy.npy", allow_pickle=False)
    assert policy.shape == (12, 24)
    arrays = np.load(workdir / "analysis.npz", allow_pickle=False)
    perturbed = arrays["perturbed"].astype(bool)
    assert perturbed.sum() == 12
    share = summary["perturbed"]["weight_share"]
    assert share["conventional"] == pytest.approx(0.5)
    assert share["optimized"] == pytest.approx(policy[:, perturbed].sum(axis=1).mean(), rel=1e-5)
    assert "perturbed" in result.stdout
    samples = json.loads((workdir / "samples.json").read_text())
    weights = [sample["weight"] for sample in samples["largest"] + samples["smallest"][::-1]]
    assert weights == sorted(weights, reverse=True)
    assert all(len(sample["text"]) > 3 for sample in samples["largest"])
    page = (workdir / "report.html").read_text()
    assert "fig12" in " ".join(path.name for path in (workdir / "figures").iterdir())
    assert "β" in page


@pytest.mark.slow
def test_a_plan_comes_true(finished, cache):
    """Memory and states as counted by hand, and the strategy that the run took."""
    result = call("plan", CONFIG, *TINY, *cache)
    assert result.returncode == 0, result.stderr
    width, vocabulary, context, layers = 8, 96, 12, 1
    norms = (2 * layers + 1) * 2 * width
    parameters = (2 * vocabulary + context) * width + layers * 12 * width**2 + norms
    text = result.stdout
    assert f"{parameters:,}; a state of the inner optimiser takes" in text
    assert re.search(rf"takes {4 * parameters / 1e3:.3g} kB", text)
    (chosen,) = [line for line in text.splitlines() if "<- chosen" in line]
    said, (first, second, *_) = result.stderr.splitlines(), finished[1].stderr.splitlines()
    assert chosen.split()[0] in next(
        line for line in finished[1].stderr.splitlines() if not line.startswith(ACCOUNT)
    )
    assert said[:2] == [first, second]
    assert first.startswith("text: ")
    assert "used (train 24, desired 16, validation 16, test 16)" in second
    assert "meta-gradient" in text


@pytest.mark.slow
def test_a_budget_turns_the_plan(cache):
    result = call("plan", CONFIG, *TINY, *cache, "--inner.memory-budget-gb", "0.0001")
    assert re.search(r"recompute .*<- chosen", result.stdout), result.stdout + result.stderr


def test_a_budget_that_holds_nothing_is_refused():
    result = call("plan", "perceptron", *SMALL_SWEEP, "--inner.memory-budget-gb", "1e-9")
    assert result.returncode == 2
    assert "inner.memory_budget_gb" in result.stderr


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, (), "data.path: there is no file"),
        (b"", (), "data.path"),
        (b"once upon a time there was one line\n", (), "the text supports at most"),
        (b"good \xff bad\n\nmore\n", (), "UTF-8"),
        (SHORT, (), "data.context"),
        (None, ("--data.num-train", "1000000"), "data.num_train"),
        (None, ("--data.vocab-size", "1000000"), "data.vocab_size"),
        (None, ("--data.perturbed-share", "1.5"), "data.perturbed_share"),
        (None, ("--model.num-heads", "3"), "model.num_heads"),
    ],
    ids=["missing", "empty", "line", "utf8", "short", "many", "vocabulary", "share", "heads"],
)
def test_bad_text_is_one_clear_error(tmp_path, cache, content, flags, message):
    if not flags:
        path = tmp_path / "text.txt"
        if content is not None:
            path.write_bytes(content)
        flags = ("--data.path", str(path))
    result = call("plan", CONFIG, *TINY, *cache, *flags)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr) < 600


@pytest.mark.slow
def test_a_sweep_ends_in_a_table_and_goes_on(tmp_path):
    config = tmp_path / "rows.py"
    config.write_text(
        "import dataclasses\n"
        "from lljax.tasks.perceptron import PerceptronConfig\n"
        "def get_configs():\n"
        "    base = PerceptronConfig()\n"
        "    return {name: dataclasses.replace(base, seed=seed)\n"
        "            for name, seed in (('first', 1), ('second', 2))}\n"
    )
    arguments = ("sweep", config, "--workdir", tmp_path / "rows", *SMALL_SWEEP)
    result = call(*arguments)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "rows" / "table.json").read_text())
    assert [(row["name"], row["T"], row["N"]) for row in rows] == [
        ("first", 20, 64),
        ("second", 20, 64),
    ]
    seeds = [
        json.loads((tmp_path / "rows" / name / "summary.json").read_text())["seed"]
        for name in ("first", "second")
    ]
    assert seeds == [1, 2]  # the flags changed what they named, and nothing else
    assert (tmp_path / "rows" / "table.txt").read_text() in result.stdout
    again = call(*arguments)
    assert again.returncode == 0
    assert again.stderr.count("finished") == 2
    wrong = call("run", config)
    assert wrong.returncode == 2
    assert "`lljax sweep`" in wrong.stderr
