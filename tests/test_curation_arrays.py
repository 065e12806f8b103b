"""Runs over drawn runs on pictures and tables, and what `lljax transfer` makes of them."""

import http.server
import io
import json
import threading

import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
from command_line import assert_refused, call, read_metrics, settings_of_a_user

import lljax
from lljax.curation.drawn import RunSource
from lljax.curation.evaluation import Evaluation
from lljax.curation.transfer import KIND as TRANSFER
from lljax.curation.transfer import default_experiment
from lljax.data.arrays import read_table
from lljax.data.errors import TextError
from lljax.tasks.build import build_problem

RUNS = ("--outer.runs", "2", "--outer.validation-runs", "2", "--inner.batch-size", "8")


def test_transfer_keeps_the_rows_of_a_schedule(tmp_path):
    short = ("--inner.num-steps", "10", "--outer.num-steps", "2", "--outer.validate-every", "1")
    given = ("--policy.family", "scheduled", "--outer.learning-rate", "0.1", *short, *RUNS)
    assert call("run", "noisy_labels", "--workdir", tmp_path, *given).returncode == 0
    rows = lljax.load_run(tmp_path).policy
    assert np.abs(rows - rows.mean(axis=0)).max() > 1e-4
    assert call("transfer", tmp_path, "--seeds", "2").returncode == 0
    curve = json.loads((tmp_path / "transfer.json").read_text())["arms"]["curated"]["curve"]
    experiment = default_experiment(tmp_path)
    with settings_of_a_user():
        problem = build_problem(experiment)
        evaluation = Evaluation(experiment.config, problem, RunSource(experiment.config, problem))
        keys = evaluation.keys(TRANSFER, 2)
        ours = evaluation.curves(jnp.asarray(rows), keys, ("test",), "")["test"]
    np.testing.assert_allclose(curve, ours.mean(axis=0), rtol=1e-5)


