"""Wrong input: one clear sentence, exit status 2, and nothing is touched."""

import json
import os
import shutil

import pytest
from command_line import RUN, assert_refused, call


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "configs/perzeptron.py"), ["no file", "Did you mean configs/perceptron.py"]),
        (("run",), ["needs a CONFIG", "perceptron_paper"]),
        (("run", ""), ["there is no file", "perceptron"]),
        (("run", "perzeptron"), ["Did you mean perceptron?", "transformer_small"]),
        (("run", "perceptron", "--inner.num-step", "5"), ["--inner.num-steps"]),
        (("run", "perceptron", "--inner.num-steps", "many"), ["--inner.num-steps", "INT"]),
        (
            ("run", "perceptron", "--inner.num-steps", "0"),
            ["inner.num_steps", "at least 1", "got 0"],
        ),
        (("run", "perceptron", "--data.num-train", "0"), ["data.num_train", "at least 1"]),
        (("run", "perceptron", "--inner.learning-rate", "nan"), ["inner.learning_rate", "> 0"]),
        (("run", "perceptron", "--outer.method", "sgd"), ["projected_gradient"]),
        (
            ("run", "perceptron", "--outer.smoothing", "-1"),
            ["outer.smoothing", "at least 0", "got -1"],
        ),
        (("run", "README.md"), ["Python file"]),
        (("fly",), ["no command `fly`"]),
        (("report", "/nonexistent/folder"), ["/nonexistent/folder"]),
    ],
)
def test_wrong_input_gets_one_clear_error(arguments, words, tmp_path):
    if arguments[0] == "run" and len(arguments) > 2:
        arguments = (*arguments, "--workdir", tmp_path / "new")
    assert_refused(call(*arguments), *words)
    assert not list(tmp_path.iterdir())


def test_a_broken_config_file(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("from lljax.tasks import *\ndef get_config(): return Inner()\n")
    assert_refused(call("run", config), "mine.py", "Inner")
    config.write_text(
        "from lljax.tasks import *\n"
        "def get_config(): return ExperimentConfig(inner=InnerConfig(steps=3))\n"
    )
    assert_refused(call("run", config), "mine.py", "steps")
    config.write_text("def get_config(): return {}\n")
    assert_refused(call("run", config), "must return an ExperimentConfig", "got dict")


def test_anothers_workdir_is_not_touched(finished, tmp_path):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    result = call(*RUN, workdir, "--seed", "5")
    assert_refused(result, "another config", "seed is 0 there and 5 here")
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    (tmp_path / "thesis.tex").write_text("precious")
    result = call(*RUN, tmp_path)
    assert_refused(result, "not a run of lljax")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", '{"task": "perc', ["config.json cannot be read"]),
        ("config.json", "[]", ["does not hold a config"]),
        ("metrics.jsonl", '{"outer_step": 0}\n{"outer', ["metrics.jsonl"]),
        ("metrics.jsonl", "", ["metrics.jsonl", "does not hold the outer steps"]),
    ],
)
def test_a_damaged_workdir_is_refused(finished, tmp_path, file, content, words):
    workdir = shutil.copytree(finished[0], tmp_path / "damaged")
    (workdir / "report.html").unlink()
    (workdir / file).write_text(content)
    assert_refused(call(*RUN, workdir), *words)
    assert (workdir / file).read_text() == content


def test_lost_checkpoints_do_not_cost_the_rest(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "lost")
    (workdir / "report.html").unlink()
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "metrics.jsonl").read_bytes()
    result = call(*RUN, workdir)
    assert_refused(result, "checkpoints are missing")
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert list((workdir / "snapshots").iterdir())


def test_a_damaged_checkpoint_is_refused(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "damaged")
    (workdir / "report.html").unlink()
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(b"\0" * 100)
    result = call(*RUN, workdir)
    assert_refused(result, "checkpoint", "cannot be read")


def test_a_workdir_that_is_a_file():
    result = call(*RUN, "README.md")
    assert_refused(result, "--workdir README.md cannot be read")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    result = call(*RUN, tmp_path / "new")
    assert_refused(result, "cannot be written")


def test_a_run_does_not_go_on_with_other_data(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    (workdir / "report.html").unlink()
    (workdir / "data.json").write_text(json.dumps({"sha256": "of another text"}))
    result = call(*RUN, workdir)
    assert_refused(result, "not those that the run", "the data that the task reads")


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("report", "--help")])
def test_help_names_what_a_newcomer_needs(arguments):
    result = call(*arguments)
    assert result.returncode == 0
    assert "usage" in result.stdout.lower()
    assert ("CONFIG" if "report" not in arguments else "DIR") in result.stdout
