"""Damaged workdirs: every kind of file and folder, in every way, and then the same command."""

from pathlib import Path

import pytest

from adversary.damage import FILE_WAYS, Case, file_cases, folder_cases, payload_cases
from adversary.verdicts import Verdict


@pytest.mark.parametrize("way", FILE_WAYS)
def test_a_run_killed_inside_an_outer_step(runs, cases, rng, way):
    with cases("half-finished workdir, files") as verdicts:
        for case in file_cases(runs.in_sweep, way, rng):
            verdicts.add(case, _continue(runs, runs.in_sweep, case, rng))


@pytest.mark.parametrize("state", ["in_sweep", "in_look"])
def test_flips_where_the_arrays_are(runs, cases, rng, repeats, state):
    """Of checkpoints, of which one is restored, and of the sweep that is continued."""
    folder = getattr(runs, state)
    with cases("half-finished workdir, arrays of checkpoints") as verdicts:
        for case in payload_cases(folder, ("checkpoints", state.removeprefix("in_")), 2 * repeats):
            verdicts.add(case, _continue(runs, folder, case, rng))


@pytest.mark.parametrize("state", ["in_sweep", "in_look"])
def test_folders_of_a_killed_run(runs, cases, rng, state):
    folder = getattr(runs, state)
    with cases("half-finished workdir, folders") as verdicts:
        for case in folder_cases(folder, rng):
            verdicts.add(case, _continue(runs, folder, case, rng))


@pytest.mark.parametrize("way", ["flip inside", "cut in half", "delete"])
def test_a_run_killed_in_its_last_look(runs, cases, rng, way):
    with cases("workdir of a run in its last look") as verdicts:
        for case in file_cases(runs.in_look, way, rng):
            verdicts.add(case, _continue(runs, runs.in_look, case, rng))


@pytest.mark.parametrize("way", FILE_WAYS)
def test_a_finished_run(runs, cases, rng, way):
    with cases("finished workdir, files") as verdicts:
        for case in file_cases(runs.finished, way, rng):
            verdicts.add(case, _ask_again(runs, case, rng))


def test_folders_of_a_finished_run(runs, cases, rng):
    with cases("finished workdir, folders") as verdicts:
        for case in folder_cases(runs.finished, rng):
            verdicts.add(case, _ask_again(runs, case, rng))


@pytest.mark.parametrize("way", ["flip inside", "cut in half", "delete"])
def test_a_finished_run_that_has_lost_its_results(runs, cases, rng, way):
    """They are made again from checkpoints and snapshots, of which one is damaged as well."""
    lost = ("policy.npy", "analysis.npz", "summary.json", "report.html")
    with cases("finished workdir without results") as verdicts:
        for case in file_cases(runs.finished, way, rng):
            if case.target.parts[0] not in ("checkpoints", "snapshots", "metrics.jsonl"):
                continue
            with runs.copy(runs.finished) as workdir:
                for name in lost:
                    (workdir / name).unlink()
                case.damage(workdir, rng)
                verdicts.add(case, runs.run_and_judge(workdir, case.target))


@pytest.mark.parametrize("way", FILE_WAYS)
def test_the_report_of_a_finished_run(runs, cases, rng, way):
    with cases("report of a finished workdir") as verdicts:
        for case in file_cases(runs.finished, way, rng):
            if len(case.target.parts) > 1:
                continue  # what it reads lies at the top
            with runs.copy(runs.finished) as workdir:
                case.damage(workdir, rng)
                verdicts.add(case, runs.draw_and_judge(workdir, case.target))


def _continue(runs, state: Path, case: Case, rng) -> Verdict:
    with runs.copy(state) as workdir:
        case.damage(workdir, rng)
        return runs.run_and_judge(workdir, case.target)


def _ask_again(runs, case: Case, rng) -> Verdict:
    with runs.copy(runs.finished) as workdir:
        case.damage(workdir, rng)
        return runs.run_and_judge(workdir, case.target, exactly=True)
