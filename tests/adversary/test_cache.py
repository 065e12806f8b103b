"""Damaged caches of text: what was tokenised, downloaded, or prepared by TensorFlow Datasets."""

import http.server
import shutil
import threading
from pathlib import Path

import pytest
from texts import DOCUMENTS

from adversary import catalogue
from adversary.damage import WAYS, file_cases, folder_cases
from adversary.results import Comparison
from adversary.verdicts import Result, judge, names_of

SETTINGS = {"vocab_size": 200, "context": 16}
CONTENT = "<|endoftext|>".join(DOCUMENTS).encode()
"""Of the text file, and of that on the server."""


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(CONTENT)

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()

    def log_message(self, *_):
        pass


class Cache:
    """A cache that was filled once, and is copied for every case."""

    def __init__(self, server, folder: Path, **source: str):
        self._server, self._settings, self.folder = server, SETTINGS | source, folder
        self._copies = 0
        self._undisturbed = self.read(folder)
        assert (self._undisturbed.returncode, self._undisturbed.stderr) == (0, "")

    def read(self, folder: Path) -> Result:
        return self._server.read_text(cache_dir=str(folder), **self._settings)

    def verdict(self, case, rng):
        """Of reading it once more, twice, with something damaged."""
        self._copies += 1
        copy = self.folder.with_name(f"{self.folder.name}{self._copies}")
        shutil.copytree(self.folder, copy)
        case.damage(copy, rng)
        verdict = self._judge(self.read(copy), case)
        if not verdict.is_fault:
            again = self._judge(self.read(copy), case)
            verdict = again if again.is_fault else verdict
        shutil.rmtree(copy)
        return verdict

    def _judge(self, result, case):
        lines = list(filter(str.strip, result.stderr.splitlines()))
        same = result.stdout == self._undisturbed.stdout
        comparison = Comparison([] if same else ["the sequences"], [])
        return judge(result, lines, names_of(case.target), comparison)


@pytest.fixture(scope="module", params=["file", "url", "catalogue"])
def cache(request, server, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    match request.param:
        case "file":
            (folder / "text.txt").write_bytes(CONTENT)
            yield Cache(server, folder / "cache", path=str(folder / "text.txt"))
        case "url":
            with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as web:
                thread = threading.Thread(target=web.serve_forever)
                thread.start()
                url = f"http://127.0.0.1:{web.server_port}/text.txt"
                yield Cache(server, folder / "cache", path=url)
                web.shutdown()
                thread.join()
        case "catalogue":
            yield Cache(server, folder / "cache", tfds=catalogue.NAME)


@pytest.mark.parametrize("group", WAYS)
def test_files(cache, cases, rng, repeats, group):
    with cases("cache, files") as verdicts:
        for case in file_cases(cache.folder, group, rng, repeats):
            verdicts.add(case, cache.verdict(case, rng))


def test_folders(cache, cases, rng):
    with cases("cache, folders") as verdicts:
        for case in folder_cases(cache.folder, rng):
            verdicts.add(case, cache.verdict(case, rng))
