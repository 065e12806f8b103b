"""Where a document ends: one a line is found, wrapped prose, verse and code are left whole."""

import argparse
import inspect
import re
import textwrap

import numpy as np
import pytest
from texts import make_documents

from lljax.data.sequences import load_sequences, split_sequences
from lljax.data.splits import deal
from lljax.data.text import TextError, TextSettings, read_documents, read_text
from lljax.data.tokenizer import train_tokenizer

STORIES = [" ".join(text.split()) for text in make_documents(200)]
PROSE = " ".join(f"{story[:-1]}, he said." for story in STORIES)
CODE = re.sub(r"\n\s*\n", "\n", inspect.getsource(argparse))
VERSE = "\n".join(f"{line.strip().capitalize()}," for line in textwrap.wrap(PROSE, 38))


@pytest.fixture
def read(tmp_path):
    def read(content, **changes):
        path = tmp_path / "a.txt"
        path.write_text(content, encoding="utf-8")
        return read_text(TextSettings(path=str(path), **changes))

    return read


@pytest.mark.parametrize(
    "lines",
    [
        STORIES,
        [text.lower().replace(".", "") for text in STORIES],
        [f"{text} 你好。" for text in STORIES],
    ],
    ids=["sentences", "words", "chinese"],
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_one_document_a_line(read, lines, line_end):
    text = read(line_end.join(lines))
    assert text.documents == lines
    assert text.parts[0].divided_by == "lines"
    # A blank line here or there is no division.
    assert read("\n".join([*lines[:100], "", *lines[100:]])).documents == lines


@pytest.mark.parametrize(
    "content",
    [
        *("\n".join(textwrap.wrap(PROSE, width)) for width in (40, 72, 100, 160)),
        "\n".join(textwrap.wrap(PROSE.replace(".", ""), 72)),
        "\n".join("\n".join(textwrap.wrap(story, 72)) for story in STORIES),
        CODE,
        VERSE,
        "\n".join(STORIES[:5]),
        PROSE,
        "\n".join([PROSE, *STORIES[:30]]),
    ],
)
def test_lines_that_are_no_documents(read, content):
    assert len(read(content).documents) == 1


def test_what_is_left_out_is_counted(read):
    mark = "<|endoftext|>"
    text = read(mark.join(["a", "b", " ", "a", "", "a", "c", ""]))
    part = text.parts[0]
    assert (text.documents, part.repeated, part.empty) == (["a", "b", "c"], 2, 2)
    text = read("a\n\n\n\nb\n\na\n\n")
    part = text.parts[0]
    assert (text.documents, part.repeated, part.empty) == (["a", "b"], 1, 0)
    part = read("a\n\nb" * 100, max_bytes=250).parts[0]
    assert (part.cut, part.size, part.bytes_read) == (True, 400, 249)  # up to a whole document


def test_one_long_document_fills_every_set(settings):
    sequences = load_sequences(settings([PROSE]))
    total = len(sequences.tokens)
    sizes = {"num_train": total // 2, "num_desired": 40, "num_validation": 17, "num_test": 33}
    dealt = deal(sequences, seed=0, **sizes)
    assert (dealt.cut_documents, dealt.piece) == (1, 1)
    everything = np.concatenate(dealt.split)
    assert len(np.unique(everything)) == len(everything) == sum(sizes.values())
    sizes["num_train"] += total - sum(sizes.values())
    assert sorted(np.concatenate(split_sequences(sequences, seed=1, **sizes))) == [*range(total)]
    sizes["num_train"] += 1
    with pytest.raises(TextError, match=f"data.num_train is .* it has {total} in 1 documents"):
        split_sequences(sequences, seed=1, **sizes)


def test_pieces_are_long_where_the_text_is_and_in_one_set_each(settings):
    sequences = load_sequences(
        settings([PROSE[: len(PROSE) // 2], PROSE[len(PROSE) // 2 :]], context=4)
    )
    sizes = {"num_train": 320, "num_desired": 320, "num_validation": 320, "num_test": 320}
    dealt = deal(sequences, seed=0, **sizes)
    assert (dealt.cut_documents, dealt.piece) == (2, 20)
    starts = np.searchsorted(sequences.document, sequences.document)
    place = np.arange(len(sequences.document)) - starts
    owners = [{(sequences.document[i], place[i] // 20) for i in indices} for indices in dealt.split]
    assert len(set.union(*owners)) == sum(map(len, owners))


def test_whole_documents_are_kept_where_they_suffice(settings):
    sequences = load_sequences(settings())
    sizes = {"num_train": 300, "num_desired": 31, "num_validation": 40, "num_test": 53}
    assert deal(sequences, seed=0, **sizes)[1:] == (0, 0)


@pytest.mark.parametrize("number", [None, 1_000_000])
def test_desired_documents_and_those_to_train_on_stay_apart(settings, tmp_path, number):
    (tmp_path / "wanted.txt").write_text("<|endoftext|>".join(STORIES[:40]))
    sequences = load_sequences(settings(desired_path=str(tmp_path / "wanted.txt"), context=8))
    limit = sequences.text.num_train
    dealt = split_sequences(
        sequences,
        seed=3,
        num_train=number,
        num_desired=None,
        num_validation=None,
        num_test=9,
        num_train_documents=limit,
    )
    assert sorted(dealt.train) == [*np.flatnonzero(sequences.document < limit)]
    assert len(dealt.test) == 9
    for indices in dealt[1:]:
        owners = set(sequences.document[indices])
        assert min(owners) >= limit
        shown = sequences.tokenizer.decode(sequences.tokens[indices[0]].tolist())
        assert any(shown in story for story in STORIES[:40])
    assert not set(sequences.document[dealt.test]) & set(sequences.document[dealt.desired])


def test_a_long_document_is_encoded_as_if_in_one_call():
    """It goes to sentencepiece in pieces; where they end must not change a token."""
    tokenizer = train_tokenizer(STORIES, 300)
    text = PROSE * 4
    assert len(text) > 100_000
    ids = tokenizer.encode([text, "a", "", text.replace(" ", "\n")])
    whole = tokenizer._processor.encode(text)
    np.testing.assert_array_equal(ids[0], tokenizer._our_ids[whole])
    assert tokenizer.decode(ids[0]) == text
    assert ids[1:3] == [tokenizer.encode(["a"])[0], []]
    assert tokenizer.decode(ids[3]) == text.replace(" ", "\n")


def test_embedded_text_is_divided_as_ever():
    assert len(read_documents(TextSettings())) > 1000
