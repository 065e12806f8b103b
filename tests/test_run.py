"""Whole experiments through the real command line: results, errors, kills."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
CONFIG = "configs/perceptron.py"
SMALL = (
    *("--inner.num-steps", "60", "--outer.num-steps", "8", "--data.dim", "16"),
    *("--data.num-train", "64", "--data.num-desired", "32"),
    *("--data.num-validation", "128", "--data.num-test", "128"),
)


def command(*arguments):
    return [sys.executable, "-m", "lljax.experiment.cli", *map(str, arguments)]


def lljax_command(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=ROOT)


def start_to_be_killed(*arguments, stderr=subprocess.PIPE):
    """A process in a group of its own. It must not leave half an entry in the tests' cache."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    return subprocess.Popen(
        command(*arguments),
        stderr=stderr,
        text=True,
        cwd=ROOT,
        env=environment,
        start_new_session=True,
    )


def kill_when(condition, *arguments):
    """Starts a command and kills it, with SIGKILL, once the condition holds."""
    with start_to_be_killed(*arguments) as process:
        while not condition():
            assert process.poll() is None
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
        process.wait()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    result = lljax_command("run", CONFIG, "--workdir", workdir, *SMALL)
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_a_run_leaves_what_it_promises(finished):
    workdir, _ = finished
    config = json.loads((workdir / "config.json").read_text())
    assert (config["task"], config["inner"]["num_steps"]) == ("perceptron", 60)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
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


ACTIVE = ("--inner.microbatch-size", "8", "--outer.cutoff", "0.3", "--outer.train-share", "0")


@pytest.fixture(scope="session")
def active_set(tmp_path_factory):
    """Workdirs of runs that look at all examples in every outer step, and in every third."""
    root = tmp_path_factory.mktemp("active")
    for every in (1, 3):
        flags = (*SMALL, *ACTIVE, "--outer.check-every", every)
        result = lljax_command("run", CONFIG, "--workdir", root / str(every), *flags)
        assert result.returncode == 0, result.stderr
    return {every: root / str(every) for every in (1, 3)}


def test_an_active_set_ends_where_looking_at_all_examples_does(active_set):
    """Its gaps are known where all examples were looked at, and that of the kept policy is."""
    gaps, objectives = {}, {}
    for every, workdir in active_set.items():
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        objectives[every] = [line["objective"] for line in lines]
        gaps[every] = [line["optimality_gap"] for line in lines]
        for before, line in itertools.pairwise(lines):
            looked = line["outer_step"] % every == 0
            same_policy = not line["accepted"]
            known = looked or (same_policy and before["optimality_gap"] is not None)
            assert (line["optimality_gap"] is not None) == known
        policy = np.load(workdir / "policy.npy", allow_pickle=False)
        assert (policy == 0).mean() > 0.1
        summary = json.loads((workdir / "summary.json").read_text())
        assert summary["learning_law"]["optimized"]["optimality_gap"] > 0
        assert not (workdir / "look").exists()
    assert None in gaps[3]
    assert objectives[1][-1] < 0.9 * objectives[1][0]
    np.testing.assert_allclose(objectives[3], objectives[1], rtol=1e-2)


def test_killed_while_it_looks_at_all_examples_it_goes_on_there(active_set, tmp_path):
    workdir, undisturbed = tmp_path / "killed", active_set[3]
    flags = (*SMALL, *ACTIVE, "--outer.check-every", "3", "--outer.checkpoint-seconds", "0")
    arguments = ("run", CONFIG, "--workdir", workdir, *flags)
    kill_when(lambda: any(path.name.isdigit() for path in workdir.glob("look/*")), *arguments)
    result = lljax_command(*arguments)
    assert result.returncode == 0, result.stderr
    assert "continuing within look at all examples, outer step 9, after" in result.stderr
    assert (workdir / "policy.npy").read_bytes() == (undisturbed / "policy.npy").read_bytes()
    laws = [
        json.loads((folder / "summary.json").read_text())["learning_law"]
        for folder in (workdir, undisturbed)
    ]
    assert laws[0] == laws[1]


