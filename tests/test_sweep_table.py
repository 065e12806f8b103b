"""The table of a sweep, from synthetic workdirs."""

import json

import pytest
from test_report import change_summary, make_language_model, write_workdir

from lljax.experiment.sweep_table import rows, text_table


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    names = ("perceptron", "T200-N400-a-name-that-is-too-long", "worse", "running", "damaged")
    workdirs = {name: root / name for name in (*names, "nowhere")}
    for name in names:
        workdirs[name].mkdir()
        write_workdir(workdirs[name], test_gain=0.5 if name == "worse" else 5.0)
    make_language_model(workdirs[names[1]])
    worse = {"L0": 0.05, "B": 9e6, "beta": 0.57, "t0": 20, "r2": 0.9}
    change_summary(workdirs["worse"], lambda tree: tree["scaling_law"].update(optimized=worse))
    (workdirs["running"] / "summary.json").unlink()
    (workdirs["damaged"] / "analysis.npz").write_bytes(b"PK")
    return rows(workdirs)


def test_rows_hold_the_numbers_of_their_run(sweep):
    assert json.loads(json.dumps(sweep, allow_nan=False)) == sweep
    perceptron, model, worse, running, damaged, nowhere = sweep
    assert [row["status"] for row in sweep] == [
        *["finished"] * 3, "unfinished", "unreadable", "unreadable",
    ]  # fmt: skip
    assert (model["T"], model["N"], model["vocab_size"]) == (200, 400, 5000)
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
    assert (running["T"], running["N"]) == (200, None)
    assert "has not finished" in running["problem"]
    assert "analysis.npz" in damaged["problem"]
    assert "not a directory" in nowhere["problem"]


def test_text_table_fits_a_terminal(sweep):
    table = text_table(sweep)
    lines = table.splitlines()
    assert table.isascii()
    assert max(map(len, lines)) <= 100
    assert lines[2].split()[:4] == ["perceptron", "200", "-", "-"]
    assert lines[3].startswith("T200-N400-a-na..   200    400  5000")
    assert lines[3].endswith(" 4.8")
    assert "never" in lines[4]
    assert "-1e+08" in lines[4]
    assert lines[5].split() == ["running", "200", "-", "unfinished"]
    assert "damaged: " in table
    assert "running: " not in table, "an unfinished run is no error"


def test_a_table_without_rows():
    assert len(text_table([]).splitlines()) == 2
