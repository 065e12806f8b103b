"""The report of an experiment, rendered from a synthetic workdir."""

import json
import re
import shutil

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from lljax.experiment import captions, figures
from lljax.experiment.errors import UserError
from lljax.experiment.report import render, summary_table, write_atomically
from lljax.experiment.results import POLICIES, SETS, load_results

T, P, H, M, G = 200, 5, 20, 64, 21
N, PERTURBED = 400, 0.25
LAW_STEPS = np.unique(np.geomspace(1, T, 30).astype(int)) - 1
OUTER_STEPS, KEPT = 12, 8
FILES = ("config.json", "summary.json", "metrics.jsonl", "analysis.npz", "samples.json")
HOSTILE = "<script>alert(1)</script> \x00\x1b[31m \ud800 a\n\nb " + "word " * 200 + "THE END"


def _acceleration(conventional, optimized):
    reached = np.flatnonzero(optimized[1:] <= conventional[-1])
    return float(T / (reached[0] + 1)) if reached.size else None


def write_workdir(workdir, test_gain=5.0):
    """A plausible perceptron run; `test_gain` below 1 makes the policy worse on the test set."""
    rng, t = np.random.default_rng(0), np.arange(T + 1)

    def curve(gain):
        return (0.05 + 0.6 * (1 + gain * t / 20) ** -0.6).astype(np.float32)

    gains = {"desired": 20.0, "validation": test_gain, "test": test_gain}
    arrays = {}
    for name, gain in gains.items():
        arrays[f"conventional_{name}_losses"] = curve(1.0)
        arrays[f"optimized_{name}_losses"] = curve(gain)
    path = np.linspace(0, 1, P)
    noise = 0.01 * rng.standard_normal((P, T))
    arrays |= {
        "path_outer_step": np.linspace(0, KEPT, P).round(),
        "path_compression_ratio": 2 + path,
        "path_similarity": 0.05 + 0.3 * path,
        "path_similarity_curve": 0.05 + 0.3 * path[:, None] + noise,
        "path_desired_losses": np.stack([curve(1 + 19 * p) for p in path]),
        "path_zero_weight_share": 0.8 * path,
        "path_zero_weight_curve": np.clip(0.8 * path[:, None] * np.ones(T) + noise, 0, 1),
        "learned_edges": np.linspace(0, 1, G),
        "path_learned_counts": rng.integers(1, 50, (P, G - 1)),
        "heatmap_steps": np.linspace(0, T - 1, H).round(),
        "heatmap_weights": rng.exponential(2, (H, M)) * (rng.random((H, M)) > 0.5),
    }
    arrays = {key: np.asarray(value, np.float32) for key, value in arrays.items()}
    np.savez(workdir / "analysis.npz", **arrays)

    def score(losses):
        auc = float(losses[1:].mean())
        ratio = float(np.log(2) / auc)
        return {"auc": auc, "final_loss": float(losses[-1]), "compression_ratio": ratio}

    summary = {
        "task": "perceptron",
        "seed": 0,
        "device": "cpu <2 cores>",
        "versions": {"jax": "0.10.2", "lljax": "0.1.0"},
        "inner_steps": T,
        "outer_steps": OUTER_STEPS,
        "best_outer_step": KEPT,
        "seconds": {"compile": 3.0, "optimize": 41.0, "evaluate": 2.0, "total": 46.0},
        "learning_law": {
            policy: {
                "similarity": similarity,
                "optimality_gap": gap,
                "zero_weight_share_of_noncontributive": share,
            }
            for policy, similarity, gap, share in zip(
                POLICIES, (0.05, 0.35), (0.01, 1e-4), (0.0, 0.8), strict=True
            )
        },
        "scaling_law": {
            "conventional": {"L0": 0.05, "B": 9.0, "beta": 0.6, "t0": 20, "r2": 0.998},
            "optimized": {"L0": 0.05, "B": 2.0, "beta": 0.61, "t0": 20, "r2": 0.999},
            "improvement": {"B": 0.78, "beta": 0.017},
        },
    }
    for name in SETS:
        pair = [arrays[f"{policy}_{name}_losses"] for policy in POLICIES]
        summary[name] = {
            **dict(zip(POLICIES, map(score, pair), strict=True)),
            "acceleration_ratio": _acceleration(*pair),
        }
    (workdir / "summary.json").write_text(json.dumps(summary))
    config = {
        "task": "perceptron",
        "seed": 0,
        "inner": {"num_steps": T, "learning_rate": 0.1},
        "outer": {"num_steps": OUTER_STEPS, "method": "exponentiated_gradient"},
        "data": {"label_noise": 0.3, "path": None},
    }
    (workdir / "config.json").write_text(json.dumps(config))
    with open(workdir / "metrics.jsonl", "w") as file:
        for step in range(OUTER_STEPS + 1):
            auc = 0.1 + 0.2 * 0.8**step
            row = {
                "outer_step": step,
                "auc": auc,
                "compression_ratio": float(np.log(2) / auc),
                "validation_auc": 0.2 + 0.001 * (step - KEPT) ** 2,
                "validation_acceleration_ratio": None,
                "desired_acceleration_ratio": 2.0,
                "optimality_gap": 0.01,
                "step_size": 1.0,
                "accepted": True,
                "best": step <= KEPT,
                "seconds": 0.5,
            }
            file.write(json.dumps(row) + "\n")


