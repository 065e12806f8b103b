"""The files of a workdir: what the writer refuses to write and the reader to read."""

import json
import re

import numpy as np
import pytest
from workdirs import (
    BEST,
    LAW_STEPS,
    OUTER_STEPS,
    N,
    P,
    T,
    change_arrays,
    change_summary,
    forge_language_model,
    forge_perceptron,
    png,
)

from lljax.artifacts import files, schema
from lljax.artifacts.curation import OVER_RUNS
from lljax.artifacts.results import load_results
from lljax.artifacts.schema import SchemaError
from lljax.errors import UserError

FILES = ("config.json", "summary.json", "metrics.jsonl", "analysis.npz", "samples.json")


def damage_summary(folder, change):
    """Writes a summary that the schema does not allow."""
    summary = json.loads((folder / "summary.json").read_text())
    change(summary)
    (folder / "summary.json").write_text(json.dumps(summary))


def damage_arrays(folder, **changed):
    with np.load(folder / "analysis.npz") as archive:
        arrays = dict(archive)
    np.savez(folder / "analysis.npz", **(arrays | changed))


def test_the_forged_workdirs_hold_everything_that_the_schema_has():
    forged = (forge_perceptron(), forge_language_model())
    assert set().union(*(run.arrays for run in forged)) == set(schema.ARRAYS)
    for field in schema.SUMMARY:
        if field.required and field not in OVER_RUNS:  # tests/test_curation.py
            assert any(_has(run.summary, field.name) for run in forged), field.name
    assert list(forged[0].metrics[0]) == [column.name for column in schema.METRICS]


def _has(tree, name):
    try:
        schema.lookup(tree, name)
    except KeyError:
        return False
    return True


def test_every_axis_and_every_name_has_one_meaning():
    assert {axis for array in schema.ARRAYS.values() for axis in array.axes} == set(schema.AXES)
    for fields in (schema.CONFIG, schema.METRICS, schema.SUMMARY, schema.SAMPLE):
        names = [field.name for field in fields]
        assert len(set(names)) == len(names)
        assert all(field.meaning for field in fields)


def test_what_is_written_is_read_back(lm_workdir):
    results, forged = load_results(lm_workdir), forge_language_model()
    assert results.config == forged.config
    assert results.summary == forged.summary
    assert results.samples == forged.samples
    assert set(results.arrays) == set(forged.arrays)
    for name, array in forged.arrays.items():
        np.testing.assert_array_equal(results.arrays[name], array)
    assert results.metrics["outer_step"].tolist() == list(range(OUTER_STEPS + 1))
    assert results.metrics["desired_auc"][1] == forged.metrics[1]["desired_auc"]
    assert np.isnan(results.metrics["validation_acceleration_ratio"]).all()
    assert results.metrics["best"].sum() == BEST + 1
    assert results.best_row() == BEST
    assert (results.num_steps, results.num_train, results.vocab_size) == (T, N, 5000)


def test_a_workdir_without_optional_parts_is_read(workdir):
    results = load_results(workdir)
    assert results.arrays["law_steps"].tolist() == list(range(T))
    assert results.samples == {}
    assert (results.num_train, results.vocab_size) == (None, None)
    config = forge_perceptron().config | {"data": {"num_train": 7}}
    files.write_json(workdir / "config.json", config)
    assert load_results(workdir).num_train == 7
    change_summary(workdir, lambda summary: summary.update(num_train=8))
    assert load_results(workdir).num_train == 8


def test_a_repeated_outer_step_counts_once(workdir):
    line = {"outer_step": 3, "desired_auc": 0.5, "compression_ratio": 1.4, "validation_auc": None}
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    metrics = load_results(workdir).metrics
    assert metrics["outer_step"].tolist() == list(range(OUTER_STEPS + 1))
    assert metrics["desired_auc"][3] == 0.5
    assert np.isnan(metrics["validation_auc"][3])
    assert np.isnan(metrics["seconds"][3])


