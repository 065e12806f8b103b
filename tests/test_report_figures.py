"""The figures of a report: how they are found, what their captions count, odd data."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest
from workdirs import (
    BEST,
    LAW_STEPS,
    N,
    P,
    T,
    change_arrays,
    change_summary,
    forge_perceptron,
)

from lljax.artifacts import files, schema
from lljax.artifacts.results import load_results
from lljax.report import figures, style
from lljax.report.page import render
from lljax.report.sentences import headline, steps_to_match

SPECS = {spec.name: spec for spec in figures.FIGURES}
TRANSFER = SPECS["fig13_transfer"]
PERTURBED = SPECS["fig12_perturbed"]

NEW_FIGURE = """
from lljax.report.spec import FigureSpec
from lljax.report.style import panels


def _draw(results):
    figure, (axis,) = panels(1, 3.0)
    axis.plot(results.metrics["optimality_gap"])
    return figure


GAP = FigureSpec("fig00_gap", "Figure 0. The gap", (), _draw, lambda results: "It is a gap.")
"""


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Small pictures, for tests that only want them drawn."""
    monkeypatch.setitem(style.STYLE, "savefig.dpi", 40)


@pytest.fixture
def new_module(monkeypatch, tmp_path_factory):
    """Adds a module to the package of figures, without a file in the source tree."""
    folder = tmp_path_factory.mktemp("figures")
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(folder)])

    def add(name, text):
        (folder / f"{name}.py").write_text(text)
        # Set and not deleted, so that it is gone after the test.
        monkeypatch.setitem(sys.modules, f"{figures.__name__}.{name}", None)
        del sys.modules[f"{figures.__name__}.{name}"]

    return add


def test_figures_need_only_arrays_that_the_schema_has():
    for spec in figures.FIGURES:
        assert set(spec.needs) <= set(schema.ARRAYS), spec.name


def test_a_new_figure_is_a_new_module(workdir, new_module, monkeypatch):
    new_module("gap", NEW_FIGURE)
    found = figures.find_figures()
    assert [spec.name for spec in found] == ["fig00_gap", *SPECS]
    monkeypatch.setattr(figures, "FIGURES", found[:1])
    html = render(workdir).read_text(encoding="utf-8")
    assert "<b>Figure 0. The gap.</b> It is a gap." in html
    assert (workdir / "figures" / "fig00_gap.png").exists()


def test_two_figures_of_one_name_are_refused(new_module):
    new_module("again", NEW_FIGURE.replace("fig00_gap", "fig12_perturbed"))
    with pytest.raises(ValueError, match="two figures are called fig12_perturbed"):
        figures.find_figures()


def test_a_spec_that_is_imported_by_another_module_counts_once(new_module):
    new_module("borrowed", "from lljax.report.figures.weights import PERTURBED\n")
    assert figures.find_figures() == figures.FIGURES


def test_captions_hold_the_numbers_of_the_run(workdir):
    results = load_results(workdir)
    reached = steps_to_match(results.summary, "test")
    curve = results.arrays["optimized_test_losses"]
    final = results.arrays["conventional_test_losses"][-1]
    assert curve[reached] <= final < curve[reached - 1]
    captions = {
        name: spec.caption(results)
        for name, spec in SPECS.items()
        if spec not in (PERTURBED, TRANSFER)
    }
    assert f"after {reached} of {T} steps" in captions["fig05_loss_curves"]
    objective = captions["fig04_objective"]
    assert f"the best outer step, {BEST}, J on the validation set falls from" in objective
    assert "over-fits the desired examples" in objective
    assert "on 100\u00a0% of the losses" in captions["fig06_similarity_by_loss"]
    assert "4 of 4 intervals" in captions["fig07_similarity_by_ratio"]
    assert f"outer step {BEST} of" in headline(results)
    results.arrays["path_similarity"].fill(0.5)
    again = SPECS["fig07_similarity_by_ratio"].caption(results)
    assert again.endswith("SIM stays at 0.5000.")


def test_captions_say_the_settings_that_matter(workdir):
    change_summary(workdir, lambda summary: summary.update(zero_weight_threshold=0.002))
    config = forge_perceptron().config
    config["outer"]["train_share"] = 0.25
    files.write_json(workdir / schema.CONFIG_FILE, config)
    results = load_results(workdir)
    similarity = SPECS["fig06_similarity_by_loss"].caption(results).replace("\u00a0", " ")
    assert "the objective of this run: 75 % desired loss and 25 % training loss." in similarity
    excluded = SPECS["fig08_excluded_examples"].caption(results)
    assert "counts as zero if it is at most 0.002000 of the uniform one" in excluded


