"""`lljax run` over several devices: the policy of one device, whatever the layout."""

import re

import jax
import numpy as np
import pytest
from command_line import ACTIVE, NOISY, call, read_metrics, run_without_report

from lljax.engine.placement import find_placement
from lljax.tasks.config import MeshConfig

LAYOUTS = {
    "eight": ("--mesh.devices", "8", "--inner.microbatch-size", "16"),
    "uneven": ("--mesh.devices", "3"),
    "split parameters": ("--mesh.devices", "4", "--mesh.params", "shard"),
    "spread states": ("--mesh.devices", "4", "--inner.memory", "spread"),
}
MORE_LAYOUTS = {
    "two": ("--mesh.devices", "2"),
    "off-loaded states": ("--mesh.devices", "4", "--inner.memory", "offload"),
    "recomputed states": ("--mesh.devices", "4", "--inner.memory", "recompute"),
}


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return run_without_report(tmp_path_factory.mktemp("one"), "--mesh.devices", 1)


def assert_same_run(workdir, expected, tolerance=1e-6):
    """The policy and its figures, to the rounding of float32."""
    policy, policy_of_one = (np.load(path / "policy.npy") for path in (workdir, expected))
    np.testing.assert_allclose(policy, policy_of_one, rtol=0, atol=tolerance)
    for line, of_one in zip(*map(read_metrics, (workdir, expected)), strict=True):
        assert line["accepted"] == of_one["accepted"]
        assert line["validation_auc"] == pytest.approx(of_one["validation_auc"], abs=1e-5)
        assert line["optimality_gap"] == pytest.approx(of_one["optimality_gap"], abs=1e-5)


def assert_same_analysis(workdir, expected):
    arrays, of_one = (np.load(path / "analysis.npz") for path in (workdir, expected))
    assert set(arrays) == set(of_one)
    for name in ("optimized_test_losses", "path_similarity", "heatmap_weights"):
        np.testing.assert_allclose(arrays[name], of_one[name], rtol=1e-3)


def assert_as_on_one_device(workdir, one_device, flags):
    run_without_report(workdir, *flags)
    assert f" x {flags[1]};" in (workdir / "log.txt").read_text()
    assert_same_run(workdir, one_device)
    assert_same_analysis(workdir, one_device)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_policy_of_one_device(tmp_path, one_device, layout):
    assert_as_on_one_device(tmp_path, one_device, LAYOUTS[layout])


@pytest.mark.slow
@pytest.mark.parametrize("layout", MORE_LAYOUTS)
def test_the_policy_of_one_device_in_more_layouts(tmp_path, one_device, layout):
    assert_as_on_one_device(tmp_path, one_device, MORE_LAYOUTS[layout])


def test_an_active_set(tmp_path):
    """Which examples are left out depends on the layout, and what comes of it does not."""
    flags = (*ACTIVE, "--outer.check-every", 1)
    one = run_without_report(tmp_path / "one", "--mesh.devices", 1, *flags)
    four = run_without_report(tmp_path / "four", "--mesh.devices", 4, *flags)
    assert_same_run(four, one)


def test_more_devices_than_there_are(tmp_path):
    result = call("run", "perceptron", "--workdir", tmp_path / "run", "--mesh.devices", 9)
    assert result.returncode == 2
    assert "mesh.devices must be at most 8" in result.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_default_device_may_be_a_platform():
    with jax.default_device("cpu"):
        assert find_placement(MeshConfig()).num_devices == 1


def test_continued_on_fewer_devices(tmp_path, one_device):
    """Elastic: what four devices began one device ends."""
    begun = run_without_report(tmp_path, "--mesh.devices", 4, "--outer.num-steps", 3)
    run_without_report(begun, "--mesh.devices", 1)
    assert "was on 4 devices and goes on with 1 device:" in (begun / "log.txt").read_text()
    assert_same_run(begun, one_device)


def test_plan_counts_on_one_device(tmp_path):
    """A quarter of the examples and of the policy."""
    sizes = {}
    for number in (1, 4):
        result = call("plan", "perceptron", "--inner.num-steps", 20, "--mesh.devices", number)
        assert result.returncode == 0, result.stderr
        assert (f"x {number}; memory is that of each of them" in result.stdout) == (number > 1)
        found = re.search(r"data \((\S+) MB\).* gradients \((\S+) kB", result.stdout)
        sizes[number] = [float(figure) for figure in found.groups()]
    assert sizes[4] == pytest.approx([size / 4 for size in sizes[1]], rel=0.01)


@pytest.mark.parametrize("batch_size", ["16", "None"])
def test_weights_over_drawn_runs(tmp_path, batch_size):
    """Static weights on batches, brought to where they are needed, and on all examples."""
    flags = [*NOISY, "--inner.batch-size", batch_size]
    policies = []
    for number in (1, 4):
        workdir = tmp_path / str(number)
        result = call("run", "noisy_labels", *flags, "--workdir", workdir, "--mesh.devices", number)
        assert result.returncode == 0, result.stderr
        assert (" x 4; files" in result.stderr) == (number == 4)
        policies.append(np.load(workdir / "policy.npy"))
    assert policies[0].std() > 0
    np.testing.assert_allclose(*policies, rtol=1e-4, atol=1e-7)
