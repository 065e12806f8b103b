"""From text files to sequences of tokens: real files, real TensorFlow Datasets, real tokenizers."""

import gzip
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lljax.data import remote
from lljax.data.perturbation import perturb
from lljax.data.sequences import load_sequences, split_sequences
from lljax.data.text import TextError, TextSettings, read_documents
from lljax.data.tokenizer import NUM_SPECIAL, PAD, UNK, Tokenizer, load_tokenizer, train_tokenizer

WORDS = """
once upon a time there was little girl boy who found big red ball in the garden and said hello to
friend dog cat but it ran away because sun very bright so they went home happy again with mother
father tree house river bird sang song every day until night came moon looked down
"""


def make_documents(number, seed=0):
    """Lively enough for a few hundred tokens; 8 to 40 words each."""
    rng = np.random.default_rng(seed)
    sentences = [" ".join(rng.choice(WORDS.split(), rng.integers(8, 41))) for _ in range(number)]
    return [f"{text.capitalize()}.\nThe end {i}, café 😀." for i, text in enumerate(sentences)]


DOCUMENTS = make_documents(300)


@pytest.fixture
def settings(tmp_path):
    """Makes settings for a text file with the documents given, with a cache of the test's own."""

    def make(documents=DOCUMENTS, **changes):
        path = tmp_path / "text.txt"
        path.write_text("<|endoftext|>".join(documents), encoding="utf-8")
        defaults = {"path": str(path), "vocab_size": 200, "context": 16}
        return TextSettings(**(defaults | {"cache_dir": str(tmp_path / "cache")} | changes))

    return make


def prepared(tmp_path):
    """The folders of the cache that would be read."""
    return list((tmp_path / "cache").glob("lljax_sequences/*/[0-9]*"))


# ---- documents -------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path, kind, packed):
    if kind == "txt":
        content = "\ufeff" + "\n<|endoftext|>\n".join(DOCUMENTS)
    else:
        content = "\n".join(json.dumps({"id": 3, "text": text}) for text in DOCUMENTS)
    path = tmp_path / f"text.{kind}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert read_documents(TextSettings(path=str(path))) == DOCUMENTS


@pytest.mark.parametrize(
    ("content", "separator", "expected"),
    [
        ("a\n\nb\n \n\nc\nd", None, ["a", "b", "c\nd"]),
        ("a\r\n\r\nb\r\nc", None, ["a", "b\nc"]),
        ("a\n\nb<|endoftext|>c<|endoftext|>", None, ["a\n\nb", "c"]),
        ("a\nb\n\nc", r"\n", ["a", "b", "c"]),
        ("a##b## ##a", "##", ["a", "b"]),
    ],
)
def test_separators(tmp_path, content, separator, expected):
    (tmp_path / "a.txt").write_bytes(content.encode())
    settings = TextSettings(path=str(tmp_path / "a.txt"), separator=separator)
    assert read_documents(settings) == expected


def test_no_more_than_max_bytes_up_to_the_last_whole_document(tmp_path):
    (tmp_path / "a.txt").write_text("ää\n\nöö\n\nüü", encoding="utf-8")
    for max_bytes in range(1, 30):
        settings = TextSettings(path=str(tmp_path / "a.txt"), max_bytes=max_bytes)
        if max_bytes == 1:  # not even one character
            with pytest.raises(TextError, match="holds no text"):
                read_documents(settings)
            continue
        whole = (max_bytes >= 6) + (max_bytes >= 12) + (max_bytes >= 16)
        expected = ["ää", "öö", "üü"][:whole] or ["ä" if max_bytes < 4 else "ää"]
        assert read_documents(settings) == expected, max_bytes


def test_without_a_source_there_is_text(tmp_path):
    documents = read_documents(TextSettings())
    assert len(documents) > 1000
    assert sum(map(len, documents)) > 300_000
    sequences = load_sequences(
        TextSettings(vocab_size=500, context=32, cache_dir=str(tmp_path / "c"))
    )
    assert len(sequences.tokens) > 3000


# ---- tokenizers ------------------------------------------------------------------------------


def test_bytes_bring_every_text_back():
    documents = read_documents(TextSettings())
    tokenizer = train_tokenizer(documents, 3000)
    assert tokenizer.vocab_size == 3000
    texts = [*documents[:100], "你好, wörld 🎈", "  two  spaces\t\n\n\nlines ", "\u2028\x00\u2585"]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert min(ids) >= NUM_SPECIAL
        assert max(ids) < 3000
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([*ids, PAD, PAD]) == text
    assert train_tokenizer(documents, 3000) == tokenizer