def test_the_caption_of_perturbed_examples_counts(lm_workdir):
    half = np.arange(N) < N / 2

    def change(arrays):
        arrays["perturbed"] = half
        arrays["total_weights"] = np.where(half, 0.005, 2.0)
        arrays["total_weights"][:100] = 2.0  # half of the perturbed ones: a tie with the clean
        arrays["perturbed_share"] = np.full((P, T), 0.5)
        arrays["perturbed_share"][-1, :20] = 0.8

    change_arrays(lm_workdir, change)
    caption = PERTURBED.caption(load_results(lm_workdir)).replace("\u00a0", " ")
    assert "200 of the 400 training examples (50 %) are perturbed" in caption
    assert "rises from 50 % to 53 %. Under the best policy it is 80 % over the first" in caption
    assert "hardly distinguishes them from clean ones" in caption
    assert "50 % of the perturbed and 0 % of the clean examples have less than" in caption
    assert "less weight in 75 % of cases" in caption
    change_arrays(lm_workdir, lambda arrays: arrays["perturbed_share"][-1].fill(0.7))
    assert "contrary to expectation" in PERTURBED.caption(load_results(lm_workdir))


@pytest.mark.parametrize("totals", ["uniform", "zero", "nan"])
def test_weights_without_spread_are_drawn(lm_workdir, totals):
    value = {"uniform": 1.0, "zero": 0.0, "nan": np.nan}[totals]
    change_arrays(lm_workdir, lambda arrays: arrays["total_weights"].fill(value))
    results = load_results(lm_workdir)
    figures.encode_figure(figures.draw_figure(PERTURBED, results), "png")
    assert "nan" not in PERTURBED.caption(results)


def test_one_kind_of_example_has_no_figure_of_its_weight(lm_workdir):
    change_arrays(lm_workdir, lambda arrays: arrays["perturbed"].fill(1))
    assert PERTURBED.reason_left_out(load_results(lm_workdir))


def test_the_conventional_and_the_best_policy_are_told_apart_without_colours(workdir):
    results = load_results(workdir)
    for name, panel in (
        ("fig06_similarity_by_loss", 0),
        ("fig08_excluded_examples", 1),
        ("fig09_learned_examples", 0),
    ):
        axis = figures.draw_figure(SPECS[name], results).axes[panel]
        lines = [line for line in axis.lines if len(line.get_xdata()) > 2]
        assert len(lines) == P
        assert [text.get_text() for text in axis.get_legend().texts] == ["conventional", "best"]
        assert [line.is_dashed() for line in lines] == [True] + [False] * (P - 1)
        assert lines[-1].get_linewidth() > 2 * lines[1].get_linewidth()


def test_steps_have_whole_ticks(lm_workdir):
    short = load_results(lm_workdir)
    metrics = {key: column[:3] for key, column in short.metrics.items()}
    short = dataclasses.replace(short, metrics=metrics)
    seen = 0
    for spec in SPECS.values():
        if spec.reason_left_out(short):
            continue
        for axis in figures.draw_figure(spec, short).axes:
            if axis.get_xlabel() in ("outer step", "inner step $t$") and axis.get_xscale() != "log":
                ticks = axis.get_xticks()
                assert np.array_equal(ticks, np.round(ticks)), (spec.name, ticks)
                seen += 1
    assert seen == 2 + 3 + 1 + 1 + 1


def test_panels_are_stacked_for_a_phone(lm_workdir):
    results = load_results(lm_workdir)
    for spec, panels in (("fig05_loss_curves", 3), ("fig08_excluded_examples", 2)):
        figure = figures.draw_figure(SPECS[spec], results)
        assert figures.stack_figure(figure)
        assert figure.get_figwidth() < 4.5
        figure.draw_without_rendering()
        width, height = figure.bbox.size
        # Colour bars are axes too; nothing is cut at the edge, and no panel covers another.
        boxes = [axis.get_tightbbox() for axis in figure.axes]
        assert all(box.x0 > -1 and box.x1 < width + 1 for box in boxes)
        assert all(box.y0 > -1 and box.y1 < height + 1 for box in boxes)
        for above, below in itertools.pairwise(boxes[:panels]):
            assert below.y1 < above.y0 + 1
        assert all(axis.get_ylabel() for axis in figure.axes)
    assert not figures.stack_figure(figures.draw_figure(SPECS["fig10_policy_heatmap"], results))


def test_the_law_at_some_steps_is_paired_with_the_losses_there(lm_workdir):
    results = load_results(lm_workdir)
    assert results.arrays["law_steps"].tolist() == LAW_STEPS.tolist()
    figure = figures.draw_figure(SPECS["fig06_similarity_by_loss"], results)
    line = figure.axes[0].lines[-1]
    expected = results.arrays["path_desired_losses"][-1, LAW_STEPS]
    np.testing.assert_array_equal(line.get_xdata(), expected)
