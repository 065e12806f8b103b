"""Ways in which files and folders are damaged, and which of them there are to damage."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from numpy.random import Generator


class Case(NamedTuple):
    """One thing that is done to one file or folder."""

    way: str
    target: Path  # relative to the damaged folder
    damage: Callable[[Path, Generator], None]  # given that folder

    def __str__(self) -> str:
        return f"{self.way}: {self.target}"


def flip_bit(path: Path, position: int, rng: Generator) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def flip_inside(path: Path, rng: Generator) -> None:
    flip_bit(path, int(rng.integers(path.stat().st_size)), rng)


def flip_first(path: Path, rng: Generator) -> None:
    flip_bit(path, int(rng.integers(min(8, path.stat().st_size))), rng)


def flip_last(path: Path, rng: Generator) -> None:
    flip_bit(path, -1 - int(rng.integers(min(8, path.stat().st_size))), rng)


def empty(path: Path, rng: Generator) -> None:
    path.write_bytes(b"")


def cut_in_half(path: Path, rng: Generator) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_by_a_byte(path: Path, rng: Generator) -> None:
    os.truncate(path, path.stat().st_size - 1)


def junk(path: Path, rng: Generator) -> None:
    path.write_bytes(rng.bytes(max(100, path.stat().st_size)))


def append(path: Path, rng: Generator) -> None:
    with path.open("ab") as file:
        file.write(rng.bytes(100))


def delete(path: Path, rng: Generator) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def replace_by_folder(path: Path, rng: Generator) -> None:
    path.unlink()
    path.mkdir()


def replace_by_file(path: Path, rng: Generator) -> None:
    shutil.rmtree(path)
    path.write_bytes(rng.bytes(100))


def empty_folder(path: Path, rng: Generator) -> None:
    shutil.rmtree(path)
    path.mkdir()


_FLIPS = {"flip inside": flip_inside, "flip first": flip_first, "flip last": flip_last}
_CUTS = {"empty": empty, "cut in half": cut_in_half, "cut by a byte": cut_by_a_byte}
_REPLACEMENTS = {"append": append, "junk": junk, "replace by folder": replace_by_folder}
_DELETION = {"delete": delete}
_FOR_FOLDERS = {"delete": delete, "empty": empty_folder, "replace by file": replace_by_file}
_SWAP = "swap"

WAYS = {"flip": _FLIPS, "cut": _CUTS, "delete": _DELETION, "replace": _REPLACEMENTS}
"""Of damaging a file, in groups of which every kind of file gets one, whichever it is."""


def kind_of(path: Path | str) -> str:
    """Files, or cases, that differ in a number or a hash only are of one kind; so are figures."""
    text = re.sub(r"fig\d+_\w+", "figure", str(path))
    return re.sub(r"\d+", "N", re.sub(r"[0-9a-f]{16,}", "H", text))


def in_natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """So that checkpoint 10 comes behind checkpoint 9."""
    parts = re.split(r"(\d+)", str(path))
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def kinds(folder: Path, *, of_folders: bool = False) -> dict[str, list[Path]]:
    """What there is in a folder, hidden files too: relative paths by kind, the newest last."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*"), key=in_natural_order):
        if path.is_dir() == of_folders:
            relative = path.relative_to(folder)
            found.setdefault(kind_of(relative), []).append(relative)
    return found


def file_cases(folder: Path, group: str, rng: Generator, repeats: int = 1) -> Iterator[Case]:
    """Some cases for each kind of file.

    Args:
      folder: what is to be damaged.
      group: of ways, in `WAYS`.
      rng: chooses the way.
      repeats: cases for the newest file of a kind, which is read. A flip also meets another one;
        of files at the top, which hold numbers for people, it meets twice as many bits.
    """
    for members in kinds(folder).values():
        *others, newest = members
        targets = [newest] * repeats
        if group == "flip":
            targets *= 2 if len(newest.parts) == 1 else 1
            targets += [others[int(rng.integers(len(others)))]] if others else []
        for target in targets:
            ways = [*WAYS[group], _SWAP] if group == "replace" and others else [*WAYS[group]]
            way = str(rng.choice(ways))
            if way == _SWAP:
                yield swap(newest, others[int(rng.integers(len(others)))])
            elif group not in ("flip", "cut") or (folder / target).stat().st_size:
                yield on(target, way, WAYS[group][way])


def payload_cases(folder: Path, parts: tuple[str, ...], flips: int) -> Iterator[Case]:
    """Flips in every file that holds arrays of the newest checkpoint of each kind.

    Args:
      folder: of a run.
      parts: folders of numbered checkpoints in it.
      flips: in each file; in a large one more.
    """
    for part in parts:
        numbered = [path for path in (folder / part).iterdir() if path.name.isdigit()]
        newest = max(numbered, key=lambda path: int(path.name))
        for path in sorted(newest.rglob("*")):
            if path.is_file() and path.parent.name == "d":
                for _ in range(flips + path.stat().st_size // 8000):
                    yield on(path.relative_to(folder), "flip", flip_inside)


def folder_cases(folder: Path, rng: Generator) -> Iterator[Case]:
    """What can happen to a folder as a whole, and what may stray into it.

    Every way for those at the top and those that are numbered, one of the ways for others.
    """
    for members in kinds(folder, of_folders=True).values():
        *others, target = members
        is_main = len(target.parts) == 1 or target.name.isdigit()
        for way in _FOR_FOLDERS if is_main else [str(rng.choice([*_FOR_FOLDERS]))]:
            yield on(target, way, _FOR_FOLDERS[way])
        if others and target.name.isdigit():
            yield swap(target, others[int(rng.integers(len(others)))])
        if len(target.parts) == 1:
            yield stray(target / "notes.txt", b"a note\n")
            yield stray(target / "copy", None)
            yield stray(target / "999999", None)


def on(target: Path, way: str, action: Callable[[Path, Generator], None]) -> Case:
    return Case(way, target, lambda folder, rng: action(folder / target, rng))


def swap(first: Path, second: Path) -> Case:
    """Two files or folders of one kind in each other's place."""

    def exchange(folder: Path, rng: Generator) -> None:
        aside = folder / f"{first.name}.aside"
        os.rename(folder / first, aside)
        os.rename(folder / second, folder / first)
        os.rename(aside, folder / second)

    return Case(f"{_SWAP} with {second}", first, exchange)


def stray(target: Path, content: bytes | None) -> Case:
    """A file or, without content, a folder that nobody expects."""

    def put(folder: Path, rng: Generator) -> None:
        if content is None:
            (folder / target).mkdir()
        else:
            (folder / target).write_bytes(content)

    return Case("stray", target, put)
