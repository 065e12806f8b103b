"""`lljax attribute`, through the real command line."""

import json

import jax
import numpy as np
import pyarrow.parquet
import pytest
import tyro
from command_line import SMALL, assert_refused, call, settings_of_a_user
from texts import make_documents

import lljax
from lljax.curation.attribution import KEY
from lljax.curation.drawn import RunSource, run_keys
from lljax.tasks import arrays, perceptron
from lljax.tasks.arrays import ArraysConfig
from lljax.tasks.build import build_problem
from lljax.tasks.perceptron import PerceptronConfig
from lljax.tasks.problem import Experiment

TEXT = (
    *("--inner.num-steps", "6", "--inner.learning-rate", "0.5", "--inner.microbatch-size", "8"),
    *("--model.width", "8", "--model.num-heads", "1", "--data.vocab-size", "120"),
    *("--data.context", "8", "--data.num-train", "24", "--data.num-desired", "8"),
    *("--data.num-validation", "8", "--data.num-test", "8"),
)


def attribute(config, workdir, *flags):
    result = call("attribute", config, "--workdir", workdir, *flags)
    assert result.returncode == 0, result.stderr
    return result


def rows_of(workdir):
    return pyarrow.parquet.read_table(workdir / "attribution.parquet").to_pylist()


def small_perceptron():
    """The problem of a command line with SMALL, and its run's policy."""
    config = tyro.cli(PerceptronConfig, args=list(SMALL))
    problem = build_problem(Experiment(perceptron.TASK, config))
    return problem, lljax.uniform_policy(config.inner.num_steps, problem.num_train)


def test_scores_of_a_whole_batch_run_are_those_of_the_core(tmp_path):
    for of in ("auc", "final"):
        memory = ("--inner.memory", "recompute") if of == "final" else ()
        result = attribute("perceptron", tmp_path / of, *SMALL, "--of", of, *memory)
        assert "from 1 run of T = 60 inner steps on all examples" in result.stderr
    with settings_of_a_user():
        problem, policy = small_perceptron()
        loss_auc = lljax.build_loss_auc(problem.loss_fn, problem.optimizer)
        data = policy, problem.params, problem.train, problem.desired
        for of in ("auc", "final"):
            expected = jax.jit(lambda *a, of=of: lljax.attribution_scores(loss_auc, *a, of=of))
            scores = np.load(tmp_path / of / "scores.npy", allow_pickle=False)
            np.testing.assert_allclose(scores, expected(*data), rtol=1e-3, atol=1e-6)
        end = jax.jit(loss_auc)(*data)[1].params
        losses = np.asarray(problem.loss_fn(end, problem.train))
    rows = rows_of(tmp_path / "final")
    assert [row["rank"] for row in rows] == list(range(1, 65))
    assert [row["index"] for row in rows] == np.argsort(-scores, kind="stable").tolist()
    assert rows[0]["score"] == scores.max()
    found = sorted((row["index"], row["loss"]) for row in rows)
    np.testing.assert_allclose([loss for _, loss in found], losses, rtol=1e-3, atol=1e-6)
    about = json.loads((tmp_path / "final" / "attribution.json").read_text())
    assert about["settings"]["of"] == "final"
    assert about["desired_final_loss"] > 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["1"]] == [str(rows[0]["index"])]
    assert result.stdout.endswith(f"{tmp_path / 'final' / 'attribution.parquet'}\n")


