"""The page of a report and its files, from synthetic workdirs."""

import base64
import json
import re
import shutil

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from workdirs import (
    LAW_STEPS,
    STORY,
    change_arrays,
    change_summary,
    forge_language_model,
    forge_perceptron,
    png,
)

from lljax.artifacts import files, schema
from lljax.artifacts.schema import SETS
from lljax.errors import UserError
from lljax.report import figures
from lljax.report.page import render
from lljax.report.tables import summary_table


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """One workdir with its report, for the tests that only look."""
    workdir = forge_perceptron().write(tmp_path_factory.mktemp("rendered"))
    before = dict(matplotlib.rcParams)
    report = render(workdir, pdf=True)
    assert dict(matplotlib.rcParams) == before, "rendering must not change global style"
    return report


@pytest.fixture(scope="module")
def rendered_lm(tmp_path_factory):
    """The same of a language model."""
    return render(forge_language_model().write(tmp_path_factory.mktemp("rendered_lm")))


@pytest.fixture
def without_drawing(monkeypatch):
    """Text only: drawing eight figures is what takes the time."""
    monkeypatch.setattr(figures, "draw_figure", lambda spec, results: Figure())
    monkeypatch.setattr(figures, "encode_figure", lambda figure, kind: b"")


def read(report):
    return report.read_text(encoding="utf-8")


def test_every_figure_is_written_as_png_and_pdf(rendered):
    assert rendered == rendered.parent / "report.html"
    names = {spec.name for spec in figures.FIGURES}
    assert len(names) == 10
    names -= {"fig12_perturbed", "fig13_transfer"}
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        found = list((rendered.parent / "figures").glob(f"*.{kind}"))
        assert {file.stem for file in found} == names
        assert all(file.read_bytes().startswith(magic) for file in found)
    assert len(list(rendered.parent.rglob(".*"))) == 0, "temporary files must be gone"


def test_html_is_self_contained_and_complete(rendered):
    html = read(rendered)
    for loaded in re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'>]{0,30})", html):
        assert loaded.startswith("data:"), loaded
    assert not re.search(r"https?:|file:|url\(|@import|<script", html)
    of_steps = [spec for spec in figures.FIGURES if spec.name != "fig13_transfer"]
    assert html.count("<figure ") == len(of_steps) - 1
    assert "Figure 12. Weight of perturbed examples: left out, the training set does not" in html
    assert "cpu &lt;2 cores&gt;" in html
    assert "inner.learning_rate" in html
    assert str(rendered.parent) not in html
    shown = [html.index(f'id="{spec.name}"') for spec in of_steps]
    assert shown[:-1] == sorted(shown[:-1])


