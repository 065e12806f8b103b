"""Whole experiments through the command line: what they leave, and that it is true."""

import itertools
import json
import re
import shutil
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest
from command_line import ACTIVE, RUN, assert_refused, call, read_metrics, run_without_report

from lljax.engine.summary import made_by


def test_a_run_leaves_what_it_promises(finished):
    workdir, _ = finished
    config = json.loads((workdir / "config.json").read_text())
    assert (config["task"], config["inner"]["num_steps"]) == ("perceptron", 60)
    lines = read_metrics(workdir)
    assert [line["outer_step"] for line in lines] == list(range(9))
    objectives = [line["objective"] for line in lines]
    assert objectives == sorted(objectives, reverse=True)
    assert objectives[-1] < objectives[0]
    policy = np.load(workdir / "policy.npy", allow_pickle=False)
    assert policy.shape == (60, 64)
    assert policy.dtype == np.float32
    assert policy.min() >= 0
    np.testing.assert_allclose(policy.sum(axis=1), 1, atol=1e-5)
    assert sorted(path.name[:5] for path in (workdir / "figures").glob("*.png"))[0] == "fig04"
    assert "<html" in (workdir / "report.html").read_text()


def test_the_summary_is_true(finished):
    """Its numbers follow from policy.npy and the config, computed again through the public API."""
    import jax
    import jax.numpy as jnp
    import optax

    import lljax
    from lljax.tasks.perceptron import make_teacher_student

    workdir, _ = finished
    summary = json.loads((workdir / "summary.json").read_text())
    with jax.enable_x64(False):
        data = make_teacher_student(
            jax.random.key(0),
            dim=16,
            num_train=64,
            num_desired=32,
            num_validation=128,
            num_test=128,
            train_label_noise=0.3,
        )

        def loss_fn(theta, batch):
            return optax.sigmoid_binary_cross_entropy(batch.z @ theta, batch.y)

        loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(0.1))
        theta = jnp.zeros(16)
        policies = {
            "conventional": lljax.uniform_policy(60, 64),
            "optimized": jnp.asarray(np.load(workdir / "policy.npy")),
        }
        for name in ("desired", "validation", "test"):
            curves = {}
            for label, policy in policies.items():
                auc, info = loss_auc(policy, theta, data.train, getattr(data, name))
                curves[label] = info.desired_losses
                there = summary[name][label]
                assert there["auc"] == pytest.approx(float(auc), rel=1e-5)
                assert there["final_loss"] == pytest.approx(float(curves[label][-1]), rel=1e-5)
                assert there["best_loss"] == pytest.approx(float(curves[label].min()), rel=1e-5)
                best = float(curves[label][there["best_loss_step"]])
                assert there["best_loss"] == pytest.approx(best, rel=1e-5)
                assert there["compression_ratio"] == pytest.approx(np.log(2) / float(auc), rel=1e-5)
            expected = float(lljax.acceleration_ratio(*curves.values()))
            ratio = summary[name]["acceleration_ratio"]
            assert ratio == (pytest.approx(expected) if np.isfinite(expected) else None)
    validation = [line["validation_auc"] for line in read_metrics(workdir)]
    assert summary["best_outer_step"] == int(np.argmin(validation))
    assert set(summary["seconds"]) == {"compile", "optimize", "evaluate", "total"}
    assert summary["learning_law"]["optimized"]["optimality_gap"] >= 0
    counts = {name: summary[f"num_{name}"] for name in ("train", "desired", "validation", "test")}
    assert counts == {"train": 64, "desired": 32, "validation": 128, "test": 128}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", summary["finished"])
    assert "command" not in summary, "this process is not lljax's"
    html = (workdir / "report.html").read_text(encoding="utf-8")
    digest = json.loads((workdir / "data.json").read_text())["sha256"]
    assert summary["finished"] in html
    assert f"<td>{digest[:16]}</td>" in html


@pytest.mark.parametrize("program", ["/usr/bin/lljax", "/src/lljax/__main__.py"])
def test_a_run_tells_its_command_without_secrets(program, monkeypatch):
    path = "https://me:word@host.org/a.txt?token=1"
    monkeypatch.setattr(sys, "argv", [program, "run", "x.py", "--data.path", path, "\x1b[2J"])
    expected = "lljax run x.py --data.path 'https://host.org/a.txt?...' '\ufffd[2J'"
    assert made_by()["command"] == expected


