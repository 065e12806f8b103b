"""Text from elsewhere: real servers on loopback, and the catalogue."""

import http.server
import shutil
import socket
import threading
import time
import types

import numpy as np
import pytest
from texts import DAMAGES, DOCUMENTS, flip_a_bit

from lljax.data import remote
from lljax.data.text import TextError, TextSettings, read_documents


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
        patch.setattr(remote, "why_unreachable", lambda url: None)
        documents = read_documents(settings)
    assert documents[:-1] == DOCUMENTS[: len(documents) - 1]  # its `train` is 90 % of the text
    assert "\n\n".join(documents) == text[: int(len(text) * 0.9)].strip()
    assert read_documents(settings) == documents  # needs no network any more
    (shard,) = tmp_path.glob("cache/tiny_shakespeare/*/*train.array_record*")
    flip_a_bit(shard)
    monkeypatch.setattr(remote, "why_unreachable", lambda url: "no network")
    with pytest.raises(TextError, match=r"has to be downloaded, and .* cannot be reached"):
        read_documents(settings)


def test_a_data_set_with_other_features_and_splits(tmp_path, capfd):
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
    expected = ["x", "y", *DOCUMENTS[2:]]
    assert read_documents(settings) == expected
    assert capfd.readouterr() == ("", "")
    (folder,) = tmp_path.glob("two_splits_for_lljax/1.0.0")
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 5  # two shards, two files about them, and the digests
    for name in names:
        for damage in DAMAGES.values():
            damage(folder / name)
            assert read_documents(settings) == expected, name
            # Without digests of its own a data set is taken as it is, and gets them.
            said = capfd.readouterr().err
            assert name == "digests.json" or "is damaged" in said
            assert len(said.splitlines()) <= 2
    (folder / "digests.json").unlink()
    shard = next(folder.glob("*-b.array_record*"))
    DAMAGES["truncated"](shard)
    assert read_documents(settings) == expected
    assert "is damaged" in capfd.readouterr().err
    shutil.rmtree(folder)
    folder.write_text("")
    assert read_documents(settings) == expected


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
