"""Files at a URL: fetched once, under a lock, checked, and put into place whole or not at all.

Without a network a download fails within seconds, and a server that stalls or sends next to
nothing is given up: `urlopen` on its own would take far longer, or for ever.
"""

import base64
import hashlib
import http.client
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from lljax.data import cache
from lljax.data.errors import TextError
from lljax.data.progress import Progress, log
from lljax.safe_text import printable, without_secrets

_USER_AGENT = {"User-Agent": "lljax"}  # some servers refuse urllib's own
_REACH_SECONDS = 5.0
_ANSWER_SECONDS = 60.0  # for the head of an answer, however slowly it comes
_SLOW_SECONDS = 30.0  # a server is given up that in this time sends nothing, or less than
_LEAST_SPEED = 300.0  # bytes a second
_BLOCK = 1 << 18


class Fetched(NamedTuple):
    """A file from a URL."""

    path: Path
    size: int | None
    """Bytes of the whole file as the server has it, where it says so."""


def shown(text: object) -> str:
    """Text from a server, or an address, in a message: one short line without secrets."""
    lines = printable(without_secrets(str(text))).strip().splitlines() or [""]
    return lines[0][:300]


def why_unreachable(url: str) -> str | None:
    """None if anything answers at the URL's host, be it a refusal.

    In a thread of its own, because no timeout of `urlopen` covers the look-up of the host's name.
    Proxies are those of the environment, as everywhere in urllib.
    """
    answer = [f"no answer within {_REACH_SECONDS:.0f} seconds"]

    def ask() -> None:
        try:
            urllib.request.urlopen(_request(url, "HEAD"), timeout=_REACH_SECONDS).close()
            answer[0] = ""
        except urllib.error.HTTPError as error:
            error.close()
            answer[0] = ""
        except (OSError, ValueError, http.client.HTTPException) as error:
            answer[0] = _reason(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_REACH_SECONDS + 2)
    return answer[0] or None


def _request(url: str, method: str) -> urllib.request.Request:
    parts = urllib.parse.urlsplit(url)
    user, _, place = parts.netloc.rpartition("@")
    path = urllib.parse.quote(parts.path, safe="/%:=&~+!$,;'@()*")
    query = urllib.parse.quote(parts.query, safe="/%:=&~+!$,;'@()*?[]")
    address = urllib.parse.urlunsplit((parts.scheme, place, path, query, ""))
    request = urllib.request.Request(address, headers=_USER_AGENT, method=method)
    if user:
        # Not sent on to where a redirection leads.
        token = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


def _reason(error: Exception) -> str:
    if isinstance(error, (ValueError, http.client.InvalidURL)):
        return "it is no valid address"  # the error's own words may hold a password
    if isinstance(error, urllib.error.URLError):
        return shown(error.reason)
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke off"
    return shown(error) or type(error).__name__


def _target(url: str, folder: Path, limit: int | None) -> Path:
    name = Path(urllib.parse.urlsplit(url).path).name or "text"
    digest = hashlib.sha256(f"{url} {limit}".encode("utf-8", "replace")).hexdigest()[:16]
    return folder / f"{digest}-{re.sub('[^A-Za-z0-9._-]', '_', name)[-80:]}"


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def download(url: str, folder: Path, limit: int | None = None) -> Fetched:
    """The file at a URL, in `folder`; fetched the first time, and when the copy is damaged.

    Args:
      url: http:// or https://.
      folder: made if need be.
      limit: stop after this many bytes, unless the file is packed.

    Raises:
      TextError: no network, no such file, or `folder` cannot be written.
    """
    try:
        target = _target(url, folder, limit)
    except ValueError as error:
        raise TextError(f"data.path: {shown(url)} cannot be used: {_reason(error)}.") from error
    if fetched := _found(target):
        return fetched
    with cache.writable(folder):
        if fetched := _found(target):  # another process fetched it meanwhile
            return fetched
        if target.exists():
            log(f"warning: {target} is damaged and is fetched again.")
        for leftover in (*folder.glob("*.part"), target, _record(target)):
            cache.remove(leftover)
        if reason := why_unreachable(url):
            raise TextError(
                f"data.path: {shown(url)} cannot be reached ({reason}). Check the network (and the "
                f"proxy in HTTPS_PROXY), or fetch the file elsewhere and give its path as "
                f"data.path."
            )
        part = target.with_name(f"{target.name}.part")
        try:
            size = _fetch(url, part, limit)
            content = {"sha256": cache.digest_of(part), "size": size}
            cache.write_record(_record(target), content)
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    return Fetched(target, size)