def test_each_desired_example_and_the_folder_of_another_command(tmp_path):
    flags = (*SMALL, "--each", "18", "--format", "jsonl")  # more than go side by side
    attribute("perceptron", tmp_path, *flags)
    each = np.load(tmp_path / "scores.npy", allow_pickle=False)
    assert each.shape == (18, 64)
    with settings_of_a_user():
        problem, policy = small_perceptron()
        segments = lljax.build_segments(problem.loss_fn, problem.optimizer)
        some = jax.tree.map(lambda leaf: leaf[:18], problem.desired)
        expected = jax.jit(lambda *a: lljax.attribution_of_each(segments, *a))(
            policy, problem.params, problem.train, some
        )
        np.testing.assert_allclose(each, expected, rtol=1e-3, atol=2e-5)
    first = json.loads((tmp_path / "attribution.jsonl").read_text().splitlines()[0])
    assert first["score"] == pytest.approx(each.mean(axis=0).max(), rel=1e-5)
    # The same command may be repeated; another one has to go elsewhere.
    attribute("perceptron", tmp_path, *flags)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = call("attribute", "perceptron", "--workdir", tmp_path, *flags, "--of", "final")
    assert_refused(result, "of is auc there and final here")
    (tmp_path / "thesis.tex").write_text("precious")
    result = call("attribute", "perceptron", "--workdir", tmp_path, *flags)
    assert_refused(result, "holds thesis.tex, which `lljax attribute` has not written")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after == before | {"thesis.tex": b"precious"}


def test_wrong_labels_have_low_scores_which_are_means_over_runs(tmp_path):
    sizes = ("--data.num-train", "300", "--data.num-desired", "300", "--data.flipped", "0.1")
    runs = ("--inner.num-steps", "40", "--inner.desired-batch-size", "150", "--outer.runs", "2")
    result = attribute("noisy_labels", tmp_path, *sizes, *runs)
    assert "from 2 runs of T = 40 inner steps on batches of 50" in result.stderr
    found = int(result.stdout.split("of 30 damaged examples ")[1].split()[0])
    rows = rows_of(tmp_path)
    assert sum(row["perturbed"] for row in rows[-30:]) == found
    assert found > 10  # three by chance
    assert rows[0]["text"].startswith("label ")
    assert rows[0]["source"] == "the digits of scikit-learn"
    with settings_of_a_user():
        config = tyro.cli(ArraysConfig, args=[*sizes, *runs])
        problem = build_problem(Experiment(arrays.TASK, config))
        keys = run_keys(jax.random.key(config.seed), KEY, 2)
        drawn = RunSource(config, problem).draw(np.full((1, 300), 1 / 300, np.float32), keys)
        loss_auc = lljax.build_loss_auc(problem.loss_fn, problem.optimizer)

        def of_run(params, inputs):
            data = problem.train, problem.desired
            return lljax.attribution_scores(loss_auc, inputs, params, *data)

        expected = jax.jit(jax.vmap(of_run, in_axes=(0, 1)))(*drawn).mean(axis=0)
    scores = np.load(tmp_path / "scores.npy", allow_pickle=False)
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)
    assert np.abs(scores).max() > 1e-3


def test_tokens_sum_to_their_sequences(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("<|endoftext|>".join(make_documents(60)), encoding="utf-8")
    cache = ("--data.path", text, "--data.cache-dir", tmp_path / "cache")
    flags = (*TEXT, *cache, "--tokens", "--of", "final")
    workdir = tmp_path / "scores"
    result = attribute("transformer_small", workdir, *flags)
    scores, tokens = (np.load(workdir / f"{name}.npy") for name in ("scores", "token_scores"))
    assert tokens.shape == (24, 8)
    np.testing.assert_allclose(tokens.sum(axis=1), scores, rtol=1e-3, atol=1e-6)
    assert np.abs(tokens).max() > 0
    best = rows_of(workdir)[0]
    assert len(best["tokens"]) == len(best["token_scores"]) == 8
    assert best["token_scores"] == pytest.approx(tokens[best["index"]].tolist())
    assert "".join(best["tokens"]).replace("\u2047", "").strip()
    assert "final desired loss" in result.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--each", "33"), "--each must be from 1 to 32, the desired examples; got 33"),
        (("--tokens",), "--tokens needs training examples of tokens"),
        (("--tokens", "--each", "2"), "--each and --tokens cannot be given together"),
        (("--of", "mean"), "auc"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, flags, words):
    result = call("attribute", "perceptron", "--workdir", tmp_path / "new", *SMALL, *flags)
    assert_refused(result, words)
    assert not list(tmp_path.iterdir())
    assert "attribute CONFIG" in call("help").stdout