def test_a_small_vocabulary_has_no_bytes_but_unknown():
    tokenizer = train_tokenizer(DOCUMENTS, 150)
    ids = tokenizer.encode([*DOCUMENTS, "once ☃ upon"])
    assert max(map(max, ids)) < 150
    assert [tokenizer.decode(x) for x in ids[:-1]] == DOCUMENTS
    assert ids[-1].count(UNK) == 1
    assert "⁇" in tokenizer.decode(ids[-1])


def test_a_text_of_many_characters_fits():
    letters = [chr(0x4E00 + i) for i in range(2000)]
    rng = np.random.default_rng(0)
    documents = ["".join(rng.choice(letters, 200)) for _ in range(50)]
    for vocab_size in (100, 3000):
        assert train_tokenizer(documents, vocab_size).vocab_size == vocab_size


def test_a_given_model_is_cut_to_its_most_frequent_tokens(tmp_path):
    path = tmp_path / "tokenizer.model"
    whole = train_tokenizer(DOCUMENTS, 200)
    path.write_bytes(whole.model)
    counts = Counter(token for ids in whole.encode(DOCUMENTS) for token in ids)
    tokenizer = load_tokenizer(path, 62, DOCUMENTS)
    assert tokenizer.vocab_size == 62
    least = min(counts[token] for token in tokenizer.kept)
    assert len(set(tokenizer.kept)) == 60
    assert all(n <= least for token, n in counts.items() if token not in tokenizer.kept)
    for ours, theirs in zip(tokenizer.encode(DOCUMENTS), whole.encode(DOCUMENTS), strict=True):
        expected = [
            NUM_SPECIAL + tokenizer.kept.index(token) if token in tokenizer.kept else UNK
            for token in theirs
        ]
        assert ours == expected
    occurring = len(counts) + NUM_SPECIAL
    assert load_tokenizer(path, occurring, DOCUMENTS).vocab_size == occurring
    with pytest.raises(TextError, match=f"data.vocab_size is .* at most {occurring} tokens"):
        load_tokenizer(path, occurring + 1, DOCUMENTS)


def test_a_tokenizer_comes_back_from_disk(tmp_path):
    (tmp_path / "m").write_bytes(train_tokenizer(DOCUMENTS, 200).model)
    tokenizer = load_tokenizer(tmp_path / "m", 100, DOCUMENTS)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path) == tokenizer


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\0" * 100])
def test_what_is_no_model_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "m").write_bytes(content)
    with pytest.raises(TextError, match=r"data.tokenizer: .*(not a sentencepiece|No such file)"):
        load_tokenizer(tmp_path / "m", 100, DOCUMENTS)


@pytest.mark.parametrize("asked", [1000, 5000])
def test_a_vocabulary_larger_than_the_text_supports(asked):
    documents = DOCUMENTS[:30]
    with pytest.raises(TextError, match=r"data.vocab_size is") as caught:
        train_tokenizer(documents, asked)
    largest = int(str(caught.value).split("at most ")[1].split()[0])
    assert train_tokenizer(documents, largest).vocab_size == largest
    with pytest.raises(TextError, match=f"at most {largest} "):
        train_tokenizer(documents, largest + 1)


# ---- sequences and their cache ---------------------------------------------------------------


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


def test_a_damaged_cache_is_refused(settings, tmp_path):
    load_sequences(settings())
    (records,) = prepared(tmp_path)[0].glob("*array_record*")
    records.write_bytes(records.read_bytes()[:-1000])
    with pytest.raises(TextError, match=r"data.cache_dir: .* cannot be read .* Delete that folder"):
        load_sequences(settings())


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


