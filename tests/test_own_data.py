"""People's own data: what each kind of file, folder, encoding and record gives."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile

import pyarrow
import pyarrow.parquet
import pytest
from texts import DOCUMENTS

from lljax.data.text import (
    LeftOut,
    TextError,
    TextSettings,
    read_documents,
    read_text,
    stream_documents,
)

TEXTS = DOCUMENTS[:40]
ROWS = [{"id": i, "text": text, "domain": "ab"[i % 2]} for i, text in enumerate(TEXTS)]
JSON_LINES = "\n".join(map(json.dumps, ROWS)).encode()


def table(delimiter):
    file = io.StringIO()
    writer = csv.DictWriter(file, ["id", "text", "domain"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def of_arrow(write):
    sink = io.BytesIO()
    write(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def ipc(opener):
    def write(rows, sink):
        with opener(sink, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=7)

    return of_arrow(write)


def packed_by_arrow(codec):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as stream:
        stream.write(JSON_LINES)
    return sink.getvalue().to_pybytes()


KINDS = {
    "plain text": "<|endoftext|>".join(TEXTS).encode(),
    "JSON lines": JSON_LINES,
    "a JSON array of objects": json.dumps(ROWS, indent=1).encode(),
    "a JSON array of texts": json.dumps(TEXTS).encode(),
    "CSV": table(","),
    "TSV": table("\t"),
    "semicolons": table(";"),
    "Parquet": of_arrow(pyarrow.parquet.write_table),
    "an Arrow file": ipc(pyarrow.ipc.new_file),
    "an Arrow stream": ipc(pyarrow.ipc.new_stream),
    "gzip": gzip.compress(JSON_LINES),
    "xz": lzma.compress(JSON_LINES),
    "bzip2": bz2.compress(table(",")),
    "zstd": packed_by_arrow("zstd"),
    "lz4": packed_by_arrow("lz4"),
    "gzip twice": gzip.compress(gzip.compress(JSON_LINES)),
    "UTF-8 with a mark": b"\xef\xbb\xbf" + JSON_LINES,
    "UTF-16": JSON_LINES.decode().encode("utf-16"),
    "UTF-16 without a mark": table(",").decode().encode("utf-16-le"),
}


@pytest.mark.parametrize("name", ["data", "data.txt"])
@pytest.mark.parametrize("kind", KINDS)
def test_content_tells_the_kind_whatever_the_name(tmp_path, kind, name):
    (tmp_path / name).write_bytes(KINDS[kind])
    settings = TextSettings(path=str(tmp_path / name))
    text = read_text(settings)
    assert text.documents == TEXTS
    is_plain = kind == "plain text"
    assert [origin.offset for origin in text.origins[:2]] == (
        [0, len(TEXTS[0]) + 13] if is_plain else [0, 1]
    )
    assert [document.text for document, _ in stream_documents(settings, LeftOut())] == TEXTS


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if "plain" not in kind and "texts" not in kind]
)
def test_a_column_is_the_group(tmp_path, kind):
    (tmp_path / "data").write_bytes(KINDS[kind])
    text = read_text(TextSettings(path=str(tmp_path / "data"), group="domain"))
    assert [origin.group for origin in text.origins[:3]] == ["a", "b", "a"]
    with pytest.raises(
        TextError, match=r"`no` that data.group names; it has the fields id, text, d"
    ):
        read_text(TextSettings(path=str(tmp_path / "data"), group="no"))
    with pytest.raises(TextError, match=r"`body`; it has the fields id, text, domain. Set data.fi"):
        read_text(TextSettings(path=str(tmp_path / "data"), field="body"))


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "data"
    for kind in (
        "Parquet",
        "an Arrow file",
        "gzip",
        "xz",
        "bzip2",
        "zstd",
        "a JSON array of objects",
    ):
        path.write_bytes(KINDS[kind][: len(KINDS[kind]) * 2 // 3])
        with pytest.raises(
            TextError, match=r"data.path: .*data (is|cannot be) .*(damaged|incomplete)"
        ):
            read_text(TextSettings(path=str(path)))
    path.write_bytes(table(",") + b'7,"two cells"\n')
    with pytest.raises(TextError, match="has 2 cells, and the header has 3"):
        read_text(TextSettings(path=str(path)))
    path.write_bytes(gzip.compress(KINDS["Parquet"]))
    with pytest.raises(TextError, match=r"is a Parquet file within gzip.* Unpack it first"):
        read_text(TextSettings(path=str(path)))


def test_two_columns_of_a_name_are_not_guessed(tmp_path):
    rows = pyarrow.Table.from_arrays([["one"], ["two"], [3]], ["text", "text", "other"])
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,other,text\none,3,two\n")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(TextError, match="2 columns of the name text"):
            read_documents(TextSettings(path=str(path)))
    (tmp_path / "b.csv").write_text("text,x,x\none,2,3\n")
    assert read_documents(TextSettings(path=str(tmp_path / "b.csv"))) == ["one"]


def test_moments_are_groups_though_python_has_no_form_for_them(tmp_path):
    moments = pyarrow.array([0, 2**50, None], pyarrow.timestamp("s"))
    rows = pyarrow.table({"text": ["one", "two", "three"], "when": moments})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    text = read_text(TextSettings(path=str(tmp_path / "a.parquet"), group="when"))
    groups = [origin.group for origin in text.origins]
    assert groups[0].startswith("1970-01-01 00:00:00")
    assert len({*groups}) == 3


def test_nested_fields_and_chats(tmp_path):
    path = tmp_path / "a.jsonl"
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    path.write_text(json.dumps({"data": {"parts": [{"body": "Once"}], "chat": chat}, "a.b": "dot"}))

    def read(field, **more):
        return read_documents(TextSettings(path=str(path), field=field, **more))

    assert read("data.parts.0.body") == ["Once"]
    assert read("a.b") == ["dot"]
    assert read("data.chat") == ["user: Who?\n\nassistant: I."]
    assert read("data.chat", chat_template="<{role}>{content}") == ["<user>Who?<assistant>I."]
    for field in ("data.parts.1.body", "data.parts.body", "data.none"):
        with pytest.raises(TextError, match="must have a text in the field"):
            read(field)
    with pytest.raises(TextError, match=r"data.chat_template must hold \{content\}"):
        TextSettings(chat_template="{role}")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Le café était déjà fermé quand la petite fille arriva à l’école."),  # noqa: RUF001
        ("cp1251", "Однажды в лесу жила маленькая девочка, которая любила читать."),
        ("shift_jis", "昔々あるところに、おじいさんとおばあさんが住んでいました。" * 2),
        ("gb18030", "从前有一座山，山上有一座庙，庙里有一个老和尚。" * 2),  # noqa: RUF001
    ],
)
def test_another_encoding_is_guessed_for_a_person_and_read_when_said(tmp_path, encoding, text):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    path = str(tmp_path / "a.txt")
    with pytest.raises(TextError, match=f"It may be .*({encoding}|cp932).* set data.encoding"):
        read_documents(TextSettings(path=path))
    assert read_documents(TextSettings(path=path, encoding=encoding)) == [text]
    with pytest.raises(TextError, match=r"data.encoding must be an encoding that Python knows"):
        TextSettings(encoding="klingon")


def test_folders_and_globs(tmp_path):
    folder = tmp_path / "corpus"
    for domain in "ab":
        (folder / domain).mkdir(parents=True)
    (folder / "a" / "1.txt").write_text("one\n\nstill one")
    (folder / "a" / "2.txt").write_text("two")
    (folder / "b" / "rows.csv").write_bytes(table(","))
    (folder / "b" / ".hidden").write_text("no")
    with zipfile.ZipFile(folder / "b" / "3.txt", "w") as archive:
        archive.writestr("x", "y")
    (folder / "b" / "latin.txt").write_bytes("caf\xe9".encode("latin1"))
    text = read_text(TextSettings(path=str(folder), group="folder"))
    assert text.documents == ["one\n\nstill one", "two", *TEXTS]
    assert [origin.group for origin in text.origins] == ["a", "a", *"b" * 40]
    assert [origin.source for origin in text.origins[:3]] == ["a/1.txt", "a/2.txt", "b/rows.csv"]
    part = text.parts[0]
    assert part.files == 3
    assert sorted(part.left_out.values()) == [1, 1]
    assert any("a zip archive" in kind for kind in part.left_out)
    found = read_text(TextSettings(path=str(folder / "**" / "*.txt"), group="file"))
    assert [(o.source.rpartition("/")[2], o.group) for o in found.origins] == [
        ("1.txt", "1.txt"),
        ("2.txt", "2.txt"),
    ]
    with pytest.raises(TextError, match="fits no file"):
        read_text(TextSettings(path=str(folder / "*.md")))
    with pytest.raises(TextError, match=r"no file tiny_shakespear\..* give tfds:tiny_shakespeare"):
        read_text(TextSettings(path="tiny_shakespear"))


def test_of_many_files_each_gives_its_share(tmp_path):
    for name in "abc":
        text = "".join(f"{name}{i:05d}<|endoftext|>" for i in range(2000))
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "small.txt").write_text("small")
    text = read_text(TextSettings(path=str(tmp_path), max_bytes=30_000, group="file"))
    counts = {}
    for origin in text.origins:
        counts[origin.group] = counts.get(origin.group, 0) + 1
    assert counts["small.txt"] == 1
    assert max(counts[f"{n}.txt"] for n in "abc") - min(counts[f"{n}.txt"] for n in "abc") <= 1
    assert text.parts[0].cut
    assert text.parts[0].bytes_read <= 30_000


def test_what_is_desired_is_not_trained_on(tmp_path):
    (tmp_path / "corpus.txt").write_text("<|endoftext|>".join(TEXTS))
    (tmp_path / "wanted.txt").write_text("<|endoftext|>".join([*TEXTS[30:], "new"]))
    settings = TextSettings(
        path=str(tmp_path / "corpus.txt"), desired_path=str(tmp_path / "wanted.txt")
    )
    text = read_text(settings)
    assert text.documents == [*TEXTS[:30], *TEXTS[30:], "new"]
    assert text.num_train == 30
    assert text.parts[0].also_desired == 10


def test_a_large_file_is_streamed(tmp_path):
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for i in range(40_000):
            file.write(json.dumps({"text": f"{i} " + "word " * 100}) + "\n")
    tracemalloc.start()
    count = sum(1 for _ in stream_documents(TextSettings(path=str(path)), LeftOut()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 40_000
    assert peak < path.stat().st_size / 2


@pytest.mark.parametrize("kind", ["records", "blank lines"])
def test_a_stream_goes_on_behind_a_document_that_is_too_long(tmp_path, kind):
    texts = ["one", "2 " * 2_000_000, "three", "4 " * 10_000_000, "five"]
    lines = (json.dumps({"text": text}) for text in texts) if kind == "records" else texts
    path = tmp_path / "corpus"
    path.write_text(("\n" if kind == "records" else "\n\n").join(lines))
    left_out = LeftOut()
    settings = TextSettings(path=str(path), max_bytes=1 << 20)
    found = [document for document, _ in stream_documents(settings, left_out)]
    assert [document.text for document in found] == ["one", "three", "five"]
    starts = [0, 4_000_007, 24_000_016]
    assert [document.offset for document in found] == ([0, 2, 4] if kind == "records" else starts)
    assert left_out == LeftOut({}, 2)
    # One reads it as far as it goes.
    assert read_documents(settings) == ["one"]
