"""Tokenised text and its cache: real TensorFlow Datasets, killed and damaged."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import numpy as np
import pytest
from texts import DAMAGES, DOCUMENTS, make_documents, prepared

from lljax.data.sequences import load_sequences, split_sequences
from lljax.data.text import TextError
from lljax.data.tokenizer import PAD, train_tokenizer


def test_windows_hold_the_documents_in_order(settings):
    sequences = load_sequences(settings())
    assert sequences.tokens.shape[1] == 17
    assert sequences.tokens.dtype == sequences.document.dtype == np.int32
    encoded = sequences.tokenizer.encode(DOCUMENTS)
    for index, ids in enumerate(encoded):
        windows = sequences.tokens[sequences.document == index]
        tail = len(ids) % 17
        kept = ids if tail >= 4 else ids[: len(ids) - tail]
        flat = windows.reshape(-1)
        np.testing.assert_array_equal(flat[: len(kept)], kept)
        assert (flat[len(kept) :] == PAD).all()
        assert len(flat) - len(kept) < 17
    assert (np.diff(sequences.document) >= 0).all()


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_second_use_only_reads(settings, tmp_path):
    first = load_sequences(settings())
    before = snapshot(tmp_path / "cache")
    second = load_sequences(settings())
    assert snapshot(tmp_path / "cache") == before
    for a, b in zip(first[:2], second[:2], strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.tokenizer == second.tokenizer


def test_nothing_stale_is_served(settings, tmp_path):
    load_sequences(settings())
    changed = [*DOCUMENTS[1:], DOCUMENTS[0].upper()]
    after = load_sequences(settings(changed))
    assert after.tokenizer.decode(after.tokens[after.document == 0].reshape(-1)).startswith(
        changed[0][:20]
    )
    model = tmp_path / "m.model"
    model.write_bytes(train_tokenizer(DOCUMENTS, 300).model)
    given = {"vocab_size": 100, "tokenizer": str(model)}
    others = [
        load_sequences(settings(**change))
        for change in ({"context": 8}, {"vocab_size": 100}, given)
    ]
    assert len(prepared(tmp_path)) == 5
    model.write_bytes(train_tokenizer(DOCUMENTS, 290).model)
    assert load_sequences(settings(**given)).tokenizer != others[-1].tokenizer


def test_nothing_is_printed_and_nothing_stays_open(settings, capfd):
    load_sequences(settings())
    assert capfd.readouterr() == ("", "")


def test_killed_in_the_middle_and_used_again(settings, tmp_path):
    documents = make_documents(2_000)
    mine = settings(documents)
    code = (
        "from lljax.data.sequences import *\n"
        f"load_sequences(TextSettings(path={mine.path!r}, vocab_size=200, context=16, "
        f"cache_dir={mine.cache_dir!r}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while not list(tmp_path.glob("cache/lljax_sequences/*/incomplete.*/tokenizer.model")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not prepared(tmp_path)
    sequences = load_sequences(mine)
    assert sequences.document[-1] == len(documents) - 1
    (folder,) = prepared(tmp_path)
    assert not list(folder.parent.glob("incomplete.*"))
    again = load_sequences(settings(documents, cache_dir=str(tmp_path / "undisturbed")))
    np.testing.assert_array_equal(sequences.tokens, again.tokens)
    assert sequences.tokenizer == again.tokenizer


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_found_and_made_again(settings, tmp_path, capfd, damage):
    first = load_sequences(settings())
    (folder,) = prepared(tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    assert {"tokenizer.model", "tokenizer.json", "dataset_info.json"} < set(names)
    for name in names:
        DAMAGES[damage](folder / name)
        again = load_sequences(settings())
        np.testing.assert_array_equal(again.tokens, first.tokens)
        np.testing.assert_array_equal(again.document, first.document)
        assert again[2:] == first[2:]
        assert capfd.readouterr().err == f"warning: {folder} is damaged and is made again.\n"
        assert sorted(path.name for path in folder.iterdir()) == names
    load_sequences(settings())
    assert capfd.readouterr() == ("", "")


def test_a_file_in_place_of_a_folder_is_made_again(settings, tmp_path):
    first = load_sequences(settings())
    (folder,) = prepared(tmp_path)
    for place in (folder, folder.parent):
        shutil.rmtree(place)
        place.write_text("no folder")
        np.testing.assert_array_equal(load_sequences(settings()).tokens, first.tokens)
    (folder.parent / ".lock").unlink(missing_ok=True)
    (folder.parent / ".lock").mkdir()
    shutil.rmtree(folder)
    np.testing.assert_array_equal(load_sequences(settings()).tokens, first.tokens)


def test_what_killed_processes_left_is_removed_by_the_next(settings, tmp_path):
    load_sequences(settings())
    (folder,) = prepared(tmp_path)
    left = folder.parent / "incomplete.ABC_2.0.0"
    busy = tmp_path / "cache" / "lljax_sequences" / "another" / "incomplete.DEF_2.0.0"
    for leftover in (left, busy):
        leftover.mkdir(parents=True)
    with filelock.FileLock(busy.parent / ".lock"):
        load_sequences(settings(context=8))
    assert (left.exists(), busy.exists()) == (False, True)


def test_without_a_home_folder_the_cure_is_named(settings, monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nothing")
    with pytest.raises(TextError, match=r"data.cache_dir: .* or in the .* XDG_CACHE_HOME"):
        load_sequences(settings(cache_dir=None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_sequences(settings(cache_dir=None))
    assert list((tmp_path / "xdg" / "lljax").iterdir())


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(settings, tmp_path):
    """A limit on the size of files has the same effect, without a disk of one's own."""
    mine = settings(make_documents(2_000))
    code = (
        "import resource; from lljax.data.sequences import *; import tensorflow_datasets\n"
        "from lljax.data.text import TextError\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        f"try: load_sequences(TextSettings(path={mine.path!r}, vocab_size=200, context=16, "
        f"cache_dir={mine.cache_dir!r}))\n"
        "except TextError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert re.match(r"data.cache_dir: .* cannot be written .* Make room", done.stdout), done
    assert load_sequences(mine).document[-1] == 1999


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.6, 1.2, 2.5])
def test_ctrl_c_ends_it_at_once_and_leaves_nothing(settings, tmp_path, seconds):
    mine = settings(make_documents(40_000))
    code = (
        "import sentencepiece, tensorflow_datasets; from lljax.data.sequences import *\n"
        "print('begun', flush=True)\n"
        f"load_sequences(TextSettings(path={mine.path!r}, vocab_size=200, context=16, "
        f"cache_dir={mine.cache_dir!r}))\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - begun < 5
    assert not list(tmp_path.rglob("incomplete.*"))
    assert not list(tmp_path.rglob("*.part"))


def test_a_cache_that_cannot_be_written(settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TextError, match=r"data.cache_dir: .* cannot be written"):
        load_sequences(settings(cache_dir=str(tmp_path / "file" / "cache")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_without_permission(settings, tmp_path):
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(TextError, match=r"data.cache_dir: .* cannot be written"):
        load_sequences(settings())


def test_no_document_is_in_two_sets(settings):
    sequences = load_sequences(settings())
    sizes = {"num_train": 300, "num_desired": 31, "num_validation": 40, "num_test": 53}
    split = split_sequences(sequences, seed=3, **sizes)
    assert [len(getattr(split, name[4:])) for name in sizes] == list(sizes.values())
    owners = [set(sequences.document[indices]) for indices in split]
    assert len(set.union(*owners)) == sum(map(len, owners))
    again = split_sequences(sequences, seed=3, **sizes)
    assert all((a == b).all() for a, b in zip(split, again, strict=True))
    other = split_sequences(sequences, seed=4, **sizes)
    assert not np.array_equal(split.test, other.test)
    larger = split_sequences(sequences, seed=3, **(sizes | {"num_train": 400}))
    assert all((a == b).all() for a, b in zip(split[1:], larger[1:], strict=True))
    assert split_sequences(sequences, seed=3, **dict.fromkeys(sizes, 0)).train.size == 0


def test_all_windows_can_be_used(settings):
    sequences = load_sequences(settings())
    none = {"num_desired": 0, "num_validation": 0, "num_test": 0}
    total = len(sequences.tokens)
    split = split_sequences(sequences, seed=0, num_train=total, **none)
    assert sorted(split.train) == list(range(total))
    with pytest.raises(TextError, match=f"data.num_train is {total + 1}.* it has {total} in 300"):
        split_sequences(sequences, seed=0, num_train=total + 1, **none)
    with pytest.raises(TextError, match=r"data.num_train is .* data.num_test took theirs"):
        split_sequences(sequences, seed=0, num_train=total, **(none | {"num_test": 1}))


def test_files_of_the_cache_are_plain(settings, tmp_path):
    load_sequences(settings())
    names = {path.suffix for path in prepared(tmp_path)[0].iterdir()}
    assert not names & {".pkl", ".pickle"}
    assert Path(settings().path).exists()
