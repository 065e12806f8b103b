"""Where a text is: a file, a glob, a folder or a URL, as a list of files."""

import difflib
import glob
import os
import re
import urllib.parse
from pathlib import Path
from typing import NamedTuple

from lljax.data import cache, remote
from lljax.data.errors import TextError
from lljax.data.progress import log
from lljax.data.unpacking import PACKED_ENDINGS
from lljax.safe_text import printable, without_secrets

CATALOGUE = "tfds:"
"""Before a name in the TensorFlow Datasets catalogue."""
_WHOLE_ONLY = (*PACKED_ENDINGS, ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_PATTERN = re.compile(r"[*?\[]")


class Place(NamedTuple):
    """A file to read."""

    path: Path
    name: str
    """What a user calls it: relative to the folder that was named."""
    size: int | None = None
    """Bytes of the whole file, where only a part of it was fetched."""


class Places(NamedTuple):
    """The files of a setting."""

    files: list[Place]
    are_many: bool
    """Whether a folder or a glob was given, of which files may be left out."""
    fetched: remote.Fetched | None = None


def find(value: str, setting: str, downloads: Path, max_bytes: int) -> Places:
    """The files that a setting names.

    Args:
      value: a file, a folder, a glob or a URL.
      setting: its name, e.g. "data.path".
      downloads: the folder that a URL's file goes to.
      max_bytes: of plain text, that are fetched at most.

    Raises:
      TextError: there are none, or they are out of reach.
    """
    where = f"{setting}: {shown(value)}"
    scheme = re.match("([A-Za-z][A-Za-z0-9+.-]*)://", value)
    if scheme and scheme[1].lower() in ("http", "https"):
        return _fetch(value, downloads, max_bytes)
    if scheme and scheme[1].lower() == "file":
        value = urllib.parse.unquote(urllib.parse.urlsplit(value).path)
    elif scheme:
        raise TextError(
            f"{where} cannot be fetched: only http:// and https:// can. Fetch the file and give "
            f"its path as {setting}."
        )
    path = expanded(value, setting)
    try:
        if path.is_dir():
            return _in_folder(path, where)
        if path.exists() or not _PATTERN.search(value):
            if not path.exists():
                raise TextError(f"{setting}: there is no file {shown(value)}.{_near(path)}")
            return Places([Place(path, shown(value))], are_many=False)
        found = sorted(Path(name) for name in glob.glob(os.fspath(path), recursive=True))
        files: dict[Path, Path] = {}  # one that is found by two names is one
        for one in found:
            if one.is_file():
                files.setdefault(one.resolve(), one)
    except (OSError, ValueError) as error:
        # E.g. a name longer than the file system allows, or with a character that none has.
        reason = getattr(error, "strerror", None) or error
        raise TextError(f"{where} cannot be read: {printable(str(reason))}.") from error
    if not files:
        raise TextError(f"{where} fits no file. A pattern goes in quotes; ** is any folder.")
    each = [Place(one, printable(os.fspath(one))) for one in files.values()]
    return Places(each, are_many=True)


def shown(text: str) -> str:
    """A setting's value in a message."""
    return printable(without_secrets(text))


def expanded(path: str, setting: str) -> Path:
    """A path with ~ expanded."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise TextError(
            f"{setting}: {shown(path)} begins with the home folder of a user that is not known. "
            f"Write the path out."
        ) from error


def cache_folder(value: str | None) -> Path:
    """The folder of data.cache_dir, or the default one."""
    return cache.default_folder() if value is None else expanded(value, "data.cache_dir")


def _fetch(url: str, downloads: Path, max_bytes: int) -> Places:
    # Only of plain text is it known beforehand how much has to be fetched.
    name = url.partition("#")[0].partition("?")[0]
    limit = None if name.lower().endswith(_WHOLE_ONLY) else max_bytes + 1
    fetched = remote.download(url, downloads, limit)
    size = fetched.size if limit is not None else None
    return Places([Place(fetched.path, shown(url), size)], are_many=False, fetched=fetched)


def _in_folder(folder: Path, where: str) -> Places:
    """All files below a folder, but those whose name or whose folder's name begins with a dot."""
    files = []
    seen = {folder.resolve()}

    def left_out(error: OSError) -> None:
        place = printable(os.fspath(error.filename))
        log(f"warning: {place} cannot be read and is left out: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=left_out, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        places = [Path(parent, name).resolve() for name in folders]
        folders[:] = [name for name, at in zip(folders, places, strict=True) if at not in seen]
        seen.update(places)
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                files.append(Place(path, printable(path.relative_to(folder).as_posix())))
    if not files:
        raise TextError(f"{where} is a folder without files. Give one with text in it.")
    return Places(files, are_many=True)


def _near(path: Path) -> str:
    folder = path.parent
    names = [file.name for file in folder.iterdir()] if os.access(folder, os.R_OK) else []
    near = difflib.get_close_matches(path.name, names, 1)
    return f" Did you mean {printable(str(folder / near[0]))}?" if near else _in_catalogue(path)


def _in_catalogue(path: Path) -> str:
    """A hint where it is a name of the TensorFlow Datasets catalogue."""
    if path.suffix or len(path.parts) != 1:
        return ""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    near = difflib.get_close_matches(path.name, known, 1, 0.9)
    return f" For the data set of the catalogue give {CATALOGUE}{near[0]}." if near else ""