def test_the_summary_is_true(finished):
    """Its numbers follow from policy.npy and the config, computed again through the public API."""
    import jax
    import jax.numpy as jnp
    import optax

    import lljax
    from lljax.data.teacher_student import make_teacher_student

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
                assert there["compression_ratio"] == pytest.approx(np.log(2) / float(auc), rel=1e-5)
            expected = float(lljax.acceleration_ratio(*curves.values()))
            ratio = summary[name]["acceleration_ratio"]
            assert ratio == (pytest.approx(expected) if np.isfinite(expected) else None)
    metrics = (workdir / "metrics.jsonl").read_text().splitlines()
    validation = [json.loads(line)["validation_auc"] for line in metrics]
    assert summary["best_outer_step"] == int(np.argmin(validation))
    assert set(summary["seconds"]) == {"compile", "optimize", "evaluate", "total"}
    assert summary["learning_law"]["optimized"]["optimality_gap"] >= 0


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
    result = lljax_command("run", CONFIG, "--workdir", workdir, *SMALL)
    assert result.returncode == 0
    assert "finished" in result.stderr
    assert result.stdout == finished[1].stdout  # the table
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_report_again_with_pdf(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    (workdir / "report.html").unlink()
    result = lljax_command("report", workdir, "--pdf")
    assert result.returncode == 0, result.stderr
    assert (workdir / "report.html").exists()
    assert list((workdir / "figures").glob("*.pdf"))


@pytest.mark.parametrize("memory", [pytest.param("offload", marks=pytest.mark.slow), "recompute"])
def test_where_states_are_kept_changes_no_bit(finished, tmp_path, memory):
    workdir = tmp_path / memory
    arguments = ("run", CONFIG, "--workdir", workdir, *SMALL, "--inner.memory", memory)
    result = lljax_command(*arguments)
    assert result.returncode == 0, result.stderr
    assert f"({memory})" in result.stderr
    assert (workdir / "policy.npy").read_bytes() == (finished[0] / "policy.npy").read_bytes()


@pytest.mark.parametrize(
    "segments",  # of 12
    [pytest.param(3, marks=pytest.mark.slow, id="forward"), pytest.param(9, id="backward")],
)
def test_killed_inside_an_outer_step_it_goes_on_inside(finished, tmp_path, segments):
    workdir = tmp_path / "killed"
    arguments = ("run", CONFIG, "--workdir", workdir, *SMALL, "--outer.checkpoint-seconds", "0")
    wanted = workdir / "sweep" / str(2 * 14 + segments)  # C + 1 = 7 states, twice a step
    kill_when(wanted.exists, *arguments)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    result = lljax_command(*arguments)
    assert result.returncode == 0, result.stderr
    assert "continuing within outer step 2, after" in result.stderr
    assert (workdir / "policy.npy").read_bytes() == (finished[0] / "policy.npy").read_bytes()
    assert not (workdir / "sweep").exists()


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("outer 0/8", marks=pytest.mark.slow),
        "outer 6/8",
        pytest.param("outer 8/8", marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again_the_policy_is_the_same_to_the_byte(finished, tmp_path, line):
    workdir = tmp_path / "killed"
    arguments = ("run", CONFIG, "--workdir", workdir, *SMALL)
    with start_to_be_killed(*arguments) as process:
        for printed in process.stderr:
            if printed.startswith(line):
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
        assert process.wait() == -signal.SIGKILL
    assert not (workdir / "policy.npy").exists() or line == "outer 8/8"
    result = lljax_command(*arguments)
    assert result.returncode == 0, result.stderr
    if line == "outer 6/8":
        # At most the outer step whose checkpoint was being written is done again.
        assert "continuing after outer step" in result.stderr
        done_again = [row for row in result.stderr.splitlines() if row.startswith("outer ")]
        assert len(done_again) <= 4
    for name in ("policy.npy", "config.json"):
        assert (workdir / name).read_bytes() == (finished[0] / name).read_bytes()
    lines = [
        [
            json.loads(row) | {"seconds": 0}
            for row in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (workdir, finished[0])
    ]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_killed_at_random_moments_until_it_is_done(finished, tmp_path):
    workdir, rng = tmp_path / "unlucky", np.random.default_rng(time.time_ns())
    often = ("--outer.checkpoint-seconds", "0")
    arguments = ("run", CONFIG, "--workdir", workdir, *SMALL, *often)
    for _ in range(12):
        with start_to_be_killed(*arguments, stderr=subprocess.DEVNULL) as process:
            time.sleep(rng.uniform(0.5, 8))
            process.kill()
    assert lljax_command(*arguments).returncode == 0
    assert (workdir / "policy.npy").read_bytes() == (finished[0] / "policy.npy").read_bytes()


def test_a_run_does_not_go_on_with_other_data(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "copy")
    (workdir / "report.html").unlink()
    (workdir / "data.json").write_text(json.dumps({"sha256": "of another text"}))
    result = lljax_command("run", CONFIG, "--workdir", workdir, *SMALL)
    assert_refused(result, "not those that the run", "data.path")


def test_a_stale_or_damaged_sweep_is_put_aside(tmp_path):
    from lljax.experiment.checkpoints import Checkpoints, SweepCheckpoints
    from lljax.experiment.meta_gradient import Sweep

    def new_sweep():
        leaf = np.zeros((3, 2), np.float32)
        return Sweep({"objective": leaf[:, 0]}, [leaf], [leaf[0]], leaf)

    outer = Checkpoints(tmp_path / "checkpoints", np.zeros(2))
    sweeps = SweepCheckpoints(tmp_path / "sweep", every=0)
    halfway = new_sweep()
    halfway.forward = 1
    sweeps.save_at_times(5, halfway, outer)
    assert sweeps.restore(5, new_sweep()).forward == 1
    assert sweeps.restore(4, new_sweep()) is None  # of another step
    sweeps.save_at_times(4, halfway, outer)
    assert sweeps.restore(4, new_sweep()).forward == 1
    (number,) = (tmp_path / "sweep").iterdir()
    for file in number.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    assert sweeps.restore(4, new_sweep()) is None
    sweeps.save_at_times(4, halfway, outer)
    assert sweeps.restore(4, new_sweep()).forward == 1


def assert_refused(result, *words, status=2):
    """One clear error and no traceback."""
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    # tyro draws a box around its messages.
    message = " ".join(result.stderr.replace("│", " ").split())
    for word in words:
        assert word in message, result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "configs/perzeptron.py"), ["no file", "Did you mean configs/perceptron.py"]),
        (("run",), ["needs a CONFIG"]),
        (("run", CONFIG, "--inner.num-step", "5"), ["--inner.num-steps"]),
        (("run", CONFIG, "--inner.num-steps", "many"), ["--inner.num-steps", "INT"]),
        (("run", CONFIG, "--inner.num-steps", "0"), ["inner.num_steps", "at least 1", "got 0"]),
        (("run", CONFIG, "--data.num-train", "0"), ["data.num_train", "at least 1"]),
        (("run", CONFIG, "--inner.learning-rate", "nan"), ["inner.learning_rate", "> 0"]),
        (("run", CONFIG, "--outer.method", "sgd"), ["projected_gradient"]),
        (("run", CONFIG, "--outer.smoothing", "-1"), ["outer.smoothing", "at least 0", "got -1"]),
        (("run", "README.md"), ["Python file"]),
        (("fly",), ["no command `fly`"]),
        (("report", "/nonexistent/folder"), ["/nonexistent/folder"]),
    ],
)
def test_wrong_input_gets_one_clear_error(arguments, words, tmp_path):
    if arguments[0] == "run" and len(arguments) > 2:
        arguments = (*arguments, "--workdir", tmp_path / "new")
    assert_refused(lljax_command(*arguments), *words)
    assert not list(tmp_path.iterdir())


