"""The benchmarks through their command lines, cut short: equal work is compared, and reported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def benchmark(name, *arguments):
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.parametrize("problem", ["perceptron", "transformer"])
def test_every_way_to_a_meta_gradient_gives_the_same(tmp_path, problem):
    ways = ["lljax", "scan", "scan, jax.checkpoint", "mixed-mode VJP", "TorchOpt"]
    flags = ("--problems", problem, "--steps", 2, "--repeats", 2, "--out", tmp_path)
    result = benchmark("meta_gradient", *flags, "--only", *ways)
    found = json.loads((tmp_path / "meta_gradient.json").read_text())
    assert list(found) == [problem]
    one = found[problem]
    assert set(ways[:4]) <= one["contenders"].keys() <= set(ways)
    for name, contender in one["contenders"].items():
        assert contender["error"] < 1e-5
        assert len(contender["seconds"]) == 2
        assert 0 < contender["share_of_peak"] < 1
        assert f"| {name} |" in result.stdout
    if "TorchOpt" not in one["contenders"]:
        assert "TorchOpt: left out. To have it: pip install torch" in result.stderr
    assert (tmp_path / "meta_gradient.png").stat().st_size > 5000
    assert one["machine"]["versions"]["jax"]


def test_every_method_races_the_recipe(tmp_path):
    flags = ("--problems", "perceptron_paper", "--inner-steps", 100, "--outer-steps", 5)
    result = benchmark("time_to_auc", *flags, "--out", tmp_path)
    one = json.loads((tmp_path / "time_to_auc.json").read_text())["perceptron_paper"]
    recipe = one["curves"].pop("public recipe, 0.001 falling")
    assert recipe["auc"][-1] < recipe["auc"][0]
    for name in set(one["curves"]) - set(one["recipes"]):
        auc, seconds = one["curves"][name]["auc"], one["curves"][name]["seconds"]
        assert auc[0] == recipe["auc"][0]
        assert auc == sorted(auc, reverse=True)
        assert seconds == sorted(seconds)
        assert len(auc) == 6
    assert one["curves"]["exponentiated gradient, momentum"]["auc"][-1] < recipe["auc"][-1]
    assert "The recipe's seconds are left out" in result.stdout
    assert (tmp_path / "time_to_auc.png").stat().st_size > 5000


def test_scaling_fits_exponents(tmp_path):
    benchmark("scaling", "--repeats", 1, "--only", "Perceptron: T", "--out", tmp_path)
    axis = json.loads((tmp_path / "scaling.json").read_text())["Perceptron: T"]
    assert axis["sizes"] == [250, 500, 1000, 2000]
    assert 0.7 < axis["exponent"] < 1.3
    assert axis["r_squared"] > 0.9


def test_memory_stays_flat_and_parts_are_kept(tmp_path):
    flags = ("--repeats", 1, "--budget-mb", 2, "--out", tmp_path)
    benchmark("memory", "--steps", 50, *flags)
    result = benchmark("memory", "--steps", 400, *flags)
    parts = json.loads((tmp_path / "memory.json").read_text())
    assert list(parts) == ["T = 50", "T = 400"]
    found = parts.values()
    for one in found:
        assert one["budget"]["projection"] == pytest.approx(one["stored"]["projection"], abs=1e-5)
    growth = [one[name]["temporary_mb"] for name in ("stored", "budget") for one in found]
    assert growth[1] - growth[0] > 5 * (growth[3] - growth[2])
    assert "| 400 | budget | RecomputeStates" in result.stdout