def _found(target: Path) -> Fetched | None:
    record = cache.read_record(_record(target))
    try:
        if record is None or cache.digest_of(target) != record["sha256"]:
            return None
    except OSError:
        return None
    return Fetched(target, record["size"])


def forget(fetched: Fetched) -> None:
    """Removes a file that turned out to be unusable, so that the next try fetches it again."""
    with cache.writable(fetched.path.parent):
        cache.remove(fetched.path)
        cache.remove(_record(fetched.path))


def _fetch(url: str, part: Path, limit: int | None) -> int | None:
    """Writes what is at a URL into a file; returns the size that the server tells."""
    try:
        with _open(url) as response:
            return _receive(url, response, part, limit)
    except urllib.error.HTTPError as error:
        error.close()
        raise TextError(
            f"data.path: {shown(url)} answers {error.code} {shown(error.reason)}. Check the "
            f"address."
        ) from error
    except TimeoutError as error:
        raise _too_slow(url) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, TextError) or getattr(error, "filename", None):
            raise
        raise TextError(
            f"data.path: {shown(url)} could not be fetched ({_reason(error)}). Try again, or fetch "
            f"the file elsewhere and give its path as data.path; nothing was kept."
        ) from error


def _open(url: str) -> Any:
    """The answer of a server; waits in slices, so that Ctrl-C and a deadline end it."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(urllib.request.urlopen(_request(url, "GET"), timeout=_SLOW_SECONDS))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    if not answers:
        raise TimeoutError
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def _too_slow(url: str) -> TextError:
    return TextError(
        f"data.path: {shown(url)} sends fewer than {_LEAST_SPEED:.0f} bytes a second for "
        f"{_SLOW_SECONDS:.0f} seconds. Try again later, or fetch the file elsewhere and give its "
        f"path as data.path; nothing was kept."
    )


def _receive(url: str, response: Any, part: Path, limit: int | None) -> int | None:
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise TextError(
            f"data.path: {shown(url)} is a web page. Give the address of the text file itself "
            f"(for example what a page's download button leads to)."
        )
    encoding = headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip"):
        raise TextError(
            f"data.path: {shown(url)} comes packed as {shown(encoding)[:20]}, which lljax does not "
            f"read. Fetch the file elsewhere and give its path as data.path."
        )
    length = headers.get("Content-Length", "")
    size = int(length) if re.fullmatch("[0-9]{1,18}", length.strip()) else None
    if "chunked" in headers.get("Transfer-Encoding", "").lower():
        size = None
    done, window, window_bytes = 0, time.monotonic(), 0
    name = part.name.partition("-")[2].removesuffix(".part")
    packed = False
    expected = size if limit is None else min(size or limit, limit)
    with Progress(f"downloading {name}", expected) as progress, _Part(part) as file:
        while limit is None or packed or done < limit:
            room = _BLOCK if limit is None or packed else min(_BLOCK, limit - done)
            # Of what has arrived, so that a server that sends a byte at a time is noticed.
            if not (block := response.read1(room)):
                break
            # Of packed text it is not known how many bytes hold enough of it.
            packed = packed or (done == 0 and block.startswith(b"\x1f"))
            file.write(block)
            done += len(block)
            window_bytes += len(block)
            progress.advance(len(block))
            seconds = time.monotonic() - window
            if seconds >= _SLOW_SECONDS:
                if window_bytes < _LEAST_SPEED * seconds:
                    raise _too_slow(url)
                window, window_bytes = time.monotonic(), 0
    wanted = size if limit is None or packed or size is None else min(size, limit)
    if wanted is not None and done < wanted:
        raise TextError(
            f"data.path: the connection to {shown(url)} ended after {done} of {wanted} bytes. Try "
            f"again; nothing was kept."
        )
    return None if packed else size


class _Part:
    """A file being written, whose errors name it, unlike those of a connection."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> "_Part":
        self._file = self._path.open("wb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, block: bytes) -> None:
        try:
            while block:
                block = block[self._file.write(block) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