def test_a_broken_config_file(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text("from lljax.experiment.config import *\ndef get_config(): return Inner()\n")
    assert_refused(lljax_command("run", config), "mine.py", "Inner")
    config.write_text(
        "from lljax.experiment.config import *\n"
        "def get_config(): return PerceptronConfig(inner=InnerConfig(steps=3))\n"
    )
    assert_refused(lljax_command("run", config), "mine.py", "steps")
    config.write_text("def get_config(): return {}\n")
    assert_refused(
        lljax_command("run", config),
        "must return a PerceptronConfig or a TransformerConfig",
        "dict",
    )


def test_anothers_workdir_is_not_touched(finished, tmp_path):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    result = lljax_command("run", CONFIG, "--workdir", workdir, *SMALL, "--seed", "5")
    assert_refused(result, "another config", "seed is 0 there and 5 here")
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before
    (tmp_path / "thesis.tex").write_text("precious")
    result = lljax_command("run", CONFIG, "--workdir", tmp_path, *SMALL)
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
    assert_refused(lljax_command("run", CONFIG, "--workdir", workdir, *SMALL), *words)
    assert (workdir / file).read_text() == content


def test_lost_checkpoints_do_not_cost_the_rest(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "lost")
    (workdir / "report.html").unlink()
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "metrics.jsonl").read_bytes()
    result = lljax_command("run", CONFIG, "--workdir", workdir, *SMALL)
    assert_refused(result, "checkpoints are missing")
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert list((workdir / "snapshots").iterdir())


