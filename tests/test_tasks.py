"""Tasks of one's own: from a config file to a run, and what does not fit refused in words."""

import json
import re

import pytest
from command_line import ROOT, assert_refused, call

EXAMPLE = ROOT / "examples" / "own_task.py"
QUICK = (
    *("--inner.num-steps", "30", "--outer.num-steps", "4", "--num-train", "48", "--width", "8"),
    *("--inner.learning-rate", "0.5"),
)


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 80


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own") / "strokes"
    result = call("run", EXAMPLE, "--workdir", workdir, *QUICK)
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_a_task_of_ones_own_gets_a_run_and_a_report_with_pictures(own_run):
    workdir, result = own_run
    summary = json.loads((workdir / "summary.json").read_text())
    assert (summary["task"], summary["vocab_size"], summary["num_train"]) == ("strokes", 4, 48)
    desired = summary["desired"]
    assert desired["optimized"]["auc"] < desired["conventional"]["auc"]
    page = (workdir / "report.html").read_text()
    assert "48 training examples" in page
    assert " examples · 4 classes" in page
    assert "vocabulary" not in page
    assert len(re.findall(r'<img [^>]*src="data:image/png;base64,[^"]+"', page)) >= 16 + 7
    assert "strokes" in result.stdout
    assert "perturbed" in result.stdout


def test_it_is_recognised_and_planned(own_run):
    workdir, _ = own_run
    again = call("run", EXAMPLE, "--workdir", workdir, *QUICK)
    assert again.returncode == 0
    assert "finished" in again.stderr
    other = call("run", EXAMPLE, "--workdir", workdir, *QUICK, "--wrong-labels", "0.2")
    assert_refused(other, "wrong_labels is 0.4 there and 0.2 here")
    plan = call("plan", EXAMPLE, *QUICK)
    assert plan.returncode == 0, plan.stderr
    assert "<- chosen" in plan.stdout


def test_its_settings_are_flags_with_help():
    result = call("run", EXAMPLE, "--help")
    assert result.returncode == 0
    assert "--wrong-labels" in result.stdout
    assert "Of the hidden layer." in result.stdout


TASK = """
import dataclasses
import jax.numpy as jnp, numpy as np
from lljax import tasks

@dataclasses.dataclass(frozen=True)
class Config(tasks.ExperimentConfig):
    outer: tasks.OuterConfig = tasks.OuterConfig(num_steps=1, train_share={share})

def points(count):
    return jnp.linspace(-1, 1, count)

def build(config):
    return tasks.Problem(**dict(
        loss_fn=lambda w, x: (x * w - x) ** 2, optimizer=tasks.inner_optimizer(config.inner),
        params=jnp.zeros(()), train=points(8), desired=points(4), validation=points(4),
        test=points(4), num_symbols=2) | dict({changes}))

def get_config():
    return Config(inner=tasks.InnerConfig(num_steps=5))

def get_task():
    return {task}
"""
GOOD = "tasks.Task('points', Config, build)"


@pytest.mark.parametrize(
    ("changes", "task", "words"),
    [
        ("loss_fn=lambda w, x: (x * w) @ x", GOOD, ["task points does not fit", "shape (8,)"]),
        ("params=3", GOOD, ["every leaf of `params` must be a floating array"]),
        ("test=points(0)", GOOD, ["`test` is empty"]),
        ("train=points(8) / 0", GOOD, ["NaN or infinite numbers, in train"]),
        ("num_symbols=1", GOOD, ["`num_symbols` must be a whole number, at least 2; got 1"]),
        ("num_symbols=2.5", GOOD, ["`num_symbols` must be a whole number"]),
        ("optimizer=3", GOOD, ["`optimizer` must be an optax optimiser", "got int"]),
        ("facts='4 classes'", GOOD, ["`facts` must be a tuple of texts; got '4 classes'"]),
        ("show_example=lambda n: np.zeros(5)", GOOD, ["`show_example` must return", "shape (5,)"]),
        ("show_example=lambda n: np.ones(5) if n else 'a'", GOOD, ["`show_example` must return"]),
        ("perturbed=np.zeros(3, bool)", GOOD, ["`perturbed` must be a bool array of shape (8,)"]),
        ("second_order='reverse'", GOOD, ["`second_order` must be one of auto, forward_over_"]),
        ("what=1", GOOD, ["cannot be built: TypeError", "what", "mine.py, line"]),
        ("desired_loss_fn=lambda w, x: x * w", GOOD, ["outer.train_share must be 0", "got 0.25"]),
        ("", "tasks.Task('points', Config, lambda config: 3)", ["must return a Problem; got int"]),
        ("", "Config", ["get_task() of", "must return a Task(name, config_type, build)"]),
        ("", "tasks.Task('points', int, build)", ["no task takes a Config"]),
    ],
)
def test_a_task_that_does_not_fit_is_refused(tmp_path, changes, task, words):
    config = tmp_path / "mine.py"
    config.write_text(TASK.format(changes=changes, task=task, share=0.25))
    result = call("run", config, "--workdir", tmp_path / "run")
    assert_refused(result, *words)


