"""Damaged, lost and stray files in a workdir: put right, left out with a word, never believed."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from command_line import RUN, SMALL, assert_refused, call, read_metrics, run_without_report

from lljax.artifacts import manifest
from lljax.artifacts.results import load_results
from lljax.errors import UserError

RESULTS = ("policy.npy", "analysis.npz", "summary.json", "metrics.jsonl", "data.json")


def flip(path, share=0.5):
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)


def flip_payload(checkpoint):
    """Flips one bit in the arrays of a checkpoint, in its largest file."""
    files = (path for path in checkpoint.rglob("*") if path.is_file())
    flip(max(files, key=lambda path: path.stat().st_size), 0.3)


def results(workdir):
    lines = [line | {"seconds": 0} for line in read_metrics(workdir)]
    files = [(workdir / name).read_bytes() for name in ("policy.npy", "analysis.npz")]
    return [*files, lines]


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(finished[0], tmp_path / "copy")


@pytest.fixture
def unfinished(workdir):
    """The same, killed before its results were written."""
    for name in ("manifest.json", "report.html", "policy.npy", "analysis.npz", "summary.json"):
        (workdir / name).unlink()
    return workdir


def test_damage_to_any_file_of_a_finished_run_is_found_and_put_right(finished, workdir):
    """All results at once, a line for each, and the run is whole again."""
    for name in RESULTS:
        flip(workdir / name)
    flip(workdir / "config.json", 0.9)
    result = call(*RUN, workdir)
    assert result.returncode == 0, result.stderr
    assert results(workdir) == results(finished[0])
    for name in ("config.json", "data.json"):
        assert f"{name} was lost or damaged" in result.stderr
        assert (workdir / name).read_bytes() == (finished[0] / name).read_bytes()
    assert "metrics.jsonl was lost, cut or damaged" in result.stderr
    assert manifest.wrong_files(workdir) == []
    assert "finished" in call(*RUN, workdir).stderr


def test_a_finished_run_without_its_policy_is_not_finished(finished, workdir):
    (workdir / "policy.npy").unlink()
    log = (run_without_report(workdir) / "log.txt").read_text()
    assert "are written again from the checkpoints: policy.npy" in log
    assert results(workdir) == results(finished[0])


@pytest.mark.slow
def test_a_damaged_report_is_drawn_again_from_the_results(workdir):
    before = {name: (workdir / name).stat().st_mtime_ns for name in RESULTS}
    flip(workdir / "figures" / "fig04_objective.png")
    (workdir / "report.html").unlink()
    result = call(*RUN, workdir)
    assert result.returncode == 0, result.stderr
    assert "are drawn again: figures/fig04_objective.png, report.html" in result.stderr
    assert manifest.wrong_files(workdir) == []
    assert {name: (workdir / name).stat().st_mtime_ns for name in RESULTS} == before


def test_a_report_that_was_drawn_again_is_taken_into_the_manifest(workdir):
    (workdir / "report.html").write_text("another one")
    (workdir / "figures" / "fig04_objective.png").unlink()
    manifest.renew_report(workdir)
    assert manifest.wrong_files(workdir) == []
    (workdir / "report.html").write_text("a third one")
    assert manifest.wrong_files(workdir) == ["report.html"]
    (workdir / "manifest.json").unlink()
    manifest.renew_report(workdir)
    assert not (workdir / "manifest.json").exists()


def test_a_digit_that_changed_in_a_result_is_not_reported(workdir):
    path = workdir / "summary.json"
    path.write_text(path.read_text().replace('"best_outer_step": 8', '"best_outer_step": 7'))
    with pytest.raises(UserError, match=r"summary\.json is not as it was written"):
        load_results(workdir)
    assert_refused(call("report", workdir), "summary.json", "continues the run")


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"files": {"report.html": 1}, "sha256": 2}'])
def test_a_damaged_manifest_believes_nothing(finished, workdir, content):
    (workdir / "manifest.json").write_bytes(content)
    policy = np.load(workdir / "policy.npy")
    np.save(workdir / "policy.npy", policy[:, ::-1])
    log = run_without_report(workdir) / "log.txt"
    assert "manifest.json is damaged" in log.read_text()
    assert results(workdir) == results(finished[0])


def test_of_damaged_checkpoints_the_one_before_is_used(finished, unfinished):
    flip_payload(unfinished / "checkpoints" / "8")
    log = (run_without_report(unfinished) / "log.txt").read_text()
    assert f"{unfinished / 'checkpoints' / '8'} is damaged and is not used" in log
    assert "continuing after outer step 7" in log
    assert results(unfinished) == results(finished[0])
    flip(unfinished / "checkpoints" / "8" / "record" / "record.json", 0.4)
    (unfinished / "policy.npy").unlink()
    log = (run_without_report(unfinished) / "log.txt").read_text()
    assert "8 is damaged and is not used: its record" in log
    assert results(unfinished) == results(finished[0])


@contextlib.contextmanager
def failing(path):
    """The disk does not give a file: that of a process's memory is one that says so to anybody."""
    kept = path.rename(path.with_name("kept"))
    path.symlink_to("/proc/self/mem")
    yield
    path.unlink()
    kept.rename(path)