def test_the_name_that_the_desired_auc_had_before_is_read(workdir):
    path = workdir / "metrics.jsonl"
    expected = load_results(workdir).metrics["desired_auc"]
    path.write_text(path.read_text().replace('"desired_auc"', '"auc"'))
    np.testing.assert_array_equal(load_results(workdir).metrics["desired_auc"], expected)


def test_the_writer_refuses_a_wrong_summary(tmp_path):
    def refused(message, **changed):
        with pytest.raises(SchemaError, match=message):
            files.write_summary(tmp_path, forge_perceptron().summary | changed)

    refused("there is no `test.conventional.auc`", test={"conventional": {}})
    refused("`device` must be a text; got 3", device=3)
    refused("`facts` must be a list of texts", facts="vocabulary of 256")
    refused("`num_train` must be a whole number; got None", num_train=None)
    refused("`seconds` must be an object of numbers", seconds={"total": "long"})
    refused("there is no `perturbed.examples`", perturbed={})
    fits = {policy: {"B": "small"} for policy in schema.POLICIES}
    refused("`scaling_law.conventional.B` must be a number or null", scaling_law=fits)
    assert list(tmp_path.iterdir()) == []
    nothing = dict.fromkeys(schema.POLICIES)
    files.write_summary(tmp_path, forge_perceptron().summary | {"scaling_law": nothing})


def test_the_writer_refuses_wrong_arrays(tmp_path):
    def refused(message, **arrays):
        with pytest.raises(SchemaError, match=message):
            files.write_arrays(tmp_path, arrays, T)

    refused("no array `path_new`: add it to ARRAYS in lljax.artifacts.schema", path_new=np.ones(P))
    refused(
        r"`conventional_test_losses` .* \(T\+1\) = \(201,\)", conventional_test_losses=np.ones(T)
    )
    refused("`total_weights` must be numbers", total_weights=np.array(["heavy"]))
    counts = np.ones((P, 3))
    refused(r"`learned_edges` .* = \(4,\)", path_learned_counts=counts, learned_edges=np.ones(2))
    refused(r"shape \(P, S\)", path_similarity_curve=np.ones((P, 3)))
    refused("rising inner steps", heatmap_steps=np.array([3, 2]))
    assert list(tmp_path.iterdir()) == []


def test_the_writer_refuses_a_wrong_line_of_metrics():
    line = forge_perceptron().metrics[0]
    assert json.loads(files.metrics_line(line)) == line
    assert files.metrics_line(line).endswith("}\n")
    for message, wrong in (
        ("there is no `desired_auc`", {k: v for k, v in line.items() if k != "desired_auc"}),
        ("there is no `seconds`", {k: v for k, v in line.items() if k != "seconds"}),
        ("no column `auc`: add it to METRICS", line | {"auc": 0.1}),
        ("`outer_step` must be a whole number; got 1.5", line | {"outer_step": 1.5}),
        ("`best` must be true or false; got None", line | {"best": None}),
    ):
        with pytest.raises(SchemaError, match=message):
            files.metrics_line(wrong)
    with pytest.raises(ValueError, match="JSON"):
        files.metrics_line(line | {"objective": np.nan})


@pytest.mark.parametrize(
    ("message", "sample"),
    [
        ("`largest\\[0\\]` must have a `text` or an `image`", {"example": 1, "weight": 1.0}),
        ("`largest\\[0\\].text` must be a text", {"example": 1, "weight": 1.0, "text": None}),
        ("there is no `largest\\[0\\].weight`", {"example": 1, "text": "a"}),
        ("`largest\\[0\\].weight` must be a number", {"example": 1, "weight": None, "text": "a"}),
        ("must be true or false", {"example": 1, "weight": 1.0, "text": "a", "perturbed": 1}),
        ("`largest\\[0\\]` must be an object", ["a"]),
    ],
)
def test_a_wrong_sample_is_refused_by_writer_and_reader(workdir, message, sample):
    samples = {"largest": [sample], "smallest": []}
    with pytest.raises(SchemaError, match=message):
        files.write_samples(workdir, samples)
    (workdir / "samples.json").write_text(json.dumps(samples))
    with pytest.raises(UserError, match=r"samples\.json.*largest\[0\]"):
        load_results(workdir)