OWN_SETTINGS = """
import dataclasses, pathlib
import jax.numpy as jnp, numpy as np
from lljax import tasks
from beside import make_points  # a file in the same folder

@dataclasses.dataclass(frozen=True)
class Config(tasks.ExperimentConfig):
    sizes: tuple[int, ...] = (8, 4)
    place: pathlib.Path = pathlib.Path("somewhere")
    speed: int = 1

def build(config):
    points = make_points(*config.sizes)
    return tasks.Problem(
        loss_fn=lambda w, x: (x * w - x) ** 2, optimizer=tasks.inner_optimizer(config.inner),
        params=np.zeros(()), train=points[0], desired=points[1], validation=points[1],
        test=points[1], num_symbols=np.int64(2))

def get_config():
    return Config(inner=tasks.InnerConfig(num_steps=5), outer=tasks.OuterConfig(num_steps=1))

def get_task():
    return tasks.Task("points", Config, build, free_settings=("speed",))
"""


def test_two_sets_may_be_the_same_object(tmp_path):
    config = tmp_path / "mine.py"
    changes = "(lambda same: {'desired': same, 'validation': same})(points(4))"
    config.write_text(TASK.format(changes=changes, task=GOOD, share=0))
    result = call("run", config, "--workdir", tmp_path / "run")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("dtype", ["np.float64", "np.float32"])
def test_numpys_wide_numbers_are_the_data_that_are_computed_with(tmp_path, dtype):
    """So a run goes on whether a task hands them over as such or as JAX's arrays."""
    config, digests = tmp_path / "mine.py", []
    for make in ("jnp.asarray", f"(lambda x: np.asarray(x, {dtype}))"):
        changes = "{name: " + make + "(points(8)) for name in ('train', 'test')}"
        config.write_text(TASK.format(changes=changes, task=GOOD, share=0))
        result = call("run", config, "--workdir", tmp_path / make[:5])
        assert result.returncode == 0, result.stderr
        digests.append(json.loads((tmp_path / make[:5] / "data.json").read_text())["sha256"])
    assert digests[0] == digests[1]


def test_settings_of_every_type_are_recognised_again(tmp_path):
    (tmp_path / "beside.py").write_text(
        "import numpy as np\n"
        "def make_points(*sizes): return [np.linspace(-1, 1, n, dtype='f4') for n in sizes]\n"
    )
    config, workdir = tmp_path / "own_settings.py", tmp_path / "run"
    config.write_text(OWN_SETTINGS)
    for flags in ((), (), ("--speed", "2")):
        result = call("run", config, "--workdir", workdir, *flags)
        assert result.returncode == 0, result.stderr
    assert "finished" in result.stderr
    other = call("run", config, "--workdir", workdir, "--sizes", "8", "5")
    assert_refused(other, "sizes is [8, 4] there and [8, 5] here")


ESTIMATOR = """
import jax

@jax.custom_jvp
def turned(x):
    return x

turned.defjvp(lambda x, t: (x[0], 0.7 * jnp.tanh(1 + x[0]) * t[0]))
"""
TURNED = (
    "params=jnp.ones(2), loss_fn=lambda w, x: (x * turned(w)[0] - x * turned(w)[1] ** 2 - x) ** 2"
)


def test_a_rule_that_is_no_derivative_needs_the_other_pass(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(ESTIMATOR + TASK.format(changes=TURNED, task=GOOD, share=0.0))
    result = call("run", config, "--workdir", tmp_path / "run")
    assert_refused(result, "the task points does not fit", "Pass second_order='reverse_over_")
    changes = f"{TURNED}, second_order='reverse_over_reverse'"
    config.write_text(ESTIMATOR + TASK.format(changes=changes, task=GOOD, share=0.0))
    result = call("run", config, "--workdir", tmp_path / "run")
    assert result.returncode == 0, result.stderr


def test_a_desired_loss_of_its_own_is_what_is_measured(tmp_path):
    config, workdir = tmp_path / "mine.py", tmp_path / "run"
    changes = "desired_loss_fn=lambda w, x: 7 + 0 * x + (w - 1) ** 2"
    config.write_text(TASK.format(changes=changes, task=GOOD, share=0.0))
    result = call("run", config, "--workdir", workdir)
    assert result.returncode == 0, result.stderr
    summary = json.loads((workdir / "summary.json").read_text())
    for name in ("desired", "validation", "test"):
        assert 7 < summary[name]["optimized"]["auc"] < 8
    first = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["objective"] == pytest.approx(first["desired_auc"])