def test_what_the_disk_does_not_give_is_not_damaged(finished, workdir):
    """Nothing is put in its place, and nothing begins again."""
    (workdir / "report.html").unlink()
    newest = workdir / "checkpoints" / "8"
    files = (path for path in (newest / "arrays").rglob("*") if path.is_file())
    payload = max(files, key=lambda path: path.stat().st_size)
    paths = (workdir / "manifest.json", workdir / "policy.npy", workdir / "data.json")
    for path in paths:
        with failing(path):
            assert_refused(call(*RUN, workdir), f"{path} cannot be read: Input/output error")
    for name in ("manifest.json", "policy.npy", "analysis.npz", "summary.json"):
        (workdir / name).unlink()
    others = (workdir / "config.json", workdir / "metrics.jsonl")
    for path in (payload, newest / "record" / "record.json", *others):
        with failing(path):
            assert_refused(call(*RUN, workdir), f"{path} cannot be read: Input/output error")
    run_without_report(workdir)
    assert results(workdir) == results(finished[0])


@pytest.mark.slow
def test_without_an_intact_checkpoint_a_run_begins_again(finished, unfinished):
    for step in (7, 8):
        flip_payload(unfinished / "checkpoints" / str(step))
    log = (run_without_report(unfinished) / "log.txt").read_text()
    assert "the run begins again at outer step 0" in log
    assert results(unfinished) == results(finished[0])


def test_metrics_are_rebuilt_from_a_checkpoint(finished, unfinished):
    path = unfinished / "metrics.jsonl"
    whole, cut = path.read_bytes(), "metrics.jsonl was lost, cut or damaged"
    for content in (b"", whole[:-20], whole.replace(b"0.4", b"0.5", 1), b"\xff\x00[", None):
        path.unlink() if content is None else path.write_bytes(content)
        (unfinished / "policy.npy").unlink(missing_ok=True)
        log = (run_without_report(unfinished) / "log.txt").read_text()
        assert cut in log
        assert path.read_bytes() == whole
    path.write_bytes(whole + b'{"outer_step": 9')  # as a kill leaves it
    (unfinished / "policy.npy").unlink()
    assert cut not in (run_without_report(unfinished) / "log.txt").read_text()
    assert path.read_bytes() == whole


def test_an_analysis_that_is_lost_is_left_out_and_one_that_can_be_is_made_again(
    finished, unfinished
):
    snapshots = unfinished / "snapshots"
    flip(snapshots / "000000.npz")
    (snapshots / "000002.npz").write_bytes(b"")
    (snapshots / "000008.npz").unlink()
    log = (run_without_report(unfinished) / "log.txt").read_text()
    for step in (0, 2):
        assert f"00000{step}.npz is damaged and is not used" in log
    assert "show outer steps 0, 1, 4, 8; the policies of 2 were not kept" in log
    whole = load_results(finished[0]).arrays
    left = load_results(unfinished).arrays
    assert left["path_outer_step"].tolist() == [0, 1, 4, 8]
    kept = np.isin(whole["path_outer_step"], left["path_outer_step"])
    for name, array in left.items():
        expected = whole[name][kept] if name.startswith("path_") else whole[name]
        np.testing.assert_array_equal(array, expected)


def test_strays_are_named_and_ignored(finished, unfinished):
    for folder in ("checkpoints", "sweep", "snapshots"):
        (unfinished / folder / "notes").mkdir(parents=True)
        (unfinished / folder / "7.txt").write_text("mine")
    (unfinished / "checkpoints" / "99").mkdir()
    (unfinished / "look").write_text("a file in the place of a folder")
    log = (run_without_report(unfinished) / "log.txt").read_text()
    for stray in ("checkpoints/notes is no", "snapshots/notes is no", "checkpoints/7.txt is no"):
        assert stray in log
    assert "checkpoints/99 is damaged and is not used" in log
    assert results(unfinished) == results(finished[0])
    assert (unfinished / "sweep" / "7.txt").read_text() == "mine"


