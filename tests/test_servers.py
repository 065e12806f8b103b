"""Downloads from servers that are odd, slow, broken or hostile: real sockets on loopback."""

import base64
import contextlib
import gzip
import socket
import subprocess
import sys
import threading
import time

import pytest
from texts import DOCUMENTS

from lljax.data import remote
from lljax.data.text import TextError, TextSettings, read_documents, read_text

BODY = "<|endoftext|>".join(DOCUMENTS).encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"


class Server:
    """Answers a HEAD shortly, and each GET with the next of `answers`; the last one repeats.

    An answer is a list of bytes to send and seconds to wait.
    """

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                request = connection.recv(1 << 16).decode()
                if request.startswith("HEAD"):
                    connection.sendall(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n")
                    continue
                self.requests.append(request)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                for part in answer:
                    if isinstance(part, bytes):
                        connection.sendall(part)
                    else:
                        time.sleep(part)


def chunked(body):
    parts = [body[i : i + 5000] for i in range(0, len(body), 5000)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


def read(server, tmp_path, name="a.txt", **changes):
    settings = TextSettings(path=f"{server.url}/{name}", cache_dir=str(tmp_path), **changes)
    return read_documents(settings)


def files(tmp_path):
    return {path.name for path in tmp_path.glob("downloads/*")} - {".lock"}


WITH_LENGTH = OK + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
GOOD = {
    "no length": OK + b"\r\n" + BODY,
    "http 1.0": b"HTTP/1.0 200 OK\r\n\r\n" + BODY,
    "chunked": OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY) + b"0\r\n\r\n",
    "no number": OK + b"Content-Length: many\r\n\r\n" + BODY,
    "negative": OK + b"Content-Length: -5\r\n\r\n" + BODY,
    "gzip": OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(BODY),
    "a gzip file": OK + b"Content-Type: application/gzip\r\n\r\n" + gzip.compress(BODY),
}


@pytest.mark.parametrize("answer", GOOD)
def test_what_is_whole_is_read(tmp_path, answer):
    with Server([GOOD[answer]]) as server:
        assert read(server, tmp_path) == DOCUMENTS
        some = read(server, tmp_path, max_bytes=1000)
        assert some == DOCUMENTS[: len(some)]
        assert some
        assert read(server, tmp_path) == DOCUMENTS
        assert len(server.requests) == 2


BAD = {
    "too long a length": (
        OK + b"Content-Length: %d\r\n\r\n" % (len(BODY) + 9) + BODY,
        "ended after",
    ),
    "chunk cut": (
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY)[:-3000],
        "broke off",
    ),
    "chunks cut": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(BODY), "broke off"),
    "brotli": (OK + b"Content-Encoding: br\r\n\r\n" + BODY, "packed as br"),
    "a page as text": (OK + b"\r\n<!doctype html><p>Log in", "is a web page"),
    "an error as text": (
        OK + b'\r\n{"error": "quota"}',
        "must have a text in the field `text`; it has the fields error",
    ),
    "a zip archive": (OK + b"\r\nPK\x03\x04" + BODY, "is a zip archive"),
    "other text": (OK + b"\r\ncaf\xe9 and more", "not UTF-8"),
    "empty": (OK + b"\r\n", "holds no text"),
    "half of gzip": (OK + b"\r\n" + gzip.compress(BODY)[:3000], "cannot be unpacked"),
    "no http": (b"SSH-2.0-\x1b[31mOpen\r\n", "could not be fetched"),
    "nothing": (b"", "could not be fetched"),
    "round and round": (b"HTTP/1.1 302 Go\r\nLocation: /a.txt\r\n\r\n", "answers 302"),
    "control": (b"HTTP/1.1 404 \x1b[31mGone\x07\r\nContent-Length: 0\r\n\r\n", "answers 404"),
    "control in encoding": (OK + b"Content-Encoding: \x1b[2J\r\n\r\n", "packed as"),
}


@pytest.mark.parametrize("answer", BAD)
def test_what_cannot_be_used_is_refused_and_not_kept(tmp_path, answer):
    content, message = BAD[answer]
    with Server([content]) as server:
        with pytest.raises(TextError, match=f"data.path: .*{message}") as caught:
            read(server, tmp_path, "a.txt?token=s3cret")
        assert not {"\x1b", "\x07"} & set(str(caught.value))
        assert "s3cret" not in str(caught.value)
        assert len(str(caught.value)) < 500
        assert files(tmp_path) == set()
        # So a later try is not stuck with it.
        server.answers = [[WITH_LENGTH]]
        assert read(server, tmp_path, "a.txt?token=s3cret") == DOCUMENTS


