"""The benchmarks through their command lines, cut short: equal work is compared, and reported."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import optax
import pytest

import lljax
from benchmarks.contenders import CONTENDERS, fits
from benchmarks.machine import PeakMemory
from benchmarks.problems import perceptron, transformer
from benchmarks.races import RACES
from benchmarks.worker import Worker, WorkerEndedError

ROOT = Path(__file__).parent.parent


def benchmark(name, *arguments, status=0):
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == status, result.stderr
    return result


@pytest.mark.parametrize("name", ["meta_gradient", "time_to_auc", "results"])
def test_a_wrong_checkout_is_refused_before_anything_is_measured(tmp_path, name):
    result = benchmark(name, "--public-code", tmp_path, status=2)
    assert f"{tmp_path} has no opt_policy_trainer.py" in result.stderr


def test_a_worker_that_dies_is_named():
    worker = Worker({"contender": "lljax", "problem": "perceptron", "sizes": {"num_steps": 1}})
    worker.read()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerEndedError, match=r"lljax: its process ended with status -9 \(killed"):
        worker.ask()
    worker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak may be hidden")
def test_peak_memory_counts_what_was_freed_before():
    def pieces():
        return [bytes(100_000) for _ in range(500)]

    before = pieces()
    end = before[-1]  # keeps the C library from giving the rest back by itself
    del before
    with PeakMemory() as peak:
        held = pieces()
    assert len(held) == 500
    assert len(end) == 100_000
    assert 45e6 < peak.bytes < 100e6


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (("--only", "lljax, micro-batches of 8"), 0, "perceptron: none of --only"),
        (("--repeats", "0"), 2, "--repeats: invalid positive value: '0'"),
    ],
)
def test_benchmarks_say_what_is_wrong(flags, status, words):
    result = benchmark("meta_gradient", "--problems", "perceptron", *flags, status=status)
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_flops_are_those_of_the_compiler():
    """Of one step with both sweeps; what is not a product of matrices is little."""
    for problem in (transformer(1, 8, 4, width=32, context=16, vocab_size=512), perceptron(1)):
        loss_auc = lljax.build_loss_auc(problem.loss_fn, optax.sgd(0.1))

        def objective(policy, params, train, desired, loss_auc=loss_auc):
            # With the gradient by theta_0 no part of the backward sweep is dead code.
            return loss_auc(policy, params, train, desired)[0]

        both = jax.jit(jax.grad(objective, argnums=(0, 1)))
        counted = both.lower(*problem.arguments).compile().cost_analysis()["flops"]
        assert counted == pytest.approx(problem.flops, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("problem", ["perceptron", "transformer"])
def test_every_way_to_a_meta_gradient_gives_the_same(tmp_path, problem):
    ways = [way for way in CONTENDERS if fits(way, problem) and not way.startswith("public")]
    flags = ("--problems", problem, "--steps", 2, "--repeats", 2, "--out", tmp_path)
    result = benchmark("meta_gradient", *flags, "--only", *ways)
    found = json.loads((tmp_path / "meta_gradient.json").read_text())
    assert list(found) == [problem]
    one = found[problem]
    peers = {"equinox, checkpointed": "equinox", "PyTorch": "torch", "TorchOpt": "torchopt"}
    assert set(ways) - set(peers) <= one["contenders"].keys() <= set(ways)
    for name, contender in one["contenders"].items():
        assert contender["error"] < 1e-5
        assert len(contender["seconds"]) == 2
        assert 0 < contender["share_of_peak"] < 1
        assert f"| {name} |" in result.stdout
    for name in set(ways) - one["contenders"].keys():
        assert f"{name}: left out. To have it: pip install" in result.stderr
        assert not importlib.util.find_spec(peers[name])
    assert (tmp_path / "meta_gradient.png").stat().st_size > 5000
    assert one["machine"]["versions"]["jax"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "inner_steps", "outer_steps", "stuck"),
    [
        ("perceptron_paper", 100, 5, set()),
        # With so few inner steps a slope weighs more, and this rate is too large for it.
        ("transformer_small", 4, 2, {"projected gradient"}),
    ],
)
def test_every_method_races_the_recipe(tmp_path, problem, inner_steps, outer_steps, stuck):
    flags = ("--inner-steps", inner_steps, "--outer-steps", outer_steps, "--out", tmp_path)
    result = benchmark("time_to_auc", "--problems", problem, *flags)
    one = json.loads((tmp_path / "time_to_auc.json").read_text())[problem]
    recipe = one["curves"][one["recipes"][0]]["auc"]
    if problem == "perceptron_paper":  # with a few inner steps the other's rate is too large
        assert recipe[-1] < recipe[0]
    ours = set(one["curves"]) - set(one["recipes"])
    assert ours == RACES[problem].methods.keys()
    for name in ours:
        auc, seconds = one["curves"][name]["auc"], one["curves"][name]["seconds"]
        assert auc[0] == recipe[0]
        assert auc[-1] < auc[0] or name in stuck
        assert auc == sorted(auc, reverse=True)
        assert seconds == sorted(seconds)
        assert len(auc) == outer_steps + 1
    assert one["curves"]["exponentiated gradient, momentum"]["auc"][-1] < recipe[-1]
    assert "The recipe's seconds are left out" in result.stdout
    assert (tmp_path / "time_to_auc.png").stat().st_size > 5000


@pytest.mark.slow
def test_scaling_fits_exponents(tmp_path):
    benchmark("scaling", "--repeats", 1, "--only", "Perceptron: T", "--out", tmp_path)
    axis = json.loads((tmp_path / "scaling.json").read_text())["Perceptron: T"]
    assert axis["sizes"] == [250, 500, 1000, 2000]
    assert 0.7 < axis["exponent"] < 1.3
    assert axis["r_squared"] > 0.9


@pytest.mark.slow
def test_memory_stays_flat_and_parts_are_kept(tmp_path):
    flags = ("--repeats", 1, "--budget-mb", 2, "--out", tmp_path)
    benchmark("memory", "--steps", 50, *flags)
    result = benchmark("memory", "--steps", 400, *flags)
    parts = json.loads((tmp_path / "memory.json").read_text())
    assert list(parts) == ["T = 50", "T = 400"]
    found = parts.values()
    for one in found:
        apart = abs(one["budget"]["projection"] - one["stored"]["projection"])
        assert apart <= 1e-5 * one["stored"]["norm"]
    growth = [one[name]["temporary_mb"] for name in ("stored", "budget") for one in found]
    assert growth[1] - growth[0] > 5 * (growth[3] - growth[2])
    assert "| 400 | budget | RecomputeStates" in result.stdout


@pytest.mark.slow
def test_compression_counts_bytes(tmp_path):
    flags = ("--seeds", 3, "--steps", 16, "--examples", 64, "--outer-steps", 2)
    result = benchmark("compression", *flags, "--out", tmp_path)
    found = json.loads((tmp_path / "compression.json").read_text())["seed 3"]
    assert found["text_bytes"] == 16 * 64
    assert found["desired_aucs"][-1] < found["desired_aucs"][0]
    for name in ("conventional", "optimised", "manual alone", "on itself"):
        method = found["methods"][name]
        assert abs(method["bytes"] - 49 - method["ideal"]) < 1e-3 * method["ideal"] + 8
    assert (tmp_path / "compression.png").exists()
    assert "| optimised | " in result.stdout


def test_scores_predict_retraining(tmp_path):
    flags = ("--only", "lds", "--cases", "rare words", "--subsets", "12", "--out", tmp_path)
    result = benchmark("attribution", *flags)
    found = json.loads((tmp_path / "attribution.json").read_text())["rare words"]
    assert found["auc, all"]["lds"] > 0.7
    assert "MAGIC" in result.stdout
