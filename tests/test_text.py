"""From text files to documents: real files, and those that cannot be used."""

import gzip
import json
import os
import subprocess
import sys

import pytest
from texts import DOCUMENTS, prepared

from lljax.data.sequences import load_sequences
from lljax.data.text import TextError, TextSettings, read_documents
from lljax.data.tokenizer import train_tokenizer


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_every_kind_of_file_gives_the_same_documents(tmp_path, kind, packed):
    if kind == "txt":
        content = "\ufeff" + "\n<|endoftext|>\n".join(DOCUMENTS)
    else:
        content = "\n".join(json.dumps({"id": 3, "text": text}) for text in DOCUMENTS)
    path = tmp_path / f"text.{kind}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert read_documents(TextSettings(path=str(path))) == DOCUMENTS


@pytest.mark.parametrize(
    ("content", "separator", "expected"),
    [
        ("a\n\nb\n \n\nc\nd", None, ["a", "b", "c\nd"]),
        ("a\r\n\r\nb\r\nc", None, ["a", "b\nc"]),
        ("a\n\nb<|endoftext|>c<|endoftext|>", None, ["a\n\nb", "c"]),
        ("a\nb\n\nc", r"\n", ["a", "b", "c"]),
        ("a##b## ##a", "##", ["a", "b"]),
    ],
)
def test_separators(tmp_path, content, separator, expected):
    (tmp_path / "a.txt").write_bytes(content.encode())
    settings = TextSettings(path=str(tmp_path / "a.txt"), separator=separator)
    assert read_documents(settings) == expected


def test_no_more_than_max_bytes_up_to_the_last_whole_document(tmp_path):
    (tmp_path / "a.txt").write_text("ää\n\nöö\n\nüü", encoding="utf-8")
    for max_bytes in range(1, 30):
        settings = TextSettings(path=str(tmp_path / "a.txt"), max_bytes=max_bytes)
        if max_bytes == 1:  # not even one character
            with pytest.raises(TextError, match="holds no text"):
                read_documents(settings)
            continue
        whole = (max_bytes >= 4) + (max_bytes >= 10) + (max_bytes >= 16)
        expected = ["ää", "öö", "üü"][:whole] or ["ä" if max_bytes < 4 else "ää"]
        assert read_documents(settings) == expected, max_bytes


def test_without_a_source_there_is_text(tmp_path):
    documents = read_documents(TextSettings())
    assert len(documents) > 1000
    assert sum(map(len, documents)) > 300_000
    sequences = load_sequences(
        TextSettings(vocab_size=500, context=32, cache_dir=str(tmp_path / "c"))
    )
    assert len(sequences.tokens) > 3000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "data.path: .*a.txt holds no text"),
        ("a.txt", b" \n\n \n", "holds no text"),
        ("a.txt", b"Only one line.", "data.vocab_size is 200, but the text supports at most"),
        ("a.txt", b"fine\nfine\nf\xe9 not", "a.txt is not UTF-8 text: byte 0xe9 in line 3"),
        ("a.txt.gz", b"plain", "cannot be unpacked as gzip"),
        ("a.txt.gz", gzip.compress(b"long " * 99, mtime=0)[:-6], "cannot be unpacked as gzip"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b', "line 3 is not JSON"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"story": "b"}',
            "line 2 .* field `text`; it has the .* story",
        ),
        ("a.jsonl", b'{"text": 3}', "line 1 must have a string in the field `text`"),
        ("a.jsonl", b'["text"]', "data.vocab_size is 200, but the text supports at most"),
        ("a.jsonl", b"[1, 2]", r"line 1 must have a text .* it has no fields but is \[1, 2\]"),
        ("a.jsonl", b'{"text": "\xff"}', "not UTF-8 text: byte 0xff in line 1"),
    ],
)
def test_bad_text(tmp_path, settings, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        load_sequences(settings(path=str(tmp_path / name)))
    assert not prepared(tmp_path)


def test_no_document_is_as_long_as_a_sequence(settings, tmp_path):
    longest = max(map(len, train_tokenizer(DOCUMENTS, 200).encode(DOCUMENTS)))
    message = f"data.context is {longest}, so a .* {longest + 1} tokens, .* has {longest}"
    with pytest.raises(TextError, match=message):
        load_sequences(settings(context=longest))
    assert not prepared(tmp_path)
    assert load_sequences(settings(context=longest - 1)).tokens.shape[1] == longest


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "stories.txt").write_text("a")
    with pytest.raises(TextError, match=r"no file .*story\.txt\. Did you mean .*stories\.txt\?"):
        read_documents(TextSettings(path=str(tmp_path / "story.txt")))
    with pytest.raises(TextError, match="no file"):
        read_documents(TextSettings(path=str(tmp_path / "nowhere" / "story.txt")))
    assert read_documents(TextSettings(path=str(tmp_path))) == ["a"]
    (tmp_path / "stories.txt").unlink()
    with pytest.raises(TextError, match="is a folder without files"):
        read_documents(TextSettings(path=str(tmp_path)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_without_permission(tmp_path):
    (tmp_path / "a.txt").touch(mode=0o000)
    with pytest.raises(TextError, match=r"data.path: .*a.txt cannot be read"):
        read_documents(TextSettings(path=str(tmp_path / "a.txt")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "a", "tfds": "b"}, "data.path and data.tfds both"),
        ({"separator": ""}, "data.separator must not be empty"),
        ({"vocab_size": 2}, "data.vocab_size must be at least 16; got 2"),
        ({"context": 0}, "data.context must be at least 2"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(TextError, match=message):
        TextSettings(**changes)


def test_no_heavy_imports():
    code = "import sys, lljax, lljax.data.sequences, lljax.data.perturbation; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0
    assert not {"tensorflow_datasets", "sentencepiece"} & set(result.stdout.split())
