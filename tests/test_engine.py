"""The engine's pieces: saved sweeps, trackers, and the rule of an outer step."""

import functools
import struct

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro
from command_line import (
    ACTIVE,
    RUN,
    SMALL,
    assert_refused,
    call,
    read_metrics,
    run_process,
    run_without_report,
)
from problems import logistic_loss, make_logistic
from tensorboardX.proto import event_pb2

import lljax
from lljax.engine import trackers
from lljax.tasks import Experiment, meta_optimizer, perceptron
from lljax.tasks.build import build_problem
from lljax.tasks.perceptron import PerceptronConfig


def test_a_stale_or_damaged_sweep_is_put_aside(tmp_path, capsys):
    from lljax.engine.checkpoints import Checkpoints
    from lljax.engine.starts import HostStarts
    from lljax.engine.sweep_checkpoints import SweepCheckpoints
    from lljax.engine.sweep_state import Sweep

    def new_sweep():
        leaf = np.zeros((3, 2), np.float32)
        starts = HostStarts([leaf[0]], 3)
        return Sweep({"objective": leaf[:, 0]}, starts, [leaf[0]], leaf)

    policy, other = np.ones((2, 1)), np.full((2, 1), 2)
    state = lljax.build_step_control(lljax.projected_gradient(1.0)).begin(policy, 0.0, policy)
    outer = Checkpoints(tmp_path / "checkpoints", state, run={})
    sweeps = SweepCheckpoints(tmp_path / "sweep", every=0, run={"data": "a"})
    halfway = new_sweep()
    halfway.forward = 1

    def save(step):
        assert sweeps.restore(step, policy, new_sweep(), outer) is None
        sweeps.save_at_times(step, halfway, outer)

    def restored(step, policy=policy, sweeps=sweeps):
        return sweeps.restore(step, policy, new_sweep(), outer)

    save(5)
    assert restored(5).forward == 1
    assert restored(4) is None  # of another step
    save(4)
    assert restored(4).forward == 1
    assert restored(4, other) is None
    save(4)
    assert restored(4, sweeps=SweepCheckpoints(tmp_path / "sweep", 0, {"data": "b"})) is None
    assert "damaged" not in capsys.readouterr().err
    save(4)
    (number,) = (tmp_path / "sweep").iterdir()
    for file in number.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    assert restored(4) is None
    assert f"{number} is damaged" in capsys.readouterr().err
    save(4)
    assert restored(4).forward == 1


def test_each_start_of_a_segment_is_written_once(tmp_path, capsys):
    from lljax.engine.checkpoints import Checkpoints
    from lljax.engine.starts import HostStarts
    from lljax.engine.sweep_checkpoints import SweepCheckpoints
    from lljax.engine.sweep_state import Sweep

    def new_sweep(forward=0):
        leaf = np.zeros(2, np.float32)
        starts = HostStarts([leaf], 4)
        for index in range(forward + 1):
            starts[index] = [np.array([2 * index + 1, 2 * index + 2])]
        gradient = np.zeros((4, 2), np.float32)
        return Sweep({"objective": np.zeros(4)}, starts, [leaf], gradient, forward)

    policy = np.ones((2, 1))
    state = lljax.build_step_control(lljax.projected_gradient(1.0)).begin(policy, 0.0, policy)
    outer = Checkpoints(tmp_path / "checkpoints", state, run={})
    sweeps = SweepCheckpoints(tmp_path / "sweep", every=0, run={})
    assert sweeps.restore(3, policy, new_sweep(), outer) is None
    sweeps.save_at_times(3, new_sweep(1), outer)
    starts = tmp_path / "sweep_starts"
    before = {path.name: path.stat().st_mtime_ns for path in starts.iterdir()}
    assert set(before) == {"0", "1"}
    sweeps.save_at_times(3, new_sweep(2), outer)
    after = {path.name: path.stat().st_mtime_ns for path in starts.iterdir()}
    assert after == before | {"2": after["2"]}
    restored = SweepCheckpoints(tmp_path / "sweep", 0, {}).restore(3, policy, new_sweep(), outer)
    assert restored.forward == 2
    for index in range(4):
        np.testing.assert_array_equal(restored.starts[index], new_sweep(2).starts[index])
    for file in (starts / "1").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    again = SweepCheckpoints(tmp_path / "sweep", 0, {})
    assert again.restore(3, policy, new_sweep(), outer) is None
    assert f"{starts / '1'} is damaged and is not used" in capsys.readouterr().err
    assert not starts.exists()  # what is of no use is removed


def outer_steps(on_host, problem, active, num_steps):
    """The states of an optimisation, by the compiled loop or by a loop on the host."""
    policy, *data = problem
    method = lljax.exponentiated_gradient(2.0, momentum=0.5, cutoff=0.3)
    build = functools.partial(
        lljax.build_loss_auc, logistic_loss, optax.sgd(0.5), microbatch_size=4
    )
    whole = build(zero_weight="slope_only")
    part = build(zero_weight="omit") if active else None
    every = 3 if active else 1
    loop = lljax.build_outer_loop(whole, method, active_loss_auc=part, check_every=every)
    states = [jax.jit(loop.init)(policy, *data)]
    if not on_host:
        step = jax.jit(loop.step)
        for _ in range(num_steps):
            states.append(step(states[-1], *data))
        return states
    control = lljax.StepControl(*map(jax.jit, lljax.build_step_control(method)))
    gradients = {
        name: jax.jit(jax.value_and_grad(function, has_aux=True))
        for name, function in (("whole", whole), ("part", part))
        if function
    }
    for number in range(1, num_steps + 1):
        complete = number % every == 0

        def evaluate(policy, name="whole" if complete else "part"):
            (objective, info), gradient = gradients[name](policy, *data)
            return objective, lambda: (gradient, info.known_slopes)

        states.append(
            lljax.try_policy(
                control,
                states[-1],
                evaluate,
                lambda policy: (gradients["whole"](policy, *data)[1], None),
                complete=complete,
                choose=lljax.choose_on_host,
            )
        )
    return states


