"""Damaged workdirs: every kind of file and folder, in many ways, and then the same command."""

import pytest

from adversary.damage import WAYS, file_cases, folder_cases, payload_cases

RESULTS = ("policy.npy", "analysis.npz", "summary.json", "report.html")


@pytest.mark.parametrize("group", WAYS)
def test_files_of_a_run_killed_inside_an_outer_step(runs, cases, rng, repeats, group):
    with cases("half-finished workdir, files") as verdicts:
        for case in file_cases(runs.in_sweep, group, rng, repeats):
            with runs.copy(runs.in_sweep) as workdir:
                case.damage(workdir, rng)
                verdicts.add(case, runs.run_and_judge(workdir, case.target))


@pytest.mark.parametrize("group", WAYS)
def test_files_of_a_run_killed_in_its_last_look(runs, cases, rng, repeats, group):
    with cases("half-finished workdir, last look") as verdicts:
        for case in file_cases(runs.in_look, group, rng, repeats):
            if case.target.parts[0] in ("look", "snapshots"):
                with runs.copy(runs.in_look) as workdir:
                    case.damage(workdir, rng)
                    verdicts.add(case, runs.run_and_judge(workdir, case.target))


@pytest.mark.parametrize("part", ["sweep", "look"])
def test_flips_where_the_arrays_are(runs, cases, rng, repeats, part):
    """Of the checkpoint that is restored, and of the sweep that is continued."""
    state = getattr(runs, f"in_{part}")
    with cases("half-finished workdir, arrays") as verdicts:
        for case in payload_cases(state, ("checkpoints", part), repeats):
            with runs.copy(state) as workdir:
                case.damage(workdir, rng)
                verdicts.add(case, runs.run_and_judge(workdir, case.target))


@pytest.mark.parametrize("part", ["sweep", "look"])
def test_folders_of_a_killed_run(runs, cases, rng, part):
    state = getattr(runs, f"in_{part}")
    with cases("half-finished workdir, folders") as verdicts:
        for case in folder_cases(state, rng):
            if part == "sweep" or case.target.parts[0] == part:
                with runs.copy(state) as workdir:
                    case.damage(workdir, rng)
                    verdicts.add(case, runs.run_and_judge(workdir, case.target))


@pytest.mark.parametrize("group", WAYS)
def test_files_of_a_finished_run(runs, cases, rng, repeats, group):
    with cases("finished workdir, files") as verdicts:
        for case in file_cases(runs.finished, group, rng, repeats):
            with runs.copy(runs.finished) as workdir:
                case.damage(workdir, rng)
                verdicts.add(case, runs.run_and_judge(workdir, case.target, exactly=True))


def test_folders_of_a_finished_run(runs, cases, rng):
    with cases("finished workdir, folders") as verdicts:
        for case in folder_cases(runs.finished, rng):
            with runs.copy(runs.finished) as workdir:
                case.damage(workdir, rng)
                verdicts.add(case, runs.run_and_judge(workdir, case.target, exactly=True))


@pytest.mark.parametrize("group", ["flip", "cut", "delete"])
def test_a_finished_run_without_its_results(runs, cases, rng, repeats, group):
    """They are made again from checkpoints and snapshots, of which one is damaged as well."""
    with cases("finished workdir without results") as verdicts:
        for case in file_cases(runs.finished, group, rng, repeats):
            if case.target.parts[0] in ("checkpoints", "snapshots", "metrics.jsonl"):
                with runs.copy(runs.finished) as workdir:
                    for name in RESULTS:
                        (workdir / name).unlink()
                    case.damage(workdir, rng)
                    verdicts.add(case, runs.run_and_judge(workdir, case.target))


@pytest.mark.parametrize("group", WAYS)
def test_the_report_of_a_finished_run(runs, cases, rng, repeats, group):
    with cases("report of a finished workdir") as verdicts:
        for case in file_cases(runs.finished, group, rng, repeats):
            if len(case.target.parts) == 1:  # what a report is made from
                with runs.copy(runs.finished) as workdir:
                    case.damage(workdir, rng)
                    verdicts.add(case, runs.draw_and_judge(workdir, case.target))
