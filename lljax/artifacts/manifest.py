"""The manifest of a finished run: a SHA-256 of each of its files, so that damage is found.

It is written last. A workdir whose files fit their manifest is finished; a run that goes on removes
the manifest first.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lljax.artifacts import schema
from lljax.artifacts.files import write_json
from lljax.artifacts.reading import check_absent, read_json


def write_manifest(folder: Path) -> None:
    """Writes the manifest of a workdir in which everything else is written."""
    results = [name for name in schema.RESULT_FILES if (folder / name).exists()]
    _write(folder, {name: _digest(folder / name) for name in (*results, *_report_files(folder))})


def renew_report(folder: Path) -> None:
    """Takes what was made of a finished run since into the manifest: a report that was drawn again,
    and transfer.json. Does nothing where there is no manifest."""
    files = read_manifest(folder)
    if files is not None:
        later = schema.TRANSFER_FILE
        kept = {n: d for n, d in files.items() if not is_of_report(n) and n != later}
        made = [*_report_files(folder), *([later] if (folder / later).exists() else [])]
        _write(folder, kept | {name: _digest(folder / name) for name in made})


def read_manifest(folder: Path) -> dict[str, str] | None:
    """File name -> SHA-256; None where there is no manifest, or it is damaged.

    Raises:
      CannotRead: the disk or its permissions do not let it be read.
    """
    path = folder / schema.MANIFEST_FILE
    try:
        manifest = read_json(path)
        files = dict(manifest["files"])
        return files if manifest["sha256"] == _digest_of_tree(files) else None
    except (OSError, TypeError, LookupError, ValueError) as error:
        check_absent(path, error)
        return None


def wrong_files(folder: Path, names: Collection[str] | None = None) -> list[str] | None:
    """The files that are gone or not as they were written.

    Args:
      folder: the workdir.
      names: which ones to look at; all that the manifest knows, and the report, when None.

    Returns:
      None where there is no manifest, or it is damaged.

    Raises:
      CannotRead: the disk or its permissions do not let one of them be read.
    """
    files = read_manifest(folder)
    if files is None:
        return None
    looked_at = {*files, schema.REPORT_FILE} if names is None else files.keys() & {*names}
    return sorted(
        name for name in looked_at if name not in files or _digest(folder / name) != files[name]
    )


def is_of_report(name: str) -> bool:
    """Whether a file is one of those that `lljax report` draws from the others."""
    return name not in schema.RESULT_FILES


def _report_files(folder: Path) -> list[str]:
    figures = sorted((folder / schema.FIGURES_FOLDER).glob("*.png"))
    report = [folder / schema.REPORT_FILE] if (folder / schema.REPORT_FILE).exists() else []
    return [path.relative_to(folder).as_posix() for path in (*report, *figures)]


def _write(folder: Path, files: dict[str, Any]) -> None:
    manifest = {"files": files, "sha256": _digest_of_tree(files)}
    write_json(folder / schema.MANIFEST_FILE, manifest)


def _digest(path: Path) -> str | None:
    """Of a file's bytes; None where there is no file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        check_absent(path, error)
        return None


def _digest_of_tree(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