def test_progress_without_a_terminal(finished):
    """A line an outer step: AUC, held-out AR, gap, time left."""
    _, result = finished
    lines = [line for line in result.stderr.splitlines() if line.startswith("outer ")]
    assert len(lines) == 9
    assert all(word in lines[-1] for word in ("8/8", "AUC", "AR", "gap", "left"))
    assert "acceleration" in result.stdout  # the table


def test_a_finished_run_says_so_and_is_left_alone(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    result = call(*RUN, workdir)
    assert result.returncode == 0
    assert "finished" in result.stderr
    assert result.stdout == finished[1].stdout  # the table
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


@pytest.mark.slow
def test_report_again_with_pdf(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    (workdir / "report.html").unlink()
    result = call("report", workdir, "--pdf")
    assert result.returncode == 0, result.stderr
    assert (workdir / "report.html").exists()
    assert list((workdir / "figures").glob("*.pdf"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        (
            *("--inner.optimizer", "adamw", "--inner.learning-rate", "0.01"),
            *("--inner.clip-norm", "1", "--inner.memory", "recompute"),
            *("--inner.microbatch-size", "20"),
        ),
        ("--outer.method", "projected_gradient", "--outer.train-share", "0"),
    ],
)
def test_other_methods_run_to_the_end(flags, tmp_path):
    run_without_report(tmp_path / "w", *flags)
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    desired = summary["desired"]
    assert desired["optimized"]["auc"] < desired["conventional"]["auc"]


@pytest.mark.parametrize("rate", ["1e+06", "1e+38"])
def test_a_diverging_run_stops_with_the_step_and_the_cause(rate, tmp_path):
    workdir = tmp_path / "diverging"
    result = call(*RUN, workdir, "--inner.learning-rate", rate)
    assert_refused(result, "diverges", "inner step", f"inner.learning_rate ({rate})", status=1)
    assert (workdir / "config.json").exists()


@pytest.fixture(scope="module")
def active_set(tmp_path_factory):
    """Workdirs of runs that look at all examples in every outer step, and in every third."""
    root = tmp_path_factory.mktemp("active")
    for every in (1, 3):
        flags = (*ACTIVE, "--outer.check-every", every)
        run_without_report(root / str(every), *flags)
    return {every: root / str(every) for every in (1, 3)}


def test_an_active_set_ends_where_looking_at_all_examples_does(active_set):
    """Its gaps are known where all examples were looked at, and that of the best policy is.

    They may also be known where no example was without weight.
    """
    gaps, objectives = {}, {}
    for every, workdir in active_set.items():
        lines = read_metrics(workdir)
        objectives[every] = [line["objective"] for line in lines]
        gaps[every] = [line["optimality_gap"] for line in lines]
        for before, line in itertools.pairwise(lines):
            looked = line["outer_step"] % every == 0
            same_policy = not line["accepted"]
            known = looked or (same_policy and before["optimality_gap"] is not None)
            assert line["optimality_gap"] is not None or not known
        policy = np.load(workdir / "policy.npy", allow_pickle=False)
        assert (policy == 0).mean() > 0.1
        summary = json.loads((workdir / "summary.json").read_text())
        assert summary["learning_law"]["optimized"]["optimality_gap"] > 0
        assert not (workdir / "look").exists()
    assert None in gaps[3]
    assert objectives[1][-1] < 0.9 * objectives[1][0]
    np.testing.assert_allclose(objectives[3], objectives[1], rtol=1e-2)


@pytest.mark.slow
def test_a_run_goes_on_where_slopes_were_unknown(active_set, tmp_path):
    """A checkpoint has one truth value for the mask, which follows from the policy."""
    flags = (*ACTIVE, "--outer.check-every", "3")
    workdir = run_without_report(tmp_path / "run", *flags, "--outer.num-steps", "5")
    assert read_metrics(workdir)[-1]["optimality_gap"] is None
    saved = ocp.StandardCheckpointer().metadata(workdir / "checkpoints" / "5" / "arrays")
    known = saved.item_metadata.tree["known"]
    assert (known.shape, known.dtype) == ((), bool)
    run_without_report(workdir, *flags)
    expected = active_set[3] / "policy.npy"
    assert (workdir / "policy.npy").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("memory", ["offload", "recompute"])
def test_where_states_are_kept_changes_no_bit(finished, tmp_path, memory):
    workdir = tmp_path / memory
    run_without_report(workdir, "--inner.memory", memory)
    assert f"({memory})" in (workdir / "log.txt").read_text()
    assert (workdir / "policy.npy").read_bytes() == (finished[0] / "policy.npy").read_bytes()
