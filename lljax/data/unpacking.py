"""Packed files: gzip, xz, bzip2, zstd and lz4 are found by their first bytes and read unpacked."""

import bz2
import gzip
import io
import lzma
import re
from collections.abc import Callable
from typing import Any, BinaryIO, cast

_BZIP2 = re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)")  # three letters could begin a text
_MOST_LAYERS = 3


class NotUnpacked(Exception):
    """A packed file is damaged or incomplete; says as what it was read, and why that failed."""


def unpack(file: io.BufferedReader, name: str) -> tuple[io.BufferedReader, list[str]]:
    """A file as it is inside its packing.

    Args:
      file: at its beginning.
      name: one that ends in .gz and the like must be packed so.

    Returns:
      The unpacked stream, and the layers that were found, the outer one first. Reading it raises
      `NotUnpacked`.
    """
    layers: list[str] = []
    while len(layers) < _MOST_LAYERS:
        kind = packing(file.peek(16)[:16])
        if kind is None and not layers:
            kind = next((kind for kind, end in _ENDINGS.items() if name.endswith(end)), None)
        if kind is None:
            break
        layers.append(kind)
        file = io.BufferedReader(cast(Any, _Unpacked(kind, _OPENERS[kind], file)), 1 << 20)
    return file, layers


def packing(head: bytes) -> str | None:
    """What a file is packed as that begins so; None where it is not."""
    for kind, magic in _MAGIC.items():
        if head.startswith(magic) and (kind != "bzip2" or _BZIP2.match(head)):
            return kind
    return None


class _Unpacked(io.RawIOBase):
    """A stream whose errors are all `NotUnpacked`, whatever the library raises."""

    def __init__(self, kind: str, opener: Callable[[BinaryIO], Any], file: BinaryIO):
        self._kind, self._packed = kind, file
        self._file = self._guarded(lambda: opener(file))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._guarded(lambda: self._file.read(len(buffer)))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._packed.close()
        super().close()

    def _guarded(self, step: Callable[[], Any]) -> Any:
        try:
            return step()
        except (MemoryError, KeyboardInterrupt):
            raise
        except Exception as error:  # BadGzipFile, zlib.error, LZMAError, EOFError, ArrowInvalid ...
            raise NotUnpacked(f"{self._kind} ({error})") from error


def _arrow(codec: str) -> Callable[[BinaryIO], Any]:
    def opener(file: BinaryIO) -> Any:
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), codec)

    return opener


_MAGIC = {
    "gzip": b"\x1f\x8b",
    "xz": b"\xfd7zXZ\x00",
    "bzip2": b"BZh",
    "zstd": b"\x28\xb5\x2f\xfd",
    "lz4": b"\x04\x22\x4d\x18",
}
_ENDINGS = {"gzip": ".gz", "xz": ".xz", "bzip2": ".bz2", "zstd": ".zst", "lz4": ".lz4"}
PACKED_ENDINGS = tuple(_ENDINGS.values())
_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    "xz": lzma.LZMAFile,
    "bzip2": bz2.BZ2File,
    "zstd": _arrow("zstd"),
    "lz4": _arrow("lz4"),
}