def make_language_model(workdir):
    """Turns the perceptron's workdir into one of a language model on perturbed texts."""
    rng = np.random.default_rng(1)
    totals = np.exp(rng.normal(0, 0.6, N))
    totals[: int(PERTURBED * N)] = np.exp(rng.normal(-4, 3, int(PERTURBED * N)))
    totals *= N / totals.sum()
    perturbed = np.arange(N) < PERTURBED * N
    share = PERTURBED * (1 - np.linspace(0, 0.9, P)[:, None] * np.linspace(1, 0.8, T))

    def change(arrays):
        for key in arrays:
            if key.endswith("_losses"):
                arrays[key] = (2.3 + 9.4 * (arrays[key] - 0.05)).astype(np.float32)
        for key in ("path_similarity_curve", "path_zero_weight_curve"):
            arrays[key] = arrays[key][:, LAW_STEPS]
        arrays["path_learned_counts"] *= 0
        arrays.update(
            law_steps=LAW_STEPS,
            perturbed=perturbed.astype(np.uint8),
            perturbed_share=share.astype(np.float32),
            total_weights=totals.astype(np.float32),
        )

    change_arrays(workdir, change)
    conventional, optimized = (float(share[row].mean()) for row in (0, -1))
    shares = {"conventional": conventional, "optimized": optimized}

    def tell(summary):
        summary.update(task="language_model", vocab_size=5000)
        summary["perturbed"] = {"examples": PERTURBED, "weight_share": shares}

    change_summary(workdir, tell)
    config = json.loads((workdir / "config.json").read_text())
    config |= {"task": "language_model", "data": {"num_train": N, "vocab_size": 5000}}
    (workdir / "config.json").write_text(json.dumps(config))
    order = np.argsort(totals)
    story = "Once upon a time there was a small dog who liked to look for bones in the garden. "
    samples = {
        name: [
            {
                "example": int(n),
                "weight": float(totals[n]),
                "perturbed": bool(perturbed[n]),
                "text": HOSTILE if i == 0 else story * (i % 3 + 1),
            }
            for i, n in enumerate(chosen)
        ]
        for name, chosen in (("largest", order[:-6:-1]), ("smallest", order[:5]))
    }
    (workdir / "samples.json").write_text(json.dumps(samples))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """One workdir with its report, for the tests that only look."""
    workdir = tmp_path_factory.mktemp("rendered")
    write_workdir(workdir)
    before = dict(matplotlib.rcParams)
    report = render(workdir, pdf=True)
    assert dict(matplotlib.rcParams) == before, "rendering must not change global style"
    return report


@pytest.fixture(scope="module")
def rendered_lm(tmp_path_factory):
    """The same of a language model."""
    workdir = tmp_path_factory.mktemp("rendered_lm")
    write_workdir(workdir)
    make_language_model(workdir)
    return render(workdir)


def _copy(source, target):
    for name in FILES:
        if (source / name).exists():
            shutil.copy(source / name, target / name)
    return target


@pytest.fixture
def workdir(tmp_path, rendered):
    return _copy(rendered.parent, tmp_path)


@pytest.fixture
def lm_workdir(tmp_path, rendered_lm):
    return _copy(rendered_lm.parent, tmp_path)


@pytest.fixture
def without_drawing(monkeypatch):
    """Text only: drawing eight figures is what takes the time."""
    monkeypatch.setattr(figures, "draw_figure", lambda spec, results: Figure())
    monkeypatch.setattr(figures, "encode_figure", lambda figure, kind: b"")


