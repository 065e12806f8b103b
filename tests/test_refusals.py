"""Wrong input: one clear sentence, exit status 2, and nothing is touched."""

import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import RUN, SMALL, assert_refused, call


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


def test_a_workdir_of_another_task_or_of_many_differences_is_one_sentence(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    flags = ("--inner.num-steps", "5", "--inner.segments", "2", "--data.dim", "3", "--seed", "4")
    flags = (*flags, "--outer.grow", "2", "--outer.shrink", "0.2", "--outer.momentum", "0")
    result = call(*RUN, workdir, *flags)
    assert_refused(result, "another config: data.dim is 16 there and 3 here;", "; and 2 more. Give")
    shutil.rmtree(workdir / "checkpoints")
    change_config(workdir, task="transformer", model={"dim": 3})
    result = call(*RUN, workdir)
    assert_refused(result, "config: task is transformer there and perceptron here. Give this run")


def change_config(workdir, **changes):
    path = workdir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"task": "perc', "no valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (b"[]", "does not hold a config of lljax"),
        (b'{"architectures": ["GPT"], "n_layer": 12}', "does not hold a config of lljax"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path, content, words):
    (tmp_path / "config.json").write_bytes(content)
    (tmp_path / "model.safetensors").write_text("precious")
    assert_refused(call(*RUN, tmp_path), "config.json", words)
    assert (tmp_path / "config.json").read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 2


def test_lost_checkpoints_do_not_cost_the_rest(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "lost")
    shutil.rmtree(workdir / "checkpoints")
    assert call(*RUN, workdir).returncode == 0  # nothing is missing that was wanted
    (workdir / "policy.npy").unlink()
    before = {path: path.read_bytes() for path in workdir.rglob("*.*") if path.is_file()}
    result = call(*RUN, workdir)
    assert_refused(result, "checkpoints are missing")
    result = call(*RUN, workdir, "--outer.num-steps", "9")
    assert_refused(result, "checkpoints are missing")
    assert {path: path.read_bytes() for path in before} == before


def test_checkpoints_of_an_earlier_lljax_are_refused_and_left_alone(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "old")
    (workdir / "manifest.json").unlink()
    for step in (7, 8):
        folder = workdir / "checkpoints" / str(step)
        (folder / "arrays").rename(folder / "default")
        shutil.rmtree(folder / "record")
    result = call(*RUN, workdir)
    assert result.returncode == 0, result.stderr
    assert "finished" in result.stderr
    (workdir / "report.html").unlink()
    result = call(*RUN, workdir)
    assert_refused(result, "written by an earlier lljax", "let that lljax finish the run")
    assert (workdir / "checkpoints" / "8" / "default").exists()
    assert (workdir / "summary.json").exists()


def test_a_workdir_that_is_a_file():
    result = call(*RUN, "README.md")
    assert_refused(result, "--workdir README.md is a file, and must be a folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    result = call(*RUN, tmp_path / "new")
    assert_refused(result, "cannot be written")


OWN_DATA = """
import dataclasses
from pathlib import Path
import numpy as np
from lljax.tasks import perceptron
from lljax.tasks.perceptron import PerceptronConfig

def build(config):
    problem = perceptron.TASK.build(config)
    sign = np.float32(Path({path!r}).read_text())
    test = problem.test._replace(z=sign * problem.test.z)
    return dataclasses.replace(problem, test=test)

def get_task():
    return dataclasses.replace(perceptron.TASK, build=build)

def get_config():
    return PerceptronConfig()
"""


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    config, data, workdir = (tmp_path / name for name in ("own.py", "data.txt", "run"))
    config.write_text(OWN_DATA.format(path=str(data)))
    command = ("run", config, *SMALL, "--workdir", workdir)
    result = call(*command)
    assert_refused(result, "data.txt")
    data.write_text("1")
    # A refused run has not bound the folder, and neither has one without an outer step.
    result = call(*command, "--inner.learning-rate", "1e38")
    assert_refused(result, "diverges", status=1)
    data.write_text("-1")
    result = call(*command, "--outer.num-steps", "1")
    assert result.returncode == 0, result.stderr
    assert "it is replaced (inner.learning_rate is 1e+38 there and 0.1 here)" in result.stderr
    data.write_text("1")
    for damage in (lambda path: None, Path.unlink):
        damage(workdir / "data.json")
        result = call(*command, "--outer.num-steps", "2")
        assert_refused(result, "not those that the run", "the data that the task reads")


BY_URL = """
import dataclasses
import numpy as np
from lljax.tasks import perceptron
from lljax.tasks.perceptron import PerceptronConfig

@dataclasses.dataclass(frozen=True)
class Config(PerceptronConfig):
    url: str = ""

def build(config):
    problem = perceptron.TASK.build(config)
    sign = np.float32(-1 if "dogs" in config.url else 1)
    return dataclasses.replace(problem, test=problem.test._replace(z=sign * problem.test.z))

def get_task():
    return dataclasses.replace(perceptron.TASK, config_type=Config, build=build)

def get_config():
    return Config()
"""


def test_urls_that_differ_only_in_what_is_kept_secret_are_two_runs(tmp_path):
    config, workdir = tmp_path / "own.py", tmp_path / "run"
    config.write_text(BY_URL)
    command = ("run", config, *SMALL, "--outer.num-steps", "1", "--workdir", workdir, "--url")
    result = call(*command, "https://host.org/get?set=cats")
    assert result.returncode == 0, result.stderr
    before = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    result = call(*command, "https://host.org/get?set=dogs")
    assert_refused(result, "the data or initial parameters are not those")
    after = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    assert after == before
    assert "cats" not in "".join(map(str, before.values()))
    assert "finished. Its report" in call(*command, "https://host.org/get?set=cats").stderr
    # Another token, and the same data: it is the same run.
    result = call(*command, "https://host.org/get?set=cats&token=2")
    assert result.returncode == 0, result.stderr
    assert (workdir / "policy.npy").read_bytes() == before["policy.npy"]
    assert "finished. Its report" in call(*command, "https://host.org/get?set=cats&token=2").stderr


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("report", "--help")])
def test_help_names_what_a_newcomer_needs(arguments):
    result = call(*arguments)
    assert result.returncode == 0
    assert "usage" in result.stdout.lower()
    assert ("CONFIG" if "report" not in arguments else "DIR") in result.stdout