# ---- texts that cannot be used ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "data.path: .*a.txt holds no text"),
        ("a.txt", b" \n\n \n", "holds no text"),
        ("a.txt", b"Only one line.", "data.vocab_size is 200, but the text supports at most"),
        ("a.txt", b"fine\nfine\nf\xe9 not", "a.txt is not UTF-8 text: byte 0xe9 in line 3"),
        ("a.txt.gz", b"plain", "cannot be unpacked as gzip"),
        ("a.txt.gz", gzip.compress(b"long " * 99, mtime=0)[:-6], "cannot be unpacked as gzip"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b', "line 3 is not JSON"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"story": "b"}',
            "line 2 .* field `text`; it has the .* story",
        ),
        ("a.jsonl", b'{"text": 3}', "line 1 must have a string in the field `text`"),
        ("a.jsonl", b'["text"]', "line 1 .* no object"),
        ("a.jsonl", b'{"text": "\xff"}', "not UTF-8 text: byte 0xff in line 1"),
    ],
)
def test_bad_text(tmp_path, settings, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        load_sequences(settings(path=str(tmp_path / name)))
    assert not prepared(tmp_path)


def test_no_document_is_as_long_as_a_sequence(settings, tmp_path):
    longest = max(map(len, train_tokenizer(DOCUMENTS, 200).encode(DOCUMENTS)))
    message = f"data.context is {longest}, so a .* {longest + 1} tokens, .* has {longest}"
    with pytest.raises(TextError, match=message):
        load_sequences(settings(context=longest))
    assert not prepared(tmp_path)
    assert load_sequences(settings(context=longest - 1)).tokens.shape[1] == longest


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "stories.txt").write_text("a")
    with pytest.raises(TextError, match=r"no file .*story\.txt\. Did you mean .*stories\.txt\?"):
        read_documents(TextSettings(path=str(tmp_path / "story.txt")))
    with pytest.raises(TextError, match="no file"):
        read_documents(TextSettings(path=str(tmp_path / "nowhere" / "story.txt")))
    with pytest.raises(TextError, match="is a folder"):
        read_documents(TextSettings(path=str(tmp_path)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "a.txt").touch(mode=0o000)
    with pytest.raises(TextError, match=r"data.path: .*a.txt cannot be read"):
        read_documents(TextSettings(path=str(tmp_path / "a.txt")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "a", "tfds": "b"}, "data.path and data.tfds both"),
        ({"separator": ""}, "data.separator must not be empty"),
        ({"vocab_size": 2}, "data.vocab_size must be at least 16; got 2"),
        ({"context": 0}, "data.context must be at least 2"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(TextError, match=message):
        TextSettings(**changes)


# ---- text from elsewhere ---------------------------------------------------------------------


@pytest.fixture
def server():
    """A web server on this machine; what it was asked for is in `requests`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            body = "<|endoftext|>".join(DOCUMENTS).encode()
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Type", "text/html" if "page" in self.path else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if "broken" in self.path else body)

        def do_HEAD(self):
            self.send_response(405)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_url_is_fetched_once(server, tmp_path, capfd):
    url = f"http://127.0.0.1:{server.server_port}/stories.txt?download=true"
    settings = TextSettings(path=url, cache_dir=str(tmp_path))
    assert read_documents(settings) == DOCUMENTS
    assert read_documents(settings) == DOCUMENTS
    assert len(server.requests) == 1
    assert capfd.readouterr() == ("", "")
    some = read_documents(TextSettings(path=url, cache_dir=str(tmp_path), max_bytes=1000))
    assert some == DOCUMENTS[: len(some)]
    assert sorted(file.stat().st_size for file in tmp_path.glob("downloads/*.txt"))[0] == 1001


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.txt", "answers 404"),
        ("broken.txt", "ended after"),
        ("page.txt", "is a web page"),
    ],
)
def test_a_bad_url_leaves_nothing(server, tmp_path, name, message):
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    with pytest.raises(TextError, match=f"data.path: .*{message}"):
        read_documents(TextSettings(path=url, cache_dir=str(tmp_path)))
    assert [file.name for file in tmp_path.glob("downloads/*")] in ([], [".lock"])


def test_without_a_network_a_download_fails_soon(tmp_path, monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    start = time.monotonic()
    for source in ({"path": "https://example.org/a.txt"}, {"tfds": "tiny_shakespeare"}):
        with pytest.raises(TextError, match=r"cannot be reached .* (fetch|give a text)"):
            read_documents(TextSettings(**source, cache_dir=str(tmp_path)))
    assert time.monotonic() - start < 10
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]


def test_a_silent_network_does_not_hold_a_download_up(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_REACH_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.txt"
        start = time.monotonic()
        with pytest.raises(TextError, match="cannot be reached"):
            read_documents(TextSettings(path=url, cache_dir=str(tmp_path)))
    assert time.monotonic() - start < 5


def test_the_catalogue(tmp_path, monkeypatch):
    """tiny_shakespeare through its own builder; only its download is replaced."""
    import tensorflow_datasets as tfds

    text = "\n\n".join(DOCUMENTS)
    (tmp_path / "input.txt").write_text(text, encoding="utf-8")
    downloads = types.SimpleNamespace(
        download=lambda url: tmp_path / "input.txt", downloaded_size=0
    )
    settings = TextSettings(tfds="tiny_shakespeare", cache_dir=str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(
            tfds.core.DatasetBuilder, "_make_download_manager", lambda *_, **__: downloads
        )
        patch.setattr(remote, "_why_unreachable", lambda url: None)
        documents = read_documents(settings)
    assert documents[:-1] == DOCUMENTS[: len(documents) - 1]  # its `train` is 90 % of the text
    assert "\n\n".join(documents) == text[: int(len(text) * 0.9)].strip()
    assert read_documents(settings) == documents  # needs no network any more


def test_a_data_set_with_other_features_and_splits(tmp_path):
    import tensorflow_datasets as tfds

    class TwoSplitsForLljax(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"story": tfds.features.Text(), "stars": tfds.features.Scalar(np.int32)}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"b": self._generate_examples(DOCUMENTS[2:]), "a": self._generate_examples("xy")}

        def _generate_examples(self, texts):
            yield from ((i, {"story": text, "stars": i}) for i, text in enumerate(texts))

    settings = TextSettings(tfds="two_splits_for_lljax", cache_dir=str(tmp_path))
    assert read_documents(settings) == ["x", "y", *DOCUMENTS[2:]]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_shakespear", "has no tiny_shakespear. Did you mean tiny_shakespeare?"),
        ("mnist", "no feature `text` .* none of image, label"),
        ("tiny shakespeare", "cannot be used"),
    ],
)
def test_what_the_catalogue_cannot_give(tmp_path, name, message):
    with pytest.raises(TextError, match=f"data.tfds: .*{message.replace('?', '[?]')}"):
        read_documents(TextSettings(tfds=name, cache_dir=str(tmp_path)))


def test_no_heavy_imports():
    code = "import sys, lljax, lljax.data.sequences, lljax.data.perturbation; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert not {"tensorflow_datasets", "sentencepiece"} & set(result.stdout.split())


# ---- noise -----------------------------------------------------------------------------------

FULL = np.arange(2, 2 + 40 * 11, dtype=np.int32).reshape(40, 11)  # no token twice


def test_the_share_is_exact_and_the_rest_untouched():
    tokens = np.random.default_rng(0).integers(2, 500, (401, 17)).astype(np.int32)
    tokens[::3, 9:] = PAD
    original = tokens.copy()
    result, perturbed = perturb(tokens, seed=1, share=0.3, vocab_size=500)
    np.testing.assert_array_equal(tokens, original)
    assert perturbed.sum() == 120
    np.testing.assert_array_equal(result[~perturbed], tokens[~perturbed])
    assert (result[perturbed] != tokens[perturbed]).any(axis=1).all()
    assert result.dtype == tokens.dtype
    lengths = (result != PAD).sum(axis=1)
    assert lengths.min() >= 2
    assert (np.arange(17) < lengths[:, None]).astype(int).tolist() == (result != PAD).tolist()
    assert result.max() < 500
    assert UNK not in result
    again, _ = perturb(tokens, seed=1, share=0.3, vocab_size=500)
    np.testing.assert_array_equal(result, again)
    other, _ = perturb(tokens, seed=2, share=0.3, vocab_size=500)
    assert not np.array_equal(result, other)


def test_each_operation_is_one_of_three_and_equally_frequent():
    tokens = np.tile(FULL, (150, 1))
    result, _ = perturb(tokens, seed=0, share=1, operations=1, vocab_size=3 * 10**6)
    kinds = Counter()
    places = {"replaced": Counter(), "repeated": Counter()}
    for before, after in zip(tokens, result, strict=True):
        different = np.flatnonzero(before != after)
        if after[-1] == PAD:
            assert (after[:-1] == before[:-1]).all()
            kinds["deleted"] += 1
        elif len(different) == 1 and after[different[0]] not in before:
            assert after[different[0]] >= NUM_SPECIAL
            kinds["replaced"] += 1
            places["replaced"][different[0]] += 1
        else:  # a copy beside a token; at the end of a full sequence it falls off
            place = different[0] - 1 if len(different) else 10
            expected = np.insert(before, place + 1, before[place])[:11]
            np.testing.assert_array_equal(after, expected)
            kinds["repeated"] += 1
            places["repeated"][place] += 1
    for count in kinds.values():
        assert count == pytest.approx(2000, rel=0.1)
    for counter in places.values():
        assert sorted(counter) == list(range(11))
        assert max(counter.values()) < 1.5 * 2000 / 11


def test_padded_sequences_grow_and_short_ones_keep_two_tokens():
    tokens = np.zeros((2000, 5), np.int32)
    tokens[:, :2] = [7, 8]
    result, _ = perturb(tokens, seed=0, share=1, operations=1, vocab_size=10**6)
    lengths = Counter((result != PAD).sum(axis=1).tolist())
    assert set(lengths) == {2, 3}
    grown = {tuple(row) for row in result[:, :3].tolist() if row[2] != PAD}
    assert grown == {(7, 7, 8), (7, 8, 8)}
    unchanged = (result == tokens).all(axis=1).sum()  # the deletions
    assert unchanged == pytest.approx(2000 / 3, rel=0.15)


def test_the_paper_size_takes_no_time():
    tokens = np.full((16384, 65), 5, np.int32)
    start = time.monotonic()
    perturb(tokens, seed=0, vocab_size=5000)
    assert time.monotonic() - start < 5


def test_files_of_the_cache_are_plain(settings, tmp_path):
    load_sequences(settings())
    names = {path.suffix for path in prepared(tmp_path)[0].iterdir()}
    assert not names & {".pkl", ".pickle"}
    assert Path(settings().path).exists()