@pytest.mark.parametrize(
    "answer",
    [
        [OK + b"\r\n", *[b"x", 0.05] * 30],
        [OK + b"Content-Length: 99\r\n\r\nx", 1.5],
        [b"HTTP/1.1 200 OK\r\n", *[b"A", 0.05] * 30],
    ],
    ids=["drips", "stalls", "drips headers"],
)
def test_a_server_that_sends_next_to_nothing_is_given_up(tmp_path, monkeypatch, answer):
    monkeypatch.setattr(remote, "_SLOW_SECONDS", 0.6)
    monkeypatch.setattr(remote, "_ANSWER_SECONDS", 0.8)
    with Server(answer) as server:
        begun = time.monotonic()
        with pytest.raises(TextError, match="fewer than 300 bytes a second"):
            read(server, tmp_path)
        assert time.monotonic() - begun < 2.5
    assert files(tmp_path) == set()


def test_a_slow_server_that_sends_enough_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_SLOW_SECONDS", 0.2)
    parts = [BODY[i : i + 4000] for i in range(0, len(BODY), 4000)]
    with Server([OK + b"\r\n", *[part for piece in parts for part in (piece, 0.05)]]) as server:
        assert read(server, tmp_path) == DOCUMENTS


def test_secrets_are_used_and_not_shown(tmp_path, capfd):
    with Server([b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"], [WITH_LENGTH]) as server:
        url = server.url.replace("//", "//me:pa%20ss@") + "/a.txt?token=s3cret"
        settings = TextSettings(path=url, cache_dir=str(tmp_path))
        with pytest.raises(TextError, match="answers 403") as caught:
            read_documents(settings)
        shown = str(caught.value)
        assert read_documents(settings) == DOCUMENTS
        # One that differs only in its query is another file.
        read_documents(TextSettings(path=url + "4", cache_dir=str(tmp_path)))
        assert len(server.requests) == 3
        token = base64.b64encode(b"me:pa ss").decode()
        assert all(f"Authorization: Basic {token}" in request for request in server.requests)
        assert "?token=s3cret " in server.requests[0]
    shown += (
        read_text(settings).parts[0].source + "".join(capfd.readouterr()) + "".join(files(tmp_path))
    )
    shown += "".join(path.read_text() for path in tmp_path.glob("downloads/*.json"))
    assert "s3cret" not in shown
    assert "ss@" not in shown
    assert "me:" not in shown


@pytest.mark.parametrize(
    "url", ["http://me:s3cret@[::1/a", "http://me:s3cret@host:port/a", "http://s3cret@/a"]
)
def test_no_address_at_all(tmp_path, url):
    with pytest.raises(TextError, match=r"data\.path: ") as caught:
        read_documents(TextSettings(path=url, cache_dir=str(tmp_path)))
    assert "s3cret" not in str(caught.value)


def test_other_schemes_are_refused_without_secrets(tmp_path):
    with pytest.raises(TextError, match=r"ftp://host/a.txt\?... cannot be fetched: only") as caught:
        read_documents(TextSettings(path="ftp://me:s3cret@host/a.txt?s3cret"))
    assert "s3cret" not in str(caught.value)


def test_a_damaged_download_is_fetched_again(tmp_path, capfd):
    with Server([WITH_LENGTH]) as server:
        assert read(server, tmp_path) == DOCUMENTS
        for damage in (
            lambda file: file.write_bytes(file.read_bytes()[:-9]),
            lambda file: file.write_bytes(b"f" + file.read_bytes()[1:]),
            lambda file: file.write_bytes(b""),
            lambda file: (file.unlink(), file.mkdir(), (file / "x").touch()),
        ):
            (file,) = tmp_path.glob("downloads/*.txt")
            damage(file)
            assert read(server, tmp_path) == DOCUMENTS
            assert "is damaged and is fetched again" in capfd.readouterr().err
        (record,) = tmp_path.glob("downloads/*.json")
        for content in (b"", b"{}", record.read_bytes().replace(b'"s', b'"t')):
            record.write_bytes(content)
            assert read(server, tmp_path) == DOCUMENTS
        number = len(server.requests)
        (tmp_path / "downloads" / "0-left.txt.part").touch()
        next(tmp_path.glob("downloads/*.txt")).unlink()
        assert read(server, tmp_path) == DOCUMENTS
        assert len(server.requests) == number + 1
        assert not list(tmp_path.glob("downloads/*.part"))


def test_names_from_servers_are_plain_file_names(tmp_path):
    with Server([WITH_LENGTH]) as server:
        assert read(server, tmp_path, "é%1b[31m/../%2e%2e/x y\u202e" + "z" * 300) == DOCUMENTS
    (name,) = {name for name in files(tmp_path) if not name.endswith(".json")}
    assert name.isascii()
    assert len(name) < 100


@pytest.mark.slow
def test_ctrl_c_ends_a_download(tmp_path):
    code = (
        "from lljax.data.text import *\nread_documents(TextSettings(path={!r}, cache_dir={!r}))\n"
    )
    with Server([OK + b"\r\n" + BODY, 6.0]) as server:
        command = [sys.executable, "-c", code.format(f"{server.url}/a.txt", str(tmp_path))]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            while not list(tmp_path.glob("downloads/*.part")):
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(0.2)
            process.send_signal(2)
            begun = time.monotonic()
            _, errors = process.communicate(timeout=15)
        assert time.monotonic() - begun < 5
        assert b"KeyboardInterrupt" in errors
        assert files(tmp_path) == set()
