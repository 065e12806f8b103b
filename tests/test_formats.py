"""What is no text is refused and named, whatever its name says; what is text is read."""

import codecs
import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from texts import DOCUMENTS

from lljax.data.text import TextError, TextSettings, read_documents, read_text

TEXT = "<|endoftext|>".join(DOCUMENTS)


def zipped():
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a.txt", TEXT)
        return file.getvalue()


def tarred():
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            member = tarfile.TarInfo("a.txt")
            member.size = len(TEXT.encode())
            archive.addfile(member, io.BytesIO(TEXT.encode()))
        return file.getvalue()


def image(kind):
    with io.BytesIO() as file:
        Image.new("RGB", (20, 20), "red").save(file, kind)
        return file.getvalue()


def array():
    with io.BytesIO() as file:
        np.save(file, np.arange(3))
        return file.getvalue()


OTHERS = {
    "a zip archive": zipped,
    "a tar archive": tarred,
    "a PDF file": lambda: b"%PDF-1.7\nsome text\n",
    "a Python pickle": lambda: pickle.dumps(DOCUMENTS),
    "a PNG image": lambda: image("PNG"),
    "a JPEG image": lambda: image("JPEG"),
    "a GIF image": lambda: image("GIF"),
    "a NumPy array": array,
    "a binary file": lambda: bytes(5000),
    "a web page": lambda: b"<!-- saved -->\n<!DOCTYPE html>\n<html><body>Once</body></html>",
    "a Git LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:3\n",
}


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz", "no-ending"])
def test_what_is_no_text_is_named(tmp_path, name):
    for kind, make in OTHERS.items():
        content = make()
        (tmp_path / name).write_bytes(gzip.compress(content) if "gz" in name else content)
        with pytest.raises(TextError, match=f"{name} is .*{kind}"):
            read_documents(TextSettings(path=str(tmp_path / name)))


def test_json_of_another_form_is_named(tmp_path):
    (tmp_path / "a.txt").write_text(json.dumps({"data": DOCUMENTS}, indent=1))
    with pytest.raises(TextError, match=r"is JSON, but neither a JSON array nor"):
        read_documents(TextSettings(path=str(tmp_path / "a.txt")))


@pytest.mark.parametrize(
    "start", ["BZh is how", "[aside] once", "{see} the", "RIFF is", "<b>bold</b> is", '"Go," said']
)
def test_text_that_begins_like_something_else_is_read(tmp_path, start):
    (tmp_path / "a.txt").write_text(start + " it begins.")
    assert read_documents(TextSettings(path=str(tmp_path / "a.txt"))) == [start + " it begins."]


@pytest.mark.parametrize("content", [TEXT.encode(), codecs.BOM_UTF8 + TEXT.encode()])
def test_gzip_is_found_without_its_name(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(gzip.compress(content))
    assert read_documents(TextSettings(path=str(tmp_path / "a.txt"))) == DOCUMENTS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("日本語の文章".encode("shift-jis"), "byte 0x93 in line 1"),
        ("one\ntwo café then".encode("latin1"), "byte 0xe9 in line 2.* cp1252 .* two café then"),
        ("café".encode()[:-1], "ends within a character"),
        (b"good\n" * 300_000 + b"\xe2\x82x", "byte 0xe2 in line 300001"),
    ],
)
def test_other_encodings_are_not_decoded_as_utf8(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(TextError, match=f"not UTF-8 text.*{message}"):
        read_documents(TextSettings(path=str(tmp_path / "a.txt")))


def test_characters_across_blocks(tmp_path):
    text = "x" + "é€😀" * 300_000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read_documents(TextSettings(path=str(tmp_path / "a.txt"))) == [text]
    for end in range(2_000_000, 2_000_009):
        (some,) = read_documents(TextSettings(path=str(tmp_path / "a.txt"), max_bytes=end))
        assert text.startswith(some)
        assert end - 4 < len(some.encode()) <= end


def test_a_line_without_end_is_bounded(tmp_path):
    long = json.dumps({"text": "x" * 1_000_000})
    (tmp_path / "a.jsonl").write_text(long)
    with pytest.raises(TextError, match=r"line 1 has more than .*data.max_bytes"):
        read_documents(TextSettings(path=str(tmp_path / "a.jsonl"), max_bytes=1000))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "first"}) + "\n" + long)
    text = read_text(TextSettings(path=str(tmp_path / "a.jsonl"), max_bytes=1000))
    assert (text.documents, text.parts[0].cut) == (["first"], True)


def test_control_sequences_of_a_text_stay_out_of_messages(tmp_path):
    path = tmp_path / "a\x1b[31m.jsonl"
    path.write_text(json.dumps({"\x1b[2Jfield": 1}))
    with pytest.raises(TextError, match="field") as caught:
        read_documents(TextSettings(path=str(path)))
    assert "\x1b" not in str(caught.value)