@pytest.mark.parametrize("active", [False, True])
def test_the_compiled_outer_step_and_the_one_on_the_host_follow_one_rule(active):
    _, *data = make_logistic(num_steps=5, num_train=40, num_desired=16)
    problem = lljax.uniform_policy(5, 40, jnp.float64), *data
    compiled, host = (outer_steps(on_host, problem, active, 12) for on_host in (False, True))
    accepted = [bool(state.accepted) for state in host[1:]]
    assert set(accepted) == {True, False}
    assert {bool(state.complete) for state in host} == ({True, False} if active else {True})
    for one, other in zip(compiled, host, strict=True):
        if other.known is None and active:  # the host's state begins without a mask
            assert one.known.all()
            other = other._replace(known=one.known)
        chex.assert_trees_all_close(one, other, rtol=1e-9, atol=1e-14)


@pytest.mark.slow
def test_a_run_takes_the_steps_of_optimize_policy(tmp_path):
    flags = (*ACTIVE, "--outer.check-every", "3")
    workdir = run_without_report(tmp_path / "run", *flags)
    lines = read_metrics(workdir)
    config = tyro.cli(PerceptronConfig, args=[*SMALL, *map(str, flags)], default=PerceptronConfig())
    with jax.enable_x64(False):
        problem = build_problem(Experiment(perceptron.TASK, config))
        build = functools.partial(
            lljax.build_loss_auc,
            problem.loss_fn,
            problem.optimizer,
            desired_loss_fn=problem.objective_loss_fn,
            microbatch_size=config.inner.microbatch_size,
        )
        result = lljax.optimize_policy(
            build(zero_weight="slope_only"),
            lljax.uniform_policy(60, 64),
            problem.params,
            problem.train,
            problem.objective,
            optimizer=meta_optimizer(config.outer),
            num_steps=8,
            active_loss_auc=build(zero_weight="omit"),
            check_every=3,
        )
    assert result.accepted.tolist() == [line["accepted"] for line in lines[1:]]
    objectives = [line["objective"] for line in lines]
    np.testing.assert_allclose(result.auc_history, objectives, rtol=1e-4)


def read_events(folder):
    """{(tag, step): value} of TensorBoard's files, by their own format."""
    found = {}
    for path in sorted(folder.iterdir()):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
            place += length + 16
    return found


OWN_TRACKER = """
from lljax.tasks.perceptron import PerceptronConfig

class Broken:
    def __init__(self, workdir, settings, first_step):
        self.path = workdir / "seen.txt"
        self.path.write_text(settings["task"] + str(first_step))

    def log(self, step, metrics):
        if step == 2:
            raise OSError("no more paper")
        with self.path.open("a") as file:
            file.write(f" {step}:{metrics['best']}")

    def close(self):
        with self.path.open("a") as file:
            file.write(" closed")
        raise OSError("said once already")

def get_config():
    return PerceptronConfig(trackers=("tensorboard", f"{__name__}:Broken"))
"""


@pytest.mark.slow
def test_trackers_get_the_metrics_and_cannot_stop_a_run(tmp_path):
    config, workdir = tmp_path / "own.py", tmp_path / "run"
    config.write_text(OWN_TRACKER)
    result = call("run", config, *SMALL, "--workdir", workdir)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("warning: the tracker lljax_config_own:Broken failed") == 1
    assert "no more paper" in result.stderr
    assert (workdir / "seen.txt").read_text() == "perceptron0 0:True 1:True closed"
    lines = read_metrics(workdir)
    assert len(lines) == 9
    events = read_events(workdir / "tensorboard")
    for line in lines:
        for name, value in line.items():
            if value is not None:
                seen = events[name, line["outer_step"]]
                assert seen == pytest.approx(float(value), rel=1e-5, abs=1e-9)


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path):
    pytest.importorskip("wandb")
    result = run_process(*RUN, tmp_path / "run", "--trackers", "wandb")
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    (record,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"validation_auc" in record.read_bytes()


@pytest.mark.parametrize(
    ("tracker", "words"),
    [
        ("tensorbord", ["no tracker tensorbord", "Did you mean tensorboard?"]),
        ("absent", ["needs the package no_such_package", "pip install 'lljax[absent]'"]),
        ("no_such_module:Tracker", ["no_such_module:Tracker cannot be imported", "PYTHONPATH"]),
        (":Tracker", [":Tracker cannot be imported"]),
    ],
)
def test_a_tracker_that_is_not_there_is_named_before_anything_runs(
    tmp_path, monkeypatch, tracker, words
):
    monkeypatch.setitem(trackers.TRACKERS, "absent", (trackers.TensorBoard, "no_such_package"))
    result = call(*RUN, tmp_path / "run", "--trackers", tracker)
    assert_refused(result, *words)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
