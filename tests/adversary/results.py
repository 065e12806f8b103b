"""What a finished workdir says, number by number, and where it differs from what it should say."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

Contents = dict[str, Any]
"""Values by `file:name`; None for what JSON has as null."""

POLICY = "policy.npy"
UNREADABLE = "unreadable"
_DRAWN = (".html", ".png", ".pdf")
_FOR_RESUMING = (
    "checkpoints",
    "snapshots",
)  # no results; a run that reads them shows what is wrong
_MANIFEST = "manifest.json:"  # digests of the other files, among them drawings and times
_TIMES = ("seconds", "finished")
_UNFINISHED = ("sweep", "look")  # folders that only an unfinished run has
# What must be right of a run that ended at an earlier policy of the undisturbed optimisation.
_OF_A_POLICY = (POLICY, *(f"summary.json:{name}." for name in ("desired", "validation", "test")))


class Comparison(NamedTuple):
    wrong: list[str]
    lacking: list[str]


class Reference:
    """What a workdir is compared with."""

    def __init__(
        self, workdir: Path, another: Path, earlier: Callable[[], list[Contents]] = lambda: []
    ):
        """What differs between two undisturbed runs is not deterministic.

        Args:
          workdir: of an undisturbed run.
          another: of the same run again.
          earlier: gives what undisturbed runs of fewer outer steps leave; it is asked when a
            policy is not that of `workdir`.
        """
        self._contents, self._earlier = contents(workdir), earlier
        again = contents(another)
        assert set(again) == set(self._contents)
        self._varying = {key for key in again if again[key] != self._contents[key]}
        assert POLICY not in self._varying
        # Two times may be the same by chance.
        self._varying |= {key for key in again if any(word in key for word in _TIMES)}

    def compare(self, workdir: Path) -> Comparison:
        """Of the workdir of another run, whose times and figures may differ."""
        found = contents(workdir)
        if found.get(POLICY, UNREADABLE) != self._contents[POLICY]:
            return self._compare_with_earlier(found)
        wanted = {
            key: value
            for key, value in self._contents.items()
            if key not in self._varying and not key.startswith(("figures/", _MANIFEST))
        }
        return _differences(found, wanted)

    def compare_exactly(self, workdir: Path, damaged: Contents) -> Comparison:
        """Of a copy of the reference itself, in which nothing may stay damaged.

        Args:
          workdir: the copy.
          damaged: what it said before the run; what is made again may have other times.
        """
        wrong, lacking = self.compare(workdir)
        found = contents(workdir)
        for key, value in self._contents.items():
            stayed = key not in found or found[key] == damaged.get(key)
            if found.get(key) != value and stayed and key not in wrong + lacking:
                lacking.append(key)
        return Comparison(wrong, lacking)

    def _compare_with_earlier(self, found: Contents) -> Comparison:
        for wanted in self._earlier():
            if found.get(POLICY) == wanted[POLICY]:
                chosen = {k: v for k, v in wanted.items() if k.startswith(_OF_A_POLICY)}
                wrong, lacking = _differences(found, chosen)
                return Comparison(wrong, ["the later outer steps", *lacking])
        return Comparison([POLICY], [])


def _differences(found: Contents, wanted: Contents) -> Comparison:
    wrong = [key for key, value in found.items() if value is UNREADABLE]
    lacking = [key for key in found if key in _UNFINISHED]
    for key, value in wanted.items():
        there = found.get(key)
        if there == value:
            continue
        drawn = key.endswith(_DRAWN)
        (lacking if there is None or drawn else wrong).append(key)
    return Comparison(wrong, lacking)


def contents(workdir: Path) -> Contents:
    """All that the files of a finished run say; those from which it was resumed are left out."""
    found: Contents = {}
    for path in sorted(workdir.rglob("*")):
        parts = path.relative_to(workdir).parts
        if any(part.startswith(".") for part in parts) or parts[0] in _FOR_RESUMING:
            continue
        if parts[0] in _UNFINISHED:
            if path.is_dir():
                found[parts[0]] = True
        elif path.is_file():
            name = "/".join(parts)
            try:
                found |= {f"{name}{key}": value for key, value in _read(path)}
            except Exception:  # whatever a damaged file makes of its reader
                found[name] = UNREADABLE
    return found


def _read(path: Path) -> Iterator[tuple[str, Any]]:
    match path.suffix:
        case ".json":
            yield from _leaves(json.loads(path.read_text(encoding="utf-8")))
        case ".jsonl":
            for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
                yield from ((f":{line['outer_step']}.{key}", value) for key, value in line.items())
        case ".npz":
            yield from _arrays(path)
        case ".png":
            content = path.read_bytes()
            Image.open(io.BytesIO(content)).load()
            yield "", content
        case _:
            yield "", path.read_bytes()


def _leaves(tree: Any, name: str = ":") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from _leaves(value, f"{name}{key}.")
    else:
        yield name, tree


def _arrays(path: Path) -> Iterator[tuple[str, Any]]:
    """Arrays as bytes; those along the path of the optimisation outer step by outer step."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = dict(archive)
    steps = arrays.get("path_outer_step")
    for name, array in arrays.items():
        if steps is not None and name.startswith("path_"):
            for step, row in zip(steps, array, strict=True):
                yield f":{name}[{int(step)}]", (row.dtype.str, row.shape, row.tobytes())
        else:
            yield f":{name}", (array.dtype.str, array.shape, array.tobytes())
