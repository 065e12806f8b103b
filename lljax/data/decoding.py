"""From bytes to characters: UTF-8, what a byte order mark says, or an encoding that is given."""

import codecs
import io
import logging
from collections.abc import Iterator
from typing import BinaryIO

from lljax.data.errors import TextError
from lljax.safe_text import printable

_BLOCK = 1 << 20
_SAMPLE = 1 << 14  # bytes around the first wrong one that an encoding is guessed from
# The marks of UTF-32 begin with those of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LATIN = ("cp125", "latin", "iso8859", "mac", "cp437", "cp85", "hp", "cp1140", "cp500", "cp037")
_SHOWN = 60  # bytes of the line that a guess is shown for


def encoding_of(head: bytes) -> str:
    """How a text that begins so is encoded: by its mark, or by the zeros of UTF-16; else UTF-8."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    zeros = head.count(0)
    # Latin letters in UTF-16 have their zeros all in even, or all in odd places.
    if 4 * zeros > len(head) and min(head[::2].count(0), head[1::2].count(0)) * 20 < zeros:
        return "utf-16-le" if 2 * head[1::2].count(0) > zeros else "utf-16-be"
    return "utf-8"


def text_blocks(file: BinaryIO, encoding: str, where: str) -> Iterator[str]:
    """The characters of a file block by block; line ends are "\\n".

    Raises:
      TextError: they are not of this encoding; `where` is what the message calls the file.
    """
    if codecs.lookup(encoding).name == "utf-8":
        encoding = "utf-8-sig"  # a mark is no text
    decoder = codecs.getincrementaldecoder(encoding)()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    lines = 1
    while True:
        block = file.read(_BLOCK)
        waiting = decoder.getstate()[0]
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise _undecodable(error, waiting + block, encoding, lines, where) from error
        except UnicodeError as error:  # UTF-16 without its mark
            raise TextError(f"{where} is not text in {encoding}: {error}.") from error
        lines += block.count(b"\n")
        text = line_ends.decode(text, final=not block)
        if text:
            yield text
        if not block:
            return


def _undecodable(
    error: UnicodeDecodeError, content: bytes, encoding: str, lines: int, where: str
) -> TextError:
    # The error counts from the first byte that waits to be decoded; its own object says which.
    seen, start = error.object, error.start
    name = "UTF-8" if encoding.startswith("utf-8") else encoding
    if error.reason in (
        "unexpected end of data",
        "truncated data",
        "incomplete multibyte sequence",
    ):
        return TextError(
            f"{where} is not {name} text, or is incomplete: it ends within a character."
        )
    line = lines + seen[:start].count(b"\n")
    sample = content[max(0, start - _SAMPLE // 2) :][:_SAMPLE]
    hint = "Find out its encoding (from where it comes, or with `file -i`) and set data.encoding"
    if encoding.startswith("utf-8") and (found := guesses(sample)):
        line_start = seen.rfind(b"\n", 0, start) + 1
        begin = max(line_start, start - _SHOWN // 2)
        shown = seen[begin : begin + _SHOWN].partition(b"\n")[0]
        read = " or ".join(
            f"{name} (in which it reads: {printable(shown.decode(name, 'replace').strip())})"
            for name in found
        )
        hint = f"It may be {read}: set data.encoding to the one that reads right"
    return TextError(
        f"{where} is not {name} text: byte 0x{seen[start]:02x} in line {line}. {hint}; a wrong "
        f"encoding gives wrong letters."
    )


def guesses(sample: bytes) -> list[str]:
    """At most two encodings that a text may have, as Python calls them, the likelier one first."""
    import charset_normalizer

    logging.getLogger("charset_normalizer").setLevel(logging.ERROR)
    best = charset_normalizer.from_bytes(sample).best()
    if best is None or best.encoding in ("utf_8", "ascii"):
        return []
    if not best.encoding.startswith(_LATIN):
        return [best.encoding]
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return [best.encoding]
    # Latin alphabets are told apart by few letters, and this one is by far the most in use.
    also = [] if best.encoding in ("cp1252", "latin_1", "iso8859_15") else [best.encoding]
    return ["cp1252", *also]


def check_encoding(encoding: str | None) -> None:
    """TextError unless it is an encoding of text that Python knows."""
    if encoding is None:
        return
    try:
        if not codecs.lookup(encoding)._is_text_encoding:
            raise LookupError
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError) as error:
        raise TextError(
            f"data.encoding must be an encoding that Python knows, such as cp1252, latin-1, "
            f"shift_jis or gb18030; got {encoding}."
        ) from error
