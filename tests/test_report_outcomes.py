"""What is said where a run shows less than its numbers seem to: in the terminal and on the page."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from workdirs import BEST, T, change_arrays, change_summary, forge_perceptron

from lljax.artifacts.curves import complete
from lljax.artifacts.results import load_results
from lljax.artifacts.schema import POLICIES, SETS
from lljax.report import figures
from lljax.report.page import render
from lljax.report.sweep_table import rows, text_table
from lljax.report.tables import summary_table
from lljax.scaling_law import fit_scaling_laws

LOSS_CURVES = next(spec for spec in figures.FIGURES if spec.name == "fig05_loss_curves")
STEPS = np.arange(T + 1)


@pytest.fixture
def html_of(monkeypatch):
    """The text of the page, without figures."""
    monkeypatch.setattr(figures, "draw_figure", lambda spec, results: Figure())
    monkeypatch.setattr(figures, "encode_figure", lambda figure, kind: b"")
    return lambda workdir: render(workdir).read_text(encoding="utf-8")


def forget_curves(summary):
    """Leaves what an earlier lljax wrote of the curves."""
    for name in SETS:
        del summary[name]["conventional_reaches_at"]
        for policy in POLICIES:
            del summary[name][policy]["best_loss"], summary[name][policy]["best_loss_step"]


def set_curve(workdir, policy, curve):
    """Gives a policy a loss curve on the test set; the numbers of summary.json follow it."""
    key = f"{policy}_test_losses"
    change_arrays(workdir, lambda arrays: arrays.update({key: np.float32(curve)}))

    def follow(summary):
        forget_curves(summary)
        summary["test"][policy]["final_loss"] = float(np.float32(curve[-1]))
        arrays = load_results(workdir).arrays
        summary.update(complete(summary, arrays))
        conventional, optimized = (arrays[f"{p}_test_losses"] for p in POLICIES)
        reached = np.flatnonzero(optimized[1:] <= conventional[-1])
        ratio = float(T / (reached[0] + 1)) if reached.size else None
        summary["test"]["acceleration_ratio"] = ratio

    return change_summary(workdir, follow)


def assert_fits_a_terminal(table, width=80):
    assert table.isascii()
    assert max(map(len, table.splitlines())) <= width


def test_where_the_conventional_policy_is_the_best_one_that_is_said(workdir, html_of):
    def fail(summary):
        summary["best_outer_step"] = 0
        for name in SETS:
            summary[name]["optimized"] = summary[name]["conventional"]
            summary[name]["acceleration_ratio"] = 25.0  # as an earlier lljax wrote it

    def same(arrays):
        for name in SETS:
            arrays[f"optimized_{name}_losses"] = arrays[f"conventional_{name}_losses"]

    summary = change_summary(workdir, fail)
    change_arrays(workdir, same)
    table = summary_table(summary)
    assert_fits_a_terminal(table)
    assert table.count("1.00x") == 3
    assert "No success: no outer step has a smaller validation loss AUC" in table
    (row,) = rows({"run": workdir})
    assert (row["success"], row["test_acceleration_ratio"]) == (False, 1.0)
    table = text_table([row])
    assert_fits_a_terminal(table, 100)
    assert re.search(r"  1.00    1.00 .*   no success ", table)
    assert "no success: no policy has a smaller validation loss AUC" in table
    html = html_of(workdir)
    assert html.count(">AR 1.00×</td>") == 3  # noqa: RUF001
    assert "No success: both curves are the same, so AR is 1." in html
    assert "every acceleration is 1.00" in html
    for text in (html, table):
        assert "25.00" not in text
        assert "overstate" not in text


@pytest.mark.parametrize("written_by", ["this lljax", "an earlier one"])
def test_an_acceleration_over_an_oscillating_curve_is_said_to_overstate(
    workdir, html_of, written_by
):
    wave = 1 - STEPS / 2000 + 0.3 * np.cos(STEPS * np.pi / 12)
    step = 1 + int(np.argmax(wave[1:] <= wave[-1]))
    assert step < 20
    summary = set_curve(workdir, "conventional", wave)
    if written_by == "an earlier one":
        change_summary(workdir, forget_curves)
    else:
        table = summary_table(summary)
        assert_fits_a_terminal(table)
        assert f"AR overstates: conventional test loss is as low as its end at step {step}" in table
        assert table.count("AR overstates") == 1
    html = html_of(workdir)
    reached = round(T / summary["test"]["acceleration_ratio"])
    sentence = (
        f"The conventional test loss itself is at its final value already after step {step} of "
        f"{T}: AR overstates. Counted from that step it is {step / reached:.2f}×."  # noqa: RUF001
    )
    assert html.count(sentence) == 3  # in the headline, below the table, in Figure 5's caption
    assert html.count(", overstated</td>") == 1
    (row,) = rows({"run": workdir})
    assert row["test_conventional_reaches_at"] == step
    assert row["desired_conventional_reaches_at"] is None
    table = text_table([row])
    assert_fits_a_terminal(table, 100)
    assert " ~200 " in table
    assert "\n~ AR overstates" in table
    titles = [axis.get_title("right") for axis in LOSS_CURVES.draw(load_results(workdir)).axes]
    assert titles[2].endswith("overstated") == (written_by == "this lljax")
    assert "overstated" not in titles[0]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_loss_that_rises_at_the_end_is_said_with_numbers(workdir, html_of, policy):
    name = {"conventional": "conventional", "optimized": "optimised"}[policy]
    curve = 0.1 + ((STEPS - 120) / 200) ** 2
    table = summary_table(set_curve(workdir, policy, curve))
    assert_fits_a_terminal(table)
    assert f"{name.capitalize()} test loss rises: 0.1000 at step 120, 0.2600 at the end" in table
    sentence = (
        f"The {name} test loss rises from 0.1000, its smallest value, at step 120, to 0.2600 at "
        "the end."
    )
    assert sentence in LOSS_CURVES.caption(load_results(workdir))
    html = html_of(workdir)
    assert html.count(sentence) == 3
    assert "<td>0.2600</td><td>0.1000</td>" in html
    set_curve(workdir, policy, 1 + STEPS / 200)
    assert f"The {name} test loss rises from 1, its start, to 2 at the end." in html_of(workdir)


def test_nothing_is_said_of_losses_that_fall(workdir, html_of):
    for text in (html_of(workdir), summary_table(load_results(workdir).summary)):
        assert not re.search("overstate|rises from .* at the end|No success", text)
    assert len(text_table(rows({"run": workdir})).splitlines()) == 3


@pytest.mark.parametrize("damage", ["exponential", "remote", "absent"])
def test_a_gain_is_withheld_where_the_losses_follow_no_scaling_law(workdir, html_of, damage):
    if damage == "exponential":
        curve = 0.05 + 0.6 * np.exp(-STEPS / 60)
        set_curve(workdir, "optimized", curve)
        arrays = load_results(workdir).arrays
        laws = fit_scaling_laws([arrays[f"{policy}_test_losses"] for policy in POLICIES])
        fits = {policy: law._asdict() for policy, law in zip(POLICIES, laws, strict=True)}
        change_summary(workdir, lambda summary: summary["scaling_law"].update(fits))
        reason = r"the losses do not follow the law \(r2 = 0.9\d\d\) \(optimised policy\)"
    elif damage == "remote":
        curve = (2.5e19 / np.maximum(STEPS, 1)) ** 0.05

        def follow(summary):
            law = {"L0": 0.0, "B": 2.5e19, "beta": 0.05, "t0": 20, "r2": 1.0}
            summary["scaling_law"] |= {
                "conventional": law,
                "optimized": law | {"B": 2.5e12},
            }

        for policy, factor in (("conventional", 1), ("optimized", 1e-7**0.05)):
            set_curve(workdir, policy, curve * factor)
        change_summary(workdir, follow)
        reason = r"B = 2.5e\+19 steps is so far from the run's 200 .* \(conventional policy\)"
    else:
        change_arrays(workdir, lambda arrays: arrays.pop("optimized_test_losses"))
        reason = r"the run did not record the test losses \(optimised policy\)"
    sentence = rf"No improvement is given: {reason}"
    html = html_of(workdir).replace("&#39;", "'")
    assert re.search(sentence, html)
    assert len(re.findall(r"<th scope=.row.>(?:B, steps|β)</th>.*<td>-</td></tr>", html)) == 2
    assert not re.search(r"improves by|So B", html)
    (row,) = rows({"run": workdir})
    assert (row["improvement_B"], row["improvement_beta"]) == (None, None)
    assert re.search(sentence, row["improvement_withheld"])
    table = text_table([row])
    assert_fits_a_terminal(table, 100)
    assert "gain -: the losses follow no scaling law" in table


def test_a_policy_that_is_better_gains(workdir):
    (row,) = rows({"run": workdir})
    assert row["success"] is True
    assert row["improvement_B"] == pytest.approx(7 / 9)
    assert row["improvement_withheld"] is None
    assert load_results(workdir).summary["best_outer_step"] == BEST
    forge_perceptron(test_gain=1e-3, test_beta=0.6).write(workdir)
    (row,) = rows({"run": workdir})
    assert row["improvement_B"] == pytest.approx(-999)
