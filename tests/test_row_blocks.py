"""Policies in the host's memory, in blocks of rows: the bits of those that are on the device."""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import (
    ACTIVE,
    RUN,
    assert_refused,
    assert_same_steps,
    call,
    kill_when,
    read_metrics,
    run_process,
    run_without_report,
)

import lljax
from benchmarks.two_processes import Cluster, finish
from lljax.artifacts.files import write_npy, write_npy_rows
from lljax.engine.digests import digest
from lljax.engine.placement import ONE_DEVICE, find_placement
from lljax.engine.policy_memory import InHosts, OnDevices
from lljax.engine.row_blocks import RowBlocks
from lljax.tasks.config import MeshConfig, OuterConfig, meta_optimizer

HOST = ("--policy.memory", "host")
# Blocks of four rows, and a last one of one row.
SHORT = ("--inner.num-steps", "13", "--inner.segments", "4", "--outer.num-steps", "3")
METHODS = {
    "momentum": ("--outer.cutoff", "0.3"),
    # Two rows on either side of a block, and six, which lie in blocks beyond the neighbours.
    "smoothed": ("--outer.smoothing", "2"),
    "smoothed widely": ("--outer.smoothing", "6"),
    "projected": ("--outer.method", "projected_gradient", "--outer.learning-rate", "0.3"),
}
SEGMENTS = [slice(0, 4), slice(4, 8), slice(8, 11)]


def assert_same_but_for_the_sum(workdir, expected):
    """All but the mean of the gaps, whose sum may be made in another order."""
    assert_same_steps(workdir, expected, "optimality_gap")
    for line, other in zip(*map(read_metrics, (workdir, expected)), strict=True):
        assert line["optimality_gap"] == pytest.approx(other["optimality_gap"], rel=1e-5)


def assert_same_run(workdir, expected):
    assert_same_but_for_the_sum(workdir, expected)
    arrays, others = (np.load(path / "analysis.npz") for path in (workdir, expected))
    assert set(arrays) == set(others)
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], others[name])


@pytest.fixture(scope="module")
def on_device(tmp_path_factory):
    return run_without_report(tmp_path_factory.mktemp("device"), *SHORT, *METHODS["momentum"])


def test_the_bits_of_a_policy_on_the_device(tmp_path, on_device):
    workdir = run_without_report(tmp_path, *SHORT, *METHODS["momentum"], *HOST)
    assert "policies in the host's memory" in (workdir / "log.txt").read_text()
    assert_same_run(workdir, on_device)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "momentum"])
def test_the_same_of_other_methods(tmp_path, method):
    flags = (*SHORT, *METHODS[method])
    workdirs = [
        run_without_report(tmp_path / where, *flags, "--policy.memory", where)
        for where in ("device", "host")
    ]
    assert_same_run(*workdirs)


@pytest.mark.parametrize("first", ["device", "host"])
def test_a_run_goes_on_where_its_policy_was_not_before(tmp_path, on_device, first):
    flags = (*SHORT, *METHODS["momentum"])
    second = {"device": "host", "host": "device"}[first]
    run_without_report(tmp_path, *flags, "--outer.num-steps", 2, "--policy.memory", first)
    run_without_report(tmp_path, *flags, "--policy.memory", second)
    assert "continuing after outer step 2" in (tmp_path / "log.txt").read_text()
    assert_same_but_for_the_sum(tmp_path, on_device)


