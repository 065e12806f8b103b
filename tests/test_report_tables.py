"""The tables of one run and of a sweep, from synthetic workdirs."""

import json

import pytest
from workdirs import BEST, OUTER_STEPS, N, T, forge_language_model, forge_perceptron

from lljax.artifacts.schema import SETS
from lljax.report.sweep_table import rows, text_table
from lljax.report.tables import summary_table


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    runs = {
        "perceptron": forge_perceptron(),
        "T200-N400-a-name-that-is-too-long": forge_language_model(),
        "worse": forge_perceptron(test_gain=0.5),
        "running": forge_perceptron(),
        "damaged": forge_perceptron(),
    }
    for name, run in runs.items():
        run.write(root / name)
    (root / "running" / "summary.json").unlink()
    (root / "damaged" / "analysis.npz").write_bytes(b"PK")
    return rows({name: root / name for name in (*runs, "nowhere")})


def test_summary_table_fits_a_terminal():
    summary = forge_perceptron().summary
    table = summary_table(summary)
    assert table.isascii()
    assert max(map(len, table.splitlines())) <= 80
    assert table.startswith(
        f"perceptron, seed 0: T = {T} inner steps, best outer step {BEST} of {OUTER_STEPS}\n"
    )
    assert f"{summary['test']['acceleration_ratio']:.2f}x" in table
    for name in SETS:
        assert name in table
    assert "perturbed" not in table
    assert "acceleration AR: T / the first inner step at the conventional final loss" in table
    assert "mean / deviation of the contributions" in table
    assert "overstates" not in table


def test_summary_table_of_perturbed_examples():
    table = summary_table(forge_language_model().summary)
    assert table.isascii()
    assert "perturbed       25 % -> 4.8 % of the weight" in table


def test_rows_hold_the_numbers_of_their_run(sweep):
    assert json.loads(json.dumps(sweep, allow_nan=False)) == sweep
    perceptron, model, worse, running, damaged, nowhere = sweep
    assert [row["status"] for row in sweep] == [
        *["finished"] * 3, "unfinished", "unreadable", "unreadable",
    ]  # fmt: skip
    assert (model["T"], model["N"], model["vocab_size"]) == (T, N, 5000)
    assert model["perturbed_examples"] == 0.25
    assert 0 < model["perturbed_weight_share"] < 0.1
    assert perceptron["vocab_size"] is None
    assert perceptron["perturbed_weight_share"] is None
    assert perceptron["improvement_B"] == pytest.approx(7 / 9)
    assert perceptron["improvement_beta"] == pytest.approx(0.01 / 0.6)
    assert perceptron["conventional_r2"] == 0.998
    assert perceptron["test_acceleration_ratio"] > 1
    assert perceptron["optimized_test_auc"] < perceptron["conventional_test_auc"]
    assert worse["test_acceleration_ratio"] is None
    assert (running["T"], running["N"]) == (T, None)
    assert "has not finished" in running["problem"]
    assert "analysis.npz" in damaged["problem"]
    assert "not a directory" in nowhere["problem"]


def test_the_number_of_examples_is_what_the_run_recorded(tmp_path):
    run = forge_perceptron()
    run.config["data"]["num_train"] = 30
    run.write(tmp_path)
    assert rows({"run": tmp_path})[0]["N"] == 30
    run.summary["num_train"] = 29
    run.write(tmp_path)
    assert rows({"run": tmp_path})[0]["N"] == 29
    (tmp_path / "summary.json").unlink()
    assert rows({"run": tmp_path})[0]["N"] == 30


def test_text_table_fits_a_terminal(sweep):
    table = text_table(sweep)
    lines = table.splitlines()
    assert table.isascii()
    assert max(map(len, lines)) <= 100
    assert lines[2].split()[:4] == ["perceptron", "200", "-", "-"]
    assert lines[3].startswith("T200-N400-a-na..   200    400  5000")
    assert lines[3].endswith(" 4.8")
    assert "never" in lines[4]
    assert lines[4].split()[-5:-3] == ["-100.0", "1.7"]
    assert lines[5].split() == ["running", "200", "-", "unfinished"]
    assert "damaged: " in table
    assert "running: " not in table, "an unfinished run is no error"


def test_a_gain_of_many_orders_of_magnitude_fits_its_column(sweep):
    (line,) = text_table([sweep[0] | {"improvement_B": -1e6}]).splitlines()[2:]
    assert "-1e+08" in line
    assert len(line) == len(text_table(sweep[:1]).splitlines()[2])


def test_a_table_without_rows():
    assert len(text_table([]).splitlines()) == 2
