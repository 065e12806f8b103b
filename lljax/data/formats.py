"""What a file is, found by its first bytes, so that nothing but text is read as text."""

import codecs
import re

_MAGIC = (
    (b"PK\x03\x04", "a zip archive (or a file made of one, such as .docx, .xlsx, .npz or .pt)"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "packed as gzip twice"),  # once is unpacked before it is looked at
    (b"\xfd7zXZ\x00", "packed as xz"),
    (b"BZh", "packed as bzip2"),
    (b"\x28\xb5\x2f\xfd", "packed as zstd"),
    (b"\x04\x22\x4d\x18", "packed as lz4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!\x1a\x07", "a rar archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"FEA1", "a Feather file"),
    (b"Obj\x01", "an Avro file"),
    (b"%PDF-", "a PDF file"),
    (b"%!PS", "a PostScript file"),
    (b"{\\rtf", "an RTF file"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office file"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"RIFF", "a RIFF file (WebP, WAV or AVI)"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x03", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x80\x05", "a Python pickle"),
    (b"version https://git-lfs.github.com/spec/", "not the text but a Git LFS pointer to it"),
    # The marks of UTF-32 begin with or hold those of UTF-16.
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_CONFIRMED = {
    b"BZh": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    b"ID3": re.compile(rb"ID3[\x02-\x04]\x00"),
    b"RIFF": re.compile(rb"RIFF.{4}(WEBP|WAVE|AVI )", re.DOTALL),
}
"""What else must stand there where the first letters could begin a text."""
_MARKUP_BEFORE = rb"(\s|<\?xml[^>]*\?>|<!--.*?-->)*"
_HTML = re.compile(_MARKUP_BEFORE + rb"<(!doctype\s+html|html[\s>])", re.IGNORECASE | re.DOTALL)
_JSON_ARRAY = re.compile(rb"\s*\[\s*(\{\s*(\"|\})|\"([^\"\\\n]|\\.)*\"\s*[,\]])")
_JSON_OBJECT = re.compile(rb"\s*\{\s*\"([^\"\\\n]|\\.)*\"\s*:")
_CURES = {
    **{
        name: f"Convert it, e.g. with `iconv -f {name.lower()} -t utf-8`."
        for name in ("UTF-16", "UTF-16LE", "UTF-16BE", "UTF-32")
    },
    "a JSON array": "Write its elements one a line, e.g. with `jq -c '.[]'`, into a .jsonl file.",
    "JSON": "Let its name end in .jsonl if each line is an object with a field `text`.",
    "a web page": "Give a file with the page's text.",
    "not the text but a Git LFS pointer to it": "Fetch the file itself, e.g. with `git lfs pull`.",
}
HEAD_BYTES = 4096


def what_it_is(head: bytes) -> str | None:
    """What a file is that begins with `head`, and how to make text of it; None if it may be text.

    Args:
      head: up to `HEAD_BYTES`, of what gzip held if the file is packed so.
    """
    kind = _kind(head)
    if kind is None:
        return None
    return f"is {kind}. {_CURES.get(kind, 'Give plain text (UTF-8) or JSON lines.')}"


def _kind(head: bytes) -> str | None:
    for magic, kind in _MAGIC:
        if head.startswith(magic) and (magic not in _CONFIRMED or _CONFIRMED[magic].match(head)):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[4:8] == b"ftyp":
        return "a video or HEIF image"
    head = head.removeprefix(codecs.BOM_UTF8)
    if _HTML.match(head):
        return "a web page"
    zeros = head.count(0)
    if 10 * zeros > len(head):
        # Latin letters in UTF-16 have their zeros all in even, or all in odd places.
        if min(head[::2].count(0), head[1::2].count(0)) * 20 < zeros > len(head) // 4:
            return "UTF-16LE" if head[1::2].count(0) > zeros // 2 else "UTF-16BE"
        return "a binary file"
    return None


def json_kind(head: bytes) -> str | None:
    """As `what_it_is`, for a file that is to be read as plain text but is JSON."""
    head = head.removeprefix(codecs.BOM_UTF8)
    kind = "a JSON array" if _JSON_ARRAY.match(head) else None
    kind = kind or ("JSON" if _JSON_OBJECT.match(head) else None)
    return kind and f"is {kind}, not plain text. {_CURES[kind]}"


def not_utf8(line: int, byte: int) -> str:
    """What to say of a file that is some other text; no guess, which could ruin it."""
    return (
        f"is not UTF-8 text: byte 0x{byte:02x} in line {line}. Find out its encoding (from where "
        f"it comes, or with `file -i`) and convert it with `iconv -f ENCODING -t utf-8`; a wrong "
        f"ENCODING gives wrong letters."
    )