def test_two_processes_do_not_share_a_workdir(tmp_path):
    arguments = ("run", CONFIG, "--workdir", tmp_path / "w", *SMALL, "--outer.num-steps", "2000")
    with subprocess.Popen(
        command(*arguments), stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        for printed in process.stderr:
            if printed.startswith("outer"):
                break
        assert_refused(lljax_command(*arguments), "another process")
        process.kill()


def test_a_damaged_checkpoint_is_refused(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "damaged")
    (workdir / "report.html").unlink()
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            path.write_bytes(b"\0" * 100)
    result = lljax_command("run", CONFIG, "--workdir", workdir, *SMALL)
    assert_refused(result, "checkpoint", "cannot be read")


def test_a_workdir_that_is_a_file():
    result = lljax_command("run", CONFIG, "--workdir", "README.md", *SMALL)
    assert_refused(result, "--workdir README.md cannot be read")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_workdir_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    result = lljax_command("run", CONFIG, "--workdir", tmp_path / "new", *SMALL)
    assert_refused(result, "cannot be written")


@pytest.mark.parametrize("rate", ["1e+06", "1e+38"])
def test_a_diverging_run_stops_with_the_step_and_the_cause(rate, tmp_path):
    workdir = tmp_path / "diverging"
    result = lljax_command(
        "run", CONFIG, "--workdir", workdir, *SMALL, "--inner.learning-rate", rate
    )
    assert_refused(result, "diverges", "inner step", f"inner.learning_rate ({rate})", status=1)
    assert (workdir / "config.json").exists()


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
    result = lljax_command("run", CONFIG, "--workdir", tmp_path / "w", *SMALL, *flags)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    desired = summary["desired"]
    assert desired["optimized"]["auc"] < desired["conventional"]["auc"]


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("report", "--help")])
def test_help_names_what_a_newcomer_needs(arguments):
    result = lljax_command(*arguments)
    assert result.returncode == 0
    assert "usage" in result.stdout.lower()
    assert ("CONFIG" if "report" not in arguments else "DIR") in result.stdout