@pytest.mark.parametrize(
    "image",
    [
        "bm8gcGljdHVyZQ==",  # "no picture"
        png([[0]])[:-1],
        png([[0]]) + "\n",
        '"><script>alert(1)</script>',
        f"{png([[0]])}\u00e9",
        7,
    ],
)
def test_an_image_that_is_no_png_is_refused(workdir, image):
    samples = {"largest": [{"example": 1, "weight": 1.0, "image": png([[0, 255]])}], "smallest": []}
    files.write_samples(workdir, samples)
    assert load_results(workdir).samples == samples
    samples["largest"][0]["image"] = image
    with pytest.raises(SchemaError, match="must be a PNG picture in base64"):
        files.write_samples(workdir, samples)
    (workdir / "samples.json").write_text(json.dumps(samples))
    with pytest.raises(UserError, match=r"samples\.json: `largest\[0\]\.image` must be a PNG"):
        load_results(workdir)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (name, damage)
        for name in FILES
        for damage in ("missing", "empty", "half", "garbage")
        if (name, damage) != ("samples.json", "missing")  # a run may have none
    ],
)
def test_a_damaged_workdir_is_refused(lm_workdir, name, damage):
    path = lm_workdir / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        cut = content[: len(content) * 2 // 3 + 1]
        path.write_bytes({"empty": b"", "half": cut, "garbage": b"\xff\x00[1]"}[damage])
    with pytest.raises(UserError, match=re.escape(name)):
        load_results(lm_workdir)


def test_other_wrong_content_is_refused(workdir, tmp_path):
    with pytest.raises(UserError, match="not a directory"):
        load_results(tmp_path / "nowhere")
    damage_arrays(workdir, path_similarity=np.zeros(P + 1))
    with pytest.raises(UserError, match=r"`path_similarity` must be numbers of shape \(P\) = \(5,"):
        load_results(workdir)
    damage_summary(workdir, lambda summary: summary["test"]["optimized"].pop("auc"))
    with pytest.raises(UserError, match=r"summary\.json has no `test\.optimized\.auc`: it is half"):
        load_results(workdir)
    damage_summary(workdir, lambda summary: summary["test"]["optimized"].update(auc="0.1"))
    with pytest.raises(UserError, match=r"`test\.optimized\.auc` must be a number or null"):
        load_results(workdir)
    damage_summary(workdir, lambda summary: summary.update(inner_steps=0))
    with pytest.raises(UserError, match="`inner_steps` must be a positive integer; got 0"):
        load_results(workdir)
    (workdir / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="has no `task`"):
        load_results(workdir)


def test_wrong_content_of_a_language_model_is_refused(lm_workdir):
    for steps in (LAW_STEPS[::-1], LAW_STEPS + 1, LAW_STEPS[:0]):
        curves = np.zeros((P, len(steps)))
        damage_arrays(
            lm_workdir,
            law_steps=steps,
            path_similarity_curve=curves,
            path_zero_weight_curve=curves,
        )
        with pytest.raises(UserError, match="`law_steps` must be rising inner steps in 0"):
            load_results(lm_workdir)
    damage_arrays(lm_workdir, law_steps=LAW_STEPS)
    with pytest.raises(UserError, match=r"`path_similarity_curve` must be .* shape \(P, S\)"):
        load_results(lm_workdir)
    damage_summary(lm_workdir, lambda summary: summary["perturbed"].pop("weight_share"))
    with pytest.raises(UserError, match=r"no `perturbed\.weight_share\.conventional`"):
        load_results(lm_workdir)


def test_an_array_of_another_version_does_no_harm(workdir):
    damage_arrays(workdir, of_another_version=np.ones(3))
    assert "of_another_version" not in load_results(workdir).arrays
    change_arrays(workdir, lambda arrays: arrays.pop("of_another_version"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    files.write_atomically(path, b"old")
    with pytest.raises(TypeError):
        files.write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