@pytest.fixture
def coarse(monkeypatch):
    """Small pictures, for tests that only want them drawn."""
    monkeypatch.setitem(figures.STYLE, "savefig.dpi", 40)


def change_summary(workdir, change):
    summary = json.loads((workdir / "summary.json").read_text())
    change(summary)
    (workdir / "summary.json").write_text(json.dumps(summary))
    return summary


def change_arrays(workdir, change):
    with np.load(workdir / "analysis.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(workdir / "analysis.npz", **arrays)


def test_every_figure_is_written_as_png_and_pdf(rendered):
    assert rendered == rendered.parent / "report.html"
    names = {spec.name for spec in figures.FIGURES}
    assert len(names) == 9
    names.remove("fig12_perturbed")
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        files = list((rendered.parent / "figures").glob(f"*.{kind}"))
        assert {file.stem for file in files} == names
        assert all(file.read_bytes().startswith(magic) for file in files)
    assert len(list(rendered.parent.rglob(".*"))) == 0, "temporary files must be gone"


def test_html_is_self_contained_and_complete(rendered):
    html = rendered.read_text(encoding="utf-8")
    for loaded in re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'>]{0,30})", html):
        assert loaded.startswith("data:"), loaded
    assert not re.search(r"https?:|file:|url\(|@import|<script", html)
    assert html.count("<figure ") == len(figures.FIGURES) - 1
    assert "Figure 12. Weight of perturbed examples: left out, the training set is not" in html
    assert "cpu &lt;2 cores&gt;" in html
    assert "inner.learning_rate" in html
    assert str(rendered.parent) not in html


def test_no_pdf_unless_asked_for_and_same_bytes_again(workdir, rendered):
    report = render(workdir)
    assert not list(workdir.rglob("*.pdf"))
    assert report.read_bytes() == rendered.read_bytes()


def test_the_report_of_a_language_model(rendered_lm):
    html = rendered_lm.read_text(encoding="utf-8")
    drawn = {spec.name for spec in figures.FIGURES} - {"fig09_learned_examples"}
    assert {file.stem for file in (rendered_lm.parent / "figures").iterdir()} == drawn
    assert "left out, no training example is perfectly learned" in html
    assert "400 training examples · vocabulary of 5000" in html
    assert f"Measured at {len(LAW_STEPS)} of the 200 inner steps." in html
    assert "from 25\u00a0% to 4.8\u00a0%: the policy turns away from them" in html


def test_sample_texts_are_shown_without_harm(rendered_lm):
    html = rendered_lm.read_text(encoding="utf-8")
    assert html.count("<article>") == 10
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; \ufffd\ufffd[31m \ufffd a b word" in html
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", html)
    assert "THE END" not in html, "long texts are cut"
    assert html.count('<span class="hit">perturbed</span>') >= 4


def test_the_caption_of_perturbed_examples_counts(lm_workdir):
    half = np.arange(N) < N / 2

    def change(arrays):
        arrays["perturbed"] = half
        arrays["total_weights"] = np.where(half, 0.005, 2.0)
        arrays["total_weights"][:100] = 2.0  # half of the perturbed ones: a tie with the clean
        arrays["perturbed_share"] = np.full((P, T), 0.5)
        arrays["perturbed_share"][-1, :20] = 0.8

    change_arrays(lm_workdir, change)
    caption = captions.perturbed_caption(load_results(lm_workdir)).replace("\u00a0", " ")
    assert "200 of the 400 training examples (50 %) are perturbed" in caption
    assert "rises from 50 % to 53 %; under the kept policy it is 80 % over the first" in caption
    assert "hardly tells them from clean ones" in caption
    assert "50 % of the perturbed and 0 % of the clean examples have less than" in caption
    assert "less weight in 75 % of cases" in caption
    change_arrays(lm_workdir, lambda arrays: arrays["perturbed_share"][-1].fill(0.7))
    assert "contrary to expectation" in captions.perturbed_caption(load_results(lm_workdir))


@pytest.mark.parametrize("totals", ["uniform", "zero", "nan"])
def test_weights_without_spread_are_drawn(lm_workdir, coarse, totals):
    value = {"uniform": 1.0, "zero": 0.0, "nan": np.nan}[totals]
    change_arrays(lm_workdir, lambda arrays: arrays["total_weights"].fill(value))
    results = load_results(lm_workdir)
    spec = figures.FIGURES[-1]
    figures.encode_figure(figures.draw_figure(spec, results), "png")
    assert "nan" not in spec.caption(results)


def test_one_kind_of_example_has_no_figure_of_its_weight(lm_workdir):
    change_arrays(lm_workdir, lambda arrays: arrays["perturbed"].fill(1))
    assert figures.FIGURES[-1].reason_left_out(load_results(lm_workdir))


def test_the_law_at_some_steps_is_paired_with_the_losses_there(lm_workdir):
    results = load_results(lm_workdir)
    assert results.arrays["law_steps"].tolist() == LAW_STEPS.tolist()
    figure = figures.draw_figure(figures.FIGURES[2], results)
    line = figure.axes[0].lines[-1]
    expected = results.arrays["path_desired_losses"][-1, LAW_STEPS]
    np.testing.assert_array_equal(line.get_xdata(), expected)


def test_a_workdir_without_law_steps_has_all(workdir):
    assert load_results(workdir).arrays["law_steps"].tolist() == list(range(T))


def test_improvements_have_the_signs_of_the_paper(workdir, without_drawing):
    html = render(workdir).read_text(encoding="utf-8")
    cells = re.findall(r"<tr><th scope=\"row\">(?:B, steps|β)</th>.*<td>(.*)</td></tr>", html)
    assert cells == ["77.8\u00a0%", "1.7\u00a0%"]
    assert "So B improves by 77.8\u00a0% and β improves by 1.7\u00a0%." in html
    worse = {"L0": 0.05, "B": 270.0, "beta": 0.57, "t0": 20, "r2": 0.9}
    change_summary(workdir, lambda summary: summary["scaling_law"].update(optimized=worse))
    assert "B gets worse by 2900\u00a0% and β gets worse by 5" in render(workdir).read_text("utf-8")
    change_summary(workdir, lambda summary: summary["scaling_law"]["optimized"].update(t0=3))
    html = render(workdir).read_text("utf-8")
    assert "compare loosely" in html
    assert "<td>270</td><td></td>" in html


def test_captions_hold_the_numbers_of_the_run(rendered):
    results = load_results(rendered.parent)
    summary = results.summary
    reached = captions.steps_to_match(summary, "test")
    curve = results.arrays["optimized_test_losses"]
    final = results.arrays["conventional_test_losses"][-1]
    assert curve[reached] <= final < curve[reached - 1]
    assert f"after {reached} of {T} steps" in captions.curves_caption(results)
    assert "over-fits the desired examples" in captions.objective_caption(results)
    assert "on 100\u00a0% of the losses" in captions.similarity_caption(results)
    assert "4 of 4 intervals" in captions.path_caption(results, "path_similarity", "SIM")
    results.arrays["path_similarity"].fill(0.5)
    assert captions.path_caption(results, "path_similarity", "SIM").endswith("SIM stays at 0.5000.")


def test_a_contrary_result_is_said(workdir, without_drawing):
    write_workdir(workdir, test_gain=0.5)
    html = render(workdir).read_text(encoding="utf-8")
    assert "On the test set the optimised policy never reaches" in html
    assert "does not help on unseen examples" in html
    assert "worse than the conventional one" in html
    assert "part of it is over-fitting" in html
    change_summary(workdir, lambda summary: summary.update(best_outer_step=0))
    assert "No success" in render(workdir).read_text(encoding="utf-8")


def test_null_and_nan_are_shown_as_such(lm_workdir, coarse):
    workdir = lm_workdir

    def spoil(summary):
        for name in SETS:
            summary[name]["acceleration_ratio"] = None
        summary["test"]["optimized"]["auc"] = float("nan")
        summary["learning_law"]["optimized"]["similarity"] = None
        summary["scaling_law"]["optimized"] = None
        summary["perturbed"]["weight_share"]["optimized"] = None

    def spoil_arrays(arrays):
        for key in ("path_similarity", "path_similarity_curve", "optimized_test_losses"):
            arrays[key][..., -3:] = np.nan
        arrays["perturbed_share"][-1, :3] = np.nan
        arrays["path_compression_ratio"][-1] = np.nan

    summary = change_summary(workdir, spoil)
    change_arrays(workdir, spoil_arrays)
    html = render(workdir).read_text(encoding="utf-8")
    assert html.count("<td>never reached</td>") == 3
    assert "<td>-</td>" in html
    assert "No scaling law could be fitted to the optimised test losses" in html
    assert not re.search(r"\b(nan|None)\b", re.sub(r"base64,[^\"]*", "", html))
    assert "never reached" in summary_table(summary)
    assert "nan" not in summary_table(summary)


def test_a_path_of_one_policy_is_drawn(workdir, coarse):
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
    html = render(workdir).read_text(encoding="utf-8")
    assert "left out, no training example is perfectly learned" in html
    assert not list(workdir.glob("figures/fig09*")), "a stale figure would contradict the report"


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
    workdir = lm_workdir
    (workdir / "report.html").write_text("old")
    path = workdir / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        cut = content[: len(content) * 2 // 3 + 1]
        path.write_bytes({"empty": b"", "half": cut, "garbage": b"\xff\x00[1]"}[damage])
    with pytest.raises(UserError, match=re.escape(name)):
        render(workdir)
    assert (workdir / "report.html").read_text() == "old"
    assert not (workdir / "figures").exists()


def test_other_wrong_content_is_refused(workdir, tmp_path):
    with pytest.raises(UserError, match="not a directory"):
        render(tmp_path / "nowhere")
    change_arrays(workdir, lambda arrays: arrays.update(path_similarity=np.zeros(P + 1)))
    with pytest.raises(UserError, match=r"`path_similarity` must be numbers of shape \(P\) = \(5,"):
        render(workdir)
    change_summary(workdir, lambda summary: summary["test"]["optimized"].pop("auc"))
    with pytest.raises(UserError, match=r"summary\.json has no `test\.optimized\.auc`"):
        render(workdir)
    change_summary(workdir, lambda summary: summary["test"]["optimized"].update(auc="0.1"))
    with pytest.raises(UserError, match=r"`test\.optimized\.auc` must be a number or null"):
        render(workdir)
    (workdir / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="has no `task`"):
        render(workdir)


def test_wrong_content_of_a_language_model_is_refused(lm_workdir):
    samples = {"largest": [], "smallest": [{"example": 1, "weight": 1.0, "text": None}]}
    (lm_workdir / "samples.json").write_text(json.dumps(samples))
    with pytest.raises(UserError, match=r"samples\.json: `smallest` must be a list of objects"):
        load_results(lm_workdir)
    for steps in (LAW_STEPS[::-1], LAW_STEPS + 1, LAW_STEPS[:0]):
        change_arrays(
            lm_workdir,
            lambda arrays, steps=steps: arrays.update(
                law_steps=steps,
                path_similarity_curve=np.zeros((P, len(steps))),
                path_zero_weight_curve=np.zeros((P, len(steps))),
            ),
        )
        with pytest.raises(UserError, match="`law_steps` must be rising inner steps in 0"):
            load_results(lm_workdir)
    change_arrays(lm_workdir, lambda arrays: arrays.update(law_steps=LAW_STEPS))
    with pytest.raises(UserError, match=r"`path_similarity_curve` must be .* shape \(P, S\)"):
        load_results(lm_workdir)
    change_summary(lm_workdir, lambda summary: summary["perturbed"].pop("weight_share"))
    with pytest.raises(UserError, match=r"no `perturbed\.weight_share\.conventional`"):
        load_results(lm_workdir)


def test_a_repeated_outer_step_counts_once(workdir):
    with open(workdir / "metrics.jsonl", "a") as file:
        row = {"outer_step": 3, "auc": 0.5, "compression_ratio": 1.4, "validation_auc": None}
        file.write(json.dumps(row) + "\n")
    metrics = load_results(workdir).metrics
    assert metrics["outer_step"].tolist() == list(range(OUTER_STEPS + 1))
    assert metrics["auc"][3] == 0.5
    assert np.isnan(metrics["validation_auc"][3])


def test_summary_table_fits_a_terminal(rendered):
    summary = json.loads((rendered.parent / "summary.json").read_text())
    table = summary_table(summary)
    assert table.isascii()
    assert max(map(len, table.splitlines())) <= 80
    assert f"{summary['test']['acceleration_ratio']:.2f}x" in table
    for name in SETS:
        assert name in table
    assert "perturbed" not in table


def test_summary_table_of_perturbed_examples(rendered_lm):
    table = summary_table(json.loads((rendered_lm.parent / "summary.json").read_text()))
    assert table.isascii()
    assert "perturbed       25 % -> 4.8 % of the weight" in table


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