@pytest.mark.slow
def test_a_folder_in_the_place_of_a_file_is_a_sentence(workdir):
    (workdir / "policy.npy").unlink()
    (workdir / "policy.npy").mkdir()
    result = call(*RUN, workdir)
    assert_refused(
        result, "policy.npy cannot be written: Is a directory. Move the folder", status=1
    )
    (workdir / "policy.npy").rmdir()
    assert call(*RUN, workdir).returncode == 0
    (workdir / "manifest.json").unlink()
    (workdir / ".lock").unlink()
    (workdir / ".lock").mkdir()
    assert_refused(call(*RUN, workdir), "--workdir", ".lock cannot be written: Is a directory")


@pytest.mark.slow
def test_what_a_removed_run_was_writing_is_no_obstacle(tmp_path):
    """A run makes its folders anew while its workdir is taken away, and then ends."""
    part = tmp_path / "sweep" / "43.orbax-checkpoint-tmp" / "arrays"
    part.mkdir(parents=True)
    (part / "manifest.ocdbt").write_bytes(b"half")
    assert call(*RUN, tmp_path).returncode == 0
    assert (tmp_path / "policy.npy").exists()
    other = tmp_path / "other"
    (other / "checkpoints" / "5").mkdir(parents=True)  # of another program, perhaps
    assert_refused(call(*RUN, other), "is not empty and has no config.json")
    assert (other / "checkpoints" / "5").exists()


@pytest.fixture(scope="module")
def with_patience(tmp_path_factory):
    """A run whose best policy is not among its last two."""
    flags = ("--outer.patience", "4", "--outer.num-steps", "40", "--outer.learning-rate", "3")
    return run_without_report(tmp_path_factory.mktemp("runs") / "patient", *flags), flags


@pytest.mark.slow
def test_a_lost_best_policy_falls_back_to_the_best_that_is_left(with_patience, tmp_path):
    original, flags = with_patience
    workdir = shutil.copytree(original, tmp_path / "copy")
    lines = read_metrics(workdir)
    best = max(line["outer_step"] for line in lines if line["best"])
    steps = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert best == steps[0] < steps[1] == len(lines) - 2
    flip_payload(workdir / "checkpoints" / str(best))
    (workdir / "policy.npy").unlink()
    log = (run_without_report(workdir, *flags) / "log.txt").read_text()
    summary = json.loads((workdir / "summary.json").read_text())
    left = summary["best_outer_step"]
    same_policy = not any(line["accepted"] for line in lines[best + 1 : left + 1])
    assert f"{workdir / 'checkpoints' / str(best)} is damaged and is not used" in log
    assert same_policy or f"the best policy, that of outer step {best}, is lost" in log
    known = [lines[0], *(lines[step] for step in steps[1:])]
    expected = min(line["validation_auc"] for line in known)
    assert summary["validation"]["optimized"]["auc"] == pytest.approx(expected, rel=1e-5)
    policy = np.load(workdir / "policy.npy")
    np.testing.assert_allclose(policy.sum(axis=1), 1, atol=1e-5)


def test_a_finished_run_is_given_more_outer_steps(finished, workdir, tmp_path):
    """It ends in the policy of a run that was begun with as many."""
    more = ("--outer.num-steps", "11", "--outer.patience", "7")
    log = (run_without_report(workdir, *more) / "log.txt").read_text()
    assert "outer.num_steps is 11 now and was 8; outer.patience is 7 now and was 20" in log
    assert "continuing after outer step 8" in log
    assert "show outer steps 0, 1, 2, 4, " in log
    begun = run_without_report(tmp_path / "begun", *more)
    assert (workdir / "policy.npy").read_bytes() == (begun / "policy.npy").read_bytes()
    assert results(workdir)[2] == results(begun)[2]
    for run in (workdir, begun):
        assert json.loads((run / "config.json").read_text())["outer"]["num_steps"] == 11
    result = call("run", "perceptron", *SMALL, "--workdir", workdir)
    assert_refused(result, "outer.num_steps must be at least 11", "got 8")


@pytest.mark.slow
def test_a_workdir_without_an_outer_step_may_be_taken_over(finished, tmp_path):
    workdir = tmp_path / "run"
    result = call(*RUN, workdir, "--inner.learning-rate", "1e38")
    assert_refused(result, "diverges", status=1)
    (workdir / "sweep" / "3").mkdir(parents=True)
    log = (run_without_report(workdir) / "log.txt").read_text()
    assert "it is replaced (inner.learning_rate is 1e+38 there and 0.1 here)" in log
    assert results(workdir) == results(finished[0])
    assert not (workdir / "sweep").exists()
