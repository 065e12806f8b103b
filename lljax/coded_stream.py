"""The form of a coded file, and the range coder that makes its words."""

import hashlib
import struct
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

_MAGIC = b"lljx\x01"  # the last byte is the version
_CHECKSUM = struct.Struct("<I")  # CRC-32 of all that follows it
_FIELDS = struct.Struct("<Q4s4s4s4s8s8s")

SHARED = "params", "policy", "train", "settings"
"""What both sides have; each has a digest in the header."""


class Header(NamedTuple):
    """What stands before the words: the length of the file, and beginnings of SHA-256 digests."""

    num_bytes: int
    params: bytes  # 4 bytes each of what is shared: a difference is named, and no more
    policy: bytes
    train: bytes
    settings: bytes
    end: bytes  # 8 bytes, of the parameters that coded the last byte
    data: bytes  # 8 bytes, of the file


def digest(part: Any, size: int) -> bytes:
    """The first bytes of the SHA-256 of bytes, or of arrays with their names, types and shapes."""
    if isinstance(part, bytes):
        return hashlib.sha256(part).digest()[:size]
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(part):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape} ".encode())
        found.update(array.tobytes())
    return found.digest()[:size]


def pack(header: Header, words: np.ndarray) -> bytes:
    """The stream; `words` are [..] uint32."""
    rest = _FIELDS.pack(*header) + words.astype("<u4").tobytes()
    return _MAGIC + _CHECKSUM.pack(zlib.crc32(rest)) + rest


def unpack(stream: bytes) -> tuple[Header, np.ndarray]:
    """(header, words); ValueError unless the stream is whole."""
    if not isinstance(stream, bytes | bytearray | memoryview):
        raise ValueError(f"`stream` must be bytes; got {type(stream).__name__}.")
    magic, rest = bytes(stream[: len(_MAGIC)]), bytes(stream[len(_MAGIC) :])
    if magic != _MAGIC:
        raise ValueError(
            f"`stream` must begin with {_MAGIC!r}, as `encode` of this version writes it; got "
            f"{magic!r}."
        )
    checksum, rest = rest[: _CHECKSUM.size], rest[_CHECKSUM.size :]
    has_form = len(rest) >= _FIELDS.size and (len(rest) - _FIELDS.size) % 4 == 0
    if not has_form or _CHECKSUM.pack(zlib.crc32(rest)) != checksum:
        raise ValueError(f"`stream` is damaged: its {len(stream)} bytes do not fit its checksum.")
    words = np.frombuffer(rest, "<u4", offset=_FIELDS.size).astype(np.uint32)
    return Header(*_FIELDS.unpack_from(rest)), words


def range_coding() -> tuple[Any, Any]:
    """(constriction's queue coders, its distributions over whole numbers from 0 on)."""
    try:
        import constriction
    except ImportError as error:
        raise ImportError(
            "coding needs the package constriction: pip install 'lljax[coding]'."
        ) from error
    # Said, because the default differs between versions; the perfect rounding is a slow search.
    return constriction.stream.queue, constriction.stream.model.Categorical(perfect=False)