def test_a_damaged_block_puts_its_checkpoint_aside(tmp_path, on_device):
    flags = (*SHORT, *METHODS["momentum"], *HOST)
    run_without_report(tmp_path, *flags, "--outer.num-steps", 2)
    block = tmp_path / "checkpoints_rows" / "10.npz"  # the third of four, of outer step 2
    content = bytearray(block.read_bytes())
    content[len(content) // 2] ^= 1
    block.write_bytes(content)
    run_without_report(tmp_path, *flags)
    log = (tmp_path / "log.txt").read_text()
    assert "checkpoints/2 is damaged and is not used: of its rows, " in log
    assert "continuing after outer step 1" in log
    assert_same_but_for_the_sum(tmp_path, on_device)


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def make_states(halo):
    """Of a policy in one piece, and in blocks: (the rules, a state, a gradient)."""
    optimizer = meta_optimizer(OuterConfig(smoothing=halo))
    rules = lljax.build_step_control(optimizer)
    policy = np.random.default_rng(1).dirichlet(np.ones(6), 11).astype(np.float32)
    gradients = random(2, 11, 6)
    whole = OnDevices((11, 6), ONE_DEVICE)
    blocks = InHosts(SEGMENTS, 6, ONE_DEVICE)
    made = []
    for memory in (whole, blocks):
        arrays = [policy, *gradients]
        if memory is blocks:
            arrays = [in_blocks(array) for array in arrays]
        control = memory.control(rules, halo)
        state = control.begin(arrays[0], jnp.float32(1), arrays[1])
        made.append((control, state, arrays[2]))
    return made


def in_blocks(array, placement=ONE_DEVICE):
    blocks = RowBlocks(SEGMENTS, array.shape[1], placement)
    for steps in SEGMENTS:
        blocks[steps] = array[steps]
    return blocks


def assert_same_state(state, expected):
    for leaf, other in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
        whole = np.concatenate([*leaf.whole_blocks()]) if isinstance(leaf, RowBlocks) else leaf
        np.testing.assert_array_equal(whole, other)


@pytest.mark.parametrize("halo", [0, 5])
def test_what_decides_is_the_same_for_all_blocks(halo):
    """A trial is taken, one whose gradient is not finite in one row is not, one is taken back."""
    states = []
    for control, state, gradient in make_states(halo):
        state = control.take(state, jnp.float32(0.9), gradient)
        states.append([state])
        broken = np.concatenate([*gradient]) if isinstance(gradient, RowBlocks) else gradient
        broken = np.array(broken)
        broken[9, 2] = np.nan
        if isinstance(gradient, RowBlocks):
            broken = in_blocks(broken)
        states[-1].append(control.take(state, jnp.float32(0.8), broken))
        states[-1].append(control.reject(state, jnp.float32(0.95)))
    for of_whole, of_blocks in zip(*states, strict=True):
        assert_same_state(of_blocks, of_whole)
    assert [bool(state.accepted) for state in states[1]] == [True, False, False]


@pytest.mark.parametrize("num_devices", [1, 3])
@pytest.mark.parametrize("num_columns", [6, 7])
def test_blocks_are_read_as_the_array_that_was_written(num_devices, num_columns):
    """On three devices six columns are shared out, and seven are not."""
    placement = find_placement(MeshConfig(devices=num_devices))
    array = random(11, num_columns)
    with placement.context():
        blocks = in_blocks(array, placement)
        for steps in (slice(0, 11), slice(3, 9), slice(5, 6), slice(4, 8), 0, 7, 10):
            np.testing.assert_array_equal(blocks[steps], array[steps])
        assert blocks.digest() == digest(array)
        parts = placement.to_host(blocks[4:8])
        whole = num_devices == 1 or num_columns == 7
        shape = (4, num_columns if whole else 2)
        assert [part.shape for part in parts.values()] == [shape] * (1 if whole else 3)


def test_a_file_of_blocks_is_the_file_of_the_array(tmp_path):
    array = random(11, 6)
    write_npy(tmp_path / "whole.npy", array)
    write_npy_rows(tmp_path / "blocks.npy", array.shape, array.dtype, (array[s] for s in SEGMENTS))
    assert (tmp_path / "blocks.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_several_devices_share_the_columns(tmp_path, on_device):
    flags = (*SHORT, *METHODS["momentum"], *HOST, "--mesh.devices", 4)
    workdirs = run_without_report(tmp_path, *flags), on_device
    policies = [np.load(workdir / "policy.npy") for workdir in workdirs]
    np.testing.assert_allclose(*policies, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((*ACTIVE, "--outer.check-every", "2"), ["policy.memory must be auto or device"]),
        (
            ("--inner.num-steps", "500000000", "--data.dim", "2"),
            ["6 policies in blocks of rows would take", "or start more processes"],
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, flags, words):
    result = call("run", "perceptron", "--workdir", tmp_path / "run", *flags, *HOST)
    assert_refused(result, *words)


def test_only_a_dense_policy_is_in_blocks(tmp_path):
    result = call("run", "noisy_labels", "--workdir", tmp_path / "run", *HOST)
    assert_refused(result, "policy.memory must be auto with policy.family static")


def test_plan_counts_the_blocks():
    """Six arrays [100, 4096] in the host, and rows of a segment on the device."""
    flags = ("--inner.num-steps", "100", "--outer.train-share", "0")
    result = call("plan", "perceptron", *flags, *HOST)
    assert result.returncode == 0, result.stderr
    assert "the host holds 6 policies, gradients and momenta in blocks of rows (1.64 MB each)" in (
        result.stdout
    )
    assert "policies and their gradients (164 kB each)" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("segments", [3, 9], ids=["forward", "backward"])  # of 12
def test_killed_inside_an_outer_step_it_goes_on_inside(tmp_path, segments):
    arguments = [(*RUN, tmp_path / name, *HOST) for name in ("undisturbed", "killed")]
    assert run_process(*arguments[0]).returncode == 0
    every_segment = (*arguments[1], "--outer.checkpoint-seconds", "0")
    kill_when((tmp_path / "killed" / "sweep" / str(2 * 14 + segments)).exists, *every_segment)
    result = run_process(*every_segment)
    assert result.returncode == 0, result.stderr
    assert "continuing within outer step 2, after" in result.stderr
    assert_same_run(tmp_path / "killed", tmp_path / "undisturbed")
    assert not (tmp_path / "killed" / "sweep_rows").exists()


@pytest.mark.slow
def test_two_processes_share_the_blocks_and_go_on_after_a_death(tmp_path):
    """A last block of one row, and gradients that are averaged over rows of other blocks."""
    flags = (*SHORT, *METHODS["smoothed"])
    expected = finish(tmp_path / "device", 1, 1, *flags)
    policy = finish(tmp_path / "host", 2, 2, *flags, *HOST)
    np.testing.assert_allclose(policy, expected, rtol=0, atol=1e-6)
    cluster = Cluster(tmp_path / "killed", 2, 2, *flags, *HOST)
    cluster.wait_for("outer 2/3")
    cluster.signal(1, signal.SIGKILL)
    assert cluster.wait([0]) == [1]
    np.testing.assert_array_equal(finish(tmp_path / "killed", 2, 2, *flags, *HOST), policy)
