"""What README and docs show is true: names and files exist, and code runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import call, settings_of_a_user

import lljax
from lljax.artifacts.results import Results
from lljax.report import figures

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_the_table_of_functions_is_complete():
    table = "".join(line for line in README.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`(\w+)", table))
    functions = {name for name in lljax.__all__ if name[0].islower()}
    assert functions - named <= {"scaling_law_improvement"}


def test_files_and_make_targets_exist():
    for folder, text in ((ROOT, README), (ROOT / "docs", EXTENDING)):
        for path in re.findall(r"\]\(((?!http|#)[^)]+)\)", text):
            file, _, anchor = path.partition("#")
            assert (folder / file).exists(), path
            headings = re.findall(r"^#+ (.*)", (folder / file).read_text(), re.M) if anchor else ()
            assert not anchor or anchor in {h.lower().replace(" ", "-") for h in headings}, path
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make (\w+)`?", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_map_names_every_file():
    package = ROOT / "lljax"
    named = set(re.findall(r"`([\w/]+\.py)`", EXTENDING.split("\n## What each file does\n")[1]))
    found = {path.relative_to(package).as_posix() for path in package.rglob("[!_]*.py")}
    assert named == {name for name in found if not name.startswith("report/figures/")}


def blocks_of(heading):
    """The Python of one section of docs/extending.md."""
    section = EXTENDING.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.mark.parametrize("heading", ["A policy family", "A meta-optimiser", "A memory strategy"])
def test_a_worked_example_runs(heading):
    (code,) = blocks_of(heading)
    with settings_of_a_user():
        exec(compile(code, heading, "exec"), {})


@pytest.mark.slow
def test_the_recipes_run():
    """From top to bottom: they share their beginning, and check themselves."""
    code = "".join(re.findall(r"```python\n(.*?)```", RECIPES, re.DOTALL))
    assert code.count("build_loss_auc") > 6
    with settings_of_a_user():
        exec(compile(code, "recipes", "exec"), {})


@pytest.mark.slow
def test_the_task_and_the_tracker_run_together(tmp_path, monkeypatch):
    (tmp_path / "line.py").write_text(*blocks_of("A task"))
    (tmp_path / "my_tracker.py").write_text(*blocks_of("A tracker"))
    monkeypatch.syspath_prepend(tmp_path)
    result = call(
        *("run", tmp_path / "line.py", "--workdir", tmp_path / "run", "--off", "5"),
        *("--trackers", "my_tracker:Print", "--outer.num-steps", "2"),
    )
    assert result.returncode == 0, result.stderr
    assert "line: from outer step 0 on" in result.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["desired"]["optimized"]["auc"] < summary["desired"]["conventional"]["auc"]


def test_the_figure_is_found_and_drawn(tmp_path, monkeypatch):
    (tmp_path / "heaviest.py").write_text(*blocks_of("A figure"))
    monkeypatch.setattr(figures, "__path__", [*figures.__path__, str(tmp_path)])
    (spec,) = [spec for spec in figures.find_figures() if spec.name == "fig14_heaviest"]
    arrays = {"total_weights": np.r_[np.full(10, 5.0), np.full(90, 0.5)]}
    results = Results({}, {}, {}, arrays, {})
    assert figures.encode_figure(figures.draw_figure(spec, results), "png").startswith(b"\x89PNG")
    assert spec.caption(results) == "The ten heaviest examples hold 53% of the weight."
    assert spec.reason_left_out(Results({}, {}, {}, {}, {}))