def test_transfer_asks_for_what_config_json_leaves_out_of_a_url(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    buffer = io.BytesIO()
    np.savez(buffer, x=x, y=x[:, 0] > 0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path.endswith("?key=1") else 403)
            self.end_headers()
            self.wfile.write(buffer.getvalue())

        def log_message(self, *_):
            pass

    short = ("--inner.num-steps", "10", "--outer.num-steps", "1", "--outer.validate-every", "1")
    cache = ("--data.cache-dir", tmp_path / "cache", "--data.num-train", "64", "--model.width", "4")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/arrays.npz"
        given = ("--workdir", tmp_path / "run", "--data.path", f"{url}?key=1", *short, *cache)
        assert call("run", "noisy_labels", *given).returncode == 0
        result = call("transfer", tmp_path / "run", "--seeds", "1")
        assert_refused(result, f"--data.path must be given again: config.json holds {url}?...,")
        again = ("--data.path", f"{url}?key=1", "--data.cache-dir", tmp_path / "another")
        result = call("transfer", tmp_path / "run", "--seeds", "1", *again)
        server.shutdown()
    assert result.returncode == 0, result.stderr
    assert not json.loads((tmp_path / "run" / "transfer.json").read_text())["unseen_data"]


def test_the_last_step_is_compared_and_patience_counts_comparisons(tmp_path):
    short = ("--inner.num-steps", "10", "--data.num-train", "64", *RUNS)
    steps = ("--outer.validate-every", "2", "--outer.num-steps")
    assert (
        call("run", "noisy_labels", "--workdir", tmp_path / "a", *short, *steps, 3).returncode == 0
    )
    lines = read_metrics(tmp_path / "a")
    assert [line["validation_auc"] is None for line in lines] == [False, True, False, False]
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["best_outer_step"] == max(x["outer_step"] for x in lines if x["best"])
    # At a rate that makes everything worse: the first comparison says so, and not before.
    bad = (*short, "--outer.learning-rate", "50", "--outer.patience", "1", *steps, "6")
    result = call("run", "noisy_labels", "--workdir", tmp_path / "b", *bad)
    assert "stopped: no better validation AUC since outer step 0" in result.stderr
    assert [line["outer_step"] for line in read_metrics(tmp_path / "b")] == [0, 1, 2]


def test_noisy_labels_lose_their_weight(tmp_path):
    flags = ("--outer.num-steps", "8", "--outer.learning-rate", "0.3", "--outer.runs", "2")
    result = call("run", "noisy_labels", "--workdir", tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["perturbed"]["weight_share"]["optimized"] < 0.2
    assert summary["test"]["acceleration_ratio"] > 3
    assert len(summary["runs"]["oracle_acceleration_ratios"]) == 5


def test_arrays_of_a_file(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4))
    np.savez(tmp_path / "a.npz", x=x, y=np.where(x[:, 0] > 0, "up", "down"), t=x[:, 0])
    short = ("--inner.num-steps", "10", "--outer.num-steps", "2", "--outer.validate-every", "1")
    for labels in ("y", "t"):
        result = call(
            *("run", "noisy_labels", "--workdir", tmp_path / labels, *short),
            *("--data.path", tmp_path / "a.npz", "--data.labels", labels, "--model.kind", "linear"),
        )
        assert result.returncode == 0, result.stderr
        assert "300 examples of data.path" in result.stderr
    bad = ("run", "noisy_labels", "--workdir", tmp_path / "no", "--data.path", tmp_path / "a.npz")
    assert_refused(call(*bad, "--data.labels", "z"), "has no z; it has x, y, t. Set data.labels")
    assert_refused(call(*bad, "--model.kind", "cnn"), "a cnn needs pictures")
    np.savez(tmp_path / "b.npz", x=np.array([{}], object), y=[1])
    assert_refused(call(*bad[:-1], tmp_path / "b.npz"), "Objects are not read")
    (tmp_path / "c.npz").write_text("text")
    assert_refused(call(*bad[:-1], tmp_path / "c.npz"), "neither an .npz file nor Parquet")


def test_columns_of_arrays_are_read_as_those_of_texts(tmp_path):
    rows = {"x": [[0.0], [1.0]], "y": [0, 1], "when": pyarrow.array([0, 2**50], "timestamp[s]")}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet")
    read = (("x",), "y", "when", tmp_path)
    groups = read_table(str(tmp_path / "a.parquet"), "data.path", *read).groups
    assert groups[0].startswith("1970-01-01 00:00:00")
    assert groups[0] != groups[1]
    twice = pyarrow.Table.from_arrays([[1.0, 2.0], [0, 1], [1, 1]], ["x", "y", "y"])
    pyarrow.parquet.write_table(twice, tmp_path / "b.parquet")
    with pytest.raises(TextError, match="2 columns of the name y"):
        read_table(str(tmp_path / "b.parquet"), "data.path", ("x",), "y", None, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--inner.batch-size", "4"), "policy.family must be static, group, scheduled or scorer"),
        (("--policy.family", "group", "--outer.train-share", "0"), "needs the groups"),
        (("--policy.family", "static"), "outer.train_share must be 0 with policy.family static"),
        (("--policy.explore", "0"), "policy.explore must be in [0.01, 1]"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, changes, words):
    assert_refused(call("run", "perceptron", "--workdir", tmp_path / "w", *changes), words)


def test_a_transfer_can_be_made_again_once_the_manifest_knows_it(tmp_path):
    """The manifest of a run that is drawn again has transfer.json, which is then written anew."""
    short = ("--inner.num-steps", "10", "--outer.num-steps", "1", "--outer.validate-every", "1")
    given = ("--workdir", tmp_path, *short, *RUNS, "--data.num-train", "64")
    assert call("run", "noisy_labels", *given).returncode == 0
    assert call("transfer", tmp_path, "--seeds", "1").returncode == 0
    (tmp_path / "report.html").unlink()
    assert call("run", "noisy_labels", *given).returncode == 0
    result = call("transfer", tmp_path, "--seeds", "2")
    assert result.returncode == 0, result.stderr
    result = call("report", tmp_path)
    assert result.returncode == 0, result.stderr