def test_figures_with_panels_have_a_stacked_picture_for_a_phone(rendered):
    html = read(rendered)
    stacked = re.findall(
        r'<source media="\(max-width: 40rem\)" width="(\d+)" srcset="([^"]*)">', html
    )
    assert len(stacked) == 3  # figures 4, 5 and 8
    for width, url in stacked:
        assert int(width) < 390
        assert base64.b64decode(url.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    # Five columns of numbers are what a phone has room for.
    for row in re.findall(r"<tr.*?</tr>", html):
        assert len(re.findall(r"<t[dh]\b", row)) <= 5


def test_what_is_needed_to_run_it_again(workdir, without_drawing):
    made = {
        "finished": "2026-03-01 12:00 UTC",
        "command": "lljax run perceptron --data.path 'https://host.org/a b.txt'",
        **{f"num_{name}": 7 + index for index, name in enumerate(SETS)},
        "num_train": 30,
    }
    change_summary(workdir, lambda summary: summary.update(made))
    digest = "0123456789abcdef" * 4
    (workdir / schema.DATA_FILE).write_text(json.dumps({"sha256": digest}))
    html = read(render(workdir))
    assert "30 training examples · 7 desired, 8 validation, 9 test examples · 200 inner" in html
    cells = dict(re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td></tr>', html))
    assert cells["finished"] == "2026-03-01 12:00 UTC"
    assert cells["command"] == made["command"].replace("'", "&#39;")
    assert cells["examples"] == "30 training, 7 desired, 8 validation, 9 test"
    assert cells["data, sha256"] == digest[:16]
    (workdir / schema.DATA_FILE).write_text("[")
    assert "data, sha256" not in read(render(workdir))


def test_terms_are_defined_where_they_first_stand(rendered):
    html = re.sub(r"<style>.*?</style>|base64,[^\"]*", "", read(rendered), flags=re.DOTALL)
    for term, definition in (
        ("loss AUC", "loss AUC (mean loss over the inner steps)"),
        ("CR", "CR, the compression ratio: log|V| divided by"),
        ("AR", "AR, the acceleration ratio: T divided by the first step"),
        ("CT", "contribution CT of a training example is the product of its gradient"),
        ("SIM", "SIM is the mean of the contributions divided by their standard deviation"),
    ):
        first = re.search(rf"\b{term}\b", html).start()
        assert html.find(definition) in range(first - 20, first + 1), term


def test_secrets_and_control_characters_of_old_workdirs_are_not_shown(workdir, without_drawing):
    config = forge_perceptron().config
    config["data"] = {
        "path": "https://me:secret@host.org/a.txt?token=secret#secret",
        "evil\x1b[31m<i>": "red\x1b[31m\u202e<i>",
    }
    files.write_json(workdir / schema.CONFIG_FILE, config)

    def spoil(summary):
        url = "https://me:secret@host.org/?secret"
        summary["facts"] = [f"from {url}\x1b[2J"]
        summary["command"] = f"lljax run x --data.path {url}\x07"
        summary["device"] = summary["task"] = "\x1b]0;title\x07\u202e<s>"
        summary["finished"] = "\x9b31m<u>"
        summary["versions"] = {"jax\x1b<q>": "1\x1b"}

    summary = change_summary(workdir, spoil)
    html = read(render(workdir))
    assert "secret" not in html
    assert "https://host.org/a.txt?..." in html
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    assert not re.search(r"<[isuq]>", html)
    table = summary_table(summary)
    assert table.isascii()
    assert table.replace("\n", "").isprintable()


@pytest.mark.slow
def test_no_pdf_unless_asked_for_and_same_bytes_again(workdir, rendered):
    report = render(workdir)
    assert not list(workdir.rglob("*.pdf"))
    assert report.read_bytes() == rendered.read_bytes()


def test_the_report_of_a_language_model(rendered_lm):
    html = read(rendered_lm)
    drawn = {spec.name for spec in figures.FIGURES}
    drawn -= {"fig09_learned_examples", "fig13_transfer"}
    assert {file.stem for file in (rendered_lm.parent / "figures").iterdir()} == drawn
    assert "left out, no training example is perfectly learned" in html
    assert "400 training examples · vocabulary of 5000 · 200 inner steps" in html
    assert f"Measured at {len(LAW_STEPS)} of the 200 inner steps." in html
    assert "from 25\u00a0% to 4.8\u00a0%: the policy turns away from them" in html


def test_the_word_kept_is_not_said_of_policies(rendered, rendered_lm):
    for report in (rendered, rendered_lm):
        assert not re.search(r"\bkept\b", re.sub(r"base64,[^\"]*", "", read(report)))


def test_facts_are_what_the_task_says_of_itself(lm_workdir, without_drawing):
    facts = ["28 × 28 pixels", "<b>bold\n</b>"]  # noqa: RUF001
    change_summary(lm_workdir, lambda summary: summary.update(facts=facts))
    html = read(render(lm_workdir))
    assert "examples · 28 × 28 pixels · &lt;b&gt;bold &lt;/b&gt; · 200 inner" in html  # noqa: RUF001
    assert "vocabulary" not in html
    change_summary(lm_workdir, lambda summary: summary.pop("facts"))
    assert "400 training examples · 200 inner steps" in read(render(lm_workdir))


def test_sample_texts_are_shown_without_harm(rendered_lm):
    html = read(rendered_lm)
    assert "Training examples with the largest and the smallest weight" in html
    assert html.count("<article>") == 10
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \ufffd\ufffd[31m \ufffd a b word" in html
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", html)
    assert "THE END" not in html, "long texts are cut"
    assert html.count('<span class="hit">perturbed</span>') >= 4


def test_sample_pictures_are_shown(lm_workdir, without_drawing):
    picture = png(np.arange(784).reshape(28, 28) % 256)
    samples = {
        "largest": [
            {"example": 3, "weight": 2.0, "image": picture},
            {"example": 4, "weight": 1.5, "image": picture, "text": STORY, "perturbed": True},
        ],
        "smallest": [{"example": 5, "weight": 0.0, "text": ""}],
    }
    files.write_samples(lm_workdir, samples)
    html = read(render(lm_workdir))
    shown = re.findall(r'<img class="picture" alt="([^"]*)" src="([^"]*)">', html)
    assert [alt for alt, _ in shown] == ["example 3", "example 4"]
    for _, url in shown:
        kind, content = url.split(";base64,")
        assert kind == "data:image/png"
        assert base64.b64decode(content) == base64.b64decode(picture)
    texts = re.findall(r'<p class="text" dir="auto">(.*)</p>', html)
    assert texts == [STORY.strip(), "(empty)"]
    assert "image-rendering: pixelated" in html


def test_improvements_have_the_signs_of_the_paper(workdir, without_drawing):
    html = read(render(workdir))
    cells = re.findall(r"<tr><th scope=\"row\">(?:B, steps|β)</th>.*<td>(.*)</td></tr>", html)
    assert cells == ["77.8\u00a0%", "1.7\u00a0%"]
    assert "So B improves by 77.8\u00a0% and β improves by 1.7\u00a0%." in html
    forge_perceptron(test_gain=1 / 30, test_beta=0.57).write(workdir)
    assert "B gets worse by 2900\u00a0% and β gets worse by 5" in read(render(workdir))
    change_summary(workdir, lambda summary: summary["scaling_law"]["optimized"].update(t0=3))
    html = read(render(workdir))
    assert "can only be compared roughly" in html
    assert "<td>270</td><td></td>" in html


def test_a_contrary_result_is_said(tmp_path, without_drawing):
    workdir = forge_perceptron(test_gain=0.5).write(tmp_path)
    html = read(render(workdir))
    assert "On the test set the optimised policy never reaches" in html
    assert "does not help on unseen examples" in html
    assert "worse than the conventional one" in html
    assert "part of it is over-fitting" in html
    change_summary(workdir, lambda summary: summary.update(best_outer_step=0))
    assert "No success" in read(render(workdir))


def test_null_and_nan_are_shown_as_such(lm_workdir):
    def spoil(summary):
        for name in SETS:
            summary[name]["acceleration_ratio"] = None
        summary["learning_law"]["optimized"]["similarity"] = None
        summary["scaling_law"]["optimized"] = None
        summary["perturbed"]["weight_share"]["optimized"] = None

    def spoil_arrays(arrays):
        for key in ("path_similarity", "path_similarity_curve", "optimized_test_losses"):
            arrays[key][..., -3:] = np.nan
        arrays["perturbed_share"][-1, :3] = np.nan
        arrays["path_compression_ratio"][-1] = np.nan

    summary = change_summary(lm_workdir, spoil)
    change_arrays(lm_workdir, spoil_arrays)
    # Not JSON, so lljax does not write it, but other programs do.
    summary["test"]["optimized"]["auc"] = float("nan")
    (lm_workdir / schema.SUMMARY_FILE).write_text(json.dumps(summary))
    html = read(render(lm_workdir))
    assert html.count(">AR never reached</td>") == 3
    assert "<td>-</td>" in html
    assert "No scaling law could be fitted to the optimised test losses" in html
    assert not re.search(r"\b(nan|None)\b", re.sub(r"base64,[^\"]*", "", html))
    assert "never reached" in summary_table(summary)
    assert "nan" not in summary_table(summary)


def test_a_path_of_one_policy_is_drawn(workdir):
    def shorten(arrays):
        for key in list(arrays):
            if key.startswith("path_"):
                arrays[key] = arrays[key][:1]

    change_arrays(workdir, shorten)
    change_summary(workdir, lambda summary: summary.update(best_outer_step=0))
    assert render(workdir).exists()


@pytest.mark.parametrize("how", ["absent", "zero"])
def test_a_figure_without_data_is_left_out_with_a_sentence(workdir, without_drawing, how):
    def drop(arrays):
        arrays["path_learned_counts"] *= 0
        if how == "absent":
            del arrays["path_learned_counts"], arrays["learned_edges"]

    render(workdir, pdf=True)
    assert (workdir / "figures" / "fig09_learned_examples.pdf").exists()
    change_arrays(workdir, drop)
    assert "left out, no training example is perfectly learned" in read(render(workdir))
    assert not list(workdir.glob("figures/fig09*")), "a stale figure would contradict the report"


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "analysis.npz", "samples.json"])
def test_a_damaged_workdir_leaves_the_old_report(lm_workdir, name):
    (lm_workdir / "report.html").write_text("old")
    (lm_workdir / name).write_bytes(b"\xff\x00[1]")
    with pytest.raises(UserError, match=re.escape(name)):
        render(lm_workdir)
    assert (lm_workdir / "report.html").read_text() == "old"
    assert not (lm_workdir / "figures").exists()


def test_a_report_that_cannot_be_written_is_a_sentence(workdir, without_drawing):
    (workdir / "figures").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="the report cannot be written to"):
        render(workdir)
    (workdir / "figures").unlink()
    shutil.rmtree(workdir)
    with pytest.raises(UserError, match="not a directory"):
        render(workdir)
